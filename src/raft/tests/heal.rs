//! What a node does that has lost everything, and what its leader does with it.

use super::cluster::settings;
use super::exact::NoSizes;
use crate::raft::heal::HEALS;
use crate::raft::{Append, Core, Heal, Membership, Message, Outcome, Output, Restored, Role};

fn restored(voters: &[u64], heal: Option<Heal>) -> Restored {
    Restored {
        term: 0,
        vote: None,
        base_index: 0,
        base_term: 0,
        term_runs: Vec::new(),
        last_index: 0,
        committed: 0,
        heal,
        excluded: false,
        membership: Membership::of_voters(voters.to_vec()),
    }
}

fn started(restored: Restored) -> Core {
    let mut settings = settings();
    settings.id = 1;
    Core::new(settings, restored, 0)
}

/// Node 1, with a new directory in the place of one that is gone.
fn wiped(voters: &[u64]) -> Core {
    let heal = Heal {
        upto: u64::MAX,
        term: 0,
        vote_lost: true,
    };
    started(restored(voters, Some(heal)))
}

/// All that it does; its disk is quick with votes.
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

fn sent(core: &mut Core) -> Vec<(u64, Message)> {
    let sends = outputs(core).into_iter().filter_map(|output| match output {
        Output::Send { to, message } => Some((to, message)),
        _ => None,
    });
    sends.collect()
}

fn hears(core: &mut Core, from: u64, message: Message) -> Vec<(u64, Message)> {
    core.receive(1, from, &message, &NoSizes);
    sent(core)
}

/// The number of its questions, after its first tick, and whom it asks.
fn asks(core: &mut Core) -> (u64, Vec<u64>) {
    core.tick(1, &NoSizes);
    let asked = sent(core);
    let numbers = asked.iter().map(|(_, message)| match message {
        Message::ReadIndex { ctx, .. } => *ctx,
        other => panic!("{other}: it only asks"),
    });
    let numbers: Vec<u64> = numbers.collect();
    assert!(numbers.iter().all(|ctx| ctx & HEALS != 0), "{numbers:?}");
    (numbers[0], asked.iter().map(|(to, _)| *to).collect())
}

fn tells(term: u64, ctx: u64) -> Message {
    let index = None;
    Message::ReadIndexReply { term, ctx, index }
}

fn vote(term: u64, last_term: u64, last_index: u64) -> Message {
    Message::Vote {
        term,
        pre: false,
        last_index,
        last_term,
    }
}

fn is_granted(answers: &[(u64, Message)]) -> bool {
    let granted = |message: &Message| matches!(message, Message::VoteReply { granted: true, .. });
    answers.iter().any(|(_, message)| granted(message))
}

#[test]
fn who_has_lost_everything_votes_only_for_whom_others_have_elected_before() {
    let mut core = wiped(&[1, 2, 3]);
    let (ctx, asked) = asks(&mut core);
    assert_eq!(asked, [2, 3], "every other voter");
    // Before it has heard all of them it says nothing at all.
    assert_eq!(hears(&mut core, 2, vote(9, 8, 100)), []);
    assert_eq!(hears(&mut core, 2, tells(8, ctx)), []);
    let heartbeat = Message::Heartbeat {
        term: 8,
        commit: 0,
        round: 0,
    };
    assert_eq!(hears(&mut core, 3, heartbeat), []);
    assert_eq!(core.term(), 0, "one is missing");
    // An answer to another life of it tells what was true then.
    assert_eq!(hears(&mut core, 3, tells(8, ctx ^ 1)), []);
    assert_eq!(core.term(), 0, "one is missing still");

    // Nor does one that has an empty directory and does not know better.
    assert_eq!(hears(&mut core, 3, tells(0, ctx)), []);
    assert_eq!(core.term(), 0, "one is missing still");

    hears(&mut core, 3, tells(5, ctx));
    assert_eq!(core.term(), 8, "the highest of all");
    // Whatever was acknowledged by it in term 8 a log that ends there may lack.
    assert!(!is_granted(&hears(&mut core, 2, vote(9, 8, 1 << 40))));
    assert!(is_granted(&hears(&mut core, 3, vote(10, 9, 1))));
    core.tick(1 << 40, &NoSizes);
    assert_eq!(core.role(), Role::Follower, "it does not stand");
}

#[test]
fn when_too_many_have_lost_everything_all_of_them_wait() {
    let lost = Message::ReadIndex {
        term: 0,
        ctx: HEALS | 7,
    };
    let mut core = wiped(&[1, 2, 3]);
    let (ctx, _) = asks(&mut core);
    hears(&mut core, 2, lost);
    hears(&mut core, 3, tells(5, ctx));
    assert_eq!(core.term(), 0, "1 and 2 may have elected each other in 6");

    let mut core = wiped(&[1, 2, 3, 4, 5]);
    let (ctx, _) = asks(&mut core);
    hears(&mut core, 2, lost);
    hears(&mut core, 3, tells(5, ctx));
    hears(&mut core, 4, tells(6, ctx));
    assert_eq!(core.term(), 0, "5 may be a candidate");
    hears(&mut core, 5, tells(5, ctx));
    assert_eq!(core.term(), 6, "nobody was elected without one of three");
}

/// Node 1 leads 2 and 3 in term 1, its entries 2 and 3 are on the disk of 2, and not yet on its own.
fn leader() -> (Core, u64) {
    let mut core = started(restored(&[1, 2, 3], None));
    core.tick(1 << 30, &NoSizes);
    for pre in [true, false] {
        outputs(&mut core);
        let yes = Message::VoteReply {
            term: 1,
            pre,
            granted: true,
        };
        core.receive(1 << 30, 2, &yes, &NoSizes);
    }
    assert!(core.is_leader());
    let first = outputs(&mut core)
        .into_iter()
        .find_map(|output| match output {
            Output::AppendTermStart { write, .. } => Some(write),
            _ => None,
        });
    core.persisted(1 << 30, first.expect("its first entry"), &NoSizes);
    acknowledges(&mut core, 3, 1);
    assert_eq!(core.commit(), 1);
    let proposed = core.propose(1 << 30, 2, 10, &NoSizes).expect("it leads");
    acknowledges(&mut core, 2, 3);
    assert_eq!(core.commit(), 1, "it counts itself when its disk is done");
    (core, proposed.write)
}

fn acknowledges(core: &mut Core, from: u64, index: u64) {
    let message = Message::AppendReply {
        term: 1,
        round: 0,
        outcome: Outcome::Matched { index },
    };
    core.receive(1 << 30, from, &message, &NoSizes);
    outputs(core);
}

#[test]
fn what_a_lost_directory_had_acknowledged_is_not_counted_any_more() {
    let (mut core, write) = leader();
    core.persisted(1 << 30, write, &NoSizes);
    assert_eq!(core.commit(), 3, "as long as 2 has it");

    let (mut core, write) = leader();
    // 2 is back with nothing, and asks how far it must get.
    let ask = Message::ReadIndex {
        term: 1,
        ctx: HEALS | 7,
    };
    core.receive(1 << 30, 2, &ask, &NoSizes);
    core.persisted(1 << 30, write, &NoSizes);
    assert_eq!(core.commit(), 1, "only the leader has 2 and 3");
    acknowledges(&mut core, 3, 3);
    assert_eq!(core.commit(), 3);
}

#[test]
fn a_leader_that_is_asked_how_far_answers_when_it_is_sure_that_it_leads() {
    let (mut core, _) = leader();
    let (term, ctx) = (1, HEALS | 7);
    let early = hears(&mut core, 2, Message::ReadIndex { term, ctx });
    let answers = |sent: &[(u64, Message)]| {
        let told = sent.iter().filter_map(|(to, message)| match message {
            Message::ReadIndexReply { ctx, index, .. } => Some((*to, *ctx, *index)),
            _ => None,
        });
        told.collect::<Vec<_>>()
    };
    assert_eq!(answers(&early), []);
    let (term, round) = (1, 1);
    let sent = hears(&mut core, 3, Message::HeartbeatReply { term, round });
    assert_eq!(answers(&sent), [(2, ctx, Some(1))]);
}

#[test]
fn it_is_healed_when_it_has_what_was_committed_with_its_help() {
    let mut core = wiped(&[1, 2, 3]);
    let (ctx, _) = asks(&mut core);
    for (peer, term) in [(2, 1), (3, 1)] {
        hears(&mut core, peer, tells(term, ctx));
    }
    let mut append = Append {
        term: 1,
        prev_index: 0,
        prev_term: 0,
        last: 3,
        commit: 2,
        round: 0,
        bytes: 0,
        runs: Default::default(),
    };
    assert!(append.runs.push(1, 1));
    core.receive(1, 2, &Message::Append(append), &NoSizes);
    let is_healed = |core: &mut Core| {
        let healed = |output: &Output| matches!(output, Output::Healed { .. });
        outputs(core).iter().any(healed)
    };
    assert!(!is_healed(&mut core), "nobody has said how far it must get");
    assert!(core.next_deadline() <= 1, "it asks at once");
    core.tick(1, &NoSizes);
    let index = Some(3);
    let reply = Message::ReadIndexReply {
        term: 1,
        ctx,
        index,
    };
    core.receive(1, 2, &reply, &NoSizes);
    assert!(!is_healed(&mut core), "it knows that up to 2 is committed");
    let heartbeat = Message::Heartbeat {
        term: 1,
        commit: 3,
        round: 0,
    };
    core.receive(1, 2, &heartbeat, &NoSizes);
    assert!(is_healed(&mut core));
}
