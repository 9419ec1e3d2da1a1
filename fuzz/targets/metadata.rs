//! Term and vote, through power cuts and a bad sector.
//!
//! The input is several lives of a directory: votes, flushes, power cuts in between, and at the end
//! damage to `meta` or `identity`.
//!
//! What holds: after a power cut the vote is the last one that was flushed or a later one, never an
//! older; a copy that was torn while it was written costs nothing; a damaged file leads to an error or
//! to the other copy, which is said; never to a vote that nobody cast.

use storage::decision::Found;
use storage::medium::Dir;
use storage::medium::memory::Loss;
use storage::{Log, Memory, Options, Recovered, StorageError, Vote};

use super::input::Input;

fn open(memory: &Memory) -> Result<(Log<Memory>, Recovered), StorageError> {
    let mut options = Options::default();
    options.segment_bytes = 12 << 10;
    options.max_record_bytes = 4 << 10;
    Log::open(memory.clone(), options, 0xC1, 5, 2)
}

pub(super) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let mut memory = Memory::new(3);
    let mut saved = vec![Vote::default()];
    for _ in 0..1 + input.below(4) {
        let (mut log, found) = open(&memory).expect("a power cut does no harm");
        assert_eq!(found.vote, saved[saved.len() - 1]);
        let mut durable = saved.len() - 1;
        for _ in 0..input.below(12) {
            match input.below(4) {
                0 | 1 => {
                    let voted_for = input.flag().then(|| input.byte().into());
                    let term = saved[saved.len() - 1].term + 1 + input.below(3) as u64;
                    let vote = Vote { term, voted_for };
                    log.save_vote(vote).expect("the medium is sound");
                    saved.push(vote);
                }
                2 => {
                    log.start_flush().expect("the medium is sound");
                }
                _ => {
                    log.wait_flush().expect("the medium is sound");
                }
            }
            let at = saved.iter().position(|&vote| vote == log.durable_vote());
            let at = at.expect("only what was saved is durable");
            assert!(durable <= at, "{:?} is durable no more", saved[durable]);
            durable = at;
        }
        memory.hold_flushes(input.flag());
        let left = memory.power_cut(match input.below(3) {
            0 => Loss::All,
            1 => Loss::Nothing,
            _ => Loss::Random(input.u16().into()),
        });
        drop(log);
        // The vote it comes back with is that of the next life.
        let found = open(&left).expect("a power cut does no harm").1;
        let at = saved.iter().position(|&vote| vote == found.vote);
        let at = at.unwrap_or_else(|| panic!("{:?} was never saved", found.vote));
        assert!(durable <= at, "{:?} after {:?}", found.vote, saved[durable]);
        saved.truncate(at + 1);
        memory = left;
    }

    let before = saved[saved.len() - 1];
    let mut slots = [false; 2];
    for _ in 0..input.below(4) {
        let name = if input.flag() { "identity" } else { "meta" };
        let (at, bit) = (usize::from(input.u16()), 1 << input.below(8));
        let damaged = memory.damage(name, |bytes| {
            let at = at % bytes.len();
            bytes[at] ^= bit;
            // The part of a slot that means something.
            if name == "meta" && at % 4096 < 64 {
                slots[at / 4096] = true;
            }
        });
        damaged.expect("the file is there");
    }
    match open(&memory) {
        Ok((_, found)) => {
            let torn = found
                .decisions
                .iter()
                .any(|d| d.found == Found::MetaSlotTorn);
            assert!(
                saved.contains(&found.vote),
                "{:?} was never saved",
                found.vote
            );
            assert!(found.vote == before || torn && slots != [false; 2]);
        }
        Err(error) => {
            let names = memory.list("").expect("a folder");
            assert!(input_damaged(&error), "{error}: {names:?}");
        }
    }
}

/// Whether the error is one of damage, and not of the medium or of this test.
fn input_damaged(error: &StorageError) -> bool {
    matches!(
        error,
        StorageError::Corrupt { .. } | StorageError::Foreign { .. } | StorageError::Version { .. }
    )
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let life = [8, 0, 1, 3, 0, 2, 3, 0, 0, 1, 2, 0, 1, 2, 1, 2];
    vec![
        [&[0][..], &life, &[0, 0]].concat(),
        [&[1][..], &life, &[0, 1], &life, &[1, 2, 9, 9]].concat(),
        [&[0][..], &life, &[0, 0, 1, 0, 24, 0, 3]].concat(),
        [&[0][..], &life, &[0, 0, 2, 0, 24, 16, 3, 1, 30, 0, 1]].concat(),
        [&[0][..], &life, &[1, 2, 7, 7, 2, 0, 20, 0, 1, 0, 20, 16, 1]].concat(),
    ]
}
