//! The asynchronous flush: fdatasync through io_uring, its completion polled.
//!
//! A poll that finds nothing costs no system call. For a caller that sleeps, an eventfd registered
//! with the ring becomes readable when a flush is over.
//!
//! What is passing, and what is not:
//! - The call that hands requests over (`io_uring_enter`) may say EINTR, EAGAIN (no memory now) or EBUSY (too many completions
//!   are not taken yet). The kernel took nothing then, or only a part: the other requests are still in the ring, and it is
//!   called again, after the completions were taken. When it says so for [`PATIENCE`], the log stops, with an error that says so.
//! - A flush that completes with EINTR was not waited for to its end. It has reported no failure: one that the system knows
//!   of is kept for the next flush of the file. So that file is flushed again, as the standard library does for the thread's
//!   `fdatasync`, and a bounded number of times.
//! - A flush that completes with any other error is final, EAGAIN too: `fsync` has no such outcome of its own, so it may be what
//!   the file system has to say about a write, and a second flush of lost pages succeeds.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};
use std::{fmt, io, thread};

use io_uring::{IoUring, Probe, opcode, types};
use rustix::event::{EventfdFlags, eventfd};

use crate::medium::disk_file::{DiskFile, uninterrupted};
use crate::medium::{File, FlushError};

/// Slots in the ring: the most files one flush can cover at once. More are flushed in turns.
const ENTRIES: u32 = 64;

/// How long the kernel may take no requests. Default: 10 s.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pause before a request that the kernel did not take is handed over again.
const PAUSE: Duration = Duration::from_millis(1);

/// How many flushes of a run may be interrupted.
const MOST_INTERRUPTIONS: usize = 1000;

pub(crate) struct Uring {
    ring: IoUring,
    event: OwnedFd,
    /// The files of the running flush; the ones before `done` are over. They are kept open here until
    /// the kernel has answered for them.
    files: Vec<DiskFile>,
    /// Files handed to the kernel so far.
    sent: usize,
    /// Files the kernel has answered for.
    done: usize,
    failed: Option<FlushError>,
    /// Files of the running flush that are flushed again since a signal interrupted it.
    interrupted: usize,
    /// Since when the kernel takes no requests.
    refused_since: Option<Instant>,
    /// What the kernel says to the next calls.
    #[cfg(test)]
    says: std::collections::VecDeque<rustix::io::Errno>,
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring")
            .field("files", &self.files.len())
            .field("done", &self.done)
            .finish()
    }
}

impl Uring {
    /// Sets the ring up, or says why the kernel (or a seccomp filter) does not allow it.
    pub(crate) fn start() -> io::Result<Uring> {
        let ring = IoUring::new(ENTRIES)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Fsync::CODE) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "io_uring without fsync",
            ));
        }
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        loop {
            match ring.submitter().register_eventfd(event.as_raw_fd()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                registered => break registered?,
            }
        }
        Ok(Uring {
            ring,
            event,
            files: Vec::new(),
            sent: 0,
            done: 0,
            failed: None,
            interrupted: 0,
            refused_since: None,
            #[cfg(test)]
            says: std::collections::VecDeque::new(),
        })
    }

    pub(crate) fn completion_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub(crate) fn start_flush(&mut self, files: &mut Vec<DiskFile>) -> io::Result<()> {
        assert!(self.files.is_empty(), "a flush was started while one runs");
        std::mem::swap(&mut self.files, files);
        (self.sent, self.done, self.failed) = (0, 0, None);
        self.interrupted = 0;
        self.submit(false)
    }

    /// Hands the kernel as many files as the ring takes; waits for one answer when told to.
    fn submit(&mut self, wait: bool) -> io::Result<()> {
        while self.sent < self.files.len() && self.sent - self.done < ENTRIES as usize {
            let fd = types::Fd(self.files[self.sent].file.as_raw_fd());
            let entry = opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build()
                .user_data(self.sent as u64);
            // SAFETY: the entry points at no memory of ours; its file descriptor stays open because
            // `self.files` keeps the file until its completion was seen.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            assert!(
                pushed.is_ok(),
                "the ring has {ENTRIES} slots and is full with fewer flushes"
            );
            self.sent += 1;
        }
        loop {
            match self.enter(usize::from(wait)) {
                Ok(_) => {
                    self.refused_since = None;
                    // After a part of them the kernel may have run out of memory.
                    return match self.has_unsubmitted() {
                        true => self.call_again(),
                        false => Ok(()),
                    };
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_passing(&e) => {
                    let since = *self.refused_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= PATIENCE {
                        let text = format!(
                            "io_uring has taken no flush for {} s: {e}; Flush::Thread does without it",
                            PATIENCE.as_secs()
                        );
                        return Err(io::Error::new(e.kind(), text));
                    }
                    thread::sleep(PAUSE);
                    return self.call_again();
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn enter(&mut self, want: usize) -> io::Result<usize> {
        #[cfg(test)]
        if let Some(error) = self.says.pop_front() {
            return Err(error.into());
        }
        self.ring.submit_and_wait(want)
    }

    /// Requests are in the ring that the kernel has not taken.
    fn has_unsubmitted(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Wakes whoever sleeps until a completion comes: none will for what the kernel has not taken.
    fn call_again(&self) -> io::Result<()> {
        uninterrupted(|| rustix::io::write(&self.event, &1_u64.to_ne_bytes()))?;
        Ok(())
    }

    fn reset_event(&self) {
        // It is not set where this poll comes by itself.
        let _ = uninterrupted(|| rustix::io::read(&self.event, &mut [0; 8]));
    }

    pub(crate) fn poll(&mut self, wait: bool) -> Option<Result<(), FlushError>> {
        if self.files.is_empty() {
            return None;
        }
        loop {
            self.reap();
            if self.done == self.files.len() {
                self.files.clear();
                return Some(self.failed.take().map_or(Ok(()), Err));
            }
            let is_refused = self.has_unsubmitted();
            if is_refused {
                self.reset_event();
            }
            if (wait || is_refused || self.sent < self.files.len())
                && let Err(source) = self.submit(wait)
            {
                // The ring itself failed. What it does with the files is not known any more; they
                // stay open in `files`, and the log never flushes again.
                return Some(Err(FlushError {
                    path: self.files[self.done].path().into(),
                    source,
                }));
            }
            if !wait {
                return None;
            }
        }
    }

    fn reap(&mut self) {
        if self.ring.completion().is_empty() {
            return;
        }
        // First the event, then the completions: one that arrives in between raises the event again.
        self.reset_event();
        for completion in self.ring.completion() {
            let (at, result) = (completion.user_data() as usize, completion.result());
            assert!(at < self.sent, "completion {at} of {} flushes", self.sent);
            self.done += 1;
            let is_interrupted = result == -rustix::io::Errno::INTR.raw_os_error();
            if is_interrupted && self.interrupted < MOST_INTERRUPTIONS {
                // Once more, as if it were another file.
                self.interrupted += 1;
                self.files.push(self.files[at].clone());
            } else if result < 0 {
                let source = io::Error::from_raw_os_error(-result);
                self.failed = Some(FlushError {
                    path: self.files[at].path().into(),
                    source,
                });
            }
        }
    }
}

/// Nothing was handed over, and it may be the next time.
fn is_passing(error: &io::Error) -> bool {
    let passing = [rustix::io::Errno::AGAIN, rustix::io::Errno::BUSY];
    rustix::io::Errno::from_io_error(error).is_some_and(|error| passing.contains(&error))
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::medium::Dir;
    use crate::medium::disk::Disk;

    /// `None` where this machine forbids io_uring; the other tests run on the thread then.
    fn uring() -> Option<Uring> {
        Uring::start().ok()
    }

    #[test]
    fn the_event_wakes_a_sleeper_and_poll_resets_it() {
        let Some(mut uring) = uring() else { return };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = Disk::new(dir.path()).create("f", 8192).expect("created");
        let event = uring.event.try_clone().expect("dup");
        let readable = |limit: &Timespec| {
            poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(limit)).expect("poll") == 1
        };
        for round in 0..3_u8 {
            assert!(!readable(&Timespec::default()), "the event is reset");
            file.write_at(0, &[round; 4096]).expect("written");
            uring.start_flush(&mut vec![file.clone()]).expect("started");
            assert!(
                readable(&Timespec {
                    tv_sec: 10,
                    tv_nsec: 0
                }),
                "woken by the completion"
            );
            // The completion is posted before the event, so there is no need to wait now.
            uring.poll(false).expect("over").expect("flushed");
        }
    }

    #[test]
    fn a_flush_that_the_kernel_does_not_take_now_is_handed_over_later() {
        use rustix::io::Errno;
        let Some(mut uring) = uring() else { return };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = Disk::new(dir.path()).create("f", 8192).expect("created");
        let event = uring.event.try_clone().expect("dup");
        let limit = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        for wait in [false, true] {
            uring.says = [Errno::AGAIN, Errno::INTR, Errno::BUSY, Errno::AGAIN].into();
            file.write_at(0, &[7; 4096]).expect("written");
            uring
                .start_flush(&mut vec![file.clone(); 3])
                .expect("nothing has failed");
            let outcome = loop {
                // A thread that sleeps until something comes is woken for each try.
                if !wait {
                    let mut fds = [PollFd::new(&event, PollFlags::IN)];
                    assert_eq!(poll(&mut fds, Some(&limit)).expect("poll"), 1, "woken");
                }
                if let Some(outcome) = uring.poll(wait) {
                    break outcome;
                }
            };
            outcome.expect("flushed");
            assert!(uring.says.is_empty());
        }
    }

    #[test]
    fn a_kernel_that_takes_nothing_for_long_is_a_fault_that_says_so() {
        let Some(mut uring) = uring() else { return };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = Disk::new(dir.path()).create("f", 8192).expect("created");
        uring.says = [rustix::io::Errno::AGAIN; 2].into();
        uring.start_flush(&mut vec![file]).expect("it has time");
        uring.refused_since = Instant::now().checked_sub(PATIENCE);
        let Some(since) = uring.refused_since else {
            return; // The machine runs since less than that.
        };
        let error = uring.poll(true).expect("over").expect_err("refused");
        let says = error.source.to_string();
        assert!(
            says.contains("has taken no flush"),
            "{says}, since {since:?}"
        );
    }

    #[test]
    fn any_other_answer_of_the_kernel_is_final() {
        let Some(mut uring) = uring() else { return };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = Disk::new(dir.path()).create("f", 8192).expect("created");
        uring.says = [rustix::io::Errno::IO].into();
        uring.start_flush(&mut vec![file]).expect_err("not passing");
    }

    #[test]
    fn more_files_than_the_ring_has_slots_are_flushed_in_turns() {
        let Some(mut uring) = uring() else { return };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Disk::new(dir.path());
        let file = disk.create("f", 8192).expect("created");
        uring
            .start_flush(&mut vec![file; ENTRIES as usize * 2 + 3])
            .expect("started");
        uring.poll(true).expect("over").expect("flushed");
    }

    #[test]
    fn the_file_that_cannot_be_flushed_is_named() {
        let Some(mut uring) = uring() else { return };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Disk::new(dir.path());
        let good = disk.create("good", 4096).expect("created");
        // A pipe has nothing to flush: the kernel says EINVAL.
        let (_, pipe) = std::io::pipe().expect("a pipe");
        let bad = DiskFile::for_test(std::fs::File::from(OwnedFd::from(pipe)), "bad");
        uring.start_flush(&mut vec![good, bad]).expect("started");
        let error = uring
            .poll(true)
            .expect("over")
            .expect_err("a pipe is not flushed");
        assert_eq!(error.path.to_str(), Some("bad"));
        assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
    }
}
