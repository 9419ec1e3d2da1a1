//! How answers come back, and what is refused at once: waiting, callbacks, futures, outboxes, limits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::task::Context;
use std::task::Poll;
use std::task::Wake;
use std::task::Waker;
use std::time::Duration;
use std::time::Instant;

use ringraft::session::SessionError;
use ringraft::{Consistency, NodeId, ProposeError, Session, Threads};

use crate::api::{PLANS, Three, alone, answer, commit, number};
use crate::{DEADLINE, until};

#[test]
fn an_answer_can_be_waited_for_called_back_and_awaited() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
        let gate = journal.shut();

        // With a limit: given back when the time is over, still under way.
        let waited = node.propose(b"1").expect("it is taken");
        let waited = waited
            .wait_timeout(Duration::from_millis(1))
            .expect_err("apply waits");

        let (heard, hear) = mpsc::channel();
        let say = heard.clone();
        let called_back = node.propose(b"2").expect("it is taken");
        called_back.then(move |answer| say.send(answer).expect("the test listens"));

        let mut awaited = pin!(node.propose(b"3").expect("it is taken"));
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(flag.clone());
        let mut context = Context::from_waker(&waker);
        assert!(
            awaited.as_mut().poll(&mut context).is_pending(),
            "apply waits"
        );
        assert!(!flag.woken(), "nothing has happened yet");

        // Nobody will hear of this one; it is applied all the same.
        drop(node.propose(b"4").expect("it is taken"));

        gate.open();
        assert_eq!(number(&answer(waited).expect("applied")), 1);
        let second = hear
            .recv_timeout(DEADLINE)
            .expect("the callback runs")
            .expect("applied");
        assert_eq!(number(&second), 2);
        until("the waker is woken", || flag.woken());
        match awaited.as_mut().poll(&mut context) {
            Poll::Ready(Ok(reply)) => assert_eq!(number(&reply), 3),
            other => panic!("woken, and then {other:?}"),
        }
        until("the one without a listener is applied", || {
            journal.count() == 4
        });

        // An answer that is there already calls back too, and a callback that panics harms nobody.
        let late = node.propose(b"5").expect("it is taken");
        until("it is applied", || journal.count() == 5);
        late.then(move |answer| heard.send(answer).expect("the test listens"));
        let fifth = hear
            .recv_timeout(DEADLINE)
            .expect("the callback runs")
            .expect("applied");
        assert_eq!(number(&fifth), 5);
        node.propose(b"6")
            .expect("it is taken")
            .then(|_| panic!("a callback's own trouble"));
        assert_eq!(number(&commit(&node, b"7")), 7);
        until("every slot is free again", || node.status().pending == 0);
        node.shutdown()
            .expect("the callback's panic is not the node's");
    }
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Flag {
    fn woken(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn an_outbox_yields_answers_in_the_order_of_the_log() {
    for threads in PLANS {
        let three = Three::start(|config| config.threads = threads.clone());
        let readers: Vec<_> = three
            .nodes
            .iter()
            .map(|node| {
                let node = node.clone();
                std::thread::spawn(move || {
                    let reader = std::thread::current();
                    let mut outbox = node
                        .outbox(move || reader.unpark())
                        .expect("an outbox is free");
                    let (mut sent, mut heard, mut last) = (0, 0, 0);
                    let deadline = Instant::now() + DEADLINE;
                    while heard < 2000 {
                        assert!(
                            Instant::now() < deadline,
                            "{heard} of 2000 answers after {DEADLINE:?}"
                        );
                        while sent < 2000 {
                            match node.propose_to(outbox.id(), sent, &sent.to_le_bytes()) {
                                Ok(()) => sent += 1,
                                Err(ProposeError::Busy) => break,
                                Err(error) => panic!("proposing: {error}"),
                            }
                        }
                        let drained = outbox.drain(64, |tag, outcome, reply| {
                            let index = outcome.expect("an undisturbed cluster commits");
                            assert_eq!(tag, heard, "one thread's proposals keep their order");
                            assert!(index > last, "{index} after {last}");
                            assert_eq!(reply.len(), 8);
                            (heard, last) = (heard + 1, index);
                        });
                        if drained == 0 {
                            outbox.sleep(|| std::thread::park_timeout(DEADLINE));
                        }
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.join().expect("the reader is content");
        }
        for journal in &three.journals {
            until("every node has applied all", || journal.count() == 6000);
        }
    }
}

#[test]
fn an_outbox_carries_reads_and_there_are_fifteen() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (node, _journal) = alone(dir.path(), |_| ());
    let mut outboxes: Vec<_> = (0..15)
        .map(|_| node.outbox(|| ()).expect("fifteen can be had"))
        .collect();
    assert!(node.outbox(|| ()).is_none(), "and no more");
    let outbox = outboxes.last_mut().expect("fifteen");
    commit(&node, b"one");
    for (tag, how) in [(1, Consistency::Linearizable), (2, Consistency::Stale)] {
        node.read_to(outbox.id(), tag, b"", how)
            .expect("it is taken");
        let mut heard = None;
        until("the read is answered", || {
            outbox.drain(1, |tag, outcome, reply| {
                heard = Some((tag, outcome, reply.to_vec()))
            });
            heard.is_some()
        });
        let (of, outcome, reply) = heard.expect("it is answered");
        assert_eq!((of, reply), (tag, 1u64.to_le_bytes().to_vec()));
        assert!(outcome.is_ok());
    }
}

#[test]
fn an_outbox_that_is_dropped_gives_its_requests_back() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (node, _journal) = alone(dir.path(), |_| ());
    for _ in 0..10 {
        let outbox = node.outbox(|| ()).expect("an outbox is free");
        for tag in 0..50 {
            node.propose_to(outbox.id(), tag, b"unheard")
                .expect("it is taken");
        }
    }
    until("nothing is pending", || node.status().pending == 0);
}

#[test]
fn a_node_with_all_it_can_bear_is_busy_and_recovers() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| {
            (config.threads, config.max_pending) = (threads.clone(), 64);
        });
        let gate = journal.shut();
        let taken: Vec<_> = (0..64)
            .map(|_| node.propose(b"x").expect("there is room for 64"))
            .collect();
        assert_eq!(node.propose(b"x").map(drop), Err(ProposeError::Busy));
        assert_eq!(
            node.read(b"", Consistency::Stale).map(drop),
            Err(ProposeError::Busy)
        );
        assert_eq!(node.status().pending, 64);
        gate.open();
        for (n, pending) in (1..).zip(taken) {
            assert_eq!(number(&answer(pending).expect("applied")), n);
        }
        assert_eq!(number(&commit(&node, b"again")), 65);
        node.shutdown().expect("it leaves in order");
        assert_eq!(journal.count(), 65, "what was refused was not applied");
    }
}

#[test]
fn bytes_of_long_commands_are_bounded_too() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (node, journal) = alone(dir.path(), |config| {
        (config.threads, config.max_spilled_bytes) = (Threads::Shared, 1000);
    });
    assert_eq!(node.propose(&[0; 1001]).map(drop), Err(ProposeError::Busy));
    // Many times the budget, one after the other: it is given back.
    for _ in 0..20 {
        commit(&node, &[0; 900]);
    }
    assert_eq!(journal.count(), 20);
}

#[test]
fn a_node_that_does_not_lead_says_who_does() {
    let three = Three::start(|_| ());
    let leader = three.until_leader(&[0, 1, 2]);
    let named = Some(NodeId(leader as u32 + 1));
    for (at, node) in three.nodes.iter().enumerate() {
        let outcome = answer(
            node.propose_as_leader(b"for the leader")
                .expect("it is taken"),
        );
        match outcome {
            Ok(_) => assert_eq!(at, leader),
            Err(error) => {
                assert_ne!(at, leader);
                assert_eq!(error, ProposeError::NotLeader { leader: named });
                assert!(error.definitely_not_applied());
            }
        }
    }

    let three = Three::start(|config| config.forward = false);
    let leader = three.until_leader(&[0, 1, 2]);
    let named = Some(NodeId(leader as u32 + 1));
    let follower = &three.nodes[three.follower_of(leader)];
    let outcome = answer(follower.propose(b"for the leader").expect("it is taken"));
    assert_eq!(outcome, Err(ProposeError::NotLeader { leader: named }));
    commit(&three.nodes[leader], b"for the leader");
    assert_eq!(three.journals[leader].count(), 1);
}

#[test]
fn outboxes_are_given_back_and_the_next_one_hears_of_its_own_only() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, _journal) = alone(dir.path(), |config| config.threads = threads.clone());
        let mut others: Vec<_> = (0..14)
            .map(|_| node.outbox(|| ()).expect("fourteen can be had"))
            .collect();
        let mut stale = Vec::new();
        for round in 0..200_u64 {
            let mut outbox = node
                .outbox(|| ())
                .expect("one place is left, again and again");
            for tag in 0..5 {
                let tag = round * 100 + tag;
                match node.propose_to(outbox.id(), tag, b"x") {
                    Ok(()) | Err(ProposeError::Busy) => {}
                    Err(error) => panic!("round {round}: {error}"),
                }
            }
            let heard = round * 100 + 99;
            let how = Consistency::Stale;
            until("there is room for a read", || {
                node.read_to(outbox.id(), heard, b"", how).is_ok()
            });
            let mut done = false;
            until("the read is answered", || {
                outbox.drain(64, |tag, _, _| {
                    assert_eq!(tag / 100, round, "an answer to an earlier outbox");
                    done |= tag == heard;
                });
                done
            });
            stale.push(outbox.id());
        }
        for id in stale {
            let refused = node.propose_to(id, 0, b"x");
            assert_eq!(refused, Err(ProposeError::NoOutbox));
        }
        assert!(node.outbox(|| ()).is_some());
        until("nothing is pending", || node.status().pending == 0);
        assert_eq!(others[13].drain(64, |_, _, _| ()), 0);
    }
}

#[test]
fn an_outbox_of_another_node_is_refused_at_once() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
    let (one, journal) = alone(dirs[0].path(), |_| ());
    let (other, _) = alone(dirs[1].path(), |_| ());
    let theirs = other.outbox(|| ()).expect("an outbox is free");
    for has_own in [false, true] {
        let own = has_own.then(|| one.outbox(|| ()).expect("an outbox is free"));
        let refused = [
            one.propose_to(theirs.id(), 1, b"x"),
            one.read_to(theirs.id(), 2, b"", Consistency::Stale),
            one.read_to(theirs.id(), 3, b"", Consistency::Log),
            one.wait_applied_to(theirs.id(), 4, 1),
        ];
        assert_eq!(refused, [const { Err(ProposeError::NoOutbox) }; 4]);
        drop(own);
    }
    assert_eq!(number(&commit(&one, b"goes on")), 1);
    assert_eq!((journal.count(), one.status().pending), (1, 0));
}

#[test]
fn what_panics_in_an_outbox_owners_code_harms_nobody() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
        let rung = Arc::new(AtomicBool::new(false));
        let ring = rung.clone();
        let mut outbox = node
            .outbox(move || {
                ring.store(true, Ordering::SeqCst);
                panic!("the notify's own trouble");
            })
            .expect("an outbox is free");
        let gate = journal.shut();
        node.propose_to(outbox.id(), 1, b"x").expect("it is taken");
        gate.until_somebody_stands_there();
        let mut gate = Some(gate);
        outbox.sleep(|| {
            drop(gate.take());
            until("it is notified", || rung.load(Ordering::SeqCst));
        });
        let mut heard = 0;
        let drained = catch_unwind(AssertUnwindSafe(|| {
            until("the answer is there", || {
                outbox.drain(1, |_, _, _| {
                    heard += 1;
                    panic!("the reader's own trouble");
                });
                false
            });
        }));
        assert!(drained.is_err());
        assert_eq!(number(&commit(&node, b"y")), 2);
        assert_eq!((heard, outbox.drain(1, |_, _, _| ())), (1, 0));
        assert_eq!(node.status().pending, 0, "the slot is free");
        node.shutdown().expect("it is not the node's trouble");
    }
}

#[test]
fn handles_outlive_their_node() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
        let mut outbox = node.outbox(|| ()).expect("an outbox is free");
        let unheard = node.outbox(|| ()).expect("an outbox is free");
        let gate = journal.shut();
        for outbox in [&outbox, &unheard] {
            node.propose_to(outbox.id(), 7, b"x").expect("it is taken");
        }
        let pending: Vec<_> = (0..2)
            .map(|_| node.propose(b"x").expect("it is taken"))
            .collect();
        gate.open();
        // What consensus has not taken when the node is asked to leave is refused.
        until("all four are applied", || journal.count() >= 4);
        let session = Session::open([node.clone()], Duration::from_millis(50));
        assert!(session.is_err(), "the machine knows no sessions");
        node.shutdown().expect("it leaves in order");
        let gone = Session::open([node.clone()], Duration::from_millis(50)).map(drop);
        assert_eq!(gone, Err(SessionError::Refused(ProposeError::Stopped)));
        drop(node);
        drop(unheard);
        let mut heard = Vec::new();
        outbox.drain(64, |tag, outcome, _| heard.push((tag, outcome.is_ok())));
        assert_eq!(heard, [(7, true)]);
        for pending in pending {
            answer(pending).expect("it was applied before the node left");
        }
    }
}
