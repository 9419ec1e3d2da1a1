//! The bytes of a snapshot file.
//!
//! ```text
//!  0        h                                                     file length
//!  ├ header ┼ chunk ┼ chunk ┼ … ┼ last chunk, may be shorter ┼ footer ┤
//!
//!  header, zeros up to a multiple of 512
//!  0       8        12    14   16        24      28           32      40     48        56              60   64
//!  ├ magic ┼ crc32c ┼ ver ┼ 0 ─┼ cluster ┼ group ┼ chunk size ┼ index ┼ term ┼ time_us ┼ members' bytes ┼ 0 ─┼ members
//!
//!  chunk                      footer
//!  0        4        8        0       8        12       16            24              32
//!  ├ length ┼ crc32c ┼ bytes  ├ magic ┼ crc32c ┼ digest ┼ chunk count ┼ payload bytes ┤
//! ```
//!
//! Where each piece begins follows from the header and the length of the file. The checksum of a chunk covers the header's
//! checksum and the chunk's number too: no chunk is taken for that of another file or place.

use std::ops::RangeInclusive;
use std::path::Path;

use crate::error::StorageError;
use crate::record::{u32_at, u64_at};
use crate::snapshot::id::SnapshotMeta;

/// Bytes of the header in front of the members.
pub(super) const HEAD_LEN: usize = 64;
pub(super) const CHUNK_HEAD_LEN: usize = 8;
pub(super) const FOOTER_LEN: usize = 32;
/// The header ends at a multiple of this.
const BLOCK: usize = 512;
/// The most bytes the members may take.
pub(super) const MOST_MEMBERS: usize = 64 << 10;
/// What a chunk may hold, in bytes.
pub(crate) const CHUNK_SIZES: RangeInclusive<u32> = 256..=1 << 20;

const VERSION: u16 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"rr snap\n");
const FOOTER_MAGIC: u64 = u64::from_le_bytes(*b"rr sfin\n");

/// The front of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cluster_id: u64,
    pub(super) group_id: u32,
    /// Payload bytes of every chunk but the last.
    pub(super) chunk_bytes: u32,
    pub(super) meta: SnapshotMeta,
}

/// Why the front of a file is no header.
pub(super) struct NoHeader(pub(super) &'static str);

/// Bytes of a header with members of this length.
fn header_len(members_len: usize) -> usize {
    (HEAD_LEN + members_len).next_multiple_of(BLOCK)
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let SnapshotMeta {
            index,
            term,
            time_us,
            members,
        } = &self.meta;
        let mut out = vec![0; header_len(members.len())];
        out[..8].copy_from_slice(&MAGIC.to_le_bytes());
        out[12..14].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.cluster_id.to_le_bytes());
        out[24..28].copy_from_slice(&self.group_id.to_le_bytes());
        out[28..32].copy_from_slice(&self.chunk_bytes.to_le_bytes());
        out[32..40].copy_from_slice(&index.to_le_bytes());
        out[40..48].copy_from_slice(&term.to_le_bytes());
        out[48..56].copy_from_slice(&time_us.to_le_bytes());
        out[56..60].copy_from_slice(&(members.len() as u32).to_le_bytes());
        out[HEAD_LEN..HEAD_LEN + members.len()].copy_from_slice(members);
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// How long the header is that begins with `head`, if it can be one.
    pub(super) fn len(head: &[u8; HEAD_LEN]) -> Result<usize, NoHeader> {
        if u64_at(head, 0) != MAGIC {
            return Err(NoHeader("the header has no magic number"));
        }
        let members_len = u32_at(head, 56) as usize;
        if members_len > MOST_MEMBERS {
            return Err(NoHeader("the header is longer than any"));
        }
        Ok(header_len(members_len))
    }

    /// Reads a header of which [`Header::len`] gave the length.
    pub(super) fn decode(
        bytes: &[u8],
        path: &Path,
    ) -> Result<Result<Header, NoHeader>, StorageError> {
        if crc32c::crc32c(&bytes[12..]) != header_crc(bytes) {
            return Ok(Err(NoHeader("the checksum of the header does not match")));
        }
        let version = u16::from_le_bytes([bytes[12], bytes[13]]);
        if version != VERSION {
            let (found, supported) = (version.into(), VERSION.into());
            let path = path.into();
            return Err(StorageError::Version {
                path,
                found,
                supported,
            });
        }
        let members_len = u32_at(bytes, 56) as usize;
        let meta = SnapshotMeta {
            index: u64_at(bytes, 32),
            term: u64_at(bytes, 40),
            time_us: u64_at(bytes, 48),
            members: bytes[HEAD_LEN..HEAD_LEN + members_len].to_vec(),
        };
        let header = Header {
            cluster_id: u64_at(bytes, 16),
            group_id: u32_at(bytes, 24),
            chunk_bytes: u32_at(bytes, 28),
            meta,
        };
        if !CHUNK_SIZES.contains(&header.chunk_bytes) {
            return Ok(Err(NoHeader("the header names a chunk size that none has")));
        }
        Ok(Ok(header))
    }
}

/// The checksum in an encoded header.
pub(super) fn header_crc(header: &[u8]) -> u32 {
    u32_at(header, 8)
}

/// What stands in front of a chunk's bytes.
pub(super) fn chunk_head(header_crc: u32, number: u64, payload: &[u8]) -> [u8; CHUNK_HEAD_LEN] {
    let mut head = [0; CHUNK_HEAD_LEN];
    let len = payload.len() as u32;
    head[..4].copy_from_slice(&len.to_le_bytes());
    head[4..].copy_from_slice(&chunk_crc(header_crc, number, len, payload).to_le_bytes());
    head
}

pub(super) fn chunk_crc(header_crc: u32, number: u64, len: u32, payload: &[u8]) -> u32 {
    let mut place = [0; 16];
    place[..4].copy_from_slice(&header_crc.to_le_bytes());
    place[4..12].copy_from_slice(&number.to_le_bytes());
    place[12..].copy_from_slice(&len.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), payload)
}

/// The checksum over the checksums so far, and one more.
pub(super) fn digest(so_far: u32, crc: u32) -> u32 {
    crc32c::crc32c_append(so_far, &crc.to_le_bytes())
}

/// The end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) digest: u32,
    pub(super) chunk_count: u64,
    pub(super) payload_bytes: u64,
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = [0; FOOTER_LEN];
        out[..8].copy_from_slice(&FOOTER_MAGIC.to_le_bytes());
        out[12..16].copy_from_slice(&self.digest.to_le_bytes());
        out[16..24].copy_from_slice(&self.chunk_count.to_le_bytes());
        out[24..32].copy_from_slice(&self.payload_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Footer> {
        let whole = bytes.len() == FOOTER_LEN
            && u64_at(bytes, 0) == FOOTER_MAGIC
            && crc32c::crc32c(&bytes[12..]) == u32_at(bytes, 8);
        whole.then(|| Footer {
            digest: u32_at(bytes, 12),
            chunk_count: u64_at(bytes, 16),
            payload_bytes: u64_at(bytes, 24),
        })
    }
}
