//! The folder of snapshots: which are there, which may go.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use crate::error::{Doing, StorageError};
use crate::files::identity::Identity;
use crate::medium::{Dir, File};
use crate::options::Options;
use crate::snapshot::blocks::{Manner, Scan};
use crate::snapshot::check::Owner;
use crate::snapshot::folder::{Folder, Shelf};
use crate::snapshot::id::{BAD, FOLDER, PARTIAL, SnapshotId, SnapshotMeta, WHOLE};
use crate::snapshot::read::{SnapshotReader, SnapshotSource};
use crate::snapshot::receive::Incoming;
use crate::snapshot::reclaim::Reclaim;
use crate::snapshot::write::SnapshotFile;

/// The snapshots of one log. Clones are handles to the same folder, for any thread.
///
/// An error here is one of a snapshot, never of the log.
#[derive(Debug)]
pub struct Snapshots<D: Dir> {
    pub(super) folder: Arc<Folder<D>>,
}

impl<D: Dir> Clone for Snapshots<D> {
    fn clone(&self) -> Self {
        let folder = self.folder.clone();
        Snapshots { folder }
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
        let folder = Arc::new(Folder {
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
        Snapshots { folder }
    }

    /// Whether the directory of the log and its snapshots is still to be found under its path.
    ///
    /// # Errors
    /// It was removed, unmounted or replaced: what is acknowledged from now on would be lost with the process.
    pub fn check_directory(&self) -> Result<(), StorageError> {
        let path = self.folder.path("");
        self.folder.dir.check_place().doing("find", &path)
    }

    /// The newest that is whole and durable.
    pub fn newest(&self) -> Option<SnapshotId> {
        self.folder.shelf().whole.last().copied()
    }

    /// All that are whole and durable, oldest first.
    pub fn list(&self) -> Vec<SnapshotId> {
        self.folder.shelf().whole.iter().copied().collect()
    }

    /// Begins to take a snapshot: the state goes into the file by `io::Write`.
    ///
    /// # Errors
    /// The medium failed or is full, or the members are too long.
    pub fn create(&self, meta: &SnapshotMeta) -> Result<SnapshotFile<D>, StorageError> {
        SnapshotFile::create(self.folder.clone(), meta)
    }

    /// Opens a snapshot to read the state in it.
    ///
    /// # Errors
    /// It is not there, its header is damaged, or the medium failed.
    pub fn open(&self, id: SnapshotId) -> Result<SnapshotReader<D>, StorageError> {
        let (file, held) = self.folder.open_file(id)?;
        SnapshotReader::open(&self.folder, file, held, id)
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
        let (file, held) = self.folder.open_file(id)?;
        file.drop_cache();
        SnapshotReader::open(&self.folder, file.clone(), held, id)?.verify_rest(read)?;
        // What else is in memory is of more use than this.
        file.drop_cache();
        Ok(())
    }

    /// The file's bytes as they are, to be sent. It can be read to its end even when it is pruned meanwhile.
    ///
    /// # Errors
    /// It is not there, or the medium failed.
    pub fn source(&self, id: SnapshotId) -> Result<SnapshotSource<D>, StorageError> {
        let (file, held) = self.folder.open_file(id)?;
        let scan = Scan::new(file, self.folder.manner);
        Ok(SnapshotSource::new(scan, held, id))
    }

    /// Begins to receive a snapshot, or goes on where it was left: the part that is there is read and verified.
    ///
    /// # Errors
    /// Somebody receives it already, there is no such snapshot (its length), or the medium failed.
    pub fn receive(&self, id: SnapshotId) -> Result<Incoming<D>, StorageError> {
        Incoming::open(self.folder.clone(), id)
    }

    /// Removes all but the two newest, and what was received in part and is no newer. Returns the index of the older one
    /// of the two: what the log holds up to there is not needed, should the newest go bad. 0 while there is only one.
    /// The bytes of what was removed, unless somebody reads them still, are for the caller to give back, from `gone`.
    ///
    /// # Errors
    /// The medium failed.
    pub fn prune(&self, gone: &mut Reclaim<D>) -> Result<u64, StorageError> {
        let mut shelf = self.folder.shelf();
        let (mut changed, mut files) = (false, Vec::new());
        shelf.open.retain(|_, held| held.strong_count() > 0);
        while shelf.whole.len() > 2 {
            let oldest = *shelf.whole.first().expect("more than two");
            let name = oldest.file(WHOLE);
            if !shelf.open.contains_key(&oldest) {
                files.extend(self.folder.dir.open(&name));
            }
            self.folder.remove(&name)?;
            shelf.whole.remove(&oldest);
            changed = true;
        }
        let newest = shelf.whole.last().map_or(0, |id| id.index);
        for name in self.folder.names()? {
            let Some(id) = SnapshotId::of_file(&name, PARTIAL) else {
                continue;
            };
            if id.index <= newest && !shelf.receiving.contains(&id) {
                let name = id.file(PARTIAL);
                files.extend(self.folder.dir.open(&name));
                self.folder.remove(&name)?;
                changed = true;
            }
        }
        if changed {
            self.folder.sync_names()?;
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
        let mut shelf = self.folder.shelf();
        if shelf.whole.contains(&id) {
            let (from, to) = (id.file(WHOLE), id.file(BAD));
            match self.folder.dir.rename(&from, &to) {
                // It was removed by somebody else: then there is nothing to keep.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                renamed => {
                    renamed.doing("put a bad snapshot aside as", &self.folder.path(&to))?;
                }
            }
            shelf.whole.remove(&id);
            for name in self.folder.names()? {
                let other = SnapshotId::of_file(&name, BAD).is_some_and(|other| other != id);
                if other {
                    self.folder.remove(&format!("{FOLDER}/{name}"))?;
                }
            }
            self.folder.sync_names()?;
        }
        Ok(shelf.whole.last().copied())
    }

    /// Bytes of all files in the folder.
    ///
    /// # Errors
    /// The medium failed.
    pub fn disk_bytes(&self) -> Result<u64, StorageError> {
        let mut bytes = 0;
        for name in self.folder.names()? {
            let name = format!("{FOLDER}/{name}");
            let path = self.folder.path(&name);
            match self.folder.dir.open(&name) {
                Ok(file) => bytes += file.length().doing("read the length of", &path)?,
                // Removed or renamed since the list was made.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(StorageError::io("open", &path, e)),
            }
        }
        Ok(bytes)
    }
}
