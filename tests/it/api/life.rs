//! Beginning and end of a node: faults of the state machine, shutdown, restart, leadership, an embedder's own loop.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ringraft::{
    Batch, Config, Consistency, Fault, Member, Node, NodeId, ProposeError, Role, ShutdownError,
    SnapshotWriter, StateMachine, Threads,
};

use crate::api::{
    Journal, Machine, PLANS, Three, Told, alone, answer, commit, hasty, number, small, start_alone,
};
use crate::ports::Ports;
use crate::{DEADLINE, until, until_some};

#[test]
fn a_state_machine_that_fails_stops_its_node_and_everybody_hears() {
    for threads in PLANS {
        for (bad, says) in [(&b"panic"[..], "panicked"), (b"error", "error")] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
            let gate = journal.shut();
            let before = node.propose(b"good").expect("it is taken");
            gate.until_somebody_stands_there();
            let guilty = node.propose(bad).expect("it is taken");
            let after = node.propose(b"after").expect("it is taken");
            // Both come into the log before the first of them is applied: now, behind the term's own entry and `good`, or
            // where one thread does all, together, when it goes on.
            if threads != Threads::Shared {
                until("all are in the log", || node.status().last == 4);
            }
            gate.open();
            let fault = until_some("the node says why it stopped", || node.status().error);
            let text = fault.to_string();
            assert!(matches!(fault, Fault::StateMachine(_)), "{text}");
            assert!(
                text.contains(says)
                    && text.contains("the command said so")
                    && text.contains("at index 3"),
                "{text}"
            );
            assert_eq!(number(&answer(before).expect("it was applied before")), 1);
            for pending in [guilty, after] {
                let outcome = answer(pending);
                assert_eq!(
                    outcome,
                    Err(ProposeError::Unknown),
                    "it is in the log for ever"
                );
            }
            assert_eq!(node.propose(b"late").map(drop), Err(ProposeError::Stopped));
            let left = node.shutdown().expect_err("the fault is not forgotten");
            assert_eq!(left.to_string(), text);
            assert_eq!(journal.count(), 1);
        }
    }
}

#[test]
fn a_limit_of_any_length_is_a_limit() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (node, _) = alone(dir.path(), |_| ());
    for limit in [Duration::MAX, Duration::from_secs(u64::MAX / 2)] {
        assert_eq!(node.wait_for_leader(limit), Some(NodeId(1)));
        let pending = node.propose(b"x").expect("it is taken");
        let reply = pending.wait_timeout(limit).expect("it comes in time");
        assert!(reply.is_ok(), "{reply:?}");
        let how = Consistency::AtMost {
            age: limit,
            entries: u64::MAX,
        };
        let read = node.read(b"", how).expect("it is taken");
        assert!(answer(read).is_ok());
    }
}

/// A machine whose snapshots go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touchy {
    Well,
    Writing,
    Restoring,
    Opening,
}

impl StateMachine for Touchy {
    fn apply(&mut self, batch: &mut Batch<'_>) -> std::io::Result<()> {
        while batch.next().is_some() {}
        Ok(())
    }

    fn query(&self, _: &[u8], _: &mut Vec<u8>) {}

    fn open(&mut self) -> std::io::Result<u64> {
        assert_ne!(*self, Self::Opening, "the door is stuck");
        Ok(0)
    }

    fn snapshot(&mut self) -> std::io::Result<SnapshotWriter> {
        let how = *self;
        Ok(Box::new(move |to| {
            assert_ne!(how, Self::Writing, "there is no ink");
            to.write_all(b"state")
        }))
    }

    fn restore(&mut self, from: &mut dyn std::io::Read) -> std::io::Result<()> {
        assert_ne!(*self, Self::Restoring, "a page is torn");
        std::io::copy(from, &mut std::io::sink()).map(drop)
    }
}

#[test]
fn errors_are_sentences_that_keep_what_a_panic_said() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let start = |machine: Touchy| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("it is bound").to_string();
        let members = vec![Member {
            id: NodeId(1),
            addr,
        }];
        let config = Config {
            cluster_id: Some(7), // Each start has another port.
            ..Config::new(NodeId(1), dir.path(), members)
        };
        Node::start_on(listener, small(config), machine)
    };
    let node = start(Touchy::Writing).expect("the node starts");
    until("it leads", || node.status().role == Role::Leader);
    commit(&node, b"x");
    let refused = answer(node.snapshot().expect("it is taken")).expect_err("it panics");
    assert_eq!(refused, ProposeError::NoSnapshot);
    let trouble = node.status().snapshot.trouble.expect("it says why");
    assert!(trouble.contains("there is no ink"), "{trouble}");
    let twice = start(Touchy::Well).expect_err("it is in use");
    assert!(
        twice.to_string().contains("by this process already"),
        "{twice}"
    );
    node.shutdown().expect("it leaves in order");
    drop(node);

    let node = start(Touchy::Well).expect("the node starts");
    until("it leads", || node.status().role == Role::Leader);
    commit(&node, b"y"); // Of nothing there is no snapshot.
    answer(node.snapshot().expect("it is taken")).expect("it is written");
    node.shutdown().expect("it leaves in order");
    for (machine, says) in [
        (Touchy::Restoring, "a page is torn"),
        (Touchy::Opening, "the door is stuck"),
    ] {
        let error = start(machine).expect_err("it does not start");
        assert!(error.to_string().contains(says), "{error}");
        // What `main() -> Result<(), Box<dyn Error>>` prints.
        assert_eq!(format!("{error:?}"), error.to_string());
    }
}

/// Over the interface alone; what becomes of names that change is tested in `net`.
#[test]
fn a_peer_that_cannot_be_resolved_is_a_peer_that_is_down() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ports = Ports::claim();
    let machine = || Machine {
        journal: Journal::default(),
        count: 0,
    };
    let unknown = format!("{}:7103", "x".repeat(64)); // No name has a part so long.
    let addrs = [ports.next(), ports.next()].map(|port| format!("127.0.0.1:{port}"));
    let members: Vec<Member> = (1..)
        .zip(addrs.iter().chain([&unknown]))
        .map(|(id, addr)| Member {
            id: NodeId(id),
            addr: addr.clone(),
        })
        .collect();
    let nodes: Vec<Node> = (1..)
        .zip(&addrs)
        .map(|(id, addr)| {
            let config = Config {
                listen: Some(addr.replace("127.0.0.1", "0.0.0.0")),
                ..Config::new(NodeId(id), dir.path().join(id.to_string()), members.clone())
            };
            Node::start(small(config), machine()).expect("the node starts")
        })
        .collect();
    until("two of three lead", || {
        nodes.iter().all(|node| node.leader().is_some())
    });
    let config = Config {
        listen: Some(unknown.clone()),
        ..Config::new(NodeId(1), dir.path().join("other"), members)
    };
    let error = Node::start(small(config), machine())
        .expect_err("its own address it needs")
        .to_string();
    assert!(
        error.contains(&unknown) && error.contains("Config::listen"),
        "{error}"
    );
}

#[test]
fn a_query_that_panics_stops_its_node_and_no_other() {
    let three = Three::start(|_| ());
    let leader = three.until_leader(&[0, 1, 2]);
    let follower = three.follower_of(leader);
    let outcome = answer(
        three.nodes[follower]
            .read(b"panic", Consistency::Stale)
            .expect("taken"),
    );
    assert!(outcome.is_err(), "{outcome:?}");
    let fault = until_some("the node says why", || three.nodes[follower].status().error);
    assert!(fault.to_string().contains("the query said so"), "{fault}");
    commit(&three.nodes[leader], b"goes on");
    assert!(three.nodes[leader].status().error.is_none());
}

#[test]
fn shutdown_answers_every_request() {
    for threads in PLANS {
        let three = Three::start(|config| {
            config.threads = threads.clone();
            hasty(config);
        });
        let leader = three.until_leader(&[0, 1, 2]);
        let node = &three.nodes[leader];
        for at in (0..3).filter(|&at| at != leader) {
            three.nodes[at].shutdown_now();
        }
        // Nothing can be committed any more.
        let mut outbox = node.outbox(|| ()).expect("an outbox is free");
        let called = Arc::new(AtomicUsize::new(0));
        let mut waiting = Vec::new();
        for tag in 0..20 {
            waiting.push(node.propose(b"x").expect("it is taken"));
            node.propose_to(outbox.id(), tag, b"x")
                .expect("it is taken");
            let called = called.clone();
            node.propose(b"x")
                .expect("it is taken")
                .then(move |answer| {
                    assert!(answer.is_err());
                    called.fetch_add(1, Ordering::SeqCst);
                });
        }
        node.shutdown().expect("no fault: it was asked to");
        for pending in waiting {
            let outcome = answer(pending);
            assert!(outcome.is_err(), "nothing was committed: {outcome:?}");
        }
        let mut heard = 0;
        outbox.drain(usize::MAX, |_, outcome, _| {
            assert!(outcome.is_err());
            heard += 1;
        });
        assert_eq!(heard, 20, "when shutdown returns, all answers are there");
        assert_eq!(called.load(Ordering::SeqCst), 20);
        assert_eq!(node.status().pending, 0);
    }
}

#[test]
fn shutdown_finishes_all_that_was_taken_before() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
        let waiting: Vec<_> = (0..500)
            .map(|_| node.propose(b"x").expect("it is taken"))
            .collect();
        node.shutdown().expect("it leaves in order");
        for pending in waiting {
            answer(pending).expect("it was taken before");
        }
        assert_eq!(journal.count(), 500);
    }
}

#[test]
fn a_restart_replays_the_log_in_order_after_a_clean_end_and_after_a_crash() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut acknowledged: Vec<Vec<u8>> = Vec::new();
    let payload = vec![b'.'; 20_000]; // 60 a round: a segment and more.
    for (round, threads) in PLANS.iter().cycle().take(4).enumerate() {
        let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
        until("the log is replayed", || {
            journal.count() >= acknowledged.len() as u64
        });
        assert!(
            journal.commands() == acknowledged,
            "round {round}: all of it, once, in order"
        );
        let mut pending = Vec::new();
        for n in 0..60 {
            let mut command = format!("{round}/{n}").into_bytes();
            command.extend_from_slice(&payload);
            pending.push(node.propose(&command).expect("it is taken"));
            acknowledged.push(command);
        }
        for pending in pending {
            answer(pending).expect("it is committed");
        }
        if round % 2 == 0 {
            node.shutdown_now();
        } else {
            node.shutdown().expect("it leaves in order");
        }
    }
}

#[test]
fn a_directory_belongs_to_one_node_at_a_time_and_to_one_cluster() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let named = dir.path().display().to_string();
    let (node, _) = alone(dir.path(), |_| ());
    let error = start_alone(dir.path(), |_| ())
        .expect_err("the directory is in use")
        .to_string();
    assert!(
        error.contains(&named) && error.contains("in use"),
        "{error}"
    );
    commit(&node, b"the first is not disturbed");
    node.shutdown().expect("it leaves in order");

    let error = start_alone(dir.path(), |config| config.cluster_id = Some(8))
        .expect_err("the directory is another cluster's")
        .to_string();
    assert!(
        error.contains(&named) && error.contains("cluster"),
        "{error}"
    );
    let (node, journal) = alone(dir.path(), |_| ());
    until("nothing was changed by the attempts", || {
        journal.count() == 1
    });
    drop(node);
}

#[test]
fn the_state_machine_hears_of_terms_and_leadership() {
    for threads in PLANS {
        let three = Three::start(|config| config.threads = threads.clone());
        let first = three.until_leader(&[0, 1, 2]);
        let first_term = three.nodes[first].status().term;
        commit(&three.nodes[first], b"x");
        until("the leader's machine is told", || {
            three.journals[first]
                .told()
                .contains(&Told::LeaderStart(first_term))
        });
        three.nodes[first].shutdown().expect("it leaves in order");
        assert!(
            three.journals[first]
                .told()
                .contains(&Told::LeaderStop(first_term)),
            "a start is followed by a stop, at shutdown at the latest"
        );

        let others: Vec<usize> = (0..3).filter(|&at| at != first).collect();
        let second = three.until_leader(&others);
        let second_term = three.nodes[second].status().term;
        assert!(second_term > first_term);
        until("the next leader's machine is told", || {
            three.journals[second]
                .told()
                .contains(&Told::LeaderStart(second_term))
        });
        for at in others {
            until("all have the new term's first entry", || {
                three.journals[at]
                    .told()
                    .contains(&Told::NewTerm(second_term))
            });
            three.nodes[at].shutdown().expect("it leaves in order");
        }
        for journal in &three.journals {
            check_leadership(&journal.told());
        }
    }
}

/// Terms begin in order; a leadership begins after its term did, and ends before the next begins.
fn check_leadership(told: &[Told]) {
    let (mut term, mut leading) = (0, None);
    for what in told {
        match *what {
            Told::NewTerm(next) => {
                assert!(next > term, "term {next} after {term}: {told:?}");
                term = next;
            }
            Told::LeaderStart(of) => {
                assert_eq!((of, leading), (term, None), "{told:?}");
                leading = Some(of);
            }
            Told::LeaderStop(of) => assert_eq!(leading.take(), Some(of), "{told:?}"),
            Told::Applied(..) => {}
        }
    }
    assert_eq!(leading, None, "every start has its stop: {told:?}");
}

#[test]
fn an_embedder_can_drive_a_node_from_its_own_loop() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ports = Ports::claim();
    let addr = format!("127.0.0.1:{}", ports.next());
    let members = vec![Member {
        id: NodeId(1),
        addr,
    }];
    let config = small(Config::new(NodeId(1), dir.path(), members));
    let journal = Journal::default();
    let machine = Machine {
        journal: journal.clone(),
        count: 0,
    };
    let (node, mut driver) = Node::start_driven(config, machine).expect("the node starts");

    let turn = |driver: &mut ringraft::Driver| {
        if !driver.poll() {
            driver.wait(Duration::from_millis(10));
        }
    };
    until("it leads", || {
        turn(&mut driver);
        node.status().role == Role::Leader
    });
    let mut pending: Vec<_> = (0..100u8)
        .map(|n| node.propose(&[n]).expect("it is taken"))
        .collect();
    let mut done = 0;
    until("all are answered", || {
        turn(&mut driver);
        for waiting in std::mem::take(&mut pending) {
            match waiting.wait_timeout(Duration::ZERO) {
                Ok(outcome) => {
                    outcome.expect("it is committed");
                    done += 1;
                }
                Err(waiting) => pending.push(waiting),
            }
        }
        pending.is_empty()
    });
    assert_eq!((done, journal.count()), (100, 100));

    // A proposal from another thread wakes a driver that waits.
    let other = node.clone();
    let from_afar = std::thread::spawn(move || commit(&other, b"from afar"));
    until("the other thread has its answer", || {
        if !driver.poll() {
            driver.wait(DEADLINE);
        }
        from_afar.is_finished()
    });
    from_afar.join().expect("it was committed");

    let asked = node.shutdown();
    assert!(matches!(asked, Err(ShutdownError::OwnThread)), "{asked:?}");
    until("it has left", || {
        turn(&mut driver);
        !driver.is_running()
    });
    assert!(!driver.poll());
    assert_eq!(node.propose(b"late").map(drop), Err(ProposeError::Stopped));
}

#[test]
fn a_log_without_its_beginning_is_not_a_shorter_log() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (node, _journal) = alone(dir.path(), |_| ());
    let long = vec![7; 60_000];
    for _ in 0..20 {
        commit(&node, &long);
    }
    node.shutdown().expect("it leaves in order");
    let log = dir.path().join("group-0/log");
    std::fs::remove_file(log.join("0000000000000001.seg")).expect("there is a first segment");
    let error = start_alone(dir.path(), |_| ())
        .map(drop)
        .expect_err("those entries are more than one segment");
    let error = error.to_string();
    assert!(
        error.contains(&log.display().to_string()) && error.contains("are missing"),
        "{error}"
    );
}
