//! Verifying a snapshot file piece by piece, from the front: header, chunks, footer. The reader, the background check and
//! the receiver all go through this.
//!
//! Invariant: everything before [`Checker::at`] was verified, and belongs to the snapshot that the id names.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::StorageError;
use crate::record::u32_at;
use crate::snapshot::format::{
    CHUNK_HEAD_LEN, FOOTER_LEN, Footer, HEAD_LEN, Header, chunk_crc, digest, header_crc,
};
use crate::snapshot::id::{SnapshotId, SnapshotMeta};

/// Whose snapshots these are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) cluster_id: u64,
    pub(super) group_id: u32,
}

/// What was verified so far of one file.
#[derive(Debug)]
pub(super) struct Checker {
    id: SnapshotId,
    /// `None`: anybody's will do.
    owner: Option<Owner>,
    path: PathBuf,
    /// Everything before was verified.
    at: u64,
    header: Option<Known>,
    /// Number of the next chunk.
    number: u64,
    digest: u32,
}

/// What the header said.
#[derive(Debug)]
struct Known {
    meta: SnapshotMeta,
    chunk_bytes: u32,
    len: u64,
    crc: u32,
}

/// What a piece was, with the place of its payload in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Header,
    Chunk(Range<usize>),
    Footer,
}

impl Checker {
    pub(super) fn new(id: SnapshotId, owner: impl Into<Option<Owner>>, path: &Path) -> Checker {
        Checker {
            id,
            owner: owner.into(),
            path: path.into(),
            at: 0,
            header: None,
            number: 0,
            digest: 0,
        }
    }

    /// How far the file was verified.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Whether all of it was.
    pub(super) fn is_done(&self) -> bool {
        self.at == self.id.bytes
    }

    /// What the header says; `None` before it was verified.
    pub(super) fn meta(&self) -> Option<&SnapshotMeta> {
        self.header.as_ref().map(|header| &header.meta)
    }

    /// Payload bytes in the whole file; `None` before the header was verified.
    pub(super) fn payload_bytes(&self) -> Option<u64> {
        let header = self.header.as_ref()?;
        let body = self.id.bytes - header.len - FOOTER_LEN as u64;
        let chunks = body.div_ceil(CHUNK_HEAD_LEN as u64 + u64::from(header.chunk_bytes));
        Some(body - chunks * CHUNK_HEAD_LEN as u64)
    }

    fn bad(&self, len: usize, detail: impl Into<String>) -> StorageError {
        StorageError::snapshot(&self.path, self.at..self.at + len as u64, detail)
    }

    /// How many bytes the next piece has, given its first bytes. With too few of them: how many are needed to tell.
    /// 0 at the end.
    pub(super) fn next_len(&self, bytes: &[u8]) -> Result<usize, StorageError> {
        let Some(header) = &self.header else {
            let Some(head) = bytes.first_chunk() else {
                return Ok(HEAD_LEN);
            };
            let len = Header::len(head).map_err(|why| self.bad(HEAD_LEN, why.0))?;
            if (len + FOOTER_LEN) as u64 > self.id.bytes {
                return Err(self.bad(HEAD_LEN, "the file is too short for its header"));
            }
            return Ok(len);
        };
        let left = self.id.bytes - self.at;
        let footer = FOOTER_LEN as u64;
        if left <= footer {
            return Ok(left as usize);
        }
        let chunk = CHUNK_HEAD_LEN as u64 + u64::from(header.chunk_bytes);
        Ok(chunk.min(left - footer) as usize)
    }

    /// Verifies the next piece; `bytes` are all of it. What is wrong says which bytes of the file.
    pub(super) fn verify(&mut self, bytes: &[u8]) -> Result<Piece, StorageError> {
        let piece = if self.header.is_none() {
            self.verify_header(bytes)?;
            Piece::Header
        } else if self.id.bytes - self.at == FOOTER_LEN as u64 {
            self.verify_footer(bytes)?;
            Piece::Footer
        } else {
            Piece::Chunk(self.verify_chunk(bytes)?)
        };
        self.at += bytes.len() as u64;
        Ok(piece)
    }

    fn verify_header(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let header = match Header::decode(bytes, &self.path)? {
            Ok(header) => header,
            Err(why) => return Err(self.bad(bytes.len(), why.0)),
        };
        let names = self.owner.map(|owner| {
            [
                ("cluster", header.cluster_id, owner.cluster_id),
                ("group", header.group_id.into(), owner.group_id.into()),
            ]
        });
        for (what, found, expected) in names.into_iter().flatten() {
            if found != expected {
                return Err(StorageError::Foreign {
                    path: self.path.clone(),
                    what,
                    found,
                    expected,
                });
            }
        }
        let (found, wanted) = (&header.meta, self.id);
        if (found.index, found.term) != (wanted.index, wanted.term) {
            let detail = format!(
                "the header says index {} of term {}, it should be {} of term {}",
                found.index, found.term, wanted.index, wanted.term
            );
            return Err(self.bad(bytes.len(), detail));
        }
        // Where chunks and footer are follows from the length: it has to come out even.
        let (len, footer) = (bytes.len() as u64, FOOTER_LEN as u64);
        let chunk = CHUNK_HEAD_LEN as u64 + u64::from(header.chunk_bytes);
        let last = (self.id.bytes - len - footer) % chunk;
        if last != 0 && last <= CHUNK_HEAD_LEN as u64 {
            let detail = format!("no snapshot with this header has {} bytes", self.id.bytes);
            return Err(self.bad(bytes.len(), detail));
        }
        let crc = header_crc(bytes);
        self.digest = digest(0, crc);
        self.header = Some(Known {
            meta: header.meta,
            chunk_bytes: header.chunk_bytes,
            len,
            crc,
        });
        Ok(())
    }

    fn verify_chunk(&mut self, bytes: &[u8]) -> Result<Range<usize>, StorageError> {
        let header = self.header.as_ref().expect("the header comes first");
        let payload = CHUNK_HEAD_LEN..bytes.len();
        let (len, crc) = (u32_at(bytes, 0), u32_at(bytes, 4));
        let number = self.number;
        if len as usize != payload.len()
            || chunk_crc(header.crc, number, len, &bytes[payload.clone()]) != crc
        {
            let detail = format!("the checksum of chunk {number} does not match");
            return Err(self.bad(bytes.len(), detail));
        }
        self.digest = digest(self.digest, crc);
        self.number += 1;
        Ok(payload)
    }

    fn verify_footer(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let Some(footer) = Footer::decode(bytes) else {
            return Err(self.bad(bytes.len(), "the checksum of the footer does not match"));
        };
        let should_be = Footer {
            digest: self.id.digest,
            chunk_count: self.number,
            payload_bytes: self.payload_bytes().expect("the header was read"),
        };
        if footer != should_be || self.digest != self.id.digest {
            // Every piece is sound, and together they are another snapshot: which one is wrong is not known.
            let detail = format!(
                "digest {:08x} of its pieces, {:08x} in its footer, {:08x} in its name",
                self.digest, footer.digest, self.id.digest
            );
            return Err(StorageError::snapshot(&self.path, 0..self.id.bytes, detail));
        }
        Ok(())
    }
}
