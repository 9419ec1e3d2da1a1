//! Threads that nobody waits for let those go first that somebody does.

/// How much less of a busy core such a thread gets: about a third of what another one does. Less would let a log that needs
/// its next segment wait for it where all cores are busy.
#[cfg(target_os = "linux")]
const NICER: i32 = 5;

/// For the calling thread: what it does can be done at leisure. Where the system has no such thing for one thread, it goes
/// on as before.
pub fn at_low_priority() {
    // The call is of this thread only, other than its name and POSIX say; refused, it changes nothing.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(NICER);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn it_is_of_one_thread_only() {
        let nice = || rustix::process::getpriority_process(None).expect("its own");
        let before = nice();
        let there = std::thread::spawn(move || {
            super::at_low_priority();
            nice()
        });
        let there = there.join().expect("no panic");
        assert_eq!((nice(), there), (before, (before + super::NICER).min(19)));
    }
}
