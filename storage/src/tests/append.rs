//! Appending, flushing, reading.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::medium::memory::Loss;
use crate::record::encoded_len;
use crate::{Disk, FlushBackend};

#[test]
fn what_was_flushed_is_there_after_the_power_fails() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(10, 1, 100);
    log.vote_for(2, 3);
    log.flush();
    let (log, found) = try_open(&memory.power_cut(Loss::All)).expect("it opens");
    assert_eq!(log.contents(), run(1, 10, 1));
    assert_eq!(
        (found.first_index, found.last_index, log.durable()),
        (1, 10, 10)
    );
    assert_eq!(
        found.vote,
        Vote {
            term: 2,
            voted_for: Some(3)
        }
    );
    assert_eq!(
        (found.term_runs, found.last_time_us),
        (vec![(1, 1)], 10_001)
    );
}

#[test]
fn records_are_read_before_they_are_durable() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    let reader = log.reader();
    assert!(reader.slice(1, 1, 4096).is_none());
    log.append_some(3, 1, 100);
    assert_eq!((reader.written(), log.durable()), (3, 0));
    assert_eq!(super::contents(&reader, 1, 3), run(1, 3, 1));
}

#[test]
fn a_batch_is_one_write_and_one_flush() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    for _ in 0..3 {
        let before = memory.counts();
        log.append_some(20, 1, 100);
        log.flush();
        let after = memory.counts();
        assert_eq!(
            (after.writes - before.writes, after.flushes - before.flushes),
            (1, 1)
        );
        assert_eq!(after.syncs, before.syncs);
    }
    assert_eq!((log.flushes(), log.flush_stats().count), (3, 3));
}

#[test]
fn a_batch_over_a_border_is_two_writes_and_one_flush() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(10, 1, 1000);
    log.flush();
    // The memory prepares the segment after the next within the call: one header, one sync.
    let before = memory.counts();
    log.append_some(4, 1, 1000);
    log.flush();
    let after = memory.counts();
    assert_eq!(
        (after.writes - before.writes, after.flushes - before.flushes),
        (2 + 1, 1)
    );
    assert_eq!(log.segments.len(), 2);
    assert_eq!(open(&memory.power_cut(Loss::All)).contents(), run(1, 14, 1));
}

#[test]
fn what_arrives_during_a_flush_joins_the_next() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    memory.hold_flushes(true);
    log.append_some(2, 1, 100);
    assert!(log.start_flush().expect("begins"));
    log.append_some(3, 1, 100);
    log.vote_for(4, 1);
    assert!(!log.start_flush().expect("one runs"));
    assert_eq!(log.poll_flush().expect("no error"), FlushState::Running);
    memory.hold_flushes(false);
    assert_eq!(log.poll_flush().expect("no error"), FlushState::Done);
    assert_eq!(log.durable(), 2);
    assert_eq!(log.poll_flush().expect("no error"), FlushState::Idle);
    let left = try_open(&memory.power_cut(Loss::All)).expect("it opens").1;
    assert_eq!((left.last_index, left.vote.term), (2, 0));
    assert!(log.start_flush().expect("begins"));
    assert_eq!(log.poll_flush().expect("no error"), FlushState::Done);
    assert_eq!(log.durable(), 5);
    let left = try_open(&memory.power_cut(Loss::All)).expect("it opens").1;
    assert_eq!((left.last_index, left.vote.term), (5, 4));
    assert!(!log.start_flush().expect("nothing to do"));
}

#[test]
fn a_vote_alone_is_flushed_too_and_the_newest_counts() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    for term in 1..=6 {
        log.vote_for(term, 1);
        log.vote_for(term, 2);
        assert!(log.is_dirty());
        log.flush();
        assert!(!log.is_dirty());
        let left = try_open(&memory.power_cut(Loss::Random(term)))
            .expect("it opens")
            .1;
        assert_eq!(
            left.vote,
            Vote {
                term,
                voted_for: Some(2)
            }
        );
    }
    // Saved, but not flushed: nobody was promised anything.
    log.vote_for(9, 1);
    let left = try_open(&memory.power_cut(Loss::All)).expect("it opens").1;
    assert_eq!(left.vote.term, 6);
}

#[test]
fn a_slice_ends_at_its_limits() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(5, 1, 100);
    log.append_some(1, 1, 5000);
    log.append_some(30, 1, 100);
    let (reader, one) = (log.reader(), encoded_len(100) as u64);
    let ends = |reader: &crate::Reader, first, last, bytes| {
        let slice = reader.slice(first, last, bytes)?;
        assert_eq!(
            reader.fit(first, last, bytes),
            (slice.last(), slice.len() as u64)
        );
        Some((slice.last(), slice.len() as u64))
    };
    assert_eq!(ends(&reader, 1, 5, one * 3), Some((3, one * 3)));
    assert_eq!(ends(&reader, 1, 5, one * 3 - 1), Some((2, one * 2)));
    assert_eq!(ends(&reader, 2, 3, u64::MAX), Some((3, one * 2)));
    // At least one record, however long it is.
    assert_eq!(ends(&reader, 6, 9, 0), Some((6, encoded_len(5000) as u64)));
    assert_eq!(ends(&reader, 5, 9, one + 10), Some((5, one)));
    assert_eq!(ends(&reader, 5, 4, 1000), None);
    assert_eq!(ends(&reader, 37, 40, 1000), None);
    assert_eq!(ends(&reader, 0, 4, 1000), None);
    // Not over the border of a segment.
    assert_eq!(log.segments.len(), 1);
    log.append_some(30, 1, 100);
    let border = log.segments[1].view.base;
    let (last, _) = ends(&reader, 7, 60, u64::MAX).expect("it is written");
    assert_eq!(last, border - 1);
    assert_eq!(super::contents(&reader, 1, 66), run(1, 66, 1));
}

#[test]
fn a_slice_outlives_the_log() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(3, 1, 100);
    let slice = log.reader().slice(1, 3, 4096).expect("written");
    drop(log);
    std::thread::spawn(move || assert_eq!(slice.as_ref(), batch(1, 3, 1, 100)))
        .join()
        .expect("same");
}

#[test]
fn readers_on_other_threads_see_whole_records_only() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut log = open(&Disk::new(dir.path()));
    let (stop, read) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (reader, stop, read) = (log.reader(), stop.clone(), read.clone());
            std::thread::spawn(move || {
                let mut next = 1;
                while !stop.load(Ordering::Acquire) || next <= reader.written() {
                    let written = reader.written();
                    if written < next {
                        std::thread::yield_now();
                        continue;
                    }
                    super::contents(&reader, next, written);
                    next = written + 1;
                    read.fetch_add(1, Ordering::Relaxed);
                }
                next - 1
            })
        })
        .collect();
    for round in 0..400 {
        log.append_some(
            1 + round % 5,
            1 + round / 100,
            10 + (round as usize * 37) % 700,
        );
        if round % 50 == 0 {
            log.flush();
        }
    }
    stop.store(true, Ordering::Release);
    for reader in readers {
        assert_eq!(reader.join().expect("read without a complaint"), log.last());
    }
    assert!(log.segments.len() > 10 && read.load(Ordering::Relaxed) > 2);
}

#[test]
fn real_files_keep_what_was_closed_whichever_way_flushes() {
    for flush in [FlushBackend::Auto, FlushBackend::Thread] {
        for sync in [true, false] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let disk = Disk::new(dir.path());
            let options = || Options {
                flush,
                sync,
                ..small()
            };
            let open = || Log::open(disk.clone(), options(), CLUSTER, GROUP, NODE);
            let (mut log, _) = open().expect("a new log");
            match (sync, flush) {
                (false, _) => assert_eq!(log.flush_backend(), "none"),
                (true, FlushBackend::Thread) => assert_eq!(log.flush_backend(), "thread"),
                (true, _) => assert!(["io_uring", "thread"].contains(&log.flush_backend())),
            }
            log.append_some(30, 1, 1000);
            assert!(log.start_flush().expect("begins"));
            poll_until_done(&mut log);
            assert_eq!(log.durable(), 30);
            log.append_some(30, 2, 1000);
            log.vote_for(2, 1);
            log.close().expect("closed");
            let (log, found) = open().expect("it opens");
            assert_eq!(found.term_runs, [(1, 1), (2, 31)]);
            assert_eq!(found.vote.term, 2);
            assert_eq!(log.contents(), [run(1, 30, 1), run(31, 60, 2)].concat());
        }
    }
}

#[test]
fn after_settling_the_mark_says_that_all_is_durable() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(5, 1, 100);
    let steps = memory.steps();
    log.settle().expect("not while something waits");
    assert_eq!(memory.steps(), steps);
    log.flush();
    let steps = memory.steps();
    log.settle().expect("written and flushed");
    assert_eq!(memory.steps(), steps + 2);
    log.settle().expect("once is enough");
    assert_eq!(memory.steps(), steps + 2);
    // The last record goes bad. It had been durable, and the marker knows.
    let at = (log.tail - 8) as usize;
    let left = memory.power_cut(Loss::All);
    left.damage("log/0000000000000001.seg", |bytes| bytes[at] ^= 1)
        .expect("damaged");
    assert!(matches!(
        try_open(&left),
        Err(StorageError::Corrupt { index: Some(5), .. })
    ));
}

#[test]
fn a_record_of_the_greatest_length_fits() {
    let memory = Memory::new(1);
    let mut options = small();
    options.max_record_bytes = options.segment_bytes as usize - 4096 - 48 - 56;
    let most = options.max_record_bytes;
    let (mut log, _) = Log::open(memory, options.clone(), CLUSTER, GROUP, NODE).expect("a new log");
    log.append_some(3, 1, most);
    assert_eq!(log.segments.len(), 3);
    options.max_record_bytes += 8;
    let refused = Log::open(Memory::new(1), options, CLUSTER, GROUP, NODE).err();
    assert!(
        matches!(refused, Some(StorageError::Config(_))),
        "{refused:?}"
    );
}

#[test]
fn segments_of_another_length_are_read_and_new_ones_are_as_asked() {
    let (memory, log) = three_segments();
    let last = log.last();
    log.close().expect("closed");
    let options = Options {
        segment_bytes: 64 << 10,
        ..small()
    };
    let (mut log, _) = Log::open(memory, options, CLUSTER, GROUP, NODE).expect("it opens");
    log.append_some(100, 1, 500);
    assert_eq!(log.contents(), run(1, last + 100, 1));
    assert_eq!(
        log.segments.back().map(|s| s.view.map.len()),
        Some(64 << 10)
    );
}

#[test]
#[should_panic(expected = "appending record 5 to a log that ends at 3")]
fn a_gap_is_our_own_mistake() {
    let mut log = open(&Memory::new(1));
    log.append_some(3, 1, 10);
    let _ = log.append(&batch(5, 5, 1, 10), 5, 5);
}

#[test]
#[should_panic(expected = "record 4 of term 1 after 2")]
fn a_falling_term_is_our_own_mistake() {
    let mut log = open(&Memory::new(1));
    log.append_some(3, 2, 10);
    log.append_some(1, 1, 10);
}
