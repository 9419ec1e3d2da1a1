//! Receiving a snapshot: a partial file that grows piece by piece, each verified before it is written.
//!
//! Its name holds the id, so that it is found again after a restart, and whoever sends the same snapshot goes on with it.
//! Invariant: what the file holds before [`Incoming::offset`] was verified; the last of it may still be gathered in memory,
//! as a block that is written when it is full, or a piece that is verified when it is whole. What a file of an earlier life
//! holds behind is overwritten.

use std::io;
use std::mem;
use std::sync::Arc;

use crate::error::{Doing, StorageError};
use crate::medium::{Dir, File as _};
use crate::snapshot::blocks::{Appender, Scan};
use crate::snapshot::check::Checker;
use crate::snapshot::folder::Folder;
use crate::snapshot::format::{FOOTER_LEN, HEAD_LEN};
use crate::snapshot::id::{PARTIAL, SnapshotId, SnapshotMeta};
use crate::snapshot::read::{SnapshotReader, read_piece};

/// A snapshot being received. Dropped before [`Incoming::finish`], what is there stays for the next attempt.
#[derive(Debug)]
pub struct Incoming<D: Dir> {
    folder: Arc<Folder<D>>,
    id: SnapshotId,
    /// `None` when the snapshot was there already.
    out: Option<Appender<D::File>>,
    checker: Checker,
    /// What came of a piece that is not whole yet.
    buffer: Vec<u8>,
    failed: Option<StorageError>,
}

impl<D: Dir> Incoming<D> {
    pub(super) fn open(
        folder: Arc<Folder<D>>,
        id: SnapshotId,
    ) -> Result<Incoming<D>, StorageError> {
        let name = id.file(PARTIAL);
        let path = folder.path(&name);
        if id.bytes < (HEAD_LEN + FOOTER_LEN) as u64 {
            let detail = format!("no snapshot is as short as {} bytes", id.bytes);
            return Err(StorageError::snapshot(&path, None, detail));
        }
        let there = {
            let mut shelf = folder.shelf();
            if shelf.receiving.contains(&id) {
                let detail = "it is being received already";
                return Err(StorageError::snapshot(&path, None, detail));
            }
            shelf.receiving.push(id);
            shelf.whole.contains(&id)
        };
        // From here on the claim is given back when something goes wrong.
        let mut incoming = Incoming {
            checker: Checker::new(id, folder.owner, &path),
            folder,
            id,
            out: None,
            buffer: Vec::new(),
            failed: None,
        };
        if !there {
            incoming.begin(&name)?;
        }
        Ok(incoming)
    }

    fn begin(&mut self, name: &str) -> Result<(), StorageError> {
        let path = self.folder.path(name);
        let dir = &self.folder.dir;
        let found = match dir.open(name) {
            Ok(file) if file.length().doing("read the length of", &path)? <= self.id.bytes => {
                Some(file)
            }
            // Longer than it can be: not what we wrote.
            Ok(_) => None,
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(StorageError::io("open", &path, e)),
        };
        let Some(file) = found else {
            let file = dir.create_empty(name).doing("create", &path)?;
            self.write_from(file, 0)?;
            // What is flushed of it is found again only with its name.
            return self.folder.sync_names();
        };
        // A flush that failed leaves pages that are there and will never be written: what counts is what the medium has.
        self.folder.manner.flush(&file)?;
        file.drop_cache();
        let mut scan = Scan::new(file.clone(), self.folder.manner);
        loop {
            match read_piece(&mut scan, &mut self.checker, &mut self.buffer) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                // The rest is written again, whatever is wrong with it.
                Err(error) => {
                    self.cut_back(&error);
                    break;
                }
            }
        }
        self.buffer.clear();
        self.write_from(file, self.checker.at())
    }

    fn write_from(&mut self, file: D::File, at: u64) -> Result<(), StorageError> {
        self.out = Some(Appender::new(file, at, self.folder.manner)?);
        Ok(())
    }

    /// Which it is.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// How many bytes of the file are here: the next ones begin there.
    pub fn offset(&self) -> u64 {
        match &self.out {
            None => self.id.bytes,
            Some(_) => self.checker.at() + self.buffer.len() as u64,
        }
    }

    /// Takes the bytes of the file from `offset` on, which must be [`Incoming::offset`].
    ///
    /// # Errors
    /// [`StorageError::Snapshot`] when a piece is bad: look at [`Incoming::offset`], which went back to where it begins,
    /// and have it sent again. After any other error the medium failed or is full: drop this, and receive once more later.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let expected = self.offset();
        let end = offset.checked_add(bytes.len() as u64);
        if offset != expected || end.is_none_or(|end| end > self.id.bytes) {
            let detail = format!(
                "{} bytes came for offset {offset}, but {expected} of {} are here",
                bytes.len(),
                self.id.bytes
            );
            let path = self.folder.path(&self.id.file(PARTIAL));
            return Err(StorageError::snapshot(&path, None, detail));
        }
        let result = self.take(bytes);
        if let Err(error) = &result {
            self.buffer.clear();
            match error {
                StorageError::Io { .. } => self.failed = Some(error.clone()),
                _ => self.cut_back(error),
            }
        }
        result
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        while !bytes.is_empty() {
            if self.buffer.is_empty() {
                let need = self.checker.next_len(bytes)?;
                if let Some((piece, rest)) = bytes.split_at_checked(need) {
                    self.take_piece(piece)?;
                    bytes = rest;
                    continue;
                }
            }
            let need = self.checker.next_len(&self.buffer)?;
            let more = bytes.len().min(need - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..more]);
            bytes = &bytes[more..];
            if self.buffer.len() == self.checker.next_len(&self.buffer)? {
                let mut piece = mem::take(&mut self.buffer);
                self.take_piece(&piece)?;
                piece.clear();
                self.buffer = piece;
            }
        }
        Ok(())
    }

    /// Verifies a whole piece and writes it.
    fn take_piece(&mut self, piece: &[u8]) -> Result<(), StorageError> {
        self.checker.verify(piece)?;
        let out = self.out.as_mut().expect("nothing is written otherwise");
        out.push(piece)
    }

    /// A piece that is bad is no part of it; when the pieces together are bad, none is.
    fn cut_back(&mut self, error: &StorageError) {
        let all = match error {
            StorageError::Snapshot { bytes, .. } => bytes.as_ref().is_some_and(|b| b.start == 0),
            _ => false,
        };
        if all {
            let path = self.folder.path(&self.id.file(PARTIAL));
            self.checker = Checker::new(self.id, self.folder.owner, &path);
            if let Some(Err(failed)) = self.out.as_mut().map(Appender::begin_again) {
                self.failed = Some(failed);
            }
        }
    }

    /// Makes it durable and lets it count, when all of it is here. Returns what it says of itself.
    ///
    /// # Errors
    /// Something is missing yet, or the medium failed: what is here stays for the next attempt.
    pub fn finish(mut self) -> Result<SnapshotMeta, StorageError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        if self.out.is_none() {
            let (file, held) = self.folder.open_file(self.id)?;
            let reader = SnapshotReader::open(&self.folder, file, held, self.id)?;
            return Ok(reader.meta().clone());
        }
        let name = self.id.file(PARTIAL);
        if !self.checker.is_done() {
            let detail = format!("{} of {} bytes are here", self.offset(), self.id.bytes);
            return Err(StorageError::snapshot(
                &self.folder.path(&name),
                None,
                detail,
            ));
        }
        let out = self.out.take();
        out.expect("there is one for what was not there").finish()?;
        self.folder.publish(&name, self.id)?;
        let meta = self.checker.meta().cloned();
        Ok(meta.expect("all of it was verified"))
    }

    /// Removes what is here of it.
    ///
    /// # Errors
    /// The medium failed.
    pub fn discard(mut self) -> Result<(), StorageError> {
        match self.out.take() {
            None => Ok(()),
            Some(_) => self.folder.remove(&self.id.file(PARTIAL)),
        }
    }
}

impl<D: Dir> Drop for Incoming<D> {
    fn drop(&mut self) {
        if let (Some(out), None) = (&mut self.out, &self.failed) {
            // For the next attempt; without it that one has a block less.
            let _ = out.write_rest();
        }
        let mut shelf = self.folder.shelf();
        shelf.receiving.retain(|id| *id != self.id);
    }
}
