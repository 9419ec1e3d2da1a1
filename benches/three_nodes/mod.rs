//! A durable cluster in one process: real sockets on loopback, real files, flushes on; and a load generator for it.

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::thread::Thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringraft::{
    Batch, Config, Flush, Member, Node, NodeId, Notify, Outbox, ProposeError, Role, StateMachine,
    Threads,
};

/// Counts what it is given; answers with the count.
#[derive(Debug, Default)]
pub struct Count(u64);

impl StateMachine for Count {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while let Some((entry, reply)) = batch.next() {
            self.0 += 1;
            if entry.local {
                reply.extend_from_slice(&self.0.to_le_bytes());
            }
        }
        Ok(())
    }

    fn query(&self, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&self.0.to_le_bytes());
    }
}

/// How the cluster is built.
#[derive(Clone, Debug)]
pub struct Shape {
    pub nodes: u32,
    pub threads: Threads,
    pub flush: Flush,
    pub segment_bytes: u64,
    pub max_pending: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            nodes: 3,
            threads: Threads::Auto,
            flush: Flush::Auto,
            segment_bytes: 64 << 20,
            max_pending: 16 << 10,
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
                    flush: shape.flush,
                    segment_bytes: shape.segment_bytes,
                    max_pending: shape.max_pending,
                    ..Config::new(NodeId(id), dir.join(format!("node-{id}")), members.clone())
                };
                Node::start_on(listener, config, Count::default()).expect("the node starts")
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
            inflight,
            since: vec![Instant::now(); inflight],
            free: (0..inflight as u64).collect(),
            done: 0,
            latency: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("sound bounds"),
        }
    }

    /// Proposes until all are in flight, then takes the answers that are there; sleeps when there is none.
    pub fn turn(&mut self) {
        let now = Instant::now();
        while let Some(tag) = self.free.pop() {
            match self.node.propose_to(self.outbox.id(), tag, &self.payload) {
                Ok(()) => self.since[tag as usize] = now,
                Err(ProposeError::Busy) => {
                    self.free.push(tag);
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
            ..
        } = self;
        outbox.drain(usize::MAX, |tag, outcome, _| {
            outcome.expect("an undisturbed cluster commits");
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
