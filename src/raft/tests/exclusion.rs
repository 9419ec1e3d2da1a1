//! What a node does whose directory may be the wrong one.

use super::cluster::settings;
use super::exact::NoSizes;
use crate::raft::message::Runs;
use crate::raft::{Append, Core, Membership, Message, Output, Restored, Role};

fn restored(term: u64, excluded: bool) -> Restored {
    Restored {
        term,
        vote: None,
        base_index: 0,
        base_term: 0,
        term_runs: Vec::new(),
        last_index: 0,
        committed: 0,
        heal: None,
        excluded,
        membership: Membership::of_voters(vec![1, 2, 3]),
    }
}

/// Node 1 of three.
fn started(restored: Restored, founding_wait_us: u64) -> Core {
    let mut settings = settings();
    (settings.id, settings.founding_wait_us) = (1, founding_wait_us);
    Core::new(settings, restored, 0)
}

/// What it sends; its disk is quick.
fn sent(core: &mut Core, now_us: u64) -> Vec<(u64, Message)> {
    let mut sent = Vec::new();
    while let Some(output) = core.pop_output() {
        match output {
            Output::Send { to, message } => sent.push((to, message)),
            Output::SaveVote { write, .. } | Output::AppendTermStart { write, .. } => {
                core.persisted(now_us, write, &NoSizes);
            }
            _ => {}
        }
    }
    sent
}

fn hears(core: &mut Core, now_us: u64, from: u64, message: Message) -> Vec<(u64, Message)> {
    core.receive(now_us, from, &message, &NoSizes);
    sent(core, now_us)
}

fn vote(term: u64, pre: bool) -> Message {
    Message::Vote {
        term,
        pre,
        last_index: 9,
        last_term: 9,
    }
}

fn grant(term: u64, pre: bool) -> Message {
    Message::VoteReply {
        term,
        pre,
        granted: true,
    }
}

fn heartbeat(term: u64) -> Message {
    Message::Heartbeat {
        term,
        commit: 0,
        round: 7,
    }
}

/// Elects node 1 with the help of node 2.
fn elect(core: &mut Core, now_us: u64) {
    for id in [2, 3] {
        core.peer_up(1, id, &NoSizes);
    }
    core.tick(now_us, &NoSizes);
    sent(core, now_us);
    hears(core, now_us, 2, grant(core.term() + 1, true));
    hears(core, now_us, 2, grant(core.term(), false));
    assert_eq!(core.role(), Role::Leader);
}

fn takes_no_part(core: &mut Core, from_us: u64) {
    let term = core.term();
    assert_eq!((core.role(), core.leader()), (Role::Follower, None));
    for later in 1..100 {
        let now_us = from_us + later * 50_000;
        core.tick(now_us, &NoSizes);
        assert_eq!(sent(core, now_us), [], "it does not campaign");
    }
    let now_us = from_us + 10_000_000;
    for message in [
        vote(term + 1, true),
        vote(term + 1, false),
        heartbeat(term + 1),
        Message::Append(Append {
            term: term + 1,
            prev_index: 0,
            prev_term: 0,
            last: 0,
            commit: 0,
            round: 7,
            bytes: 0,
            runs: Runs::default(),
        }),
        grant(term, false),
        Message::ReadIndex { term, ctx: 1 },
    ] {
        assert_eq!(hears(core, now_us, 2, message), [], "to {message}");
    }
    for id in [2, 3] {
        core.peer_up(now_us, id, &NoSizes);
        core.peer_down(now_us, id);
    }
    core.snapshot_received(now_us, 100, 8);
    assert_eq!(sent(core, now_us), []);
    assert_eq!((core.role(), core.leader()), (Role::Follower, None));
    assert_eq!((core.term(), core.commit()), (term, 0));
    assert_eq!(core.next_deadline(), u64::MAX, "nothing is ever due");
    assert_eq!(core.propose(now_us, 1, 10, &NoSizes), None);
    core.read(now_us, 5);
    assert_eq!(core.pop_output(), Some(Output::ReadFailed { ctx: 5 }));
    assert_eq!(core.fresh_index(now_us, u64::MAX), None);
}

#[test]
fn a_leader_that_is_excluded_steps_down_and_takes_no_part() {
    let mut core = started(restored(0, false), 0);
    elect(&mut core, 1_000_000);
    core.exclude(1_000_001);
    sent(&mut core, 1_000_001);
    takes_no_part(&mut core, 1_000_001);
    core.exclude(1_000_001);
    assert_eq!(core.pop_output(), None, "once is enough");
}

#[test]
fn a_follower_and_a_candidate_that_are_excluded_take_no_part() {
    let mut core = started(restored(0, false), 0);
    hears(&mut core, 10, 2, heartbeat(5));
    assert_eq!(core.leader(), Some(2));
    core.exclude(20);
    sent(&mut core, 20);
    takes_no_part(&mut core, 20);

    let mut core = started(restored(0, false), 0);
    core.tick(1_000_000, &NoSizes);
    assert_eq!(core.role(), Role::PreCandidate);
    core.exclude(1_000_000);
    while core.pop_output().is_some() {}
    takes_no_part(&mut core, 1_000_000);
}

#[test]
fn a_promise_that_waits_for_the_disk_is_never_said_by_one_that_is_excluded() {
    let mut core = started(restored(0, false), 0);
    core.receive(10, 2, &vote(3, false), &NoSizes);
    let write = match core.pop_output() {
        Some(Output::SaveVote { write, .. }) => write,
        other => panic!("{other:?}: a vote is written first"),
    };
    core.exclude(20);
    core.persisted(30, write, &NoSizes);
    assert_eq!(sent(&mut core, 30), []);
}

#[test]
fn one_that_starts_excluded_takes_no_part() {
    takes_no_part(&mut started(restored(4, true), 0), 0);
}

#[test]
fn a_node_that_was_never_part_of_anything_waits_for_its_peers() {
    const WAIT: u64 = 5_000_000;
    // For all of them, or for the end of its patience.
    let mut core = started(restored(0, false), WAIT);
    core.peer_up(1, 2, &NoSizes);
    core.tick(1_000_000, &NoSizes);
    assert_eq!(sent(&mut core, 1_000_000), []);
    for pre in [true, false] {
        assert_eq!(hears(&mut core, 1_000_000, 2, vote(1, pre)), []);
    }
    assert_eq!((core.role(), core.term()), (Role::Follower, 0));
    core.peer_up(1_000_000, 3, &NoSizes);
    assert_eq!(hears(&mut core, 1_000_000, 2, vote(1, true)), []);
    assert_ne!(hears(&mut core, 1_025_000, 2, vote(1, true)), []);
    elect(&mut core, 2_000_000);

    let mut core = started(restored(0, false), WAIT);
    core.tick(WAIT, &NoSizes);
    assert_eq!(core.role(), Role::PreCandidate, "the others may be down");

    // One that has a term has been met by those that were there.
    let mut core = started(restored(1, false), WAIT);
    core.tick(1_000_000, &NoSizes);
    assert_eq!(core.role(), Role::PreCandidate);

    // A leader is followed at once.
    let mut core = started(restored(0, false), WAIT);
    assert_ne!(hears(&mut core, 10, 3, heartbeat(2)), []);
    assert_eq!((core.leader(), core.term()), (Some(3), 2));
    assert_ne!(hears(&mut core, 1_000_000, 2, vote(3, true)), []);
}
