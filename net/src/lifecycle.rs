//! How connections begin and end: dialing, greetings, refusals, timers, closing.

use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::Interest;

use crate::conn::{Conn, State};
use crate::conns::Key;
use crate::event::Reason;
use crate::frame::Frame;
use crate::hello::{
    Expect, HELLO, Hello, OLDEST_PROTOCOL_VERSION, PING, PROTOCOL_VERSION, REFUSE, Refusal, check,
};
use crate::names::Lookup;
use crate::net::{Net, Notice, find};
use crate::outbox::Lane;
use crate::socket::{self, is_exhausted};

/// An inbox that has grown for long frames shrinks when none came for so long.
const SHRINK_AFTER: Duration = Duration::from_secs(10);

/// What a hello came to.
#[derive(Debug)]
pub(crate) enum Greeting {
    Welcome(Hello),
    /// Who it says it is, and why it may not stay.
    Refused {
        who: u64,
        refusal: Refusal,
    },
}

impl<B: AsRef<[u8]>> Net<B> {
    fn hello_to(&self, target: u64) -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            oldest: OLDEST_PROTOCOL_VERSION,
            cluster: self.config.cluster_id,
            node: self.config.node_id,
            incarnation: self.config.incarnation,
            replaces: self.config.replaces.load(Ordering::Acquire),
            target,
            kind: self.config.kind,
        }
    }

    /// Begins to connect to the peer at this place in the list.
    fn dial(&mut self, at: usize) {
        let (waker, now) = (self.waker(), self.now);
        let peer = &mut self.peers[at];
        let id = peer.id;
        peer.dial_at = None;
        peer.place.look_up(&self.config.resolver, waker, now);
        let Some(addr) = peer.place.next() else {
            if !peer.place.is_looked_up() {
                self.failed(id, Reason::Unresolved);
            }
            return;
        };
        let Some(key) = self.conns.vacant() else {
            unreachable!(
                "one connection a peer and at most 2^14 strangers do not use up 2^16 numbers"
            )
        };
        let connected = match socket::connect(addr, &self.config) {
            Err(error) if is_exhausted(&error) && self.spare.pop().is_some() => {
                socket::connect(addr, &self.config)
            }
            connected => connected,
        };
        let begun = connected.and_then(|mut stream| {
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll
                .registry()
                .register(&mut stream, key.token(), both)?;
            Ok(stream)
        });
        match begun {
            Ok(stream) => {
                self.conns.insert(
                    key,
                    Conn::new(stream, addr, State::Dialing { peer: id }, self.now),
                );
                self.peers[at].conn = Some(key);
                self.wake_by(self.now + self.config.hello_timeout);
            }
            Err(error) => self.failed(id, Reason::io("connect", &error)),
        }
    }

    /// Takes the answers of lookups that have ended.
    pub(crate) fn learn_addresses(&mut self) {
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            let (id, waits) = (peer.id, peer.conn.is_none() && peer.dial_at.is_none());
            match peer.place.learn() {
                Lookup::Nothing => {}
                Lookup::Failed | Lookup::Same if !waits => {}
                Lookup::Failed => self.failed(id, Reason::Unresolved),
                Lookup::Same => self.dial(at),
                Lookup::Changed => self.moved(at),
            }
        }
    }

    /// The peer at this place in the list is somewhere else than it was. A connection that is up, or that has come so far that
    /// the other side may have taken it, stays.
    fn moved(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        let (id, attempt) = (peer.id, peer.conn);
        if let Some(conn) = attempt.and_then(|key| self.conns.get_mut(key)) {
            let is_dialing = matches!(conn.state, State::Dialing { .. });
            if !is_dialing || peer.place.knows(conn.remote) {
                return;
            }
            self.disconnect(id, Reason::Removed);
        }
        self.peers[at].backoff.reset();
        self.dial(at);
    }

    /// The connect has succeeded: we say who we are.
    pub(crate) fn greet(&mut self, conn: &mut Conn, peer: u64) {
        conn.state = State::Greeted { peer };
        self.queue_hello(peer);
    }

    fn queue_hello(&mut self, to: u64) {
        let hello = self.hello_to(to).encode();
        let peer = find(&mut self.peers, to).expect("a connection to a peer ends with the peer");
        peer.out.clear();
        peer.out
            .push(Lane::Small, HELLO, &hello, None)
            .expect("an empty lane has room for a hello");
    }

    /// The first frame of a connection. An error is for what is not even a hello.
    pub(crate) fn greeting(&self, state: State, frame: &Frame<'_>) -> Result<Greeting, Reason> {
        let dialed = match state {
            State::Greeted { peer } => Some(peer),
            _ => None,
        };
        if frame.label == REFUSE
            && dialed.is_some()
            && let Some(refusal) = Refusal::decode(frame)
        {
            return Err(Reason::RefusedByPeer(refusal));
        }
        let Some(hello) = Hello::decode(frame) else {
            return Err(Reason::Unexpected {
                kind: frame.label.kind,
            });
        };
        let expect = Expect {
            cluster: self.config.cluster_id,
            node: self.config.node_id,
            dialed,
            is_peer: self
                .peers
                .binary_search_by_key(&hello.node, |peer| peer.id)
                .is_ok(),
            incarnation: self.incarnations.get(&hello.node).copied(),
            kind: self.config.kind,
            crosses: dialed.is_none() && self.may_cross(hello.node),
        };
        Ok(match check(&hello, &expect) {
            Ok(()) => Greeting::Welcome(hello),
            Err(refusal) => Greeting::Refused {
                who: hello.node,
                refusal,
            },
        })
    }

    /// Whether a hello of this peer may come on a connection that the peer has given up already, or will: see
    /// [`Net::come_up`].
    fn may_cross(&self, id: u64) -> bool {
        let at = self.peers.binary_search_by_key(&id, |peer| peer.id);
        let key = at.ok().and_then(|at| self.peers[at].conn);
        let conn = key.and_then(|key| self.conns.at(key.index));
        conn.is_some_and(|(_, conn)| match conn.state {
            State::Greeted { .. } => true,
            State::Up { .. } => self.now.duration_since(conn.since) < self.config.backoff_max,
            _ => false,
        })
    }

    /// The one at the other end is who it should be. An older connection of the same peer gives
    /// way: it may be half-open since that peer went down.
    ///
    /// Both may have dialed each other. They must not both give up the connection that the other one keeps:
    ///
    /// 1. The smaller id, once it has said hello on its own connection, refuses the other's until it has an answer there:
    ///    `Refusal::Direction`. The larger id drops its own attempt as soon as it reads that hello, here.
    /// 2. Before its hello is sent the other side cannot have taken it: then the smaller id drops its own attempt, here.
    /// 3. It also refuses when it has the answer, for as long as a hello may be read that the larger id sent before: one that has
    ///    lost the connection dials no sooner than after `start_given_to`, which is longer. Such a one takes the place of the
    ///    old connection, here.
    pub(crate) fn come_up(&mut self, key: Key, conn: &mut Conn, hello: &Hello, bytes: usize) {
        let id = hello.node;
        let peer =
            find(&mut self.peers, id).expect("the hello was checked against the list of peers");
        if let Some(older) = peer.conn.filter(|older| *older != key) {
            self.close(older, Reason::Replaced);
        }
        if conn.state == State::Stranger {
            self.queue_hello(id);
        }
        conn.state = State::Up { peer: id };
        (conn.since, conn.heard, conn.sent, conn.progressed) =
            (self.now, self.now, self.now, self.now);
        conn.inbox
            .resize(self.config.read_buffer_bytes, self.config.max_frame_bytes);
        let peer =
            find(&mut self.peers, id).expect("closing a connection leaves the list as it is");
        (peer.conn, peer.up, peer.dial_at) = (Some(key), true, None);
        peer.stats.connects += 1;
        peer.stats.bytes_in += bytes as u64;
        // Either the one that it had, or one that takes its place.
        self.incarnations.insert(id, hello.incarnation);
        self.notices.push_back(Notice::Up {
            peer: id,
            incarnation: hello.incarnation,
            replaces: hello.replaces,
        });
        self.wake_by(self.now + self.config.keepalive);
        let peer = find(&mut self.peers, id).expect("it was there a moment ago");
        if let Some(suppressed) = peer.quiet_ups.pass(self.now) {
            let node = self.config.node_id;
            tracing::info!(
                node,
                peer = id,
                remote = %conn.remote,
                incarnation = format_args!("{:#x}", hello.incarnation),
                suppressed,
                "connected"
            );
        }
    }

    /// The one at the other end may not stay: it is told why, and no longer counts as the
    /// connection of its peer. `who` it says it is proves nothing: a connection that this peer has
    /// is not touched.
    pub(crate) fn refused(&mut self, key: Key, conn: &mut Conn, who: u64, refusal: Refusal) {
        let dialed = conn.peer();
        conn.refuse(&refusal, self.now);
        self.wake_by(self.now + self.config.hello_timeout);
        let reason = Reason::Refused(refusal);
        if let Some(peer) = dialed {
            self.lost(key, peer, conn, reason);
        } else if reason.is_crossing() {
            tracing::debug!(node = self.config.node_id, peer = who, %reason, "not connected");
        } else if let Some(peer) = find(&mut self.peers, who) {
            if !peer.up {
                peer.stats.last_reason = Some(reason);
            }
            self.notices.push_back(Notice::Refused {
                peer: who,
                by_peer: false,
                refusal,
            });
            if let Some(suppressed) = peer.quiet.pass(self.now) {
                let node = self.config.node_id;
                let remote = conn.remote;
                tracing::warn!(node, peer = who, %remote, %reason, suppressed, "not connected");
            }
        } else {
            self.warn_of_stranger(conn, reason);
        }
    }

    /// Ends a connection.
    pub(crate) fn close(&mut self, key: Key, reason: Reason) {
        if let Some(conn) = self.conns.remove(key) {
            self.forget(key, conn, reason);
            self.descriptor_is_free();
        }
    }

    /// A connection has ended: its descriptor is for a peer, or for somebody who waits to be accepted.
    fn descriptor_is_free(&mut self) {
        self.fill_spare();
        if self.accept_after.is_some() {
            (self.accept_after, self.acceptable) = (None, true);
        }
    }

    /// Ends a connection that was lent.
    pub(crate) fn ended(&mut self, key: Key, conn: Box<Conn>, reason: Reason) {
        self.conns.remove(key);
        self.forget(key, conn, reason);
        self.descriptor_is_free();
    }

    fn forget(&mut self, key: Key, mut conn: Box<Conn>, reason: Reason) {
        // Closing the socket takes it out of the poll anyway; an error changes nothing.
        let _ = self.poll.registry().deregister(&mut conn.stream);
        match (conn.state, conn.peer()) {
            (_, Some(peer)) => self.lost(key, peer, &conn, reason),
            // That it is closed now is what a refusal leads to.
            (State::Draining, None) => {}
            (_, None) => self.warn_of_stranger(&conn, reason),
        }
    }

    /// A peer has lost its connection, or an attempt has failed.
    fn lost(&mut self, key: Key, id: u64, conn: &Conn, reason: Reason) {
        let peer = find(&mut self.peers, id).expect("connections end before their peer is removed");
        assert_eq!(
            peer.conn,
            Some(key),
            "node {id} has another connection than the one that ends"
        );
        peer.conn = None;
        peer.out.clear();
        if std::mem::take(&mut peer.up) {
            self.notices.push_back(Notice::Down { peer: id, reason });
            // One that lasted is no failed attempt.
            if self.now.duration_since(conn.since) > self.config.backoff_max {
                peer.backoff.reset();
            }
        }
        self.failed(id, reason);
    }

    /// There is no connection to the peer: why, and when to try again.
    fn failed(&mut self, id: u64, reason: Reason) {
        let (node, now, start) = (self.config.node_id, self.now, self.start_given_to(id));
        let peer = find(&mut self.peers, id).expect("connections end before their peer is removed");
        peer.stats.drops += 1;
        peer.stats.last_reason = Some(reason);
        let refusal = match reason {
            Reason::Refused(refusal) => Some((false, refusal)),
            Reason::RefusedByPeer(refusal) => Some((true, refusal)),
            _ => None,
        };
        if let Some((by_peer, refusal)) = refusal.filter(|_| !reason.is_crossing()) {
            peer.backoff.raise();
            self.notices.push_back(Notice::Refused {
                peer: id,
                by_peer,
                refusal,
            });
        }
        let again = now + peer.backoff.next(&self.config, &mut self.random) + start;
        peer.dial_at = Some(again);
        if reason.is_crossing() {
            tracing::debug!(node, peer = id, %reason, "not connected");
        } else if let Some(suppressed) = peer.quiet.pass(now) {
            if reason.is_expected() {
                tracing::info!(node, peer = id, %reason, suppressed, "disconnected");
                return self.wake_by(again);
            }
            let addr = &peer.place;
            tracing::warn!(node, peer = id, %addr, %reason, suppressed, "not connected");
        }
        self.wake_by(again);
    }

    /// One who is no peer, or not known to be one, was turned away.
    fn warn_of_stranger(&mut self, conn: &Conn, reason: Reason) {
        if let Some(suppressed) = self.quiet.pass(self.now) {
            let (node, remote) = (self.config.node_id, conn.remote);
            tracing::warn!(node, %remote, %reason, suppressed, "turned a connection away");
        }
    }

    /// Does what is due, and notes when the next is.
    pub(crate) fn tick(&mut self) {
        let now = self.now;
        if self.wake_at.is_none_or(|at| now < at) {
            return;
        }
        self.wake_at = None;
        self.fill_spare();
        if let Some(after) = self.accept_after {
            if after <= now {
                (self.accept_after, self.acceptable) = (None, true);
            } else {
                self.wake_by(after);
            }
        }
        for index in 0..self.conns.len() {
            let Some((key, conn)) = self.conns.at(index) else {
                continue;
            };
            match conn.state {
                State::Up { peer } => self.tick_up(key, peer),
                State::Dialing { .. }
                | State::Greeted { .. }
                | State::Stranger
                | State::Draining => {
                    let due = conn.since + self.config.hello_timeout;
                    if due <= now {
                        self.close(key, Reason::NoHello)
                    } else {
                        self.wake_by(due)
                    }
                }
            }
        }
        for at in 0..self.peers.len() {
            match self.peers[at].dial_at {
                Some(due) if due <= now => self.dial(at),
                Some(due) => self.wake_by(due),
                None => {}
            }
        }
        self.flush();
    }

    /// Pings, and ends a connection that does not live.
    fn tick_up(&mut self, key: Key, id: u64) {
        let (now, stall) = (self.now, self.config.stall_timeout);
        let conn = self
            .conns
            .get_mut(key)
            .expect("the caller has just seen it");
        let peer = find(&mut self.peers, id).expect("a connection that is up has a peer");
        if conn.inbox.is_grown() && conn.roomy + SHRINK_AFTER <= now {
            conn.inbox.shrink();
        }
        let mut next = now + self.config.keepalive;
        if !conn.held {
            let due = conn.heard + stall;
            if due <= now {
                return self.close(key, Reason::Silent);
            }
            next = next.min(due);
        }
        if peer.out.is_empty() {
            let due = conn.sent + self.config.keepalive;
            if due <= now {
                peer.out
                    .push(Lane::Small, PING, &[], None)
                    .expect("an empty lane has room for a ping");
                conn.progressed = now;
            } else {
                next = next.min(due);
            }
        } else {
            let due = conn.progressed + stall;
            if due <= now {
                let queued_bytes = peer.out.queued_bytes();
                return self.close(key, Reason::Stalled { queued_bytes });
            }
            next = next.min(due);
        }
        self.wake_by(next);
    }
}
