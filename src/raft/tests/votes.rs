//! What one node makes of who stands, of strangers, and of what its disk gave back.

use super::cluster::settings;
use super::exact::NoSizes;
use crate::raft::{Append, Core, Membership, Message, Output, Restored};

fn restored(term: u64, vote: Option<u64>, term_runs: Vec<(u64, u64)>, last_index: u64) -> Restored {
    Restored {
        term,
        vote,
        base_index: 0,
        base_term: 0,
        term_runs,
        last_index,
        committed: 0,
        heal: None,
        excluded: false,
        membership: Membership::of_voters(vec![1, 2, 3]),
    }
}

fn started(restored: Restored) -> Core {
    let mut settings = settings();
    settings.id = 1;
    Core::new(settings, restored, 0)
}

/// All that it says, its disk being quick.
fn outputs(core: &mut Core) -> Vec<Output> {
    let mut all = Vec::new();
    while let Some(output) = core.pop_output() {
        if let Output::SaveVote { write, .. } = output {
            core.persisted(0, write, &NoSizes);
        }
        all.push(output);
    }
    all
}

#[test]
fn what_was_known_to_be_committed_a_candidate_has() {
    // The state machine has entries up to 20; the log's flush had not come as far.
    let behind = || {
        let mut restored = restored(5, None, vec![(5, 1)], 10);
        restored.committed = 20;
        started(restored)
    };
    for (last_index, expected) in [(10, false), (19, false), (20, true), (30, true)] {
        let mut core = behind();
        assert_eq!(core.commit(), 10, "no further than the log");
        let ask = Message::Vote {
            term: 6,
            pre: false,
            last_index,
            last_term: 5,
        };
        core.receive(1, 2, &ask, &NoSizes);
        let granted = outputs(&mut core).iter().any(|output| {
            matches!(output, Output::Send { message: Message::VoteReply { granted, .. }, .. } if *granted)
        });
        assert_eq!(granted, expected, "a log that ends at {last_index}");
    }
    let mut core = behind();
    core.tick(1_000_000_000, &NoSizes);
    assert!(outputs(&mut core).is_empty(), "it does not stand itself");
}

/// Whether a node whose log is `mine` (last term and index) grants one whose log is `theirs`.
fn grants(mine: (u64, u64), theirs: (u64, u64), pre: bool) -> bool {
    let runs = if mine.1 == 0 {
        Vec::new()
    } else {
        vec![(mine.0, 1)]
    };
    let mut core = started(restored(5, None, runs, mine.1));
    let (last_term, last_index) = theirs;
    let ask = Message::Vote {
        term: 6,
        pre,
        last_index,
        last_term,
    };
    core.receive(1, 2, &ask, &NoSizes);
    let granted: Vec<bool> = outputs(&mut core)
        .iter()
        .filter_map(|output| match output {
            Output::Send {
                message: Message::VoteReply { granted, .. },
                ..
            } => Some(*granted),
            _ => None,
        })
        .collect();
    assert_eq!(granted.len(), 1, "one answer");
    granted[0]
}

/// LESSONS 6: the term decides, and the index only between equal ones.
#[test]
fn a_vote_goes_to_a_log_that_is_as_new() {
    for pre in [true, false] {
        for (mine, theirs, granted) in [
            ((3, 5), (3, 5), true),
            ((3, 5), (3, 6), true),
            ((3, 5), (3, 4), false),
            ((3, 5), (4, 1), true),
            ((3, 5), (4, 9), true),
            ((3, 5), (2, 9), false),
            ((3, 5), (2, 5), false),
            ((3, 5), (0, 0), false),
            ((0, 0), (0, 0), true),
            ((0, 0), (1, 1), true),
        ] {
            let seen = grants(mine, theirs, pre);
            assert_eq!(seen, granted, "pre={pre}: {theirs:?} asks who has {mine:?}");
        }
    }
}

/// LESSONS 8: else one that cannot win keeps the one that could from standing.
#[test]
fn a_refused_vote_does_not_reset_the_timer() {
    let mut core = started(restored(5, None, vec![(5, 1)], 9));
    let before = core.next_deadline();
    for term in 6..20 {
        let ask = Message::Vote {
            term,
            pre: false,
            last_index: 1,
            last_term: 1,
        };
        core.receive(50_000, 2, &ask, &NoSizes);
    }
    assert_eq!((core.term(), core.next_deadline()), (19, before));
    let ask = Message::Vote {
        term: 20,
        pre: false,
        last_index: 9,
        last_term: 5,
    };
    core.receive(99_000, 2, &ask, &NoSizes);
    assert!(core.next_deadline() >= 199_000, "a granted one does");
}

/// A promise forbids the real vote too: the pre-vote may have been granted before it.
#[test]
fn who_has_promised_its_leader_a_lease_votes_for_nobody() {
    let mut settings = settings();
    (settings.id, settings.lease_us) = (1, Some(95_000));
    let timeout_us = settings.election_timeout_us;
    let mut core = Core::new(settings, restored(5, None, vec![(5, 1)], 1), 0);
    let ask = Message::LeaseAsk {
        term: 5,
        number: 1,
        promise_us: timeout_us,
    };
    let stand = |pre| Message::Vote {
        term: 6,
        pre,
        last_index: 9,
        last_term: 5,
    };
    // Nobody votes for an election timeout after a start.
    core.receive(timeout_us - 1, 2, &stand(false), &NoSizes);
    assert_eq!(outputs(&mut core), []);
    core.look_at_clock(timeout_us + 30);
    core.receive(timeout_us, 3, &ask, &NoSizes);
    let said = outputs(&mut core);
    let promise = Output::Send {
        to: 3,
        message: Message::LeasePromise { term: 5, number: 1 },
    };
    assert!(said.contains(&promise), "{said:?}");
    // Stickiness ends with the connection.
    core.peer_down(timeout_us, 3);
    for pre in [true, false] {
        core.receive(2 * timeout_us + 29, 2, &stand(pre), &NoSizes);
        assert_eq!((outputs(&mut core), core.term()), (vec![], 5), "pre={pre}");
    }
    core.receive(2 * timeout_us + 30, 2, &stand(false), &NoSizes);
    assert_eq!(core.term(), 6, "the promise is over");
}

/// What a peer asks may be anything: a promise that is longer than its own timeout would not be
/// known to this node after a restart.
#[test]
fn no_promise_is_given_that_a_restart_would_forget() {
    for (lease_us, promise_us) in [(None, 1), (Some(95_000), 100_001), (Some(95_000), u64::MAX)] {
        let mut settings = settings();
        (settings.id, settings.lease_us) = (1, lease_us);
        let mut core = Core::new(settings, restored(5, None, vec![(5, 1)], 1), 0);
        let ask = Message::LeaseAsk {
            term: 5,
            number: 1,
            promise_us,
        };
        core.receive(1, 2, &ask, &NoSizes);
        let said = outputs(&mut core);
        let promises = |output: &Output| {
            let message = match output {
                Output::Send { message, .. } => message,
                _ => return false,
            };
            matches!(message, Message::LeasePromise { .. })
        };
        assert!(!said.iter().any(promises), "{lease_us:?} {promise_us}");
        assert_eq!(core.leader(), Some(2), "a leader it is all the same");
    }
}

/// A crash between the writes of an entry and of the term may leave the newer of the two in the
/// log.
#[test]
fn the_log_may_know_a_later_term_than_the_vote_does() {
    let core = started(restored(2, Some(3), vec![(1, 1), (4, 2)], 2));
    assert_eq!(
        (core.term(), core.vote),
        (4, None),
        "the vote was one of term 2"
    );
    let core = started(restored(4, Some(3), vec![(1, 1), (4, 2)], 2));
    assert_eq!((core.term(), core.vote), (4, Some(3)));
}

/// LESSONS 61: who is not of the group is not heard, and not answered.
#[test]
fn a_stranger_is_not_heard() {
    let mut core = started(restored(5, None, vec![(5, 1)], 9));
    for from in [1, 4] {
        let ask = Message::Vote {
            term: 9,
            pre: false,
            last_index: 99,
            last_term: 9,
        };
        core.receive(1, from, &ask, &NoSizes);
        let heartbeat = Message::Heartbeat {
            term: 9,
            commit: 9,
            round: 0,
        };
        core.receive(1, from, &heartbeat, &NoSizes);
    }
    assert_eq!(outputs(&mut core), []);
    assert_eq!((core.term(), core.leader()), (5, None));
}

/// LESSONS 12: votes of a round that is over elect nobody.
#[test]
fn late_pre_votes_do_nothing() {
    let mut core = started(restored(5, None, vec![(5, 1)], 9));
    let heartbeat = Message::Heartbeat {
        term: 5,
        commit: 9,
        round: 0,
    };
    core.campaign(&NoSizes);
    core.receive(1, 2, &heartbeat, &NoSizes);
    for from in [2, 3] {
        let refused = Message::VoteReply {
            term: 5,
            pre: true,
            granted: false,
        };
        core.receive(1, from, &refused, &NoSizes);
    }
    assert_eq!(
        core.leader(),
        Some(2),
        "a lost round of its past costs it no leader"
    );
    let granted = Message::VoteReply {
        term: 6,
        pre: true,
        granted: true,
    };
    core.receive(1, 3, &granted, &NoSizes);
    assert_eq!((core.term(), core.leader()), (5, Some(2)));
}

/// Whom a majority of this term's voters made its leader, that leads it; nobody else does.
#[test]
fn a_term_has_one_leader() {
    let mut core = started(restored(5, None, vec![(5, 1)], 9));
    let heartbeat = Message::Heartbeat {
        term: 5,
        commit: 0,
        round: 0,
    };
    core.receive(1, 2, &heartbeat, &NoSizes);
    outputs(&mut core);
    let deadline = core.next_deadline();
    let other = Message::Heartbeat {
        term: 5,
        commit: 9,
        round: 0,
    };
    core.receive(50_000, 3, &other, &NoSizes);
    assert_eq!(outputs(&mut core), []);
    assert_eq!((core.leader(), core.next_deadline()), (Some(2), deadline));
}

/// Who leads an earlier term is told, whatever it says, so that it steps down; it is not followed.
#[test]
fn a_leader_of_an_earlier_term_is_told() {
    let append = Append {
        term: 4,
        prev_index: 9,
        prev_term: 5,
        last: 9,
        commit: 9,
        round: 3,
        bytes: 0,
        runs: Default::default(),
    };
    for stale in [
        Message::Append(append),
        Message::Heartbeat {
            term: 4,
            commit: 9,
            round: 3,
        },
    ] {
        let mut core = started(restored(5, None, vec![(5, 1)], 9));
        core.receive(1, 2, &stale, &NoSizes);
        let told = outputs(&mut core);
        let [
            Output::Send {
                to: 2,
                message: Message::HeartbeatReply { term: 5, .. },
            },
        ] = told[..]
        else {
            panic!("{told:?} to {stale}");
        };
        assert_eq!((core.leader(), core.commit), (None, 0));
    }
}
