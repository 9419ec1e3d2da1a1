//! Replacing the log by a snapshot: old or new, and nothing between.

use super::*;
use crate::Disk;
use crate::log::segment::segment_name;
use crate::medium::memory::{Fault, Loss};

#[test]
fn the_log_goes_on_behind_the_snapshot() {
    let (memory, mut log) = three_segments();
    let reader = log.reader();
    let slice = reader.slice(5, 6, 4096).expect("written");
    let id = take(&log.snapshots(), 100, 3, 1000).expect("taken");
    log.reset_to(100, 3).expect("replaced");
    assert_eq!((log.first(), log.last(), log.durable()), (101, 100, 100));
    assert_eq!(reader.written(), 100);
    assert!(reader.slice(5, 100, 4096).is_none() && reader.slice(101, 101, 4096).is_none());
    assert_eq!(slice.as_ref(), batch(5, 6, 1, 500));
    assert!(
        log.start_flush().expect("begins"),
        "whoever counts hears of it"
    );
    assert_eq!(log.poll_flush().expect("no error"), FlushState::Done);

    let (empty, found) = try_open(&memory.power_cut(Loss::All)).expect("it opens");
    let ends = (found.first_index, found.last_index, found.prev_term);
    assert_eq!(ends, (101, 100, 3));
    assert_eq!(found.last_time_us, snapshot_meta(100, 3).time_us);
    assert_eq!(found.snapshot, Some((id, snapshot_meta(100, 3))));
    assert_eq!(empty.contents(), []);

    log.append_some(40, 4, 500);
    log.flush();
    assert_eq!(super::contents(&reader, 101, 140), run(101, 140, 4));
    let (log, found) = try_open(&memory.power_cut(Loss::All)).expect("it opens");
    assert_eq!((found.first_index, found.prev_term), (101, 3));
    assert_eq!(log.contents(), run(101, 140, 4));
}

#[test]
fn a_flush_in_flight_does_not_report_the_old_end() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(10, 1, 100);
    memory.hold_flushes(true);
    assert!(log.start_flush().expect("begins"));
    log.append_some(2, 1, 100);
    log.vote_for(2, 2);
    // Below what the flush covers.
    take(&log.snapshots(), 7, 2, 10).expect("taken");
    log.reset_to(7, 2).expect("replaced");
    memory.hold_flushes(false);
    assert_eq!((log.durable(), log.durable_vote().term), (7, 2));
    log.append_some(5, 2, 100);
    assert_eq!(log.poll_flush().expect("no error"), FlushState::Done);
    assert_eq!((log.last(), log.durable()), (12, 7));
    log.flush();
    assert_eq!(open(&memory.power_cut(Loss::All)).contents(), run(8, 12, 2));
}

/// Whether what is left is the old log, or the new one; it must be either, and go on.
fn is_new(left: &Memory, old: &[(u64, u64)], (index, term): (u64, u64), story: &str) -> bool {
    let (mut log, found) = try_open(left).unwrap_or_else(|e| panic!("{story}: {e}"));
    assert_eq!(found.vote.term, 1, "{story}");
    let contents = log.contents();
    let new = found.first_index == index + 1;
    if new {
        assert_eq!((log.last(), found.prev_term), (index, term), "{story}");
    } else {
        assert_eq!(contents, old, "{story}");
    }
    let (from, term) = (log.last() + 1, 9);
    log.append_some(25, term, 500);
    log.flush();
    drop(log);
    let expected = [contents, run(from, from + 24, term)].concat();
    let reopened = open(&left.power_cut(Loss::All));
    assert_eq!(reopened.contents(), expected, "{story}");
    new
}

#[test]
fn any_step_of_it_may_fail() {
    let (memory, mut log) = three_segments();
    log.vote_for(1, 3);
    log.flush();
    let (last, old) = (log.last(), log.contents());
    drop(log);
    // TailScan the end; in a tail that was never committed; where the log agrees and is replaced all the same.
    for (index, term) in [(last + 10, 2), (last - 5, 2), (last - 5, 1)] {
        for fault in [Fault::PowerOff, Fault::Io, Fault::Full] {
            let mut step = 0;
            loop {
                let memory = memory.power_cut(Loss::All);
                let mut log = open(&memory);
                let before = log.contents();
                take(&log.snapshots(), index, term, 700).expect("taken");
                let begun = memory.steps();
                memory.fail_at(begun + step, fault);
                let outcome = log.reset_to(index, term);
                let story = format!("{fault:?} at step {step} of a reset to {index}");
                if outcome.is_err() && log.failed().is_none() {
                    assert_eq!(log.contents(), before, "{story}: it goes on");
                }
                for seed in 0..6 {
                    let loss = match seed {
                        0 => Loss::All,
                        1 => Loss::Nothing,
                        seed => Loss::Random(seed),
                    };
                    let new = is_new(&memory.power_cut(loss), &old, (index, term), &story);
                    assert!(outcome.is_err() || new, "{story}: the old log came back");
                    // Where the log contradicts the snapshot or ends before, a start replaces it.
                    assert!(new || (index, term) == (last - 5, 1), "{story}");
                }
                if outcome.is_ok() && memory.steps() <= begun + step {
                    break;
                }
                step += 1;
            }
            assert!(step >= 10, "only {step} steps");
        }
    }
}

/// The version of both copies of term and vote.
fn versions(memory: &Memory) -> (u8, u8) {
    let file = memory.open("meta").expect("there");
    let mut bytes = vec![0; 8192];
    crate::medium::File::read_at(&file, 0, &mut bytes).expect("read");
    (bytes[12], bytes[4096 + 12])
}

#[test]
fn the_power_fails_again_while_a_start_finishes_it() {
    let (memory, log) = three_segments();
    let index = log.last() - 5;
    take(&log.snapshots(), index, 1, 700).expect("taken");
    drop(log);
    // What a first power failure leaves in the midst of it.
    let mut pending = Vec::new();
    for first in 0.. {
        let memory = memory.power_cut(Loss::All);
        let mut log = open(&memory);
        memory.fail_at(memory.steps() + first, Fault::PowerOff);
        if log.reset_to(index, 1).is_ok() {
            break;
        }
        for loss in [Loss::All, Loss::Nothing, Loss::Random(first)] {
            let left = memory.power_cut(loss);
            if versions(&left) != (1, 1) {
                pending.push(left);
            }
        }
    }
    assert!(pending.len() > 10, "only {}", pending.len());
    for pending in pending {
        let mut step = 0;
        loop {
            let memory = pending.power_cut(Loss::All);
            memory.fail_at(step, Fault::PowerOff);
            let outcome = try_open(&memory);
            for seed in 0..4 {
                let left = memory.power_cut(Loss::Random(seed));
                let (log, found) = try_open(&left).expect("it opens");
                assert_eq!(found.first_index, index + 1, "step {step}");
                assert_eq!(log.last(), index, "step {step}");
            }
            if outcome.is_ok() {
                break;
            }
            step += 1;
        }
        assert!(step >= 8, "only {step} steps");
    }
}

#[test]
fn a_full_disk_shows_before_anything_is_changed() {
    let (memory, mut log) = three_segments();
    let old = log.contents();
    take(&log.snapshots(), 100, 2, 10).expect("taken");
    // The spare that is there is used up by the log.
    memory.set_capacity(Some(1));
    while log.spare_trouble().is_none() {
        log.append_some(1, 1, 1000);
    }
    let (room, before) = (log.last(), log.contents());
    let error = log.reset_to(100, 2).expect_err("no room").to_string();
    assert!(error.contains("free some space"), "{error}");
    assert!(log.failed().is_none() && before.starts_with(&old));
    assert_eq!((log.last(), log.contents()), (room, before));
    memory.set_capacity(None);
    log.reset_to(100, 2).expect("there is room");
    assert_eq!(open(&memory.power_cut(Loss::All)).first(), 101);
}

#[test]
fn a_log_that_was_replaced_does_not_open_without_its_snapshot() {
    let (memory, mut log) = three_segments();
    let early = take(&log.snapshots(), 3, 1, 10).expect("taken");
    let id = take(&log.snapshots(), 100, 2, 10).expect("taken");
    log.reset_to(100, 2).expect("replaced");
    log.append_some(3, 2, 10);
    log.flush();
    drop(log);
    let name = format!("snap/{:016}-2-{}-{:08x}.snap", 100, id.bytes, id.digest);
    memory
        .damage(&name, |bytes| bytes[100] ^= 1)
        .expect("damaged");
    let before = memory.steps();
    let error = try_open(&memory)
        .map(|_| ())
        .expect_err("a gap")
        .to_string();
    for part in [
        "records 4..=100 are missing",
        "begins with 101",
        "ends with 3",
        &name,
        "nothing was changed",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // Names and the meta file were flushed, and nothing was changed.
    assert_eq!(memory.steps(), before + 3);
    // Sound again, all of it is there.
    memory
        .damage(&name, |bytes| bytes[100] ^= 1)
        .expect("as it was");
    let (log, found) = try_open(&memory).expect("it opens");
    assert_eq!(log.contents(), run(101, 103, 2));
    assert_eq!(log.snapshots().list(), [early, id]);
    assert_eq!(found.snapshot.map(|(id, _)| id), Some(id));
}

#[test]
fn without_any_snapshot_a_log_that_begins_late_does_not_open() {
    let (memory, mut log) = three_segments();
    let second = log.segments[1].view.base;
    log.purge_before(second).expect("purged");
    drop(log);
    let error = try_open(&memory.power_cut(Loss::All)).map(|_| ());
    let error = error.expect_err("a gap").to_string();
    let missing = format!("records 1..={} are missing", second - 1);
    assert!(error.contains(&missing), "{error}");
    assert!(error.contains("no sound snapshot is there"), "{error}");
}

#[test]
fn a_bad_newest_snapshot_falls_back_to_the_other_and_the_log() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    let snapshots = log.snapshots();
    let mut ids = Vec::new();
    for round in 1..=6 {
        log.append_some(20, 1, 500);
        log.flush();
        ids.push(take(&snapshots, round * 20 - 3, 1, 800).expect("taken"));
        let floor = snapshots.prune(&mut Reclaim::default()).expect("pruned");
        let expected = if round == 1 { 0 } else { (round - 1) * 20 - 3 };
        assert_eq!(floor, expected);
        let first = log.purge_before(floor + 1).expect("purged");
        assert!(first <= floor + 1 && (round < 4 || first > 20));
        let newest = ids[ids.len() - 1];
        let name = format!(
            "snap/{:016}-1-{}-{:08x}.snap",
            newest.index, newest.bytes, newest.digest
        );
        for step in [0, 100, newest.bytes as usize - 1] {
            let left = memory.power_cut(Loss::All);
            left.damage(&name, |bytes| bytes[step] ^= 1)
                .expect("damaged");
            let (log, found) = try_open(&left).expect("the other one and the log");
            let other = ids.len().checked_sub(2).map(|at| ids[at]);
            assert_eq!(found.snapshot.map(|(id, _)| id), other);
            assert_eq!(log.contents(), run(first, round * 20, 1));
            let bad = name.replace(".snap", ".bad");
            assert!(left.open(&bad).is_ok(), "it is kept for the operator");
        }
    }
}

#[test]
fn a_log_that_ends_before_the_snapshot_is_replaced_at_the_next_start() {
    for (index, term, replaced) in [
        (100, 2, true),
        (100, 1, true),
        (21, 1, true),
        // The log agrees, and reaches it.
        (10, 1, false),
        (20, 1, false),
        // It does not agree.
        (20, 2, true),
        (10, 2, true),
    ] {
        let memory = Memory::new(1);
        let mut log = open(&memory);
        log.append_some(20, 1, 500);
        log.flush();
        take(&log.snapshots(), index, term, 800).expect("taken");
        drop(log);
        let (log, found) = try_open(&memory.power_cut(Loss::All)).expect("it opens");
        let lines = found.decisions.iter().map(ToString::to_string);
        let expected = format!("log: replaced by the snapshot at {index} of term {term}: removed");
        assert_eq!(
            lines.filter(|line| *line == expected).count(),
            usize::from(replaced)
        );
        if replaced {
            assert_eq!((log.first(), log.last()), (index + 1, index));
            assert_eq!(found.prev_term, term);
        } else {
            assert_eq!(log.contents(), run(1, 20, 1));
        }
    }
}

#[test]
fn records_behind_a_replaced_log_are_not_dropped_for_a_copy_that_went_bad() {
    let (memory, mut log) = three_segments();
    take(&log.snapshots(), 100, 2, 10).expect("taken");
    log.reset_to(100, 2).expect("replaced");
    // The slot that says it is over is good, the other one still has the intent: nothing was flushed since.
    let over = memory.power_cut(Loss::All);
    log.append_some(3, 2, 10);
    let left = memory.power_cut(Loss::Nothing);
    let newest = |memory: &Memory| {
        let file = memory.open("meta").expect("there");
        let mut bytes = vec![0; 8192];
        crate::medium::File::read_at(&file, 0, &mut bytes).expect("read");
        let sequence = |at: usize| crate::record::u64_at(&bytes, at + 16);
        if sequence(0) > sequence(4096) {
            0
        } else {
            4096
        }
    };
    for (memory, opens) in [(over, true), (left, false)] {
        let at = newest(&memory);
        memory
            .damage("meta", |bytes| bytes[at + 20] ^= 1)
            .expect("damaged");
        match try_open(&memory) {
            Ok((log, _)) => assert!(opens && log.first() == 101, "{log:?}"),
            Err(e) => assert!(
                !opens && e.to_string().contains("it goes on behind it"),
                "{e}"
            ),
        }
    }
}

#[test]
fn an_older_build_refuses_a_log_that_is_being_replaced() {
    let (memory, mut log) = three_segments();
    take(&log.snapshots(), 100, 2, 10).expect("taken");
    log.vote_for(3, 1);
    log.flush();
    log.settle().expect("quiet");
    assert_eq!(versions(&memory), (1, 1));
    let mut seen = Vec::new();
    for step in 0..30 {
        let left = memory.power_cut(Loss::All);
        let Ok((mut log, _)) = Log::open(left.clone(), small(), CLUSTER, GROUP, NODE) else {
            panic!("it opens");
        };
        // The start has replaced the log already; the next one is ahead of it.
        take(&log.snapshots(), 200, 2, 10).expect("taken");
        left.fail_at(left.steps() + step, Fault::PowerOff);
        if log.reset_to(200, 2).is_ok() {
            break;
        }
        seen.push(versions(&left.power_cut(Loss::Nothing)));
    }
    assert!(seen.iter().any(|&(a, b)| a == 2 || b == 2), "{seen:?}");
    drop(log);
    let log = open(&memory);
    log.close().expect("closed");
    assert_eq!(versions(&memory), (1, 1), "an older build reads it again");
}

#[test]
fn real_files_are_replaced() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::new(dir.path());
    let mut log = open(&disk);
    log.append_some(80, 1, 500);
    log.flush();
    assert!(log.segments.len() > 3);
    // Some are on their way out on the other thread.
    take(&log.snapshots(), 40, 1, 10).expect("taken");
    log.purge_before(30).expect("purged");
    take(&log.snapshots(), 200, 2, 10).expect("taken");
    log.reset_to(200, 2).expect("replaced");
    log.append_some(5, 2, 500);
    log.flush();
    let only = segment_name(log.segments[0].view.seq);
    log.close().expect("closed");
    let in_use: Vec<_> = disk.list("log").expect("listed");
    assert!(in_use.len() <= 2, "{in_use:?}");
    assert!(dir.path().join(only).exists());
    let log = open(&disk);
    assert_eq!(log.contents(), run(201, 205, 2));
}
