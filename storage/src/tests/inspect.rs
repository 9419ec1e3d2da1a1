//! Looking changes nothing, says what a start would do, and bears any bytes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::SystemTime;

use super::rot::{every_byte, flip, open_small, open_with, settled, settled_small};
use super::*;
use crate::Disk;
use crate::inspect::{Dumped, Outcome, ReadOnly, SegmentState, Small, dump, inspect, inspect_in};
use crate::log::segment::segment_name;
use crate::medium::memory::Loss;

/// Indexes of what is dumped, with `None` for a bad place.
fn dumped<D: Dir>(dir: &D, from: u64, to: u64) -> Vec<Option<u64>> {
    let mut found = Vec::new();
    dump(dir, from..=to, &mut |what| {
        found.push(match what {
            Dumped::Record { record, .. } => {
                let Header { index, term, .. } = record.header;
                assert_eq!(record.header, header(index, term));
                Some(index)
            }
            Dumped::Bad { .. } => None,
        });
        ControlFlow::Continue(())
    })
    .expect("read");
    found
}

#[test]
fn a_sound_directory() {
    let (memory, log) = settled();
    let (last, borders) = (
        log.last(),
        [log.segments[1].view.base, log.segments[2].view.base],
    );
    let steps = memory.steps();
    let seen = inspect_in(&ReadOnly::of(memory.clone())).expect("read");
    assert_eq!(memory.steps(), steps, "nothing is written");
    assert_eq!(seen.damage(), Vec::<String>::new());
    assert_eq!(seen.identity, Small::Sound(log.identity()));
    assert_eq!(
        seen.vote(),
        Some(Vote {
            term: 3,
            voted_for: Some(1)
        })
    );
    assert_eq!(seen.peers.value(), Some(&vec![(1, 11), (3, 33)]));
    assert_eq!(seen.heal, Small::Missing);
    let runs: Vec<_> = seen
        .segments
        .iter()
        .map(|s| (s.state, s.base, s.last))
        .collect();
    assert_eq!(
        runs,
        [
            (SegmentState::InUse, 1, borders[0] - 1),
            (SegmentState::InUse, borders[0], borders[1] - 1),
            (SegmentState::InUse, borders[1], last),
            (SegmentState::Spare, 0, 0),
        ]
    );
    let markers: Vec<_> = seen.segments.iter().filter_map(|s| s.marker).collect();
    assert_eq!(
        markers.iter().map(|m| m.seal).collect::<Vec<_>>(),
        [true, true, false]
    );
    assert_eq!(
        (markers[2].end_index, markers[2].flushed_index),
        (last, last)
    );
    assert_eq!(seen.segments[0].term_runs, [(1, 1)]);
    assert!(matches!(
        seen.alone,
        Outcome::Opens {
            first: 1,
            lost: None,
            ..
        }
    ));
    assert_eq!(
        dumped(&memory, 1, u64::MAX),
        (1..=last).map(Some).collect::<Vec<_>>()
    );
    assert_eq!(
        dumped(&memory, 20, 25),
        (20..=25).map(Some).collect::<Vec<_>>()
    );
}

#[test]
fn the_place_is_named_and_what_is_behind_it_is_shown() {
    let (memory, log) = settled();
    let last = log.last();
    let at = log.segments[0].view.seek(5, u64::MAX).expect("there").1;
    let left = memory.power_cut(Loss::All);
    flip(&left, &segment_name(1), at + 60);
    let seen = inspect_in(&ReadOnly::of(left.clone())).expect("read");
    let bad = seen.segments[0].bad.clone().expect("it is bad");
    assert_eq!((bad.offset, bad.index), (at, Some(5)));
    assert_eq!(
        seen.segments[0].intact_behind,
        log.segments[1].view.base - 1
    );
    let damage = seen.damage().join("\n");
    assert!(
        damage.contains(&format!("offset {at}")) && damage.contains("index 5"),
        "{damage}"
    );
    let Outcome::Opens {
        last: kept, lost, ..
    } = seen.with_peers
    else {
        panic!("{:?}", seen.with_peers)
    };
    assert_eq!((kept, lost), (4, Some(last)));
    let mut expected: Vec<_> = (1..=last).map(Some).collect();
    expected[4] = None;
    assert_eq!(dumped(&left, 1, u64::MAX), expected);
}

#[test]
fn a_torn_tail_is_no_damage() {
    let memory = Memory::new(3);
    let mut log = open(&memory);
    log.append_some(7, 1, 200);
    log.flush();
    log.append_some(3, 1, 200);
    let left = memory.power_cut(Loss::Nothing);
    let at = log.segments[0].view.seek(9, u64::MAX).expect("there").1;
    flip(&left, &segment_name(1), at + 60);
    let seen = inspect_in(&ReadOnly::of(left.clone())).expect("read");
    assert_eq!(seen.damage(), Vec::<String>::new());
    assert!(matches!(
        seen.alone,
        Outcome::Opens {
            last: 8,
            lost: None,
            ..
        }
    ));
}

#[test]
fn what_heals_is_said() {
    let (memory, log) = settled();
    let last = log.last();
    let left = memory.power_cut(Loss::All);
    flip(&left, &segment_name(2), 20);
    drop(open_with(&left, true).expect("it heals"));
    let damage = inspect_in(&ReadOnly::of(left.clone()))
        .expect("read")
        .damage()
        .join("\n");
    assert!(
        damage.contains(&format!("records up to {last}")),
        "{damage}"
    );
}

#[test]
fn no_directory_and_an_empty_one() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    assert!(matches!(
        inspect(dir.path()).expect("read").alone,
        Outcome::Empty
    ));
    let error = inspect(&dir.path().join("nowhere")).expect_err("it is not there");
    assert!(matches!(error, StorageError::Io { .. }), "{error}");
}

#[test]
fn what_is_shown_is_what_a_start_does_whatever_byte_is_bad() {
    let (memory, log) = settled_small();
    log.close().expect("closed");
    let mut wrong = 0;
    every_byte(&memory, |name, at, left| {
        // One in seven, for time; all of the small files.
        if name.starts_with("log/") && at >= 4200 && at % 7 != 0 {
            return;
        }
        let steps = left.steps();
        let seen = inspect_in(&ReadOnly::of(left.clone())).expect("read");
        assert_eq!(left.steps(), steps, "nothing is written");
        dumped(&left, 1, u64::MAX);
        let damage = seen.damage();
        let alone = open_small(&left.power_cut(Loss::Nothing), false);
        match (&seen.alone, &alone) {
            (
                Outcome::Opens {
                    last, lost: None, ..
                },
                Ok((log, found)),
            ) => {
                assert_eq!(
                    (*last, &found.data_loss),
                    (log.last(), &None),
                    "{name} at {at}"
                );
            }
            (Outcome::Refused(said), Err(error)) => {
                // `meta` says it by itself.
                assert!(
                    said.to_string() == error.to_string() || name == "meta" || name == "identity",
                    "{name} at {at}: {said} / {error}"
                );
                assert!(!damage.is_empty(), "{name} at {at}");
            }
            other => panic!("{name} at {at}: {other:?}"),
        }
        let (log, found) = open_small(&left, true).expect("it heals");
        let Outcome::Opens { last, lost, .. } = &seen.with_peers else {
            panic!("{name} at {at}: {:?}", seen.with_peers)
        };
        let upto = found
            .data_loss
            .as_ref()
            .map(|heal| heal.upto)
            .filter(|&upto| upto > 0);
        assert_eq!((*last, *lost), (log.last(), upto), "{name} at {at}");
        if found.data_loss.is_some() {
            assert!(!damage.is_empty(), "{name} at {at}");
            wrong += 1;
        }
    });
    assert!(wrong > 500, "{wrong}");
}

/// Contents and times of all files.
fn picture(dir: &std::path::Path) -> BTreeMap<std::path::PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for folder in [dir.to_owned(), dir.join("log")] {
        for entry in std::fs::read_dir(folder).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                let time = path.metadata().and_then(|m| m.modified()).expect("a time");
                found.insert(path.clone(), (std::fs::read(&path).expect("read"), time));
            }
        }
    }
    found
}

#[test]
fn real_files_stay_as_they_are_also_while_a_log_is_open() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut log = open(&Disk::new(dir.path()));
    log.append_some(60, 1, 500);
    log.flush();
    log.settle().expect("settled");
    // The next segment is made in the background: until it has its name, files change by themselves.
    let segments = || {
        let names = std::fs::read_dir(dir.path().join("log")).expect("listed");
        let names = names.map(|entry| entry.expect("an entry").path());
        names.filter(|path| path.extension() == Some("seg".as_ref()))
    };
    while segments().count() <= log.segments.len() {
        std::thread::yield_now();
    }
    let before = picture(dir.path());
    let seen = inspect(dir.path()).expect("read");
    assert_eq!(seen.last_opened_by, Some(std::process::id()));
    assert_eq!(dumped(&ReadOnly::new(dir.path()), 1, 60).len(), 60);
    assert!(picture(dir.path()) == before, "a file was changed");
    assert!(seen.damage().is_empty(), "{:?}", seen.damage());
    let error = ReadOnly::new(dir.path())
        .create("x", 1)
        .expect_err("refused");
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    log.append_some(1, 1, 10);
}
