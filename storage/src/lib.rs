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
//! - [`Log`]: append, truncate, save the vote, flush, purge; [`Reader`]: read while it grows.
//! - [`snapshot`]: whole states in files of their own, so that the front of the log can go.
//! - [`recover`]: what a stop can leave behind, and what is done about it.
//! - [`inspect`]: the same, looked at without changing anything.
//! - [`scrub`]: reads what is on the disk again, in the background; [`mend`]: puts back what that found bad.
//! - [`mod@file`]: the door to the medium, with [`disk`] and [`memory`] behind it.
//! - [`probe`]: what the disk itself costs.
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

mod descriptor;
pub mod disk;
mod error;
mod evidence;
mod exclusion;
pub mod file;
mod flight;
mod flush;
mod heal;
mod identity;
pub mod inspect;
mod leisure;
mod log;
mod mark;
pub mod memory;
pub mod mend;
mod meta;
mod open;
mod options;
mod peers;
mod plan;
mod prepare;
pub mod probe;
mod reader;
pub mod record;
pub mod recover;
mod repair;
mod reset;
pub mod scrub;
mod segment;
pub mod snapshot;
mod source;
mod stats;
mod survey;
mod truncate;
#[cfg(all(target_os = "linux", feature = "io-uring"))]
mod uring;

#[cfg(test)]
mod tests;

pub use descriptor::{MAX_DESCRIPTORS, MIN_DESCRIPTORS, address_space_limit, descriptor_limit};
pub use disk::Disk;
pub use error::StorageError;
pub use exclusion::Exclusion;
pub use file::{Dir, FileId, FlushWay, OnComplete};
pub use flight::FlushState;
pub use flush::DiskFlusher;
pub use heal::{Heal, Wound};
pub use identity::Identity;
pub use leisure::at_leisure;
pub use log::{Log, Recovered};
pub use memory::Memory;
pub use meta::Vote;
pub use options::Options;
pub use peers::KnownPeers;
pub use probe::flush_floor;
pub use reader::{Extent, Reader, Slice};
pub use recover::Decision;
pub use snapshot::{
    Gone, Incoming, SnapshotFile, SnapshotId, SnapshotMeta, SnapshotReader, SnapshotSource,
    Snapshots,
};
pub use stats::FlushStats;
