//! Whose directory this is. Written once, last of all when a directory is made, and never changed.
//!
//! ```text
//!  0        8        12    14     16        24      28   32      40            48
//!  ├ magic ─┼ crc32c ┼ ver ┼ kind ┼ cluster ┼ group ┼ 0 ─┼ node ─┼ incarnation ┤
//! ```
//!
//! Twice in the file, in blocks of their own: nothing else on the disk says whose it is, so one that goes bad must not be
//! the only one. A file of 48 bytes is an older one with a single copy.

use std::path::Path;

use crate::error::{Doing, StorageError};
use crate::medium::is_medium_error;
use crate::medium::{Dir, File};
use crate::record::{u32_at, u64_at};

pub(crate) const IDENTITY_NAME: &str = "identity";
const TEMPORARY_NAME: &str = "identity.tmp";
const LEN: usize = 48;
/// Where the second copy begins.
const SECOND_AT: u64 = 4096;
const FILE_LEN: u64 = 2 * SECOND_AT;
const VERSION: u16 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"rr iden\n");

/// How many copies of an identity are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copies {
    Both,
    /// The other one is damaged.
    One,
    /// The file is an older one, which has no more.
    Older,
}

/// Whose log a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The group in the cluster.
    pub group_id: u32,
    /// The node.
    pub node_id: u64,
    /// A random number made when the directory was: tells a wiped and refilled directory from the
    /// one it replaced.
    pub incarnation: u64,
    /// [`crate::Options::kind`] when the directory was made; 0 in an older one.
    pub kind: u16,
}

impl Identity {
    fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..8].copy_from_slice(&MAGIC.to_le_bytes());
        out[12..14].copy_from_slice(&VERSION.to_le_bytes());
        out[14..16].copy_from_slice(&self.kind.to_le_bytes());
        out[16..24].copy_from_slice(&self.cluster_id.to_le_bytes());
        out[24..28].copy_from_slice(&self.group_id.to_le_bytes());
        out[32..40].copy_from_slice(&self.node_id.to_le_bytes());
        out[40..48].copy_from_slice(&self.incarnation.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; LEN], path: &Path) -> Result<Identity, StorageError> {
        if u64_at(bytes, 0) != MAGIC || crc32c::crc32c(&bytes[12..]) != u32_at(bytes, 8) {
            return Err(StorageError::corrupt(
                path,
                0,
                "its magic number or checksum is wrong",
            ));
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
        Ok(Identity {
            cluster_id: u64_at(bytes, 16),
            group_id: u32_at(bytes, 24),
            node_id: u64_at(bytes, 32),
            incarnation: u64_at(bytes, 40),
            kind: u16::from_le_bytes([bytes[14], bytes[15]]),
        })
    }

    /// Reads the file; it must exist. The second result says how many of its two copies are good.
    pub(crate) fn read<D: Dir>(dir: &D) -> Result<(Identity, Copies), StorageError> {
        let path = dir.path(IDENTITY_NAME);
        let file = dir.open(IDENTITY_NAME).doing("open", &path)?;
        let len = file.length().doing("read the length of", &path)?;
        let read = |at| {
            let mut bytes = [0; LEN];
            file.read_at(at, &mut bytes).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    StorageError::corrupt(&path, at, format!("it has only {len} bytes"))
                }
                _ if is_medium_error(&e) => {
                    StorageError::corrupt(&path, at, format!("it cannot be read: {e}"))
                }
                _ => StorageError::io("read", &path, e),
            })?;
            Identity::decode(&bytes, &path)
        };
        let first = read(0);
        if len == LEN as u64 {
            return first.map(|identity| (identity, Copies::Older));
        }
        match (first, read(SECOND_AT)) {
            (Ok(first), Ok(second)) if first == second => Ok((first, Copies::Both)),
            (Ok(_), Ok(_)) => {
                let detail = "its two copies are whole and not the same";
                Err(StorageError::corrupt(&path, 0, detail))
            }
            (Ok(identity), Err(StorageError::Corrupt { .. }))
            | (Err(StorageError::Corrupt { .. }), Ok(identity)) => Ok((identity, Copies::One)),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// Publishes the file: write, flush, rename, flush the directory. From then on the directory is
    /// a log.
    pub(crate) fn publish<D: Dir>(&self, dir: &D, sync: bool) -> Result<(), StorageError> {
        let path = dir.path(TEMPORARY_NAME);
        let file = dir
            .create(TEMPORARY_NAME, FILE_LEN)
            .doing("create", &path)?;
        for at in [0, SECOND_AT] {
            file.write_at(at, &self.encode()).doing("write", &path)?;
        }
        if sync {
            file.sync().doing("flush", &path)?;
        }
        dir.rename(TEMPORARY_NAME, IDENTITY_NAME)
            .doing("rename", &path)?;
        if sync {
            dir.sync_dir("").doing("flush the directory of", &path)?;
        }
        Ok(())
    }

    /// Whether the caller is who the directory belongs to.
    pub(crate) fn check(
        &self,
        path: &Path,
        cluster_id: u64,
        group_id: u32,
        node_id: u64,
    ) -> Result<(), StorageError> {
        let names = [
            ("cluster", self.cluster_id, cluster_id),
            ("group", self.group_id.into(), group_id.into()),
            ("node", self.node_id, node_id),
        ];
        match names
            .into_iter()
            .find(|(_, found, expected)| found != expected)
        {
            None => Ok(()),
            Some((what, found, expected)) => Err(StorageError::Foreign {
                path: path.into(),
                what,
                found,
                expected,
            }),
        }
    }
}
