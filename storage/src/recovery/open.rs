//! Opening a directory: lock it, see whose it is, make or recover the log in it.
//!
//! The identity file is written last when a directory is made. So a directory without it is no log
//! yet, and a creation that was cut short is begun again; but records without an identity are
//! somebody's log, and are not touched.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::decision::{Decision, Found, SnapshotFound};
use crate::error::{Doing, StorageError};
use crate::files::exclusion::Exclusion;
use crate::files::heal::{self, HEAL_NAME, HealFile};
use crate::files::identity::{Copies, IDENTITY_NAME, Identity};
use crate::files::known_peers::{KnownPeers, PEERS_NAME};
use crate::files::meta::{META_LEN, META_NAME, Meta, MetaState};
use crate::log::Log;
use crate::log::loaded::{Loaded, Parts};
use crate::log::preallocate::{Preallocator, SegmentFactory};
use crate::log::segment::{RECORDS_AT, State};
use crate::medium::{Dir, File, LockError};
use crate::options::Options;
use crate::recovery::lost_vote;
use crate::recovery::plan::Intent;
use crate::recovery::recovered::Recovered;
use crate::recovery::repair::{self, Repaired};
use crate::recovery::reset;
use crate::recovery::segment_reader::{SegmentReader, Unsound, fill_holes};
use crate::recovery::segments::open_segment;
use crate::snapshot::id::FOLDER as SNAPSHOT_FOLDER;
use crate::snapshot::scan::{FolderScan, holds_snapshots, scan_folder};

const LOCK_NAME: &str = "LOCK";

impl<D: Dir> Log<D> {
    /// Opens the log in `dir`, or makes one there when the directory is empty. Reads and verifies all
    /// records, repairs what a stop left behind, and makes what it found durable.
    ///
    /// # Errors
    /// [`StorageError::Locked`], [`StorageError::Foreign`] when the directory belongs to somebody else,
    /// [`StorageError::Corrupt`] when something durable is damaged, `Version`, `Config`, `Io`.
    pub fn open(
        dir: D,
        options: Options,
        cluster_id: u64,
        group_id: u32,
        node_id: u64,
    ) -> Result<(Log<D>, Recovered), StorageError> {
        options.check()?;
        let root = dir.path("");
        let lock = lock(&dir)?;
        let mut names = dir.list("").doing("list", &root)?;
        let is_new = !names.iter().any(|name| name == IDENTITY_NAME);
        if is_new {
            refuse_orphans(&dir, &names)?;
            let identity = Identity {
                cluster_id,
                group_id,
                node_id,
                incarnation: dir.random(),
                kind: options.kind,
            };
            create(&dir, &options, identity)?;
            names = dir.list("").doing("list", &root)?;
        }
        let (identity, copies) = Identity::read(&dir)?;
        identity.check(&dir.path(IDENTITY_NAME), cluster_id, group_id, node_id)?;
        // A process that dies after a rename leaves a name that is there and not durable.
        if options.sync {
            dir.sync_dir("").doing("flush the directory", &root)?;
        }

        let mut known_peers = KnownPeers::open(dir.clone(), &names, options.sync)?;
        let healing = HealFile::read(&dir, &names, &identity, options.sync)?;
        let snapshots = scan_folder(&dir, &identity, &options, &lock)?;
        let mut opening = Opening::new(dir, options, identity, healing, snapshots)?;
        let mut loaded = opening.load()?;
        opening.mend(copies, &mut known_peers)?;
        loaded.decisions.append(&mut opening.found);

        let Opening {
            dir,
            options,
            identity,
            healing,
            snapshots,
            meta,
            ..
        } = opening;
        let flusher = dir
            .flusher(&options.flush_options())
            .doing("start flushing in", &root)?;
        let segment_factory = segment_factory(&dir, &options, &identity, loaded.next_seq);
        let preallocator = Preallocator::start(segment_factory)?;
        let first_index = loaded.segments[0].view.base;
        let last_time_us = match &snapshots.newest {
            Some((_, meta)) if loaded.last < first_index => meta.time_us,
            _ => loaded.last_time_us,
        };
        let vote = meta.state().vote;
        let recovered = Recovered {
            identity,
            vote,
            first_index,
            last_index: loaded.last,
            prev_term: loaded.prev_term,
            last_time_us,
            snapshot: snapshots.newest,
            term_runs: std::mem::take(&mut loaded.term_runs),
            decisions: std::mem::take(&mut loaded.decisions),
            data_loss: healing.into_data_loss(vote),
            excluded: Exclusion::read(&dir, &names)?,
            is_new,
        };
        let parts = Parts {
            dir,
            identity,
            options,
            meta,
            known_peers,
            snapshots: snapshots.snapshots,
            flusher,
            preallocator,
            lock,
        };
        Ok((Log::assemble(parts, loaded), recovered))
    }
}

/// Makes the folders that are missing, and keeps everybody else out.
fn lock<D: Dir>(dir: &D) -> Result<Arc<D::Lock>, StorageError> {
    let root = dir.path("");
    for folder in ["", "log", SNAPSHOT_FOLDER] {
        dir.create_folder(folder)
            .doing("create the folders of", &root)?;
    }
    match dir.lock(LOCK_NAME) {
        Ok(lock) => Ok(Arc::new(lock)),
        Err(LockError::Held(holder)) => Err(StorageError::Locked { path: root, holder }),
        Err(LockError::Io(e)) => Err(StorageError::io("lock", &dir.path(LOCK_NAME), e)),
    }
}

/// A directory that is being opened: what is known of it so far.
struct Opening<D: Dir> {
    dir: D,
    options: Options,
    identity: Identity,
    healing: HealFile<D>,
    snapshots: FolderScan<D>,
    meta: Meta<D::File>,
    /// One of the two copies of term and vote was bad.
    bad_slot: bool,
    /// What was found beside log and snapshots.
    found: Vec<Decision>,
}

/// What a start makes of the files of a log.
struct Recovery<F> {
    /// The log, where something is left of it.
    log: Option<Loaded<F>>,
    /// Index and term behind which a new log takes its place.
    replaced_by: Option<(u64, u64)>,
}

impl<F> Recovery<F> {
    fn without_log(behind: (u64, u64)) -> Self {
        Self {
            log: None,
            replaced_by: Some(behind),
        }
    }
}

impl<D: Dir> Opening<D> {
    /// With term and vote, and both durable.
    fn new(
        dir: D,
        options: Options,
        identity: Identity,
        mut healing: HealFile<D>,
        snapshots: FolderScan<D>,
    ) -> Result<Self, StorageError> {
        let mut found = Vec::new();
        let path = dir.path(META_NAME);
        let open_meta = || {
            let file = dir.open(META_NAME).doing("open", &path)?;
            Meta::open(file, identity.incarnation)
        };
        let (meta, bad_slot) = match open_meta() {
            Err(lost) if options.heal && lost_vote::is_loss(&lost) => {
                let covered = snapshots.covered();
                let remade = lost_vote::remake_meta(
                    &dir,
                    &identity,
                    covered,
                    &options,
                    &mut healing,
                    &lost,
                )?;
                found.push(remade);
                open_meta()?
            }
            opened => opened?,
        };
        healing.vote_term = meta.state().vote.term;
        if bad_slot && options.heal {
            // No power failure tears a sector: it may have been the newer one, and a vote in it is forgotten.
            healing.slot_lost()?;
        }
        if bad_slot {
            // Where it cannot be read it could not be written either: a slot is a part of a page.
            fill_holes(&meta.file, 0..META_LEN)?;
        }
        let mut opening = Self {
            dir,
            options,
            identity,
            healing,
            snapshots,
            meta,
            bad_slot,
            found,
        };
        // What was read may have been in the page cache only; from here on it is taken for durable.
        if opening.meta.is_single() {
            opening.meta.renew()?;
        }
        opening.flush_meta()?;
        Ok(opening)
    }

    fn flush_meta(&mut self) -> Result<(), StorageError> {
        if self.options.sync {
            let path = self.dir.path(META_NAME);
            self.meta.file.sync().doing("flush", &path)?;
        }
        self.meta.flushed();
        Ok(())
    }

    /// Writes down, durably, that the log is being replaced by the snapshot at this index and term, or that nothing is under
    /// way any more.
    fn save_reset(&mut self, reset_to: Option<(u64, u64)>) -> Result<(), StorageError> {
        let vote = self.meta.state().vote;
        self.meta.set(MetaState {
            vote,
            truncate_after: None,
            reset_to,
        });
        self.meta.write()?;
        self.flush_meta()
    }

    /// The log as it is after all repairs, or a new one behind what stands for it.
    fn load(&mut self) -> Result<Loaded<D::File>, StorageError> {
        let begun = match self.meta.state().reset_to {
            // One that stands alone may be long over, and with peers it need not be known.
            Some(begun)
                if self.options.heal
                    && self.bad_slot
                    && reset::goes_on_behind(&self.dir, begun)? =>
            {
                None
            }
            begun => begun,
        };
        let recovery = match begun {
            Some(begun) => Recovery::without_log(self.target(begun)?),
            None => self.recover()?,
        };
        let of_snapshots = self.snapshots.settle()?;
        let mut loaded = match recovery {
            Recovery {
                log: Some(loaded),
                replaced_by: None,
            } => loaded,
            Recovery { log, replaced_by } => {
                let at = replaced_by.expect("without a log something stands for it");
                // Without a snapshot the file `heal` says that the log was lost, and the next start ends here again.
                if begun.is_none() && at.0 > 0 {
                    self.save_reset(replaced_by)?;
                }
                let decisions = log.map_or(Vec::new(), |log| log.decisions);
                self.replace_log(at, decisions)?
            }
        };
        self.healing.cut()?;
        loaded.decisions.extend(of_snapshots);
        Ok(loaded)
    }

    /// What the log was being replaced by when the last stop came.
    fn target(&mut self, begun: (u64, u64)) -> Result<(u64, u64), StorageError> {
        match reset::target(&self.dir, begun, self.bad_slot, &self.snapshots) {
            Err(lost @ StorageError::Corrupt { .. }) if self.options.heal => {
                self.healing
                    .lost(lost_vote::reset_without_snapshot(&lost), 0)?;
                Ok(self.snapshots.covered().unwrap_or_default())
            }
            target => target,
        }
    }

    /// Recovers the log from what its files hold.
    fn recover(&mut self) -> Result<Recovery<D::File>, StorageError> {
        if !self.options.heal {
            reset::check_front(&self.dir, &self.snapshots)?;
        }
        let state = self.meta.state();
        let intent = state.truncate_after.map(|after| Intent {
            after,
            alone: self.bad_slot,
        });
        let repaired = repair::recover(
            &self.dir,
            &self.identity,
            intent,
            self.snapshots.covered(),
            &self.options,
            &mut self.healing,
        )?;
        match repaired {
            Repaired::Log(loaded) => {
                let replaced = reset::judge(&self.dir, &loaded, &self.snapshots)?;
                if state.truncate_after.is_some() || state.reset_to.is_some() {
                    // The truncation is done and durable; new records must not fall to it again.
                    self.save_reset(None)?;
                }
                Ok(Recovery {
                    log: Some(loaded),
                    replaced_by: replaced,
                })
            }
            Repaired::Nothing(decisions) => {
                self.found.extend(decisions);
                Ok(Recovery::without_log(
                    self.snapshots.covered().unwrap_or_default(),
                ))
            }
        }
    }

    /// A new log behind this index and term.
    fn replace_log(
        &mut self,
        (index, term): (u64, u64),
        decisions: Vec<Decision>,
    ) -> Result<Loaded<D::File>, StorageError> {
        let next_seq = reset::seq_after_all(&self.dir)?;
        let mut segment_factory =
            segment_factory(&self.dir, &self.options, &self.identity, next_seq);
        let mut loaded = reset::replace(&mut segment_factory, &self.identity, (index, term))?;
        self.save_reset(None)?;
        loaded.decisions = decisions;
        if index > 0 {
            let stands = SnapshotFound::StandsForLog { index, term };
            let decision = Decision::new("log", Found::Snapshot(stands));
            loaded.decisions.push(decision);
        }
        Ok(loaded)
    }

    /// Writes damaged copies anew, now that it is certain that the directory is taken as it is.
    fn mend(
        &mut self,
        copies: Copies,
        known_peers: &mut KnownPeers<D>,
    ) -> Result<(), StorageError> {
        if self.meta.is_single() {
            self.meta.write()?;
            self.flush_meta()?;
        }
        if self.bad_slot {
            let found = Decision::new(META_NAME, Found::MetaSlotTorn);
            self.found.push(found);
        }
        if copies != Copies::Both {
            self.identity.publish(&self.dir, self.options.sync)?;
        }
        if copies == Copies::One {
            let found = Decision::new(IDENTITY_NAME, Found::CopyDamaged);
            self.found.push(found);
        }
        if known_peers.mend()? {
            let found = Decision::new(PEERS_NAME, Found::CopyDamaged);
            self.found.push(found);
        }
        if self.healing.damaged {
            let found = Decision::new(HEAL_NAME, Found::HealDamaged);
            self.found.push(found);
        }
        Ok(())
    }
}

fn segment_factory<D: Dir>(
    dir: &D,
    options: &Options,
    identity: &Identity,
    next_seq: u64,
) -> SegmentFactory<D> {
    SegmentFactory {
        dir: dir.clone(),
        cluster_id: identity.cluster_id,
        group_id: identity.group_id,
        segment_bytes: options.segment_bytes,
        sync: options.sync,
        next_seq,
        idle: VecDeque::new(),
        leaving: VecDeque::new(),
        failed: None,
    }
}

/// A directory without an identity may hold what an unfinished creation left, and nothing else.
fn refuse_orphans<D: Dir>(dir: &D, names: &[String]) -> Result<(), StorageError> {
    let orphan = |what: &str| {
        let detail = format!("the file is missing, but {what}");
        Err(StorageError::corrupt(&dir.path(IDENTITY_NAME), 0, detail))
    };
    if names.iter().any(|name| name == META_NAME) {
        let path = dir.path(META_NAME);
        let file = dir.open(META_NAME).doing("open", &path)?;
        if Meta::holds_something(&file)? {
            return orphan("the file `meta` holds a term or vote");
        }
    }
    if holds_snapshots(dir)? {
        return orphan("the folder `snap` holds snapshots");
    }
    for name in dir.list("log").doing("list", &dir.path("log"))? {
        if !name.ends_with(".seg") {
            continue;
        }
        let name = format!("log/{name}");
        let (header, file) = open_segment(dir, &name)?;
        let first = SegmentReader::new(file, header.len)
            .record(RECORDS_AT)?
            .map(drop);
        let holds_record = !matches!(first, Err(Unsound::Bytes(_)));
        if header.state == State::InUse && (header.base > 1 || holds_record) {
            return orphan(&format!("{name} holds records"));
        }
    }
    Ok(())
}

/// Makes everything a log needs, durably, and the identity last.
fn create<D: Dir>(dir: &D, options: &Options, identity: Identity) -> Result<(), StorageError> {
    let sync = options.sync;
    let log = dir.path("log");
    for name in dir.list("log").doing("list", &log)? {
        if name.ends_with(".seg") || name.ends_with(".tmp") {
            let name = format!("log/{name}");
            dir.remove(&name).doing("remove", &dir.path(&name))?;
        }
    }

    let path = dir.path(META_NAME);
    let file = dir.create(META_NAME, META_LEN).doing("create", &path)?;
    let meta = Meta::create(file, identity.incarnation)?;
    if sync {
        meta.file.sync().doing("flush", &path)?;
    }

    let mut segment_factory = segment_factory(dir, options, &identity, 1);
    reset::begin_log(&mut segment_factory, identity.incarnation, 1, 0)?;
    if options.replaces {
        heal::begin_anew(dir, identity.incarnation, sync)?;
    } else {
        heal::forget(dir, sync)?; // Of a creation that was not finished.
    }
    if sync {
        dir.sync_dir("")
            .doing("flush the directory", &dir.path(""))?;
    }
    identity.publish(dir, sync)
}
