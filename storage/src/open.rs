//! Opening a directory: lock it, see whose it is, make or recover the log in it.
//!
//! The identity file is written last when a directory is made. So a directory without it is no log
//! yet, and a creation that was cut short is begun again; but records without an identity are
//! somebody's log, and are not touched.

use std::collections::VecDeque;

use crate::error::{Doing, StorageError};
use crate::file::{Dir, File, LockError};
use crate::identity::{IDENTITY_NAME, Identity};
use crate::log::{Log, Parts, Recovered};
use crate::mark::{Mark, MarkKind};
use crate::meta::{META_LEN, META_NAME, Meta, MetaState};
use crate::options::Options;
use crate::peers::KnownPeers;
use crate::prepare::{Preparer, Workshop};
use crate::record;
use crate::recover::{Decision, Found};
use crate::repair::{self, Intent};
use crate::segment::{RECORDS_AT, SegmentHeader, State};

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
    for folder in ["", "log"] {
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

    let names = dir.list("").doing("list", &root)?;
    if !names.iter().any(|name| name == IDENTITY_NAME) {
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
            },
        )?;
    }
    let identity = Identity::read(&dir)?;
    identity.check(&dir.path(IDENTITY_NAME), cluster_id, group_id, node_id)?;
    // A process that dies after a rename leaves a name that is there and not durable.
    if options.sync {
        dir.sync_dir("").doing("flush the directory", &root)?;
    }

    let known_peers = KnownPeers::open(dir.clone(), &names, options.sync)?;

    let meta_path = dir.path(META_NAME);
    let file = dir.open(META_NAME).doing("open", &meta_path)?;
    let (mut meta, bad_slot) = Meta::open(file, identity.incarnation)?;
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
    } = meta.state();
    let intent = truncate_after.map(|after| Intent {
        after,
        alone: bad_slot,
    });
    let mut loaded = repair::recover(&dir, &identity, intent, options.sync)?;
    if truncate_after.is_some() {
        // The truncation is done and durable; new records must not fall to it again.
        meta.set(MetaState {
            vote,
            truncate_after: None,
        });
        meta.write()?;
        flush_meta(&mut meta)?;
    }
    if meta.is_single() {
        meta.write()?;
        flush_meta(&mut meta)?;
    }
    if bad_slot {
        loaded
            .decisions
            .push(Decision::new(META_NAME, Found::MetaSlotTorn));
    }

    let flusher = dir
        .flusher(&options.flush_options())
        .doing("start flushing in", &root)?;
    let workshop = workshop(&dir, &options, &identity, loaded.next_seq);
    let preparer = Preparer::start(workshop)?;
    let recovered = Recovered {
        identity,
        vote,
        first_index: loaded.segments[0].view.base,
        last_index: loaded.last,
        prev_term: loaded.prev_term,
        last_time_us: loaded.last_time_us,
        term_runs: std::mem::take(&mut loaded.term_runs),
        decisions: std::mem::take(&mut loaded.decisions),
    };
    let parts = Parts {
        dir,
        identity,
        options,
        meta,
        known_peers,
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
    for name in dir.list("log").doing("list", &dir.path("log"))? {
        if !name.ends_with(".seg") {
            continue;
        }
        let name = format!("log/{name}");
        let (header, file) = repair::open_segment(dir, &name)?;
        let map = file.map().doing("map", file.path())?;
        let holds_record = record::decode(map.slice(RECORDS_AT as usize..map.len())).is_ok();
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

    let spare = workshop(dir, options, &identity, 1).prepare()?;
    let header = SegmentHeader {
        state: State::InUse,
        cluster_id: identity.cluster_id,
        group_id: identity.group_id,
        seq: spare.seq,
        base: 1,
        prev_term: 0,
        len: options.segment_bytes,
    };
    let mark = Mark {
        kind: MarkKind::Tail,
        end_index: 0,
        flushed_index: 0,
        seq: spare.seq,
        incarnation: identity.incarnation,
    };
    let file = spare.file;
    file.write_at(0, &header.encode())
        .doing_at("write", file.path(), 0)?;
    file.write_at(RECORDS_AT, &mark.encode())
        .doing_at("write", file.path(), RECORDS_AT)?;
    if sync {
        file.sync().doing("flush", file.path())?;
        dir.sync_dir("")
            .doing("flush the directory", &dir.path(""))?;
    }
    identity.publish(dir, sync)
}
