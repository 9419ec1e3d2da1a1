//! A turn of the loop: tell what happened, sleep, take what arrived, look at the clock.
//!
//! Invariants: a poll does not sleep while it could deliver a frame that is not on hold; each
//! connection gets a bounded part of a turn; what one connection does ends at most that connection.

use std::io;
use std::time::{Duration, Instant};

use mio::Interest;
use socket2::SockRef;

use crate::conn::{Conn, State};
use crate::conns::{Key, LISTENER};
use crate::event::{Event, Handled, Reason};
use crate::frame::FIRST_RESERVED_KIND;
use crate::hello::{PING, REFUSE, Refusal};
use crate::lifecycle::Greeting;
use crate::net::{Net, Notice, find};
use crate::socket::{self, is_exhausted};

/// Reads of one connection in one turn, each at most what its buffer holds.
const READS_PER_TURN: usize = 4;
/// Connections accepted in one turn.
const ACCEPTS_PER_TURN: usize = 16;
/// The longest sleep of one poll that has a limit: the system counts it in milliseconds of 31 bits.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// The pause when the system has no descriptor for an accepted connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl<B: AsRef<[u8]>> Net<B> {
    /// One turn: tells `on` what has happened, and between sleeps until something does. It sleeps
    /// at most for `timeout` (zero: not at all; `None`: no limit), until its next timer, a
    /// [`Waker`](crate::Waker) or a watched descriptor. When there is something to tell already, it
    /// does not sleep. A frame on hold is offered again and is then no reason to stay awake: with
    /// one, the caller chooses a timeout, or wakes the poll when there is room.
    ///
    /// `now` is the caller's clock, which may run ahead of the real one in tests; time slept is
    /// added to it.
    ///
    /// Returns how many events were taken.
    ///
    /// # Errors
    /// Only the system's, for the poll itself; what is wrong with a connection is a `Down` of its
    /// peer.
    pub fn poll(
        &mut self,
        now: Instant,
        timeout: Option<Duration>,
        on: &mut impl FnMut(Event<'_>) -> Handled,
    ) -> io::Result<usize> {
        self.now = self.now.max(now);
        let mut told = self.tell(on);
        for index in 0..self.conns.len() {
            if self.conns.at(index).is_some_and(|(_, conn)| conn.held) {
                told += self.serve(index, on);
            }
        }
        self.flush();
        let timeout = if told > 0 || self.has_work() {
            Some(Duration::ZERO)
        } else {
            self.until_timer(timeout)
        };
        let sleeps = timeout != Some(Duration::ZERO);
        self.look(timeout)?;
        if self.acceptable {
            self.accept();
        }
        self.learn_addresses();
        let count = self.conns.len();
        for index in 0..count {
            let index = (self.first_served + index) % count;
            let has_news = |conn: &Conn| match conn.state {
                State::Dialing { .. } => conn.writable,
                _ if conn.held => sleeps || conn.broken.is_some(),
                _ => conn.readable || conn.broken.is_some(),
            };
            if self.conns.at(index).is_some_and(|(_, conn)| has_news(conn)) {
                told += self.serve(index, on);
            }
        }
        self.first_served = self.first_served.wrapping_add(1);
        self.flush();
        self.tick();
        Ok(told + self.tell(on))
    }

    /// Whether there is something to do without waiting.
    fn has_work(&self) -> bool {
        self.acceptable
            || !self.notices.is_empty()
            || (0..self.conns.len())
                .any(|at| self.conns.at(at).is_some_and(|(_, conn)| conn.has_work()))
    }

    fn until_timer(&self, timeout: Option<Duration>) -> Option<Duration> {
        let timer = self
            .wake_at
            .map(|at| at.saturating_duration_since(self.now));
        let limit = [timeout, timer].into_iter().flatten().min();
        limit.map(|limit| limit.min(LONGEST_SLEEP))
    }

    /// Sleeps, and notes which sockets may be read or written.
    fn look(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let began = (timeout != Some(Duration::ZERO)).then(Instant::now);
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            other => other?,
        }
        if let Some(began) = began {
            self.now += began.elapsed();
        }
        for event in &self.events {
            if event.token() == LISTENER {
                self.acceptable = self.accept_after.is_none();
            }
            // The token may be of a connection that was closed meanwhile.
            let Some(conn) = Key::of(event.token()).and_then(|key| self.conns.get_mut(key)) else {
                continue;
            };
            let ended = event.is_read_closed() || event.is_error();
            conn.ended |= ended;
            conn.readable |= event.is_readable() || ended;
            conn.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        }
        Ok(())
    }

    /// Takes what a connection has brought.
    fn serve(&mut self, index: usize, on: &mut impl FnMut(Event<'_>) -> Handled) -> usize {
        let Some((key, mut conn)) = self.conns.lend(index) else {
            return 0;
        };
        let mut told = 0;
        match self.serve_lent(key, &mut conn, &mut told, on) {
            Ok(()) => self.conns.put_back(key, conn),
            Err(reason) => self.ended(key, conn, reason),
        }
        told
    }

    fn serve_lent(
        &mut self,
        key: Key,
        conn: &mut Conn,
        told: &mut usize,
        on: &mut impl FnMut(Event<'_>) -> Handled,
    ) -> Result<(), Reason> {
        if let State::Dialing { peer } = conn.state {
            conn.writable = conn.is_connected()?;
            if !conn.writable {
                return Ok(());
            }
            self.greet(conn, peer);
        }
        if conn.held {
            self.offer(key, conn, told, on)?;
        }
        let mut reads = 0;
        while conn.readable && !conn.held && reads < READS_PER_TURN {
            reads += 1;
            if conn.state == State::Draining {
                conn.drain()?;
                continue;
            }
            conn.read(self.now)?;
            self.offer(key, conn, told, on)?;
        }
        // Only now: what came before the write failed has been delivered, and it may have said why.
        conn.broken.map_or(Ok(()), Err)
    }

    /// Offers the whole frames of a connection, in their order, until one is put on hold or the
    /// connection is refused.
    fn offer(
        &mut self,
        key: Key,
        conn: &mut Conn,
        told: &mut usize,
        on: &mut impl FnMut(Event<'_>) -> Handled,
    ) -> Result<(), Reason> {
        let was_held = std::mem::take(&mut conn.held);
        while let Some((frame, bytes)) = conn.inbox.first().map_err(Reason::Frame)? {
            let kind = frame.label.kind;
            let State::Up { peer } = conn.state else {
                match self.greeting(conn.state, &frame)? {
                    Greeting::Welcome(hello) => {
                        conn.inbox.take(bytes);
                        self.come_up(key, conn, &hello, bytes);
                        // In order: the peer's frames come after its `Up`.
                        *told += self.tell(on);
                    }
                    Greeting::Refused { who, refusal } => {
                        self.refused(key, conn, who, refusal);
                        return Ok(());
                    }
                }
                continue;
            };
            let stats = &mut find(&mut self.peers, peer)
                .expect("a connection that is up has a peer")
                .stats;
            if kind >= FIRST_RESERVED_KIND {
                if frame.label == REFUSE
                    && let Some(refusal) = Refusal::decode(&frame)
                {
                    return Err(Reason::RefusedByPeer(refusal));
                }
                if frame.label != PING {
                    return Err(Reason::Unexpected { kind });
                }
                stats.bytes_in += bytes as u64;
                conn.inbox.take(bytes);
                continue;
            }
            let event = Event::Frame {
                peer,
                kind,
                group: frame.label.group,
                head: frame.head,
                body: frame.body,
            };
            match on(event) {
                Handled::Taken => {
                    *told += 1;
                    stats.frames_in += 1;
                    stats.bytes_in += bytes as u64;
                    if bytes > self.config.read_buffer_bytes {
                        conn.roomy = self.now;
                    }
                    conn.inbox.take(bytes);
                }
                Handled::Hold => {
                    conn.held = true;
                    if !was_held {
                        stats.holds += 1;
                    }
                    return Ok(());
                }
            }
        }
        if was_held {
            // While it was not read it could not be heard.
            conn.heard = self.now;
        }
        Ok(())
    }

    /// Tells what has been noted.
    fn tell(&mut self, on: &mut impl FnMut(Event<'_>) -> Handled) -> usize {
        let mut told = 0;
        while let Some(notice) = self.notices.pop_front() {
            on(match notice {
                Notice::Up {
                    peer,
                    incarnation,
                    replaces,
                } => Event::Up {
                    peer,
                    incarnation,
                    replaces,
                },
                Notice::Down { peer, reason } => Event::Down { peer, reason },
                Notice::Refused {
                    peer,
                    by_peer,
                    refusal,
                } => Event::Refused {
                    peer,
                    by_peer,
                    refusal,
                },
            });
            told += 1;
        }
        told
    }

    /// Takes in those who have connected. They are strangers until they have said who they are.
    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                Ok((stream, remote)) => {
                    self.evict_a_stranger(self.config.max_strangers);
                    let Some(key) = self.conns.vacant() else {
                        return;
                    };
                    let mut conn = Conn::new(stream, remote, State::Stranger, self.now);
                    let both = Interest::READABLE | Interest::WRITABLE;
                    let ready = socket::set_options(&SockRef::from(&conn.stream), &self.config)
                        .and_then(|()| {
                            self.poll
                                .registry()
                                .register(&mut conn.stream, key.token(), both)
                        });
                    match ready {
                        Ok(()) => {
                            self.conns.insert(key, conn);
                            self.wake_by(self.now + self.config.hello_timeout);
                        }
                        // It may have been reset already.
                        Err(error) => {
                            tracing::debug!(%remote, %error, "an accepted connection was lost")
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.acceptable = false;
                    return;
                }
                Err(error) if is_exhausted(&error) && self.spare.pop().is_some() => {}
                Err(error) if is_exhausted(&error) => {
                    // The next one who comes may be a peer.
                    self.evict_a_stranger(0);
                    self.acceptable = false;
                    let again = self.now + ACCEPT_PAUSE;
                    self.accept_after = Some(again);
                    self.wake_by(again);
                    if let Some(suppressed) = self.quiet.pass(self.now) {
                        tracing::warn!(
                            node = self.config.node_id,
                            %error,
                            suppressed,
                            "cannot accept connections: raise the limit of open files"
                        );
                    }
                    return;
                }
                // An error of that one connection; the next may be well.
                Err(error) => {
                    tracing::debug!(%error, "a connection was lost before it was accepted")
                }
            }
        }
    }

    /// Makes room for a stranger, if there are `most`: one who comes in time to say who it is matters more than the one
    /// who has been silent for longest.
    fn evict_a_stranger(&mut self, most: usize) {
        let strangers = (0..self.conns.len())
            .filter_map(|index| self.conns.at(index))
            .filter(|(_, conn)| matches!(conn.state, State::Stranger | State::Draining));
        let (count, oldest) = strangers.fold((0, None), |(count, oldest), (key, conn)| {
            let is_older = oldest.is_none_or(|(_, serial)| conn.serial < serial);
            (
                count + 1,
                if is_older {
                    Some((key, conn.serial))
                } else {
                    oldest
                },
            )
        });
        if count >= most
            && let Some((key, _)) = oldest
        {
            self.close(key, Reason::Evicted);
        }
    }
}
