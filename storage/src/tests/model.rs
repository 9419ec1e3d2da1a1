//! Random sessions against the simplest model: a vector of records and how many of them are promised.
//!
//! On the memory, every session is cut by power failures that keep and lose unflushed sectors by
//! chance. What is left must be a prefix of what was written that holds all that was promised.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::medium::memory::Loss;
use crate::{Disk, FlushBackend};

#[derive(Clone, Debug)]
enum Op {
    Append {
        count: u64,
        len: usize,
        next_term: bool,
    },
    StartFlush,
    PollFlush,
    HoldFlushes(bool),
    Flush,
    Settle,
    /// Drops this many records from the end.
    Truncate(u64),
    /// Purges up to this many records before the last, with a snapshot that stands for them.
    Purge(u64),
    /// A snapshot comes that is this far ahead of the last one (or of the log's end, when `behind`), and replaces the
    /// log; the process may die between the two.
    Reset {
        ahead: u64,
        behind: bool,
        dies: bool,
    },
    Vote,
    /// The process dies, or the power fails, with this seed.
    Restart(Option<u64>),
    Close,
}

fn ops(with_power_cuts: bool) -> impl Strategy<Value = Vec<Op>> {
    let lengths = prop_oneof![Just(456_usize), 0..300_usize, 1000..6000_usize];
    let append = (1..8_u64, lengths, prop::bool::weighted(0.2));
    let restart = any::<u64>().prop_map(move |seed| Op::Restart(with_power_cuts.then_some(seed)));
    let op = prop_oneof![
        8 => append.prop_map(|(count, len, next_term)| Op::Append { count, len, next_term }),
        3 => Just(Op::StartFlush),
        3 => Just(Op::PollFlush),
        1 => any::<bool>().prop_map(Op::HoldFlushes),
        2 => Just(Op::Flush),
        1 => Just(Op::Settle),
        2 => (1..30_u64).prop_map(Op::Truncate),
        1 => (0..40_u64).prop_map(Op::Purge),
        1 => (1..12_u64, any::<bool>(), any::<bool>())
            .prop_map(|(ahead, behind, dies)| Op::Reset { ahead, behind, dies }),
        1 => Just(Op::Vote),
        3 => restart,
        1 => Just(Op::Close),
    ];
    prop::collection::vec(op, 1..60)
}

/// The model: terms of the records, from `first` on.
#[derive(Debug)]
struct Model {
    first: u64,
    terms: Vec<u64>,
    /// Where the newest snapshot ends.
    snapshot: u64,
    /// Last index promised.
    promised: u64,
    term: u64,
    /// The vote promised, and those saved since.
    votes: Vec<Vote>,
}

impl Model {
    fn last(&self) -> u64 {
        self.first + self.terms.len() as u64 - 1
    }

    fn contents(&self) -> Vec<(u64, u64)> {
        (self.first..).zip(self.terms.iter().copied()).collect()
    }

    fn truncate(&mut self, last_kept: u64) {
        self.terms.truncate((last_kept + 1 - self.first) as usize);
        self.promised = self.promised.min(last_kept);
    }

    fn purge(&mut self, first: u64) {
        self.terms.drain(..(first - self.first) as usize);
        self.first = first;
    }

    /// The vote counts from here on that was saved last.
    fn votes_are_durable(&mut self) {
        self.votes = vec![*self.votes.last().expect("never empty")];
    }
}

/// What a medium can do beyond being a directory.
trait Medium: Dir {
    fn hold(&self, hold: bool);
    /// What is there after a stop.
    fn stop(&self, seed: Option<u64>) -> Self;
}

impl Medium for Memory {
    fn hold(&self, hold: bool) {
        self.hold_flushes(hold);
    }

    fn stop(&self, seed: Option<u64>) -> Memory {
        match seed {
            Some(seed) if seed % 8 == 0 => self.power_cut(Loss::All),
            // Only the process dies: what is in the page cache is there, and still not durable.
            Some(seed) if seed % 8 < 3 => self.clone(),
            Some(seed) => self.power_cut(Loss::Random(seed)),
            None => self.clone(),
        }
    }
}

impl Medium for Disk {
    fn hold(&self, _: bool) {}

    fn stop(&self, _: Option<u64>) -> Disk {
        self.clone()
    }
}

fn play<D: Medium>(mut dir: D, options: &Options, ops: &[Op]) {
    let open = |dir: &D| {
        Log::open(dir.clone(), options.clone(), CLUSTER, GROUP, NODE)
            .unwrap_or_else(|e| panic!("it does not open: {e}"))
    };
    let mut log = open(&dir).0;
    let mut model = Model {
        first: 1,
        terms: Vec::new(),
        snapshot: 0,
        promised: 0,
        term: 1,
        votes: vec![Vote::default()],
    };
    // What the flush in group_flush will promise: last index, and how many votes were saved.
    let mut group_flush: Option<(u64, usize)> = None;
    for (i, op) in ops.iter().enumerate() {
        match *op {
            Op::Append {
                count,
                len,
                next_term,
            } => {
                model.term += u64::from(next_term);
                log.append_some(count, model.term, len);
                model.terms.extend((0..count).map(|_| model.term));
            }
            Op::StartFlush => {
                if log.start_flush().expect("begins") {
                    assert!(
                        group_flush.is_none(),
                        "the end of the last one was not told yet"
                    );
                    group_flush = Some((log.last(), model.votes.len()));
                }
            }
            Op::PollFlush | Op::Flush => {
                let state = match op {
                    Op::PollFlush => log.poll_flush(),
                    _ => log.wait_flush(),
                };
                match state.expect("no error") {
                    FlushState::Done => {
                        let (last, votes) = group_flush.take().expect("one was in group_flush");
                        model.promised = model.promised.max(last.min(model.last()));
                        model.votes.drain(..votes - 1);
                    }
                    FlushState::Running => assert!(group_flush.is_some()),
                    FlushState::Idle => assert!(group_flush.is_none()),
                }
                assert!(log.durable() >= model.promised);
                assert_eq!(log.durable_vote(), model.votes[0]);
            }
            Op::HoldFlushes(hold) => dir.hold(hold),
            Op::Settle => log.settle().expect("written"),
            Op::Truncate(count) => {
                let least = model.snapshot.max(model.first - 1);
                let last_kept = log.last().saturating_sub(count).max(least);
                if last_kept < log.last() {
                    log.truncate_after(last_kept).expect("cut");
                    model.truncate(last_kept);
                    // It waits for the flush in group_flush, whose end is still to be told of.
                    model.promised = last_kept;
                    if let Some((last, _)) = &mut group_flush {
                        *last = last_kept;
                    }
                    model.votes_are_durable();
                    if let Some((_, votes)) = &mut group_flush {
                        *votes = 1;
                    }
                    // What comes from here on is of a new leader.
                    model.term += 1;
                }
            }
            Op::Reset {
                ahead,
                behind,
                dies,
            } => {
                // Of a leader of a later term, which has overwritten what it says otherwise.
                model.term += 1;
                let from = if behind { log.last() } else { model.snapshot };
                let (index, term) = (from.max(model.first - 1) + ahead, model.term);
                take(&log.snapshots(), index, term, 700).expect("taken");
                if dies {
                    drop(log);
                    group_flush = None;
                    log = open(&dir).0;
                    dir.hold(false);
                    // Only the process died: what was saved is in the page cache.
                    model.votes = vec![log.vote()];
                } else {
                    log.reset_to(index, term).expect("replaced");
                    if let Some(group_flush) = &mut group_flush {
                        *group_flush = (index, 1);
                    }
                    model.votes_are_durable();
                }
                (model.first, model.terms) = (index + 1, Vec::new());
                (model.promised, model.snapshot) = (index, index);
            }
            Op::Purge(count) => {
                let taken = log.snapshot_what_is_durable();
                model.snapshot = taken.map_or(0, |id| id.index);
                log.snapshots()
                    .prune(&mut Reclaim::default())
                    .expect("pruned");
                let first = log
                    .purge_before(log.last().saturating_sub(count))
                    .expect("purged");
                assert!(first >= model.first && first <= model.promised.max(model.first) + 1);
                model.purge(first);
            }
            Op::Vote => {
                let vote = Vote {
                    term: model.term,
                    voted_for: Some(model.votes.len() as u64),
                };
                log.save_vote(vote).expect("saved");
                model.votes.push(vote);
            }
            Op::Restart(seed) => {
                drop(log);
                group_flush = None;
                dir = dir.stop(seed);
                let (reopened, found) = open(&dir);
                log = reopened;
                assert!(model.votes.contains(&found.vote), "{found:?}");
                model.votes = vec![found.vote];
                assert!(
                    found.last_index >= model.promised,
                    "{found:?} of {}",
                    model.promised
                );
                assert!(
                    found.last_index <= model.last(),
                    "{found:?} of {}",
                    model.last()
                );
                assert_eq!(found.first_index, model.first);
                let snapshot = found.snapshot.map_or(0, |(id, _)| id.index);
                assert_eq!(snapshot, model.snapshot);
                model.truncate(found.last_index);
                model.promised = found.last_index;
                dir.hold(false);
                // A node that was away comes back into a later term, mostly.
                model.term += seed.unwrap_or(0) % 2;
            }
            Op::Close => {
                log.close().expect("closed");
                group_flush = None;
                model.promised = model.last();
                model.votes_are_durable();
                let (reopened, found) = open(&dir);
                log = reopened;
                assert_eq!(
                    (found.last_index, &found.vote),
                    (model.last(), &model.votes[0])
                );
            }
        }
        assert_eq!((log.first(), log.last()), (model.first, model.last()));
        assert!(log.first() - 1 <= log.durable() && log.durable() <= log.last());
        // Appending alone changes nothing that is there: the next of these shows it all the same.
        let moved = matches!(
            op,
            Op::Truncate(_) | Op::Purge(_) | Op::Reset { .. } | Op::Restart(_) | Op::Close
        );
        if moved || i + 1 == ops.len() {
            assert_eq!(log.contents(), model.contents());
        }
    }
}

fn runner(cases: u32) -> TestRunner {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(cases);
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    })
}

#[test]
fn a_log_in_memory_is_a_vector_that_survives_power_cuts() {
    runner(100)
        .run(&ops(true), |ops| {
            play(Memory::new(1), &small(), &ops);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_log_on_disk_is_a_vector() {
    for flush in [FlushBackend::Auto, FlushBackend::Thread] {
        let options = Options { flush, ..small() };
        runner(8)
            .run(&ops(false), |ops| {
                let dir = tempfile::tempdir().expect("a temporary directory");
                play(Disk::new(dir.path()), &options, &ops);
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{e}"));
    }
}
