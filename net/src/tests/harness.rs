//! Nodes that are polled in turns, a clock that can be moved, and a raw socket that speaks the
//! protocol by hand.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::frame::{Decoded, Label, decode, header};
use crate::hello::{HELLO, Hello, Refusal};
use crate::{Config, Event, Handled, Lane, Net, Reason, SendError};

pub(super) const CLUSTER: u64 = 0xC1;
/// A test that waits longer in real time has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) type Body = Vec<u8>;

/// An event, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Up(u64),
    Down(u64, Reason),
    Refused {
        peer: u64,
        by_peer: bool,
        refusal: Refusal,
    },
    Frame {
        from: u64,
        kind: u8,
        group: u32,
        head: Vec<u8>,
        body: Vec<u8>,
    },
}

pub(super) struct Node {
    pub(super) id: u64,
    pub(super) net: Net<Body>,
    pub(super) addr: SocketAddr,
    pub(super) seen: Vec<Seen>,
    /// Frames of these kinds are put on hold.
    pub(super) hold: Vec<u8>,
}

impl Node {
    pub(super) fn frames(&self) -> impl Iterator<Item = (u64, u8, &[u8])> {
        self.seen.iter().filter_map(|seen| match seen {
            Seen::Frame {
                from, kind, body, ..
            } => Some((*from, *kind, &body[..])),
            _ => None,
        })
    }

    pub(super) fn kinds_from(&self, peer: u64) -> Vec<u8> {
        self.frames()
            .filter(|(from, ..)| *from == peer)
            .map(|(_, kind, _)| kind)
            .collect()
    }

    pub(super) fn ups(&self, peer: u64) -> usize {
        self.seen
            .iter()
            .filter(|seen| **seen == Seen::Up(peer))
            .count()
    }

    pub(super) fn downs(&self, peer: u64) -> Vec<Reason> {
        self.seen
            .iter()
            .filter_map(|seen| match seen {
                Seen::Down(who, reason) if *who == peer => Some(*reason),
                _ => None,
            })
            .collect()
    }

    pub(super) fn refusals(&self, peer: u64) -> Vec<(bool, Refusal)> {
        self.seen
            .iter()
            .filter_map(|seen| match seen {
                Seen::Refused {
                    peer: who,
                    by_peer,
                    refusal,
                } if *who == peer => Some((*by_peer, *refusal)),
                _ => None,
            })
            .collect()
    }

    pub(super) fn small(&mut self, to: u64, kind: u8) -> Result<(), SendError> {
        self.net.send(to, Lane::Small, kind, 0, b"small", None)
    }

    pub(super) fn bulk(&mut self, to: u64, kind: u8, bytes: usize) -> Result<(), SendError> {
        self.net
            .send(to, Lane::Bulk, kind, 0, b"bulk", Some(vec![kind; bytes]))
    }

    pub(super) fn poll(&mut self, now: Instant, timeout: Duration) -> usize {
        let (seen, hold) = (&mut self.seen, &self.hold);
        let mut on = |event: Event<'_>| {
            let noted = match event {
                Event::Up { peer, .. } => Seen::Up(peer),
                Event::Down { peer, reason } => Seen::Down(peer, reason),
                Event::Refused {
                    peer,
                    by_peer,
                    refusal,
                } => Seen::Refused {
                    peer,
                    by_peer,
                    refusal,
                },
                Event::Frame { kind, .. } if hold.contains(&kind) => return Handled::Hold,
                Event::Frame {
                    peer,
                    kind,
                    group,
                    head,
                    body,
                } => Seen::Frame {
                    from: peer,
                    kind,
                    group,
                    head: head.to_vec(),
                    body: body.to_vec(),
                },
            };
            seen.push(noted);
            Handled::Taken
        };
        self.net
            .poll(now, Some(timeout), &mut on)
            .expect("the poll itself never fails")
    }
}

/// Nodes and a clock, which stands still but for [`World::until`], where it is the real one, and
/// [`World::pass`].
pub(super) struct World {
    pub(super) nodes: Vec<Node>,
    change: fn(&mut Config),
    clock: Instant,
    /// The clock stands still in [`World::until`] too: no timer can be what makes it so.
    pub(super) frozen: bool,
}

impl World {
    /// Nodes with ids from 1 on that are all peers of each other; nobody has been polled yet.
    pub(super) fn of(count: u64, change: fn(&mut Config)) -> Self {
        let mut world = Self {
            nodes: Vec::new(),
            change,
            clock: Instant::now(),
            frozen: false,
        };
        for id in 1..=count {
            world.start(id, listener(), id * 100);
        }
        let list = world.addresses();
        for node in &mut world.nodes {
            node.net.set_peers(&list);
        }
        world
    }

    /// As many nodes, all connected to each other.
    pub(super) fn connected(count: u64, change: fn(&mut Config)) -> Self {
        let mut world = Self::of(count, change);
        world.until("all are connected", |world| {
            world
                .nodes
                .iter()
                .all(|node| (1..=count).all(|id| id == node.id || node.net.connected(id)))
        });
        world
    }

    pub(super) fn start(&mut self, id: u64, listener: TcpListener, incarnation: u64) -> &mut Node {
        let mut config = Config::new(CLUSTER, id, incarnation);
        (self.change)(&mut config);
        let addr = listener.local_addr().expect("bound");
        let net = Net::new(config, listener).expect("the configuration is right");
        self.nodes.push(Node {
            id,
            net,
            addr,
            seen: Vec::new(),
            hold: Vec::new(),
        });
        self.nodes.last_mut().expect("just pushed")
    }

    /// The process of a node ends; its sockets close.
    pub(super) fn stop(&mut self, id: u64) -> SocketAddr {
        let at = self
            .nodes
            .iter()
            .position(|node| node.id == id)
            .expect("it runs");
        self.nodes.remove(at).addr
    }

    pub(super) fn addresses(&self) -> Vec<(u64, SocketAddr)> {
        self.nodes.iter().map(|node| (node.id, node.addr)).collect()
    }

    pub(super) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes
            .iter_mut()
            .find(|node| node.id == id)
            .expect("it runs")
    }

    pub(super) fn now(&self) -> Instant {
        self.clock
    }

    /// Every node has a turn. Returns how many events there were.
    fn turn(&mut self) -> usize {
        let now = self.clock;
        self.nodes
            .iter_mut()
            .map(|node| node.poll(now, Duration::ZERO))
            .sum()
    }

    /// Turns until it is so.
    pub(super) fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let (began, start, mut idle) = (Instant::now(), self.clock, 0);
        while !is_so(self) {
            idle = if self.turn() > 0 { 0 } else { idle + 1 };
            if idle > 100 {
                // Only the kernel's own timers can still change anything.
                std::thread::sleep(Duration::from_micros(100));
            }
            if !self.frozen {
                self.clock = start + began.elapsed();
            }
            if began.elapsed() > PATIENCE {
                for node in &self.nodes {
                    let last: Vec<_> = node.seen.iter().rev().take(5).map(brief).collect();
                    eprintln!(
                        "node {}: {:?}; {} events, last {last:?}",
                        node.id,
                        node.net,
                        node.seen.len()
                    );
                }
                panic!("waited in vain until {what}");
            }
        }
    }

    /// The clock moves on, in steps small enough for every timer to be seen in its time.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.clock + time;
        while self.clock < end {
            self.clock = end.min(self.clock + Duration::from_millis(50));
            for _ in 0..4 {
                self.turn();
            }
        }
    }
}

fn brief(seen: &Seen) -> String {
    let mut text = format!("{seen:?}");
    text.truncate(200);
    text
}

pub(super) fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("loopback has a free port")
}

/// A frame as it goes over the wire.
pub(super) fn frame(kind: u8, head: &[u8], body: &[u8]) -> Vec<u8> {
    let header = header(Label { group: 0, kind }, head, body.len(), None);
    [&header[..], head, body].concat()
}

/// The hello of a node with the incarnation that the harness gives it.
pub(super) fn hello(node: u64, target: u64) -> Hello {
    Hello {
        version: 1,
        oldest: 1,
        cluster: CLUSTER,
        node,
        incarnation: node * 100,
        replaces: false,
        target,
        kind: 0,
    }
}

pub(super) fn hello_frame(hello: Hello) -> Vec<u8> {
    frame(HELLO.kind, &hello.encode(), &[])
}

/// A socket that is driven by hand. Reads do not block, so that the nodes can be polled in between.
pub(super) struct Raw {
    pub(super) stream: TcpStream,
    received: Vec<u8>,
    pub(super) ended: bool,
}

impl Raw {
    pub(super) fn of(stream: TcpStream) -> Self {
        stream
            .set_nonblocking(true)
            .expect("a socket can be made non-blocking");
        Self {
            stream,
            received: Vec::new(),
            ended: false,
        }
    }

    pub(super) fn connect(addr: SocketAddr) -> Self {
        Self::of(TcpStream::connect(addr).expect("the node listens"))
    }

    /// Takes the connection that a node makes.
    pub(super) fn accept(listener: &TcpListener, world: &mut World) -> Self {
        listener
            .set_nonblocking(true)
            .expect("a socket can be made non-blocking");
        let mut accepted = None;
        world.until("the raw side is dialed", |_| {
            accepted = accepted.take().or_else(|| listener.accept().ok());
            accepted.is_some()
        });
        Self::of(accepted.expect("until says so").0)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(bytes)
            .expect("a few bytes fit the socket's buffer");
    }

    /// Takes what is there, and notes the end.
    pub(super) fn read(&mut self) {
        let mut bytes = [0; 4096];
        while !self.ended {
            match self.stream.read(&mut bytes) {
                Ok(0) => self.ended = true,
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.ended = true,
            }
        }
    }

    /// The next frame that the node has sent, as kind and head.
    pub(super) fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        self.read();
        match decode(&self.received, 1 << 24, true).expect("nodes send frames only") {
            Decoded::Partial { .. } => None,
            Decoded::Whole { frame, bytes } => {
                let taken = (frame.label.kind, frame.head.to_vec());
                self.received.drain(..bytes);
                Some(taken)
            }
        }
    }

    pub(super) fn until_next(&mut self, world: &mut World) -> (u8, Vec<u8>) {
        let mut next = None;
        world.until("the raw side gets a frame", |_| {
            next = next.take().or_else(|| self.next());
            next.is_some()
        });
        next.expect("until says so")
    }

    pub(super) fn until_ended(&mut self, world: &mut World) {
        world.until("the raw side sees the end", |_| {
            self.read();
            self.ended
        });
    }
}

/// Compares with a message that does not print megabytes.
pub(super) fn assert_same<T: PartialEq + Debug>(got: &[T], expected: &[T], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: number");
    if let Some(at) = (0..got.len()).find(|at| got[*at] != expected[*at]) {
        panic!("{what}: differs first at {at}");
    }
}
