//! All connections by number. A number that is used again differs in its generation, so that an
//! event or a key of a closed connection never finds a later one.

use mio::Token;

use crate::conn::Conn;

pub(crate) const LISTENER: Token = Token(0);
pub(crate) const WAKER: Token = Token(1);
pub(crate) const FOREIGN: Token = Token(2);
/// Tokens below belong to what is no connection.
const FIRST: usize = 3;
const INDEX_BITS: u32 = 16;
// The generation has the other bits of a token: on 64-bit systems 48, which one index goes through in 9 years of 1,000,000
// connections a second. A token lives for one poll; a key as long as a frame of its connection is on its way.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) index: usize,
    generation: usize,
}

impl Key {
    pub(crate) fn token(self) -> Token {
        Token(self.generation << INDEX_BITS | (self.index + FIRST))
    }

    /// `None` for a token that is none of a connection.
    pub(crate) fn of(token: Token) -> Option<Self> {
        let low = token.0 & ((1 << INDEX_BITS) - 1);
        (low >= FIRST).then(|| Self {
            index: low - FIRST,
            generation: token.0 >> INDEX_BITS,
        })
    }
}

#[derive(Debug, Default)]
struct Slot {
    generation: usize,
    conn: Option<Box<Conn>>,
}

#[derive(Debug, Default)]
pub(crate) struct Conns {
    slots: Vec<Slot>,
    /// Connections there ever were.
    count: u64,
}

impl Conns {
    /// One past the largest index in use.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The key that the next connection gets. `None`: there are too many.
    pub(crate) fn vacant(&mut self) -> Option<Key> {
        let index = self
            .slots
            .iter()
            .position(|slot| slot.conn.is_none())
            .unwrap_or(self.slots.len());
        if index + FIRST >= 1 << INDEX_BITS {
            return None;
        }
        if index == self.slots.len() {
            self.slots.push(Slot::default());
        }
        Some(Key {
            index,
            generation: self.slots[index].generation,
        })
    }

    pub(crate) fn insert(&mut self, key: Key, mut conn: Conn) {
        self.count += 1;
        conn.serial = self.count;
        let slot = &mut self.slots[key.index];
        assert!(
            slot.conn.is_none() && slot.generation == key.generation,
            "{key:?} is not vacant"
        );
        slot.conn = Some(Box::new(conn));
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Conn> {
        let slot = self
            .slots
            .get_mut(key.index)
            .filter(|slot| slot.generation == key.generation)?;
        slot.conn.as_deref_mut()
    }

    /// The connection at an index, with its key.
    pub(crate) fn at(&self, index: usize) -> Option<(Key, &Conn)> {
        let slot = self.slots.get(index)?;
        let key = Key {
            index,
            generation: slot.generation,
        };
        slot.conn.as_deref().map(|conn| (key, conn))
    }

    /// Lends the connection at an index, so that it and the rest can be changed together. Put it
    /// back or forget it.
    pub(crate) fn lend(&mut self, index: usize) -> Option<(Key, Box<Conn>)> {
        let slot = self.slots.get_mut(index)?;
        let key = Key {
            index,
            generation: slot.generation,
        };
        slot.conn.take().map(|conn| (key, conn))
    }

    pub(crate) fn put_back(&mut self, key: Key, conn: Box<Conn>) {
        let slot = &mut self.slots[key.index];
        assert!(
            slot.conn.is_none() && slot.generation == key.generation,
            "{key:?} was not lent"
        );
        slot.conn = Some(conn);
    }

    /// Ends the life of a key. Returns the connection unless it was lent.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Box<Conn>> {
        let slot = self
            .slots
            .get_mut(key.index)
            .filter(|slot| slot.generation == key.generation)?;
        slot.generation = slot.generation.wrapping_add(1) & (usize::MAX >> INDEX_BITS);
        slot.conn.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::State;

    #[test]
    fn an_old_key_does_not_find_the_next_connection_with_its_number() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let conn = || {
            let stream = mio::net::TcpStream::connect(addr).expect("it listens");
            Conn::new(stream, addr, State::Stranger, std::time::Instant::now())
        };
        let mut conns = Conns::default();
        let first = conns.vacant().expect("room");
        conns.insert(first, conn());
        assert!(conns.remove(first).is_some());
        let second = conns.vacant().expect("room");
        conns.insert(second, conn());
        assert_eq!((first.index, conns.len()), (second.index, 1));
        assert!(conns.get_mut(first).is_none() && conns.remove(first).is_none());
        assert_ne!(first.token(), second.token());
        assert_eq!(conns.get_mut(second).expect("still there").serial, 2);
    }

    #[test]
    fn keys_and_tokens_name_each_other() {
        for (index, generation) in [(0, 0), (1, 5), (65_532, usize::MAX >> INDEX_BITS)] {
            let key = Key { index, generation };
            assert_eq!(Key::of(key.token()), Some(key));
        }
        for token in [LISTENER, WAKER, FOREIGN] {
            assert_eq!(Key::of(token), None);
        }
    }
}
