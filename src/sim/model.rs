//! The state that a simulated cluster replicates: one counter, or a few registers.
//!
//! ```text
//! command    operation: u64 │ filler                                               adds one to the counter
//!            operation: u64 │ deed: u8 │ register: u8 │ expected: u8, i64 │ new: i64 │ filler
//! answer     the counter after it, u64 │ filler
//!            whether it was written: u8 │ filler
//! query      nothing; a register's number
//! found      the counter, u64; whether there is a value: u8, i64
//! ```
//!
//! Fillers make lengths differ. That of an answer follows from the operation's number, as all of an answer must follow from the
//! commands alone. Values of registers are the numbers of the operations that wrote them, so each is written once.

use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sim::ledger::{Done, Ledger};
use crate::sim::rng::mix;
use crate::{Batch, SnapshotWriter, StateMachine};

/// The longest command without filler.
pub(crate) const DEED_BYTES: u64 = 27;

const WRITE: u8 = 1;
const COMPARE_AND_SET: u8 = 2;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Increment,
    Write {
        register: u8,
        new: i64,
    },
    CompareAndSet {
        register: u8,
        expected: Option<i64>,
        new: i64,
    },
}

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The counter, after what was done.
    Count(u64),
    /// What a register holds.
    Value(Option<i64>),
    /// Whether a register was written; it was not where a compare-and-set did not find what it expected.
    Written(bool),
}

impl Deed {
    /// The command, `len` bytes long where that is enough.
    pub(crate) fn encode(self, op: u64, len: u64, command: &mut Vec<u8>) {
        let begin = command.len();
        command.extend_from_slice(&op.to_le_bytes());
        let (deed, register, expected, new) = match self {
            Self::Increment => {
                command.resize(begin + len.max(8) as usize, op as u8);
                return;
            }
            Self::Write { register, new } => (WRITE, register, None, new),
            Self::CompareAndSet {
                register,
                expected,
                new,
            } => (COMPARE_AND_SET, register, expected, new),
        };
        command.extend_from_slice(&[deed, register, u8::from(expected.is_some())]);
        command.extend_from_slice(&expected.unwrap_or(0).to_le_bytes());
        command.extend_from_slice(&new.to_le_bytes());
        command.resize(begin + len.max(DEED_BYTES) as usize, op as u8);
    }

    /// What a command of registers says; nothing for what is none.
    fn decode(command: &[u8]) -> Option<Self> {
        let (&[deed, register, expects], rest) = command.get(8..)?.split_first_chunk()?;
        let (expected, rest) = rest.split_first_chunk()?;
        let new = i64::from_le_bytes(*rest.first_chunk()?);
        let expected = (expects == 1).then_some(i64::from_le_bytes(*expected));
        match deed {
            WRITE => Some(Self::Write { register, new }),
            COMPARE_AND_SET => Some(Self::CompareAndSet {
                register,
                expected,
                new,
            }),
            _ => None,
        }
    }

    /// Reads the answer to it.
    pub(crate) fn seen(self, answer: &[u8]) -> Option<Seen> {
        match self {
            Self::Increment => answer
                .first_chunk()
                .map(|bytes| Seen::Count(u64::from_le_bytes(*bytes))),
            Self::Write { .. } | Self::CompareAndSet { .. } => match answer.first() {
                Some(&done @ 0..=1) => Some(Seen::Written(done == 1)),
                _ => None,
            },
        }
    }
}

/// Reads what a query found.
pub(crate) fn found(answer: &[u8]) -> Option<Seen> {
    match *answer {
        [0] => Some(Seen::Value(None)),
        [1, ref value @ ..] => Some(Seen::Value(Some(i64::from_le_bytes(
            value.try_into().ok()?,
        )))),
        _ => None,
    }
}

/// The operation that a command stands for.
pub(crate) fn op_of(command: &[u8]) -> Option<u64> {
    command
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes))
}

/// What is behind the answer to an operation, where answers differ in length.
fn filler_bytes(op: u64) -> usize {
    match op % 4 {
        0 => 24 + (op % 40) as usize,
        _ => 0,
    }
}

#[derive(Clone, Debug)]
enum State {
    Counter(u64),
    Registers(Vec<Option<i64>>),
}

impl State {
    /// A number of it: two states that differ have others.
    fn value(&self) -> u64 {
        match self {
            Self::Counter(value) => *value,
            Self::Registers(values) => values.iter().fold(0, |sum, value| {
                mix(sum ^ value.map_or(0, |value| mix(value as u64 + 1)))
            }),
        }
    }
}

/// One node's copy of the state, in one of its lives.
#[derive(Debug)]
pub(crate) struct Model {
    state: State,
    /// Set from outside: the next command makes it panic.
    panics: Arc<AtomicBool>,
    long_answers: bool,
    ledger: Ledger,
}

impl Model {
    /// A counter, or so many registers.
    pub(crate) fn new(
        registers: u8,
        long_answers: bool,
        panics: Arc<AtomicBool>,
        ledger: Ledger,
    ) -> Self {
        Self {
            state: match registers {
                0 => State::Counter(0),
                count => State::Registers(vec![None; usize::from(count)]),
            },
            panics,
            long_answers,
            ledger,
        }
    }
}

impl StateMachine for Model {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while let Some((entry, reply)) = batch.next() {
            if self.panics.swap(false, Ordering::Relaxed) {
                // As a panic does, but without a word on the terminal.
                resume_unwind(Box::new(
                    "the simulated state machine panics, as it was told to",
                ));
            }
            let op = op_of(entry.command).ok_or(io::ErrorKind::InvalidData)?;
            let mut wrote = None;
            match &mut self.state {
                State::Counter(value) => {
                    *value += 1;
                    reply.extend_from_slice(&value.to_le_bytes());
                }
                State::Registers(values) => {
                    let (register, value) = match Deed::decode(entry.command) {
                        Some(Deed::Write { register, new }) => (register, Some(new)),
                        Some(Deed::CompareAndSet {
                            register,
                            expected,
                            new,
                        }) => {
                            let finds = values.get(usize::from(register)) == Some(&expected);
                            (register, finds.then_some(new))
                        }
                        _ => return Err(io::ErrorKind::InvalidData.into()),
                    };
                    reply.push(u8::from(value.is_some()));
                    if let Some(value) = value {
                        values[usize::from(register)] = Some(value);
                        wrote = Some((register, value));
                    }
                }
            }
            if self.long_answers {
                reply.resize(reply.len() + filler_bytes(op), op as u8);
            }
            self.ledger.book().done = Some(Done {
                op: Some(op),
                value: self.state.value(),
                wrote,
            });
        }
        Ok(())
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        match (&self.state, query) {
            (State::Counter(value), []) => reply.extend_from_slice(&value.to_le_bytes()),
            (State::Registers(values), &[register]) => match values.get(usize::from(register)) {
                Some(Some(value)) => {
                    reply.push(1);
                    reply.extend_from_slice(&value.to_le_bytes());
                }
                Some(None) => reply.push(0),
                None => {}
            },
            // An answer to what nobody asks is none: whoever gets it finds that it is not true.
            _ => {}
        }
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let state = self.state.clone();
        Ok(Box::new(move |out| match state {
            State::Counter(value) => out.write_all(&value.to_le_bytes()),
            State::Registers(values) => values.iter().try_for_each(|value| {
                out.write_all(&[u8::from(value.is_some())])?;
                out.write_all(&value.unwrap_or(0).to_le_bytes())
            }),
        }))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        match &mut self.state {
            State::Counter(value) => {
                let whole = bytes.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
                *value = u64::from_le_bytes(whole);
            }
            State::Registers(values) => {
                if bytes.len() != 9 * values.len() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(9)) {
                    let number = bytes[1..].try_into().expect("nine bytes, but for one");
                    *value = (bytes[0] == 1).then_some(i64::from_le_bytes(number));
                }
            }
        }
        self.ledger.book().done = Some(Done {
            op: None,
            value: self.state.value(),
            wrote: None,
        });
        Ok(())
    }
}
