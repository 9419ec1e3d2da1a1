//! A medium that fails.

use std::io::ErrorKind;

use super::*;
use crate::Disk;
use crate::medium::File as _;
use crate::medium::memory::{Fault, Loss};

/// Every call gives the error of the first failure.
fn assert_poisoned(log: &mut Log<Memory>, first: &StorageError) {
    let (next, first) = (log.last() + 1, first.to_string());
    let errors = [
        log.append(&batch(next, next, 9, 10), next, next).err(),
        log.save_vote(Vote::default()).err(),
        log.truncate_after(0).err(),
        log.start_flush().err(),
        log.poll_flush().err(),
        log.wait_flush().err(),
        log.settle().err(),
        log.purge_before(1).err(),
        log.failed().cloned(),
    ];
    for error in errors {
        assert_eq!(error.map(|e| e.to_string()), Some(first.clone()));
    }
}

/// A session with everything in it; stops at the first error. Tells what was promised and what was
/// written, so that what is left can be judged.
struct Session {
    log: Log<Memory>,
    /// Index and term of what was reported durable, and not cut off later.
    promised: Vec<(u64, u64)>,
    /// All that was ever handed over.
    written: Vec<(u64, u64)>,
    /// The vote that was reported durable, and the last one saved.
    votes: (Vote, Vote),
}

impl Session {
    fn append(&mut self, count: u64, term: u64, len: usize) -> Result<(), StorageError> {
        let (first, last) = (self.log.last() + 1, self.log.last() + count);
        self.written.extend(run(first, last, term));
        self.log.append(&batch(first, last, term, len), first, last)
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        self.log.start_flush()?;
        self.log.wait_flush()?;
        self.promised = self.log.contents();
        self.votes.0 = self.votes.1;
        Ok(())
    }

    fn vote(&mut self, term: u64) -> Result<(), StorageError> {
        self.votes.1 = Vote {
            term,
            voted_for: Some(1),
        };
        self.log.save_vote(self.votes.1)
    }

    fn truncate(&mut self, last_kept: u64) -> Result<(), StorageError> {
        self.promised.retain(|&(index, _)| index <= last_kept);
        self.log.truncate_after(last_kept)
    }

    fn run(&mut self) -> Result<(), StorageError> {
        self.append(3, 1, 700)?;
        self.vote(1)?;
        self.flush()?;
        self.append(30, 1, 700)?;
        self.flush()?;
        self.vote(2)?;
        self.truncate(21)?;
        self.append(2, 2, 700)?;
        self.flush()?;
        self.log.settle()?;
        self.append(25, 3, 700)?;
        self.vote(3)?;
        self.flush()
    }
}

/// What is left must hold what was promised, and nothing that was not written.
fn judge(session: &Session, left: &Memory, story: &str) {
    let (log, found) = try_open(left).unwrap_or_else(|e| panic!("{story}: {e}"));
    let contents = log.contents();
    assert!(
        contents.starts_with(&session.promised),
        "{story}: {contents:?} lost something"
    );
    for record in &contents {
        assert!(
            session.written.contains(record),
            "{story}: {record:?} was never written"
        );
    }
    assert!(
        contents.is_sorted_by_key(|&(_, term)| term),
        "{story}: {contents:?}"
    );
    let votes = [session.votes.0, session.votes.1];
    assert!(
        votes.contains(&found.vote),
        "{story}: {:?} of {votes:?}",
        found.vote
    );
}

#[test]
fn any_step_of_a_session_may_fail() {
    for fault in [Fault::Io, Fault::Full, Fault::PowerOff] {
        let mut step = 0;
        loop {
            let memory = Memory::new(step);
            let votes = (Vote::default(), Vote::default());
            let (promised, written) = (Vec::new(), Vec::new());
            let mut session = Session {
                log: open(&memory),
                promised,
                written,
                votes,
            };
            let opened = memory.steps();
            memory.fail_at(opened + step, fault);
            let outcome = session.run();
            let story = format!("{fault:?} at step {step}");
            for seed in 0..2 {
                judge(&session, &memory.power_cut(Loss::Random(seed)), &story);
            }
            judge(&session, &memory.power_cut(Loss::All), &story);
            match outcome {
                Err(error) => assert_poisoned(&mut session.log, &error),
                Ok(()) if memory.steps() <= opened + step => break,
                // A spare segment that could not be prepared, and was on the second attempt.
                Ok(()) => {}
            }
            step += 1;
        }
        assert!(step > 40, "only {step} steps");
    }
}

#[test]
fn what_a_start_finds_is_durable_even_after_a_flush_that_failed() {
    // After a failed flush the kernel keeps the pages and calls them clean: the next process reads what the disk never
    // got, and a flush alone would not bring it there.
    for entries in [1, 12, 40] {
        let memory = Memory::new(1);
        let mut log = open(&memory);
        log.append_some(5, 1, 1000);
        log.flush();
        log.append_some(entries, 2, 1000);
        let vote = Vote {
            term: 2,
            voted_for: Some(3),
        };
        log.save_vote(vote).expect("saved");
        // TailScan the write of term and vote.
        for step in 1..8 {
            memory.fail_at(memory.steps() + step, Fault::Io);
        }
        let failed = log.start_flush().and_then(|_| log.wait_flush());
        let error = failed.expect_err("the flush fails").to_string();
        assert!(error.contains("cannot flush"), "{error}");
        drop(log);

        // The device is well again.
        while memory.sync_dir("").is_err() {}
        let log = open(&memory);
        let (found, last) = (log.vote(), log.last());
        assert_eq!(last, 5 + entries, "the page cache has all of it");
        assert_eq!(log.durable(), last);
        drop(log);
        let left = open(&memory.power_cut(Loss::All));
        assert_eq!((left.last(), left.vote()), (last, found));
        assert_eq!(left.contents(), [run(1, 5, 1), run(6, last, 2)].concat());
    }
}

#[test]
fn a_vote_outlives_bit_rot_in_either_of_its_places() {
    let quiet: fn(&mut Log<Memory>) = |log| log.settle().expect("sound");
    let busy: fn(&mut Log<Memory>) = |log| {
        log.append_some(1, 9, 10);
        log.flush();
    };
    for (what, passes) in [("quiet", quiet), ("busy", busy)] {
        let memory = Memory::new(1);
        let mut log = open(&memory);
        for term in 7..10 {
            let vote = Vote {
                term,
                voted_for: Some(term % 3),
            };
            log.save_vote(vote).expect("saved");
            log.flush();
            passes(&mut log);
            for byte in [
                0,
                8,
                20,
                24,
                33,
                4096,
                4104,
                4096 + 20,
                4096 + 24,
                4096 + 33,
            ] {
                let left = memory.power_cut(Loss::All);
                left.damage("meta", |bytes| bytes[byte] ^= 4)
                    .expect("damaged");
                let (log, _) = try_open(&left).expect("one is sound");
                assert_eq!(log.vote(), vote, "{what}, byte {byte}");
                drop(log);
                // And that start has made it two again.
                left.damage("meta", |bytes| bytes[(byte + 4096) % 8192] ^= 4)
                    .expect("damaged");
                let (log, _) = try_open(&left).expect("one is sound");
                assert_eq!(log.vote(), vote, "{what}, byte {byte} and the other place");
            }
        }
    }
}

#[test]
fn a_failed_flush_names_the_file_and_is_never_tried_again() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(3, 1, 100);
    memory.fail_at(memory.steps(), Fault::Io);
    log.start_flush().expect("it begins");
    let error = log.poll_flush().expect_err("it fails");
    assert!(
        error
            .to_string()
            .contains("cannot flush memory:/log/0000000000000001.seg"),
        "{error}"
    );
    let flushes = memory.counts().flushes;
    assert_poisoned(&mut log, &error);
    assert_eq!((memory.counts().flushes, log.durable()), (flushes, 0));
}

#[test]
fn a_failed_write_names_the_place() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(1, 1, 0);
    memory.fail_at(memory.steps(), Fault::Io);
    let error = log.append(&batch(2, 2, 1, 0), 2, 2).expect_err("it fails");
    let text = "cannot write memory:/log/0000000000000001.seg at offset 4152";
    assert!(error.to_string().starts_with(text), "{error}");
    assert_eq!((log.last(), log.reader().written()), (1, 1));
    assert_poisoned(&mut log, &error);
}

#[test]
fn a_full_disk_shows_early_and_stops_the_log_only_when_there_is_no_room() {
    let memory = Memory::new(1);
    let mut log = open(&memory);
    // The next segment is there, the one after does not fit any more.
    memory.set_capacity(Some(2 * (16 << 10) + 9000));
    assert!(log.spare_trouble().is_none());
    log.append_some(20, 1, 1000);
    let trouble = log
        .spare_trouble()
        .expect("known before it hurts")
        .to_string();
    assert!(trouble.contains("free some space"), "{trouble}");
    log.flush();

    // Space comes free in time: nothing happens.
    let lucky = memory.power_cut(Loss::All);
    lucky.set_capacity(Some(3 * (16 << 10)));
    let mut lucky_log = open(&lucky);
    lucky_log.append_some(1, 1, 10);
    lucky.set_capacity(None);
    lucky_log.append_some(30, 1, 1000);

    // It does not: an error, and all that was durable is there after a start with more space.
    let room = (16 << 10) - log.tail as usize;
    let next = log.last() + 1;
    let error = log.append(&batch(next, next + 20, 1, room / 2), next, next + 20);
    let error = error.expect_err("no room");
    let StorageError::Io { source, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(source.kind(), ErrorKind::StorageFull);
    assert_poisoned(&mut log, &error);
    let left = memory.power_cut(Loss::Random(1));
    left.set_capacity(None);
    let mut log = open(&left);
    assert!(log.last() >= 20);
    log.append_some(40, 2, 1000);
    log.flush();
}

#[test]
fn a_real_disk_that_is_full_is_an_error_and_no_signal() {
    // Needs the right to mount; elsewhere the story above stands for it.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=200k", "ringraft-test"])
        .arg(dir.path())
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return;
    }
    struct Mounted<'a>(&'a std::path::Path);
    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(self.0).status();
        }
    }
    let _mounted = Mounted(dir.path());
    let disk = Disk::new(dir.path().join("log-of-a-node"));
    let mut log = open(&disk);
    let mut flushed = 0;
    let error = loop {
        let next = log.last() + 1;
        if let Err(e) = log.append(&batch(next, next, 1, 3000), next, next) {
            break e;
        }
        log.flush();
        flushed = next;
    };
    let StorageError::Io { source, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(source.kind(), ErrorKind::StorageFull);
    assert!(flushed > 20);
    drop(log);
    // Full as it is: all of it can be read, and space comes free by purging.
    let disk_full = try_open(&disk);
    let (log, found) = disk_full.expect("it opens on a full disk");
    assert_eq!(found.last_index, flushed);
    assert_eq!(log.contents(), run(1, flushed, 1));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::new(dir.path());
    drop(open(&disk));
    std::fs::remove_file(dir.path().join("meta")).expect("removed");
    let error = try_open(&disk)
        .map(|_| ())
        .expect_err("it fails")
        .to_string();
    assert!(
        error.starts_with("cannot open") && error.contains("meta"),
        "{error}"
    );
    assert!(
        disk.create("f", 10)
            .expect("created")
            .read_at(8, &mut [0; 4])
            .is_err()
    );
}
