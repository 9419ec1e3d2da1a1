//! One TCP connection: what stage of its life it is in, what it may do now, its bytes in and out.
//!
//! ```text
//!  dialing ──connected──▶ greeted ──hello──▶ up        the side with the smaller id
//!  stranger ─────────────────────hello──────▶ up       the other side
//!     └── refused ──▶ draining ──▶ closed              either side
//! ```
//!
//! Readiness is edge-triggered: `readable` and `writable` stay set until the socket says that it
//! would block.

use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, SocketAddr};
use std::time::Instant;

use mio::net::TcpStream;

use crate::event::Reason;
use crate::frame::{HEADER_BYTES, header};
use crate::hello::{MAX_GREETING_BYTES, REFUSE, Refusal};
use crate::inbox::Inbox;
use crate::outbox::{MAX_SLICES, Outbox};
use crate::socket;

/// What one who has not said who it is may send.
const GREETING_BYTES: usize = HEADER_BYTES + MAX_GREETING_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The connect is under way.
    Dialing { peer: u64 },
    /// Our hello is sent or queued, theirs is awaited.
    Greeted { peer: u64 },
    /// Accepted; who it is remains to be seen.
    Stranger,
    /// Both hellos were right.
    Up { peer: u64 },
    /// Refused. It is read until the other side closes, since a close with unread bytes would
    /// destroy the refusal on its way.
    Draining,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    pub(crate) remote: SocketAddr,
    /// Earlier connections have smaller numbers, also of those that came at the same time.
    pub(crate) serial: u64,
    pub(crate) state: State,
    pub(crate) inbox: Inbox,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The other side has ended the stream: there is an end to be read after the last byte.
    pub(crate) ended: bool,
    /// The first frame of the inbox was put on hold.
    pub(crate) held: bool,
    /// A write failed outside of the poll; what was received before is still delivered.
    pub(crate) broken: Option<Reason>,
    /// When this state of its life began.
    pub(crate) since: Instant,
    /// When bytes last came, or a hold ended.
    pub(crate) heard: Instant,
    /// When bytes were last written.
    pub(crate) sent: Instant,
    /// When bytes were last written or, if later, the first byte was queued.
    pub(crate) progressed: Instant,
    /// When the inbox was last seen to need its full size.
    pub(crate) roomy: Instant,
}

impl Conn {
    pub(crate) fn new(stream: TcpStream, remote: SocketAddr, state: State, now: Instant) -> Self {
        Self {
            stream,
            remote,
            serial: 0,
            state,
            inbox: Inbox::new(GREETING_BYTES, GREETING_BYTES),
            readable: false,
            writable: state == State::Stranger,
            ended: false,
            held: false,
            broken: None,
            since: now,
            heard: now,
            sent: now,
            progressed: now,
            roomy: now,
        }
    }

    /// The peer that this connection is to or from, as far as it is known.
    pub(crate) fn peer(&self) -> Option<u64> {
        match self.state {
            State::Dialing { peer } | State::Greeted { peer } | State::Up { peer } => Some(peer),
            State::Stranger | State::Draining => None,
        }
    }

    /// Whether a poll can do something for it without waiting.
    pub(crate) fn has_work(&self) -> bool {
        let may_read = self.readable && !self.held && !matches!(self.state, State::Dialing { .. });
        may_read || self.broken.is_some()
    }

    /// Whether the connect has succeeded.
    pub(crate) fn is_connected(&self) -> Result<bool, Reason> {
        let failed = |error: &io::Error| Reason::io("connect", error);
        if let Some(error) = self.stream.take_error().map_err(|error| failed(&error))? {
            return Err(failed(&error));
        }
        match self.stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Reads once what is there now, if anything.
    pub(crate) fn read(&mut self, now: Instant) -> Result<(), Reason> {
        let spare = self.inbox.spare();
        let room = spare.len();
        match self.stream.read(spare) {
            Ok(0) => Err(Reason::Closed),
            Ok(count) => {
                self.inbox.received(count);
                self.heard = now;
                // Less than there was room for means that nothing is left: the next bytes are a new
                // edge. An end that has been announced already will not be announced again, so it
                // must be read for.
                if count < room && !self.ended {
                    self.readable = false;
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(Reason::io("read", &error)),
        }
    }

    /// Reads once and forgets; the end of it is an error like any other.
    pub(crate) fn drain(&mut self) -> Result<(), Reason> {
        match self.stream.read(&mut [0; 4096]) {
            Ok(0) => return Err(Reason::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Reason::io("read", &error)),
        }
        Ok(())
    }

    /// Writes what is queued until all is written or the socket takes no more, and returns how many
    /// bytes that were.
    pub(crate) fn write<B: AsRef<[u8]>>(
        &mut self,
        out: &mut Outbox<B>,
        now: Instant,
    ) -> Result<usize, Reason> {
        let mut written = 0;
        while self.writable && !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let (count, bytes) = out.gather(&mut slices);
            match socket::write(&self.stream, &slices[..count]) {
                Ok(count) => {
                    assert!(count <= bytes, "{count} bytes written of {bytes}");
                    out.written(count);
                    written += count;
                    (self.sent, self.progressed) = (now, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Reason::io("write", &error)),
            }
        }
        Ok(written)
    }

    /// Tells the other side why it may not stay, and says nothing after that.
    pub(crate) fn refuse(&mut self, refusal: &Refusal, now: Instant) {
        let head = refusal.encode();
        let header = header(REFUSE, &head, 0, None);
        // The first bytes on a young connection fit its buffer; if they do not, the other side
        // learns less.
        let _ = socket::write(&self.stream, &[IoSlice::new(&header), IoSlice::new(&head)]);
        let _ = self.stream.shutdown(Shutdown::Write);
        (self.state, self.since) = (State::Draining, now);
    }
}
