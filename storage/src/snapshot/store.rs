//! The folder of snapshots: which are there, which may go.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::blocks::{Manner, Scan};
use super::check::Owner;
use super::removal::Gone;
use super::{
    BAD, FOLDER, Incoming, PARTIAL, SnapshotFile, SnapshotId, SnapshotMeta, SnapshotReader,
    SnapshotSource, WHOLE,
};
use crate::error::{Doing, StorageError};
use crate::file::{Dir, File};
use crate::identity::Identity;
use crate::options::Options;

/// The snapshots of one log. Clones are handles to the same folder, for any thread.
///
/// An error here is one of a snapshot, never of the log.
#[derive(Debug)]
pub struct Snapshots<D: Dir> {
    pub(super) shared: Arc<Shared<D>>,
}

impl<D: Dir> Clone for Snapshots<D> {
    fn clone(&self) -> Self {
        let shared = self.shared.clone();
        Snapshots { shared }
    }
}

pub(super) struct Shared<D: Dir> {
    pub(super) dir: D,
    pub(super) owner: Owner,
    pub(super) manner: Manner,
    shelf: Mutex<Shelf>,
    /// Nobody else opens the directory while a snapshot is being written.
    _lock: Arc<D::Lock>,
}

impl<D: Dir> std::fmt::Debug for Shared<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
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

impl<D: Dir> Shared<D> {
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

impl<D: Dir> Snapshots<D> {
    /// Of a folder whose whole files are these.
    pub(super) fn new(
        dir: D,
        identity: &Identity,
        options: &Options,
        lock: Arc<D::Lock>,
        whole: BTreeSet<SnapshotId>,
    ) -> Snapshots<D> {
        let shelf = Shelf {
            whole,
            ..Shelf::default()
        };
        let owner = Owner {
            cluster_id: identity.cluster_id,
            group_id: identity.group_id,
        };
        let shared = Arc::new(Shared {
            dir,
            owner,
            manner: Manner {
                chunk_bytes: options.snapshot_chunk_bytes,
                sync: options.sync,
                aside: D::BACKGROUND,
            },
            shelf: Mutex::new(shelf),
            _lock: lock,
        });
        Snapshots { shared }
    }

    /// Whether the directory of the log and its snapshots is still to be found under its path.
    ///
    /// # Errors
    /// It was removed, unmounted or replaced: what is acknowledged from now on would be lost with the process.
    pub fn check_directory(&self) -> Result<(), StorageError> {
        let path = self.shared.path("");
        self.shared.dir.check_place().doing("find", &path)
    }

    /// The newest that is whole and durable.
    pub fn newest(&self) -> Option<SnapshotId> {
        self.shared.shelf().whole.last().copied()
    }

    /// All that are whole and durable, oldest first.
    pub fn list(&self) -> Vec<SnapshotId> {
        self.shared.shelf().whole.iter().copied().collect()
    }

    /// Begins to take a snapshot: the state goes into the file by `io::Write`.
    ///
    /// # Errors
    /// The medium failed or is full, or the members are too long.
    pub fn create(&self, meta: &SnapshotMeta) -> Result<SnapshotFile<D>, StorageError> {
        SnapshotFile::create(self.shared.clone(), meta)
    }

    /// Opens a snapshot to read the state in it.
    ///
    /// # Errors
    /// It is not there, its header is damaged, or the medium failed.
    pub fn open(&self, id: SnapshotId) -> Result<SnapshotReader<D>, StorageError> {
        let (file, held) = self.shared.open_file(id)?;
        SnapshotReader::open(&self.shared, file, held, id)
    }

    /// Reads all of a snapshot, from the medium where the system can be told so. It waits for the disk all the time: for a
    /// thread of its own.
    ///
    /// # Errors
    /// [`StorageError::Snapshot`] with the first bytes that are bad, or the medium failed.
    pub fn verify(&self, id: SnapshotId) -> Result<(), StorageError> {
        self.verify_at(id, |_| ())
    }

    /// The same at a pace: `read` hears how many bytes were read, piece by piece, and takes its time.
    ///
    /// # Errors
    /// As [`Snapshots::verify`].
    pub fn verify_at(&self, id: SnapshotId, read: impl FnMut(u64)) -> Result<(), StorageError> {
        let (file, held) = self.shared.open_file(id)?;
        file.drop_cache();
        SnapshotReader::open(&self.shared, file.clone(), held, id)?.verify_rest(read)?;
        // What else is in memory is of more use than this.
        file.drop_cache();
        Ok(())
    }

    /// The file's bytes as they are, to be sent. It can be read to its end even when it is pruned meanwhile.
    ///
    /// # Errors
    /// It is not there, or the medium failed.
    pub fn source(&self, id: SnapshotId) -> Result<SnapshotSource<D>, StorageError> {
        let (file, held) = self.shared.open_file(id)?;
        let scan = Scan::new(file, self.shared.manner);
        Ok(SnapshotSource::new(scan, held, id))
    }

    /// Begins to receive a snapshot, or goes on where it was left: the part that is there is read and verified.
    ///
    /// # Errors
    /// Somebody receives it already, there is no such snapshot (its length), or the medium failed.
    pub fn receive(&self, id: SnapshotId) -> Result<Incoming<D>, StorageError> {
        Incoming::open(self.shared.clone(), id)
    }

    /// Removes all but the two newest, and what was received in part and is no newer. Returns the index of the older one
    /// of the two: what the log holds up to there is not needed, should the newest go bad. 0 while there is only one.
    /// The bytes of what was removed, unless somebody reads them still, are for the caller to give back, from `gone`.
    ///
    /// # Errors
    /// The medium failed.
    pub fn prune(&self, gone: &mut Gone<D>) -> Result<u64, StorageError> {
        let mut shelf = self.shared.shelf();
        let (mut changed, mut files) = (false, Vec::new());
        shelf.open.retain(|_, held| held.strong_count() > 0);
        while shelf.whole.len() > 2 {
            let oldest = *shelf.whole.first().expect("more than two");
            let name = oldest.file(WHOLE);
            if !shelf.open.contains_key(&oldest) {
                files.extend(self.shared.dir.open(&name));
            }
            self.shared.remove(&name)?;
            shelf.whole.remove(&oldest);
            changed = true;
        }
        let newest = shelf.whole.last().map_or(0, |id| id.index);
        for name in self.shared.names()? {
            let Some(id) = SnapshotId::of_file(&name, PARTIAL) else {
                continue;
            };
            if id.index <= newest && !shelf.receiving.contains(&id) {
                let name = id.file(PARTIAL);
                files.extend(self.shared.dir.open(&name));
                self.shared.remove(&name)?;
                changed = true;
            }
        }
        if changed {
            self.shared.sync_names()?;
        }
        gone.add(files);
        let spare = shelf.whole.len() == 2;
        Ok(if spare {
            shelf.whole.first().map_or(0, |id| id.index)
        } else {
            0
        })
    }

    /// Puts a snapshot that was found bad or missing aside: its file, if there is one, is kept for the operator under another
    /// name, in the place of the one before. Returns what is the newest then.
    ///
    /// # Errors
    /// The medium failed.
    pub fn reject(&self, id: SnapshotId) -> Result<Option<SnapshotId>, StorageError> {
        let mut shelf = self.shared.shelf();
        if shelf.whole.contains(&id) {
            let (from, to) = (id.file(WHOLE), id.file(BAD));
            match self.shared.dir.rename(&from, &to) {
                // It was removed by somebody else: then there is nothing to keep.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                renamed => {
                    renamed.doing("put a bad snapshot aside as", &self.shared.path(&to))?;
                }
            }
            shelf.whole.remove(&id);
            for name in self.shared.names()? {
                let other = SnapshotId::of_file(&name, BAD).is_some_and(|other| other != id);
                if other {
                    self.shared.remove(&format!("{FOLDER}/{name}"))?;
                }
            }
            self.shared.sync_names()?;
        }
        Ok(shelf.whole.last().copied())
    }

    /// Bytes of all files in the folder.
    ///
    /// # Errors
    /// The medium failed.
    pub fn disk_bytes(&self) -> Result<u64, StorageError> {
        let mut bytes = 0;
        for name in self.shared.names()? {
            let name = format!("{FOLDER}/{name}");
            let path = self.shared.path(&name);
            match self.shared.dir.open(&name) {
                Ok(file) => bytes += file.length().doing("read the length of", &path)?,
                // Removed or renamed since the list was made.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(StorageError::io("open", &path, e)),
            }
        }
        Ok(bytes)
    }
}
