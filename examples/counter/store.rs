//! The map of the counters, of which a snapshot can be captured in a fraction of a millisecond, whatever its size.
//!
//! It lies in a fixed number of shards. A capture hands each shard to an `Arc` that the map and the snapshot share; the
//! first write to a shard after that copies it, a few hundred keys of a million (the keys themselves are shared),
//! unless the snapshot has let go of it by then. Between snapshots a write finds its shard as its own: no counter of
//! references is looked at.
//!
//! ```text
//! "COUNTERS" │ how many: u64 │ for each, in the order of the keys:  length: u16 │ key │ value: i64
//! ```

use std::hash::BuildHasher;
use std::io::{self, Read, Write};
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::machine::MAX_KEY_BYTES;

const MAGIC: &[u8; 8] = b"COUNTERS";
/// With a million keys, 250 to a shard: what a write copies at the most.
const SHARDS: usize = 4096;
const WRITE_BYTES: usize = 64 << 10;

type Table = HashTable<(Arc<[u8]>, i64)>;

#[derive(Debug)]
enum Shard {
    Own(Table),
    /// A snapshot has it too, or had it.
    Shared(Arc<Table>),
}

impl Shard {
    fn table(&self) -> &Table {
        match self {
            Self::Own(table) => table,
            Self::Shared(table) => table,
        }
    }

    fn table_mut(&mut self) -> &mut Table {
        if let Self::Shared(table) = self {
            let table = std::mem::take(table);
            *self = Self::Own(Arc::try_unwrap(table).unwrap_or_else(|shared| (*shared).clone()));
        }
        match self {
            Self::Own(table) => table,
            Self::Shared(_) => unreachable!("it was just made our own"),
        }
    }
}

/// Counters by name.
#[derive(Debug)]
pub struct Store {
    shards: Box<[Shard]>,
    len: usize,
    hasher: RandomState,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::Own(Table::new())).collect(),
            len: 0,
            hasher: RandomState::default(),
        }
    }
}

impl Store {
    pub fn len(&self) -> usize {
        self.len
    }

    /// The hash of a key, and its shard: from other bits than those that a table looks at first.
    fn place(&self, key: &[u8]) -> (u64, usize) {
        let hash = self.hasher.hash_one(key);
        (hash, (hash >> 32) as usize % SHARDS)
    }

    pub fn get(&self, key: &[u8]) -> Option<i64> {
        let (hash, shard) = self.place(key);
        let found = self.shards[shard].table().find(hash, |(k, _)| **k == *key);
        found.map(|&(_, value)| value)
    }

    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut i64> {
        let (hash, shard) = self.place(key);
        let table = self.shards[shard].table_mut();
        table
            .find_mut(hash, |(k, _)| **k == *key)
            .map(|(_, value)| value)
    }

    /// Returns the value there was.
    pub fn insert(&mut self, key: &[u8], value: i64) -> Option<i64> {
        if let Some(place) = self.get_mut(key) {
            return Some(std::mem::replace(place, value));
        }
        let (hash, shard) = self.place(key);
        let hasher = &self.hasher;
        self.shards[shard]
            .table_mut()
            .insert_unique(hash, (key.into(), value), |(key, _)| {
                hasher.hash_one(&**key)
            });
        self.len += 1;
        None
    }

    /// Whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let (hash, shard) = self.place(key);
        let table = self.shards[shard].table_mut();
        match table.find_entry(hash, |(k, _)| **k == *key) {
            Ok(found) => {
                found.remove();
                self.len -= 1;
                true
            }
            Err(_) => false,
        }
    }

    /// The map as it is now, to be written while it changes again.
    pub fn capture(&mut self) -> Captured {
        let share = |shard: &mut Shard| {
            let shared = match shard {
                Shard::Own(table) => Arc::new(std::mem::take(table)),
                Shard::Shared(table) => table.clone(),
            };
            *shard = Shard::Shared(shared.clone());
            shared
        };
        Captured {
            shards: self.shards.iter_mut().map(share).collect(),
            len: self.len,
        }
    }

    /// Reads what [`Captured::write`] wrote, up to its end.
    pub fn read(from: &mut dyn Read) -> io::Result<Self> {
        let mut from = io::BufReader::with_capacity(WRITE_BYTES, from);
        let mut magic = [0; 8];
        fill(&mut from, &mut magic, 0, "")?;
        if magic != *MAGIC {
            return Err(bad(0, "it does not begin as a snapshot of counters does"));
        }
        let mut number = [0; 8];
        fill(&mut from, &mut number, 0, "")?;
        let count = u64::from_le_bytes(number);
        let mut store = Self::default();
        let (mut key, mut before) = (Vec::new(), Vec::new());
        for at in 0..count {
            let mut len = [0; 2];
            fill(&mut from, &mut len, at, " of the length of a key")?;
            key.resize(u16::from_le_bytes(len) as usize, 0);
            fill(&mut from, &mut key, at, " of a key")?;
            fill(&mut from, &mut number, at, " of a value")?;
            if at > 0 && before >= key {
                return Err(bad(at, "its key is not behind the one before it"));
            }
            store.insert(&key, i64::from_le_bytes(number));
            std::mem::swap(&mut key, &mut before);
        }
        if from.read(&mut [0])? != 0 {
            return Err(bad(count, "there is more behind the last counter"));
        }
        Ok(store)
    }
}

fn fill(from: &mut impl Read, into: &mut [u8], at: u64, what: &str) -> io::Result<()> {
    match from.read_exact(into) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(bad(at, &format!("it ends in the middle{what}")))
        }
        other => other,
    }
}

fn bad(at: u64, what: &str) -> io::Error {
    let text = format!("the counters in the snapshot, at counter {at}: {what}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The map as it was.
#[derive(Debug)]
pub struct Captured {
    shards: Vec<Arc<Table>>,
    len: usize,
}

impl Captured {
    /// Writes all counters in the order of their keys: the same bytes on every node.
    pub fn write(self, to: &mut dyn Write) -> io::Result<()> {
        let mut sorted: Vec<(&[u8], i64)> = Vec::with_capacity(self.len);
        for table in &self.shards {
            sorted.extend(table.iter().map(|(key, value)| (&**key, *value)));
        }
        sorted.sort_unstable();
        let mut out = Vec::with_capacity(WRITE_BYTES + MAX_KEY_BYTES + 10);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(sorted.len() as u64).to_le_bytes());
        for (key, value) in sorted {
            out.extend_from_slice(&(key.len() as u16).to_le_bytes());
            out.extend_from_slice(key);
            out.extend_from_slice(&value.to_le_bytes());
            if out.len() >= WRITE_BYTES {
                to.write_all(&out)?;
                out.clear();
            }
        }
        to.write_all(&out)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::time::Instant;

    use super::*;

    fn written(captured: Captured) -> Vec<u8> {
        let mut bytes = Vec::new();
        captured.write(&mut bytes).expect("memory takes it");
        bytes
    }

    fn key(n: u64) -> Vec<u8> {
        format!("counter:{n}").into_bytes()
    }

    #[test]
    fn a_capture_is_the_state_of_its_moment_whatever_is_written_later() {
        let mut store = Store::default();
        for n in 0..10_000 {
            store.insert(&key(n), n as i64);
        }
        let (before, still) = (store.capture(), store.capture());
        for n in 0..10_000 {
            match n % 3 {
                0 => *store.get_mut(&key(n)).expect("it is there") += 1,
                1 => assert!(store.remove(&key(n))),
                _ => assert_eq!(store.insert(&key(n + 10_000), 7), None),
            }
        }
        let later = written(store.capture());
        let before = written(before);
        assert_eq!(before, written(still));
        assert_ne!(before, later);
        let read = Store::read(&mut &before[..]).expect("it can be read");
        assert_eq!(read.len(), 10_000);
        for n in 0..10_000 {
            assert_eq!(read.get(&key(n)), Some(n as i64));
        }
        let mut read = Store::read(&mut &later[..]).expect("it can be read");
        assert_eq!(read.len(), store.len());
        // Another process has other hashes, and writes the same bytes.
        assert_eq!(written(read.capture()), later);
    }

    #[test]
    fn it_is_a_map() {
        let (mut store, mut model) = (Store::default(), BTreeMap::new());
        let mut captured = Vec::new();
        for step in 0..60_000u64 {
            let n = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
            let key = key(n);
            match step % 4 {
                0 => assert_eq!(store.remove(&key), model.remove(&key).is_some()),
                1 => assert_eq!(store.get(&key), model.get(&key).copied()),
                _ => assert_eq!(
                    store.insert(&key, step as i64),
                    model.insert(key, step as i64)
                ),
            }
            assert_eq!(store.len(), model.len());
            if step % 5_000 == 0 {
                captured.push((store.capture(), model.clone()));
            }
        }
        for (captured, model) in captured {
            let read = Store::read(&mut &written(captured)[..]).expect("it can be read");
            assert_eq!(read.len(), model.len());
            assert!(
                model
                    .iter()
                    .all(|(key, value)| read.get(key) == Some(*value))
            );
        }
    }

    #[test]
    fn what_is_no_snapshot_is_an_error_that_says_where() {
        let mut store = Store::default();
        for name in ["", "a", "ab"] {
            store.insert(name.as_bytes(), -1);
        }
        let bytes = written(store.capture());
        for cut in 0..bytes.len() {
            let error = Store::read(&mut &bytes[..cut]).expect_err("half a snapshot");
            assert!(error.to_string().contains("ends in the middle"), "{error}");
        }
        let says = |bytes: &[u8]| match Store::read(&mut &bytes[..]) {
            Ok(store) => panic!("{} counters", store.len()),
            Err(error) => error.to_string(),
        };
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(says(&longer).contains("more behind the last"));
        assert!(says(b"COUNTERZ\0\0\0\0\0\0\0\0").contains("does not begin"));
        let mut twice = bytes.clone();
        let at = twice.len() - 9;
        twice[at - 3..at + 1].copy_from_slice(&[2, 0, b'a', b'a']);
        assert!(Store::read(&mut &twice[..]).is_ok(), "aa is behind a");
        twice[at] = 0;
        let zero = bytes[..bytes.len() - 12].to_vec();
        let mut again = zero;
        again.extend_from_slice(&[1, 0, b'a', 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(says(&again).contains("at counter 2: its key is not behind"));
        let many = [&b"COUNTERS"[..], &[0xff; 8]].concat();
        assert!(says(&many).contains("ends in the middle of the length"));
    }

    /// `cargo test --release --example counter -- --ignored --nocapture a_million`
    #[test]
    #[ignore = "a measurement"]
    fn a_million_counters() {
        const KEYS: u64 = 1_000_000;
        const OPS: u64 = 5_000_000;
        let keys: Vec<Vec<u8>> = (0..KEYS).map(key).collect();
        let pick = |n: u64, of: u64| {
            &keys[(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize % of as usize]
        };
        let mut plain: HashMap<Box<[u8]>, i64, RandomState> = HashMap::default();
        let mut store = Store::default();
        for key in &keys {
            plain.insert(key.as_slice().into(), 0);
            store.insert(key, 0);
        }
        for of in [KEYS, 1000] {
            for _ in 0..3 {
                let start = Instant::now();
                for n in 0..OPS {
                    *plain.get_mut(pick(n, of).as_slice()).expect("it is there") += 1;
                }
                let one = start.elapsed();
                let start = Instant::now();
                for n in 0..OPS {
                    *store.get_mut(pick(n, of)).expect("it is there") += 1;
                }
                let two = start.elapsed();
                let ns = |time: std::time::Duration| time.as_nanos() as f64 / OPS as f64;
                println!(
                    "{of} keys: {:.1} ns in one map, {:.1} ns in shards",
                    ns(one),
                    ns(two)
                );
            }
        }
        for _ in 0..3 {
            let start = Instant::now();
            let captured = store.capture();
            println!("a capture of the shards {:?}", start.elapsed());
            let (mut longest, mut all) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
            for n in 0..100_000 {
                let start = Instant::now();
                *store.get_mut(pick(n, KEYS)).expect("it is there") += 1;
                longest = longest.max(start.elapsed());
                all += start.elapsed();
            }
            println!("100 000 writes after it {all:?}, the longest {longest:?}");
            let start = Instant::now();
            let bytes = written(captured);
            println!(
                "sorted and written      {:?}, {} bytes",
                start.elapsed(),
                bytes.len()
            );
            let start = Instant::now();
            Store::read(&mut &bytes[..]).expect("it can be read");
            println!("read                    {:?}", start.elapsed());
        }
        let start = Instant::now();
        let copy = plain.clone();
        println!("a copy of one map       {:?}", start.elapsed());
        drop(copy);
    }
}
