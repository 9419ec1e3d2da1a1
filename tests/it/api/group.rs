//! One node, and three: proposals and reads on each of them, without anything going wrong but a lost quorum.

use ringraft::{Consistency, PeerStatus, ProposeError, Role};

use crate::api::{Journal, MAX_ENTRY, PLANS, Three, alone, answer, commit, hasty, number, read};
use crate::until;

#[test]
fn a_group_of_one_commits_by_itself_and_numbers_its_entries() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
        let mut last = 0;
        for n in 1..=50u64 {
            let reply = answer(node.propose(&n.to_le_bytes()).expect("it is taken")).expect("done");
            assert_eq!(number(&reply), n, "the state machine's own reply");
            assert!(reply.index > last, "{} comes after {last}", reply.index);
            last = reply.index;
        }
        assert_eq!(read(&node, Consistency::Linearizable), 50);
        assert_eq!(read(&node, Consistency::Stale), 50);
        let status = node.status();
        assert_eq!(
            (status.applied, status.committed, status.durable),
            (last, last, last)
        );
        assert!(
            status.flushes > 0 && status.flushed_entries >= 50,
            "{status:?}"
        );
        assert_eq!(node.status().pending, 0);
        node.shutdown().expect("it leaves in order");
        node.shutdown().expect("twice is as good as once");
        assert_eq!(journal.count(), 50);
        assert_eq!(node.propose(b"late").map(drop), Err(ProposeError::Stopped));
        assert_eq!(
            node.read(b"", Consistency::Stale).map(drop),
            Err(ProposeError::Stopped)
        );
    }
}

#[test]
fn each_of_three_nodes_takes_proposals_and_all_apply_the_same() {
    for threads in PLANS {
        let three = Three::start(|config| config.threads = threads.clone());
        let mut under_way = Vec::new();
        for n in 0..200u32 {
            for (at, node) in three.nodes.iter().enumerate() {
                let command = format!("{at}/{n}");
                under_way.push((at, node.propose(command.as_bytes()).expect("it is taken")));
            }
        }
        let mut last_of = [0; 3];
        for (at, pending) in under_way {
            let reply = answer(pending).expect("it is committed");
            assert!(
                reply.index > last_of[at],
                "one thread's proposals on one node keep their order"
            );
            last_of[at] = reply.index;
        }
        for (node, journal) in three.nodes.iter().zip(&three.journals) {
            until("every node has applied all", || journal.count() == 600);
            assert!(node.status().error.is_none());
        }
        let commands: Vec<_> = three.journals.iter().map(Journal::commands).collect();
        assert_eq!(commands[0], commands[1]);
        assert_eq!(commands[1], commands[2]);
        for node in &three.nodes {
            node.shutdown().expect("it leaves in order");
        }
    }
}

#[test]
fn long_commands_go_through_rings_segments_and_wire() {
    let three = Three::start(|_| ());
    let leader = three.until_leader(&[0, 1, 2]);
    let long = |seed: u8, len: usize| (0..len).map(|n| n as u8 ^ seed).collect::<Vec<u8>>();
    // 60 times 64 KiB: several segments of 1 MiB.
    let sizes = [1, 255, 256, 257, 4096, MAX_ENTRY - 1, MAX_ENTRY];
    for round in 0..30u8 {
        for node in [leader, three.follower_of(leader)] {
            commit(&three.nodes[node], &long(round, MAX_ENTRY));
        }
    }
    for size in sizes {
        commit(&three.nodes[leader], &long(7, size));
    }
    let expected: Vec<_> = (0..30u8)
        .flat_map(|round| [long(round, MAX_ENTRY), long(round, MAX_ENTRY)])
        .chain(sizes.map(|size| long(7, size)))
        .collect();
    for journal in &three.journals {
        until("every node has applied all", || {
            journal.count() == expected.len() as u64
        });
        assert!(
            journal.commands() == expected,
            "the bytes arrive as they were sent"
        );
    }
    for node in &three.nodes {
        let refused = node.propose(&long(0, MAX_ENTRY + 1)).map(drop);
        assert_eq!(refused, Err(ProposeError::TooLarge { max: MAX_ENTRY }));
    }
}

#[test]
fn a_linearizable_read_on_any_node_sees_what_any_other_acknowledged() {
    for threads in PLANS {
        let three = Three::start(|config| config.threads = threads.clone());
        for n in 1..=60 {
            commit(&three.nodes[n % 3], b"+");
            let seen = read(
                &three.nodes[(n + 1 + n / 3 % 2) % 3],
                Consistency::Linearizable,
            );
            assert_eq!(
                seen, n as u64,
                "all that was acknowledged before, and there was no more"
            );
        }
        for node in &three.nodes {
            let mut last = 0;
            until("a stale read gets there in the end", || {
                let seen = read(node, Consistency::Stale);
                assert!(
                    seen >= last,
                    "one node's past does not run backwards: {seen} after {last}"
                );
                last = seen;
                seen == 60
            });
        }
    }
}

#[test]
fn without_a_quorum_only_stale_reads_are_answered() {
    let three = Three::start(hasty);
    commit(&three.nodes[0], b"+");
    let left = three.until_leader(&[0, 1, 2]);
    for at in (0..3).filter(|&at| at != left) {
        three.nodes[at].shutdown_now();
    }
    assert_eq!(read(&three.nodes[left], Consistency::Stale), 1);
    // The leader of a moment ago must not believe itself.
    let outcome = answer(
        three.nodes[left]
            .read(b"", Consistency::Linearizable)
            .expect("it is taken"),
    );
    assert!(
        matches!(
            outcome,
            Err(ProposeError::NotLeader { leader: None } | ProposeError::Unconfirmed)
        ),
        "{outcome:?}"
    );
    until("it steps down", || {
        three.nodes[left].status().role != Role::Leader
    });
    until("it knows that nobody leads", || {
        three.nodes[left].status().leader.is_none()
    });
    let outcome = answer(three.nodes[left].propose(b"+").expect("it is taken"));
    assert_eq!(outcome, Err(ProposeError::NotLeader { leader: None }));
    assert_eq!(read(&three.nodes[left], Consistency::Stale), 1);
}

#[test]
fn what_a_follower_attaches_reaches_the_leader() {
    let three = Three::start(|_| ());
    // Whoever leads at the moment: a slow machine may elect another one at any time.
    let until_heard = |attached: &dyn Fn(u32) -> Vec<u8>| {
        until("a leader has heard from both", || {
            three.nodes.iter().any(|node| {
                let status = node.status();
                let heard = |peer: &PeerStatus| peer.piggyback == attached(peer.id.0);
                status.role == Role::Leader
                    && status.peers.len() == 2
                    && status.peers.iter().all(|peer| peer.active && heard(peer))
            })
        });
    };
    for text in ["first", "second, and longer", ""] {
        for (id, node) in (1..).zip(&three.nodes) {
            node.set_piggyback(format!("{id} {text}").as_bytes());
        }
        until_heard(&|id| format!("{id} {text}").into_bytes());
    }
    // What is too long is cut, not refused.
    for node in &three.nodes {
        node.set_piggyback(&[b'x'; 100]);
    }
    until_heard(&|_| vec![b'x'; 64]);
}
