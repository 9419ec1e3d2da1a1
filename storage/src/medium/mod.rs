//! The interface to the medium: directories, files, maps and flushes, as the log needs them.
//!
//! Three ways stand behind it: real files flushed through io_uring, real files flushed by a thread
//! (both in [`crate::medium::disk`]), and a memory that forgets and tears like a disk ([`crate::medium::memory`]).
//!
//! What the log relies on:
//! - a write is visible to maps of the file when the call returns, and durable after a flush that
//!   began later;
//! - a 512-byte sector is written as a whole or not at all;
//! - a name (create, rename, remove) is durable after `sync_dir`.

pub(crate) mod descriptor;
pub mod disk;
pub(crate) mod disk_file;
pub(crate) mod flush;
pub(crate) mod low_priority;
pub mod memory;
pub mod probe;
pub(crate) mod shared_bytes;
#[cfg(all(target_os = "linux", feature = "io-uring"))]
mod uring;

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::medium::shared_bytes::SharedBytes;

/// What goes past the page cache begins and ends at multiples of this, in memory and in the file: enough for any medium.
pub const ALIGNED: usize = 4096;

/// What the system reads and knows as a whole.
pub(crate) const PAGE: u64 = 4096;

/// Whether the medium has the file and does not give its bytes back: what the kernel answers for a bad sector, a wrong
/// checksum of the device or of the file system. Anything else (no permission, too many files) is no damage of the file.
pub(crate) fn is_medium_error(error: &io::Error) -> bool {
    // EIO, ENODATA, EBADMSG, EILSEQ, EUCLEAN, EREMOTEIO of Linux; the first is the same everywhere.
    const OF_LINUX: [i32; 5] = [61, 74, 84, 117, 121];
    match error.raw_os_error() {
        Some(5) => true,
        Some(code) => cfg!(target_os = "linux") && OF_LINUX.contains(&code),
        None => false,
    }
}

/// A directory which holds one log. Names are relative to it and use `/`.
pub trait Dir: Clone + Send + Sync + 'static {
    /// Its files.
    type File: File;
    /// What makes files durable without waiting.
    type Flusher: Flusher<File = Self::File>;
    /// Keeps every other process out until dropped.
    type Lock: Send + Sync;

    /// The path of `name`, for messages.
    fn path(&self, name: &str) -> PathBuf;

    /// Makes the folder `name` (`""` for the directory itself) and its parents, when missing.
    fn create_folder(&self, name: &str) -> io::Result<()>;

    /// Makes `name`, replacing what had this name: `len` bytes, all allocated and written with zeros,
    /// so that a later write inside it cannot run out of space.
    fn create(&self, name: &str, len: u64) -> io::Result<Self::File>;

    /// Makes `name`, replacing what had this name: empty, and it grows with what is written at its end.
    fn create_empty(&self, name: &str) -> io::Result<Self::File>;

    /// Opens `name` for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Gives `from` the name `to`, replacing what had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes the name. Maps and open files of it stay usable.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names in `folder`, without the folder, in no particular order. No such folder: no names.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// Makes the names in `folder` durable.
    fn sync_dir(&self, folder: &str) -> io::Result<()>;

    /// Takes the lock `name`, or says who has it (`Err(Ok(pid))`, the pid when known).
    fn lock(&self, name: &str) -> Result<Self::Lock, LockError>;

    /// Whether the directory that was locked is still to be found under its path, with its log: what is written to files that
    /// have no name any more is lost with the process.
    ///
    /// # Errors
    /// It is not. An error that says nothing about that is none here.
    fn check_place(&self) -> io::Result<()> {
        Ok(())
    }

    /// Starts what flushes the files of this directory.
    fn flusher(&self, options: &FlushOptions) -> io::Result<Self::Flusher>;

    /// A random number: names a new directory for good.
    fn random(&self) -> u64;

    /// Whether segments are prepared ahead by a thread; `false` keeps everything on the caller's
    /// thread, in an order that only depends on the calls.
    const BACKGROUND: bool;
}

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Somebody has it; the process id, when the lock file shows one.
    Held(Option<u32>),
    /// The lock file could not be opened or locked.
    Io(io::Error),
}

/// Names a file as long as somebody holds it, open or mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    /// The medium it is on.
    pub device: u64,
    /// Its number there.
    pub number: u64,
}

/// A file: of fixed length ([`Dir::create`]), or one that grows ([`Dir::create_empty`]). A growth that was not flushed
/// may be lost or there in part, and what is there of it may be zeros. Clones are handles to the same open file.
pub trait File: Clone + Send + Sync + 'static {
    /// Where it was opened, for messages.
    fn path(&self) -> &Path;

    /// What tells it from every other file that exists at the same time, whatever its name.
    fn id(&self) -> io::Result<FileId>;

    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Writes all of `parts`, one behind the other, from `offset` on: one system call where the
    /// system has one for it.
    fn write_parts_at(&self, offset: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_parts_at(offset, &mut [IoSlice::new(bytes)])
    }

    /// Fills `out` from `offset` on; an error when the file ends before.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, to the medium itself and not to the system's memory of the file, where there is such
    /// a way and as far as memory and offset lie at multiples of [`ALIGNED`]. It is no more durable by that: see `sync`.
    fn write_past_cache(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes)
    }

    /// Fills `out` from `offset` on, from the medium itself, where there is such a way and all of it lies at multiples of
    /// [`ALIGNED`]. What is returned is less than its length only when the file ends before.
    fn read_past_cache(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let left = self.length()?.saturating_sub(offset);
        let len = left.min(out.len() as u64) as usize;
        self.read_at(offset, &mut out[..len])?;
        Ok(len)
    }

    /// Makes all written so far durable, and waits for it. Not for the way of an entry.
    fn sync(&self) -> io::Result<()>;

    /// Gives the room of everything from `from` on back to the system, of a file whose name is gone and that nobody reads
    /// any more.
    ///
    /// # Errors
    /// The system cannot do that in parts, or the medium failed: then all of it goes with the last handle.
    fn reclaim(&self, _from: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Lets go of what the system keeps of the file in memory and need not write any more, so that what is read next is
    /// what the medium has. Where the system has no such call this does nothing.
    fn drop_cache(&self) {}

    /// Has the system read into memory what it does not have there of the file, so that a write to a part of a page does
    /// not wait for the rest of it. Where the system has no such call this does nothing.
    fn will_need(&self) {}

    /// Maps the whole file for reading.
    fn map(&self) -> io::Result<Map>;
}

/// Makes files durable while the caller goes on. One flush at a time.
pub trait Flusher: Send {
    /// The files it flushes.
    type File: File;

    /// Begins to make durable what was written to `files` so far. Takes the files out of the vector
    /// and leaves its capacity. Must not be called while a flush runs.
    fn start(&mut self, files: &mut Vec<Self::File>) -> io::Result<()>;

    /// `None` while the flush runs, then its outcome, once. `wait` blocks until there is one.
    fn poll(&mut self, wait: bool) -> Option<Result<(), FlushError>>;

    /// A file descriptor that becomes readable when a flush is over, for the caller's epoll.
    /// [`Flusher::poll`] resets it.
    fn completion_fd(&self) -> Option<RawFd> {
        None
    }

    /// Which way runs, for the start line.
    fn way(&self) -> &'static str;
}

/// A flush that failed.
#[derive(Debug)]
pub struct FlushError {
    /// The file.
    pub path: PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

/// How to flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlushBackend {
    /// io_uring when the kernel allows it, else the thread. The environment variable
    /// `RINGRAFT_FLUSH` (`uring` or `thread`) decides when it is set.
    #[default]
    Auto,
    /// io_uring, or an error at open.
    Uring,
    /// A thread that calls fdatasync.
    Thread,
}

/// Called on the flush thread when a flush is over.
pub type OnComplete = Arc<dyn Fn() + Send + Sync>;

/// What [`Dir::flusher`] needs to know.
#[derive(Clone, Default)]
pub struct FlushOptions {
    /// Which way.
    pub way: FlushBackend,
    /// `false`: a flush is over at once and promises nothing.
    pub sync: bool,
    /// Wakes the caller when the way has a thread of its own; ways that have none offer
    /// [`Flusher::completion_fd`] instead.
    pub on_complete: Option<OnComplete>,
}

impl std::fmt::Debug for FlushOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlushOptions")
            .field("way", &self.way)
            .field("sync", &self.sync)
            .field("on_complete", &self.on_complete.is_some())
            .finish()
    }
}

/// A file seen as memory, for reading. Clones share the mapping.
///
/// The file may be written while it is mapped: the log reads only ranges that it has published as
/// written, and writes a published range again only when the records there were truncated, or have gone
/// bad and are put back (`crate::scrub::record_repair`). Whoever holds on to such records may see other bytes there; the
/// checksum of the record tells. A page that the disk does not give back is a signal to whoever looks at
/// it here, and ends the process: who looks for damage reads the file.
#[derive(Clone, Debug)]
pub struct Map(MapKind);

#[derive(Clone, Debug)]
enum MapKind {
    File(Arc<memmap2::Mmap>),
    Memory(Arc<SharedBytes>),
}

impl Map {
    pub(crate) fn file(map: memmap2::Mmap) -> Map {
        Map(MapKind::File(Arc::new(map)))
    }

    pub(crate) fn memory(bytes: Arc<SharedBytes>) -> Map {
        Map(MapKind::Memory(bytes))
    }

    /// Gives the pages back that reading has mapped in; they stay in the page cache as long as the system likes.
    pub(crate) fn unload(&self) {
        #[cfg(target_os = "linux")]
        if let MapKind::File(map) = &self.0 {
            // SAFETY: `DontNeed` would change what private pages show. This map is a shared one of a file
            // (`DiskFile::map`): the kernel reads the same bytes again for whoever looks at them, now or later.
            // Where it is refused the pages stay for the system to take when it needs memory.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    /// Bytes in the map.
    pub fn len(&self) -> usize {
        match &self.0 {
            MapKind::File(map) => map.len(),
            MapKind::Memory(bytes) => bytes.len(),
        }
    }

    /// Whether the file was empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of `range`.
    ///
    /// # Panics
    /// When the range ends behind the map.
    pub fn slice(&self, range: Range<usize>) -> &[u8] {
        match &self.0 {
            MapKind::File(map) => &map[range],
            MapKind::Memory(bytes) => bytes.slice(range),
        }
    }
}
