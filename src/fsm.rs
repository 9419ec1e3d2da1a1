//! What the user implements: the replicated state, and how committed commands reach it.

use std::io;

use storage::record;

use crate::pending::{Table, Token};
use crate::wire::KIND_COMMAND;
use crate::{Index, NodeId, Term};

/// The replicated state: a deterministic function of the commands, in their order.
///
/// Every method runs on the apply stage, one call at a time. What `apply` does may depend on the commands, their
/// [`Entry`] and the state alone: never on the node, the clock, randomness or the order of a hash map.
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
    /// The checksums of all of it were verified before. It may run on another thread than `apply`, never beside it.
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
    /// # Errors
    /// Keeps the node from starting.
    fn open(&mut self) -> io::Result<Index> {
        Ok(0)
    }

    /// The first entry of a new term has been applied: what an earlier leader left undone is decided by now.
    fn new_term(&mut self, term: Term, at: Index, time_us: u64) {
        let _ = (term, at, time_us);
    }

    /// This node leads in `term`, and has applied everything up to the first entry of it.
    fn leader_start(&mut self, term: Term) {
        let _ = term;
    }

    /// This node no longer leads in `term`. Every `leader_start` is followed by one of these, at shutdown at the latest.
    fn leader_stop(&mut self, term: Term) {
        let _ = term;
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
    /// The leader's wall clock when it was appended, in microseconds since the Unix epoch; never less than that
    /// of the entry before it. The same on every node.
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
pub struct Batch<'a> {
    /// Records that are written and were encoded here or verified on their way in.
    records: &'a [u8],
    /// Where in them the next one begins.
    at: usize,
    /// Of the last one that was taken.
    last: Index,
    term: Term,
    time_us: u64,
    open: Option<(Token, Index)>,
    reply: &'a mut Vec<u8>,
    table: &'a Table,
    own_origin: u64,
    /// A snapshot is to be taken before the next command.
    snapshot: bool,
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Batch {{ taken to {}, {} bytes left }}",
            self.last,
            self.records.len() - self.at
        )
    }
}

impl<'a> Batch<'a> {
    pub(crate) fn new(
        records: &'a [u8],
        reply: &'a mut Vec<u8>,
        table: &'a Table,
        own_origin: u64,
    ) -> Self {
        Self {
            records,
            at: 0,
            last: 0,
            term: 0,
            time_us: 0,
            open: None,
            reply,
            table,
            own_origin,
            snapshot: false,
        }
    }

    /// The next command and the buffer for its reply, or `None` at the end of the batch. The reply goes to the
    /// caller, where [`Entry::local`]; elsewhere what is written is dropped, so it need not be written.
    #[allow(clippy::should_implement_trait)] // It lends: an `Iterator` could not.
    pub fn next(&mut self) -> Option<(Entry<'_>, &mut Vec<u8>)> {
        self.answer();
        if self.snapshot {
            return None;
        }
        let record = record::peek(&self.records[self.at..]).ok()?;
        let header = record.header;
        if header.kind != KIND_COMMAND {
            return None;
        }
        self.at += record.bytes.len();
        (self.last, self.term, self.time_us) = (header.index, header.term, header.time_us);
        let local = header.origin == self.own_origin;
        self.open = local.then_some((Token(header.token), header.index));
        let entry = Entry {
            index: header.index,
            term: header.term,
            time_us: header.time_us,
            origin: NodeId((header.origin >> 32) as u32),
            local,
            command: record.payload,
        };
        Some((entry, self.reply))
    }

    /// Asks for a snapshot of the state as it is after the last command that was taken, exactly: the batch ends there, and
    /// what follows comes in another one. On every node, then, a snapshot of this index; one that is still being written
    /// when it is asked for is finished instead, and this one is not taken.
    pub fn snapshot_here(&mut self) {
        self.snapshot = self.last > 0;
    }

    fn answer(&mut self) {
        if let Some((token, index)) = self.open.take() {
            self.table.complete(token, Ok(index), self.reply);
        }
        self.reply.clear();
    }

    /// Ends the batch.
    pub(crate) fn finish(mut self) -> Taken {
        self.answer();
        Taken {
            bytes: self.at,
            last: self.last,
            term: self.term,
            time_us: self.time_us,
            snapshot: self.snapshot,
        }
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
