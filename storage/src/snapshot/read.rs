//! Reading a snapshot: the state in it, or the file as it is.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Doing, StorageError};
use crate::medium::{Dir, File};
use crate::snapshot::blocks::Scan;
use crate::snapshot::check::{Checker, Piece};
use crate::snapshot::folder::Folder;
use crate::snapshot::id::{SnapshotId, SnapshotMeta};

/// The state in a snapshot. Each chunk is verified before a byte of it is handed out; the end of the file only after the
/// footer has confirmed the whole.
#[derive(Debug)]
pub struct SnapshotReader<D: Dir> {
    scan: Scan<D::File>,
    checker: Checker,
    /// The chunk at hand, and what of it was not handed out yet.
    buffer: Vec<u8>,
    unread: Range<usize>,
    /// Keeps the file whole when the snapshot is pruned.
    _held: Arc<()>,
}

impl<D: Dir> SnapshotReader<D> {
    pub(super) fn open(
        folder: &Folder<D>,
        file: D::File,
        held: Arc<()>,
        id: SnapshotId,
    ) -> Result<SnapshotReader<D>, StorageError> {
        let checker = Checker::new(id, folder.owner, file.path());
        let mut reader = SnapshotReader {
            scan: Scan::new(file, folder.manner),
            checker,
            buffer: Vec::new(),
            unread: 0..0,
            _held: held,
        };
        reader.advance()?;
        Ok(reader)
    }

    /// What the snapshot says of itself.
    pub fn meta(&self) -> &SnapshotMeta {
        self.checker.meta().expect("`open` has read the header")
    }

    /// Bytes of the state in all.
    pub fn payload_bytes(&self) -> u64 {
        let bytes = self.checker.payload_bytes();
        bytes.expect("`open` has read the header")
    }

    /// Reads the next piece. `false` at the end.
    fn advance(&mut self) -> Result<bool, StorageError> {
        match read_piece(&mut self.scan, &mut self.checker, &mut self.buffer)? {
            None => return Ok(false),
            Some(Piece::Chunk(payload)) => self.unread = payload,
            Some(Piece::Header | Piece::Footer) => {}
        }
        Ok(true)
    }

    /// Reads what is left, for the checksums only. `read` hears of each piece how many bytes it has.
    pub(super) fn verify_rest(&mut self, mut read: impl FnMut(u64)) -> Result<(), StorageError> {
        let mut at = self.checker.at();
        while self.advance()? {
            read(self.checker.at() - at);
            at = self.checker.at();
        }
        Ok(())
    }
}

/// Reads and verifies the next piece of a file, into `buffer`. `None` at the end.
pub(super) fn read_piece<F: File>(
    scan: &mut Scan<F>,
    checker: &mut Checker,
    buffer: &mut Vec<u8>,
) -> Result<Option<Piece>, StorageError> {
    let at = checker.at();
    buffer.clear();
    loop {
        let (have, need) = (buffer.len(), checker.next_len(buffer)?);
        if have == need {
            break;
        }
        buffer.resize(need, 0);
        let from = at + have as u64;
        match scan.read_at(from, &mut buffer[have..]) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                let bytes = from..at + need as u64;
                let detail = "the file ends in the midst of it";
                return Err(StorageError::snapshot(scan.file().path(), bytes, detail));
            }
            Err(e) => return Err(e).doing_at("read", scan.file().path(), from),
        }
        if checker.meta().is_some() {
            break;
        }
    }
    if buffer.is_empty() {
        return Ok(None);
    }
    checker.verify(buffer).map(Some)
}

impl<D: Dir> Read for SnapshotReader<D> {
    /// # Errors
    /// `InvalidData` around a [`StorageError::Snapshot`] when the next chunk is bad; else what the medium said.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.unread.is_empty() && !out.is_empty() {
            if !self.advance().map_err(StorageError::into_io)? {
                return Ok(0);
            }
        }
        let taken = out.len().min(self.unread.len());
        out[..taken].copy_from_slice(&self.buffer[self.unread.start..][..taken]);
        self.unread.start += taken;
        Ok(taken)
    }
}

/// A snapshot's file as it is, to be sent. While this lives it can be read, even when the snapshot is pruned.
#[derive(Debug)]
pub struct SnapshotSource<D: Dir> {
    /// Open: the system keeps the bytes when the name goes.
    scan: Scan<D::File>,
    id: SnapshotId,
    _held: Arc<()>,
}

impl<D: Dir> SnapshotSource<D> {
    pub(super) fn new(scan: Scan<D::File>, held: Arc<()>, id: SnapshotId) -> SnapshotSource<D> {
        SnapshotSource {
            scan,
            id,
            _held: held,
        }
    }

    /// Which it is.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.id.bytes
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.id.bytes == 0
    }

    /// Fills `out` from `offset` on; what is returned is less than its length only at the end of the file. The bytes are
    /// not verified here: whoever receives them does.
    ///
    /// # Errors
    /// The medium failed.
    pub fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<usize, StorageError> {
        let left = self.id.bytes.saturating_sub(offset);
        let taken = left.min(out.len() as u64) as usize;
        if taken == 0 {
            return Ok(0);
        }
        let read = self.scan.read_at(offset, &mut out[..taken]);
        read.doing_at("read", self.scan.file().path(), offset)?;
        Ok(taken)
    }
}
