//! A directory of a file system: names, locks, space for new files.
//!
//! A write goes into the page cache (about 4 µs, `disk_file.rs`); `flush.rs` and `uring.rs` make it durable.

use std::fs::{self, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::medium::descriptor::{Held, Reserve};
use crate::medium::disk_file::{DiskFile, uninterrupted};
use crate::medium::flush::DiskFlusher;
use crate::medium::{Dir, FileId, FlushOptions, LockError};

/// How much is written between two syncs while a new file is filled with zeros. Small enough that
/// the flush of a running log never queues behind a whole segment.
const ZERO_CHUNK: usize = 1 << 20;

/// Allocates the space of a new file. Where the call does not come to an end, the zeros that are written next allocate as well:
/// a timer whose signals come faster than a large allocation is done would interrupt it every time.
#[cfg(target_os = "linux")]
fn allocate(call: impl FnMut() -> rustix::io::Result<()>) -> io::Result<()> {
    match uninterrupted(call) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// A directory of a file system.
#[derive(Clone, Debug)]
pub struct Disk {
    root: Arc<Path>,
    /// For everything that is opened here, from the moment on at which the directory is locked.
    reserve: Arc<Reserve>,
    /// The name and the identity of the lock file, once it is locked.
    locked: Arc<OnceLock<(String, FileId)>>,
}

impl Disk {
    /// The directory `root`. It is made when the log is opened.
    pub fn new(root: impl Into<PathBuf>) -> Disk {
        Disk {
            root: root.into().into(),
            reserve: Arc::default(),
            locked: Arc::default(),
        }
    }

    fn open_with(&self, path: PathBuf, options: &OpenOptions) -> io::Result<DiskFile> {
        let file = self.reserve.open(|| options.open(&path))?;
        Ok(DiskFile::of(file, path, Some(self.reserve.clone())))
    }

    /// A directory, open to be flushed.
    fn open_dir(&self, path: &Path) -> io::Result<Held> {
        let dir = self.reserve.open(|| fs::File::open(path))?;
        Ok(Held::new(dir, Some(self.reserve.clone())))
    }
}

/// A lock that is held while this lives. The system lets go of it when the process ends, however.
#[derive(Debug)]
pub struct DiskLock {
    file: fs::File,
}

impl Drop for DiskLock {
    fn drop(&mut self) {
        // Closing is not enough: a child that was forked and has not called exec yet holds a copy of
        // the descriptor, and with it the lock. Should this fail, closing unlocks a moment later.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl Dir for Disk {
    type File = DiskFile;
    type Flusher = DiskFlusher;
    type Lock = DiskLock;

    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() {
            self.root.to_path_buf()
        } else {
            self.root.join(name)
        }
    }

    fn create_folder(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        if path.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&path)?;
        // The new name must survive too; deeper parents are the embedder's.
        match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => fs::File::open(".")?.sync_all(),
            Some(parent) => fs::File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    fn create(&self, name: &str, len: u64) -> io::Result<DiskFile> {
        let path = self.path(name);
        let mut open = OpenOptions::new();
        let open = open.read(true).write(true).create(true).truncate(true);
        let made = self.open_with(path, open)?;
        let file = &made.file;
        // Space for all of it first: a full disk shows here, before anything is written.
        #[cfg(target_os = "linux")]
        allocate(|| {
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&**file, flags, 0, len)
        })?;
        // Allocated but never written extents make every later flush a journal commit, so write them.
        let zeros = vec![0; ZERO_CHUNK.min(len as usize)];
        let mut at = 0;
        while at < len {
            let n = zeros.len().min((len - at) as usize);
            file.write_all_at(&zeros[..n], at)?;
            at += n as u64;
            if at < len {
                file.sync_data()?;
            }
        }
        Ok(made)
    }

    fn create_empty(&self, name: &str) -> io::Result<DiskFile> {
        let path = self.path(name);
        let mut open = OpenOptions::new();
        let open = open.read(true).write(true).create(true).truncate(true);
        self.open_with(path, open)
    }

    fn open(&self, name: &str) -> io::Result<DiskFile> {
        let path = self.path(name);
        self.open_with(path, OpenOptions::new().read(true).write(true))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let path = self.path(folder);
        let entries = match self.reserve.open(|| fs::read_dir(&path)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        self.reserve.fill();
        Ok(names)
    }

    fn sync_dir(&self, folder: &str) -> io::Result<()> {
        self.open_dir(&self.path(folder))?.sync_all()
    }

    fn lock(&self, name: &str) -> Result<DiskLock, LockError> {
        let mut open = OpenOptions::new();
        let open = open.read(true).write(true).create(true).truncate(false);
        let mut file = open.open(self.path(name)).map_err(LockError::Io)?;
        match uninterrupted(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => {}
            Err(e) if e == Errno::WOULDBLOCK => {
                let mut pid = String::new();
                // The pid is a courtesy of the message; without it the answer is the same.
                let _ = file.take(32).read_to_string(&mut pid);
                return Err(LockError::Held(pid.trim().parse().ok()));
            }
            Err(e) => return Err(LockError::Io(e.into())),
        }
        file.set_len(0).map_err(LockError::Io)?;
        writeln!(file, "{}", std::process::id()).map_err(LockError::Io)?;
        let id = FileId::of(&file.metadata().map_err(LockError::Io)?);
        let _ = self.locked.set((name.to_owned(), id));
        self.reserve.begin(&self.root);
        Ok(DiskLock { file })
    }

    fn check_place(&self) -> io::Result<()> {
        let Some((name, id)) = self.locked.get() else {
            return Ok(());
        };
        let gone = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::StaleNetworkFileHandle => Err(error),
            _ => Ok(()),
        };
        match fs::metadata(self.path(name)) {
            Ok(found) if FileId::of(&found) != *id => {
                let detail = "another directory, or another file system, has taken its place";
                return Err(io::Error::other(detail));
            }
            Ok(_) => {}
            Err(error) => return gone(error),
        }
        fs::metadata(self.path("log")).map(drop).or_else(gone)
    }

    fn flusher(&self, options: &FlushOptions) -> io::Result<DiskFlusher> {
        DiskFlusher::start(options)
    }

    fn random(&self) -> u64 {
        // The standard library takes the keys of its hasher from the system's random source.
        std::hash::RandomState::new().build_hasher().finish()
    }

    const BACKGROUND: bool = true;
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::medium::File;

    #[test]
    fn a_new_file_is_allocated_and_zero() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Disk::new(dir.path());
        let len = 3 * ZERO_CHUNK as u64 / 2;
        let file = disk.create("f", len).expect("created");
        assert_eq!(file.length().expect("length"), len);
        assert!(
            file.map()
                .expect("map")
                .slice(0..len as usize)
                .iter()
                .all(|&b| b == 0)
        );
        assert!(
            fs::metadata(dir.path().join("f"))
                .expect("metadata")
                .blocks()
                * 512
                >= len
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_allocation_that_cannot_be_made_is_left_to_the_zeros() {
        for passing in [Errno::INTR, Errno::OPNOTSUPP, Errno::NOSYS] {
            allocate(|| Err(passing)).expect("the zeros allocate");
        }
        allocate(|| Err(Errno::NOSPC)).expect_err("there is no room");
    }

    #[test]
    fn a_second_lock_names_the_holder() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Disk::new(dir.path());
        let lock = disk.lock("LOCK").expect("free");
        match disk.lock("LOCK") {
            Err(LockError::Held(pid)) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("locked twice: {other:?}"),
        }
        drop(lock);
        disk.lock("LOCK").expect("free again");
    }
}
