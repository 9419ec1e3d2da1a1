//! Messages that no sound peer sends: the core may do nothing with them, but it stands.

use super::cluster::settings;
use crate::raft::message::Runs;
use crate::raft::rng::Rng;
use crate::raft::{Append, Core, Membership, Message, Outcome, Output, Restored, Role, Sizes};

struct OneByteEach;

impl Sizes for OneByteEach {
    fn fit(&self, first: u64, last: u64, max_bytes: u64) -> (u64, u64) {
        let last = last.min(first.saturating_add(max_bytes.max(1) - 1));
        (last, last - first + 1)
    }
}

fn started(base_index: u64, seed: u64) -> Core {
    let restored = Restored {
        term: 3,
        vote: None,
        base_index,
        base_term: u64::from(base_index > 0),
        term_runs: vec![(1, base_index + 1), (3, base_index + 4)],
        last_index: base_index + 6,
        committed: 0,
        heal: None,
        excluded: false,
        membership: Membership::of_voters(vec![1, 2, 3]),
    };
    let mut settings = settings();
    (settings.id, settings.seed) = (1, seed);
    Core::new(settings, restored, 0)
}

/// Small numbers around what the node has, and the ends of the range.
fn number(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => u64::MAX - rng.below(2),
        1 => 1 << 62,
        _ => rng.below(18),
    }
}

fn message(rng: &mut Rng, term: u64) -> Message {
    let term = if rng.below(3) == 0 { number(rng) } else { term };
    match rng.below(9) {
        0 => {
            let (pre, last_index, last_term) = (rng.below(2) == 0, number(rng), number(rng));
            Message::Vote {
                term,
                pre,
                last_index,
                last_term,
            }
        }
        1 => {
            let pre = rng.below(2) == 0;
            let term = if pre { term.saturating_add(1) } else { term };
            Message::VoteReply {
                term,
                pre,
                granted: rng.below(3) > 0,
            }
        }
        2 | 3 => {
            let mut runs = Runs::default();
            let prev_index = number(rng);
            let of_term = if rng.below(3) == 0 {
                number(rng)
            } else {
                1 + rng.below(4)
            };
            let (mut of_term, mut first) = (of_term, prev_index.saturating_add(1));
            for _ in 0..rng.below(4) {
                runs.push(of_term, first);
                of_term = of_term.saturating_add(rng.below(3));
                first = first.saturating_add(rng.below(3));
            }
            Message::Append(Append {
                term,
                prev_index,
                prev_term: if rng.below(3) == 0 {
                    number(rng)
                } else {
                    1 + 2 * rng.below(2)
                },
                last: if rng.below(5) == 0 {
                    number(rng)
                } else {
                    prev_index.saturating_add(rng.below(5))
                },
                commit: number(rng),
                round: number(rng),
                bytes: 0,
                runs,
            })
        }
        4 => {
            let outcome = Outcome::Matched { index: number(rng) };
            Message::AppendReply {
                term,
                round: number(rng),
                outcome,
            }
        }
        5 => {
            let (prev, hint_index, hint_term) = (number(rng), number(rng), number(rng));
            let outcome = Outcome::Conflict {
                prev,
                hint_index,
                hint_term,
            };
            Message::AppendReply {
                term,
                round: number(rng),
                outcome,
            }
        }
        6 => Message::Heartbeat {
            term,
            commit: number(rng),
            round: number(rng),
        },
        7 => Message::HeartbeatReply {
            term,
            round: number(rng),
        },
        _ if rng.below(2) == 0 => Message::ReadIndex {
            term,
            ctx: number(rng),
        },
        _ => {
            let index = (rng.below(2) == 0).then(|| number(rng));
            Message::ReadIndexReply {
                term,
                ctx: number(rng),
                index,
            }
        }
    }
}

#[test]
fn no_message_makes_the_core_panic() {
    let (mut led, mut truncated) = (0, 0);
    for seed in 0..600 {
        let mut rng = Rng::new(seed);
        let mut core = started(if seed % 3 == 0 { 7 } else { 0 }, seed);
        let (mut now_us, mut written) = (0, 0);
        for _ in 0..120 {
            now_us += rng.below(30_000);
            let term = core.term();
            match rng.below(8) {
                0 => core.tick(now_us, &OneByteEach),
                1 => core.persisted(now_us, written, &OneByteEach),
                2 => {
                    if let Some(proposed) = core.propose(now_us, 2, 2, &OneByteEach) {
                        written = proposed.write;
                    }
                }
                3 => core.read(now_us, now_us),
                4 if !core.is_leader() && core.leader().is_none() => {
                    // So that it leads now and then.
                    let pre = core.role() != Role::Candidate;
                    let term = term + u64::from(pre);
                    let granted = Message::VoteReply {
                        term,
                        pre,
                        granted: true,
                    };
                    core.receive(now_us, 2, &granted, &OneByteEach);
                }
                _ => {
                    let from = 1 + rng.below(4);
                    let message = message(&mut rng, term);
                    core.receive(now_us, from, &message, &OneByteEach);
                }
            }
            while let Some(output) = core.pop_output() {
                match output {
                    Output::SaveVote { write, .. }
                    | Output::AppendReceived { write, .. }
                    | Output::AppendTermStart { write, .. } => written = write,
                    Output::Truncate { write, .. } => {
                        written = write;
                        truncated += 1;
                    }
                    _ => {}
                }
            }
            led += u64::from(core.is_leader());
        }
    }
    assert!(
        led > 500 && truncated > 10,
        "as a leader {led} times, truncated {truncated} times"
    );
}

/// A node that took up the highest term there is could never stand again.
#[test]
fn a_term_out_of_reach_is_not_taken_up() {
    let mut core = started(0, 1);
    let heartbeat = Message::Heartbeat {
        term: u64::MAX,
        commit: 0,
        round: 0,
    };
    core.receive(0, 2, &heartbeat, &OneByteEach);
    assert_eq!(core.term(), 3);
}

/// A disk that finishes nothing, and a peer that asks again and again: what waits has a bound.
#[test]
fn what_waits_for_the_disk_or_a_round_is_bounded() {
    let mut core = started(0, 1);
    let ask = Message::Vote {
        term: 4,
        pre: false,
        last_index: 9,
        last_term: 3,
    };
    for _ in 0..100_000 {
        core.receive(0, 2, &ask, &OneByteEach);
    }
    assert!(
        core.durable.held() <= 1024,
        "{} answers wait for the disk",
        core.durable.held()
    );

    let heartbeat = Message::Heartbeat {
        term: 4,
        commit: 0,
        round: 0,
    };
    core.receive(0, 2, &heartbeat, &OneByteEach);
    for ctx in 0..100_000 {
        core.read(0, ctx);
        while core.pop_output().is_some() {}
    }
    assert!(
        core.reads.len() <= 16,
        "{} reads wait for the leader",
        core.reads.len()
    );
}

/// Where a follower lacks what the leader has purged, no append helps: it is not asked without end.
#[test]
fn a_follower_behind_a_purged_log_is_not_probed_for_ever() {
    let mut core = started(7, 1);
    core.now_us = 1;
    core.campaign(&OneByteEach);
    let granted = |pre| Message::VoteReply {
        term: 4,
        pre,
        granted: true,
    };
    core.receive(1, 2, &granted(true), &OneByteEach);
    core.persisted(1, 1, &OneByteEach);
    core.receive(1, 2, &granted(false), &OneByteEach);
    assert!(core.is_leader());
    let mut probes = 0;
    for _ in 0..1000 {
        let mut probe = None;
        while let Some(output) = core.pop_output() {
            if let Output::Send {
                to: 2,
                message: Message::Append(append),
            } = output
            {
                probe = Some(append.prev_index);
            }
        }
        let Some(prev) = probe else { break };
        probes += 1;
        // It has nothing at all.
        let outcome = Outcome::Conflict {
            prev,
            hint_index: 0,
            hint_term: 0,
        };
        let reply = Message::AppendReply {
            term: 4,
            round: 0,
            outcome,
        };
        core.receive(1, 2, &reply, &OneByteEach);
    }
    assert!(probes < 20, "{probes} appends that cannot match");
}
