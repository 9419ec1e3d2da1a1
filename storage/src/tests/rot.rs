//! Bit rot: what had been durable goes bad. With peers the log is cut and healed, without them it is refused; a node that
//! has less than it promised always says so.

use super::*;
use crate::decision::{Action, Found};
use crate::files::heal::HEAL_NAME;
use crate::files::identity::IDENTITY_NAME;
use crate::files::known_peers::PEERS_NAME;
use crate::files::meta::META_NAME;
use crate::log::segment::{RECORDS_AT, segment_name};
use crate::log::tail_marker::MARKER_LEN;
use crate::medium::memory::{Fault, Loss};
use crate::{Damage, DataLoss};

pub(super) type Opened = Result<(Log<Memory>, Recovered), StorageError>;

pub(super) fn open_with(dir: &Memory, heal: bool) -> Opened {
    let options = Options { heal, ..small() };
    Log::open(dir.clone(), options, CLUSTER, GROUP, NODE)
}

fn heal(dir: &Memory) -> (Log<Memory>, Recovered) {
    open_with(dir, true).expect("it opens and heals")
}

pub(super) fn flip(dir: &Memory, name: &str, at: u64) {
    dir.damage(name, |bytes| bytes[at as usize] ^= 0x10)
        .expect("damaged");
}

pub(super) fn offset_of<D: Dir>(log: &Log<D>, index: u64) -> u64 {
    let mut segments = log.segments.iter();
    let segment = segments.rfind(|s| s.view.base <= index);
    let view = &segment.expect("it is there").view;
    view.seek(index, u64::MAX).expect("it is there").1
}

/// Three segments of term 1, all durable and a marker says so; a vote in term 3, in both copies; two peers.
pub(super) fn settled() -> (Memory, Log<Memory>) {
    let (memory, mut log) = three_segments();
    let mut peers = log.known_peers();
    peers.meet(1, 11).expect("written");
    peers.meet(3, 33).expect("written");
    log.vote_for(3, 1);
    log.flush();
    log.settle().expect("settled");
    (memory, log)
}

fn damage(found: &Recovered) -> (DataLoss, Damage) {
    let heal = found.data_loss.clone().expect("it heals");
    let damage = heal.damage.first().cloned().expect("it was found now");
    (heal, damage)
}

#[test]
fn a_bad_record_is_cut_off_and_fetched_again() {
    let (memory, log) = settled();
    let (last, at) = (log.last(), offset_of(&log, 5));
    let left = memory.power_cut(Loss::All);
    flip(&left, &segment_name(1), at + 60);
    assert!(try_open(&left).is_err(), "without peers it is refused");

    let (mut log, found) = heal(&left);
    assert_eq!(log.contents(), run(1, 4, 1));
    let (told, bad) = damage(&found);
    assert_eq!((told.upto, told.term, told.vote_lost), (last, 3, false));
    assert_eq!(
        (bad.file, bad.offset, bad.index),
        (segment_name(1), at, Some(5))
    );
    assert!(bad.detail.contains("checksum"), "{}", bad.detail);
    let healed: Vec<_> = found
        .decisions
        .iter()
        .filter(|d| d.action == Action::Heal)
        .collect();
    assert_eq!(healed.len(), 1, "{:?}", found.decisions);
    assert!(
        found
            .decisions
            .iter()
            .any(|d| d.found == Found::BehindDamage)
    );

    // Half of it comes back, and the power fails.
    log.append_some(3, 1, 500);
    log.flush();
    drop(log);
    let left = left.power_cut(Loss::All);
    // The option is off now: what was lost stays lost all the same.
    let (mut log, found) = try_open(&left).expect("it is sound");
    let told = found.data_loss.expect("still healing");
    assert_eq!((told.upto, told.term, told.damage), (last, 3, vec![]));
    log.append_some(last - 7, 1, 500);
    log.flush();
    log.healed().expect("removed");
    drop(log);
    let (log, found) = try_open(&left.power_cut(Loss::All)).expect("sound");
    assert_eq!(found.data_loss, None);
    assert_eq!(log.contents(), run(1, last, 1));
}

#[test]
fn a_torn_tail_needs_no_healing() {
    let memory = Memory::new(3);
    let mut log = open(&memory);
    log.append_some(7, 1, 200);
    log.flush();
    log.append_some(3, 1, 200);
    let left = memory.power_cut(Loss::Nothing);
    flip(&left, &segment_name(1), offset_of(&log, 9) + 60);
    let (log, found) = heal(&left);
    assert_eq!((log.last(), found.data_loss), (8, None));
    assert!(!left.list("").expect("listed").contains(&HEAL_NAME.into()));
}

#[test]
fn the_power_fails_before_any_step_of_healing() {
    for what in ["record", "header", "first header", "all headers"] {
        let (memory, log) = settled();
        let (last, border) = (log.last(), log.segments[1].view.base);
        let bad = memory.power_cut(Loss::All);
        let kept = match what {
            "record" => {
                flip(&bad, &segment_name(1), offset_of(&log, 5));
                4
            }
            "header" => {
                flip(&bad, &segment_name(2), 20);
                border - 1
            }
            "first header" => {
                flip(&bad, &segment_name(1), 20);
                0
            }
            _ => {
                (1..=3).for_each(|seq| flip(&bad, &segment_name(seq), 20));
                0
            }
        };
        let mut step = 0;
        loop {
            let memory = bad.power_cut(Loss::All);
            memory.fail_at(step, Fault::PowerOff);
            let outcome = open_with(&memory, true);
            for seed in 0..12 {
                let left = memory.power_cut(Loss::Random(seed));
                let (mut log, found) = heal(&left);
                let told = found.data_loss.expect("it never forgets");
                assert_eq!(told.upto, last, "{what}, step {step}, seed {seed}");
                assert_eq!(log.contents(), run(1, kept, 1), "{what}, step {step}");
                // It goes on, and the next start finds that.
                log.append_some(3, 4, 500);
                log.flush();
                let (log, found) = try_open(&left.power_cut(Loss::All)).expect("sound by now");
                assert_eq!(
                    (log.last(), found.data_loss.map(|h| h.upto)),
                    (kept + 3, Some(last))
                );
            }
            if outcome.is_ok() {
                break;
            }
            step += 1;
        }
        assert!(step >= 10, "{what}: only {step} steps");
    }
}

#[test]
fn the_power_fails_before_any_step_of_having_healed() {
    let (memory, log) = settled();
    let bad = memory.power_cut(Loss::All);
    flip(&bad, &segment_name(1), offset_of(&log, 5));
    drop(heal(&bad));
    let mut step = 0;
    loop {
        let memory = bad.power_cut(Loss::All);
        let mut log = open(&memory);
        memory.fail_at(memory.steps() + step, Fault::PowerOff);
        let outcome = log.healed();
        for seed in 0..8 {
            let found = try_open(&memory.power_cut(Loss::Random(seed)))
                .expect("sound")
                .1;
            assert!(outcome.is_err() || found.data_loss.is_none(), "step {step}");
        }
        if outcome.is_ok() {
            break;
        }
        step += 1;
    }
    assert_eq!(step, 2, "the name, and the directory");
}

#[test]
fn a_missing_segment_is_fetched_again() {
    let (memory, log) = settled();
    let (last, border) = (log.last(), log.segments[1].view.base);
    let left = memory.power_cut(Loss::All);
    left.remove(&segment_name(2)).expect("removed");
    let (log, found) = heal(&left);
    assert_eq!(log.contents(), run(1, border - 1, 1));
    let (told, bad) = damage(&found);
    assert_eq!((told.upto, bad.index), (last, Some(border)));
    assert!(
        bad.detail.contains("the next segment begins with"),
        "{}",
        bad.detail
    );
}

#[test]
fn all_segments_are_missing() {
    let (memory, _log) = settled();
    let left = memory.power_cut(Loss::All);
    for name in left.list("log").expect("listed") {
        left.remove(&format!("log/{name}")).expect("removed");
    }
    let (mut log, found) = heal(&left);
    let (told, _) = damage(&found);
    assert_eq!(
        (log.last(), told.upto),
        (0, u64::MAX),
        "nothing tells how much it was"
    );
    log.append_some(2, 1, 10);
    log.flush();
    assert_eq!(open(&left.power_cut(Loss::All)).contents(), run(1, 2, 1));
}

#[test]
fn a_segment_that_was_made_shorter() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = crate::Disk::new(dir.path());
    let mut log = open(&disk);
    log.append_some(60, 1, 500);
    log.flush();
    let border = log.segments[1].view.base;
    log.close().expect("closed");
    for (seq, len) in [(2, 9000), (2, 4096), (2, 100), (2, 0)] {
        let path = dir.path().join(segment_name(seq));
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .expect("opened");
        file.set_len(len).expect("cut");
    }
    let options = Options {
        heal: true,
        ..small()
    };
    let (log, found) = Log::open(disk, options, CLUSTER, GROUP, NODE).expect("it heals");
    assert_eq!(log.contents(), run(1, border - 1, 1));
    assert_eq!(found.data_loss.expect("it heals").upto, 60);
}

#[test]
fn a_bad_seal_costs_nothing() {
    let (memory, log) = settled();
    let (last, border) = (log.last(), log.segments[1].view.base);
    let seal = log.segments[0]
        .view
        .seek(border, u64::MAX)
        .expect("it is there")
        .1;
    for at in 0..MARKER_LEN as u64 {
        let left = memory.power_cut(Loss::All);
        flip(&left, &segment_name(1), seal + at);
        let (log, found) = try_open(&left).expect("every record is there");
        assert_eq!((log.contents(), &found.data_loss), (run(1, last, 1), &None));
        let mended = Found::SealDamaged { offset: seal };
        let decision = found.decisions.iter().find(|d| d.found == mended);
        assert_eq!(decision.expect("it was seen").action, Action::Rewrite);
        drop(log);
        let found = try_open(&left.power_cut(Loss::All)).expect("sound").1;
        assert!(found.decisions.iter().all(|d| d.action != Action::Rewrite));
    }
}

#[test]
fn a_spare_with_a_bad_header_is_no_loss() {
    let (memory, log) = settled();
    let left = memory.power_cut(Loss::All);
    let spare = segment_name(log.segments[2].view.seq + 1);
    flip(&left, &spare, 14);
    assert!(
        try_open(&left).is_err(),
        "without peers nobody says what it held"
    );
    let (reopened, found) = heal(&left);
    assert_eq!(
        (reopened.contents(), &found.data_loss),
        (log.contents(), &None)
    );
    let decision = found
        .decisions
        .iter()
        .find(|d| d.file == spare)
        .expect("looked at");
    let expected = Found::SegmentDamaged {
        offset: 8,
        in_use: false,
    };
    assert_eq!(
        (&decision.found, decision.action),
        (&expected, Action::Remove)
    );
}

#[test]
fn a_lost_vote_is_told_of_until_it_is_settled() {
    let (memory, log) = settled();
    let last = log.last();
    for missing in [false, true] {
        let bad = memory.power_cut(Loss::All);
        if missing {
            bad.remove(META_NAME).expect("removed");
            bad.sync_dir("").expect("durable");
        } else {
            flip(&bad, META_NAME, 30);
            flip(&bad, META_NAME, 4096 + 30);
        }
        assert!(try_open(&bad).is_err(), "without peers it is refused");
        let mut step = 0;
        loop {
            let memory = bad.power_cut(Loss::All);
            memory.fail_at(step, Fault::PowerOff);
            let outcome = open_with(&memory, true);
            for seed in 0..12 {
                let left = memory.power_cut(Loss::Random(seed));
                let (mut log, found) = heal(&left);
                let told = found.data_loss.clone().expect("it never forgets");
                assert_eq!((told.upto, told.vote_lost), (0, true), "step {step}");
                // The highest term in the log, and a vote for itself there.
                let vote = Vote {
                    term: 1,
                    voted_for: Some(NODE),
                };
                assert_eq!((found.vote, log.contents()), (vote, run(1, last, 1)));
                // What it finds out from its peers is kept.
                log.vote_for(7, NODE);
                log.flush();
                let (mut log, found) = try_open(&left.power_cut(Loss::All)).expect("sound");
                assert_eq!(found.vote.term, 7);
                assert!(found.data_loss.expect("still").vote_lost);
                log.healed().expect("removed");
            }
            if outcome.is_ok() {
                break;
            }
            step += 1;
        }
        assert!(step >= 12, "only {step} steps");
    }
}

#[test]
fn one_bad_copy_of_the_vote_may_have_been_the_newer_one() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.vote_for(3, 1);
    log.flush();
    // Only one copy holds it so far.
    let left = memory.power_cut(Loss::All);
    flip(&left, META_NAME, 30);
    let (_, found) = heal(&left);
    assert_eq!(
        found.vote,
        Vote::default(),
        "the older one is all that is left"
    );
    assert!(
        damage(&found).0.vote_lost,
        "and it is not taken for the vote"
    );
    let found = try_open(&left).expect("sound").1;
    assert!(found.data_loss.expect("still").vote_lost);
}

#[test]
fn a_bad_heal_file_heals_carefully() {
    let (memory, log) = settled();
    let bad = memory.power_cut(Loss::All);
    flip(&bad, &segment_name(1), offset_of(&log, 5));
    drop(heal(&bad));
    for at in 0..64 {
        let left = bad.power_cut(Loss::All);
        flip(&left, HEAL_NAME, at);
        for heal in [true, false] {
            let (_, found) = open_with(&left, heal).expect("it opens");
            let told = found.data_loss.expect("it heals");
            assert_eq!((told.upto, told.vote_lost, told.term), (u64::MAX, true, 3));
            assert!(
                found
                    .decisions
                    .iter()
                    .any(|d| d.found == Found::HealDamaged)
            );
        }
    }
}

#[test]
fn an_older_identity_is_read_and_doubled() {
    let (memory, log) = settled();
    let (identity, all) = (log.identity(), log.contents());
    let left = memory.power_cut(Loss::All);
    let mut bytes = vec![];
    left.damage(IDENTITY_NAME, |whole| bytes = whole[..48].to_vec())
        .expect("read");
    left.create(IDENTITY_NAME, 48).expect("replaced");
    left.damage(IDENTITY_NAME, |file| file.copy_from_slice(&bytes))
        .expect("replaced");
    for _ in 0..2 {
        let (log, found) = try_open(&left).expect("it opens");
        assert_eq!((log.identity(), log.contents()), (identity, all.clone()));
        assert!(
            found
                .decisions
                .iter()
                .all(|d| d.found != Found::CopyDamaged)
        );
    }
    let length = crate::medium::File::length(&left.open(IDENTITY_NAME).expect("there"));
    assert_eq!(length.expect("length"), 8192);
    // Both copies: nothing else says which node this is.
    flip(&left, IDENTITY_NAME, 33);
    flip(&left, IDENTITY_NAME, 4096 + 33);
    let error = open_with(&left, true).map(|_| ()).expect_err("refused");
    assert!(error.to_string().contains("identity is damaged"), "{error}");
}

#[test]
fn damage_below_a_snapshot_costs_nothing() {
    // What was damaged in a log with a snapshot at this index.
    let bad = |covered: fn(u64, u64) -> u64| {
        let (memory, log) = settled();
        let (last, border) = (log.last(), log.segments[1].view.base);
        let covered = covered(border, last);
        take(&log.snapshots(), covered, 1, 100).expect("taken");
        let left = memory.power_cut(Loss::All);
        flip(&left, &segment_name(1), offset_of(&log, 5));
        (left, covered, border, last)
    };
    // It reaches into the second segment: the log can begin there.
    let (left, covered, border, last) = bad(|border, _| border + 1);
    let (log, found) = open_with(&left, true).expect("it opens");
    assert_eq!((found.first_index, found.data_loss), (border, None));
    assert_eq!(log.contents(), run(border, last, 1));
    let covers = Found::Covered { index: covered };
    assert!(found.decisions.iter().any(|d| d.found == covers));
    drop(log);
    assert_eq!(open(&left.power_cut(Loss::All)).first(), border);

    // It covers all of it.
    let (left, _, _, last) = bad(|_, last| last);
    let (log, found) = open_with(&left, true).expect("it opens");
    assert_eq!((log.last(), found.data_loss), (last, None));

    // It ends before the second segment: what is between is lost, and so is what comes behind.
    let (bad, ..) = bad(|_, _| 7);
    let mut step = 0;
    loop {
        let memory = bad.power_cut(Loss::All);
        memory.fail_at(step, Fault::PowerOff);
        let outcome = open_with(&memory, true);
        for seed in 0..8 {
            let left = memory.power_cut(Loss::Random(seed));
            let (mut log, found) = heal(&left);
            assert_eq!((log.first(), log.last(), found.prev_term), (8, 7, 1));
            assert_eq!(found.data_loss.expect("it heals").upto, last, "step {step}");
            log.append_some(2, 1, 10);
            assert_eq!(log.contents(), run(8, 9, 1));
        }
        if outcome.is_ok() {
            break;
        }
        step += 1;
    }
    assert!(step >= 12, "only {step} steps");
}

#[test]
fn a_bad_snapshot_before_the_log() {
    let (memory, mut log) = settled();
    let (last, border) = (log.last(), log.segments[1].view.base);
    let id = take(&log.snapshots(), border + 1, 1, 100).expect("taken");
    assert_eq!(log.purge_before(border + 1).expect("purged"), border);
    drop(log);
    let left = memory.power_cut(Loss::All);
    flip(&left, &id.file("snap"), 600);
    assert!(try_open(&left).is_err(), "there is a gap");
    let (log, found) = heal(&left);
    assert_eq!((log.first(), log.last(), found.snapshot), (1, 0, None));
    let told = found.data_loss.expect("it heals");
    assert_eq!((told.upto, told.vote_lost), (last, false));
    drop(log);
    let found = try_open(&left.power_cut(Loss::All)).expect("sound").1;
    assert_eq!(found.data_loss.expect("still").upto, last);
}

#[test]
fn a_replacement_whose_snapshot_is_bad() {
    // The power fails when the intent is durable, and the new log is not.
    let left = (0..20).find_map(|step| {
        let (memory, mut log) = settled();
        let at = log.last() + 10;
        let id = take(&log.snapshots(), at, 3, 100).expect("taken");
        memory.fail_at(memory.steps() + step, Fault::PowerOff);
        log.reset_to(at, 3).expect_err("the power is off");
        let left = memory.power_cut(Loss::All);
        flip(&left, &id.file("snap"), 600);
        try_open(&left.power_cut(Loss::All))
            .is_err()
            .then_some(left)
    });
    let left = left.expect("there is neither log nor snapshot");
    let mut step = 0;
    loop {
        let memory = left.power_cut(Loss::All);
        memory.fail_at(step, Fault::PowerOff);
        let outcome = open_with(&memory, true);
        for seed in 0..8 {
            let (log, found) = heal(&memory.power_cut(Loss::Random(seed)));
            assert_eq!((log.first(), log.last()), (1, 0), "step {step}");
            assert_eq!(found.data_loss.expect("it heals").upto, u64::MAX);
        }
        if outcome.is_ok() {
            break;
        }
        step += 1;
    }
    assert!(step >= 8, "only {step} steps");
}

/// Every byte of every file, where there is something; of zeros, samples.
pub(super) fn every_byte(dir: &Memory, mut visit: impl FnMut(&str, u64, Memory)) -> u64 {
    let names = ["", "log/", "snap/"].map(|folder| {
        let names = dir.list(folder.trim_end_matches('/')).expect("listed");
        names.into_iter().map(move |name| format!("{folder}{name}"))
    });
    let mut visited = 0;
    for name in names.into_iter().flatten() {
        let mut bytes = Vec::new();
        dir.damage(&name, |whole| bytes = whole.to_vec())
            .expect("read");
        for at in 0..bytes.len() {
            let around = &bytes[at.saturating_sub(8)..(at + 8).min(bytes.len())];
            if around.iter().any(|&b| b != 0) || at % 997 == 0 {
                let left = dir.power_cut(Loss::All);
                left.damage(&name, |bytes| bytes[at] ^= 1 << (at % 8))
                    .expect("damaged");
                visit(&name, at as u64, left);
                visited += 1;
            }
        }
    }
    visited
}

/// As [`settled`], with segments of 8 KiB.
pub(super) fn settled_small() -> (Memory, Log<Memory>) {
    let memory = Memory::new(7);
    let mut log = open_small(&memory, false).expect("a new log").0;
    let mut peers = log.known_peers();
    peers.meet(1, 11).expect("written");
    peers.meet(3, 33).expect("written");
    while log.segments.len() < 3 {
        log.append_some(3, 1, 250);
        log.flush();
    }
    take(&log.snapshots(), 5, 1, 100).expect("taken");
    log.vote_for(3, 1);
    log.flush();
    log.settle().expect("settled");
    (memory, log)
}

pub(super) fn open_small(dir: &Memory, heal: bool) -> Opened {
    let options = Options {
        segment_bytes: 8 << 10,
        max_record_bytes: 1 << 10,
        heal,
        ..Options::default()
    };
    Log::open(dir.clone(), options, CLUSTER, GROUP, NODE)
}

#[test]
fn any_byte_of_any_file_without_peers() {
    let (memory, log) = settled_small();
    let (all, vote, identity) = (log.contents(), log.vote(), log.identity());
    log.close().expect("closed");
    let mut refused = 0;
    let visited = every_byte(&memory, |name, at, left| match open_small(&left, false) {
        Ok((log, found)) => {
            assert_eq!(log.contents(), all, "{name} at {at}");
            assert_eq!(
                (found.data_loss, found.identity),
                (None, identity),
                "{name} at {at}"
            );
            assert!(found.vote == vote, "{name} at {at}: {:?}", found.vote);
            assert_eq!(log.known_peers().list(), [(1, 11), (3, 33)]);
        }
        Err(StorageError::Corrupt { path, .. }) => {
            assert!(path.ends_with(name), "{name} at {at}: {}", path.display());
            refused += 1;
        }
        Err(error) => panic!("{name} at {at}: {error}"),
    });
    assert!(visited > 8000 && refused > 7000, "{visited} {refused}");
}

#[test]
fn any_byte_of_any_file_with_peers() {
    let (memory, log) = settled_small();
    let (all, last, vote) = (log.contents(), log.last(), log.vote());
    let identity = log.identity();
    log.close().expect("closed");
    let (mut healed, mut harmless) = (0, 0);
    every_byte(&memory, |name, at, left| {
        let (log, found) = open_small(&left, true)
            .unwrap_or_else(|error| panic!("{name} at {at}: it does not heal: {error}"));
        assert_eq!(
            log.contents(),
            all[log.first() as usize - 1..log.last() as usize],
            "{name} at {at}"
        );
        assert_eq!(
            (log.first() == 1 || log.first() == 6, found.identity),
            (true, identity),
            "{name} at {at}"
        );
        assert_eq!(log.known_peers().list(), [(1, 11), (3, 33)]);
        let lost = found.data_loss.as_ref();
        if log.last() < last {
            assert_eq!(lost.map(|h| h.upto), Some(last), "{name} at {at}");
        }
        assert!(
            found.vote == vote || lost.is_some_and(|h| h.vote_lost),
            "{name} at {at}"
        );
        *(if lost.is_some() {
            &mut healed
        } else {
            &mut harmless
        }) += 1;
        // What it says once it says again.
        if at % 16 == 0 {
            let said = found.data_loss.map(|h| (h.upto, h.vote_lost));
            let kept = log.first() as usize - 1..log.last() as usize;
            drop(log);
            let (log, found) = open_small(&left.power_cut(Loss::All), false).expect("sound");
            assert_eq!(
                found.data_loss.map(|h| (h.upto, h.vote_lost)),
                said,
                "{name} at {at}"
            );
            assert_eq!(log.contents(), all[kept]);
        }
    });
    assert!(healed > 7000 && harmless > 200, "{healed} {harmless}");
}

#[test]
fn any_byte_while_the_last_batch_has_no_later_mark() {
    // 1..=7 are durable and a marker says so; 8..=10 are durable too, and nothing says so yet.
    let memory = Memory::new(3);
    let mut log = open(&memory);
    log.append_some(7, 1, 200);
    log.flush();
    log.append_some(3, 1, 200);
    log.flush();
    let (from, to) = (offset_of(&log, 8), log.tail);
    let all = log.contents();
    assert!(from > RECORDS_AT);
    let left = memory.power_cut(Loss::All);
    drop(log);
    let mut unseen = 0;
    every_byte(&left, |name, at, left| {
        let (log, found) = heal(&left);
        assert_eq!(log.contents(), all[..log.last() as usize], "{name} at {at}");
        if log.last() < 10 && found.data_loss.is_none() {
            // The one thing that cannot be told from a torn write.
            assert!(
                name == segment_name(1) && (from..to).contains(&at),
                "{name} at {at}"
            );
            assert!(log.last() >= 7);
            unseen += 1;
        }
        let told = found.data_loss.map_or(10, |heal| heal.upto);
        assert!(told == 10 || told == 0, "{name} at {at}: {told}");
    });
    assert!(unseen > 0, "the case is there");
}

#[test]
fn any_two_places_never_panic_and_never_lie() {
    let (memory, log) = settled();
    let (all, last) = (log.contents(), log.last());
    log.close().expect("closed");
    let files = [
        (segment_name(1), 16 << 10),
        (segment_name(2), 16 << 10),
        (segment_name(3), 16 << 10),
        (META_NAME.into(), 8192),
        (IDENTITY_NAME.into(), 8192),
        (PEERS_NAME.into(), 8192),
    ];
    let mut random: u64 = 1;
    let mut next = |below: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) as usize % below
    };
    for round in 0..3000 {
        let left = memory.power_cut(Loss::All);
        for _ in 0..2 {
            let which = next(files.len());
            let (name, len) = &files[which];
            // Half of the time at the front, where headers are; sometimes a whole block.
            let at = if next(2) == 0 { next(64) } else { next(*len) };
            // Not where the log ends: were the newest records lost with the marker behind them, nothing would tell.
            let many = if which != 2 && next(8) == 0 { 4096 } else { 1 };
            let end = (at + many).min(*len);
            let by = next(255) as u8 + 1;
            left.damage(name, |bytes| {
                bytes[at..end].iter_mut().for_each(|b| *b ^= by)
            })
            .expect("damaged");
        }
        match open_with(&left, true) {
            Ok((log, found)) => {
                assert_eq!(log.contents(), all[..log.last() as usize], "round {round}");
                let upto = found.data_loss.map_or(0, |heal| heal.upto);
                assert!(
                    log.last() == last || upto >= last,
                    "round {round}: {upto}, {}, {:#?}",
                    log.last(),
                    found.decisions
                );
            }
            Err(error) => {
                let text = error.to_string();
                assert!(
                    text.contains("identity") || text.contains("peers"),
                    "round {round}: {text}"
                );
            }
        }
    }
}
