//! Opening a directory: lock it, see whose it is, make or recover the log in it.
//!
//! The identity file is written last when a directory is made. So a directory without it is no log
//! yet, and a creation that was cut short is begun again; but records without an identity are
//! somebody's log, and are not touched.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Doing, StorageError};
use crate::exclusion::Exclusion;
use crate::file::{Dir, File, LockError};
use crate::heal::{self, HEAL_NAME, Healing};
use crate::identity::{Copies, IDENTITY_NAME, Identity};
use crate::log::{Log, Parts, Recovered};
use crate::meta::{META_LEN, META_NAME, Meta, MetaState};
use crate::options::Options;
use crate::peers::{KnownPeers, PEERS_NAME};
use crate::prepare::{Preparer, Workshop};
use crate::recover::{Decision, Found};
use crate::repair::{self, Intent, Repaired};
use crate::reset;
use crate::segment::{RECORDS_AT, State};
use crate::snapshot::{self, SnapshotFound};
use crate::source::{Source, Unsound, fill_holes};

const LOCK_NAME: &str = "LOCK";

pub(crate) fn open<D: Dir>(
    dir: D,
    options: Options,
    cluster_id: u64,
    group_id: u32,
    node_id: u64,
) -> Result<(Log<D>, Recovered), StorageError> {
    options.check()?;
    let root = dir.path("");
    for folder in ["", "log", snapshot::FOLDER] {
        dir.create_folder(folder)
            .doing("create the folders of", &root)?;
    }
    let lock = dir.lock(LOCK_NAME).map_err(|e| match e {
        LockError::Held(holder) => StorageError::Locked {
            path: root.clone(),
            holder,
        },
        LockError::Io(e) => StorageError::io("lock", &dir.path(LOCK_NAME), e),
    })?;
    let lock = Arc::new(lock);

    let mut names = dir.list("").doing("list", &root)?;
    let is_new = !names.iter().any(|name| name == IDENTITY_NAME);
    if is_new {
        refuse_orphans(&dir, &names)?;
        let incarnation = dir.random();
        create(
            &dir,
            &options,
            Identity {
                cluster_id,
                group_id,
                node_id,
                incarnation,
                kind: options.kind,
            },
        )?;
        names = dir.list("").doing("list", &root)?;
    }
    let (identity, copies) = Identity::read(&dir)?;
    identity.check(&dir.path(IDENTITY_NAME), cluster_id, group_id, node_id)?;
    // A process that dies after a rename leaves a name that is there and not durable.
    if options.sync {
        dir.sync_dir("").doing("flush the directory", &root)?;
    }

    let mut known_peers = KnownPeers::open(dir.clone(), &names, options.sync)?;
    let mut healing = Healing::read(&dir, &names, &identity, options.sync)?;
    let mut found = Vec::new();

    let mut survey = snapshot::survey(&dir, &identity, &options, &lock)?;
    let covered = survey.newest.as_ref().map(|(id, _)| (id.index, id.term));

    let meta_path = dir.path(META_NAME);
    let open_meta = || {
        let file = dir.open(META_NAME).doing("open", &meta_path)?;
        Meta::open(file, identity.incarnation)
    };
    let (mut meta, bad_slot) = match open_meta() {
        Err(lost) if options.heal && heal::is_loss(&lost) => {
            let made = heal::remake_meta(&dir, &identity, covered, &options, &mut healing, &lost)?;
            found.push(made);
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
    let flush_meta = |meta: &mut Meta<D::File>| {
        if options.sync {
            meta.file.sync().doing("flush", &meta_path)?;
        }
        meta.flushed();
        Ok::<_, StorageError>(())
    };
    // What was read may have been in the page cache only; from here on it is taken for durable.
    if meta.is_single() {
        meta.renew()?;
    }
    flush_meta(&mut meta)?;

    let MetaState {
        vote,
        truncate_after,
        reset_to,
    } = meta.state();
    let mut save_intent = |reset_to| {
        meta.set(MetaState {
            vote,
            truncate_after: None,
            reset_to,
        });
        meta.write()?;
        flush_meta(&mut meta)
    };
    let begun = match reset_to {
        // One that stands alone may be long over, and with peers it need not be known.
        Some(begun) if options.heal && bad_slot && reset::goes_on_behind(&dir, begun)? => None,
        begun => begun,
    };
    let (loaded, replaced) = match begun {
        Some(begun) => match reset::target(&dir, begun, bad_slot, &survey) {
            Err(lost @ StorageError::Corrupt { .. }) if options.heal => {
                healing.lost(heal::reset_without_snapshot(&lost), 0)?;
                (None, Some(covered.unwrap_or_default()))
            }
            target => (None, Some(target?)),
        },
        None => {
            if !options.heal {
                reset::check_front(&dir, &survey)?;
            }
            let intent = truncate_after.map(|after| Intent {
                after,
                alone: bad_slot,
            });
            let repaired =
                repair::recover(&dir, &identity, intent, covered, &options, &mut healing)?;
            match repaired {
                Repaired::Log(loaded) => {
                    let replaced = reset::judge(&dir, &loaded, &survey)?;
                    if truncate_after.is_some() || reset_to.is_some() {
                        // The truncation is done and durable; new records must not fall to it again.
                        save_intent(None)?;
                    }
                    (Some(loaded), replaced)
                }
                Repaired::Nothing(decisions) => {
                    found.extend(decisions);
                    (None, Some(covered.unwrap_or_default()))
                }
            }
        }
    };
    let decided = survey.settle()?;
    let mut loaded = match (loaded, replaced) {
        (Some(loaded), None) => loaded,
        (was, replaced) => {
            let (index, term) = replaced.expect("without a log something stands for it");
            // Without a snapshot the file `heal` says that the log was lost, and the next start ends here again.
            if begun.is_none() && index > 0 {
                save_intent(replaced)?;
            }
            let next_seq = reset::seq_after_all(&dir)?;
            let mut workshop = workshop(&dir, &options, &identity, next_seq);
            let mut loaded = reset::replace(&mut workshop, &identity, (index, term))?;
            save_intent(None)?;
            loaded.decisions = was.map_or(Vec::new(), |was| was.decisions);
            if index > 0 {
                let stands = SnapshotFound::StandsForLog { index, term };
                let decision = Decision::new("log", Found::Snapshot(stands));
                loaded.decisions.push(decision);
            }
            loaded
        }
    };
    healing.cut()?;
    loaded.decisions.extend(decided);
    if meta.is_single() {
        meta.write()?;
        flush_meta(&mut meta)?;
    }
    if bad_slot {
        found.push(Decision::new(META_NAME, Found::MetaSlotTorn));
    }
    // Copies that went bad are mended when it is certain that the directory is taken as it is.
    if copies != Copies::Both {
        identity.publish(&dir, options.sync)?;
    }
    if copies == Copies::One {
        found.push(Decision::new(IDENTITY_NAME, Found::CopyDamaged));
    }
    if known_peers.mend()? {
        found.push(Decision::new(PEERS_NAME, Found::CopyDamaged));
    }
    if healing.damaged {
        found.push(Decision::new(HEAL_NAME, Found::HealDamaged));
    }
    loaded.decisions.append(&mut found);

    let flusher = dir
        .flusher(&options.flush_options())
        .doing("start flushing in", &root)?;
    let workshop = workshop(&dir, &options, &identity, loaded.next_seq);
    let preparer = Preparer::start(workshop)?;
    let first_index = loaded.segments[0].view.base;
    let last_time_us = match &survey.newest {
        Some((_, meta)) if loaded.last < first_index => meta.time_us,
        _ => loaded.last_time_us,
    };
    let recovered = Recovered {
        identity,
        vote,
        first_index,
        last_index: loaded.last,
        prev_term: loaded.prev_term,
        last_time_us,
        snapshot: survey.newest,
        term_runs: std::mem::take(&mut loaded.term_runs),
        decisions: std::mem::take(&mut loaded.decisions),
        heal: healing.into_heal(vote),
        excluded: Exclusion::read(&dir, &names)?,
        is_new,
    };
    let parts = Parts {
        dir,
        identity,
        options,
        meta,
        known_peers,
        snapshots: survey.snapshots,
        flusher,
        preparer,
        lock,
    };
    Ok((Log::assemble(parts, loaded), recovered))
}

fn workshop<D: Dir>(dir: &D, options: &Options, identity: &Identity, next_seq: u64) -> Workshop<D> {
    Workshop {
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
    if snapshot::holds_snapshots(dir)? {
        return orphan("the folder `snap` holds snapshots");
    }
    for name in dir.list("log").doing("list", &dir.path("log"))? {
        if !name.ends_with(".seg") {
            continue;
        }
        let name = format!("log/{name}");
        let (header, file) = repair::open_segment(dir, &name)?;
        let first = Source::new(file, header.len).record(RECORDS_AT)?.map(drop);
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

    let mut workshop = workshop(dir, options, &identity, 1);
    reset::begin_log(&mut workshop, identity.incarnation, 1, 0)?;
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
