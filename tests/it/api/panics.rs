//! Panics on a node's threads: what is the embedder's own harms nobody, and anything else ends the node and says so.

use std::fmt;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use ringraft::{Config, Consistency, Fault, Member, Node, NodeId, ProposeError, Role};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

use crate::api::{Journal, Machine, PLANS, alone, answer, commit, number, small};
use crate::until;

/// A waker as a runtime that shuts down may have.
struct Bad(AtomicBool);

impl Wake for Bad {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
        panic!("a runtime's own trouble");
    }
}

#[test]
fn a_tasks_waker_that_panics_harms_nobody() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
        let gate = journal.shut();
        let mut awaited = pin!(node.propose(b"1").expect("it is taken"));
        let bad = Arc::new(Bad(AtomicBool::new(false)));
        let waker = Waker::from(bad.clone());
        assert!(
            awaited
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        let beside = node.propose(b"2").expect("it is taken");
        gate.open();
        assert_eq!(number(&answer(beside).expect("applied")), 2);
        until("the waker was called", || bad.0.load(Ordering::SeqCst));
        assert_eq!(number(&commit(&node, b"3")), 3);
        assert!(node.status().error.is_none());
        node.shutdown().expect("a waker's panic is not the node's");
    }
}

/// The node of the tests below: its number is part of its threads' names.
const NODE: u32 = 77;

/// Panics at events that say `text`, on threads whose names begin with `threads`.
struct Trap {
    text: &'static str,
    threads: &'static str,
    armed: Arc<AtomicBool>,
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, _: &Field, value: &dyn fmt::Debug) {
        self.0 += &format!("{value:?} ");
    }
}

impl Subscriber for Trap {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        let thread = std::thread::current();
        self.armed.load(Ordering::SeqCst)
            && thread
                .name()
                .is_some_and(|name| name.starts_with(self.threads))
    }
    /// Asked for each event: the answer is another on each thread.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        assert!(!text.0.contains(self.text), "the subscriber's own trouble");
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn config(dir: &Path, addr: String) -> Config {
    let members = vec![Member {
        id: NodeId(NODE),
        addr,
    }];
    small(Config {
        cluster_id: Some(7),
        ..Config::new(NodeId(NODE), dir, members)
    })
}

fn machine() -> Machine {
    Machine {
        journal: Journal::default(),
        count: 0,
    }
}

/// What must hold once a stage has panicked: nobody waits, nobody is led, and it is known why.
fn check_end(node: &Node, stage: &str) {
    let fault = node.status().error.expect("it says why");
    let text = fault.to_string();
    assert!(matches!(fault, Fault::Panic(_)), "{text}");
    assert!(
        text.contains(stage) && text.contains("the subscriber's own trouble"),
        "{text}"
    );
    assert_eq!(node.status().role, Role::Follower);
    assert_eq!(node.leader(), None);
    assert_eq!(node.propose(b"late").map(drop), Err(ProposeError::Stopped));
    let read = node.read(b"", Consistency::Stale).map(drop);
    assert_eq!(read, Err(ProposeError::Stopped));
    let left = node.shutdown().expect_err("the fault is not forgotten");
    assert_eq!(left.to_string(), text);
    assert_eq!(node.status().pending, 0);
}

#[test]
fn a_stage_that_panics_ends_its_node_and_everybody_hears() {
    let armed = Arc::new(AtomicBool::new(false));
    // For all tests of this process; it does nothing on the threads of other nodes.
    let trap = Trap {
        text: "is taken",
        threads: "rr77-background",
        armed: armed.clone(),
    };
    tracing::subscriber::set_global_default(trap).expect("there is no other");
    for threads in PLANS {
        armed.store(false, Ordering::SeqCst);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("it is bound").to_string();
        let config = Config {
            threads,
            ..config(dir.path(), addr)
        };
        let node = Node::start_on(listener, config, Counting(machine())).expect("the node starts");
        until("it leads", || node.status().role == Role::Leader);
        commit(&node, b"1");
        armed.store(true, Ordering::SeqCst);
        let snapshot = node.snapshot().expect("it is taken");
        assert!(answer(snapshot).is_err(), "nobody finishes it");
        until("it says why", || node.status().error.is_some());
        check_end(&node, "background");
    }
}

/// As [`Machine`], with snapshots.
struct Counting(Machine);

impl ringraft::StateMachine for Counting {
    fn apply(&mut self, batch: &mut ringraft::Batch<'_>) -> std::io::Result<()> {
        self.0.apply(batch)
    }
    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        self.0.query(query, reply);
    }
    fn snapshot(&mut self) -> std::io::Result<ringraft::SnapshotWriter> {
        let count = self.0.count;
        Ok(Box::new(move |out| out.write_all(&count.to_le_bytes())))
    }
}

#[test]
fn a_stage_that_panics_ends_a_driven_node_too() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound").to_string();
    drop(listener);
    let (node, mut driver) =
        Node::start_driven(config(dir.path(), addr), machine()).expect("the node starts");
    let pending = node.propose(b"1").expect("it is taken");
    let trap = Trap {
        text: "",
        threads: "",
        armed: Arc::new(AtomicBool::new(true)),
    };
    let panicked = tracing::subscriber::with_default(trap, || {
        catch_unwind(AssertUnwindSafe(|| {
            until("it has ended", || {
                if !driver.poll() {
                    driver.wait(Duration::from_millis(10));
                }
                !driver.is_running()
            });
        }))
    });
    panicked.expect("a panic of a stage does not reach the embedder's loop");
    assert!(answer(pending).is_err());
    check_end(&node, "consensus");
}
