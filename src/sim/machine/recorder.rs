//! The state machine that a simulated node runs: around the [`Model`], one that writes down what happens to it.
//!
//! Whichever node applies an index first writes it into the [ledger](super::ledger); every other, and the same one in a later
//! life, must find there what it applies itself: the entry, what it did to the state, and the answer. Between the two may stand
//! [`Sessions`]; then there are entries that it answers itself, and these too must be answered alike by all.

use std::io::{self, Read as _};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::session::{Answer, Request, Sessions};
use crate::sim::machine::ledger::{Applied, Ledger, MANAGED, NO_OP, NOTHING};
use crate::sim::machine::model::{Model, op_of};
use crate::sim::plan::Load;
use crate::sim::rng::mix;
use crate::state_machine::Lend;
use crate::state_machine::{Batch, Entry, SnapshotWriter, StateMachine};
use crate::types::{Index, Term};

/// One node's state machine, in one of its lives.
pub(crate) struct Scribe {
    pen: Pen,
    machine: Box<dyn StateMachine>,
    /// Its disk, if it has one.
    disk: Option<MachineDisk>,
}

/// The disk of a machine that has one: what it saves is durable at once, and outlives every crash.
#[derive(Clone, Debug, Default)]
pub(crate) struct MachineDisk(Arc<Mutex<Option<Saved>>>);

#[derive(Clone, Debug)]
struct Saved {
    applied: Index,
    state: Vec<u8>,
}

impl MachineDisk {
    fn lock(&self) -> MutexGuard<'_, Option<Saved>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last entry that is in the state that it holds.
    pub(crate) fn applied(&self) -> Index {
        self.lock().as_ref().map_or(0, |saved| saved.applied)
    }
}

/// What is to be written next, and by whom.
struct Pen {
    node: u64,
    leads: Option<Term>,
    ledger: Ledger,
    has_sessions: bool,
    value: u64,
    applied: Index,
    /// The state up to here came from a snapshot.
    restored: Index,
}

impl Scribe {
    pub(crate) fn new(
        node: u64,
        load: &Load,
        panics: Arc<AtomicBool>,
        ledger: Ledger,
        disk: &MachineDisk,
    ) -> Self {
        let has_sessions = load.sessions.is_some();
        let model = Model::new(load.registers, has_sessions, panics, ledger.clone());
        let machine: Box<dyn StateMachine> = match &load.sessions {
            None => Box::new(model),
            Some(sessions) => Box::new(Sessions::new(model, sessions.limits)),
        };
        Self {
            pen: Pen {
                node,
                leads: None,
                ledger,
                has_sessions,
                value: 0,
                applied: 0,
                restored: 0,
            },
            machine,
            disk: load.own_disk.then(|| disk.clone()),
        }
    }

    /// Saves the state, most times: a machine may fall back behind what it has applied.
    fn save(&mut self) -> io::Result<()> {
        let applied = self.pen.applied;
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        if !mix(applied).is_multiple_of(4) {
            let mut state = Vec::new();
            self.machine.snapshot()?(&mut state)?;
            *disk.lock() = Some(Saved { applied, state });
        }
        Ok(())
    }
}

impl Pen {
    /// Which request a command is of; and the operation that may have its answer already.
    fn look_at(&self, command: &[u8]) -> (Option<u64>, Option<u64>) {
        if !self.has_sessions {
            return (op_of(command), None);
        }
        match Request::decode(command) {
            Some((Request::Plain, command)) => (op_of(command), None),
            // The number of this try stands at the end.
            Some((Request::Numbered { .. }, command)) => {
                let last = command.len().saturating_sub(8);
                (op_of(&command[last..]), op_of(command))
            }
            Some(_) => (Some(MANAGED), None),
            None => (None, None),
        }
    }

    fn advance(&mut self, index: Index, entry: Applied) {
        let mut book = self.ledger.book();
        if index <= self.applied {
            let (node, applied) = (self.node, self.applied);
            book.blame(format!("node {node} applies {index} after {applied}"));
        }
        for skipped in self.applied + 1..index {
            book.skip(self.node, skipped);
        }
        self.applied = index;
        book.apply(self.node, index, entry);
    }

    fn settle(&mut self, present: Present, reply: &[u8]) {
        let done = self.ledger.book().done.take();
        if let Some(done) = &done {
            self.value = done.value;
        }
        let did = done.as_ref().and_then(|done| done.op);
        // To a command without a session only its own node need answer, where there are sessions.
        let is_everywhere = !self.has_sessions || present.repeats.is_some() || did.is_none();
        let answer = if is_everywhere { digest(reply) } else { 0 };
        match (did, present.repeats) {
            (Some(op), repeats) if op == repeats.unwrap_or(present.op) => {}
            (None, None) if present.op == MANAGED => {}
            (None, Some(op)) => {
                if let Answer::Applied(_) = Answer::decode(reply) {
                    let mut book = self.ledger.book();
                    book.repeated(self.node, op, answer, self.restored);
                }
            }
            _ => {
                let (node, index, op) = (self.node, present.index, present.op);
                self.ledger.book().blame(format!(
                    "node {node} is given request {op} at index {index}, and does {did:?}"
                ));
            }
        }
        self.advance(
            present.index,
            Applied {
                term: present.term,
                time_us: present.time_us,
                op: present.op,
                digest: present.digest,
                did,
                wrote: done.and_then(|done| done.wrote),
                value: self.value,
                answer,
            },
        );
    }
}

/// The entry that the wrapped machine has.
struct Present {
    index: Index,
    term: Term,
    time_us: u64,
    /// The request that it is of.
    op: u64,
    /// The operation that has its answer already, should nothing be done.
    repeats: Option<u64>,
    digest: u64,
}

/// Stands between the batch and the wrapped machine.
struct Through<'a, 'b> {
    batch: &'a mut Batch<'b>,
    pen: &'a mut Pen,
    present: Option<Present>,
}

impl Through<'_, '_> {
    fn settle(&mut self) {
        if let Some(present) = self.present.take() {
            let (_, reply) = self.batch.current();
            self.pen.settle(present, reply);
        }
    }
}

impl Lend for Through<'_, '_> {
    fn advance(&mut self) -> bool {
        self.settle();
        if !self.batch.advance() {
            return false;
        }
        let (entry, _) = self.batch.current();
        let (op, repeats) = self.pen.look_at(entry.command);
        self.present = Some(Present {
            index: entry.index,
            term: entry.term,
            time_us: entry.time_us,
            op: op.unwrap_or(NOTHING),
            repeats,
            digest: digest(entry.command),
        });
        // What a machine that panicked has left behind is not of this entry.
        self.pen.ledger.book().done = None;
        true
    }

    fn current(&mut self) -> (Entry<'_>, &mut Vec<u8>) {
        self.batch.current()
    }

    fn snapshot_here(&mut self) {
        self.batch.snapshot_here();
    }
}

pub(crate) fn digest(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(sum ^ u64::from_le_bytes(word))
    })
}

/// What stands in front of a snapshot, so that some are so long that they go in many pieces.
fn filler(applied: Index) -> (u64, [u8; 8]) {
    let longest = if applied.is_multiple_of(7) {
        200_000
    } else {
        2_000
    };
    let count = mix(applied) % longest / 8;
    (count, mix(!applied).to_le_bytes())
}

impl StateMachine for Scribe {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        let mut through = Through {
            batch,
            pen: &mut self.pen,
            present: None,
        };
        self.machine.apply(&mut Batch::lent(&mut through))?;
        through.settle();
        self.save()
    }

    fn open(&mut self) -> io::Result<Index> {
        let Some(saved) = self.disk.as_ref().and_then(|disk| disk.lock().clone()) else {
            return Ok(0);
        };
        self.machine.restore(&mut saved.state.as_slice())?;
        let value = self.pen.ledger.book().done.take();
        self.pen.value = value.map_or(0, |done| done.value);
        self.pen.applied = saved.applied;
        Ok(saved.applied)
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        self.machine.query(query, reply);
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let machine = self.machine.snapshot()?;
        let (node, applied, ledger) = (self.pen.node, self.pen.applied, self.pen.ledger.clone());
        Ok(Box::new(move |out| {
            let mut state = Vec::new();
            machine(&mut state)?;
            ledger.book().captured(node, applied, digest(&state));
            out.write_all(&applied.to_le_bytes())?;
            let (count, piece) = filler(applied);
            for _ in 0..count {
                out.write_all(&piece)?;
            }
            out.write_all(&state)
        }))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let mut number = [0; 8];
        from.read_exact(&mut number)?;
        let applied = u64::from_le_bytes(number);
        let (count, piece) = filler(applied);
        let mut filler = Vec::new();
        from.take(8 * count).read_to_end(&mut filler)?;
        let whole = filler.len() as u64 == 8 * count && filler.chunks(8).all(|at| at == piece);
        self.machine.restore(from)?;
        let mut book = self.pen.ledger.book();
        let value = book.done.take().map(|done| done.value);
        let was = book.value_at(applied);
        if value != Some(was) || !whole {
            let node = self.pen.node;
            book.blame(format!(
                "node {node} restores {value:?} at {applied}, where the state was {was}"
            ));
        }
        drop(book);
        (self.pen.value, self.pen.applied) = (value.unwrap_or(0), applied);
        self.pen.restored = applied;
        self.save()
    }

    fn new_term(&mut self, term: Term, at: Index, time_us: u64) {
        let value = self.pen.value;
        self.pen.advance(
            at,
            Applied {
                term,
                time_us,
                op: NO_OP,
                digest: 0,
                did: None,
                wrote: None,
                value,
                answer: 0,
            },
        );
        self.machine.new_term(term, at, time_us);
    }

    fn leader_start(&mut self, term: Term) {
        if let Some(before) = self.pen.leads.replace(term) {
            let node = self.pen.node;
            self.pen.ledger.book().blame(format!(
                "node {node} is told that it leads {term}, and not that it no longer leads {before}"
            ));
        }
        self.machine.leader_start(term);
    }

    fn leader_stop(&mut self, term: Term) {
        if self.pen.leads.take() != Some(term) {
            let node = self.pen.node;
            self.pen.ledger.book().blame(format!(
                "node {node} is told that it no longer leads {term}, and never was that it does"
            ));
        }
        self.machine.leader_stop(term);
    }
}
