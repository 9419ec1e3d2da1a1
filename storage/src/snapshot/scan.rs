//! What a start finds in the folder of snapshots. Looking comes before changing: whether a log may open is decided with
//! all files as they were.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::decision::SnapshotFound;
use crate::decision::{Decision, Found};
use crate::error::{Doing, StorageError};
use crate::files::identity::Identity;
use crate::medium::Dir;
use crate::options::Options;
use crate::snapshot::id::{BAD, FOLDER, PARTIAL, SnapshotId, SnapshotMeta, UNFINISHED, WHOLE};
use crate::snapshot::store::Snapshots;

/// Whether somebody's snapshots are in the directory.
pub(crate) fn holds_snapshots<D: Dir>(dir: &D) -> Result<bool, StorageError> {
    let names = dir.list(FOLDER).doing("list", &dir.path(FOLDER))?;
    Ok(names
        .iter()
        .any(|name| SnapshotId::of_file(name, WHOLE).is_some()))
}

/// The folder as a start finds it.
pub(crate) struct FolderScan<D: Dir> {
    pub(crate) snapshots: Snapshots<D>,
    /// The newest that is sound.
    pub(crate) newest: Option<(SnapshotId, SnapshotMeta)>,
    /// Those above it, newest first, and what is wrong with them.
    bad: Vec<(SnapshotId, StorageError)>,
    unfinished: Vec<String>,
    decisions: Vec<Decision>,
}

/// Reads the snapshots from the newest on until one is sound. Changes nothing.
pub(crate) fn scan_folder<D: Dir>(
    dir: &D,
    identity: &Identity,
    options: &Options,
    lock: &Arc<D::Lock>,
) -> Result<FolderScan<D>, StorageError> {
    let path = dir.path(FOLDER);
    let mut names = dir.list(FOLDER).doing("list", &path)?;
    names.sort_unstable();
    if options.sync && !names.is_empty() {
        // A process that dies after a rename leaves a name that is there and not durable.
        dir.sync_dir(FOLDER).doing("flush the directory", &path)?;
    }
    let mut whole = BTreeSet::new();
    let (mut unfinished, mut decisions) = (Vec::new(), Vec::new());
    for name in names {
        let full = format!("{FOLDER}/{name}");
        let found = if let Some(id) = SnapshotId::of_file(&name, WHOLE) {
            whole.insert(id);
            continue;
        } else if SnapshotId::of_file(&name, PARTIAL).is_some() {
            Found::Snapshot(SnapshotFound::Partial)
        } else if SnapshotId::of_file(&name, BAD).is_some() {
            Found::Snapshot(SnapshotFound::SetAside)
        } else if name.starts_with("taking-") && name.ends_with(UNFINISHED) {
            unfinished.push(full.clone());
            Found::Snapshot(SnapshotFound::Unfinished)
        } else {
            Found::Unknown
        };
        decisions.push(Decision::new(full, found));
    }
    let snapshots = Snapshots::new(dir.clone(), identity, options, lock.clone(), whole.clone());
    let (mut newest, mut bad) = (None, Vec::new());
    for id in whole.into_iter().rev() {
        let found = if newest.is_some() {
            SnapshotFound::Older
        } else {
            match read_all(&snapshots, id) {
                Ok(meta) => {
                    newest = Some((id, meta));
                    SnapshotFound::Whole
                }
                Err(error) if is_damage(&error) => {
                    let detail = error.to_string();
                    bad.push((id, error));
                    SnapshotFound::Bad { detail }
                }
                Err(error) => return Err(error),
            }
        };
        decisions.push(Decision::new(id.file(WHOLE), Found::Snapshot(found)));
    }
    Ok(FolderScan {
        snapshots,
        newest,
        bad,
        unfinished,
        decisions,
    })
}

/// Reads every snapshot that has its final name, oldest first. Changes nothing.
pub(crate) fn verify_all<D: Dir>(
    dir: &D,
    identity: &Identity,
    options: &Options,
    lock: &Arc<D::Lock>,
) -> Result<Vec<Verified>, StorageError> {
    let names = dir.list(FOLDER).doing("list", &dir.path(FOLDER))?;
    let ids = names
        .iter()
        .filter_map(|name| SnapshotId::of_file(name, WHOLE));
    let whole: BTreeSet<_> = ids.collect();
    let snapshots = Snapshots::new(dir.clone(), identity, options, lock.clone(), whole.clone());
    let read = |id: SnapshotId| (id, read_all(&snapshots, id));
    Ok(whole.into_iter().map(read).collect())
}

/// A snapshot, and what it says of itself or what is wrong with it.
pub(crate) type Verified = (SnapshotId, Result<SnapshotMeta, StorageError>);

fn read_all<D: Dir>(
    snapshots: &Snapshots<D>,
    id: SnapshotId,
) -> Result<SnapshotMeta, StorageError> {
    let mut reader = snapshots.open(id)?;
    reader.verify_rest(|_| ())?;
    Ok(reader.meta().clone())
}

/// The file is bad, or the medium does not give it back; not a file of another build or owner, and no trouble beside it.
fn is_damage(error: &StorageError) -> bool {
    match error {
        StorageError::Snapshot { .. } => true,
        StorageError::Io { op, .. } => *op == "read",
        _ => false,
    }
}

impl<D: Dir> FolderScan<D> {
    /// What was found of each file, and what is to be done.
    pub(crate) fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    /// Index and term up to which the newest sound snapshot holds everything.
    pub(crate) fn covered(&self) -> Option<(u64, u64)> {
        self.newest.as_ref().map(|(id, _)| (id.index, id.term))
    }

    /// For the message of whoever misses a snapshot.
    pub(crate) fn bad_ones(&self) -> String {
        let say = |(_, error): &(SnapshotId, StorageError)| format!("; {error}");
        self.bad.iter().map(say).collect()
    }

    /// Puts what is bad aside and removes what was not finished.
    pub(crate) fn settle(&mut self) -> Result<Vec<Decision>, StorageError> {
        // The newest comes last, and so is the one that is kept.
        for (id, _) in self.bad.iter().rev() {
            self.snapshots.reject(*id)?;
        }
        let folder = &self.snapshots.folder;
        for name in &self.unfinished {
            folder.remove(name)?;
        }
        if !self.unfinished.is_empty() {
            folder.sync_names()?;
        }
        self.decisions.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(std::mem::take(&mut self.decisions))
    }
}
