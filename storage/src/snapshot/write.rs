//! Writing a snapshot: header, chunk by chunk, footer, flush, rename, flush of the folder.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;

use crate::error::{Doing, StorageError};
use crate::medium::Dir;
use crate::record::u32_at;
use crate::snapshot::blocks::Appender;
use crate::snapshot::folder::Folder;
use crate::snapshot::format::{
    FOOTER_LEN, Footer, Header, MOST_MEMBERS, chunk_crc, chunk_head, digest, header_crc,
};
use crate::snapshot::id::{FOLDER, SnapshotId, SnapshotMeta, UNFINISHED};

/// A snapshot being written. What is written here counts when [`SnapshotFile::finish`] has said so; dropped before, its
/// file is removed.
#[derive(Debug)]
pub struct SnapshotFile<D: Dir> {
    folder: Arc<Folder<D>>,
    name: String,
    out: Appender<D::File>,
    meta: SnapshotMeta,
    header_crc: u32,
    /// Number of the next chunk.
    number: u64,
    digest: u32,
    payload_bytes: u64,
    /// The chunk that is being filled.
    buffer: Vec<u8>,
    failed: Option<StorageError>,
    finished: bool,
}

impl<D: Dir> SnapshotFile<D> {
    pub(super) fn create(
        folder: Arc<Folder<D>>,
        meta: &SnapshotMeta,
    ) -> Result<SnapshotFile<D>, StorageError> {
        let number = {
            let mut shelf = folder.shelf();
            shelf.taken += 1;
            shelf.taken
        };
        let name = format!("{FOLDER}/taking-{number}.{UNFINISHED}");
        let path = folder.path(&name);
        if meta.members.len() > MOST_MEMBERS {
            let len = meta.members.len();
            let detail =
                format!("the members take {len} bytes, at most {MOST_MEMBERS} are allowed");
            return Err(StorageError::snapshot(&path, None, detail));
        }
        let header = Header {
            cluster_id: folder.owner.cluster_id,
            group_id: folder.owner.group_id,
            chunk_bytes: folder.manner.chunk_bytes,
            meta: meta.clone(),
        };
        let header = header.encode();
        let header_crc = header_crc(&header);
        let file = folder.dir.create_empty(&name).doing("create", &path)?;
        let buffer = Vec::with_capacity(folder.manner.chunk_bytes as usize);
        let out = Appender::new(file, 0, folder.manner)?;
        // From here on the file is removed when something goes wrong.
        let mut taking = SnapshotFile {
            folder,
            name,
            out,
            meta: meta.clone(),
            header_crc,
            number: 0,
            digest: digest(0, header_crc),
            payload_bytes: 0,
            buffer,
            failed: None,
            finished: false,
        };
        taking.out.push(&header)?;
        Ok(taking)
    }

    /// Bytes of the state written so far.
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes + self.buffer.len() as u64
    }

    /// Makes it durable and lets it count.
    ///
    /// # Errors
    /// The medium failed or is full, now or at an earlier write: there is no such snapshot then.
    pub fn finish(mut self) -> Result<SnapshotId, StorageError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        if !self.buffer.is_empty() {
            let rest = mem::take(&mut self.buffer);
            self.write_chunk(&rest)?;
        }
        let footer = Footer {
            digest: self.digest,
            chunk_count: self.number,
            payload_bytes: self.payload_bytes,
        };
        self.out.push(&footer.encode())?;
        debug_assert!(self.out.at() >= FOOTER_LEN as u64);
        let id = SnapshotId {
            index: self.meta.index,
            term: self.meta.term,
            bytes: self.out.at(),
            digest: self.digest,
        };
        self.out.finish()?;
        self.folder.publish(&self.name, id)?;
        self.finished = true;
        Ok(id)
    }

    fn write_chunk(&mut self, payload: &[u8]) -> Result<(), StorageError> {
        let head = chunk_head(self.header_crc, self.number, payload);
        debug_assert_eq!(
            u32_at(&head, 4),
            chunk_crc(self.header_crc, self.number, payload.len() as u32, payload)
        );
        self.out.push(&head)?;
        self.out.push(payload)?;
        self.digest = digest(self.digest, u32_at(&head, 4));
        self.number += 1;
        self.payload_bytes += payload.len() as u64;
        Ok(())
    }

    /// Writes full chunks as they come, and keeps the rest.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, StorageError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let chunk_bytes = self.folder.manner.chunk_bytes as usize;
        if self.buffer.is_empty() && bytes.len() >= chunk_bytes {
            self.write_chunk(&bytes[..chunk_bytes])?;
            return Ok(chunk_bytes);
        }
        let taken = bytes.len().min(chunk_bytes - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == chunk_bytes {
            let mut full = mem::take(&mut self.buffer);
            self.write_chunk(&full)?;
            full.clear();
            self.buffer = full;
        }
        Ok(taken)
    }
}

impl<D: Dir> Write for SnapshotFile<D> {
    /// # Errors
    /// The medium failed or is full: then every later call, and [`SnapshotFile::finish`], gives the same error.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes).map_err(|e| {
            self.failed = Some(e.clone());
            e.into_io()
        })
    }

    /// Does nothing: what is written counts with [`SnapshotFile::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<D: Dir> Drop for SnapshotFile<D> {
    fn drop(&mut self) {
        if !self.finished {
            // It means nothing, and if this fails the next start removes it.
            let _ = self.folder.dir.remove(&self.name);
        }
    }
}
