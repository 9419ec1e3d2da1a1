//! A directory that cannot be changed through it: no call of it opens a file for writing, makes one, or locks.

use std::fs::{self, File as SystemFile};
use std::io;
use std::path::PathBuf;

use crate::medium::disk::Disk;
use crate::medium::disk_file::DiskFile;
use crate::medium::{Dir, File, FlushOptions, LockError};

/// A directory for reading. Everything that would change it answers "read only".
#[derive(Clone, Debug)]
pub struct ReadOnly<D: Dir = Disk> {
    dir: D,
    open: fn(&D, &str) -> io::Result<D::File>,
    list: fn(&D, &str) -> io::Result<Vec<String>>,
}

impl ReadOnly {
    /// The directory `root` of real files.
    pub fn new(root: impl Into<PathBuf>) -> ReadOnly {
        ReadOnly {
            dir: Disk::new(root),
            open: |disk, name| {
                let path = disk.path(name);
                let file = SystemFile::open(&path)?;
                Ok(DiskFile::new(file, path))
            },
            list: |disk, folder| {
                if folder.is_empty() {
                    // `Disk` takes a folder that is not there for an empty one; whoever looks at it wants to know.
                    fs::read_dir(disk.path(""))?;
                }
                disk.list(folder)
            },
        }
    }
}

impl<D: Dir> ReadOnly<D> {
    /// Any directory that makes no difference between opening for reading and for writing.
    pub fn of(dir: D) -> ReadOnly<D> {
        ReadOnly {
            dir,
            open: D::open,
            list: D::list,
        }
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl<D: Dir> Dir for ReadOnly<D> {
    type File = D::File;
    type Flusher = D::Flusher;
    /// Nobody is kept out.
    type Lock = ();

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path(name)
    }

    fn create_folder(&self, _name: &str) -> io::Result<()> {
        refused()
    }

    fn create(&self, _name: &str, _len: u64) -> io::Result<D::File> {
        refused()
    }

    fn create_empty(&self, _name: &str) -> io::Result<D::File> {
        refused()
    }

    fn open(&self, name: &str) -> io::Result<D::File> {
        (self.open)(&self.dir, name)
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        refused()
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        (self.list)(&self.dir, folder)
    }

    fn sync_dir(&self, _folder: &str) -> io::Result<()> {
        refused()
    }

    fn lock(&self, _name: &str) -> Result<(), LockError> {
        Err(LockError::Io(io::ErrorKind::ReadOnlyFilesystem.into()))
    }

    fn flusher(&self, _options: &FlushOptions) -> io::Result<D::Flusher> {
        refused()
    }

    fn random(&self) -> u64 {
        self.dir.random()
    }

    const BACKGROUND: bool = false;
}

/// The process id in the lock file.
pub(super) fn last_pid<D: Dir>(dir: &D) -> Option<u32> {
    let file = dir.open("LOCK").ok()?;
    let len = file.length().ok()?.min(32);
    let mut bytes = vec![0; len as usize];
    file.read_at(0, &mut bytes).ok()?;
    std::str::from_utf8(&bytes).ok()?.trim().parse().ok()
}
