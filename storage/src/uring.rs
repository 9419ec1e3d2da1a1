//! The asynchronous flush: fdatasync through io_uring, its completion polled.
//!
//! A poll that finds nothing costs no system call. For a caller that sleeps, an eventfd registered
//! with the ring becomes readable when a flush is over.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::{fmt, io};

use io_uring::{IoUring, Probe, opcode, types};
use rustix::event::{EventfdFlags, eventfd};

use crate::disk::DiskFile;
use crate::file::{File, FlushError};

/// Slots in the ring: the most files one flush can cover at once. More are flushed in turns.
const ENTRIES: u32 = 64;

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
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Uring {
            ring,
            event,
            files: Vec::new(),
            sent: 0,
            done: 0,
            failed: None,
        })
    }

    pub(crate) fn completion_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub(crate) fn start_flush(&mut self, files: &mut Vec<DiskFile>) -> io::Result<()> {
        assert!(self.files.is_empty(), "a flush was started while one runs");
        std::mem::swap(&mut self.files, files);
        (self.sent, self.done, self.failed) = (0, 0, None);
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
            match self.ring.submit_and_wait(usize::from(wait)) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
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
            if (wait || self.sent < self.files.len())
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
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        for completion in self.ring.completion() {
            let (at, result) = (completion.user_data() as usize, completion.result());
            assert!(at < self.sent, "completion {at} of {} flushes", self.sent);
            self.done += 1;
            if result < 0 {
                let source = io::Error::from_raw_os_error(-result);
                self.failed = Some(FlushError {
                    path: self.files[at].path().into(),
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::disk::Disk;
    use crate::file::Dir;

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
