//! A record that went bad under a running log is put back in its place, or left as it is; never anything worse.

use super::rot::{flip, offset_of, open_with, settled};
use super::*;
use crate::Disk;
use crate::log::segment::{RECORDS_AT, segment_name};
use crate::medium::memory::{Fault, Loss};
use crate::scrub::record_repair::{
    NotFetched, RecordRepair, RecordSource, RepairError, RepairedRecords,
};
use crate::scrub::{Progress, Scrub};

/// Steps of one pass, until something is bad or it is over.
fn until_bad<D: Dir>(scrub: &mut Scrub<D>) -> Option<crate::Damage> {
    loop {
        let Progress { bad, finished, .. } = scrub.step(4096);
        if bad.is_some() || finished {
            return bad;
        }
    }
}

/// Takes from `record_source` what is needed, however often.
fn mend<D: Dir, E: Dir>(
    mend: &mut RecordRepair<D>,
    record_source: &RecordSource<E>,
) -> Result<u64, RepairError> {
    for _ in 0..100 {
        let mut records = Vec::new();
        if let Some(want) = mend.wants() {
            let given = record_source.give(want.first, want.last, want.bytes, &mut records);
            given.expect("the record_source has it");
        }
        if let RepairedRecords::Done(count) = mend.take(&records)? {
            return Ok(count);
        }
    }
    panic!("it never has enough")
}

/// Finds and mends whatever is bad, and returns the places.
fn mend_all<D: Dir, E: Dir>(
    scrub: &mut Scrub<D>,
    record_source: &RecordSource<E>,
    applied: u64,
) -> Vec<crate::Damage> {
    let mut all = Vec::new();
    while let Some(damage) = until_bad(scrub) {
        assert!(all.len() < 100, "{damage} is found again and again");
        let mut bad = scrub
            .mend(applied)
            .unwrap_or_else(|| panic!("no hand for {damage}"));
        let index = bad.index();
        mend(&mut bad, record_source).unwrap_or_else(|error| panic!("{damage}: {error}"));
        scrub.again(index);
        all.push(damage);
    }
    all
}

/// The log of [`settled`], and a peer's that holds the same.
fn two() -> (Memory, Log<Memory>, Log<Memory>) {
    let (memory, log) = settled();
    let peer = open_with(&memory.power_cut(Loss::All), false).expect("sound");
    (memory, log, peer.0)
}

#[test]
fn any_byte_of_a_closed_segment() {
    let (memory, log, peer) = two();
    let (record_source, all, last) = (peer.record_source(), log.contents(), log.last());
    let mut scrub = log.scrub();
    let end = offset_of(&log, log.segments[2].view.base - 1) + 560;
    let name = segment_name(2);
    for at in (0..64).chain((RECORDS_AT..end).step_by(29)) {
        flip(&memory, &name, at);
        let damage = mend_all(&mut scrub, &record_source, last);
        assert_eq!(damage.len(), 1, "byte {at}: {damage:?}");
        assert_eq!(damage[0].file, name, "byte {at}");
    }
    assert_eq!(log.contents(), all);
    let (left, found) = try_open(&memory.power_cut(Loss::All)).expect("it is on the disk");
    assert_eq!((left.contents(), found.data_loss), (all, None));
}

#[test]
fn a_byte_of_the_segment_in_use() {
    let (memory, mut log, peer) = two();
    let (record_source, last) = (peer.record_source(), log.last());
    let name = segment_name(log.segments[2].view.seq);
    let mut scrub = log.scrub();
    for index in [log.segments[2].view.base, last] {
        flip(&memory, &name, offset_of(&log, index) + 70);
        assert_eq!(mend_all(&mut scrub, &record_source, last).len(), 1);
    }
    log.append_some(3, 1, 500);
    log.flush();
    let all = log.contents();
    let (left, _) = try_open(&memory.power_cut(Loss::All)).expect("sound");
    assert_eq!(left.contents(), all);
}

#[test]
fn any_page_that_cannot_be_read() {
    let (memory, log, peer) = two();
    let (record_source, all, last) = (peer.record_source(), log.contents(), log.last());
    let mut scrub = log.scrub();
    for seq in [1, 2] {
        for page in 0..4 {
            let (name, at) = (segment_name(seq), page * 4096);
            memory.make_unreadable(&name, at).expect("there");
            let damage = mend_all(&mut scrub, &record_source, last);
            assert_eq!(damage.len(), 1, "{name} at {at}: {damage:?}");
            assert!(damage[0].detail.contains("cannot be read"), "{damage:?}");
            let left = memory.power_cut(Loss::All);
            let (left, found) = try_open(&left).expect("it is on the disk");
            assert_eq!((left.contents(), found.data_loss), (all.clone(), None));
        }
    }
}

#[test]
fn many_bad_records_in_a_row() {
    let (memory, log, peer) = two();
    let (all, last) = (log.contents(), log.last());
    let name = segment_name(1);
    memory
        .damage(&name, |bytes| {
            bytes[5000..14_000].iter_mut().for_each(|b| *b ^= 0x55);
        })
        .expect("damaged");
    let mut scrub = log.scrub();
    assert_eq!(mend_all(&mut scrub, &peer.record_source(), last).len(), 1);
    assert_eq!(log.contents(), all);
}

#[test]
fn a_stop_at_any_step_leaves_it_bad_or_good_and_nothing_worse() {
    for what in ["record", "page", "page with the seal", "header"] {
        for fault in [Fault::PowerOff, Fault::Io] {
            let mut step = 0;
            loop {
                let (memory, log, peer) = two();
                let (all, last) = (log.contents(), log.last());
                let name = segment_name(1);
                let (border, bad) = (log.segments[1].view.base, offset_of(&log, 5));
                match what {
                    "record" => flip(&memory, &name, bad + 60),
                    "page" => memory.make_unreadable(&name, 8192).expect("there"),
                    "header" => flip(&memory, &name, 20),
                    _ => {
                        let seal = offset_of(&log, border - 1) + 560;
                        memory.make_unreadable(&name, seal).expect("there");
                    }
                }
                let mut scrub = log.scrub();
                let damage = until_bad(&mut scrub).expect("it is found");
                let index = damage.index.expect("an index");
                let mut hand = scrub.mend(last).expect("it can be mended");
                memory.fail_at(memory.steps() + step, fault);
                let mended = mend(&mut hand, &peer.record_source()).is_ok();
                let story = format!("{what}, {fault:?} at step {step}");
                for seed in 0..16 {
                    let left = memory.power_cut(Loss::Random(seed));
                    let (log, found) = open_with(&left, true)
                        .unwrap_or_else(|error| panic!("{story}, seed {seed}: {error}"));
                    if found.data_loss.is_none() {
                        assert_eq!(log.contents(), all, "{story}, seed {seed}");
                    } else {
                        assert!(!mended, "{story}, seed {seed}");
                        // Of a run of records some may be good already.
                        let kept = if what == "header" { 0 } else { index - 1 };
                        assert!(log.last() >= kept, "{story}, seed {seed}");
                        assert_eq!(log.contents(), all[..log.last() as usize], "{story}");
                    }
                }
                if mended {
                    break;
                }
                step += 1;
                assert!(step < 50, "{story}: it is never mended");
            }
            assert!(step >= 2, "{what}: only {step} steps");
        }
    }
}

#[test]
fn what_does_not_belong_there_is_not_written() {
    let (memory, log, peer) = two();
    let (last, name) = (log.last(), segment_name(1));
    flip(&memory, &name, offset_of(&log, 5) + 60);
    let bytes = |memory: &Memory| {
        let mut bytes = vec![0; 16 << 10];
        let file = memory.open(&name).expect("it is there");
        crate::medium::File::read_at(&file, 0, &mut bytes).expect("it can be read");
        bytes
    };
    let before = bytes(&memory);
    let mut right = Vec::new();
    peer.record_source()
        .give(5, 5, 1, &mut right)
        .expect("given");
    let mut damaged = right.clone();
    damaged[100] ^= 1;
    let wrong = [
        Vec::new(),
        batch(6, 6, 1, 500),
        batch(4, 5, 1, 500),
        damaged,
        right[..right.len() - 8].to_vec(),
        [right.clone(), right.clone()].concat(),
        batch(5, last + 1, 1, 500),
    ];
    let mut scrub = log.scrub();
    for records in wrong {
        until_bad(&mut scrub).expect("it is found");
        let mut hand = scrub.mend(last).expect("it can be mended");
        let refused = hand.take(&records).expect_err("it is none");
        assert!(matches!(refused, RepairError::Wrong(_)), "{refused}");
        // The right ones still do.
        assert_eq!(hand.wants().map(|want| want.first), Some(5));
        scrub.again(1);
    }
    // Sound, of this index, and longer or shorter than what was there.
    for len in [8, 400, 600, 6000] {
        until_bad(&mut scrub).expect("it is found");
        let mut hand = scrub.mend(last).expect("it can be mended");
        let took = hand.take(&batch(5, 5, 1, len));
        assert!(
            !matches!(took, Ok(RepairedRecords::Done(_))),
            "{len}: {took:?}"
        );
        scrub.again(1);
    }
    assert_eq!(bytes(&memory), before);
    assert_eq!(mend_all(&mut scrub, &peer.record_source(), last).len(), 1);
}

#[test]
fn what_is_not_applied_is_not_touched() {
    let (memory, log, _peer) = two();
    flip(&memory, &segment_name(1), offset_of(&log, 5) + 60);
    let mut scrub = log.scrub();
    until_bad(&mut scrub).expect("it is found");
    assert!(scrub.mend(4).is_none());
}

#[test]
fn a_segment_that_was_let_go_of_keeps_the_header_of_a_spare() {
    let (memory, mut log, _peer) = two();
    log.snapshot_what_is_durable();
    flip(&memory, &segment_name(1), 20);
    let mut scrub = log.scrub();
    until_bad(&mut scrub).expect("it is found");
    let mut hand = scrub.mend(log.last()).expect("it can be mended");
    log.purge_before(log.segments[1].view.base).expect("purged");
    assert!(matches!(hand.take(&[]), Err(RepairError::Reclaim)));
    let first = log.first();
    let (left, found) = open_with(&memory.power_cut(Loss::All), true).expect("it opens");
    assert_eq!((left.first(), found.data_loss), (first, None));
}

#[test]
fn a_log_that_was_replaced_is_not_written_to() {
    let (memory, mut log, peer) = two();
    flip(&memory, &segment_name(1), offset_of(&log, 5) + 60);
    let mut scrub = log.scrub();
    until_bad(&mut scrub).expect("it is found");
    let mut hand = scrub.mend(log.last()).expect("it can be mended");
    let (index, term) = (log.last() + 5, 2);
    take(&log.snapshots(), index, term, 10).expect("taken");
    log.reset_to(index, term).expect("replaced");
    let refused = mend(&mut hand, &peer.record_source()).expect_err("it is gone");
    assert!(matches!(refused, RepairError::Reclaim), "{refused}");
}

#[test]
fn a_donor_gives_only_what_it_has_sound_and_was_told_it_may() {
    let (memory, mut log) = settled();
    let last = log.last();
    let border = log.segments[1].view.base;
    let record_source = log.record_source();
    let given = |first, last, bytes| {
        let mut out = Vec::new();
        let given = record_source.give(first, last, bytes, &mut out);
        given.map(|upto| (upto, out.len()))
    };
    assert_eq!(given(3, 100, 1), Ok((3, 560)));
    assert_eq!(given(3, 5, 1 << 20), Ok((5, 3 * 560)));
    assert_eq!(
        given(border - 2, last, 1 << 20).map(|g| g.0),
        Ok(border - 1)
    );
    assert_eq!(given(last + 1, u64::MAX, 1), Err(NotFetched::Ahead));
    assert_eq!(given(6, 5, 1), Err(NotFetched::Ahead), "not committed");
    flip(&memory, &segment_name(1), offset_of(&log, 5) + 60);
    assert_eq!(given(5, 9, 1 << 20), Err(NotFetched::Bad));
    assert_eq!(given(3, 9, 1 << 20), Ok((4, 2 * 560)));
    memory.fail_reads(true);
    assert_eq!(given(3, 9, 1 << 20), Err(NotFetched::Bad));
    memory.fail_reads(false);
    log.snapshot_what_is_durable();
    log.purge_before(border).expect("purged");
    assert_eq!(given(3, 9, 1), Err(NotFetched::Purged));
}

#[test]
fn long_records_and_real_files() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options {
        segment_bytes: 4 << 20,
        max_record_bytes: 2 << 20,
        ..Options::default()
    };
    let disk = Disk::new(dir.path());
    let (mut log, _) = Log::open(disk, options.clone(), CLUSTER, GROUP, NODE).expect("a new log");
    let memory = Memory::new(3);
    let (mut peer, _) = Log::open(memory, options, CLUSTER, GROUP, NODE).expect("a new log");
    for log in [&mut log as &mut dyn Story, &mut peer] {
        for _ in 0..6 {
            log.append_some(1, 1, 1_500_000);
            log.flush();
        }
    }
    let mut scrub = log.scrub();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join(segment_name(1)))
        .expect("it is there");
    use std::os::unix::fs::FileExt;
    file.write_all_at(b"rot", 1_600_000).expect("written");
    let damage = mend_all(&mut scrub, &peer.record_source(), log.last());
    assert_eq!(damage.len(), 1, "{damage:?}");
    file.write_all_at(b"rot", 100).expect("written");
    file.write_all_at(b"rot", 20).expect("written");
    let damage = mend_all(&mut scrub, &peer.record_source(), log.last());
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert_eq!(log.contents(), run(1, 6, 1));
}
