//! What can be chosen when a log is opened.

use crate::error::StorageError;
use crate::log::segment::RECORDS_AT;
use crate::log::tail_marker::MARKER_LEN;
use crate::medium::{FlushBackend, FlushOptions, OnComplete};
use crate::record::{MAX_PAYLOAD, encoded_len};
use crate::snapshot::format::CHUNK_SIZES;

/// Options of a log.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// Length of a segment file in bytes, a multiple of 4096. Each is allocated and written with zeros
    /// before it is used, and space comes free segment by segment. May differ from start to start:
    /// segments which are there keep their length. Default: 64 MiB. Maximum: 16 GiB.
    pub segment_bytes: u64,
    /// The largest payload of a record, in bytes. A record never spans segments, so it must fit into
    /// one with some room: 8 KiB less than a segment. Default: 4 MiB.
    pub max_record_bytes: usize,
    /// `false`: nothing is flushed, a flush is over at once. A process that dies loses nothing; a power
    /// cut may lose everything since the start, and may leave a log that does not open. Default: true.
    pub sync: bool,
    /// How to flush. Default: [`FlushBackend::Auto`].
    pub flush: FlushBackend,
    /// Payload bytes of a snapshot's chunk: what is checked, sent and resumed as a whole. The same on all nodes: with
    /// another one the same state makes another file, and a transfer that one node began cannot be continued by
    /// another. Default: 64 KiB. Minimum: 256. Maximum: 1 MiB.
    pub snapshot_chunk_bytes: u32,
    /// The node has peers which hold what is committed: something that had been durable and went bad is cut off instead
    /// of refused, and [`crate::Recovered::data_loss`] says what the node must not do before it has it again. A node without
    /// other voters must leave it off: nobody could give anything back. Default: false.
    pub heal: bool,
    /// A directory that is empty is made in the place of one that is gone for good: nothing in it says what the node has
    /// promised, so it is born with [`crate::Recovered::data_loss`], nothing known and the vote lost, before anything in it counts.
    /// On a directory that is not empty it changes nothing. Default: false.
    pub replaces: bool,
    /// What sort of content the log gets, in a number of the user's own: a new directory keeps it, an older one says in
    /// [`crate::Identity::kind`] what it was made with. Default: 0, nothing is known.
    pub kind: u16,
    /// Called on the flush thread when a flush is over. Not called where
    /// [`crate::Log::completion_fd`] is there instead. Default: none.
    pub on_complete: Option<OnComplete>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 64 << 20,
            max_record_bytes: 4 << 20,
            sync: true,
            flush: FlushBackend::Auto,
            snapshot_chunk_bytes: 64 << 10,
            heal: false,
            replaces: false,
            kind: 0,
            on_complete: None,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("segment_bytes", &self.segment_bytes)
            .field("max_record_bytes", &self.max_record_bytes)
            .field("sync", &self.sync)
            .field("flush", &self.flush)
            .field("snapshot_chunk_bytes", &self.snapshot_chunk_bytes)
            .field("heal", &self.heal)
            .field("replaces", &self.replaces)
            .field("kind", &self.kind)
            .field("on_complete", &self.on_complete.is_some())
            .finish()
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        let (segment, record) = (self.segment_bytes, self.max_record_bytes);
        if !segment.is_multiple_of(4096) || segment > 16 << 30 {
            let text = format!("segment_bytes = {segment} must be a multiple of 4096 up to 16 GiB");
            return Err(StorageError::Config(text));
        }
        let room = segment.saturating_sub(RECORDS_AT + MARKER_LEN as u64);
        if record > MAX_PAYLOAD || encoded_len(record) as u64 > room {
            let text = format!(
                "max_record_bytes = {record} does not fit: a segment of {segment} bytes has room for \
                 records of {room} bytes, header included, and the format ends at {MAX_PAYLOAD}"
            );
            return Err(StorageError::Config(text));
        }
        let chunk = self.snapshot_chunk_bytes;
        if !CHUNK_SIZES.contains(&chunk) {
            let (least, most) = (CHUNK_SIZES.start(), CHUNK_SIZES.end());
            let text = format!("snapshot_chunk_bytes = {chunk} must be {least} to {most}");
            return Err(StorageError::Config(text));
        }
        Ok(())
    }

    pub(crate) fn flush_options(&self) -> FlushOptions {
        let on_complete = self.on_complete.clone();
        FlushOptions {
            way: self.flush,
            sync: self.sync,
            on_complete,
        }
    }
}
