//! Descriptors: how few the log needs, and how it comes by them when others have taken all the rest.
//!
//! - A [`Handle`](crate::log::handle::Handle) is a file that is open only while something is written to it or flushed.
//! - A [`Reserve`] holds descriptors that the log may need at once later on: the next segment, a directory that is flushed, a
//!   snapshot, a list of peers. When the process has none left (`EMFILE`), an open of the log's own takes the place of one in
//!   the reserve, and a file of the log that is closed goes back into it without ever being free for somebody else.
//!
//! When the whole system has no room for another open file (`ENFILE`) a reserve is no help: such an error passes, or it does
//! not.

use std::fs;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;

/// Descriptors that an open log always has: the segment in use and the next one, term and vote, the lock, the reserve's own,
/// io_uring and its eventfd.
const ALWAYS: usize = 7;

/// Descriptors that it has now and then: 7 more segments that are not flushed, 5 that wait for their next life, the segment
/// that is prepared and its folder (2); a snapshot that is written or read again and one that is received, each also past the
/// page cache, and their folder (5); the segment that is scrubbed, one that is mended, one that a peer is given records of,
/// the list of peers and its folder (5).
const AT_TIMES: usize = 24;

/// Descriptors in reserve: for all that it has now and then.
pub(crate) const RESERVED: usize = AT_TIMES;

/// The descriptors that an open log needs, whatever its length; it takes them when it is opened.
pub const MIN_DESCRIPTORS: usize = ALWAYS + RESERVED;

/// The most descriptors that it has at any time, while there are enough for everybody: the reserve and what it is for. Each
/// snapshot that is sent to a peer has two more ([`crate::SnapshotReader`]).
pub const MAX_DESCRIPTORS: usize = ALWAYS + AT_TIMES + RESERVED;

/// The limit of open files of this process; `None`: there is none.
pub fn descriptor_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// The process (`EMFILE`) or the system (`ENFILE`) has no descriptor left. That may pass.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|errno| code == Some(errno.raw_os_error()))
}

fn is_own_limit(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::MFILE.raw_os_error())
}

/// The limit of the address space of this process, in bytes; `None`: there is none.
pub fn address_space_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::As).current
}

/// What there is to be done about an error of this kind, for its message.
pub(crate) fn advice(error: &io::Error) -> Option<String> {
    if is_own_limit(error) {
        let limit = descriptor_limit().map_or("no limit".into(), |limit| limit.to_string());
        return Some(format!(
            "the process has used up its limit of open files, {limit}: raise it (ulimit -n, LimitNOFILE=) and start again"
        ));
    }
    let is_out = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    if is_out(Errno::NFILE) {
        let text =
            "the system has no more open files for anybody: raise fs.file-max and start again";
        return Some(text.into());
    }
    None
}

/// Descriptors for the opens of one log.
#[derive(Debug, Default)]
pub(crate) struct Reserve {
    /// Something small that is open: those in reserve are copies of it. Set while there is a reserve.
    model: OnceLock<OwnedFd>,
    spare: Mutex<Vec<OwnedFd>>,
}

impl Reserve {
    /// Holds descriptors from now on, as far as there are any.
    pub(crate) fn begin(&self, root: &Path) {
        // Without one there is no reserve: the opens of the log fail as soon as everybody's.
        if let Ok(model) = fs::File::open(root) {
            let _ = self.model.set(model.into());
        }
        self.fill();
    }

    /// No code panics while it holds the list.
    fn spare(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an open of the log's own gives; as long as the process has no descriptor for it, one of the reserve makes room.
    pub(crate) fn open<T>(&self, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match open() {
                // Somebody else may take the one that was let go: then the next one goes.
                Err(error) if is_own_limit(&error) && self.spare().pop().is_some() => {}
                done => return done,
            }
        }
    }

    /// Has as many as it should, if there are any to be had.
    pub(crate) fn fill(&self) {
        let Some(model) = self.model.get() else {
            return;
        };
        let mut spare = self.spare();
        while spare.len() < RESERVED {
            match rustix::io::fcntl_dupfd_cloexec(model, 0) {
                Ok(copy) => spare.push(copy),
                Err(_) => return,
            }
        }
    }

    /// Takes the place of a file that is closed: its number is free for nobody in between.
    fn take_back(&self, file: fs::File) {
        #[cfg(target_os = "linux")]
        if let Some(model) = self.model.get() {
            let mut spare = self.spare();
            if spare.len() < RESERVED {
                let mut descriptor = OwnedFd::from(file);
                if rustix::io::dup3(model, &mut descriptor, rustix::io::DupFlags::CLOEXEC).is_ok() {
                    spare.push(descriptor);
                }
                return;
            }
        }
        drop(file);
        self.fill();
    }
}

/// An open file that goes back into the reserve.
#[derive(Debug)]
pub(crate) struct Held {
    /// `None` only while it is being dropped.
    file: Option<fs::File>,
    reserve: Option<Arc<Reserve>>,
}

impl Held {
    pub(crate) fn new(file: fs::File, reserve: Option<Arc<Reserve>>) -> Held {
        Held {
            file: Some(file),
            reserve,
        }
    }
}

impl Deref for Held {
    type Target = fs::File;

    fn deref(&self) -> &fs::File {
        self.file.as_ref().expect("taken only by drop")
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        (**self).as_fd()
    }
}

impl AsRawFd for Held {
    fn as_raw_fd(&self) -> RawFd {
        (**self).as_raw_fd()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(file), Some(reserve)) = (self.file.take(), &self.reserve) {
            reserve.take_back(file);
        }
    }
}
