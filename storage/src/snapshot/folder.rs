//! The folder itself, as all that read and write in it share it: names, which files are whole, which are in use.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::{Doing, StorageError};
use crate::medium::{Dir, File};
use crate::snapshot::blocks::Manner;
use crate::snapshot::check::Owner;
use crate::snapshot::id::{FOLDER, SnapshotId, WHOLE};

pub(super) struct Folder<D: Dir> {
    pub(super) dir: D,
    pub(super) owner: Owner,
    pub(super) manner: Manner,
    pub(super) shelf: Mutex<Shelf>,
    /// Nobody else opens the directory while a snapshot is being written.
    pub(super) _lock: Arc<D::Lock>,
}

impl<D: Dir> std::fmt::Debug for Folder<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folder")
            .field("folder", &self.path(FOLDER))
            .field("shelf", &self.shelf)
            .finish_non_exhaustive()
    }
}

/// What is known of the folder.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// Whole files with durable names.
    pub(super) whole: BTreeSet<SnapshotId>,
    /// Whose file somebody has open, and may read to its end.
    pub(super) open: BTreeMap<SnapshotId, Weak<()>>,
    /// Whose partial file somebody writes.
    pub(super) receiving: Vec<SnapshotId>,
    /// Numbers the temporary files.
    pub(super) taken: u64,
}

impl Shelf {
    fn hold(&mut self, id: SnapshotId) -> Arc<()> {
        let held = self.open.get(&id).and_then(Weak::upgrade);
        held.unwrap_or_else(|| {
            let held = Arc::new(());
            self.open.insert(id, Arc::downgrade(&held));
            held
        })
    }
}

impl<D: Dir> Folder<D> {
    /// No code panics while it holds the shelf, so a poisoned mutex still guards a whole one.
    pub(super) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path(name)
    }

    pub(super) fn sync_names(&self) -> Result<(), StorageError> {
        if self.manner.sync {
            let path = self.path(FOLDER);
            self.dir
                .sync_dir(FOLDER)
                .doing("flush the directory", &path)?;
        }
        Ok(())
    }

    /// Gives a whole and durable file its final name: from here on it counts.
    pub(super) fn publish(&self, from: &str, id: SnapshotId) -> Result<(), StorageError> {
        let mut shelf = self.shelf();
        let to = id.file(WHOLE);
        if shelf.whole.contains(&id) {
            // The same bytes are there already. Should this fail, a start or `prune` removes it.
            let _ = self.dir.remove(from);
            return Ok(());
        }
        self.dir
            .rename(from, &to)
            .doing("rename a snapshot to", &self.path(&to))?;
        if let Err(e) = self.sync_names() {
            // Whether the name is durable is not known. It may be, for the file is whole; but nobody may rely on it.
            // Should this fail too, the next start finds it under one name or the other.
            let _ = self.dir.rename(&to, from);
            return Err(e);
        }
        shelf.whole.insert(id);
        Ok(())
    }

    /// While the second part of what this returns lives, the file can be read to its end.
    pub(super) fn open_file(&self, id: SnapshotId) -> Result<(D::File, Arc<()>), StorageError> {
        // Before it is opened: then whoever removes it sees it, or it is not there any more.
        let held = self.shelf().hold(id);
        let name = id.file(WHOLE);
        let path = self.path(&name);
        let file = self.dir.open(&name).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                StorageError::snapshot(&path, None, "it is not there (any more)")
            }
            _ => StorageError::io("open", &path, e),
        })?;
        let len = file.length().doing("read the length of", &path)?;
        if len != id.bytes {
            let (from, to) = (len.min(id.bytes), len.max(id.bytes));
            let detail = format!("the file has {len} bytes, its name says {}", id.bytes);
            return Err(StorageError::snapshot(&path, from..to, detail));
        }
        Ok((file, held))
    }

    /// Removes a file; one that somebody else has removed is no trouble.
    pub(super) fn remove(&self, name: &str) -> Result<(), StorageError> {
        match self.dir.remove(name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.doing("remove", &self.path(name)),
        }
    }

    pub(super) fn names(&self) -> Result<Vec<String>, StorageError> {
        let mut names = self.dir.list(FOLDER).doing("list", &self.path(FOLDER))?;
        names.sort_unstable();
        Ok(names)
    }
}
