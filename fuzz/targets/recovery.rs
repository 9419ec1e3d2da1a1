//! Recovery of a log from whatever a stop and a bad medium leave of it.
//!
//! The input is a life of a log of several segments (appends, flushes, truncations, purges with their snapshots, votes), a
//! power cut, and a list of edits of the files that it left.
//!
//! What holds:
//! - after a power cut alone the log opens, with all that was flushed and a vote no older than the
//!   last flushed one; records behind are a prefix of what was appended;
//! - whatever the medium did, an open log holds records that were appended, one after the other, and
//!   a log that lost something flushed says so in a decision or does not open;
//! - no gap is between the newest sound snapshot and the log;
//! - one flipped bit never costs what a marker on the medium says was flushed, unless the log does not
//!   open;
//! - opening a second time finds the same, and the log goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use storage::decision::{Action, Found, SnapshotFound};
use storage::medium::memory::Loss;
use storage::medium::{Dir, File};
use storage::record::{self, Header, Records};
use storage::{Log, Memory, Options, Recovered, SnapshotMeta, StorageError, Vote};

use super::input::Input;

const SECTOR: usize = 512;
const CLUSTER: u64 = 0xC1;

fn open(memory: &Memory) -> Result<(Log<Memory>, Recovered), StorageError> {
    let mut options = Options::default();
    options.segment_bytes = 12 << 10;
    options.max_record_bytes = 4 << 10;
    options.snapshot_chunk_bytes = 256;
    Log::open(memory.clone(), options, CLUSTER, 5, 2)
}

/// What a record holds follows from index and term.
fn encode(batch: &mut Vec<u8>, index: u64, term: u64, len: usize) {
    let payload: Vec<u8> = (0..len as u64)
        .map(|i| (index * 31 + term * 101 + i) as u8)
        .collect();
    let header = Header {
        index,
        term,
        time_us: index * 1000 + term,
        origin: 2,
        token: index,
        kind: 1,
    };
    record::encode_into(batch, &header, &payload);
}

/// A log, and what is known about it.
struct Life {
    memory: Memory,
    log: Log<Memory>,
    /// Term of each record, by index.
    truth: BTreeMap<u64, u64>,
    /// Index and term of all that was ever appended.
    ever: BTreeSet<(u64, u64)>,
    term: u64,
    newest_term: u64,
    /// The highest end of the log that a marker on the medium calls flushed.
    marked: u64,
    /// What the markers say that are written and not flushed.
    unflushed_mark: u64,
    votes: Vec<Vote>,
    /// Of these, the last that was flushed.
    durable_vote: usize,
    /// What the directory held at some earlier time.
    earlier: Option<Memory>,
}

impl Life {
    fn new() -> Self {
        let memory = Memory::new(7);
        let (log, _) = open(&memory).expect("a new directory opens");
        Self {
            memory,
            log,
            truth: BTreeMap::new(),
            ever: BTreeSet::new(),
            term: 1,
            newest_term: 1,
            marked: 0,
            unflushed_mark: 0,
            votes: vec![Vote::default()],
            durable_vote: 0,
            earlier: None,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(13) {
            0..=4 => {
                let count = 1 + input.below(5) as u64;
                let len = input.one_of(&[0, 1, 40, 200, 500, 1500, 3000]);
                self.append(count, len);
            }
            5 | 6 => self.flush(),
            7 => {
                self.log.settle().expect("the medium is sound");
                if !self.log.is_dirty() {
                    self.marked = self.log.durable();
                    self.unflushed_mark = self.marked;
                }
            }
            8 => self.truncate(input.below(12) as u64, input.flag()),
            9 => self.vote(input.flag().then(|| input.below(3) as u64)),
            10 => {
                let index = self.log.first() + input.below(8) as u64;
                self.snapshot();
                self.log.purge_before(index).expect("the medium is sound");
            }
            11 => self.earlier = Some(self.memory.power_cut(Loss::Nothing)),
            _ => {
                // It ends with the next step that waits for the disk.
                self.log.start_flush().expect("the medium is sound");
            }
        }
    }

    fn append(&mut self, count: u64, len: usize) {
        let (first, last) = (self.log.last() + 1, self.log.last() + count);
        let mut batch = Vec::new();
        for index in first..=last {
            encode(&mut batch, index, self.term, len);
            self.truth.insert(index, self.term);
            self.ever.insert((index, self.term));
        }
        self.unflushed_mark = self.log.durable();
        let appended = self.log.append(&batch, first, last);
        appended.expect("the medium is sound");
    }

    fn flush(&mut self) {
        self.log.wait_flush().expect("the medium is sound");
        while self.log.start_flush().expect("the medium is sound") {
            self.log.wait_flush().expect("the medium is sound");
        }
        assert_eq!(self.log.durable(), self.log.last());
        self.marked = self.unflushed_mark;
        self.durable_vote = self.votes.len() - 1;
    }

    /// What is let go must be in one: as of what is durable.
    fn snapshot(&mut self) {
        let (index, snapshots) = (self.log.durable(), self.log.snapshots());
        if index <= snapshots.newest().map_or(0, |id| id.index) {
            return;
        }
        let meta = SnapshotMeta {
            index,
            term: self.truth[&index],
            time_us: index,
            members: vec![1, 2, 3],
        };
        let mut file = snapshots.create(&meta).expect("the medium is sound");
        let state = vec![index as u8; 300 + index as usize * 7];
        file.write_all(&state).expect("the medium is sound");
        file.finish().expect("the medium is sound");
        snapshots
            .prune(&mut storage::Reclaim::default())
            .expect("the medium is sound");
    }

    /// A leader does not have the last records. What it has in their place is of a new term, or of an
    /// older one that nobody here has seen: it may be below that of what is dropped.
    fn truncate(&mut self, dropped: u64, of_older_term: bool) {
        let kept = self.log.last().saturating_sub(dropped);
        // What is in a snapshot was committed.
        let committed = self.log.snapshots().newest().map_or(0, |id| id.index);
        let kept = kept.max(self.log.first() - 1).max(committed);
        if kept < self.log.last() {
            self.log.truncate_after(kept).expect("the medium is sound");
            self.truth.retain(|&index, _| index <= kept);
            // What a marker said before holds as far as the records are still there.
            self.marked = self.marked.min(kept);
            self.unflushed_mark = self.unflushed_mark.min(kept);
            // It writes the meta file twice.
            self.durable_vote = self.votes.len() - 1;
        }
        let older = self.truth.values().last().map_or(1, |term| term + 1);
        let seen = |term| self.ever.iter().any(|record| record.1 == term);
        self.term = if of_older_term && !seen(older) {
            older
        } else {
            self.newest_term += 3;
            self.newest_term
        };
    }

    fn vote(&mut self, voted_for: Option<u64>) {
        let term = self
            .newest_term
            .max(self.votes[self.votes.len() - 1].term + 1);
        let vote = Vote { term, voted_for };
        self.log.save_vote(vote).expect("the medium is sound");
        self.votes.push(vote);
    }
}

/// What the edits may have done.
#[derive(Default)]
struct Damage {
    edits: usize,
    /// All of them together flipped one bit.
    one_bit: bool,
    /// A file or a part of one is as it once was, or gone: nothing on the medium shows that.
    rolled_back: bool,
}

pub(super) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let mut life = Life::new();
    for _ in 0..1 + input.below(40) {
        life.step(&mut input);
    }
    let loss = match input.below(4) {
        0 => Loss::All,
        1 => Loss::Nothing,
        _ => Loss::Random(input.u16().into()),
    };
    if input.flag() {
        // The power goes while a flush runs.
        life.memory.hold_flushes(true);
        life.log.start_flush().expect("the medium is sound");
    }
    let left = life.memory.power_cut(loss);
    let damage = edit(&left, &life, &mut input);
    // What markers say is certain only where none can have been lost with what was not flushed.
    let marked = match loss {
        Loss::Random(_) => 0,
        _ => life.marked,
    };
    match open(&left) {
        Ok((log, found)) => {
            judge(&life, &damage, marked, &log, &found);
            let held = terms(&log, found.first_index);
            drop(log);
            goes_on(&left, &held);
        }
        Err(error) => {
            assert!(damage.edits > 0, "after a mere power cut: {error}");
            let again = open(&left).map(drop).expect_err("it was refused before");
            assert_eq!(again.to_string(), error.to_string());
        }
    }
}

fn edit(memory: &Memory, life: &Life, input: &mut Input<'_>) -> Damage {
    let mut damage = Damage::default();
    let names: Vec<String> = ["", "log", "snap"]
        .iter()
        .flat_map(|folder| {
            let names = memory.list(folder).expect("a folder");
            names.into_iter().map(move |name| match *folder {
                "" => name,
                folder => format!("{folder}/{name}"),
            })
        })
        .collect();
    while !input.is_empty() && damage.edits < 6 {
        let name = names[input.below(names.len())].clone();
        let (kind, at) = (input.below(9), usize::from(input.u16()));
        let change = |change: &mut dyn FnMut(&mut [u8])| {
            memory.damage(&name, change).expect("the file is there");
        };
        let sector = |bytes: &[u8], at: usize| {
            let from = at % bytes.len() / SECTOR * SECTOR;
            from..bytes.len().min(from + SECTOR)
        };
        if memory.open(&name).is_err() {
            continue; // Removed by an earlier edit.
        }
        damage.one_bit = kind <= 2 && damage.edits == 0;
        damage.edits += 1;
        match kind {
            0..=2 => {
                let bit = 1 << input.below(8);
                change(&mut |bytes| bytes[at % bytes.len()] ^= bit);
            }
            3 => change(&mut |bytes| {
                let range = sector(bytes, at);
                bytes[range].fill(0);
            }),
            4 => change(&mut |bytes| {
                let range = sector(bytes, at);
                bytes[range].fill(0xA5);
            }),
            5 => {
                // A write that went to the wrong place.
                let to = usize::from(input.u16());
                change(&mut |bytes| {
                    let (from, to) = (sector(bytes, at), sector(bytes, to));
                    if from.len() == to.len() {
                        bytes.copy_within(from, to.start);
                    }
                });
                // Of its own file: it may be an older sector of the same place.
                damage.rolled_back = true;
            }
            6 => {
                memory.remove(&name).expect("the file is there");
                damage.rolled_back = true;
            }
            7 => {
                let source = life.earlier.as_ref().and_then(|dir| dir.open(&name).ok());
                let Some(source) = source else { continue };
                change(&mut |bytes| {
                    let mut old = vec![0; bytes.len()];
                    if source.read_at(0, &mut old).is_ok() {
                        bytes.copy_from_slice(&old);
                    }
                });
                damage.rolled_back = true;
            }
            _ => {
                // A file that is none of the log's, or a copy under a later number.
                let copy = memory.open(&name).expect("the file is there");
                let len = copy.length().expect("a length");
                let mut bytes = vec![0; len as usize];
                copy.read_at(0, &mut bytes).expect("read");
                let new = format!("log/{:016}.seg", 1 + at % 12);
                if memory.open(&new).is_err() {
                    let file = memory.create(&new, len).expect("room");
                    file.write_at(0, &bytes).expect("written");
                }
            }
        }
    }
    damage
}

/// Index and term of every record, each verified.
fn terms(log: &Log<Memory>, first: u64) -> Vec<(u64, u64)> {
    let (reader, mut held) = (log.reader(), Vec::new());
    while first + (held.len() as u64) <= log.last() {
        let next = first + held.len() as u64;
        let slice = reader.slice(next, log.last(), 4096);
        let slice = slice.expect("what was recovered can be read");
        for record in Records::new(slice.as_ref()) {
            let record = record.expect("what was recovered is sound");
            let Header { index, term, .. } = record.header;
            let mut expected = Vec::new();
            encode(&mut expected, index, term, record.payload.len());
            assert_eq!(record.bytes, expected);
            held.push((index, term));
        }
    }
    held
}

fn judge(life: &Life, damage: &Damage, marked: u64, log: &Log<Memory>, found: &Recovered) {
    let held = terms(log, found.first_index);
    assert_eq!(log.durable(), log.last());
    assert_eq!(found.last_index + 1, found.first_index + held.len() as u64);
    let mut terms: Vec<u64> = held.iter().map(|record| record.1).collect();
    assert!(terms.is_sorted(), "{held:?}");
    terms.dedup();
    let runs: Vec<u64> = found.term_runs.iter().map(|run| run.0).collect();
    assert_eq!(runs, terms, "{:?}", found.term_runs);

    let flushed = life.log.durable();
    let said = found.decisions.iter().any(|decision| {
        matches!(decision.action, Action::Cut)
            || matches!(
                decision.found,
                Found::BehindTear | Found::TruncationBegun { .. }
            )
    });
    let covered = found.snapshot.as_ref().map_or(0, |(id, _)| id.index);
    assert!(
        found.first_index <= covered + 1 && covered <= found.last_index,
        "a gap: the snapshot at {covered}, the log {}..={}",
        found.first_index,
        found.last_index
    );
    if damage.rolled_back {
        let ever = held.iter().all(|record| life.ever.contains(record));
        assert!(ever, "{held:?} holds what was never appended");
        return;
    }
    let same = held
        .iter()
        .all(|(index, term)| life.truth.get(index) == Some(term));
    assert!(same, "{held:?} instead of {:?}", life.truth);
    let stands = found.decisions.iter().any(|decision| {
        matches!(
            decision.found,
            Found::Snapshot(SnapshotFound::StandsForLog { .. })
        )
    });
    assert!(found.first_index <= life.log.first() || stands && damage.edits > 0);
    assert!(
        flushed <= found.last_index || said && damage.edits > 0,
        "{flushed} was flushed, {} is left: {:?}",
        found.last_index,
        found.decisions
    );
    if damage.one_bit {
        let last = found.last_index;
        assert!(marked <= last, "{marked} was marked, {last} is left");
    }

    let at = life.votes.iter().position(|&vote| vote == found.vote);
    let at = at.unwrap_or_else(|| panic!("{:?} was never saved", found.vote));
    let torn = found
        .decisions
        .iter()
        .any(|d| d.found == Found::MetaSlotTorn);
    assert!(
        life.durable_vote <= at || torn && damage.edits > 0,
        "{:?} instead of {:?}",
        found.vote,
        life.votes
    );
}

/// What was found is found again, nothing is left to repair, and the log can be written.
fn goes_on(memory: &Memory, held: &[(u64, u64)]) {
    let (mut log, found) = open(memory).expect("it was repaired");
    assert_eq!(terms(&log, found.first_index), held);
    let settled = found.decisions.iter().all(|decision| {
        let unchanged = matches!(decision.action, Action::Keep);
        unchanged || matches!(decision.found, Found::Spare)
    });
    assert!(settled, "{:?}", found.decisions);
    let term = held.last().map_or(found.prev_term, |record| record.1);
    let term = term.max(1);
    let mut batch = Vec::new();
    encode(&mut batch, log.last() + 1, term, 700);
    let next = log.last() + 1;
    log.append(&batch, next, next).expect("the medium is sound");
    log.close().expect("the medium is sound");
    let (log, found) = open(memory).expect("it was closed");
    assert_eq!((log.last(), found.last_index), (next, next));
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // Steps: an append has a count and a length; a flush and a settle nothing.
    let three_segments = [
        12, 0, 4, 4, 5, 0, 4, 4, 5, 7, 0, 4, 4, 5, 0, 4, 4, 5, 0, 4, 4, 5, 0, 1, 2,
    ];
    let truncated = [
        9, 0, 4, 4, 5, 0, 4, 4, 5, 0, 4, 4, 8, 7, 0, 2, 2, 9, 1, 1, 5, 0, 2, 3,
    ];
    let purged = [
        13, 0, 4, 5, 5, 0, 4, 5, 5, 0, 4, 5, 5, 10, 7, 0, 4, 5, 5, 10, 7, 9, 0, 5, 7,
    ];
    let mut seeds = Vec::new();
    for life in [&three_segments[..], &truncated, &purged] {
        for cut in [&[0, 0][..], &[1, 0], &[2, 7, 3, 1]] {
            seeds.push([life, cut].concat());
        }
        for edit in [
            [4, 0, 0x20, 0x11, 3],
            [5, 1, 0x40, 0x12, 0],
            [4, 3, 0x00, 0x14, 0],
            [5, 6, 0, 0, 0],
            [4, 8, 9, 0, 0],
            [1, 0, 0x18, 0x10, 1],
        ] {
            seeds.push([life, &[1, 0], &edit].concat());
        }
    }
    seeds
}
