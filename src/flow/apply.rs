//! Hop 3: committed entries become state, and their origin's callers get the reply.
//!
//! The commit index is an atomic that bounds how far this stage reads the log; nothing is copied on the way: the state
//! machine sees the records where they lie in the mapped segment. Reads wait in their ring until what they must see is
//! applied.
//!
//! Invariant: an entry is given to the state machine at most once per process, whatever the state machine does.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ringbuf::{Receiver, Take};
use storage::Reader;
use storage::record::{self, Header};

use crate::flow::hops::Stamp;
use crate::flow::rings::{AtIndex, ToApply, advance};
use crate::flow::shared::Shared;
use crate::fsm::Batch;
use crate::pending::Token;
use crate::wire::{KIND_COMMAND, KIND_TERM_START};
use crate::{Fault, Index, ProposeError, StateMachine, Term};

/// How many bytes of the log one call of `StateMachine::apply` covers at the most (a longer entry goes alone).
const APPLY_BYTES: u64 = 256 << 10;

pub(crate) struct Apply {
    machine: Box<dyn StateMachine>,
    reader: Reader,
    at_index: Receiver<ToApply>,
    shared: Arc<Shared>,
    applied: Index,
    leading: Option<Term>,
    reply: Vec<u8>,
    proposal_timeout_us: u64,
    next_sweep_us: u64,
}

impl Apply {
    pub(crate) fn new(
        machine: Box<dyn StateMachine>,
        reader: Reader,
        at_index: Receiver<ToApply>,
        shared: Arc<Shared>,
        proposal_timeout: Duration,
    ) -> Self {
        Self {
            machine,
            reader,
            at_index,
            shared,
            applied: 0,
            leading: None,
            reply: Vec::with_capacity(4 << 10),
            proposal_timeout_us: u64::try_from(proposal_timeout.as_micros()).unwrap_or(u64::MAX),
            next_sweep_us: 0,
        }
    }

    pub(crate) fn poll(&mut self, now_us: u64) -> Result<usize, Fault> {
        let mut work = self.apply_committed()?;
        work += self.reach()?;
        if now_us >= self.next_sweep_us {
            self.next_sweep_us = now_us + self.sweep_every_us();
            self.shared
                .table
                .expire(now_us.saturating_sub(self.proposal_timeout_us));
        }
        Ok(work)
    }

    fn sweep_every_us(&self) -> u64 {
        (self.proposal_timeout_us / 8).max(1000)
    }

    /// Requests that wait are looked through from time to time; without any there is nothing to wake for.
    pub(crate) fn deadline_us(&self) -> u64 {
        if self.shared.nothing_pending() {
            u64::MAX
        } else {
            self.next_sweep_us
        }
    }

    fn target(&self) -> Index {
        self.shared
            .marks
            .committed
            .load(Ordering::Acquire)
            .min(self.reader.written())
    }

    pub(crate) fn has_work(&mut self) -> bool {
        // A read whose index is not applied yet is woken for by the commit index.
        self.applied < self.target() || {
            let Self {
                at_index,
                applied,
                shared,
                ..
            } = self;
            let mut due = false;
            at_index.drain_while(1, |item| {
                due = reached(item.0, *applied, shared);
                Take::Stop
            });
            due
        }
    }

    fn apply_committed(&mut self) -> Result<usize, Fault> {
        let before = self.applied;
        let target = self.target();
        while self.applied < target {
            let first = self.applied + 1;
            let slice = self
                .reader
                .slice(first, target, APPLY_BYTES)
                .unwrap_or_else(|| {
                    panic!(
                        "entry {first} is committed (to {target}) and written, but not in the log"
                    )
                });
            self.apply_records(slice.as_ref())?;
            assert_eq!(self.applied, slice.last(), "the whole slice is applied");
            advance(&self.shared.marks.applied, self.applied);
            self.shared.hops.pass(Stamp::Applied, self.applied);
            if self.applied - before > 16 << 10 {
                break; // Let the reads and the other stages of this thread have their turn.
            }
        }
        Ok((self.applied - before) as usize)
    }

    fn apply_records(&mut self, mut records: &[u8]) -> Result<(), Fault> {
        while !records.is_empty() {
            let record = record::peek(records).unwrap_or_else(|error| {
                panic!(
                    "the log after {} is damaged in memory: {error}",
                    self.applied
                )
            });
            let header = record.header;
            assert_eq!(
                header.index,
                self.applied + 1,
                "entries are applied in order"
            );
            let taken = match header.kind {
                KIND_COMMAND => self.apply_commands(records)?,
                KIND_TERM_START => {
                    let machine = &mut self.machine;
                    let Header {
                        term,
                        index,
                        time_us,
                        ..
                    } = header;
                    guard("new_term", index, || machine.new_term(term, index, time_us))?;
                    // Everything of earlier terms that is in the log at all is applied by now.
                    self.shared.table.replace_before(term);
                    self.applied = index;
                    record.bytes.len()
                }
                kind => {
                    return Err(machine_fault(&format!(
                        "entry {} is of kind {kind}, which this version does not know; it was written by a later one",
                        header.index
                    )));
                }
            };
            records = &records[taken..];
        }
        Ok(())
    }

    /// Hands the commands at the beginning of `records` to the state machine; returns their bytes.
    fn apply_commands(&mut self, records: &[u8]) -> Result<usize, Fault> {
        let mut batch = Batch::new(
            records,
            &mut self.reply,
            &self.shared.table,
            self.shared.origin,
        );
        let machine = &mut self.machine;
        let outcome = catch_unwind(AssertUnwindSafe(|| machine.apply(&mut batch)));
        let after = self.applied;
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return Err(machine_fault(&format!(
                    "apply returned an error after index {after}: {error}"
                )));
            }
            Err(panic) => {
                return Err(machine_fault(&format!(
                    "apply panicked after index {after}: {}",
                    text(&*panic)
                )));
            }
        }
        let (taken, last) = batch.finish();
        let untaken =
            record::peek(&records[taken..]).is_ok_and(|next| next.header.kind == KIND_COMMAND);
        if untaken {
            return Err(machine_fault(&format!(
                "apply returned and left commands after index {} untaken",
                last.max(after)
            )));
        }
        self.applied = last;
        Ok(taken)
    }

    /// Does what was to be done once an index is applied.
    fn reach(&mut self) -> Result<usize, Fault> {
        let Self {
            at_index,
            machine,
            shared,
            applied,
            leading,
            reply,
            ..
        } = self;
        let mut failed = None;
        let taken = at_index.drain_while(256, |item| {
            if failed.is_some() || !reached(item.0, *applied, shared) {
                return Take::Stop;
            }
            let done = match item.0 {
                AtIndex::Read { token, .. } => guard("query", *applied, || {
                    shared
                        .table
                        .complete_read(Token(token), *applied, reply, |query, reply| {
                            machine.query(query, reply)
                        });
                }),
                AtIndex::LeaderStart { term, .. } if shared.leads(term) => {
                    *leading = Some(term);
                    guard("leader_start", *applied, || machine.leader_start(term))
                }
                // A leader that fell before it had applied its first entry never started.
                AtIndex::LeaderStart { .. } => Ok(()),
                AtIndex::LeaderStop { term } if *leading == Some(term) => {
                    *leading = None;
                    guard("leader_stop", *applied, || machine.leader_stop(term))
                }
                AtIndex::LeaderStop { .. } => Ok(()),
            };
            failed = done.err();
            Take::Taken
        });
        failed.map_or(Ok(taken), Err)
    }

    /// Ends leadership for the state machine; requests that are left are answered by the node.
    pub(crate) fn close(&mut self) {
        if let Some(term) = self.leading.take() {
            let machine = &mut self.machine;
            if let Err(fault) = guard("leader_stop", self.applied, || machine.leader_stop(term)) {
                tracing::error!("{fault}");
            }
        }
        let table = &self.shared.table;
        self.at_index.drain(usize::MAX, |item| {
            if let AtIndex::Read { token, .. } = item.0 {
                table.complete(Token(token), Err(ProposeError::Stopped), &[]);
            }
        });
    }

    /// Whether everything that is committed has been applied.
    pub(crate) fn caught_up(&self) -> bool {
        self.applied >= self.shared.marks.committed.load(Ordering::Acquire)
    }
}

fn reached(item: AtIndex, applied: Index, shared: &Shared) -> bool {
    match item {
        AtIndex::Read { index, .. } => index <= applied,
        AtIndex::LeaderStart { index, term } => index <= applied || !shared.leads(term),
        AtIndex::LeaderStop { .. } => true,
    }
}

/// Runs user code; a panic in it is the state machine's error, not the thread's end.
fn guard(what: &str, index: Index, run: impl FnOnce()) -> Result<(), Fault> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        machine_fault(&format!(
            "{what} panicked at index {index}: {}",
            text(&*panic)
        ))
    })
}

fn machine_fault(what: &str) -> Fault {
    Fault::StateMachine(what.into())
}

fn text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}
