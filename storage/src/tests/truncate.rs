//! Truncation: what was cut off never comes back, wherever the power fails.

use super::*;
use crate::Disk;
use crate::medium::memory::{Fault, Loss};

#[test]
fn the_end_moves_back_and_the_log_goes_on() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(10, 1, 100);
    log.append_some(10, 2, 100);
    log.flush();
    let reader = log.reader();
    log.truncate_after(12).expect("cut");
    assert_eq!((log.last(), log.durable(), reader.written()), (12, 12, 12));
    assert!(reader.slice(13, 20, 4096).is_none());
    log.append_some(3, 3, 50);
    let expected = [run(1, 10, 1), run(11, 12, 2), run(13, 15, 3)].concat();
    assert_eq!(log.contents(), expected);
    log.flush();
    let (log, found) = try_open(&memory.power_cut(Loss::All)).expect("it opens");
    assert_eq!(log.contents(), expected);
    assert_eq!(found.term_runs, [(1, 1), (2, 11), (3, 13)]);
}

#[test]
fn a_truncation_may_go_back_over_segments_and_to_their_borders() {
    let (memory, log) = three_segments();
    let (last, borders) = (
        log.last(),
        [log.segments[1].view.base, log.segments[2].view.base],
    );
    drop(log);
    let keep = borders
        .iter()
        .flat_map(|b| [b - 2, b - 1, *b, b + 1])
        .chain([0, 1, last - 1, last]);
    for kept in keep {
        let memory = memory.power_cut(Loss::All);
        let mut log = open(&memory);
        log.truncate_after(kept).expect("cut");
        assert_eq!(log.contents(), run(1, kept, 1));
        log.append_some(30, 2, 500);
        assert_eq!(
            log.contents(),
            [run(1, kept, 1), run(kept + 1, kept + 30, 2)].concat()
        );
        log.flush();
        let log = open(&memory.power_cut(Loss::All));
        assert_eq!(
            log.contents(),
            [run(1, kept, 1), run(kept + 1, kept + 30, 2)].concat()
        );
    }
}

#[test]
fn the_old_successor_does_not_come_back_to_life() {
    // 13 and 14 of term 3; cut; another 13, of the same length, in the place of the old one.
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(12, 1, 456);
    log.append_some(2, 3, 456);
    log.flush();
    log.truncate_after(12).expect("cut");
    log.append_some(1, 3, 456);
    for seed in 0..64 {
        let contents = open(&memory.power_cut(Loss::Random(seed))).contents();
        assert!(contents.len() <= 13, "{contents:?}");
    }
}

#[test]
fn what_was_written_and_never_flushed_does_not_come_back_either() {
    // The power fails; the page of 13 is lost, that of 14 is not; then another 13 is written.
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(12, 1, 456);
    log.flush();
    log.append_some(2, 1, 456);
    for seed in 0..64 {
        let left = memory.power_cut(Loss::Random(seed));
        let mut log = open(&left);
        let last = log.last();
        log.append_some(1, 1, 456);
        for seed in 0..8 {
            let contents = open(&left.power_cut(Loss::Random(seed))).contents();
            assert!(
                contents.len() as u64 <= last + 1,
                "{contents:?} after {last} and one more"
            );
        }
    }
}

#[test]
fn the_power_fails_before_any_step_of_it() {
    let (memory, log) = three_segments();
    let (last, kept) = (log.last(), log.segments[1].view.base + 2);
    drop(log);
    let mut step = 0;
    loop {
        let memory = memory.power_cut(Loss::All);
        let mut log = open(&memory);
        log.vote_for(1, 3);
        log.flush();
        memory.fail_at(memory.steps() + step, Fault::PowerOff);
        let outcome = log.truncate_after(kept);
        for seed in 0..24 {
            let left = memory.power_cut(Loss::Random(seed));
            let (mut log, found) = try_open(&left).expect("it opens");
            assert_eq!(
                found.vote,
                Vote {
                    term: 1,
                    voted_for: Some(3)
                }
            );
            // Before or after, and nothing between.
            assert!(
                log.last() == last || log.last() == kept,
                "step {step}: {}",
                log.last()
            );
            assert_eq!(log.contents(), run(1, log.last(), 1));
            assert!(
                outcome.is_err() || log.last() == kept,
                "step {step}: it came back"
            );
            // What comes after is not taken for something that was cut off.
            let from = log.last() + 1;
            log.append_some(5, 2, 500);
            log.flush();
            drop(log);
            let expected = [run(1, from - 1, 1), run(from, from + 4, 2)].concat();
            assert_eq!(open(&left.power_cut(Loss::All)).contents(), expected);
        }
        if outcome.is_ok() {
            break;
        }
        step += 1;
    }
    assert!(
        step >= 7,
        "only {step} steps: intent, removal, marker, zeros, flush, intent cleared"
    );
}

#[test]
fn the_power_fails_again_while_recovery_finishes_it() {
    let (memory, mut log) = three_segments();
    let kept = log.segments[1].view.base + 2;
    // After the intent: a write and a sync of the meta file.
    memory.fail_at(memory.steps() + 2, Fault::PowerOff);
    log.truncate_after(kept).expect_err("the power is off");
    let pending = memory.power_cut(Loss::All);
    let mut step = 0;
    loop {
        let memory = pending.power_cut(Loss::All);
        memory.fail_at(step, Fault::PowerOff);
        let outcome = try_open(&memory);
        for seed in 0..16 {
            let log = open(&memory.power_cut(Loss::Random(seed)));
            assert_eq!(log.contents(), run(1, kept, 1), "step {step}");
        }
        if outcome.is_ok() {
            break;
        }
        step += 1;
    }
    assert!(step >= 10, "only {step} steps");
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
    log.truncate_after(5).expect("cut");
    memory.hold_flushes(false);
    assert_eq!(log.durable(), 5);
    log.append_some(4, 2, 100);
    // The flush that ran is still told of, and it does not cover 9.
    assert_eq!(log.poll_flush().expect("no error"), FlushState::Done);
    assert_eq!((log.last(), log.durable()), (9, 5));
    assert!(log.start_flush().expect("begins"));
    assert_eq!(log.poll_flush().expect("no error"), FlushState::Done);
    assert_eq!(log.durable(), 9);
}

#[test]
fn a_vote_that_waits_is_still_told_of_by_a_flush() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(10, 1, 100);
    log.flush();
    log.vote_for(2, 2);
    log.truncate_after(5).expect("cut");
    assert!(
        log.start_flush().expect("begins"),
        "whoever saved the vote waits for this"
    );
    assert_eq!(log.poll_flush().expect("no error"), FlushState::Done);
    let found = try_open(&memory.power_cut(Loss::All)).expect("it opens").1;
    assert_eq!((found.vote.term, found.last_index), (2, 5));
}

#[test]
fn a_truncation_at_the_end_or_behind_does_nothing() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(3, 1, 100);
    let steps = memory.steps();
    log.truncate_after(3).expect("nothing to do");
    log.truncate_after(9).expect("nothing to do");
    assert_eq!((log.last(), memory.steps()), (3, steps));
}

#[test]
fn real_files_forget_what_was_cut_off() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::new(dir.path());
    let mut log = open(&disk);
    log.append_some(80, 1, 500);
    assert!(log.segments.len() > 3);
    log.truncate_after(20).expect("cut");
    log.append_some(1, 2, 500);
    log.close().expect("closed");
    assert_eq!(
        open(&disk).contents(),
        [run(1, 20, 1), run(21, 21, 2)].concat()
    );
}
