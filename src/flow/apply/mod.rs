//! Hop 3: committed entries become state, and their origin's callers get the reply.
//!
//! The commit index is an atomic that bounds how far this stage reads the log; nothing is copied on the way: the state
//! machine sees the records where they lie in the mapped segment. Reads wait here, in the order of their indexes, until what
//! they must see is applied (`waiting.rs`); all that are due are answered in one turn.
//!
//! Snapshots are captured here, between two batches; writing them is the background's. When the state is to be replaced by one,
//! the machine itself goes to the background, and nothing is applied or read until it is back.
//!
//! Invariant: an entry is given to the state machine at most once per process, whatever the state machine does.

pub(crate) mod budget;
pub(crate) mod waiting;

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringbuf::{Receiver, Take, Waker};
use storage::Reader;
use storage::SnapshotMeta;
use storage::record::{self, Header};

use crate::entry::{KIND_COMMAND, KIND_QUERY, KIND_TERM_START};
use crate::error::{Fault, ProposeError};
use crate::flow::apply::budget::ApplyBudget;
use crate::flow::apply::waiting::WaitingReads;
use crate::flow::background::handoff::{Job, Returned};
use crate::flow::background::trigger::SnapshotTrigger;
use crate::flow::guard::text;
use crate::flow::rings::{AtIndex, ToApply};
use crate::flow::shared::{Shared, Stop};
use crate::flow::watermarks::advance;
use crate::request::latency::Stamp;
use crate::request::token::Token;
use crate::state_machine::StateMachine;
use crate::state_machine::{Batch, Taken};
use crate::types::{Index, Term};

/// What the buffer of replies begins with, and what it keeps when nothing is to be done.
const FIRST_REPLY_BYTES: usize = 4 << 10;
const KEEP_REPLY_BYTES: usize = 1 << 20;

/// Reads that one turn takes and answers at the most.
const READS_A_TURN: usize = 2048;

pub(crate) struct Apply {
    /// `None` while the background has it.
    machine: Option<Box<dyn StateMachine>>,
    reader: Reader,
    at_index: Receiver<ToApply>,
    waiting: WaitingReads,
    /// Offices begun and ended that the state machine has not been told of.
    offices: VecDeque<AtIndex>,
    shared: Arc<Shared>,
    consensus: Waker,
    /// The machine has everything up to here. It may begin ahead of the log, see `host/restore.rs`.
    applied: Index,
    /// What is shown of it: no more than is committed and written here.
    shown: Index,
    /// Of the last entry that was applied; 0 if the log does not hold it.
    term: Term,
    time_us: u64,
    members: Vec<u8>,
    trigger: SnapshotTrigger,
    budget: ApplyBudget,
    leading: Option<Term>,
    reply: Vec<u8>,
    query: Vec<u8>,
    /// Of the requests that were answered because their time was over: `Shared::expired` as it was last seen.
    expired: u64,
}

/// What the stage begins with: a machine, what is in it, and since when it owes a snapshot.
pub(crate) struct Begun {
    pub(crate) machine: Box<dyn StateMachine>,
    pub(crate) state: SnapshotMeta,
    pub(crate) trigger: SnapshotTrigger,
}

impl Apply {
    pub(crate) fn new(
        begun: Begun,
        reader: Reader,
        at_index: Receiver<ToApply>,
        shared: Arc<Shared>,
        consensus: Waker,
        inline_bytes: usize,
    ) -> Self {
        let Begun {
            machine,
            state,
            trigger,
        } = begun;
        let shown = state.index.min(reader.written());
        advance(&shared.marks.applied, shown);
        Self {
            machine: Some(machine),
            reader,
            waiting: WaitingReads::with_capacity(at_index.gauge().capacity()),
            offices: VecDeque::with_capacity(16),
            at_index,
            shared,
            consensus,
            applied: state.index,
            shown,
            term: state.term,
            time_us: state.time_us,
            members: state.members,
            trigger,
            budget: ApplyBudget::default(),
            leading: None,
            reply: Vec::with_capacity(FIRST_REPLY_BYTES),
            query: Vec::with_capacity(inline_bytes),
            expired: 0,
        }
    }

    pub(crate) fn poll(&mut self, now_us: u64) -> Result<usize, Fault> {
        let mut work = self.exchange(now_us)?;
        if self.machine.is_some() {
            work += self.apply_committed(now_us)?;
            work += self.reach()?;
            work += self.snapshots(now_us)?;
        }
        let expired = self.shared.expired.load(Ordering::Acquire);
        if expired != self.expired {
            self.expired = expired;
            self.waiting.forget_answered(&self.shared.table);
        }
        if work == 0 && self.reply.capacity().max(self.query.capacity()) > KEEP_REPLY_BYTES {
            self.reply = Vec::with_capacity(FIRST_REPLY_BYTES);
            self.query = Vec::new();
        }
        Ok(work)
    }

    pub(crate) fn deadline_us(&self) -> u64 {
        if self.shared.handoff.is_taking() {
            u64::MAX
        } else {
            self.trigger.deadline_us(self.applied)
        }
    }

    fn target(&self) -> Index {
        self.shared
            .marks
            .committed
            .load(Ordering::Acquire)
            .min(self.reader.written())
    }

    fn show(&mut self, applied: Index) {
        self.shown = applied;
        advance(&self.shared.marks.applied, applied);
    }

    /// Whether a snapshot of what is applied can be given its term.
    fn can_capture(&self) -> bool {
        self.term > 0 || self.applied == 0
    }

    pub(crate) fn has_work(&mut self) -> bool {
        let handoff = &self.shared.handoff;
        if self.machine.is_none() {
            return handoff.has_back();
        }
        let is_asked = handoff.has_calls() || handoff.is_wanted() && self.can_capture();
        if self.behind().is_some() {
            // A node that leaves begins no restore, and applies nothing before one.
            return is_asked || self.shared.stop() == Stop::No;
        }
        if is_asked {
            return true;
        }
        // A read whose index is not applied yet is woken for by the commit index.
        let office = |office: &AtIndex| reached(*office, self.applied, &self.shared);
        self.shown < self.target()
            || !self.at_index.is_empty()
            || self.waiting.is_due(self.applied)
            || self.offices.front().is_some_and(office)
    }

    fn apply_committed(&mut self, now_us: u64) -> Result<usize, Fault> {
        let before = self.applied;
        let target = self.target();
        if self.behind().is_some() {
            return Ok(0); // What is committed by now may not be what the log holds.
        }
        if self.applied >= target {
            // The log comes to what the machine has.
            let news = target > self.shown;
            if news {
                self.show(target);
            }
            return Ok(usize::from(news));
        }
        // Not the time of the turn: other stages may have worked since.
        self.budget.begin(self.shared.clock.now_us());
        while self.applied < target {
            let first = self.applied + 1;
            let Some(slice) = self.reader.slice(first, target, self.budget.bytes()) else {
                assert!(
                    self.behind().is_some(),
                    "entry {first} is committed (to {target}) and written, but not in the log"
                );
                break; // A snapshot takes the place of the log, and of the state.
            };
            self.apply_records(slice.as_ref(), now_us)?;
            self.trigger.applied(slice.len() as u64);
            assert_eq!(self.applied, slice.last(), "the whole slice is applied");
            self.show(self.applied);
            self.shared.hops.pass(Stamp::Applied, self.applied);
            let now_us = self.shared.clock.now_us();
            let goes_on = self.budget.took(slice.len() as u64, now_us);
            if !goes_on || self.applied - before > 16 << 10 {
                break; // Let the reads and the other stages of this thread have their turn.
            }
        }
        Ok((self.applied - before) as usize)
    }

    fn apply_records(&mut self, mut records: &[u8], now_us: u64) -> Result<(), Fault> {
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
                KIND_COMMAND => self.apply_commands(records, now_us)?,
                KIND_TERM_START => {
                    let machine = here(&mut self.machine);
                    let Header {
                        term,
                        index,
                        time_us,
                        ..
                    } = header;
                    guard("new_term", index, || machine.new_term(term, index, time_us))?;
                    // Everything of earlier terms that is in the log at all is applied by now.
                    self.shared.table.replace_before(term);
                    (self.applied, self.term, self.time_us) = (index, term, time_us);
                    record.bytes.len()
                }
                KIND_QUERY => {
                    self.answer_query(&header, record.payload)?;
                    let Header {
                        index,
                        term,
                        time_us,
                        ..
                    } = header;
                    (self.applied, self.term, self.time_us) = (index, term, time_us);
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
    fn apply_commands(&mut self, records: &[u8], now_us: u64) -> Result<usize, Fault> {
        let mut batch = Batch::new(
            records,
            &mut self.reply,
            &self.shared.table,
            self.shared.origin,
        );
        let machine = here(&mut self.machine);
        let outcome = catch_unwind(AssertUnwindSafe(|| machine.apply(&mut batch)));
        let after = self.applied;
        let taken = batch.taken();
        let at = || match taken {
            0 => format!("before it took the command at index {}", after + 1),
            taken => format!("at index {taken}"),
        };
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return Err(machine_fault(&format!(
                    "apply returned an error {}: {error}",
                    at()
                )));
            }
            Err(panic) => {
                return Err(machine_fault(&format!(
                    "apply panicked {}: {}",
                    at(),
                    text(&*panic)
                )));
            }
        }
        let Taken {
            bytes,
            last,
            term,
            time_us,
            snapshot,
        } = batch.finish();
        let untaken =
            record::peek(&records[bytes..]).is_ok_and(|next| next.header.kind == KIND_COMMAND);
        if untaken && !snapshot {
            return Err(machine_fault(&format!(
                "apply returned and left commands after index {} untaken",
                last.max(after)
            )));
        }
        (self.applied, self.term, self.time_us) = (last, term, time_us);
        if snapshot && !self.shared.handoff.is_taking() {
            self.capture(now_us, None)?;
        }
        Ok(bytes)
    }

    /// The index of the snapshot that is to replace the state, if it is behind it.
    fn behind(&self) -> Option<Index> {
        let restore = self.shared.marks.restore.load(Ordering::Acquire);
        (restore > self.applied).then_some(restore)
    }

    /// Gives the machine to the background when its state is to be replaced, and takes it back.
    fn exchange(&mut self, now_us: u64) -> Result<usize, Fault> {
        if let Some(index) = self.behind()
            && self.shared.stop() == Stop::No
            && let Some(machine) = self.machine.take()
        {
            self.shared.handoff.give(Job::Restore { machine, index });
            return Ok(1);
        }
        let Some(Returned { machine, outcome }) = self.shared.handoff.take_back() else {
            return Ok(0);
        };
        let state = match outcome {
            Ok(state) => state,
            Err(why) if self.shared.stop() != Stop::No => {
                // Reading was refused, so this was to be expected. What is in the machine now is not used.
                tracing::info!(
                    node = self.shared.id.0,
                    "a restore was given up, since the node leaves: {why}"
                );
                drop(machine);
                return Ok(1);
            }
            Err(why) => {
                self.machine = Some(machine);
                return Err(machine_fault(&why));
            }
        };
        self.machine = Some(machine);
        let SnapshotMeta {
            index,
            term,
            time_us,
            ..
        } = state;
        tracing::info!(
            node = self.shared.id.0,
            index,
            term,
            "the state is that of a snapshot"
        );
        (self.applied, self.term, self.time_us) = (index, term, time_us);
        self.trigger.past(index, now_us);
        // What was handed to a leader of these terms may be in the snapshot or not: its reply is lost.
        self.shared.table.leave_to_snapshot(term);
        self.show(index);
        self.shared.snapshots().restored += 1;
        self.consensus.wake();
        Ok(1)
    }

    /// Takes a snapshot when one is due, or was asked for.
    fn snapshots(&mut self, now_us: u64) -> Result<usize, Fault> {
        let shared = self.shared.clone();
        let mut work = 0;
        while let Some(caller) = shared.handoff.next_call() {
            work += 1;
            if !shared.table.is_open(caller) {
                continue; // Its time was over before this stage came to it.
            }
            shared.table.lift_limit(caller);
            if shared.handoff.is_taking() {
                let running = Err(ProposeError::SnapshotRunning);
                shared.table.complete(caller, running, &[]);
            } else if !self.can_capture() {
                let error = io::Error::other(format!(
                    "the log has not reached index {} yet, which the state machine has applied: try again",
                    self.applied
                ));
                shared.snapshots().failed(self.applied, &error);
                shared
                    .table
                    .complete(caller, Err(ProposeError::NoSnapshot), &[]);
            } else if self.trigger.is_news(self.applied) {
                self.capture(now_us, Some(caller))?;
            } else {
                shared.table.complete(caller, Ok(self.applied), &[]);
            }
        }
        let due = self.trigger.is_due(self.applied, now_us) && !shared.handoff.is_taking();
        if self.can_capture() && (due || shared.handoff.is_wanted()) {
            self.capture(now_us, None)?;
            work += 1;
        }
        Ok(work)
    }

    fn capture(&mut self, now_us: u64, caller: Option<Token>) -> Result<(), Fault> {
        let machine = here(&mut self.machine);
        let mut captured = Err(io::ErrorKind::Unsupported.into());
        guard("snapshot", self.applied, || captured = machine.snapshot())?;
        let writer = match captured {
            Ok(writer) => writer,
            Err(error) => {
                if error.kind() == io::ErrorKind::Unsupported {
                    self.trigger.give_up();
                } else {
                    self.trigger.past(self.applied, now_us);
                }
                if caller.is_none() && self.shared.snapshots().rot.is_some() {
                    tracing::warn!(
                        node = self.shared.id.0,
                        "no snapshot can take the place of what was found bad ({error}); {}",
                        self.shared.advice_on_rot()
                    );
                }
                self.shared.handoff.unwant();
                self.shared.snapshots().failed(self.applied, &error);
                if let Some(caller) = caller {
                    let none = Err(ProposeError::NoSnapshot);
                    self.shared.table.complete(caller, none, &[]);
                }
                return Ok(());
            }
        };
        self.trigger.past(self.applied, now_us);
        let meta = SnapshotMeta {
            index: self.applied,
            term: self.term,
            time_us: self.time_us,
            members: self.members.clone(),
        };
        self.shared.handoff.give(Job::Take {
            meta,
            writer,
            caller,
        });
        Ok(())
    }

    /// A query that came through the log: here, if it was asked here.
    fn answer_query(&mut self, header: &Header, query: &[u8]) -> Result<(), Fault> {
        if header.origin != self.shared.origin {
            return Ok(());
        }
        let (machine, reply) = (here(&mut self.machine), &mut self.reply);
        reply.clear();
        guard("query", header.index, || machine.query(query, reply))?;
        self.shared
            .table
            .complete(Token(header.token), Ok(header.index), reply);
        reply.clear();
        Ok(())
    }

    /// Does what was to be done once an index is applied.
    fn reach(&mut self) -> Result<usize, Fault> {
        let Self {
            at_index,
            waiting,
            offices,
            shared,
            ..
        } = self;
        let table = &shared.table;
        let mut work = at_index.drain_while(READS_A_TURN, |item| {
            if waiting.is_full() {
                waiting.forget_answered(table);
            }
            match item.0 {
                AtIndex::Read { index, token } => waiting.push(index, token, true),
                AtIndex::Applied { index, token } => waiting.push(index, token, false),
                office => offices.push_back(office),
            }
            Take::Taken
        });
        while let Some(&office) = self.offices.front()
            && reached(office, self.applied, &self.shared)
        {
            self.offices.pop_front();
            self.notify_leadership(office)?;
            work += 1;
        }
        for _ in 0..READS_A_TURN {
            let Some(due) = self.waiting.pop_due(self.applied) else {
                break;
            };
            work += 1;
            let (table, applied) = (&self.shared.table, self.applied);
            let machine = here(&mut self.machine);
            let token = Token(due.token);
            if !due.is_query {
                table.complete(token, Ok(applied), &[]);
                continue;
            }
            let (query, reply) = (&mut self.query, &mut self.reply);
            if !table.take_query(token, query) {
                continue;
            }
            reply.clear();
            let asked = guard("query", applied, || machine.query(query, reply));
            let outcome = asked.as_ref().map(|()| applied);
            table.complete(token, outcome.map_err(|_| ProposeError::Unknown), reply);
            asked?;
        }
        Ok(work)
    }

    fn notify_leadership(&mut self, office: AtIndex) -> Result<(), Fault> {
        let (machine, applied) = (here(&mut self.machine), self.applied);
        match office {
            AtIndex::LeaderStart { term, .. } if self.shared.leads(term) => {
                self.leading = Some(term);
                guard("leader_start", applied, || machine.leader_start(term))
            }
            AtIndex::LeaderStop { term } if self.leading == Some(term) => {
                self.leading = None;
                guard("leader_stop", applied, || machine.leader_stop(term))
            }
            // A leader that fell before it had applied its first entry never started.
            _ => Ok(()),
        }
    }

    /// Ends leadership for the state machine; requests that are left are answered by the node.
    pub(crate) fn close(&mut self) {
        // A machine that has panicked or returned an error is not called again.
        let failed = matches!(self.shared.fault(), Some(Fault::StateMachine(_)));
        if let Some(term) = self.leading.take().filter(|_| !failed) {
            // A node whose machine is with the background follows, and has been told so or will never be.
            let Some(machine) = &mut self.machine else {
                return;
            };
            if let Err(fault) = guard("leader_stop", self.applied, || machine.leader_stop(term)) {
                tracing::error!("{fault}");
            }
        }
        let table = &self.shared.table;
        self.at_index.drain(usize::MAX, |item| {
            if let AtIndex::Read { token, .. } | AtIndex::Applied { token, .. } = item.0 {
                table.complete(Token(token), Err(ProposeError::Stopped), &[]);
            }
        });
        for due in self.waiting.drain() {
            table.complete(Token(due.token), Err(ProposeError::Stopped), &[]);
        }
    }

    /// Reads that wait for their index, for whoever checks that they are bounded.
    #[cfg(feature = "sim")]
    pub(crate) fn waiting_reads(&self) -> usize {
        self.waiting.len()
    }

    /// Whether everything that is committed has been applied, as far as a node applies that leaves: a restore is not finished.
    pub(crate) fn caught_up(&self) -> bool {
        let restores = self.machine.is_none() || self.behind().is_some();
        if restores && self.shared.stop() != Stop::No {
            return true;
        }
        self.machine.is_some()
            && self.behind().is_none()
            && self.applied >= self.shared.marks.committed.load(Ordering::Acquire)
    }
}

/// The machine, where nobody asks for it while it is away.
fn here(machine: &mut Option<Box<dyn StateMachine>>) -> &mut dyn StateMachine {
    machine
        .as_deref_mut()
        .expect("nothing is applied or read while the background has the machine")
}

fn reached(item: AtIndex, applied: Index, shared: &Shared) -> bool {
    match item {
        AtIndex::Read { index, .. } | AtIndex::Applied { index, .. } => index <= applied,
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
