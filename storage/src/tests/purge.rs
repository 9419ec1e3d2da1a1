//! Letting go of the front of the log.

use super::*;
use crate::Disk;
use crate::log::segment::segment_name;
use crate::medium::memory::{Fault, Loss};

#[test]
fn whole_segments_below_the_index_go() {
    let (memory, mut log) = three_segments();
    let (second, third, last) = (
        log.segments[1].view.base,
        log.segments[2].view.base,
        log.last(),
    );
    log.snapshot_what_is_durable();
    assert_eq!(log.purge_before(second - 1).expect("nothing"), 1);
    assert_eq!(log.purge_before(second).expect("one"), second);
    let reader = log.reader();
    assert!(reader.slice(second - 1, last, 4096).is_none());
    assert_eq!(log.contents(), run(second, last, 1));
    // The one in use stays.
    assert_eq!(log.purge_before(last + 100).expect("one more"), third);
    let (log, found) = try_open(&memory.power_cut(Loss::All)).expect("it opens");
    assert_eq!(log.contents(), run(third, last, 1));
    assert_eq!(
        (found.first_index, found.prev_term, found.term_runs),
        (third, 1, vec![(1, third)])
    );
}

#[test]
fn what_is_not_durable_is_not_purged() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(40, 1, 1000);
    assert_eq!(log.purge_before(30).expect("nothing"), 1);
    // Nor what a flush is about to make durable.
    memory.hold_flushes(true);
    assert!(log.start_flush().expect("begins"));
    assert_eq!(log.purge_before(30).expect("nothing"), 1);
    memory.hold_flushes(false);
    poll_until_done(&mut log);
    assert!(log.purge_before(30).expect("some") > 1);
    assert_eq!(log.purge_before(30).expect("no more"), log.first());
}

#[test]
fn the_new_front_is_durable_before_the_old_one_goes() {
    // All of the first segment is durable, nothing of the second is, not even its header.
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(11, 1, 1000);
    log.flush();
    log.append_some(3, 1, 1000);
    assert_eq!(log.segments[1].view.base, 12);
    assert_eq!(log.purge_before(12).expect("nothing"), 1);
    assert_eq!(open(&memory.power_cut(Loss::All)).contents(), run(1, 11, 1));
    log.flush();
    log.snapshot_what_is_durable();
    assert_eq!(log.purge_before(12).expect("one"), 12);
    assert_eq!(
        open(&memory.power_cut(Loss::All)).contents(),
        run(12, 14, 1)
    );
}

#[test]
fn purged_segments_are_used_again_and_the_log_stays_small() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    let reader = log.reader();
    let mut created = 0;
    for round in 0..60 {
        log.append_some(7, 1 + round / 10, 700 + (round as usize * 37) % 400);
        log.flush();
        log.snapshot_what_is_durable();
        let keep = log.last().saturating_sub(20).max(1);
        log.purge_before(keep).expect("purged");
        // A reader that goes on lets go of what was purged.
        let first = log.first();
        assert_eq!(super::contents(&reader, first, log.last()), log.contents());
        let files = memory.list("log").expect("listed").len();
        assert!(files <= 7, "{files} files");
        created = created.max(log.segments.back().map_or(0, |s| s.view.seq));
        if round % 7 == 0 {
            let left = open(&memory.power_cut(Loss::Random(round)));
            assert_eq!(left.contents(), log.contents());
        }
    }
    assert!(created > 30, "{created}");
    let files = memory.list("log").expect("listed").len();
    assert!(files <= 7, "{files} files for {created} segments");
}

#[test]
fn a_reader_that_sleeps_keeps_nobody_from_using_segments_again() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    let mut sleepers = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..30 {
        sleepers.push(log.reader());
        log.append_some(12, 1, 1000);
        log.flush();
        log.purge_before(log.last()).expect("purged");
        seen.extend(memory.list("log").expect("listed"));
        assert!(memory.list("log").expect("listed").len() <= 7);
        sleepers.truncate(4);
    }
    assert!(seen.len() > 25);
}

#[test]
fn a_segment_that_somebody_reads_is_not_used_again() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(30, 1, 1000);
    log.flush();
    let slice = log.reader().slice(2, 3, 4096).expect("written");
    log.purge_before(25).expect("purged");
    for _ in 0..10 {
        log.append_some(10, 2, 1000);
        log.flush();
        log.purge_before(log.last()).expect("purged");
    }
    assert_eq!(slice.as_ref(), batch(2, 3, 1, 1000));
}

#[test]
fn a_segment_that_was_read_before_it_became_cold_is_not_used_again() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(3, 1, 1000);
    let slice = log.reader().slice(2, 3, 4096).expect("written");
    for _ in 0..10 {
        log.append_some(10, 2, 1000);
        log.flush();
    }
    assert_eq!(
        log.contents(),
        [run(1, 3, 1), run(4, log.last(), 2)].concat()
    );
    // One segment goes at a time, so that the next one made would be this.
    for _ in 0..10 {
        let second = log.segments[1].view.base;
        assert_eq!(log.purge_before(second).expect("purged"), second);
        log.append_some(20, 2, 1000);
        log.flush();
    }
    assert_eq!(slice.as_ref(), batch(2, 3, 1, 1000));
}

#[test]
fn the_power_fails_before_any_step_of_it() {
    let (memory, log) = three_segments();
    let (last, third) = (log.last(), log.segments[2].view.base);
    drop(log);
    let mut step = 0;
    loop {
        let memory = memory.power_cut(Loss::All);
        let mut log = open(&memory);
        log.snapshot_what_is_durable();
        memory.fail_at(memory.steps() + step, Fault::PowerOff);
        // What fails is known when the next segment is needed.
        let next = last + 1;
        let outcome = log.purge_before(third).and_then(|_| {
            log.append(&batch(next, next + 30, 1, 500), next, next + 30)?;
            log.start_flush()?;
            log.wait_flush()
        });
        for seed in 0..16 {
            let left = open(&memory.power_cut(Loss::Random(seed)));
            let (first, end) = (left.first(), left.last());
            assert_eq!(left.contents(), run(first, end, 1), "step {step}");
            assert!(
                first <= third && end >= last,
                "step {step}: {first}..={end}"
            );
        }
        if outcome.is_ok() {
            break;
        }
        step += 1;
    }
    assert!(step >= 10, "only {step} steps");
}

#[test]
fn real_files_are_used_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::new(dir.path());
    let mut log = open(&disk);
    for _ in 0..40 {
        log.append_some(7, 1, 900);
        log.flush();
        log.snapshot_what_is_durable();
        log.purge_before(log.last()).expect("purged");
    }
    let (first, last) = (log.first(), log.last());
    assert!(log.segments.back().map_or(0, |s| s.view.seq) > 20);
    log.close().expect("closed");
    let files = disk.list("log").expect("listed");
    assert!(files.len() <= 6, "{files:?}");
    assert!(!dir.path().join(segment_name(1)).exists());
    assert_eq!(open(&disk).contents(), run(first, last, 1));
}

#[test]
fn the_extent_tells_where_so_many_bytes_begin() {
    let (_memory, log) = three_segments();
    let bases: Vec<u64> = log.segments.iter().map(|s| s.view.base).collect();
    let bytes = log.segments[0].view.map.len() as u64;
    let extent = log.extent();
    for (back, first) in [
        (0, 2),
        (1, 2),
        (bytes - 1, 2),
        (bytes, 1),
        (2 * bytes - 1, 1),
    ] {
        assert_eq!(extent.back_from(log.last(), back), bases[first], "{back}");
    }
    for bytes in [2 * bytes, u64::MAX] {
        assert_eq!(extent.back_from(log.last(), bytes), 1, "{bytes}");
    }
    assert_eq!(extent.back_from(bases[1], 0), bases[1]);
    assert_eq!(extent.back_from(bases[1] - 1, u64::MAX), 1);
    // Where there is no log yet, or no more.
    assert_eq!(extent.back_from(0, u64::MAX), 0);
    assert_eq!(extent.back_from(log.last() + 100, 0), bases[2]);
}
