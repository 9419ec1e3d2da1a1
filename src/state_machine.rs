//! What the user implements: the replicated state, and how committed commands reach it.

use std::io;

use storage::record::{self, Header};

use crate::entry::KIND_COMMAND;
use crate::request::table::Table;
use crate::request::token::Token;
use crate::types::{Index, NodeId, Term};

/// The replicated state: a deterministic function of the commands, in their order.
///
/// Every method runs on the apply stage, one call at a time. What `apply` does may depend on the commands, their
/// [`Entry`] and the state alone: never on the node, the clock, randomness or the order of a hash map.
///
/// A method that takes long delays what waits for this stage: commands, reads and snapshots on this node, which are answered
/// `Unknown` after `Config::proposal_timeout`. Heartbeats and votes go on, unless [`Threads::Shared`](crate::Threads::Shared) was
/// chosen or the node is driven. None may wait for its own node: [`ProposeError::WouldDeadlock`](crate::ProposeError).
///
/// A panic or an error in any of these stops the node in an error state ([`Fault::StateMachine`](crate::Fault));
/// the command is never applied a second time by this process. So check a command fully *before* it is proposed.
pub trait StateMachine: Send + 'static {
    /// Applies committed commands, in order, each exactly once per process.
    ///
    /// Take them with [`Batch::next`]; those left untaken when it returns are an error.
    ///
    /// # Errors
    /// An error stops the node (see the trait).
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()>;

    /// Answers a read; called once everything that the read must see has been applied.
    fn query(&self, query: &[u8], reply: &mut Vec<u8>);

    /// Captures the state as it is after the last command that was applied, fast: nothing is applied meanwhile. What it
    /// returns runs on a thread of its own, while commands are applied again, and writes the captured state out.
    ///
    /// What is written should follow from the state alone (no order of a hash map): then the snapshots that two nodes
    /// take at the same index are the same bytes, and a follower that was receiving one goes on with the other's.
    ///
    /// # Errors
    /// The default is [`io::ErrorKind::Unsupported`]: no snapshots are taken, and the log grows. Any other is reported
    /// in the status, and the snapshot is tried again later; it never stops the node.
    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Replaces the whole state by that which a [`snapshot`](StateMachine::snapshot) wrote, on this node or another.
    /// Called before anything is applied, and when this node has fallen behind what the others' logs still hold.
    ///
    /// The checksums of all of it were verified before. It may run on another thread than `apply`, never beside it. When the
    /// node is asked to leave meanwhile, reading fails; the error is to be returned, and the machine is not used any more.
    ///
    /// # Errors
    /// An error stops the node (see the trait), or keeps it from starting.
    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let _ = from;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// For a state that is kept on a disk of its own: opens it, and returns the index of the last entry that is in it for
    /// certain. The log is applied from the next one on; a snapshot is restored when the log begins later than that.
    /// Entries may have been applied beyond what is certain: whatever comes again must be recognised by its index.
    ///
    /// The log may end before that index after a power failure, for entries are applied once they are committed, whether this
    /// node's own flush is over or not. A node with peers gets the missing entries from them, and does not apply again what is
    /// in the state; until then it takes no snapshots, and shows in its status no more as applied than its log holds. A node
    /// without peers refuses to start: its log has lost what was acknowledged.
    ///
    /// # Errors
    /// Keeps the node from starting.
    fn open(&mut self) -> io::Result<Index> {
        Ok(0)
    }

    /// Which wrapper of this crate it is.
    #[doc(hidden)]
    fn kind(&self) -> Kind {
        Kind::Plain
    }

    /// The first entry of a new term has been applied: what an earlier leader left undone is decided by now.
    fn new_term(&mut self, term: Term, at: Index, time_us: u64) {
        let _ = (term, at, time_us);
    }

    /// This node leads in `term`, and has applied everything up to the first entry of it.
    fn leader_start(&mut self, term: Term) {
        let _ = term;
    }

    /// This node no longer leads in `term`. Every `leader_start` is followed by one of these, at shutdown at the latest,
    /// unless the machine has failed: what has panicked or returned an error is not called again.
    fn leader_stop(&mut self, term: Term) {
        let _ = term;
    }
}

/// What commands and snapshots look like: whether a wrapper of this crate stands around the machine. Kept in the directory
/// and told to the peers, so that neither is read by a machine of the other kind.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    Plain = 1,
    Sessions = 2,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "a state machine that is not wrapped",
            Self::Sessions => "a state machine wrapped in Sessions",
        })
    }
}

/// Writes out a state that was captured. An error of the writer it is given is to be returned as it is.
pub type SnapshotWriter = Box<dyn FnOnce(&mut dyn io::Write) -> io::Result<()> + Send>;

/// A committed command on its way into the state.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its place in the log.
    pub index: Index,
    /// The term in which it was appended.
    pub term: Term,
    /// Log time: when the leader appended it, in microseconds since the Unix epoch. Never less than that of the entry before
    /// it, and the same on every node. It follows the leader's wall clock, but while a cluster runs it advances by one half
    /// to three halves of the time that goes by: it approaches a clock that was set, or that of a new leader, slowly.
    pub time_us: u64,
    /// The node it was proposed on.
    pub origin: NodeId,
    /// Whether it was proposed on this node by this process, so that somebody here waits for the reply.
    pub local: bool,
    /// The bytes that were proposed.
    pub command: &'a [u8],
}

/// A run of committed commands, to be taken one after the other.
///
/// ```
/// # use ringraft::Batch;
/// # struct Counter { total: u64 }
/// # impl Counter {
/// fn apply(&mut self, batch: &mut Batch<'_>) -> std::io::Result<()> {
///     while let Some((entry, reply)) = batch.next() {
///         self.total += entry.command.len() as u64;
///         reply.extend_from_slice(&self.total.to_le_bytes());
///     }
///     Ok(())
/// }
/// # }
/// ```
pub struct Batch<'a>(Source<'a>);

enum Source<'a> {
    Log(Records<'a>),
    /// A state machine that wraps another hands its entries on.
    Lent(&'a mut dyn Lend),
}

/// Committed commands, one at a time. Between two calls of `advance` the present one may be looked at more than once.
pub(crate) trait Lend {
    /// Answers the present command and goes to the next; false at the end.
    fn advance(&mut self) -> bool;

    /// The present command, and the buffer for its reply.
    fn current(&mut self) -> (Entry<'_>, &mut Vec<u8>);

    /// Ends behind the present command, for a snapshot.
    fn snapshot_here(&mut self);
}

/// Records that are written and were encoded here or verified on their way in.
struct Records<'a> {
    records: &'a [u8],
    /// Where in them the next one begins.
    at: usize,
    /// Of the last one that was taken.
    last: Index,
    term: Term,
    time_us: u64,
    present: Option<(Header, &'a [u8])>,
    reply: &'a mut Vec<u8>,
    table: &'a Table,
    own_origin: u64,
    /// A snapshot is to be taken before the next command.
    snapshot: bool,
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Source::Log(log) => write!(
                f,
                "Batch {{ taken to {}, {} bytes left }}",
                log.last,
                log.records.len() - log.at
            ),
            Source::Lent(_) => f.write_str("Batch { lent by a state machine }"),
        }
    }
}

impl<'a> Batch<'a> {
    pub(crate) fn new(
        records: &'a [u8],
        reply: &'a mut Vec<u8>,
        table: &'a Table,
        own_origin: u64,
    ) -> Self {
        Self(Source::Log(Records {
            records,
            at: 0,
            last: 0,
            term: 0,
            time_us: 0,
            present: None,
            reply,
            table,
            own_origin,
            snapshot: false,
        }))
    }

    /// What a state machine hands on to the one that it wraps.
    pub(crate) fn lent(by: &'a mut dyn Lend) -> Self {
        Self(Source::Lent(by))
    }

    /// The next command and the buffer for its reply, or `None` at the end of the batch. The reply goes to the
    /// caller, where [`Entry::local`]; elsewhere what is written is dropped, so it need not be written.
    #[allow(clippy::should_implement_trait)] // It lends: an `Iterator` could not.
    pub fn next(&mut self) -> Option<(Entry<'_>, &mut Vec<u8>)> {
        self.advance().then(|| self.current())
    }

    /// Asks for a snapshot of the state as it is after the last command that was taken, exactly: the batch ends there, and
    /// what follows comes in another one. On every node, then, a snapshot of this index; one that is still being written
    /// when it is asked for is finished instead, and this one is not taken.
    pub fn snapshot_here(&mut self) {
        Lend::snapshot_here(self);
    }

    /// The index of the command that was taken last; 0: none was.
    pub(crate) fn taken(&self) -> Index {
        match &self.0 {
            Source::Log(log) => log.last,
            Source::Lent(_) => 0,
        }
    }

    /// Ends a batch of the log.
    pub(crate) fn finish(self) -> Taken {
        match self.0 {
            Source::Log(mut log) => {
                log.answer();
                Taken {
                    bytes: log.at,
                    last: log.last,
                    term: log.term,
                    time_us: log.time_us,
                    snapshot: log.snapshot,
                }
            }
            Source::Lent(_) => unreachable!("who lends a batch ends it"),
        }
    }
}

impl Lend for Batch<'_> {
    fn advance(&mut self) -> bool {
        match &mut self.0 {
            Source::Log(log) => log.advance(),
            Source::Lent(lender) => lender.advance(),
        }
    }

    fn current(&mut self) -> (Entry<'_>, &mut Vec<u8>) {
        match &mut self.0 {
            Source::Log(log) => log.current(),
            Source::Lent(lender) => lender.current(),
        }
    }

    fn snapshot_here(&mut self) {
        match &mut self.0 {
            Source::Log(log) => log.snapshot = log.last > 0,
            Source::Lent(lender) => lender.snapshot_here(),
        }
    }
}

impl Records<'_> {
    fn is_local(&self, header: &Header) -> bool {
        header.origin == self.own_origin
    }

    fn answer(&mut self) {
        if let Some((header, _)) = self.present.take()
            && self.is_local(&header)
        {
            self.table
                .complete(Token(header.token), Ok(header.index), self.reply);
        }
        self.reply.clear();
    }

    fn advance(&mut self) -> bool {
        self.answer();
        if self.snapshot {
            return false;
        }
        let Ok(record) = record::peek(&self.records[self.at..]) else {
            return false;
        };
        let header = record.header;
        if header.kind != KIND_COMMAND {
            return false;
        }
        self.at += record.bytes.len();
        (self.last, self.term, self.time_us) = (header.index, header.term, header.time_us);
        self.present = Some((header, record.payload));
        true
    }

    fn current(&mut self) -> (Entry<'_>, &mut Vec<u8>) {
        let (header, command) = self.present.expect("advance found a command");
        let entry = Entry {
            index: header.index,
            term: header.term,
            time_us: header.time_us,
            origin: NodeId((header.origin >> 32) as u32),
            local: self.is_local(&header),
            command,
        };
        (entry, self.reply)
    }
}

/// What was taken of a batch.
pub(crate) struct Taken {
    /// Bytes of records.
    pub(crate) bytes: usize,
    /// The index of the last one, its term and time; zeros for none.
    pub(crate) last: Index,
    pub(crate) term: Term,
    pub(crate) time_us: u64,
    /// A snapshot of exactly this was asked for.
    pub(crate) snapshot: bool,
}
