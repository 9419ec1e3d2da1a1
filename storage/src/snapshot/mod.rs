//! Snapshots: files which hold the whole state as of some index, so that the log before it can go.
//!
//! ```text
//!  taken:     create ─▶ SnapshotFile  (snap/taking-N.tmp) ── finish ─┐
//!                                                                   ├─▶ snap/ID.snap ─▶ open, verify, source ─▶ prune
//!  received:  receive ─▶ Incoming     (snap/ID.part)  ── finish ────┘         └─ reject ─▶ snap/ID.bad
//! ```
//!
//! Invariants: a file has its final name only when it is whole and durable; its name says what is in it ([`SnapshotId`]),
//! and no byte of it depends on the node that wrote it, or on when; nothing that goes wrong with a snapshot touches the
//! log or another snapshot. Below the index that [`Snapshots::prune`] gives, and nowhere else, the log may go.
//!
//! `format.rs` has the bytes, `check.rs` verifies them piece by piece, `store.rs` is the folder.

mod background;
mod blocks;
mod check;
mod examine;
mod folder;
pub(crate) mod format;
pub(crate) mod id;
mod read;
mod receive;
mod reclaim;
pub(crate) mod scan;
mod store;
mod write;

pub use examine::{Examined, examine};
pub use id::{SnapshotId, SnapshotMeta};
pub use read::{SnapshotReader, SnapshotSource};
pub use receive::Incoming;
pub use reclaim::Reclaim;
pub use store::Snapshots;
pub use write::SnapshotFile;
