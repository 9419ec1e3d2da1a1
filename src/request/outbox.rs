//! The answers to many requests, for a server that reads them by itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringbuf::Notify;

use crate::error::ProposeError;
use crate::request::sinks::{PLACE, Reading, SinkId};
use crate::request::table::Table;
use crate::request::token::Token;
use crate::types::Index;

/// Answers to many requests, read by one thread in the order in which they were applied.
///
/// For servers: a request made with [`Node::propose_to`](crate::Node::propose_to) carries a tag of the caller's own,
/// and its answer comes out here under that tag, without a lock, an allocation or a wake-up per request. Made by
/// [`Node::outbox`](crate::Node::outbox).
pub struct Outbox {
    table: Arc<Table>,
    /// `None` only while it is being dropped.
    reading: Option<Reading>,
    id: SinkId,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outbox {}", self.id & PLACE)
    }
}

/// Names an outbox in requests; see [`Outbox::id`]. No other outbox ever has the same name: a request that names one that is
/// dropped, or another node's, is refused with [`ProposeError::NoOutbox`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxId {
    pub(crate) table: u64,
    pub(crate) sink: SinkId,
}

impl Outbox {
    pub(crate) fn open(table: Arc<Table>, notify: impl Notify + 'static) -> Option<Self> {
        let (id, reading) = table.sinks().open(&|token| table.discard(token), notify)?;
        Some(Self {
            table,
            reading: Some(reading),
            id,
        })
    }

    /// What requests name it by.
    pub fn id(&self) -> OutboxId {
        OutboxId {
            table: self.table.id(),
            sink: self.id,
        }
    }

    /// Takes up to `limit` answers: `each(tag, outcome, reply)`, where the outcome of a command is its log index.
    /// Returns how many there were. A panic in `each` comes through; that answer counts as taken.
    pub fn drain(
        &mut self,
        limit: usize,
        mut each: impl FnMut(u64, Result<Index, ProposeError>, &[u8]),
    ) -> usize {
        let Self { table, reading, id } = self;
        let reading = reading.as_mut().expect("taken only by drop");
        let mut heard = 0;
        while heard < limit {
            let mut mine = 0;
            let taken = reading.ring.drain(limit - heard, |answered| {
                let token = Token(answered.0.load(Ordering::Relaxed));
                // What was asked for by the outbox that had this place before is nobody's.
                if table.sink_of(token) == *id {
                    mine += 1;
                    table.consume(token, &mut each);
                } else {
                    table.discard(token);
                }
            });
            heard += mine;
            if taken == mine {
                break;
            }
        }
        heard
    }

    /// Announces that the reader goes to sleep, looks once more whether an answer has come, and only then runs
    /// `sleep`; an answer that comes later calls the `notify` the outbox was made with. Returns false when it did not
    /// sleep. `notify` may be called without an answer: whoever is woken drains, and sleeps again.
    pub fn sleep(&mut self, sleep: impl FnOnce()) -> bool {
        let Reading { ring, sleeper } = self.reading.as_mut().expect("taken only by drop");
        sleeper.sleep(|| !ring.is_empty(), sleep)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if let Some(reading) = self.reading.take() {
            self.table
                .sinks()
                .close(self.id, reading, &|token| self.table.discard(token));
        }
    }
}
