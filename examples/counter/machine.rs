//! The replicated state: named 64-bit counters; and commands, queries and replies as bytes.
//!
//! A command is checked in full before it is proposed ([`Command`] can only be made from good parts), and `apply` bears
//! any bytes: what it cannot read it answers with [`Answer::Malformed`] and changes nothing.

use std::io;

use ringraft::{Batch, SnapshotWriter, StateMachine};

use crate::store::Store;

/// The longest key, in bytes: its length is two bytes in a command.
pub const MAX_KEY_BYTES: usize = u16::MAX as usize;

const SET: u8 = 1;
const ADD: u8 = 2;
const GET_SET: u8 = 3;
const DELETE: u8 = 4;
const COMPARE_AND_SET: u8 = 5;
const GET: u8 = 6;
const GET_MANY: u8 = 7;
const EXISTS: u8 = 8;
const SIZE: u8 = 9;
/// `TRANSACTION │ watched: u32 │ each: length: u16 │ key │ is there: u8 │ value: i64 ‖ each: length: u32 │ command`
const TRANSACTION: u8 = 10;

/// What is asked of the counters. The last four change nothing, so they may be queries as well as commands.
#[derive(Clone, Copy, Debug)]
pub enum Command<'a, 'b> {
    Set {
        key: &'a [u8],
        value: i64,
    },
    Add {
        key: &'a [u8],
        delta: i64,
    },
    GetSet {
        key: &'a [u8],
        value: i64,
    },
    Delete {
        keys: &'b [&'a [u8]],
    },
    /// `expected` is `None` for a key that is not there.
    CompareAndSet {
        key: &'a [u8],
        expected: Option<i64>,
        new: i64,
    },
    Get {
        key: &'a [u8],
    },
    GetMany {
        keys: &'b [&'a [u8]],
    },
    Exists {
        keys: &'b [&'a [u8]],
    },
    Size,
}

impl Command<'_, '_> {
    /// Appends the command; its keys are not longer than [`MAX_KEY_BYTES`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Set { key, value } => encode_one(out, SET, value, key),
            Self::Add { key, delta } => encode_one(out, ADD, delta, key),
            Self::GetSet { key, value } => encode_one(out, GET_SET, value, key),
            Self::CompareAndSet { key, expected, new } => {
                encode_one(out, COMPARE_AND_SET, new, key);
                out.push(u8::from(expected.is_some()));
                out.extend_from_slice(&expected.unwrap_or(0).to_le_bytes());
            }
            Self::Get { key } => {
                out.push(GET);
                encode_key(out, key);
            }
            Self::Delete { keys } => encode_keys(out, DELETE, keys),
            Self::GetMany { keys } => encode_keys(out, GET_MANY, keys),
            Self::Exists { keys } => encode_keys(out, EXISTS, keys),
            Self::Size => out.push(SIZE),
        }
    }
}

/// Appends a transaction: `commands` (each with its length in four bytes before it) are applied if all watched keys have
/// these values.
pub fn encode_transaction<'a>(
    watched: impl ExactSizeIterator<Item = (&'a [u8], Option<i64>)>,
    commands: &[u8],
    out: &mut Vec<u8>,
) {
    out.push(TRANSACTION);
    out.extend_from_slice(&(watched.len() as u32).to_le_bytes());
    for (key, value) in watched {
        encode_key(out, key);
        out.push(u8::from(value.is_some()));
        out.extend_from_slice(&value.unwrap_or(0).to_le_bytes());
    }
    out.extend_from_slice(commands);
}

/// The queries that name keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query {
    Get,
    GetMany,
    Exists,
}

/// The keys of an encoded query; `None` for what is none, or names no keys.
pub fn query_keys(query: &[u8]) -> Option<(Query, impl Iterator<Item = &[u8]>)> {
    let (&op, mut rest) = query.split_first()?;
    let query = match op {
        GET => Query::Get,
        GET_MANY => Query::GetMany,
        EXISTS => Query::Exists,
        _ => return None,
    };
    let keys = std::iter::from_fn(move || {
        let (key, more) = key(rest)?;
        rest = more;
        Some(key)
    });
    Some((query, keys))
}

fn encode_one(out: &mut Vec<u8>, op: u8, value: i64, key: &[u8]) {
    out.push(op);
    out.extend_from_slice(&value.to_le_bytes());
    encode_key(out, key);
}

fn encode_keys(out: &mut Vec<u8>, op: u8, keys: &[&[u8]]) {
    out.push(op);
    for key in keys {
        encode_key(out, key);
    }
}

fn encode_key(out: &mut Vec<u8>, key: &[u8]) {
    assert!(
        key.len() <= MAX_KEY_BYTES,
        "a key of {} bytes was let through",
        key.len()
    );
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(key);
}

/// What the counters say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    Done,
    Integer(i64),
    /// A value, or none.
    Value(Option<i64>),
    /// Values, each nine bytes; see [`values`].
    Values(&'a [u8]),
    Overflow,
    Malformed,
    /// The answers to the commands of a transaction; see [`replies`].
    Replies(&'a [u8]),
    /// A watched key had another value: nothing was applied.
    Aborted,
}

const DONE: u8 = 1;
const INTEGER: u8 = 2;
const VALUE: u8 = 3;
const NO_VALUE: u8 = 4;
const VALUES: u8 = 5;
const OVERFLOW: u8 = 6;
const MALFORMED: u8 = 7;
const REPLIES: u8 = 8;
const ABORTED: u8 = 9;

impl<'a> Answer<'a> {
    /// Reads what `apply` or `query` wrote.
    pub fn decode(reply: &'a [u8]) -> Self {
        let integer = |rest: &[u8]| rest.try_into().map(i64::from_le_bytes);
        match reply.split_first() {
            Some((&DONE, [])) => Self::Done,
            Some((&INTEGER, rest)) => integer(rest).map_or(Self::Malformed, Self::Integer),
            Some((&VALUE, rest)) => {
                integer(rest).map_or(Self::Malformed, |value| Self::Value(Some(value)))
            }
            Some((&NO_VALUE, [])) => Self::Value(None),
            Some((&VALUES, rest)) if rest.len() % 9 == 0 => Self::Values(rest),
            Some((&OVERFLOW, [])) => Self::Overflow,
            Some((&ABORTED, [])) => Self::Aborted,
            Some((&REPLIES, rest)) if parts(rest).is_some() => Self::Replies(rest),
            _ => Self::Malformed,
        }
    }
}

/// The values of [`Answer::Values`].
pub fn values(bytes: &[u8]) -> impl ExactSizeIterator<Item = Option<i64>> {
    bytes.chunks_exact(9).map(|chunk| {
        let value = i64::from_le_bytes(chunk[1..].try_into().expect("chunks of nine"));
        (chunk[0] != 0).then_some(value)
    })
}

/// The answers of [`Answer::Replies`], in the order of the commands.
pub fn replies(bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    parts(bytes).into_iter().flatten().map(Answer::decode)
}

/// What is written as `length: u32 │ bytes`, one behind the other; `None` when it is not.
fn parts(bytes: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let mut unread = bytes;
    while !unread.is_empty() {
        (_, unread) = part(unread)?;
    }
    let mut unread = bytes;
    Some(std::iter::from_fn(move || {
        let (found, rest) = part(unread)?;
        unread = rest;
        Some(found)
    }))
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

/// The counters of one node.
#[derive(Debug, Default)]
pub struct Counters {
    values: Store,
}

impl StateMachine for Counters {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while let Some((entry, reply)) = batch.next() {
            if self.run(entry.command, reply).is_none() {
                reply.clear();
                reply.push(MALFORMED);
            }
        }
        Ok(())
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        if self.look(query, reply).is_none() {
            reply.clear();
            reply.push(MALFORMED);
        }
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let captured = self.values.capture();
        Ok(Box::new(move |to| captured.write(to)))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        self.values = Store::read(from)?;
        Ok(())
    }
}

impl Counters {
    /// `None`: these bytes are no command, and nothing was changed.
    fn run(&mut self, command: &[u8], reply: &mut Vec<u8>) -> Option<()> {
        let (&op, rest) = command.split_first()?;
        match op {
            SET => {
                let (value, key) = value_and_key(rest)?;
                self.values.insert(key, value);
                reply.push(DONE);
            }
            ADD => {
                let (delta, key) = value_and_key(rest)?;
                match self.values.get_mut(key) {
                    Some(value) => match value.checked_add(delta) {
                        Some(sum) => {
                            *value = sum;
                            say(reply, INTEGER, sum);
                        }
                        None => reply.push(OVERFLOW),
                    },
                    None => {
                        self.values.insert(key, delta);
                        say(reply, INTEGER, delta);
                    }
                }
            }
            GET_SET => {
                let (value, key) = value_and_key(rest)?;
                say_value(reply, self.values.insert(key, value));
            }
            COMPARE_AND_SET => {
                let (new, rest) = integer(rest)?;
                let (key, rest) = key(rest)?;
                let (&some, rest) = rest.split_first()?;
                let (expected, []) = integer(rest)? else {
                    return None;
                };
                let is_as_expected = self.values.get(key) == (some != 0).then_some(expected);
                if is_as_expected {
                    self.values.insert(key, new);
                }
                say(reply, INTEGER, i64::from(is_as_expected));
            }
            DELETE => {
                let mut count = 0;
                // All keys are read before one is deleted: a malformed command does nothing.
                check_keys(rest)?;
                let mut unread = rest;
                while let Some((name, more)) = key(unread) {
                    count += i64::from(self.values.remove(name));
                    unread = more;
                }
                say(reply, INTEGER, count);
            }
            TRANSACTION => return self.run_all(rest, reply),
            _ => return self.look(command, reply),
        }
        Some(())
    }

    /// A transaction: everything is read before anything is applied. An overflow is the answer to its own command; the others
    /// are applied all the same, as in Redis.
    fn run_all(&mut self, transaction: &[u8], reply: &mut Vec<u8>) -> Option<()> {
        let (count, mut rest) = transaction.split_first_chunk()?;
        let mut as_watched = true;
        for _ in 0..u32::from_le_bytes(*count) {
            let (name, more) = key(rest)?;
            let (&some, more) = more.split_first()?;
            let (value, more) = integer(more)?;
            as_watched &= self.values.get(name) == (some != 0).then_some(value);
            rest = more;
        }
        if !parts(rest)?.all(|command| check(command).is_some()) {
            return None;
        }
        if !as_watched {
            reply.push(ABORTED);
            return Some(());
        }
        reply.push(REPLIES);
        for command in parts(rest)? {
            let at = reply.len();
            reply.extend_from_slice(&[0; 4]);
            self.run(command, reply)?; // It was checked.
            let len = (reply.len() - at - 4) as u32;
            reply[at..at + 4].copy_from_slice(&len.to_le_bytes());
        }
        Some(())
    }

    fn look(&self, query: &[u8], reply: &mut Vec<u8>) -> Option<()> {
        let (&op, mut rest) = query.split_first()?;
        match op {
            GET => {
                let (name, []) = key(rest)? else { return None };
                say_value(reply, self.values.get(name));
            }
            GET_MANY => {
                reply.push(VALUES);
                while !rest.is_empty() {
                    let (name, more) = key(rest)?;
                    let value = self.values.get(name);
                    reply.push(u8::from(value.is_some()));
                    reply.extend_from_slice(&value.unwrap_or(0).to_le_bytes());
                    rest = more;
                }
            }
            EXISTS => {
                let mut count = 0;
                while !rest.is_empty() {
                    let (name, more) = key(rest)?;
                    count += i64::from(self.values.get(name).is_some());
                    rest = more;
                }
                say(reply, INTEGER, count);
            }
            SIZE if rest.is_empty() => say(reply, INTEGER, self.values.len() as i64),
            _ => return None,
        }
        Some(())
    }
}

/// Whether these bytes are a command that may be in a transaction, which another transaction may not.
fn check(command: &[u8]) -> Option<()> {
    let (&op, rest) = command.split_first()?;
    match op {
        SET | ADD | GET_SET => value_and_key(rest).map(|_| ()),
        COMPARE_AND_SET => {
            let (_, rest) = integer(rest)?;
            let (_, rest) = key(rest)?;
            let (_, rest) = rest.split_first()?;
            let (_, []) = integer(rest)? else { return None };
            Some(())
        }
        DELETE | GET_MANY | EXISTS => check_keys(rest),
        GET => {
            let (_, []) = key(rest)? else { return None };
            Some(())
        }
        SIZE => rest.is_empty().then_some(()),
        _ => None,
    }
}

fn check_keys(mut unread: &[u8]) -> Option<()> {
    while !unread.is_empty() {
        (_, unread) = key(unread)?;
    }
    Some(())
}

fn say(reply: &mut Vec<u8>, tag: u8, value: i64) {
    reply.push(tag);
    reply.extend_from_slice(&value.to_le_bytes());
}

fn say_value(reply: &mut Vec<u8>, value: Option<i64>) {
    match value {
        Some(value) => say(reply, VALUE, value),
        None => reply.push(NO_VALUE),
    }
}

fn integer(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (value, rest) = bytes.split_first_chunk()?;
    Some((i64::from_le_bytes(*value), rest))
}

fn key(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u16::from_le_bytes(*len) as usize)
}

fn value_and_key(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (value, rest) = integer(bytes)?;
    let (key, []) = key(rest)? else { return None };
    Some((value, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<'r>(
        counters: &mut Counters,
        command: Command<'_, '_>,
        reply: &'r mut Vec<u8>,
    ) -> Answer<'r> {
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        reply.clear();
        counters
            .run(&bytes, reply)
            .expect("a command that was encoded can be run");
        Answer::decode(reply)
    }

    #[test]
    fn counters_count() {
        let (mut counters, reply) = (Counters::default(), &mut Vec::new());
        assert_eq!(
            run(
                &mut counters,
                Command::Add {
                    key: b"a",
                    delta: 5
                },
                reply
            ),
            Answer::Integer(5)
        );
        assert_eq!(
            run(
                &mut counters,
                Command::Add {
                    key: b"a",
                    delta: -7
                },
                reply
            ),
            Answer::Integer(-2)
        );
        assert_eq!(
            run(&mut counters, Command::Get { key: b"a" }, reply),
            Answer::Value(Some(-2))
        );
        assert_eq!(
            run(
                &mut counters,
                Command::GetSet {
                    key: b"a",
                    value: 9
                },
                reply
            ),
            Answer::Value(Some(-2))
        );
        let keys: &[&[u8]] = &[b"a", b"b"];
        let Answer::Values(bytes) = run(&mut counters, Command::GetMany { keys }, reply) else {
            panic!()
        };
        assert_eq!(values(bytes).collect::<Vec<_>>(), [Some(9), None]);
        assert_eq!(
            run(&mut counters, Command::Exists { keys }, reply),
            Answer::Integer(1)
        );
        assert_eq!(
            run(&mut counters, Command::Delete { keys }, reply),
            Answer::Integer(1)
        );
        assert_eq!(run(&mut counters, Command::Size, reply), Answer::Integer(0));
    }

    #[test]
    fn a_snapshot_restores_what_was_captured() {
        let (mut counters, reply) = (Counters::default(), &mut Vec::new());
        let add = |key| Command::Add { key, delta: 1 };
        for key in [&b"a"[..], b"b", b"a"] {
            run(&mut counters, add(key), reply);
        }
        let write = counters.snapshot().expect("it captures");
        run(&mut counters, add(b"a"), reply);
        let mut bytes = Vec::new();
        write(&mut bytes).expect("memory takes it");
        let mut restored = Counters::default();
        run(&mut restored, add(b"gone"), reply);
        restored.restore(&mut &bytes[..]).expect("it restores");
        let keys: &[&[u8]] = &[b"a", b"b", b"gone"];
        let Answer::Values(there) = run(&mut restored, Command::GetMany { keys }, reply) else {
            panic!()
        };
        assert_eq!(values(there).collect::<Vec<_>>(), [Some(2), Some(1), None]);
        restored.restore(&mut &bytes[1..]).expect_err("not one");
        assert_eq!(
            run(&mut restored, Command::Size, reply),
            Answer::Integer(2),
            "what cannot be read changes nothing"
        );
    }

    #[test]
    fn an_overflow_changes_nothing() {
        let (mut counters, reply) = (Counters::default(), &mut Vec::new());
        run(
            &mut counters,
            Command::Set {
                key: b"a",
                value: i64::MAX,
            },
            reply,
        );
        assert_eq!(
            run(
                &mut counters,
                Command::Add {
                    key: b"a",
                    delta: 1
                },
                reply
            ),
            Answer::Overflow
        );
        assert_eq!(
            run(&mut counters, Command::Get { key: b"a" }, reply),
            Answer::Value(Some(i64::MAX))
        );
    }

    #[test]
    fn compare_and_set_takes_a_missing_key_for_none() {
        let (mut counters, reply) = (Counters::default(), &mut Vec::new());
        let cas = |expected, new| Command::CompareAndSet {
            key: b"a",
            expected,
            new,
        };
        assert_eq!(
            run(&mut counters, cas(Some(0), 1), reply),
            Answer::Integer(0)
        );
        assert_eq!(run(&mut counters, cas(None, 1), reply), Answer::Integer(1));
        assert_eq!(
            run(&mut counters, cas(Some(1), 2), reply),
            Answer::Integer(1)
        );
        assert_eq!(run(&mut counters, cas(None, 3), reply), Answer::Integer(0));
    }

    #[test]
    fn any_cut_of_a_command_is_refused_without_a_change() {
        let keys: &[&[u8]] = &[b"key", b"other"];
        let commands = [
            Command::Set {
                key: b"key",
                value: 1,
            },
            Command::CompareAndSet {
                key: b"key",
                expected: None,
                new: 1,
            },
            Command::Add {
                key: b"key",
                delta: 1,
            },
        ];
        let mut bytes = Vec::new();
        for command in commands {
            bytes.clear();
            command.encode(&mut bytes);
            for cut in 0..bytes.len() {
                let mut counters = Counters::default();
                assert_eq!(
                    counters.run(&bytes[..cut], &mut Vec::new()),
                    None,
                    "{command:?} cut at {cut}"
                );
                assert_eq!(counters.values.len(), 0);
            }
        }
        bytes.clear();
        Command::Delete { keys }.encode(&mut bytes);
        let mut counters = Counters::default();
        counters.values.insert(b"key", 1);
        assert_eq!(
            counters.run(&bytes[..bytes.len() - 1], &mut Vec::new()),
            None
        );
        assert_eq!(
            counters.values.len(),
            1,
            "nothing is deleted by half a command"
        );
    }

    fn transaction(watched: &[(&[u8], Option<i64>)], commands: &[Command<'_, '_>]) -> Vec<u8> {
        let (mut queued, mut bytes) = (Vec::new(), Vec::new());
        for command in commands {
            bytes.clear();
            command.encode(&mut bytes);
            queued.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            queued.extend_from_slice(&bytes);
        }
        bytes.clear();
        encode_transaction(watched.iter().copied(), &queued, &mut bytes);
        bytes
    }

    #[test]
    fn a_transaction_is_applied_as_one_and_answers_each_of_its_commands() {
        let mut counters = Counters::default();
        counters.values.insert(b"max", i64::MAX);
        let keys: &[&[u8]] = &[b"a", b"none"];
        let add = |key| Command::Add { key, delta: 1 };
        let bytes = transaction(
            &[(b"max", Some(i64::MAX)), (b"a", None)],
            &[
                add(b"a"),
                add(b"max"),
                add(b"a"),
                Command::GetMany { keys },
                Command::Exists { keys },
                Command::Get { key: b"a" },
                Command::CompareAndSet {
                    key: b"a",
                    expected: Some(2),
                    new: 7,
                },
                Command::GetSet {
                    key: b"a",
                    value: 8,
                },
                Command::Size,
                Command::Delete { keys },
                Command::Set {
                    key: b"b",
                    value: 1,
                },
            ],
        );
        let mut reply = Vec::new();
        counters.run(&bytes, &mut reply).expect("it is a command");
        let Answer::Replies(bytes) = Answer::decode(&reply) else {
            panic!("{reply:?}")
        };
        let answers: Vec<Answer<'_>> = replies(bytes).collect();
        let Answer::Values(there) = answers[3] else {
            panic!("{answers:?}")
        };
        assert_eq!(values(there).collect::<Vec<_>>(), [Some(2), None]);
        let others = [&answers[..3], &answers[4..]].concat();
        let expected = [
            Answer::Integer(1),
            Answer::Overflow,
            Answer::Integer(2),
            Answer::Integer(1),
            Answer::Value(Some(2)),
            Answer::Integer(1),
            Answer::Value(Some(7)),
            Answer::Integer(2),
            Answer::Integer(1),
            Answer::Done,
        ];
        assert_eq!(others, expected);
        assert_eq!(counters.values.get(b"a"), None);
        assert_eq!(counters.values.get(b"b"), Some(1));
    }

    #[test]
    fn a_transaction_whose_watched_keys_have_other_values_changes_nothing() {
        for (watched, applied) in [(Some(5), true), (Some(6), false), (None, false)] {
            let mut counters = Counters::default();
            counters.values.insert(b"a", 5);
            let set = Command::Set {
                key: b"a",
                value: 9,
            };
            let bytes = transaction(&[(b"b", None), (b"a", watched)], &[set]);
            let mut reply = Vec::new();
            counters.run(&bytes, &mut reply).expect("it is a command");
            assert_eq!(Answer::decode(&reply) != Answer::Aborted, applied);
            assert_eq!(counters.values.get(b"a"), Some(if applied { 9 } else { 5 }));
        }
    }

    /// Of a transaction that is damaged anywhere nothing is applied.
    #[test]
    fn any_cut_of_a_transaction_is_refused_without_a_change() {
        let keys: &[&[u8]] = &[b"key", b"other"];
        let set = Command::Set {
            key: b"key",
            value: 2,
        };
        let last = Command::Delete { keys };
        let whole = transaction(&[(b"key", Some(1))], &[set, last]);
        let ends = [19, 19 + 4 + 1 + 8 + 2 + 3]; // Without commands, and with the first: those are transactions too.
        for cut in (0..whole.len()).filter(|cut| !ends.contains(cut)) {
            let mut counters = Counters::default();
            counters.values.insert(b"key", 1);
            assert_eq!(counters.run(&whole[..cut], &mut Vec::new()), None, "{cut}");
            assert_eq!(counters.values.get(b"key"), Some(1), "cut at {cut}");
        }
        let mut nested = Vec::new();
        let queued = [&(whole.len() as u32).to_le_bytes()[..], &whole].concat();
        encode_transaction([].into_iter(), &queued, &mut nested);
        let mut counters = Counters::default();
        assert_eq!(
            counters.run(&nested, &mut Vec::new()),
            None,
            "no transaction in another"
        );
        assert_eq!(
            counters.look(&whole, &mut Vec::new()),
            None,
            "it is no query"
        );
    }
}
