//! The network of one node as its user sees it: who the peers are, what is sent to them.
//!
//! Receiving and all that takes time happen in `event_loop.rs`; nothing here waits, allocates per frame,
//! or calls back.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};

use crate::config::Config;
use crate::conns::{Conns, FOREIGN, LISTENER, WAKER};
use crate::event::{Reason, SendError, Stats};
use crate::frame::{FIRST_RESERVED_KIND, Label, MAX_HEAD_BYTES, frame_bytes};
use crate::hello::Refusal;
use crate::names::Place;
use crate::outbox::{Body, Full, Lane, MAX_SMALL_FRAME_BYTES};
use crate::peer::{LogLimiter, Peer, Random};
use crate::waker::Waker;

/// Events that one look at the system returns; the rest comes with the next.
const EVENTS: usize = 256;

/// What is to be told at the next occasion, in this order.
#[derive(Debug)]
pub(crate) enum Notice {
    Up {
        peer: u64,
        incarnation: u64,
        replaces: bool,
    },
    Down {
        peer: u64,
        reason: Reason,
    },
    Refused {
        peer: u64,
        by_peer: bool,
        refusal: Refusal,
    },
}

/// All connections of one node. It has no threads: whoever owns it calls [`Net::poll`].
///
/// `B` is what frame bodies are made of; they are written from where they lie and dropped when
/// written, or when the connection goes. Their bytes and length must not change while they are
/// queued.
pub struct Net<B> {
    pub(crate) config: Config,
    pub(crate) poll: Poll,
    pub(crate) events: Events,
    pub(crate) listener: mio::net::TcpListener,
    /// Connections may be waiting to be accepted.
    pub(crate) acceptable: bool,
    /// The system had no descriptor for an accepted connection: not again before this, unless a connection ends.
    pub(crate) accept_after: Option<Instant>,
    /// Descriptors for connections of peers, should others take all the rest: one for each peer, and one for somebody who
    /// may turn out to be none.
    pub(crate) spare: Vec<OwnedFd>,
    waker: Waker,
    pub(crate) conns: Conns,
    /// Sorted by id.
    pub(crate) peers: Vec<Peer<B>>,
    /// The incarnation of each node that ever was a peer, or as configured: the first one seen, or the last that took the
    /// place of one before.
    pub(crate) incarnations: HashMap<u64, u64>,
    pub(crate) notices: VecDeque<Notice>,
    /// The newest time that is known; never goes back.
    pub(crate) now: Instant,
    /// Nothing is due before this.
    pub(crate) wake_at: Option<Instant>,
    /// Where the round over the connections begins next time.
    pub(crate) first_served: usize,
    pub(crate) random: Random,
    /// Warnings about those who are no peers.
    pub(crate) quiet: LogLimiter,
}

impl<B> fmt::Debug for Net<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let up = |up: bool| {
            self.peers
                .iter()
                .filter(move |peer| peer.up == up)
                .map(|peer| peer.id)
        };
        f.debug_struct("Net")
            .field("node", &self.config.node_id)
            .field("up", &up(true).collect::<Vec<_>>())
            .field("down", &up(false).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl<B: AsRef<[u8]>> Net<B> {
    /// A network without peers, which accepts on `listener`.
    ///
    /// # Errors
    /// A configuration that contradicts itself (`InvalidInput`, with the field's name), or the
    /// system's.
    pub fn new(config: Config, listener: TcpListener) -> io::Result<Self> {
        config.check()?;
        listener.set_nonblocking(true)?;
        let mut listener = mio::net::TcpListener::from_std(listener);
        let poll = Poll::new()?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Waker(Arc::new(mio::Waker::new(poll.registry(), WAKER)?));
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS),
            listener,
            acceptable: true,
            accept_after: None,
            spare: Vec::new(),
            waker,
            conns: Conns::default(),
            peers: Vec::new(),
            incarnations: config.known_incarnations.iter().copied().collect(),
            notices: VecDeque::with_capacity(16),
            now: Instant::now(),
            wake_at: None,
            first_served: 0,
            random: Random(config.seed),
            quiet: LogLimiter::default(),
            config,
        })
    }

    /// Where this node accepts connections.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// As [`Net::set_named_peers`], by addresses.
    pub fn set_peers(&mut self, list: &[(u64, SocketAddr)]) {
        let list: Vec<_> = list
            .iter()
            .map(|(id, addr)| (*id, addr.to_string()))
            .collect();
        self.set_named_peers(&list);
    }

    /// From now on these are the peers, as `(node id, host:port)`. New ones with a larger id than
    /// ours are dialed at the next poll, the others when they had time to dial this node; those no
    /// longer listed are disconnected; of those with a new address, a connection that is up stays,
    /// an attempt is begun anew. The node's own id is skipped, of an id listed twice the first
    /// counts.
    pub fn set_named_peers(&mut self, list: &[(u64, String)]) {
        let gone: Vec<u64> = self
            .peers
            .iter()
            .map(|peer| peer.id)
            .filter(|id| !list.iter().any(|(listed, _)| listed == id))
            .collect();
        for id in gone {
            self.disconnect(id, Reason::Removed);
            self.peers.retain(|peer| peer.id != id);
        }
        for (at, (id, name)) in list.iter().enumerate() {
            let id = *id;
            if id == self.config.node_id || list[..at].iter().any(|(earlier, _)| *earlier == id) {
                continue;
            }
            let dial_at = self.now + self.start_given_to(id);
            match self.peers.binary_search_by_key(&id, |peer| peer.id) {
                Ok(at) => {
                    let peer = &mut self.peers[at];
                    if peer.place.name == *name {
                        continue;
                    }
                    peer.place = Place::new(name);
                    if !peer.up {
                        self.disconnect(id, Reason::Removed);
                        self.peers[at].backoff.reset();
                        self.peers[at].dial_at = Some(dial_at);
                    }
                }
                Err(at) => self
                    .peers
                    .insert(at, Peer::new(id, Place::new(name), dial_at, &self.config)),
            }
        }
        self.fill_spare();
        self.wake_by(self.now);
    }

    /// Has as many descriptors to spare as it should, if there are any to be had.
    pub(crate) fn fill_spare(&mut self) {
        while self.spare.len() <= self.peers.len() {
            match self.listener.as_fd().try_clone_to_owned() {
                Ok(copy) => self.spare.push(copy),
                Err(_) => return,
            }
        }
    }

    /// Interrupts a poll from other threads.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Lets readiness of a foreign descriptor, such as the eventfd of an io_uring, end a poll's
    /// sleep too. Its bytes are not read: each further write to an eventfd is a new edge, so that
    /// the call to reset it can be saved. It is watched until it is closed.
    ///
    /// # Errors
    /// The system's: no such descriptor, or one that cannot be waited for.
    pub fn watch(&mut self, fd: RawFd) -> io::Result<()> {
        self.poll
            .registry()
            .register(&mut SourceFd(&fd), FOREIGN, Interest::READABLE)
    }

    /// Queues a frame whose body, if any, carries its own checksums: the frame's checksum ends with
    /// the head. It is written by the next [`Net::flush`] or poll, as soon as the connection takes
    /// it.
    ///
    /// `head` is copied; so is a body on the small lane. `group` and `kind` are for the receiver;
    /// kinds from [`FIRST_RESERVED_KIND`] on are not for users (a panic).
    ///
    /// # Errors
    /// Nothing is queued; the body is dropped.
    pub fn send(
        &mut self,
        to: u64,
        lane: Lane,
        kind: u8,
        group: u32,
        head: &[u8],
        body: Option<B>,
    ) -> Result<(), SendError> {
        let body = body.map(|bytes| Body {
            bytes,
            covered: false,
        });
        self.queue(to, lane, Label { group, kind }, head, body)
    }

    /// Like [`Net::send`], for a body without checksums of its own: the frame's checksum covers it
    /// as well.
    ///
    /// # Errors
    /// Nothing is queued; the body is dropped.
    pub fn send_covered(
        &mut self,
        to: u64,
        lane: Lane,
        kind: u8,
        group: u32,
        head: &[u8],
        body: B,
    ) -> Result<(), SendError> {
        self.queue(
            to,
            lane,
            Label { group, kind },
            head,
            Some(Body {
                bytes: body,
                covered: true,
            }),
        )
    }

    fn queue(
        &mut self,
        to: u64,
        lane: Lane,
        label: Label,
        head: &[u8],
        body: Option<Body<B>>,
    ) -> Result<(), SendError> {
        let kind = label.kind;
        assert!(
            kind < FIRST_RESERVED_KIND,
            "kind {kind:#04x} is not below {FIRST_RESERVED_KIND:#04x}"
        );
        let body_bytes = body.as_ref().map_or(0, |body| body.bytes.as_ref().len());
        let limit = match lane {
            Lane::Small => MAX_SMALL_FRAME_BYTES.min(self.config.max_frame_bytes),
            Lane::Bulk => self.config.max_frame_bytes,
        };
        if frame_bytes(head.len(), body_bytes) > limit || head.len() > MAX_HEAD_BYTES {
            return Err(SendError::TooLarge);
        }
        let Some(peer) = find(&mut self.peers, to).filter(|peer| peer.up) else {
            return Err(SendError::Down);
        };
        let was_empty = peer.out.is_empty();
        if let Err(Full) = peer.out.push(lane, label, head, body) {
            peer.stats.full += 1;
            return Err(SendError::Full);
        }
        peer.stats.frames_out += 1;
        if was_empty && let Some(conn) = peer.conn.and_then(|key| self.conns.get_mut(key)) {
            conn.progressed = self.now;
            let due = self.now + self.config.stall_timeout;
            self.wake_by(due);
        }
        Ok(())
    }

    /// The longest frame, header and head included, that the bulk lane to this peer takes now. 0
    /// when it is not connected.
    pub fn room(&self, to: u64) -> usize {
        self.peer(to)
            .filter(|peer| peer.up)
            .map_or(0, |peer| peer.out.bulk_room())
    }

    /// The peer is up, and its `Up` has been told or will be at the next poll.
    pub fn connected(&self, to: u64) -> bool {
        self.peer(to).is_some_and(|peer| peer.up)
    }

    /// What has happened with a peer. `None`: it is none.
    pub fn stats(&self, of: u64) -> Option<Stats> {
        self.peer(of).map(|peer| Stats {
            up: peer.up,
            incarnation: self.incarnations.get(&of).copied(),
            queued_bytes: peer.out.queued_bytes(),
            ..peer.stats
        })
    }

    /// Gives what is queued to the connections that take it: several frames of a peer in one write.
    /// Once per turn of the caller's loop, after its sends; a poll does it as well.
    pub fn flush(&mut self) {
        for peer in &mut self.peers {
            if peer.out.is_empty() {
                continue;
            }
            let Some(conn) = peer.conn.and_then(|key| self.conns.get_mut(key)) else {
                continue;
            };
            if conn.broken.is_some() {
                continue;
            }
            match conn.write(&mut peer.out, self.now) {
                Ok(count) => peer.stats.bytes_out += count as u64,
                Err(reason) => conn.broken = Some(reason),
            }
        }
    }

    /// When the next poll has something to do even if nothing arrives; it then wakes up by itself.
    /// For callers that wait elsewhere. It may be early, never late.
    pub fn next_timer(&self) -> Option<Instant> {
        self.wake_at
    }

    pub(crate) fn wake_by(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// How long a peer has for its own dial before this node dials it: so they seldom do at once.
    pub(crate) fn start_given_to(&self, id: u64) -> Duration {
        match self.config.node_id < id {
            true => Duration::ZERO,
            false => 2 * self.config.backoff_max,
        }
    }

    fn peer(&self, id: u64) -> Option<&Peer<B>> {
        let at = self.peers.binary_search_by_key(&id, |peer| peer.id).ok()?;
        Some(&self.peers[at])
    }

    /// Ends the connection of a peer, at whatever stage it is.
    pub(crate) fn disconnect(&mut self, id: u64, reason: Reason) {
        if let Some(key) = self.peer(id).and_then(|peer| peer.conn) {
            self.close(key, reason);
        }
    }
}

/// The peer with this id. A function of the list alone, so that the rest of the network can be used
/// beside it.
pub(crate) fn find<B>(peers: &mut [Peer<B>], id: u64) -> Option<&mut Peer<B>> {
    let at = peers.binary_search_by_key(&id, |peer| peer.id).ok()?;
    Some(&mut peers[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_may_move_to_the_thread_that_polls_it_and_its_waker_anywhere() {
        fn is_send<T: Send>() {}
        fn is_shared<T: Send + Sync>() {}
        is_send::<Net<Vec<u8>>>();
        is_shared::<Waker>();
    }
}
