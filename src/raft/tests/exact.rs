//! What one append does to one follower, for every small pair of logs, against a slow definition
//! with a term per entry (LESSONS 16, 17, 18 and 22).

use super::cluster::settings;
use crate::raft::message::Runs;
use crate::raft::{Append, Core, Membership, Message, Outcome, Output, Restored, Sizes};

pub(super) struct NoSizes;

impl Sizes for NoSizes {
    fn fit(&self, first: u64, _last: u64, _max_bytes: u64) -> (u64, u64) {
        (first, 1)
    }
}

fn runs_of(terms: &[u64], first: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (index, &term) in (first..).zip(terms) {
        if runs.last().is_none_or(|run| run.0 != term) {
            runs.push((term, index));
        }
    }
    runs
}

/// A follower of term 5 with this log, of which `commit` entries are committed.
fn follower(terms: &[u64], commit: u64) -> Core {
    let restored = Restored {
        term: 5,
        vote: None,
        base_index: 0,
        base_term: 0,
        term_runs: runs_of(terms, 1),
        last_index: terms.len() as u64,
        committed: 0,
        heal: None,
        excluded: false,
        membership: Membership::of_voters(vec![1, 2, 3]),
    };
    let mut settings = settings();
    settings.id = 1;
    let mut core = Core::new(settings, restored, 0);
    core.commit = commit;
    core
}

/// All logs up to this length whose terms do not fall.
fn logs(length: usize) -> Vec<Vec<u64>> {
    let mut all = vec![Vec::new()];
    let mut longest = all.clone();
    for _ in 0..length {
        longest = longest
            .iter()
            .flat_map(|log: &Vec<u64>| {
                (log.last().copied().unwrap_or(1)..=3)
                    .map(|term| [log.as_slice(), &[term]].concat())
            })
            .collect();
        all.extend_from_slice(&longest);
    }
    all
}

/// Logs that share an entry (same index, same term) share all before it: else they could not be.
fn could_be(mine: &[u64], theirs: &[u64], commit: usize) -> bool {
    let same = mine
        .iter()
        .zip(theirs)
        .rposition(|(a, b)| a == b)
        .map_or(0, |at| at + 1);
    mine[..same] == theirs[..same] && commit <= same
}

#[test]
fn an_append_does_what_the_slow_definition_says() {
    let (mut appends, mut truncated, mut refused) = (0, 0, 0);
    for mine in logs(4) {
        for theirs in logs(4) {
            for commit in 0..=mine.len().min(theirs.len()) {
                if !could_be(&mine, &theirs, commit) {
                    continue;
                }
                for prev in 0..=theirs.len() {
                    for last in prev..=theirs.len() {
                        for leader_commit in [0, commit, last, theirs.len()] {
                            let case = Case {
                                mine: &mine,
                                theirs: &theirs,
                                commit,
                                prev,
                                last,
                            };
                            match case.check(leader_commit as u64) {
                                Seen::Refused => refused += 1,
                                Seen::Truncated => truncated += 1,
                                Seen::Taken => {}
                            }
                            appends += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(appends > 20_000, "{appends} appends");
    assert!(
        truncated > 1000 && refused > 1000,
        "{truncated} truncated, {refused} refused"
    );
}

#[derive(Debug)]
struct Case<'a> {
    mine: &'a [u64],
    theirs: &'a [u64],
    commit: usize,
    prev: usize,
    last: usize,
}

enum Seen {
    Refused,
    Truncated,
    Taken,
}

impl Case<'_> {
    fn check(&self, leader_commit: u64) -> Seen {
        let &Case {
            mine,
            theirs,
            commit,
            prev,
            last,
        } = self;
        let mut core = follower(mine, commit as u64);
        let mut runs = Runs::default();
        for (term, first) in runs_of(&theirs[prev..last], prev as u64 + 1) {
            assert!(runs.push(term, first));
        }
        let append = Append {
            term: 5,
            prev_index: prev as u64,
            prev_term: if prev == 0 { 0 } else { theirs[prev - 1] },
            last: last as u64,
            commit: leader_commit,
            round: 7,
            bytes: 0,
            runs,
        };
        core.receive(1, 2, &Message::Append(append), &NoSizes);
        let mut log = mine.to_vec();
        let (mut written, mut committed, mut truncated, mut said) = (0, commit, false, Vec::new());
        while let Some(output) = core.pop_output() {
            match output {
                Output::Truncate { write, after } => {
                    log.truncate(after as usize);
                    (written, truncated) = (write, true);
                }
                Output::AppendReceived { write, first, last } => {
                    assert_eq!(first as usize, log.len() + 1, "{self:?}");
                    log.extend_from_slice(&theirs[first as usize - 1..last as usize]);
                    written = write;
                }
                Output::Commit { index } => committed = index as usize,
                Output::Send { message, .. } => {
                    assert_eq!(written, 0, "{message} before what it rests on: {self:?}");
                    said.push(message);
                }
                _ => {}
            }
        }
        if written > 0 {
            core.persisted(2, written, &NoSizes);
            while let Some(output) = core.pop_output() {
                if let Output::Send { message, .. } = output {
                    said.push(message);
                }
            }
        }
        let [
            Message::AppendReply {
                term: 5,
                round: 7,
                outcome,
            },
        ] = said[..]
        else {
            panic!("answers {said:?} to {self:?}");
        };

        let agree = prev == 0 || mine.get(prev - 1) == Some(&theirs[prev - 1]);
        if !agree {
            let Outcome::Conflict {
                prev: at,
                hint_index,
                ..
            } = outcome
            else {
                panic!("{outcome:?} to {self:?}");
            };
            assert_eq!((log.as_slice(), committed), (mine, commit), "{self:?}");
            assert_eq!(at as usize, prev, "{self:?}");
            let agree_to = mine.iter().zip(theirs).take_while(|(a, b)| a == b).count() as u64;
            assert!(
                agree_to <= hint_index,
                "the hint goes too far back: {self:?}"
            );
            return Seen::Refused;
        }
        assert_eq!(outcome, Outcome::Matched { index: last as u64 }, "{self:?}");
        let differs = (prev..last).find(|&at| mine.get(at) != Some(&theirs[at]));
        let slow = differs.map_or(mine.to_vec(), |_| theirs[..last].to_vec());
        assert_eq!(log, slow, "{self:?}");
        assert_eq!(
            truncated,
            differs.is_some_and(|at| at < mine.len()),
            "{self:?}"
        );
        assert_eq!(
            committed,
            commit.max(last.min(leader_commit as usize)),
            "{self:?}"
        );
        if truncated {
            Seen::Truncated
        } else {
            Seen::Taken
        }
    }
}

/// A heartbeat names no entries; it may tell no more than this node has acknowledged, and should it
/// do so, what is not there is not committed.
#[test]
fn a_heartbeat_commits_nothing_beyond_the_log() {
    let mut core = follower(&[1, 1, 2], 1);
    let heartbeat = Message::Heartbeat {
        term: 5,
        commit: 9,
        round: 0,
    };
    core.receive(1, 2, &heartbeat, &NoSizes);
    assert_eq!(core.commit, 3);
}
