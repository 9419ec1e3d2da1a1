//! The log of ringraft on disk: records, segments, files. It knows indexes and terms as numbers, and
//! nothing of roles.
//!
//! ```text
//!  append ─▶ Log ── one write per batch ──▶ segment files ──▶ start_flush … poll_flush ─▶ durable()
//!             │                                  │ mapped
//!             └── published: written() ─────▶ Reader ─▶ Slice, from any thread
//! ```
//!
//! - [`record`]: the one encoding of an entry.
//! - [`Log`] (`log/`): append, truncate, save the vote, flush, purge; [`Reader`]: read while it grows.
//! - `files/`: the small files beside the log: identity, term and vote, known peers, data loss, exclusion.
//! - [`snapshot`]: whole states in files of their own, so that the front of the log can go.
//! - `recovery/`: what a start does; [`decision`]: what it can find, and what it does about each.
//! - [`inspect`]: the same, without changing anything.
//! - [`scrub`]: reads the disk again in the background, and repairs what has gone bad.
//! - [`medium`]: the interface to disks, with [`medium::disk`] and [`medium::memory`] behind it; [`medium::probe`]: what the
//!   disk itself costs.
//!
//! The files are described byte by byte in `docs/file_format.md`.
//!
//! ```
//! use storage::record::{self, Header};
//! use storage::{Disk, Log, Options};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let tmp = tempfile::tempdir()?;
//! # let path = tmp.path();
//! let mut options = Options::default();
//! options.segment_bytes = 1 << 20;
//! options.max_record_bytes = 64 << 10;
//! let (mut log, recovered) = Log::open(Disk::new(path), options, 0xC1, 0, 1)?;
//! assert_eq!(recovered.last_index, 0);
//!
//! let header = Header { index: 1, term: 1, time_us: 0, origin: 1, token: 1, kind: 1 };
//! let mut batch = Vec::new();
//! record::encode_into(&mut batch, &header, b"hello");
//! log.append(&batch, 1, 1)?;
//!
//! let slice = log.reader().slice(1, 1, 4096).expect("readable before it is durable");
//! assert_eq!(slice.as_ref(), batch);
//!
//! log.start_flush()?;
//! log.wait_flush()?;
//! assert_eq!(log.durable(), 1);
//! log.close()?;
//! # Ok(())
//! # }
//! ```

mod damage;
pub mod decision;
mod error;
mod files;
pub mod inspect;
mod log;
pub mod medium;
mod options;
pub mod record;
mod recovery;
pub mod scrub;
pub mod snapshot;

#[cfg(test)]
mod tests;

pub use damage::{Damage, DataLoss};
pub use decision::Decision;
pub use error::StorageError;
pub use files::exclusion::Exclusion;
pub use files::identity::Identity;
pub use files::known_peers::KnownPeers;
pub use files::meta::Vote;
pub use log::flush_stats::FlushStats;
pub use log::reader::{Extent, Reader, Slice};
pub use log::{FlushState, Log};
pub use medium::descriptor::{
    MAX_DESCRIPTORS, MIN_DESCRIPTORS, address_space_limit, descriptor_limit,
};
pub use medium::disk::Disk;
pub use medium::flush::DiskFlusher;
pub use medium::low_priority::at_low_priority;
pub use medium::memory::Memory;
pub use medium::probe::flush_floor;
pub use medium::{Dir, FileId, FlushBackend, OnComplete};
pub use options::Options;
pub use recovery::recovered::Recovered;
pub use snapshot::{
    Incoming, Reclaim, SnapshotFile, SnapshotId, SnapshotMeta, SnapshotReader, SnapshotSource,
    Snapshots,
};
