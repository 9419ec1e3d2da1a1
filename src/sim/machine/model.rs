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

use crate::sim::machine::ledger::{Done, Ledger};
use crate::sim::rng::mix;
use crate::state_machine::{Batch, SnapshotWriter, StateMachine};

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
    /// What is to be answered, and which register was changed.
    fn apply(&mut self, command: &[u8]) -> io::Result<(Seen, Option<(u8, i64)>)> {
        let values = match self {
            Self::Counter(value) => {
                *value += 1;
                return Ok((Seen::Count(*value), None));
            }
            Self::Registers(values) => values,
        };
        let (register, expected, new) = match Deed::decode(command) {
            Some(Deed::Write { register, new }) => (register, None, new),
            Some(Deed::CompareAndSet {
                register,
                expected,
                new,
            }) => (register, Some(expected), new),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let value = values
            .get_mut(usize::from(register))
            .ok_or(io::ErrorKind::InvalidData)?;
        if expected.is_some_and(|expected| expected != *value) {
            return Ok((Seen::Written(false), None));
        }
        *value = Some(new);
        Ok((Seen::Written(true), Some((register, new))))
    }

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
    /// Answers differ in length, and are written only where they are wanted, as any machine may do.
    in_sessions: bool,
    ledger: Ledger,
}

impl Model {
    /// A counter, or so many registers.
    pub(crate) fn new(
        registers: u8,
        in_sessions: bool,
        panics: Arc<AtomicBool>,
        ledger: Ledger,
    ) -> Self {
        Self {
            state: match registers {
                0 => State::Counter(0),
                count => State::Registers(vec![None; usize::from(count)]),
            },
            panics,
            in_sessions,
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
            let (seen, wrote) = self.state.apply(entry.command)?;
            if entry.local || !self.in_sessions {
                match seen {
                    Seen::Count(value) => reply.extend_from_slice(&value.to_le_bytes()),
                    Seen::Written(done) => reply.push(u8::from(done)),
                    Seen::Value(_) => unreachable!("no command reads"),
                }
            }
            if entry.local && self.in_sessions {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compare_and_set_writes_where_it_finds_what_it_expects() {
        let set = |register, expected, new| Deed::CompareAndSet {
            register,
            expected,
            new,
        };
        let write = |register, new| Deed::Write { register, new };
        let mut state = State::Registers(vec![None; 2]);
        for (deed, written) in [
            (set(0, Some(3), 1), false),
            (set(0, None, 1), true),
            (set(1, None, 2), true),
            (write(0, 3), true),
            (set(0, Some(1), 4), false),
            (set(0, Some(3), 5), true),
        ] {
            let mut command = Vec::new();
            deed.encode(9, 40, &mut command);
            assert_eq!((command.len(), op_of(&command)), (40, Some(9)));
            let (seen, wrote) = state.apply(&command).expect("it is a command");
            assert_eq!(seen, Seen::Written(written), "{deed:?}");
            assert_eq!(wrote.is_some(), written, "{deed:?}");
        }
        let State::Registers(values) = &state else {
            panic!("{state:?}")
        };
        assert_eq!(values[..], [Some(5), Some(2)]);
        assert!(state.apply(&[0; 26]).is_err(), "too short");
        let mut command = Vec::new();
        write(2, 1).encode(9, 0, &mut command);
        assert!(state.apply(&command).is_err(), "there is no third one");
    }

    #[test]
    fn states_that_differ_have_other_numbers() {
        let of = |values: &[Option<i64>]| State::Registers(values.to_vec()).value();
        let all = [
            of(&[None, None]),
            of(&[Some(0), None]),
            of(&[None, Some(0)]),
            of(&[Some(1), Some(0)]),
        ];
        for (at, value) in all.iter().enumerate() {
            assert!(!all[..at].contains(value), "{all:?}");
        }
    }

    #[test]
    fn what_is_no_answer_is_none() {
        assert_eq!(found(&[0]), Some(Seen::Value(None)));
        let mut bytes = vec![1];
        bytes.extend_from_slice(&7_i64.to_le_bytes());
        assert_eq!(found(&bytes), Some(Seen::Value(Some(7))));
        for wrong in [&[][..], &[1], &[2], &bytes[..8]] {
            assert_eq!(found(wrong), None);
        }
        let write = Deed::Write {
            register: 0,
            new: 1,
        };
        assert_eq!(write.seen(&[1, 9, 9]), Some(Seen::Written(true)));
        assert_eq!((write.seen(&[2]), Deed::Increment.seen(&[1])), (None, None));
    }
}
