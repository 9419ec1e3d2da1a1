//! That a peer has refused this directory.
//!
//! ```text
//!  0        8        12    14  16    24       32            40
//!  ├ magic ─┼ crc32c ┼ ver ┼ 0 ┼ by ─┼ known ─┼ incarnation ┤
//! ```
//!
//! The danger: a node's volume is not mounted, so it starts with an empty directory. A peer that remembers the lost one
//! refuses it, but the node can win an election with others that are as empty, and acknowledge what contradicts the lost log.
//! So the first refusal for the incarnation is durable here, and as long as the file `excluded` is there the node takes no
//! part in elections and acknowledges nothing, whether or not the peer that refused it is up.
//!
//! Nothing but the operator removes the file: with the whole directory, to rejoin ([`Options::replaces`]) or to mount the right
//! one, or by itself when it was the peer that was wrong. A damaged file excludes the node, too.
//!
//! [`Options::replaces`]: crate::Options::replaces

use crate::error::{Doing, StorageError};
use crate::medium::is_medium_error;
use crate::medium::{Dir, File};
use crate::record::{u32_at, u64_at};

pub(crate) const EXCLUDED_NAME: &str = "excluded";
const TEMPORARY_NAME: &str = "excluded.tmp";
const LEN: usize = 40;
const VERSION: u16 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"rr excl\n");

/// Who has refused this directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exclusion {
    /// The peer; 0 when the file is damaged.
    pub by: u64,
    /// The incarnation that the peer knows for this node.
    pub known: u64,
    /// The incarnation that it refused.
    pub incarnation: u64,
}

impl Exclusion {
    fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..8].copy_from_slice(&MAGIC.to_le_bytes());
        out[12..14].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.by.to_le_bytes());
        out[24..32].copy_from_slice(&self.known.to_le_bytes());
        out[32..40].copy_from_slice(&self.incarnation.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; LEN]) -> Option<Self> {
        let version = u16::from_le_bytes([bytes[12], bytes[13]]);
        let is_sound = u64_at(bytes, 0) == MAGIC
            && crc32c::crc32c(&bytes[12..]) == u32_at(bytes, 8)
            && version == VERSION;
        is_sound.then(|| Self {
            by: u64_at(bytes, 16),
            known: u64_at(bytes, 24),
            incarnation: u64_at(bytes, 32),
        })
    }

    /// Reads the file, if it is there.
    pub(crate) fn read<D: Dir>(dir: &D, names: &[String]) -> Result<Option<Self>, StorageError> {
        if !names.iter().any(|name| name == EXCLUDED_NAME) {
            return Ok(None);
        }
        let damaged = Self {
            by: 0,
            known: 0,
            incarnation: 0,
        };
        let path = dir.path(EXCLUDED_NAME);
        let file = dir.open(EXCLUDED_NAME).doing("open", &path)?;
        let mut bytes = [0; LEN];
        match file.read_at(0, &mut bytes) {
            Ok(()) => Ok(Some(Self::decode(&bytes).unwrap_or(damaged))),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof || is_medium_error(&e) => {
                Ok(Some(damaged))
            }
            Err(e) => Err(StorageError::io("read", &path, e)),
        }
    }

    /// Writes the file: it is durable when this returns.
    pub(crate) fn publish<D: Dir>(&self, dir: &D, sync: bool) -> Result<(), StorageError> {
        let path = dir.path(TEMPORARY_NAME);
        let file = dir
            .create(TEMPORARY_NAME, LEN as u64)
            .doing("create", &path)?;
        file.write_at(0, &self.encode()).doing("write", &path)?;
        if sync {
            file.sync().doing("flush", &path)?;
        }
        dir.rename(TEMPORARY_NAME, EXCLUDED_NAME)
            .doing("rename", &path)?;
        if sync {
            dir.sync_dir("").doing("flush the directory of", &path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::medium::memory::{Fault, Loss, Memory};

    const EXCLUSION: Exclusion = Exclusion {
        by: 1,
        known: 20,
        incarnation: 21,
    };

    fn read(memory: &Memory) -> Option<Exclusion> {
        let names = memory.list("").expect("listed");
        Exclusion::read(memory, &names).expect("read")
    }

    #[test]
    fn an_exclusion_that_was_written_survives_a_power_cut() {
        let mut steps = 0;
        loop {
            let memory = Memory::new(1);
            memory.fail_at(memory.steps() + steps, Fault::PowerOff);
            let published = EXCLUSION.publish(&memory, true);
            for seed in 0..16 {
                let found = read(&memory.power_cut(Loss::Random(seed)));
                match published {
                    Ok(()) => assert_eq!(found, Some(EXCLUSION)),
                    Err(_) => assert!(
                        found.is_none_or(|found| found == EXCLUSION),
                        "step {steps}: {found:?}"
                    ),
                }
            }
            if published.is_ok() {
                break;
            }
            steps += 1;
        }
        assert!(steps >= 4, "only {steps} steps");
    }

    #[test]
    fn a_damaged_file_excludes() {
        for at in 0..LEN {
            let memory = Memory::new(1);
            EXCLUSION.publish(&memory, true).expect("written");
            let flip = |bytes: &mut [u8]| bytes[at] ^= 4;
            memory.damage(EXCLUDED_NAME, flip).expect("damaged");
            let found = read(&memory).expect("the file is there");
            assert_eq!(found.by, 0, "byte {at}");
        }
    }
}
