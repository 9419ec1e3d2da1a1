//! A durable cluster in one process: real sockets on loopback, real files, flushes on; and a load generator for it.

use std::net::TcpListener;
use std::path::Path;
use std::thread::Thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringraft::session::{Answer, Limits, MAX_WINDOW, Numbers, Session, Sessions};
use ringraft::{
    Config, Flush, IdleWay, Member, Node, NodeId, Notify, Outbox, ProposeError, Role, Threads,
};

mod count;

use count::Count;

/// How the cluster is built.
#[derive(Clone, Debug)]
pub struct Shape {
    pub nodes: u32,
    pub threads: Threads,
    pub idle: IdleWay,
    pub flush: Flush,
    pub segment_bytes: u64,
    pub max_pending: usize,
    /// How much goes into the log until the next snapshot, after which segments are used again.
    pub snapshot_every_bytes: u64,
    /// The state machine has sessions, and the load uses one.
    pub sessions: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            nodes: 3,
            threads: Threads::Auto,
            idle: IdleWay::Park {
                grace: Duration::from_micros(50),
            },
            flush: Flush::Auto,
            segment_bytes: 64 << 20,
            max_pending: 16 << 10,
            snapshot_every_bytes: 256 << 20,
            sessions: false,
        }
    }
}

/// The nodes of one process.
#[derive(Debug)]
pub struct Cluster {
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// Founds a cluster below `dir` and waits until it has a leader.
    pub fn start(dir: &Path, shape: &Shape) -> Self {
        let listeners: Vec<TcpListener> = (0..shape.nodes)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let members: Vec<Member> = (1..)
            .zip(&listeners)
            .map(|(id, listener)| Member {
                id: NodeId(id),
                addr: listener.local_addr().expect("bound").to_string(),
            })
            .collect();
        let nodes = (1..)
            .zip(listeners)
            .map(|(id, listener)| {
                let config = Config {
                    election_timeout: Duration::from_millis(500),
                    threads: shape.threads.clone(),
                    idle: shape.idle,
                    flush: shape.flush,
                    segment_bytes: shape.segment_bytes,
                    max_pending: shape.max_pending,
                    snapshot_every_bytes: shape.snapshot_every_bytes,
                    ..Config::new(NodeId(id), dir.join(format!("node-{id}")), members.clone())
                };
                let node = if shape.sessions {
                    let limits = Limits {
                        window: MAX_WINDOW,
                        ..Limits::default()
                    };
                    let machine = Sessions::new(Count::default(), limits);
                    Node::start_on(listener, config, machine)
                } else {
                    Node::start_on(listener, config, Count::default())
                };
                node.expect("the node starts")
            })
            .collect();
        let cluster = Self { nodes };
        cluster.leader();
        cluster
    }

    /// The node that leads; waits for one.
    pub fn leader(&self) -> &Node {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(node) = self
                .nodes
                .iter()
                .find(|node| node.status().role == Role::Leader)
            {
                return node;
            }
            assert!(Instant::now() < deadline, "no leader within 30 s");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn shutdown(self) {
        for node in &self.nodes {
            node.shutdown().expect("the node leaves in order");
        }
    }
}

struct Unpark(Thread);

impl Notify for Unpark {
    fn notify(&self) {
        self.0.unpark();
    }
}

/// Keeps a number of proposals in flight on one node, from one thread.
pub struct Load {
    node: Node,
    outbox: Outbox,
    payload: Vec<u8>,
    numbers: Option<Numbers>,
    command: Vec<u8>,
    inflight: usize,
    /// When each tag was proposed.
    since: Vec<Instant>,
    free: Vec<u64>,
    /// What was answered, and how fast.
    pub done: u64,
    pub latency: Histogram<u64>,
}

impl std::fmt::Debug for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Load {{ {} done }}", self.done)
    }
}

impl Load {
    /// To be used from the thread that makes it.
    pub fn new(node: &Node, payload: usize, inflight: usize) -> Self {
        let outbox = node
            .outbox(Unpark(std::thread::current()))
            .expect("an outbox is free");
        Self {
            node: node.clone(),
            outbox,
            payload: vec![0x5a; payload],
            numbers: None,
            command: Vec::new(),
            inflight,
            since: vec![Instant::now(); inflight],
            free: (0..inflight as u64).collect(),
            done: 0,
            latency: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("sound bounds"),
        }
    }

    /// As [`new`](Self::new), with a number of a session on each command; to a cluster that has sessions.
    #[allow(dead_code)] // Not each of those who share this file has sessions.
    pub fn in_session(node: &Node, payload: usize, inflight: usize) -> Self {
        assert!(inflight < MAX_WINDOW as usize, "beyond any window");
        let limit = Duration::from_secs(10);
        let session = Session::open([node.clone()], limit).expect("a session is opened");
        let mut load = Self::new(node, payload, inflight);
        load.numbers = Some(session.into_numbers());
        load
    }

    /// Proposes until all are in flight, then takes the answers that are there; sleeps when there is none.
    pub fn turn(&mut self) {
        let now = Instant::now();
        while let Some(tag) = self.free.pop() {
            let sequence = match &mut self.numbers {
                Some(numbers) => {
                    let sequence = numbers.take().expect("the window is longer");
                    self.command.clear();
                    numbers.encode(sequence, &mut self.command);
                    self.command.extend_from_slice(&self.payload);
                    sequence
                }
                None => 0,
            };
            let command = match sequence {
                0 => &self.payload,
                _ => &self.command,
            };
            let marked = sequence << 24 | tag;
            match self.node.propose_to(self.outbox.id(), marked, command) {
                Ok(()) => self.since[tag as usize] = now,
                Err(ProposeError::Busy) => {
                    self.free.push(tag);
                    if let Some(numbers) = &mut self.numbers {
                        numbers.done(sequence); // It was not taken, and is not wanted under this number.
                    }
                    break;
                }
                Err(error) => panic!("proposing: {error}"),
            }
        }
        if self.drain() == 0 {
            self.outbox
                .sleep(|| std::thread::park_timeout(Duration::from_millis(100)));
        }
    }

    fn drain(&mut self) -> usize {
        let now = Instant::now();
        let Self {
            outbox,
            since,
            free,
            done,
            latency,
            numbers,
            ..
        } = self;
        outbox.drain(usize::MAX, |marked, outcome, answer| {
            outcome.expect("an undisturbed cluster commits");
            let tag = marked & 0xff_ffff;
            if let Some(numbers) = numbers {
                numbers.done(marked >> 24);
                let answer = Answer::decode(answer);
                assert!(matches!(answer, Answer::Applied(_)), "{answer:?}");
            }
            let _ = latency.record((now - since[tag as usize]).as_nanos() as u64);
            free.push(tag);
            *done += 1;
        })
    }

    /// Takes what is still in flight.
    pub fn finish(&mut self) {
        while self.free.len() < self.inflight {
            if self.drain() == 0 {
                self.outbox
                    .sleep(|| std::thread::park_timeout(Duration::from_millis(100)));
            }
        }
    }
}
