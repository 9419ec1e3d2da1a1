//! Which directories the peers are known to have.
//!
//! ```text
//!  0        8        12    14      16
//!  ├ magic ─┼ crc32c ┼ ver ┼ count ┼─ node ─ incarnation ─┼─ node ─ incarnation ─┼ … zeros to 4096
//! ```
//!
//! Twice in the file. A list that is lost cannot be made again from anything else: with an empty one this node would take
//! back a peer that was wiped, and the two could elect a leader without what the peer had acknowledged. So one copy that
//! goes bad is written anew from the other, and without both the node does not start. A file of 4096 bytes is an older one
//! with a single copy.
//!
//! A peer whose directory was wiped has forgotten what it voted for and what it acknowledged; under its old name it
//! could vote twice, or be counted for entries that it no longer has. Its incarnation tells, for whoever remembers the
//! one from before: so that is kept here, durably, before anything of the peer counts. One that says that it has lost
//! everything, and heals, takes the place of the one from before, for good. The file is replaced as a whole.

use std::path::Path;

use crate::error::{Doing, StorageError};
use crate::files::exclusion::Exclusion;
use crate::files::identity::Copies;
use crate::medium::is_medium_error;
use crate::medium::{Dir, File};
use crate::record::{u32_at, u64_at};

pub(crate) const PEERS_NAME: &str = "peers";
const TEMPORARY_NAME: &str = "peers.tmp";
const LEN: usize = 4096;
const HEAD: usize = 16;
const PAIR: usize = 16;
/// Peers that the file has room for.
const MOST: usize = (LEN - HEAD) / PAIR;
const VERSION: u16 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"rr peer\n");

/// The peers that this node has met, each with the incarnation of its directory.
#[derive(Clone, Debug)]
pub struct KnownPeers<D: Dir> {
    dir: D,
    sync: bool,
    known: Vec<(u64, u64)>,
    copies: Copies,
}

impl<D: Dir> KnownPeers<D> {
    /// Reads the file; without one nobody is known.
    pub(crate) fn open(dir: D, names: &[String], sync: bool) -> Result<Self, StorageError> {
        let (known, copies) = if names.iter().any(|name| name == PEERS_NAME) {
            read(&dir)?
        } else {
            (Vec::new(), Copies::Both)
        };
        Ok(Self {
            dir,
            sync,
            known,
            copies,
        })
    }

    /// Writes both copies again where one is bad, or where an older file has only one; says whether one was bad.
    pub(crate) fn mend(&mut self) -> Result<bool, StorageError> {
        let copies = std::mem::replace(&mut self.copies, Copies::Both);
        if copies != Copies::Both {
            self.publish()?;
        }
        Ok(copies == Copies::One)
    }

    /// The pairs `(node, incarnation)`.
    pub fn list(&self) -> &[(u64, u64)] {
        &self.known
    }

    /// Whether `node` has the directory that it is known with. One that is met for the first time is known, durably,
    /// when this returns.
    ///
    /// # Errors
    /// The file could not be written: then the peer may not be counted.
    pub fn meet(&mut self, node: u64, incarnation: u64) -> Result<bool, StorageError> {
        if let Some((_, known)) = self.known.iter().find(|(id, _)| *id == node) {
            return Ok(*known == incarnation);
        }
        self.known.push((node, incarnation));
        let published = self.publish();
        if published.is_err() {
            self.known.pop();
        }
        published.map(|()| true)
    }

    /// The node has lost the directory that it is known with, and goes on with this one: the old one is not its any more,
    /// durably, when this returns.
    ///
    /// # Errors
    /// The file could not be written: then the old one is known still, and the peer may not be counted.
    pub fn replace(&mut self, node: u64, incarnation: u64) -> Result<(), StorageError> {
        let known = self.known.iter().position(|(id, _)| *id == node);
        match known {
            Some(at) if self.known[at].1 == incarnation => Ok(()),
            Some(at) => {
                let old = std::mem::replace(&mut self.known[at].1, incarnation);
                let published = self.publish();
                if published.is_err() {
                    self.known[at].1 = old;
                }
                published
            }
            None => self.meet(node, incarnation).map(|_| ()),
        }
    }

    /// A peer has refused this directory: that is durable when this returns, see [`Exclusion`].
    ///
    /// # Errors
    /// The file could not be written.
    pub fn exclude(&self, exclusion: &Exclusion) -> Result<(), StorageError> {
        exclusion.publish(&self.dir, self.sync)
    }

    fn publish(&self) -> Result<(), StorageError> {
        let path = self.dir.path(TEMPORARY_NAME);
        assert!(
            self.known.len() <= MOST,
            "{} peers, the file has room for {MOST}",
            self.known.len()
        );
        let bytes = encode(&self.known);
        let file = self
            .dir
            .create(TEMPORARY_NAME, 2 * LEN as u64)
            .doing("create", &path)?;
        for at in [0, LEN as u64] {
            file.write_at(at, &bytes).doing("write", &path)?;
        }
        if self.sync {
            file.sync().doing("flush", &path)?;
        }
        self.dir
            .rename(TEMPORARY_NAME, PEERS_NAME)
            .doing("rename", &path)?;
        if self.sync {
            self.dir
                .sync_dir("")
                .doing("flush the directory of", &path)?;
        }
        Ok(())
    }
}

fn encode(known: &[(u64, u64)]) -> [u8; LEN] {
    let mut out = [0; LEN];
    out[..8].copy_from_slice(&MAGIC.to_le_bytes());
    out[12..14].copy_from_slice(&VERSION.to_le_bytes());
    out[14..16].copy_from_slice(&(known.len() as u16).to_le_bytes());
    for (pair, (node, incarnation)) in out[HEAD..].chunks_mut(PAIR).zip(known) {
        pair[..8].copy_from_slice(&node.to_le_bytes());
        pair[8..].copy_from_slice(&incarnation.to_le_bytes());
    }
    let crc = crc32c::crc32c(&out[12..]);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
}

type List = Vec<(u64, u64)>;

pub(crate) fn read<D: Dir>(dir: &D) -> Result<(List, Copies), StorageError> {
    let path = dir.path(PEERS_NAME);
    let file = dir.open(PEERS_NAME).doing("open", &path)?;
    let len = file.length().doing("read the length of", &path)?;
    let first = read_copy(&file, &path, 0);
    if len == LEN as u64 {
        return first.map(|list| (list, Copies::Older));
    }
    match (first, read_copy(&file, &path, LEN as u64)) {
        (Ok(first), Ok(second)) if first == second => Ok((first, Copies::Both)),
        (Ok(_), Ok(_)) => {
            let detail = "its two copies are whole and not the same";
            Err(StorageError::corrupt(&path, 0, detail))
        }
        (Ok(list), Err(StorageError::Corrupt { .. }))
        | (Err(StorageError::Corrupt { .. }), Ok(list)) => Ok((list, Copies::One)),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

fn read_copy<F: File>(file: &F, path: &Path, at: u64) -> Result<List, StorageError> {
    let damaged = |detail: &str| {
        let advice = "; without the file this node takes its peers as they are now, which is safe \
                      only while none of them has lost its directory";
        Err(StorageError::corrupt(path, at, format!("{detail}{advice}")))
    };
    let mut bytes = [0; LEN];
    match file.read_at(at, &mut bytes) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            return damaged("it is shorter than such a file");
        }
        Err(e) if is_medium_error(&e) => return damaged(&format!("it cannot be read: {e}")),
        Err(e) => return Err(StorageError::io("read", path, e)),
    }
    if u64_at(&bytes, 0) != MAGIC || crc32c::crc32c(&bytes[12..]) != u32_at(&bytes, 8) {
        return damaged("its magic number or checksum is wrong");
    }
    let version = u16::from_le_bytes([bytes[12], bytes[13]]);
    if version != VERSION {
        let (found, supported) = (version.into(), VERSION.into());
        return Err(StorageError::Version {
            path: path.into(),
            found,
            supported,
        });
    }
    let count = usize::from(u16::from_le_bytes([bytes[14], bytes[15]]));
    if count > MOST {
        return damaged("it names more peers than fit into it");
    }
    Ok(bytes[HEAD..]
        .chunks(PAIR)
        .take(count)
        .map(|pair| (u64_at(pair, 0), u64_at(pair, 8)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::medium::memory::{Fault, Loss, Memory};

    fn open(memory: &Memory) -> Result<KnownPeers<Memory>, StorageError> {
        let names = memory.list("").expect("listed");
        KnownPeers::open(memory.clone(), &names, true)
    }

    #[test]
    fn a_peer_is_known_by_the_directory_that_it_came_with_first() {
        let memory = Memory::new(1);
        let mut peers = open(&memory).expect("nobody is known");
        assert_eq!(peers.list(), []);
        assert!(peers.meet(2, 20).expect("written"));
        assert!(peers.meet(3, 30).expect("written"));
        assert!(peers.meet(2, 20).expect("known"));
        assert!(!peers.meet(2, 21).expect("known with another"));

        let mut peers = open(&memory.power_cut(Loss::All)).expect("sound");
        assert_eq!(peers.list(), [(2, 20), (3, 30)]);
        assert!(!peers.meet(3, 31).expect("known with another"));
    }

    #[test]
    fn a_peer_that_has_lost_its_directory_is_known_by_the_next_one_and_by_no_other() {
        let mut steps = 0;
        loop {
            let memory = Memory::new(1);
            let mut peers = open(&memory).expect("nobody is known");
            assert!(peers.meet(2, 20).expect("written"));
            assert!(peers.meet(3, 30).expect("written"));
            memory.fail_at(memory.steps() + steps, Fault::PowerOff);
            let replaced = peers.replace(2, 21);
            for seed in 0..16 {
                let left = open(&memory.power_cut(Loss::Random(seed))).expect("sound");
                let pairs = left.list();
                assert_eq!(pairs[1], (3, 30), "step {steps}");
                let is_old = replaced.is_err() && pairs[0] == (2, 20);
                assert!(is_old || pairs[0] == (2, 21), "step {steps}: {left:?}");
            }
            if replaced.is_ok() {
                break;
            }
            assert_eq!(
                peers.list(),
                [(2, 20), (3, 30)],
                "the old one is known then"
            );
            steps += 1;
        }
        assert!(steps >= 4, "only {steps} steps");

        let memory = Memory::new(1);
        let mut peers = open(&memory).expect("nobody is known");
        peers.replace(2, 21).expect("written");
        peers.replace(2, 22).expect("written");
        assert!(!peers.meet(2, 21).expect("known with another"));
        assert!(peers.meet(2, 22).expect("known"));
        let steps = memory.steps();
        peers.replace(2, 22).expect("known");
        assert_eq!(memory.steps(), steps, "nothing is written");
    }

    #[test]
    fn what_was_said_to_be_known_survives_a_power_cut_at_any_step_of_the_next() {
        let mut steps = 0;
        loop {
            let memory = Memory::new(1);
            let mut peers = open(&memory).expect("nobody is known");
            assert!(peers.meet(2, 20).expect("written"));
            memory.fail_at(memory.steps() + steps, Fault::PowerOff);
            let met = peers.meet(3, 30);
            for seed in 0..16 {
                let left = open(&memory.power_cut(Loss::Random(seed))).expect("sound");
                let least: &[_] = match met {
                    Ok(_) => &[(2, 20), (3, 30)],
                    Err(_) => &[(2, 20)],
                };
                assert!(left.list().starts_with(least), "step {steps}: {left:?}");
            }
            if met.is_ok() {
                break;
            }
            assert_eq!(peers.list(), [(2, 20)], "it is not known then");
            steps += 1;
        }
        assert!(steps >= 4, "only {steps} steps");
    }

    #[test]
    fn one_bad_copy_is_mended_and_two_are_an_error_that_says_what_to_do() {
        for at in [0, 8, 13, 14, 20, 4000] {
            let memory = Memory::new(1);
            assert!(open(&memory).expect("nobody").meet(2, 20).expect("written"));
            let flip = |at: usize| {
                let flip = |bytes: &mut [u8]| bytes[at] ^= 4;
                memory.damage(PEERS_NAME, flip).expect("damaged");
            };
            for at in [at, at + LEN] {
                flip(at);
                let mut peers = open(&memory).expect("the other copy is good");
                assert_eq!(peers.list(), [(2, 20)]);
                assert!(peers.mend().expect("written"), "{at}");
                let mut peers = open(&memory.power_cut(Loss::All)).expect("sound");
                assert_eq!((peers.list(), peers.copies), (&[(2, 20)][..], Copies::Both));
                assert!(!peers.mend().expect("nothing to do"));
            }
            flip(at);
            flip(at + LEN);
            let error = open(&memory).expect_err("damaged").to_string();
            assert!(error.contains("without the file"), "{at}: {error}");
        }
    }

    #[test]
    fn a_file_with_a_single_copy_is_read_and_written_anew() {
        let memory = Memory::new(1);
        let file = memory.create(PEERS_NAME, LEN as u64).expect("created");
        file.write_at(0, &encode(&[(2, 20)])).expect("written");
        let mut peers = open(&memory).expect("an older file");
        assert_eq!(peers.list(), [(2, 20)]);
        assert!(!peers.mend().expect("written"), "nothing was damaged");
        let peers = open(&memory.power_cut(Loss::All)).expect("sound");
        assert_eq!((peers.list(), peers.copies), (&[(2, 20)][..], Copies::Both));
    }
}
