//! Retries that count once: [`Sessions`] around a state machine, [`Session`] on the client's side.
//!
//! A client whose leader is lost may hear [`Unknown`](crate::ProposeError::Unknown): its command was applied, or will be,
//! or never. To send it again could count it twice. In a session a client numbers its commands; the table of sessions
//! is part of the replicated state, and remembers which numbers were applied and what the first answer was.
//!
//! ```
//! use std::time::Duration;
//! use ringraft::session::{Limits, Session, Sessions};
//! # use ringraft::{Batch, Config, Member, Node, NodeId, StateMachine};
//! # #[derive(Default)]
//! # struct Sum(u64);
//! # impl StateMachine for Sum {
//! #     fn apply(&mut self, batch: &mut Batch<'_>) -> std::io::Result<()> {
//! #         while let Some((entry, reply)) = batch.next() {
//! #             self.0 += entry.command.len() as u64;
//! #             reply.extend_from_slice(&self.0.to_le_bytes());
//! #         }
//! #         Ok(())
//! #     }
//! #     fn query(&self, _query: &[u8], _reply: &mut Vec<u8>) {}
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! # let members = vec![Member { id: NodeId(1), addr: listener.local_addr()?.to_string() }];
//! # let config = Config { segment_bytes: 4 << 20, ..Config::new(NodeId(1), dir.path(), members) };
//! // On every node, with the same limits:
//! let node = Node::start_on(listener, config, Sessions::new(Sum::default(), Limits::default()))?;
//!
//! // A client, on any node, or on several in turn:
//! let mut session = Session::open([node.clone()], Duration::from_secs(10))?;
//! let answer = session.propose(b"hello")?; // Tried again until its outcome is known; applied once.
//! assert_eq!(answer, 5u64.to_le_bytes());
//! session.close()?;
//! # node.shutdown()?;
//! # Ok(()) }
//! ```
//!
//! # What is promised
//!
//! For a command of a session, however often, on whichever nodes and in whatever order it is proposed:
//!
//! | answer | applied? | what the client does |
//! |---|---|---|
//! | [`Answer::Applied`] | once, and this is what it answered the first time | goes on |
//! | [`Answer::NotKept`] | once; its answer was long and made room for others' | reads the state, if it needs to know |
//! | [`Answer::TooFar`] | no, and not by this try | waits for answers, or moves its mark, and tries again |
//! | [`Answer::TooOld`] | not by this try; the client's own mark says that it needs no answer | nothing: a mistake, or a late duplicate |
//! | [`Answer::Expired`] | not by this try; an earlier one may have been | opens a new session; what had no outcome stays unknown |
//! | [`Answer::Malformed`] | no, never | a mistake |
//! | none within the client's time | unknown until the mark passes its number: then it will not be applied any more | keeps trying, or gives up |
//!
//! - **Nothing below the mark is ever applied**: a client that gives up on a number and moves its mark has decided it.
//! - **A session that made room is never opened again**: its id is the log index of its opening and names no other. Its client
//!   is told; nothing of it is applied silently as if it were new.
//! - **Opening is not in a session**: an opening that is tried again may leave an unused session behind, which makes
//!   room in time.
//! - Commands without a session ([`Request::Plain`]) pass through, as they would without the wrapper.
//!
//! # What is bounded, and what makes room
//!
//! [`Limits`] has the numbers. A table that is full makes room for a new session by the one whose last use is longest ago in
//! the log; long answers make room by their age in the log; with `expire_after` sessions go by the leaders' stamps in the
//! entries. No node's clock and no order of a hash map has a say, so all nodes keep the same. [`Watch`] tells how often it
//! happened; the log names each eviction (`debug`).
//!
//! Raft thesis §6.3.

mod client;
mod code;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::micros;
use crate::state_machine::{Batch, Entry, SnapshotWriter, StateMachine};
use crate::state_machine::{Kind, Lend};
use crate::types::{Index, Term};

pub use client::{Numbers, Session, SessionError};
pub use code::{Answer, NUMBERED_BYTES, Request, Sequence};
use snapshot::Captured;
use table::{Table, Ticket, Verdict};

/// The longest window there can be.
pub const MAX_WINDOW: u32 = 1 << 15;

/// Bounds of the table of sessions. They are part of the replicated state: **the same on every node** when the group is
/// founded, and later changed by a command only ([`Request::Limit`]); a snapshot brings those that were in force.
///
/// With the defaults, sessions cost 61 MB for short answers if every client uses its whole window, 2 MB if each has one
/// command at a time; and 64 MiB for long answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open sessions. Who opens one more evicts the one whose last use is longest ago.
    /// Default: 10 000. Minimum: 1.
    pub sessions: u32,
    /// Commands of one session between its mark and its newest; 24 bytes each for those that a client uses.
    /// Default: 256. Minimum: 1, maximum: [`MAX_WINDOW`].
    pub window: u32,
    /// Bytes of answers that are longer than 22 bytes, of all sessions; the oldest make room.
    /// Default: 64 MiB. With 0 none is kept.
    pub kept_bytes: u64,
    /// A session that was not used for so long is evicted, by log time ([`Entry::time_us`]): after two thirds to twice of this
    /// when clocks are wrong. After the whole cluster was down, the first leader's wall clock decides how long that was.
    /// `None`: only to make room.
    /// Default: `None`. Minimum: 1 µs.
    pub expire_after: Option<Duration>,
}

impl Limits {
    pub(crate) const DEFAULT: Self = Self {
        sessions: 10_000,
        window: 256,
        kept_bytes: 64 << 20,
        expire_after: None,
    };

    fn check(&self) -> Result<(), String> {
        if self.sessions == 0 || self.sessions == u32::MAX {
            return Err(format!(
                "sessions is {}: at least 1 is needed, and less than 2^32 - 1",
                self.sessions
            ));
        }
        if !(1..=MAX_WINDOW).contains(&self.window) {
            return Err(format!(
                "window is {}, and may be 1 to {MAX_WINDOW}",
                self.window
            ));
        }
        // Kept in microseconds: less than one would be 0 there, which stands for `None`, and on this node alone not.
        if self.expire_after.is_some_and(|after| micros(after) == 0) {
            return Err(format!(
                "expire_after is {:?}: at least 1 µs is needed; None never expires a session",
                self.expire_after.unwrap_or_default()
            ));
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A state machine with sessions: what it wraps sees each command of a session once. See the [module](self).
///
/// The wrapper belongs to the cluster's data from its first start on: a directory says whether it was made with one, and a machine
/// that is wrapped later, or not any more, is refused at the start, since it would read each command wrongly. So is a peer of the
/// other kind. (A directory of an older version does not say it.)
///
/// Every command and every query begins with a [`Request`], every answer ends with a verdict ([`Answer::decode`]).
///
/// The wrapped machine's replies to commands of sessions are kept on every node, so they must be written on every node
/// and follow from the state and the command alone, as the state does: there [`Entry::local`] is true on all of them.
#[derive(Debug)]
pub struct Sessions<S> {
    machine: S,
    table: Table,
}

impl<S: StateMachine> Sessions<S> {
    /// Wraps `machine`.
    ///
    /// # Panics
    /// Limits that cannot be ([`Limits`] names the least) are a mistake of the caller.
    pub fn new(machine: S, limits: Limits) -> Self {
        if let Err(what) = limits.check() {
            panic!("Limits: {what}");
        }
        let table = Table::new(limits, Watch::default());
        Self { machine, table }
    }

    /// A handle by which to see, from any thread, how full the table is on this node.
    pub fn watch(&self) -> Watch {
        self.table.watch.clone()
    }

    /// The wrapped machine.
    pub fn machine(&self) -> &S {
        &self.machine
    }
}

impl<S: StateMachine> StateMachine for Sessions<S> {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        let mut through = Through {
            outer: batch,
            table: &mut self.table,
            present: None,
        };
        self.machine.apply(&mut Batch::lent(&mut through))?;
        through.settle();
        Ok(())
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        match Request::decode(query) {
            Some((Request::Plain, query)) => {
                self.machine.query(query, reply);
                code::close_applied(reply);
            }
            _ => Answer::Malformed.encode(reply),
        }
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let machine = self.machine.snapshot()?;
        let captured = Captured::of(&self.table);
        Ok(Box::new(move |to| {
            captured.write(to)?;
            machine(to)
        }))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let table = snapshot::read(from, self.table.watch.clone())?;
        self.machine.restore(from)?;
        self.table = table;
        Ok(())
    }

    /// A wrapped machine that is kept on a disk of its own would come back with commands in it that the table knows
    /// nothing of, and would count their retries again: that is an error.
    fn open(&mut self) -> io::Result<Index> {
        match self.machine.open()? {
            0 => Ok(0),
            index => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "the machine within Sessions has a disk of its own and opens at index {index}, but the table of sessions \
                     is kept in memory and in snapshots only: such a machine has to keep sessions itself"
                ),
            )),
        }
    }

    fn kind(&self) -> Kind {
        Kind::Sessions
    }

    fn new_term(&mut self, term: Term, at: Index, time_us: u64) {
        self.machine.new_term(term, at, time_us);
    }

    fn leader_start(&mut self, term: Term) {
        self.machine.leader_start(term);
    }

    fn leader_stop(&mut self, term: Term) {
        self.machine.leader_stop(term);
    }
}

/// Stands between the batch and the wrapped machine: hands on what is to be applied, and keeps what is answered.
struct Through<'a> {
    outer: &'a mut dyn Lend,
    table: &'a mut Table,
    /// The command that the wrapped machine has: where it begins, and where its answer is to be kept.
    present: Option<(usize, Option<Ticket>)>,
}

impl Through<'_> {
    /// The wrapped machine has answered.
    fn settle(&mut self) {
        if let Some((_, ticket)) = self.present.take() {
            let (_, reply) = self.outer.current();
            if let Some(ticket) = ticket {
                self.table.keep(ticket, reply);
            }
            code::close_applied(reply);
        }
    }
}

impl Lend for Through<'_> {
    fn advance(&mut self) -> bool {
        self.settle();
        while self.outer.advance() {
            let (entry, reply) = self.outer.current();
            if let Some(skip) = code::is_plain(entry.command) {
                self.present = Some((skip, None));
                return true;
            }
            self.present = match self.table.take(&entry, reply) {
                Verdict::Answered => continue,
                Verdict::Once(skip, ticket) => Some((skip, Some(ticket))),
            };
            return true;
        }
        false
    }

    fn current(&mut self) -> (Entry<'_>, &mut Vec<u8>) {
        let (skip, ticket) = self.present.expect("advance found a command");
        let (entry, reply) = self.outer.current();
        let within = Entry {
            local: entry.local || ticket.is_some(),
            command: &entry.command[skip..],
            ..entry
        };
        (within, reply)
    }

    fn snapshot_here(&mut self) {
        self.outer.snapshot_here();
    }
}

/// How full the table of sessions is on this node, and what became of commands; readable from any thread.
#[derive(Clone, Debug, Default)]
pub struct Watch(Arc<Gauges>);

#[derive(Debug, Default)]
struct Gauges {
    sessions: AtomicU64,
    long_bytes: AtomicU64,
    opened: AtomicU64,
    evicted: AtomicU64,
    repeated: AtomicU64,
    refused: AtomicU64,
}

/// What a [`Watch`] shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionStatus {
    /// Open sessions.
    pub sessions: u64,
    /// Bytes of long answers that are kept.
    pub long_bytes: u64,
    /// Sessions that were opened since the group was founded.
    pub opened: u64,
    /// How many of them were evicted, to make room or by time.
    pub evicted: u64,
    /// Commands that were applied before and got their first answer, since this node's start.
    pub repeated: u64,
    /// Commands that were answered `TooOld`, `TooFar`, `NotKept` or `Expired`, since this node's start.
    pub refused: u64,
}

impl Watch {
    /// What there is now.
    pub fn status(&self) -> SessionStatus {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        SessionStatus {
            sessions: of(&self.0.sessions),
            long_bytes: of(&self.0.long_bytes),
            opened: of(&self.0.opened),
            evicted: of(&self.0.evicted),
            repeated: of(&self.0.repeated),
            refused: of(&self.0.refused),
        }
    }

    fn set(&self, sessions: u64, long_bytes: u64, opened: u64, evicted: u64) {
        self.0.sessions.store(sessions, Ordering::Relaxed);
        self.0.long_bytes.store(long_bytes, Ordering::Relaxed);
        self.0.opened.store(opened, Ordering::Relaxed);
        self.0.evicted.store(evicted, Ordering::Relaxed);
    }

    fn add_repeated(&self) {
        self.0.repeated.fetch_add(1, Ordering::Relaxed);
    }

    fn add_refused(&self) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
    }
}
