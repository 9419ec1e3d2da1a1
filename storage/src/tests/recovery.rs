//! The rows of the table in `docs/file_format.md`, one test each.

use super::*;
use crate::Disk;
use crate::decision::{Action, Found};
use crate::files::identity::{IDENTITY_NAME, Identity};
use crate::log::segment::{RECORDS_AT, SegmentHeader, State, segment_name};
use crate::log::tail_marker::{MARKER_LEN, MarkerKind, TailMarker};
use crate::medium::memory::{Fault, Loss};

/// The decisions about segments, the spare one aside.
fn decisions(found: &Recovered) -> Vec<(Found, Action)> {
    let of_log = found.decisions.iter().filter(|d| d.found != Found::Spare);
    of_log.map(|d| (d.found.clone(), d.action)).collect()
}

fn corrupt(dir: &Memory) -> (String, Option<u64>, String) {
    let before = dir.steps();
    match try_open(dir).map(|(log, _)| log) {
        Err(StorageError::Corrupt {
            path,
            index,
            detail,
            ..
        }) => {
            assert_eq!(
                dir.steps(),
                before + 2,
                "nothing but two syncs: of names and of the meta file"
            );
            let name = path
                .file_name()
                .expect("a file")
                .to_string_lossy()
                .into_owned();
            (name, index, detail)
        }
        other => panic!("it was not refused: {other:?}"),
    }
}

fn flip(dir: &Memory, seq: u64, at: u64) {
    dir.damage(&segment_name(seq), |bytes| bytes[at as usize] ^= 0x10)
        .expect("damaged");
}

/// A log with one segment and ten records; the first seven are durable and a marker says so.
fn seven_durable_of_ten() -> (Memory, Log<Memory>) {
    let memory = Memory::new(3);
    let mut log = open(&memory);
    log.append_some(7, 1, 200);
    log.flush();
    log.append_some(3, 1, 200);
    (memory, log)
}

fn offset_of<D: Dir>(log: &Log<D>, index: u64) -> u64 {
    let segment = log
        .segments
        .iter()
        .rfind(|s| s.view.base <= index)
        .expect("it is there");
    segment.view.seek(index, u64::MAX).expect("it is there").1
}

#[test]
fn clean() {
    let (memory, log) = three_segments();
    let (last, borders) = (
        log.last(),
        [log.segments[1].view.base, log.segments[2].view.base],
    );
    log.close().expect("closed");
    let (log, found) = try_open(&memory).expect("it opens");
    let sealed = |first, last| (Found::Sealed { first, last }, Action::Keep);
    let tail = (
        Found::Tail {
            first: borders[1],
            last,
            leftovers: false,
        },
        Action::Keep,
    );
    assert_eq!(
        decisions(&found),
        [
            sealed(1, borders[0] - 1),
            sealed(borders[0], borders[1] - 1),
            tail
        ]
    );
    assert_eq!((found.last_index, log.durable()), (last, last));
    let line = found.decisions[0].to_string();
    let expected = format!("full segment, records 1..={}: kept", borders[0] - 1);
    assert_eq!(line, format!("log/0000000000000001.seg: {expected}"));
}

#[test]
fn a_clean_log_is_only_read_and_synced() {
    let (memory, log) = three_segments();
    log.close().expect("closed");
    // The first start makes a new spare segment; what it writes beside that is nothing.
    drop(open(&memory));
    let before = memory.counts();
    drop(open(&memory));
    assert_eq!(
        memory.counts().writes - before.writes,
        1,
        "the header of the new spare segment"
    );
}

#[test]
fn torn_tail() {
    let (memory, log) = seven_durable_of_ten();
    let at = offset_of(&log, 9);
    let left = memory.power_cut(Loss::Nothing);
    flip(&left, 1, at + 60);
    let (log, found) = try_open(&left).expect("it opens");
    assert_eq!(
        decisions(&found),
        [(
            Found::Torn {
                index: 9,
                offset: at
            },
            Action::Cut
        )]
    );
    assert_eq!(log.contents(), run(1, 8, 1));
    // Cut for good: the good record behind the torn one is gone.
    let bytes = log.segments[0]
        .view
        .map
        .slice(at as usize + MARKER_LEN..16 << 10);
    assert!(bytes.iter().all(|&b| b == 0));
    drop(log);
    let found = try_open(&left).expect("it opens").1;
    let tail = Found::Tail {
        first: 1,
        last: 8,
        leftovers: false,
    };
    assert_eq!(decisions(&found), [(tail, Action::Keep)]);
}

#[test]
fn a_record_of_a_lower_term_is_not_a_successor() {
    let (memory, log) = seven_durable_of_ten();
    let left = memory.power_cut(Loss::Nothing);
    let at = offset_of(&log, 9);
    left.damage(&segment_name(1), |bytes| {
        let stale = batch(9, 9, 0, 200);
        bytes[at as usize..][..stale.len()].copy_from_slice(&stale);
    })
    .expect("replaced");
    let (log, found) = try_open(&left).expect("it opens");
    assert_eq!(
        decisions(&found),
        [(
            Found::Torn {
                index: 9,
                offset: at
            },
            Action::Cut
        )]
    );
    assert_eq!(log.contents(), run(1, 8, 1));
}

#[test]
fn torn_mark() {
    let (memory, log) = seven_durable_of_ten();
    let left = memory.power_cut(Loss::Nothing);
    flip(&left, 1, log.tail + 20);
    let (reopened, found) = try_open(&left).expect("it opens");
    assert_eq!(
        decisions(&found),
        [(
            Found::Torn {
                index: 11,
                offset: log.tail
            },
            Action::Cut
        )]
    );
    assert_eq!(reopened.contents(), run(1, 10, 1));
}

#[test]
fn a_bad_record_that_had_been_durable() {
    let (memory, log) = seven_durable_of_ten();
    let left = memory.power_cut(Loss::Nothing);
    // The marker behind 10 says that 7 were durable when it was written.
    flip(&left, 1, offset_of(&log, 7) + 60);
    let (file, index, detail) = corrupt(&left);
    assert_eq!((file.as_str(), index), ("0000000000000001.seg", Some(7)));
    assert!(
        detail.contains("durable up to 7") && detail.contains("checksum"),
        "{detail}"
    );
    // And again: refusing changes nothing.
    corrupt(&left);
}

#[test]
fn a_bad_record_in_a_full_segment() {
    let (memory, log) = three_segments();
    let left = memory.power_cut(Loss::All);
    flip(&left, 1, offset_of(&log, 2) + 1);
    let (file, index, _) = corrupt(&left);
    assert_eq!((file.as_str(), index), ("0000000000000001.seg", Some(2)));
}

#[test]
fn every_flipped_bit_of_durable_records_is_corruption_or_harmless() {
    let (memory, log) = seven_durable_of_ten();
    let whole = log.contents();
    for at in (RECORDS_AT..log.tail + MARKER_LEN as u64 + 64).step_by(5) {
        let left = memory.power_cut(Loss::Nothing);
        flip(&left, 1, at);
        match try_open(&left) {
            Ok((log, _)) => {
                let contents = log.contents();
                assert!(
                    contents.len() >= 7 && contents == whole[..contents.len()],
                    "byte {at}"
                );
            }
            Err(StorageError::Corrupt {
                index: Some(index), ..
            }) => {
                assert!(index <= 7, "byte {at}: {index}");
            }
            Err(e) => panic!("byte {at}: {e}"),
        }
    }
}

#[test]
fn torn_pages_in_any_combination() {
    // Pages written back in the wrong order, or only some of them: it starts, with what was durable.
    let (memory, log) = seven_durable_of_ten();
    let whole = log.contents();
    let (from, to) = (
        offset_of(&log, 8) as usize / 512,
        (log.tail as usize + MARKER_LEN) / 512,
    );
    assert!(to - from >= 2 && to - from < 10);
    for lost in 0..1 << (to - from + 1) {
        let (left, old) = (memory.power_cut(Loss::Nothing), memory.power_cut(Loss::All));
        let mut sectors = vec![0; 16 << 10];
        old.damage(&segment_name(1), |bytes| sectors.copy_from_slice(bytes))
            .expect("read");
        left.damage(&segment_name(1), |bytes| {
            for sector in (from..=to).filter(|sector| lost >> (sector - from) & 1 == 1) {
                let range = sector * 512..(sector + 1) * 512;
                bytes[range.clone()].copy_from_slice(&sectors[range]);
            }
        })
        .expect("torn");
        let contents = open(&left).contents();
        assert!(
            contents.len() >= 7 && contents == whole[..contents.len()],
            "lost {lost:b}"
        );
    }
}

#[test]
fn a_tear_at_a_border_takes_the_next_segment_along() {
    let memory = Memory::new(3);
    let mut log = open(&memory);
    log.append_some(5, 1, 1000);
    log.flush();
    log.append_some(20, 1, 1000);
    assert_eq!(log.segments.len(), 3);
    let at = offset_of(&log, 7);
    let left = memory.power_cut(Loss::Nothing);
    flip(&left, 1, at);
    let (mut log, found) = try_open(&left).expect("it opens");
    let behind = (Found::BehindTear, Action::Remove);
    let torn = (
        Found::Torn {
            index: 7,
            offset: at,
        },
        Action::Cut,
    );
    assert_eq!(decisions(&found), [torn, behind.clone(), behind]);
    log.append_some(20, 2, 1000);
    log.flush();
    let log = open(&left.power_cut(Loss::All));
    assert_eq!(log.contents(), [run(1, 6, 1), run(7, 26, 2)].concat());
}

#[test]
fn the_power_fails_while_recovery_cuts() {
    let memory = Memory::new(3);
    let mut log = open(&memory);
    log.append_some(5, 1, 1000);
    log.flush();
    log.append_some(20, 1, 1000);
    let torn = memory.power_cut(Loss::Nothing);
    flip(&torn, 1, offset_of(&log, 7));
    let mut step = 0;
    loop {
        let memory = torn.power_cut(Loss::Nothing);
        memory.fail_at(step, Fault::PowerOff);
        let outcome = try_open(&memory);
        for seed in 0..16 {
            let log = open(&memory.power_cut(Loss::Random(seed)));
            assert_eq!(log.contents(), run(1, 6, 1), "step {step}");
        }
        if outcome.is_ok() {
            break;
        }
        step += 1;
    }
    assert!(step >= 8, "only {step} steps");
}

#[test]
fn a_missing_segment_in_the_middle() {
    let (memory, log) = three_segments();
    let (first, next) = (log.segments[1].view.base, log.segments[2].view.base);
    let left = memory.power_cut(Loss::All);
    left.remove(&segment_name(2)).expect("removed");
    let left = left.power_cut(Loss::Nothing);
    let (file, index, detail) = corrupt(&left);
    assert_eq!(
        (file.as_str(), index),
        ("0000000000000001.seg", Some(first))
    );
    assert!(
        detail.contains(&format!("the next segment begins with {next}")),
        "{detail}"
    );
}

#[test]
fn no_segment_at_all() {
    let memory = Memory::new(3);
    drop(open(&memory));
    memory.remove(&segment_name(1)).expect("removed");
    let left = memory.power_cut(Loss::Nothing);
    assert!(corrupt(&left).2.contains("no segment is in use"));
}

#[test]
fn a_damaged_segment_header() {
    let (memory, _log) = three_segments();
    for at in [0, 9, 14, 40, 63] {
        let left = memory.power_cut(Loss::All);
        flip(&left, 2, at);
        assert_eq!(corrupt(&left).0, "0000000000000002.seg");
    }
}

/// Puts another header on segment 1, with a good checksum.
fn reheader(dir: &Memory, change: impl FnOnce(&mut SegmentHeader)) {
    let mut header = SegmentHeader {
        state: State::InUse,
        cluster_id: CLUSTER,
        group_id: GROUP,
        seq: 1,
        base: 1,
        prev_term: 0,
        len: 16 << 10,
    };
    change(&mut header);
    dir.damage(&segment_name(1), |bytes| {
        bytes[..64].copy_from_slice(&header.encode())
    })
    .expect("replaced");
}

#[test]
fn a_segment_of_another_cluster_or_group() {
    let (memory, _log) = seven_durable_of_ten();
    for (what, of) in [("cluster", 0xC2), ("group", GROUP.into())] {
        let left = memory.power_cut(Loss::All);
        reheader(&left, |header| {
            header.cluster_id = of;
            if what == "group" {
                (header.cluster_id, header.group_id) = (CLUSTER, 99);
            }
        });
        match try_open(&left) {
            Err(StorageError::Foreign { what: which, .. }) => assert_eq!(which, what),
            other => panic!("it was not refused: {other:?}"),
        }
    }
}

#[test]
fn a_segment_under_another_name() {
    let (memory, _log) = seven_durable_of_ten();
    let left = memory.power_cut(Loss::All);
    reheader(&left, |header| header.seq = 9);
    assert!(corrupt(&left).2.contains("the name says 1"));
}

#[test]
fn another_format_version() {
    let (memory, _log) = seven_durable_of_ten();
    for name in [segment_name(1), IDENTITY_NAME.into(), "meta".into()] {
        let left = memory.power_cut(Loss::All);
        left.damage(&name, |bytes| {
            for at in (0..bytes.len().min(8192)).step_by(4096) {
                bytes[at + 12] = 9;
                let len = if name == IDENTITY_NAME { 48 } else { 64 };
                let crc = crc32c::crc32c(&bytes[at + 12..at + len]);
                bytes[at + 8..at + 12].copy_from_slice(&crc.to_le_bytes());
            }
        })
        .expect("replaced");
        let error = try_open(&left).map(|_| ()).expect_err("refused");
        assert!(
            matches!(
                error,
                StorageError::Version {
                    found: 9,
                    supported: 1 | 2,
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn a_record_of_another_version() {
    let (memory, log) = seven_durable_of_ten();
    let at = offset_of(&log, 3) as usize;
    let left = memory.power_cut(Loss::All);
    left.damage(&segment_name(1), |bytes| {
        bytes[at + 49] = 2;
        let crc = crc32c::crc32c(&bytes[at + 4..at + 256]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    })
    .expect("replaced");
    let error = try_open(&left).map(|_| ()).expect_err("refused");
    assert!(
        matches!(
            error,
            StorageError::Version {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn another_cluster_group_or_node_asks() {
    let memory = Memory::new(3);
    drop(open(&memory));
    let asked = [(0xC2, GROUP, NODE), (CLUSTER, 6, NODE), (CLUSTER, GROUP, 9)];
    for ((cluster, group, node), what) in asked.into_iter().zip(["cluster", "group", "node"]) {
        let error = Log::open(memory.clone(), small(), cluster, group, node).err();
        let Some(StorageError::Foreign { what: which, .. }) = &error else {
            panic!("it was not refused: {error:?}")
        };
        assert_eq!(*which, what);
    }
    // The refusals let go of the lock.
    drop(open(&memory));
}

#[test]
fn a_second_log_on_the_directory() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::new(dir.path());
    let log = open(&disk);
    let error = try_open(&disk).map(|_| ()).expect_err("locked");
    let pid = std::process::id();
    let expected = format!(
        "directory {} is in use by this process already (pid {pid}, or one of that number in another container): a node of it \
         has not been shut down",
        dir.path().display()
    );
    assert_eq!(error.to_string(), expected);
    drop(log);
    drop(open(&disk));
}

#[test]
fn both_copies_of_term_and_vote_are_bad() {
    let (memory, _log) = seven_durable_of_ten();
    let left = memory.power_cut(Loss::All);
    left.damage("meta", |bytes| bytes[30] ^= 1)
        .expect("damaged");
    let (_, found) = try_open(&left).expect("one is enough");
    assert_eq!(
        found.decisions.last().map(|d| &d.found),
        Some(&Found::MetaSlotTorn)
    );
    left.damage("meta", |bytes| {
        bytes[30] ^= 1;
        bytes[4096 + 30] ^= 1;
    })
    .expect("damaged");
    let error = try_open(&left)
        .map(|_| ())
        .expect_err("refused")
        .to_string();
    assert!(
        error.contains("both copies of term and vote are damaged"),
        "{error}"
    );
}

#[test]
fn a_missing_identity_is_not_a_new_directory() {
    let dir = || {
        let (memory, log) = seven_durable_of_ten();
        drop(log);
        memory
    };
    let refused = |memory: &Memory| {
        memory.remove(IDENTITY_NAME).expect("removed");
        let error = try_open(memory)
            .map(|_| ())
            .expect_err("refused")
            .to_string();
        assert!(
            error.contains("identity") && error.contains("the file is missing"),
            "{error}"
        );
    };
    refused(&dir());
    // A vote alone is enough to be somebody.
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.vote_for(1, 2);
    log.flush();
    drop(log);
    refused(&memory);
}

#[test]
fn a_creation_cut_short_is_begun_again() {
    let mut step = 0;
    loop {
        let memory = Memory::new(1);
        memory.fail_at(step, Fault::PowerOff);
        let outcome = try_open(&memory);
        for seed in 0..16 {
            let left = memory.power_cut(Loss::Random(seed));
            let (mut log, found) = try_open(&left).expect("it opens");
            assert_eq!((found.last_index, found.vote), (0, Vote::default()));
            if let Ok((_, created)) = &outcome {
                assert_eq!(found.identity, created.identity);
            }
            log.append_some(3, 1, 10);
            log.flush();
            assert_eq!(open(&left.power_cut(Loss::All)).contents(), run(1, 3, 1));
        }
        if outcome.is_ok() {
            break;
        }
        step += 1;
    }
    assert!(step >= 12, "only {step} steps");
}

#[test]
fn incarnations_differ_and_stay() {
    let dirs =
        [tempfile::tempdir(), tempfile::tempdir()].map(|d| d.expect("a temporary directory"));
    let of = |i: usize| -> Identity { open(&Disk::new(dirs[i].path())).identity() };
    assert_ne!(of(0).incarnation, of(1).incarnation);
    assert_eq!(of(0), of(0));
}

#[test]
fn stale_bytes_of_a_recycled_segment() {
    // Old records and markers, with good checksums, behind the end: of the file's former life.
    let (memory, log) = three_segments();
    let base = log.segments[2].view.base;
    let at = log.tail as usize + 1000 / 8 * 8;
    let stale = |end_index, seq| TailMarker {
        kind: MarkerKind::Tail,
        end_index,
        flushed_index: end_index,
        seq,
        incarnation: log.identity.incarnation,
    };
    let left = memory.power_cut(Loss::All);
    left.damage(&segment_name(3), |bytes| {
        let old = batch(base - 9, base - 4, 1, 100);
        bytes[at..at + old.len()].copy_from_slice(&old);
        bytes[at + old.len()..][..MARKER_LEN].copy_from_slice(&stale(base - 4, 1).encode());
    })
    .expect("replaced");
    let (reopened, found) = try_open(&left).expect("it opens");
    let Some((
        Found::Tail {
            last,
            leftovers: true,
            ..
        },
        Action::Erase,
    )) = decisions(&found).pop()
    else {
        panic!("{found:?}")
    };
    assert_eq!((last, reopened.contents()), (log.last(), log.contents()));
    drop(reopened);

    // Old bytes right where the end is torn: their indexes and markers do not count.
    let torn = memory.power_cut(Loss::All);
    torn.damage(&segment_name(3), |bytes| {
        let (old, at) = (batch(base - 9, base - 4, 1, 100), log.tail as usize);
        bytes[at..at + old.len()].copy_from_slice(&old);
        bytes[at + old.len()..][..MARKER_LEN].copy_from_slice(&stale(base + 99, 1).encode());
    })
    .expect("replaced");
    let (reopened, found) = try_open(&torn).expect("it opens");
    assert!(matches!(
        decisions(&found).pop(),
        Some((Found::Torn { .. }, Action::Cut))
    ));
    assert_eq!(reopened.contents(), log.contents());
}

#[test]
fn a_spare_segment_with_leftovers() {
    // The records of 8.. reached the next segment, its header did not: it still says "spare".
    let memory = Memory::new(3);
    let mut log = open(&memory);
    log.append_some(7, 1, 1500);
    log.flush();
    log.append_some(3, 1, 1500);
    assert_eq!(log.segments[1].view.base, 8);
    let left = memory.power_cut(Loss::Nothing);
    left.damage(&segment_name(2), |bytes| {
        let header = SegmentHeader {
            state: State::Spare,
            cluster_id: CLUSTER,
            group_id: GROUP,
            seq: 2,
            base: 0,
            prev_term: 0,
            len: 16 << 10,
        };
        bytes[..64].copy_from_slice(&header.encode());
    })
    .expect("replaced");
    let (mut log, found) = try_open(&left).expect("it opens");
    let spare = found
        .decisions
        .iter()
        .find(|d| d.file == segment_name(2))
        .expect("looked at");
    assert_eq!(
        (&spare.found, spare.action),
        (&Found::Spare, Action::Remove)
    );
    // A new 8 of the old length does not find the old 9 behind itself.
    log.append_some(1, 1, 1500);
    log.flush();
    assert_eq!(open(&left.power_cut(Loss::All)).contents(), run(1, 8, 1));
}

#[test]
fn unfinished_and_unknown_files() {
    let (memory, _log) = seven_durable_of_ten();
    let left = memory.power_cut(Loss::All);
    for name in ["log/0000000000000009.tmp", "log/notes.txt", "log/17.seg"] {
        left.create(name, 100).expect("created");
    }
    let (_, found) = try_open(&left).expect("it opens");
    let of = |name: &str| {
        let decision = found
            .decisions
            .iter()
            .find(|d| d.file == name)
            .expect("looked at");
        (decision.found.clone(), decision.action)
    };
    assert_eq!(
        of("log/0000000000000009.tmp"),
        (Found::Unfinished, Action::Remove)
    );
    assert_eq!(of("log/notes.txt"), (Found::Unknown, Action::Keep));
    assert_eq!(of("log/17.seg"), (Found::Unknown, Action::Keep));
}

#[test]
fn a_segment_file_that_was_cut() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::new(dir.path());
    let mut log = open(&disk);
    log.append_some(3, 1, 100);
    log.close().expect("closed");
    let path = dir.path().join(segment_name(1));
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("opened");
    for len in [8192, 100, 0] {
        file.set_len(len).expect("cut");
        // An error, and no SIGBUS when the map ends behind the file.
        let error = try_open(&disk)
            .map(|_| ())
            .expect_err("refused")
            .to_string();
        assert!(
            error.contains(&format!("the file has {len} bytes")),
            "{error}"
        );
    }
}

#[test]
fn without_sync_the_marks_promise_nothing() {
    let options = Options {
        sync: false,
        ..small()
    };
    let memory = Memory::new(1);
    let (mut log, _) = Log::open(memory.clone(), options, CLUSTER, GROUP, NODE).expect("a new log");
    for _ in 0..5 {
        log.append_some(2, 1, 400);
        log.flush();
    }
    // Not durable at all, so what is missing is a torn tail and no corruption.
    let at = offset_of(&log, 3);
    let left = memory.power_cut(Loss::Nothing);
    flip(&left, 1, at);
    assert_eq!(open(&left).contents(), run(1, 2, 1));
}
