//! `MULTI … EXEC` and `WATCH` of one connection.
//!
//! The commands between `MULTI` and `EXEC` wait here, encoded. `EXEC` proposes all of them as one entry of the log, which the
//! machine applies as one: either all of them or, when one could not be queued or a watched key has changed, none.
//!
//! `WATCH` reads the values of its keys; the entry of the transaction carries them, and the machine compares them before
//! it applies anything. A value that was changed and changed back is the same value, so the transaction must not have been
//! made from what stood in between: a read of this connection that shows another value of a watched key than `WATCH`
//! did ([`Watches::observe`]) voids the transaction, and so does a command of this connection that names one.
//!
//! Bounds: the commands, and the watched keys, have room in one entry of the log.

use std::collections::BTreeMap;

use crate::machine::{Answer, Query, query_keys, values};

/// What a watched key costs beside its bytes.
pub const WATCHED_BYTES: usize = 64;

/// Commands that were queued behind a `MULTI`.
#[derive(Debug, Default)]
pub struct Transaction {
    /// As in an entry: `length: u32 │ command`, each.
    commands: Vec<u8>,
    count: usize,
    /// A command was refused: `EXEC` applies nothing.
    pub failed: bool,
}

impl Transaction {
    /// Queues an encoded command. False when that would make it longer than `max_bytes`; then it has failed.
    pub fn push(&mut self, command: &[u8], max_bytes: usize) -> bool {
        if self.commands.len() + 4 + command.len() > max_bytes {
            self.failed = true;
            self.commands = Vec::new();
            return false;
        }
        // Nothing of a transaction that has failed is applied: it is not kept either.
        if !self.failed {
            self.commands
                .extend_from_slice(&(command.len() as u32).to_le_bytes());
            self.commands.extend_from_slice(command);
            self.count += 1;
        }
        true
    }

    /// A command was refused.
    pub fn fail(&mut self) {
        self.failed = true;
        self.commands = Vec::new();
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn commands(&self) -> &[u8] {
        &self.commands
    }

    /// Bytes that it holds.
    pub fn memory(&self) -> usize {
        self.commands.capacity()
    }
}

/// The keys that a connection watches, with the values that `WATCH` has read.
#[derive(Debug, Default)]
pub struct Watches {
    keys: BTreeMap<Box<[u8]>, Option<i64>>,
    bytes: usize,
    /// A `WATCH` has no answer yet.
    pub pending: bool,
    /// A `WATCH` was refused: what its client takes for watched is not.
    pub failed: bool,
    /// A watched key has changed, as far as this connection can have seen.
    pub changed: bool,
}

impl Watches {
    /// Whether anything is watched, or should be. Such a connection has one request at a time under way: what `EXEC` does
    /// depends on the answers before it.
    pub fn any(&self) -> bool {
        self.pending || self.failed || !self.keys.is_empty()
    }

    /// Whether `EXEC` has values to compare.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys and values, in an order that follows from the keys.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], Option<i64>)> {
        self.keys.iter().map(|(key, &value)| (&**key, value))
    }

    /// Whether these fit in too. False: it has failed.
    pub fn has_room(&mut self, keys: &[&[u8]], max_bytes: usize) -> bool {
        let more: usize = keys.iter().map(|key| key.len() + WATCHED_BYTES).sum();
        self.failed |= self.bytes + more > max_bytes;
        self.bytes + more <= max_bytes
    }

    /// The answer to the query of a `WATCH`: true when its keys are watched now.
    pub fn watched(&mut self, query: &[u8], answer: Option<Answer<'_>>) -> bool {
        self.pending = false;
        let (Some((Query::GetMany, keys)), Some(Answer::Values(bytes))) =
            (query_keys(query), answer)
        else {
            self.failed = true;
            return false;
        };
        for (key, value) in keys.zip(values(bytes)) {
            match self.keys.get(key) {
                Some(&before) => self.changed |= before != value,
                None => {
                    self.bytes += key.len() + WATCHED_BYTES;
                    self.keys.insert(key.into(), value);
                }
            }
        }
        true
    }

    /// This connection is told `answer` to `query`: does that fit what `WATCH` has read?
    pub fn observe(&mut self, query: &[u8], answer: Answer<'_>) {
        if self.keys.is_empty() {
            return;
        }
        let Some((query, mut keys)) = query_keys(query) else {
            return;
        };
        let differs = match (query, answer) {
            (Query::Get, Answer::Value(value)) => {
                keys.any(|key| self.keys.get(key).is_some_and(|&watched| watched != value))
            }
            (Query::GetMany, Answer::Values(bytes)) => keys
                .zip(values(bytes))
                .any(|(key, value)| self.keys.get(key).is_some_and(|&watched| watched != value)),
            (Query::Exists, Answer::Integer(count)) => {
                let (mut least, mut most) = (0, 0);
                for key in keys {
                    let watched = self.keys.get(key);
                    least += i64::from(watched.is_some_and(Option::is_some));
                    most += i64::from(watched.is_none_or(Option::is_some));
                }
                !(least..=most).contains(&count)
            }
            _ => false,
        };
        self.changed |= differs;
    }

    /// Bytes that they hold, about.
    pub fn memory(&self) -> usize {
        self.bytes
    }

    /// This connection sends a command that names `keys`.
    pub fn touch(&mut self, keys: &[&[u8]]) {
        if !self.keys.is_empty() {
            self.changed |= keys.iter().any(|&key| self.keys.contains_key(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Command;

    fn query(command: Command<'_, '_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        bytes
    }

    fn value(value: Option<i64>) -> [u8; 9] {
        let mut bytes = [0; 9];
        bytes[0] = u8::from(value.is_some());
        bytes[1..].copy_from_slice(&value.unwrap_or(0).to_le_bytes());
        bytes
    }

    /// `a` is 5, `b` is missing.
    fn watching() -> Watches {
        let mut watches = Watches {
            pending: true,
            ..Watches::default()
        };
        assert!(watches.any());
        let asked = query(Command::GetMany {
            keys: &[b"a", b"b"],
        });
        let read = [value(Some(5)), value(None)].concat();
        assert!(watches.watched(&asked, Some(Answer::Values(&read))));
        assert!(watches.any() && !watches.pending && !watches.failed && !watches.changed);
        let all: Vec<_> = watches.iter().collect();
        assert_eq!(all, [(&b"a"[..], Some(5)), (b"b", None)]);
        watches
    }

    #[test]
    fn a_read_that_shows_another_value_of_a_watched_key_voids_the_transaction() {
        let (a, c): (&[u8], &[u8]) = (b"a", b"c");
        let many: &[&[u8]] = &[b"a", b"b", b"c"];
        let get = |key| query(Command::Get { key });
        let [five, none, nine] = [value(Some(5)), value(None), value(Some(9))];
        let (same, later) = ([five, none, nine].concat(), [five, five, nine].concat());
        for (asked, answer, changed) in [
            (get(a), Answer::Value(Some(5)), false),
            (get(a), Answer::Value(Some(6)), true),
            (get(a), Answer::Value(None), true),
            (get(c), Answer::Value(Some(6)), false),
            (
                query(Command::GetMany { keys: many }),
                Answer::Values(&same),
                false,
            ),
            (
                query(Command::GetMany { keys: many }),
                Answer::Values(&later),
                true,
            ),
            (
                query(Command::Exists { keys: many }),
                Answer::Integer(0),
                true,
            ),
            (
                query(Command::Exists { keys: many }),
                Answer::Integer(1),
                false,
            ),
            (
                query(Command::Exists { keys: many }),
                Answer::Integer(2),
                false,
            ),
            (
                query(Command::Exists { keys: many }),
                Answer::Integer(3),
                true,
            ),
            (query(Command::Size), Answer::Integer(3), false),
        ] {
            let mut watches = watching();
            watches.observe(&asked, answer);
            assert_eq!(watches.changed, changed, "{asked:?}: {answer:?}");
        }
    }

    #[test]
    fn what_is_not_watched_for_certain_voids_the_transaction() {
        let mut watches = watching();
        watches.touch(&[b"c"]);
        assert!(!watches.changed);
        watches.touch(&[b"c", b"b"]);
        assert!(watches.changed, "a command of its own");

        let mut watches = watching();
        let again = query(Command::GetMany { keys: &[b"a"] });
        assert!(watches.watched(&again, Some(Answer::Values(&value(Some(6))))));
        assert!(watches.changed, "watched again, it had another value");

        let mut watches = watching();
        assert!(!watches.watched(&again, None));
        assert!(watches.failed, "a WATCH without an answer");

        let mut watches = watching();
        assert!(watches.has_room(&[b"c"], 1000));
        assert!(!watches.has_room(&[&[b'c'; 1000]], 1000));
        assert!(watches.failed, "too many keys");
    }

    #[test]
    fn a_transaction_is_bounded_and_keeps_nothing_once_it_has_failed() {
        let mut transaction = Transaction::default();
        assert!(transaction.push(&[1; 10], 30));
        assert!(!transaction.is_empty());
        assert_eq!(transaction.commands().len(), 14);
        assert!(!transaction.push(&[1; 13], 30), "two bytes too many");
        assert!(transaction.failed);
        assert!(transaction.push(&[1; 10], 30), "it fits, and is not kept");
        assert!(transaction.commands().is_empty());
    }
}
