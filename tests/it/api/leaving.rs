//! Shutting down: one rule for all runners, from whichever thread, however often; and when it is over, the node is gone.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use ringraft::{
    Batch, Config, Driver, Member, Node, NodeId, ProposeError, Role, ShutdownError, SnapshotWriter,
    StateMachine, Threads,
};

use crate::api::{Journal, Machine, PLANS, Three, alone, answer, commit, small};
use crate::ports::Ports;
use crate::{DEADLINE, until};

/// Far more than any test waits.
const NEVER: Duration = Duration::from_secs(3600);

/// Runs something that must come to its end; a test that hangs says nothing.
fn in_time<T: Send + 'static>(what: &str, run: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(run()));
    told.recv_timeout(DEADLINE)
        .unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

fn lone(port: u16, dir: &Path) -> Config {
    let members = vec![Member {
        id: NodeId(1),
        addr: format!("127.0.0.1:{port}"),
    }];
    small(Config::new(NodeId(1), dir, members))
}

fn machine(journal: &Journal) -> Machine {
    Machine {
        journal: journal.clone(),
        count: 0,
    }
}

fn until_it_leads(node: &Node) {
    until("it leads", || node.status().role == Role::Leader);
}

/// An embedder's loop, on a thread that drives by now.
fn drive(mut driver: Driver) -> JoinHandle<()> {
    let (tell, told) = mpsc::channel();
    let driven = std::thread::spawn(move || {
        while driver.is_running() {
            if !driver.poll() {
                driver.wait(Duration::from_millis(5));
            }
            let _ = tell.send(());
        }
    });
    told.recv().expect("it drives");
    driven
}

#[test]
fn whoever_shuts_down_second_waits_as_long_and_hears_the_same() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| {
            (config.threads, config.proposal_timeout) = (threads.clone(), NEVER);
        });
        let gate = journal.shut();
        let pending = node.propose(b"x").expect("it is taken");
        gate.until_somebody_stands_there();
        let (is_open, begun) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let callers: Vec<_> = (0..3)
            .map(|_| {
                let (node, is_open, begun) = (node.clone(), is_open.clone(), begun.clone());
                std::thread::spawn(move || {
                    begun.fetch_add(1, Ordering::SeqCst);
                    node.shutdown().expect("it leaves in order");
                    assert!(is_open.load(Ordering::SeqCst), "it returned too early");
                    assert_eq!(
                        node.status().pending,
                        1,
                        "but for the answer nobody has taken"
                    );
                })
            })
            .collect();
        until("all have begun", || begun.load(Ordering::SeqCst) == 3);
        until("it takes nothing new", || {
            node.propose(b"y").map(drop) == Err(ProposeError::Stopped)
        });
        is_open.store(true, Ordering::SeqCst);
        gate.open();
        for caller in callers {
            in_time("a shutdown returns", || caller.join()).expect("as it should be");
        }
        answer(pending).expect("it was finished");
    }
}

#[test]
fn directory_and_address_are_free_when_shutdown_returns() {
    let mut ports = Ports::claim();
    let port = ports.next();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut done, mut drivers) = (0, Vec::new());
    for round in 0..6 {
        for threads in PLANS {
            let config = Config {
                threads,
                ..lone(port, dir.path())
            };
            let journal = Journal::default();
            let node = Node::start(config, machine(&journal)).expect("all is free");
            until_it_leads(&node);
            let pending = node.propose(b"x").expect("it is taken");
            match round % 2 {
                0 => node.shutdown().expect("it leaves in order"),
                _ => node.shutdown_now(),
            }
            done += u64::from(answer(pending).is_ok());
        }
        let (node, driver) =
            Node::start_driven(lone(port, dir.path()), machine(&Journal::default()))
                .expect("all is free");
        drivers.push(drive(driver));
        until_it_leads(&node);
        node.shutdown().expect("it leaves in order");
    }
    for driver in drivers {
        driver.join().expect("no panic");
    }
    let journal = Journal::default();
    let node = Node::start(lone(port, dir.path()), machine(&journal)).expect("all is free");
    until("all that was acknowledged is there", || {
        journal.count() >= done
    });
    node.shutdown().expect("it leaves in order");
}

#[test]
fn a_driven_node_finishes_what_can_be_finished() {
    let mut ports = Ports::claim();
    for is_own_thread in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = Config {
            proposal_timeout: NEVER,
            ..lone(ports.next(), dir.path())
        };
        let journal = Journal::default();
        let (node, mut driver) =
            Node::start_driven(config, machine(&journal)).expect("the node starts");
        until("it leads", || {
            if !driver.poll() {
                driver.wait(Duration::from_millis(5));
            }
            node.status().role == Role::Leader
        });
        let pending: Vec<_> = (0..100)
            .map(|_| node.propose(b"x").expect("it is taken"))
            .collect();
        driver.poll(); // They are handed on, and are not durable yet.
        if is_own_thread {
            in_time("it drives itself to its end", move || driver.shutdown())
                .expect("it leaves in order");
        } else {
            let driven = drive(driver);
            node.shutdown().expect("it leaves in order");
            driven.join().expect("no panic");
        }
        for pending in pending {
            answer(pending).expect("it was handed on before the node was to leave");
        }
        assert_eq!(journal.count(), 100);
    }
}

/// A machine that does something with its node whenever it applies.
struct Meddles {
    inner: Machine,
    node: Arc<OnceLock<Node>>,
    heard: Arc<Mutex<Vec<Result<(), ShutdownError>>>>,
}

impl StateMachine for Meddles {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        if let Some(node) = self.node.get() {
            self.heard.lock().expect("no panic").push(node.shutdown());
        }
        self.inner.apply(batch)
    }
    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        self.inner.query(query, reply);
    }
}

#[test]
fn a_thread_of_the_node_asks_it_to_leave_and_does_not_wait_for_itself() {
    let mut ports = Ports::claim();
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = Config {
            threads: threads.clone(),
            proposal_timeout: NEVER,
            ..lone(ports.next(), dir.path())
        };
        let (slot, heard) = (Arc::new(OnceLock::new()), Arc::new(Mutex::new(Vec::new())));
        let journal = Journal::default();
        let meddles = Meddles {
            inner: machine(&journal),
            node: slot.clone(),
            heard: heard.clone(),
        };
        let node = Node::start(config, meddles).expect("the node starts");
        until_it_leads(&node);
        let gate = journal.shut();
        let before = node.propose(b"x").expect("it is taken");
        gate.until_somebody_stands_there();
        let last = node.status().last;
        let called_back = node.propose(b"y").expect("it is taken");
        let (of_callback, of_notify) = (node.clone(), node.clone());
        let (in_callback, in_notify) = (heard.clone(), heard.clone());
        called_back.then(move |_| {
            let left = of_callback.shutdown();
            in_callback.lock().expect("no panic").push(left);
        });
        let mut outbox = node
            .outbox(move || {
                let left = of_notify.shutdown();
                in_notify.lock().expect("no panic").push(left);
            })
            .expect("an outbox is free");
        node.propose_to(outbox.id(), 1, b"z").expect("it is taken");
        // Before the node is asked to leave, both are in the log, or will be taken into it together.
        if threads != Threads::Shared {
            until("both are in the log", || node.status().last == last + 2);
        }
        assert!(slot.set(node.clone()).is_ok());
        let mut gate = Some(gate);
        outbox.sleep(|| {
            drop(gate.take());
            until("all three have asked", || {
                heard.lock().expect("no panic").len() >= 3
            });
        });
        in_time("the node leaves", {
            let node = node.clone();
            move || node.shutdown()
        })
        .expect("in order");
        for left in heard.lock().expect("no panic").iter() {
            assert!(matches!(left, Err(ShutdownError::OwnThread)), "{left:?}");
        }
        answer(before).expect("it was applied");
        assert_eq!(journal.count(), 3);
        drop(outbox);
    }
}

#[test]
fn a_driver_that_is_dropped_leaves_no_request_unanswered() {
    let mut ports = Ports::claim();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = Config {
        proposal_timeout: NEVER,
        ..lone(ports.next(), dir.path())
    };
    let (node, mut driver) =
        Node::start_driven(config, machine(&Journal::default())).expect("the node starts");
    driver.poll();
    let pending = node.propose(b"x").expect("it is taken");
    drop(driver);
    assert!(answer(pending).is_err(), "nobody applies it");
    in_time("the rest of it leaves", move || node.shutdown()).expect("in order");
}

#[test]
fn shutdown_on_the_thread_that_drives_says_that_it_cannot_wait() {
    let mut ports = Ports::claim();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = Config {
        proposal_timeout: NEVER,
        ..lone(ports.next(), dir.path())
    };
    let (node, mut driver) =
        Node::start_driven(config, machine(&Journal::default())).expect("the node starts");
    driver.poll();
    let left = node.shutdown();
    assert!(matches!(left, Err(ShutdownError::OwnThread)), "{left:?}");
    until("it is driven to its end", || {
        if !driver.poll() {
            driver.wait(DEADLINE);
        }
        !driver.is_running()
    });
    in_time("the rest of it leaves", move || node.shutdown()).expect("in order");
}

#[test]
fn user_code_that_does_not_return_bounds_a_shutdown() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| {
            config.threads = threads.clone();
            config.proposal_timeout = Duration::from_millis(600);
        });
        let gate = journal.shut();
        let pending = node.propose(b"x").expect("it is taken");
        gate.until_somebody_stands_there();
        let again = node.clone();
        let left = in_time("shutdown returns", move || again.shutdown());
        let Err(ShutdownError::StillRunning { stages, .. }) = &left else {
            panic!("apply stands still, and {left:?}");
        };
        let stage = if threads == Threads::Shared {
            "node"
        } else {
            "apply"
        };
        assert_eq!(*stages, [stage]);
        assert_eq!(answer(pending), Err(ProposeError::Unknown));
        gate.open();
        in_time("the node is gone", move || node.shutdown()).expect("now it leaves in order");
        assert_eq!(journal.count(), 1);
    }
}

#[test]
fn the_last_handle_is_dropped_without_waiting_for_what_cannot_be_finished() {
    for threads in PLANS {
        let three = Three::start(|config| {
            (config.threads, config.proposal_timeout) = (threads.clone(), NEVER);
        });
        let leader = three.until_leader(&[0, 1, 2]);
        for at in (0..3).filter(|&at| at != leader) {
            three.nodes[at].shutdown_now();
        }
        let pending = three.nodes[leader].propose(b"x").expect("it is taken");
        in_time("the handles are dropped", move || drop(three));
        drop(pending);
    }
}

/// A machine whose restore never comes to an end by itself.
struct Endless {
    count: u64,
    restores: Arc<AtomicBool>,
}

impl StateMachine for Endless {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while let Some((_, reply)) = batch.next() {
            self.count += 1;
            reply.extend_from_slice(&self.count.to_le_bytes());
        }
        Ok(())
    }
    fn query(&self, _: &[u8], _: &mut Vec<u8>) {}
    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let count = self.count;
        Ok(Box::new(move |out: &mut dyn Write| {
            out.write_all(&count.to_le_bytes())
        }))
    }
    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.restores.store(true, Ordering::SeqCst);
        loop {
            if from.read(&mut [0])? == 0 {
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn a_node_that_restores_a_snapshot_leaves_without_finishing_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ports = Ports::claim();
    let members: Vec<Member> = (1..=3)
        .map(|id| Member {
            id: NodeId(id),
            addr: format!("127.0.0.1:{}", ports.next()),
        })
        .collect();
    let restores = Arc::new(AtomicBool::new(false));
    let start = |id: u32, threads: Threads| {
        let path = dir.path().join(format!("node-{id}"));
        let config = small(Config {
            threads,
            proposal_timeout: NEVER,
            segment_bytes: 256 << 10,
            snapshot_every_bytes: 400 << 10,
            log_tail_entries: 0,
            ..Config::new(NodeId(id), path, members.clone())
        });
        let machine = Endless {
            count: 0,
            restores: restores.clone(),
        };
        Node::start(config, machine).expect("the node starts")
    };
    let others = [start(1, Threads::Shared), start(2, Threads::Shared)];
    let long = vec![b'x'; 32 << 10];
    until("the front of the log is gone everywhere", || {
        commit(&others[0], &long);
        others.iter().all(|node| node.status().first > 1)
    });
    let late = start(3, Threads::Auto);
    until("it restores", || restores.load(Ordering::SeqCst));
    let left = in_time("it leaves", move || late.shutdown());
    left.expect("a restore that was given up is no fault");
    for node in others {
        node.shutdown().expect("it leaves in order");
    }
}
