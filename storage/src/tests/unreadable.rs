//! Pages that the disk does not give back: each is a damage with a place, as a wrong checksum is, and never a signal.

use super::rot::{flip, offset_of, open_small, open_with, settled, settled_small};
use super::*;
use crate::decision::{Action, Found};
use crate::inspect::{ReadOnly, dump, inspect_in};
use crate::log::segment::segment_name;
use crate::medium::memory::Loss;
use std::ops::ControlFlow;

/// Calls `story` for each page of each file, with a copy in which only that page is unreadable.
fn every_page(memory: &Memory, mut story: impl FnMut(&str, u64, Memory)) -> u64 {
    let mut visited = 0;
    for folder in ["", "log", "snap"] {
        for name in memory.list(folder).expect("listed") {
            let name = match folder {
                "" => name,
                folder => format!("{folder}/{name}"),
            };
            for page in 0.. {
                let left = memory.power_cut(Loss::All);
                if left.make_unreadable(&name, page * 4096).is_err() {
                    break;
                }
                visited += 1;
                story(&name, page * 4096, left);
            }
        }
    }
    visited
}

#[test]
fn a_record_in_the_middle_is_cut_off_there_and_the_log_goes_on_over_the_place() {
    let (memory, log) = settled();
    let (all, last) = (log.contents(), log.last());
    let left = memory.power_cut(Loss::All);
    // The first record that is in the second page of records.
    let bad = (1..).find(|&index| offset_of(&log, index + 1) > 8192);
    let (bad, name) = (bad.expect("there is one"), segment_name(1));
    left.make_unreadable(&name, 8192).expect("there");

    let refused = try_open(&left).expect_err("nobody can give it back");
    let said = refused.to_string();
    assert!(
        said.contains(&name) && said.contains("8192..12288"),
        "{said}"
    );

    let (mut log, found) = open_with(&left, true).expect("it heals");
    let heal = found.data_loss.expect("it says so");
    assert_eq!((heal.upto, heal.vote_lost), (last, false));
    let damage = &heal.damage[0];
    assert_eq!((&damage.file, damage.index), (&name, Some(bad)));
    assert!(damage.detail.contains("cannot be read"), "{damage}");
    assert_eq!(log.contents(), all[..bad as usize - 1]);

    log.append_some(last + 1 - bad, 1, 500);
    log.flush();
    log.healed().expect("removed");
    drop(log);
    let (log, found) = try_open(&left.power_cut(Loss::All)).expect("sound");
    assert_eq!((log.contents(), found.data_loss), (all, None));
}

#[test]
fn any_page_of_any_file_with_peers() {
    let (memory, log) = settled_small();
    let (all, last, vote) = (log.contents(), log.last(), log.vote());
    log.close().expect("closed");
    let (mut healed, mut harmless) = (0, 0);
    let visited = every_page(&memory, |name, at, left| {
        let (mut log, found) = open_small(&left, true)
            .unwrap_or_else(|error| panic!("{name} at {at}: it does not heal: {error}"));
        let (first, end) = (log.first(), log.last());
        assert_eq!(log.contents(), all[first as usize - 1..end as usize]);
        assert!(first == 1 || first == 6, "{name} at {at}: {first}");
        assert_eq!(log.known_peers().list(), [(1, 11), (3, 33)]);
        let heal = found.data_loss;
        if end < last {
            let upto = heal.as_ref().map_or(0, |heal| heal.upto);
            assert!(upto >= last, "{name} at {at}: {upto}");
        }
        let vote_lost = heal.as_ref().is_some_and(|heal| heal.vote_lost);
        assert!(found.vote == vote || vote_lost, "{name} at {at}");
        *(if heal.is_some() {
            &mut healed
        } else {
            &mut harmless
        }) += 1;
        // It goes on, over the place too.
        log.append_some(last + 3 - end, 1, 250);
        log.vote_for(7, 1);
        log.flush();
        log.vote_for(8, 1);
        log.flush();
        drop(log);
        let again = left.power_cut(Loss::All);
        let (log, found) = open_small(&again, heal.is_some())
            .unwrap_or_else(|error| panic!("{name} at {at}, later: {error}"));
        assert_eq!((log.last(), found.vote.term), (last + 3, 8));
        assert_eq!(found.data_loss.is_some(), heal.is_some(), "{name} at {at}");
    });
    assert!(
        visited > 12 && healed > 5 && harmless > 5,
        "{healed} {harmless}"
    );
}

#[test]
fn any_page_of_any_file_without_peers_is_refused_or_costs_nothing() {
    let (memory, log) = settled_small();
    let (all, vote) = (log.contents(), log.vote());
    log.close().expect("closed");
    let mut refused = 0;
    every_page(&memory, |name, at, left| match open_small(&left, false) {
        Ok((log, found)) => {
            assert_eq!(log.contents(), all, "{name} at {at}");
            assert_eq!(
                (found.data_loss, found.vote),
                (None, vote),
                "{name} at {at}"
            );
        }
        Err(StorageError::Corrupt { path, detail, .. }) => {
            assert!(path.ends_with(name), "{name} at {at}: {}", path.display());
            assert!(
                detail.contains("cannot be read"),
                "{name} at {at}: {detail}"
            );
            refused += 1;
        }
        Err(error) => panic!("{name} at {at}: {error}"),
    });
    assert!(refused > 4, "{refused}");
}

#[test]
fn the_end_of_the_log_is_no_torn_tail_when_it_cannot_be_read() {
    // 1..=7 are durable and a marker says so; 8..=10 are durable too, and nothing says so yet.
    let memory = Memory::new(3);
    let mut log = open(&memory);
    log.append_some(7, 1, 700);
    log.flush();
    log.append_some(3, 1, 700);
    log.flush();
    let (at, name) = (offset_of(&log, 10), segment_name(1));
    let left = memory.power_cut(Loss::All);
    drop(log);
    let torn = left.power_cut(Loss::All);
    torn.damage(&name, |bytes| bytes[at as usize..].fill(0))
        .expect("damaged");
    let (_, found) = open_with(&torn, true).expect("it opens");
    assert_eq!(found.data_loss, None, "a power failure leaves this");

    left.make_unreadable(&name, at).expect("there");
    assert!(open_with(&left, false).is_err());
    let (log, found) = open_with(&left, true).expect("it heals");
    let upto = found.data_loss.map(|heal| heal.upto);
    assert_eq!(upto, Some(u64::MAX), "nothing says how far it went");
    assert!(log.last() >= 5, "{}", log.last());
}

#[test]
fn a_seal_that_cannot_be_read_is_written_anew() {
    // Records that end with a page, so that only the seal is in the next.
    let memory = Memory::new(7);
    let mut log = open(&memory);
    log.append_some(8, 1, 1024 - 56);
    log.append_some(1, 1, 4500);
    log.append_some(3, 1, 500);
    log.flush();
    log.settle().expect("settled");
    let all = log.contents();
    assert_eq!((log.segments.len(), log.segments[1].view.base), (2, 9));
    let left = memory.power_cut(Loss::All);
    drop(log);
    let seal_at = 4096 + 8 * 1024;
    flip(&left, &segment_name(1), seal_at);
    left.make_unreadable(&segment_name(1), seal_at)
        .expect("there");
    for _ in 0..2 {
        let (log, found) = try_open(&left).expect("it opens");
        assert_eq!((log.contents(), found.data_loss), (all.clone(), None));
    }
}

#[test]
fn the_tool_bears_any_page() {
    let (memory, log) = settled_small();
    let last = log.last();
    log.close().expect("closed");
    let mut damaged = 0;
    every_page(&memory, |name, at, left| {
        let dir = ReadOnly::of(left.clone());
        let seen = inspect_in(&dir).unwrap_or_else(|error| panic!("{name} at {at}: {error}"));
        let opens = open_small(&left.power_cut(Loss::All), false).is_ok();
        let said = seen.damage();
        assert!(opens || !said.is_empty(), "{name} at {at}");
        damaged += u32::from(!said.is_empty());
        let mut dumped = 0;
        dump(&dir, 1..=last, &mut |_| {
            dumped += 1;
            ControlFlow::Continue(())
        })
        .unwrap_or_else(|error| panic!("{name} at {at}: {error}"));
        assert!(dumped > 0, "{name} at {at}");
    });
    assert!(damaged > 8, "{damaged}");
}

#[test]
fn a_page_behind_the_end_is_made_readable_at_the_start() {
    let memory = Memory::new(3);
    let mut log = open(&memory);
    log.append_some(2, 1, 500);
    log.flush();
    log.settle().expect("settled");
    let left = memory.power_cut(Loss::All);
    drop(log);
    left.make_unreadable(&segment_name(1), 9000).expect("there");
    let (mut log, found) = try_open(&left).expect("nothing is lost");
    let erased =
        |d: &&crate::Decision| d.action == Action::Erase && matches!(d.found, Found::Tail { .. });
    assert_eq!(found.decisions.iter().filter(erased).count(), 1);
    while log.segments.len() == 1 {
        log.append_some(1, 1, 700);
    }
    log.flush();
}
