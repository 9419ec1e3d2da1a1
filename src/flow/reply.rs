//! Hop 4: answers leave for those who wait.
//!
//! Whatever answers a request (apply, or the consensus stage that refuses it) writes the answer into its slot and puts the
//! slot's token on the ring of its sink. This stage reads the first of them: callers are woken and callbacks run here, so
//! that neither costs the apply stage anything. The notifications of outboxes that another stage may not call are called here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringbuf::Receiver;

use crate::request::sinks::{Answered, TURN};
use crate::request::table::Table;
use crate::request::token::Token;

/// Runs on its own thread in the plan of a thread per stage.
pub(crate) struct ReplyStage {
    pub(crate) table: Arc<Table>,
    pub(crate) replied: Receiver<Answered>,
}

impl ReplyStage {
    pub(crate) fn poll(&mut self) -> usize {
        let table = &self.table;
        let mut work = self.replied.drain(TURN, |answered| {
            table.deliver(Token(answered.0.load(Ordering::Relaxed)))
        });
        let sinks = table.sinks();
        if sinks.has_missed() && sinks.missed.swap(false, Ordering::AcqRel) {
            table.deliver_all();
            work += 1;
        }
        work + sinks.bells.ring_owed()
    }

    pub(crate) fn has_work(&mut self) -> bool {
        let sinks = self.table.sinks();
        !self.replied.is_empty()
            || sinks.has_missed()
            || sinks.bells.owed.load(Ordering::Acquire) != 0
    }
}
