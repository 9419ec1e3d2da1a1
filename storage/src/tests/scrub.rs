//! Reading again finds what has gone bad, and nothing else, whatever the log does meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use super::rot::flip;
use super::*;
use crate::Disk;
use crate::log::segment::{RECORDS_AT, segment_name};
use crate::scrub::{Progress, Scrub};

/// Steps until a pass is over.
fn pass<D: Dir>(scrub: &mut Scrub<D>, max_bytes: u64) -> Vec<Progress> {
    let mut steps = Vec::new();
    loop {
        let step = scrub.step(max_bytes);
        let finished = step.finished;
        steps.push(step);
        assert!(steps.len() < 10_000, "it does not end");
        if finished {
            return steps;
        }
    }
}

fn bad(steps: &[Progress]) -> Vec<(String, u64, Option<u64>)> {
    let damage = steps.iter().filter_map(|step| step.bad.as_ref());
    damage
        .map(|w| (w.file.clone(), w.offset, w.index))
        .collect()
}

#[test]
fn a_sound_log_is_read_to_its_end_in_small_steps() {
    let (_memory, log) = three_segments();
    let mut scrub = log.scrub();
    for max_bytes in [1, 4096, 1 << 20] {
        let steps = pass(&mut scrub, max_bytes);
        assert_eq!(bad(&steps), []);
        assert_eq!(steps.last().map(|step| step.upto), Some(log.last()));
        let read: u64 = steps.iter().map(|step| step.bytes).sum();
        assert_eq!(read, log.last() * 560, "each byte once");
        assert!(
            steps
                .iter()
                .all(|step| step.bytes <= max_bytes + 4096 + 560)
        );
    }
}

#[test]
fn every_byte_that_goes_bad_is_found_in_the_next_pass() {
    let (memory, log) = three_segments();
    let mut scrub = log.scrub();
    let view = &log.segments[1].view;
    let (base, end) = (
        view.base,
        view.seek(log.segments[2].view.base, u64::MAX)
            .expect("there")
            .1,
    );
    for at in (0..64).chain((RECORDS_AT..end).step_by(37)) {
        flip(&memory, &segment_name(2), at);
        let found = bad(&pass(&mut scrub, 4096));
        let [(file, offset, index)] = found.as_slice() else {
            panic!("byte {at}: {found:?}")
        };
        let record = base + at.saturating_sub(RECORDS_AT) / 560;
        // A damaged length moves what comes behind; the place itself is where the record begins, at the latest.
        assert_eq!(
            (file, *index),
            (&segment_name(2), Some(record)),
            "byte {at}"
        );
        assert!(*offset <= at, "byte {at}: {offset}");
        flip(&memory, &segment_name(2), at);
    }
    assert_eq!(bad(&pass(&mut scrub, 4096)), []);
}

#[test]
fn a_disk_that_does_not_answer_is_named() {
    let (memory, log) = three_segments();
    let mut scrub = log.scrub();
    memory.fail_reads(true);
    let found = bad(&pass(&mut scrub, 4096));
    assert_eq!(found.len(), log.segments.len(), "{found:?}");
    memory.fail_reads(false);
    assert_eq!(bad(&pass(&mut scrub, 4096)), []);
}

#[test]
fn long_records_are_read_with_a_short_buffer() {
    let memory = Memory::new(1);
    let options = Options {
        segment_bytes: 8 << 20,
        ..Options::default()
    };
    let (mut log, _) = Log::open(memory.clone(), options, CLUSTER, GROUP, NODE).expect("a new log");
    log.append_some(2, 1, 3 << 20);
    log.flush();
    let mut scrub = log.scrub();
    assert_eq!(bad(&pass(&mut scrub, 1 << 20)), []);
    flip(&memory, &segment_name(1), RECORDS_AT + (5 << 20));
    let found = bad(&pass(&mut scrub, 1 << 20));
    assert_eq!(found.iter().map(|f| f.2).collect::<Vec<_>>(), [Some(2)]);
}

#[test]
fn whatever_the_log_does_between_two_steps_is_no_damage() {
    let mut random: u64 = 1;
    let mut next = |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) % below
    };
    let memory = Memory::new(1);
    let mut log = open(&memory);
    let mut scrub = log.scrub();
    let (mut term, mut finished) = (1, 0);
    for _ in 0..4000 {
        match next(12) {
            0 => {
                term += 1;
                let kept = log.last() - next(log.last() + 2 - log.first()).min(20);
                log.truncate_after(kept.max(log.first() - 1)).expect("cut");
            }
            1 if log.last() > 60 => {
                log.flush();
                if log.durable() >= log.first() {
                    log.snapshot_what_is_durable();
                }
                log.purge_before(log.last() - 30).expect("purged");
            }
            2 if next(10) == 0 && log.last() > 0 => {
                term += 1;
                log.reset_to(log.last() + 5, term).expect("replaced");
            }
            3..=5 => log.append_some(1 + next(4), term, 10 + next(1500) as usize),
            _ => {
                let step = scrub.step(1 + next(20_000));
                assert_eq!(step.bad, None);
                finished += u64::from(step.finished);
            }
        }
    }
    assert!(finished > 20, "{finished} passes");
    assert_eq!(bad(&pass(&mut scrub, 4096)), []);
}

#[test]
fn another_thread_reads_real_files_while_the_log_goes_on() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut log = open(&Disk::new(dir.path()));
    log.append_some(20, 1, 500);
    let mut scrub = log.scrub();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let scrubbing = scope.spawn(|| {
            let mut passes = 0;
            while !done.load(Ordering::Relaxed) || passes < 3 {
                let step = scrub.step(8192);
                assert_eq!(step.bad, None);
                passes += u64::from(step.finished);
            }
        });
        for term in 2..80 {
            log.append_some(10, term, 700);
            log.truncate_after(log.last() - 7).expect("cut");
            log.append_some(3, term, 90);
            if term % 10 == 0 {
                log.flush();
                log.snapshot_what_is_durable();
                log.purge_before(log.last() - 20).expect("purged");
            }
        }
        done.store(true, Ordering::Relaxed);
        scrubbing.join().expect("no alarm");
    });
}
