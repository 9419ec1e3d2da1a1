//! Making real files durable: the choice of the way, and the thread that needs no kernel support.

use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::{fmt, io, mem};

use crate::medium::disk_file::DiskFile;
#[cfg(all(target_os = "linux", feature = "io-uring"))]
use crate::medium::uring::Uring;
use crate::medium::{File, FlushBackend, FlushError, FlushOptions, Flusher, OnComplete};

/// The flusher of real files: io_uring, a thread, or none at all (`sync: false`).
#[derive(Debug)]
pub struct DiskFlusher(Way);

#[derive(Debug)]
enum Way {
    #[cfg(all(target_os = "linux", feature = "io-uring"))]
    Uring(Box<Uring>),
    Thread(Threaded),
    None {
        done: bool,
    },
}

impl DiskFlusher {
    pub(crate) fn start(options: &FlushOptions) -> io::Result<DiskFlusher> {
        if !options.sync {
            return Ok(DiskFlusher(Way::None { done: false }));
        }
        let way = match (options.way, std::env::var("RINGRAFT_FLUSH").as_deref()) {
            (FlushBackend::Auto, Ok("uring")) => FlushBackend::Uring,
            (FlushBackend::Auto, Ok("thread")) => FlushBackend::Thread,
            (way, _) => way,
        };
        if way != FlushBackend::Thread {
            #[cfg(all(target_os = "linux", feature = "io-uring"))]
            match Uring::start() {
                Ok(uring) => return Ok(DiskFlusher(Way::Uring(Box::new(uring)))),
                // No such call, or a seccomp filter or sysctl forbids it: the thread does the job.
                Err(_) if way == FlushBackend::Auto => {}
                Err(e) => return Err(e),
            }
            #[cfg(not(all(target_os = "linux", feature = "io-uring")))]
            if way == FlushBackend::Uring {
                let text = "this build has no io_uring: choose FlushBackend::Thread or Auto";
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        }
        Ok(DiskFlusher(Way::Thread(Threaded::start(
            options.on_complete.clone(),
        )?)))
    }
}

impl Flusher for DiskFlusher {
    type File = DiskFile;

    fn start(&mut self, files: &mut Vec<DiskFile>) -> io::Result<()> {
        match &mut self.0 {
            #[cfg(all(target_os = "linux", feature = "io-uring"))]
            Way::Uring(uring) => uring.start_flush(files),
            Way::Thread(thread) => thread.start_flush(files),
            Way::None { done } => {
                files.clear();
                *done = true;
                Ok(())
            }
        }
    }

    fn poll(&mut self, wait: bool) -> Option<Result<(), FlushError>> {
        match &mut self.0 {
            #[cfg(all(target_os = "linux", feature = "io-uring"))]
            Way::Uring(uring) => uring.poll(wait),
            Way::Thread(thread) => thread.poll(wait),
            Way::None { done } => mem::take(done).then_some(Ok(())),
        }
    }

    fn completion_fd(&self) -> Option<RawFd> {
        match &self.0 {
            #[cfg(all(target_os = "linux", feature = "io-uring"))]
            Way::Uring(uring) => Some(uring.completion_fd()),
            _ => None,
        }
    }

    fn way(&self) -> &'static str {
        match &self.0 {
            #[cfg(all(target_os = "linux", feature = "io-uring"))]
            Way::Uring(_) => "io_uring",
            Way::Thread(_) => "thread",
            Way::None { .. } => "none",
        }
    }
}

/// A thread that calls fdatasync. One flush at a time: the mutex is taken once to hand it over and
/// once to take the outcome, never per entry.
struct Threaded {
    shared: Arc<Shared>,
    /// A flush was started and its outcome not yet taken.
    running: bool,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    desk: Mutex<Desk>,
    changed: Condvar,
    /// The outcome is on the desk; lets a poll look without the mutex.
    done: AtomicBool,
}

#[derive(Default)]
struct Desk {
    /// What to flush. The thread takes the files and gives the empty vector back.
    files: Vec<DiskFile>,
    asked: bool,
    stop: bool,
    outcome: Option<Result<(), FlushError>>,
}

impl Shared {
    /// No code panics while it holds the desk, so a poisoned mutex still guards a whole desk.
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, desk: MutexGuard<'a, Desk>) -> MutexGuard<'a, Desk> {
        self.changed
            .wait(desk)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Threaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threaded")
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

impl Threaded {
    fn start(on_complete: Option<OnComplete>) -> io::Result<Threaded> {
        let shared = Arc::new(Shared {
            desk: Mutex::default(),
            changed: Condvar::new(),
            done: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("ringraft-flush".into())
            .spawn(move || of_thread.run(on_complete))?;
        Ok(Threaded {
            shared,
            running: false,
            thread: Some(thread),
        })
    }

    fn start_flush(&mut self, files: &mut Vec<DiskFile>) -> io::Result<()> {
        assert!(!self.running, "a flush was started while one runs");
        let mut desk = self.shared.desk();
        mem::swap(&mut desk.files, files);
        desk.asked = true;
        drop(desk);
        self.shared.changed.notify_all();
        self.running = true;
        Ok(())
    }

    fn poll(&mut self, wait: bool) -> Option<Result<(), FlushError>> {
        if !self.running || !(wait || self.shared.done.load(Ordering::Acquire)) {
            return None;
        }
        let mut desk = self.shared.desk();
        while desk.outcome.is_none() {
            desk = self.shared.wait(desk);
        }
        self.shared.done.store(false, Ordering::Relaxed);
        self.running = false;
        desk.outcome.take()
    }
}

impl Shared {
    fn run(&self, on_complete: Option<OnComplete>) {
        let mut files = Vec::new();
        loop {
            let mut desk = self.desk();
            while !desk.asked && !desk.stop {
                desk = self.wait(desk);
            }
            if !desk.asked {
                return;
            }
            desk.asked = false;
            mem::swap(&mut desk.files, &mut files);
            drop(desk);

            let mut outcome = Ok(());
            for file in files.drain(..) {
                // A thread that is gone would never answer, and the log would wait for ever: a panic is a failed flush.
                let synced = catch_unwind(AssertUnwindSafe(|| file.sync()))
                    .unwrap_or_else(|_| Err(io::Error::other("the flush panicked")));
                if let Err(source) = synced {
                    outcome = Err(FlushError {
                        path: file.path().into(),
                        source,
                    });
                }
            }

            let mut desk = self.desk();
            desk.outcome = Some(outcome);
            mem::swap(&mut desk.files, &mut files);
            self.done.store(true, Ordering::Release);
            drop(desk);
            self.changed.notify_all();
            if let Some(wake) = &on_complete {
                // A panic in there was reported by its hook; the next flush must go on all the same.
                let _ = catch_unwind(AssertUnwindSafe(|| wake()));
            }
        }
    }
}

impl Drop for Threaded {
    fn drop(&mut self) {
        self.shared.desk().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // Nothing in it panics; were it otherwise, it has been reported where it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::medium::Dir;
    use crate::medium::disk::Disk;

    fn flush_twice(way: FlushBackend) -> &'static str {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Disk::new(dir.path());
        let (called, calls) = mpsc::sync_channel(8);
        let on_complete: OnComplete = Arc::new(move || called.send(()).expect("somebody listens"));
        let options = FlushOptions {
            way,
            sync: true,
            on_complete: Some(on_complete),
        };
        let mut flusher = disk.flusher(&options).expect("a flusher");
        let files = [
            disk.create("a", 8192).expect("a"),
            disk.create("b", 8192).expect("b"),
        ];
        for round in 0..2_u8 {
            assert!(
                flusher.poll(true).is_none(),
                "nothing runs, nothing to wait for"
            );
            let mut batch = files.to_vec();
            for file in &files {
                file.write_at(0, &[round; 100]).expect("written");
            }
            flusher.start(&mut batch).expect("started");
            assert!(batch.is_empty());
            flusher.poll(true).expect("an outcome").expect("flushed");
        }
        if flusher.completion_fd().is_none() {
            calls.recv().expect("first call");
            calls.recv().expect("second call");
        }
        flusher.way()
    }

    #[test]
    fn the_thread_flushes_and_calls_back() {
        assert_eq!(flush_twice(FlushBackend::Thread), "thread");
    }

    #[test]
    fn a_panic_of_the_callback_does_not_stop_the_flushes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Disk::new(dir.path());
        let file = disk.create("a", 8192).expect("created");
        let on_complete: OnComplete = Arc::new(|| panic!("the callback of a test"));
        let (way, on_complete) = (FlushBackend::Thread, Some(on_complete));
        let options = FlushOptions {
            way,
            sync: true,
            on_complete,
        };
        let mut flusher = disk.flusher(&options).expect("a flusher");
        for _ in 0..3 {
            flusher.start(&mut vec![file.clone()]).expect("started");
            flusher.poll(true).expect("an outcome").expect("flushed");
        }
    }

    #[test]
    fn auto_finds_a_way() {
        assert!(["io_uring", "thread"].contains(&flush_twice(FlushBackend::Auto)));
    }

    #[test]
    fn without_sync_a_flush_is_over_at_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut flusher = Disk::new(dir.path())
            .flusher(&FlushOptions::default())
            .expect("a flusher");
        assert_eq!(flusher.way(), "none");
        flusher.start(&mut Vec::new()).expect("started");
        assert!(matches!(flusher.poll(false), Some(Ok(()))));
        assert!(flusher.poll(false).is_none());
    }
}
