//! An embeddable, low-latency replicated log: Raft as a pipeline of single-writer stages linked by pre-allocated rings.
//!
//! Implement [`StateMachine`], start a [`Node`] on each machine with the same member list, and [`propose`](Node::propose):
//! a reply means that the command is durable on a majority and applied.
//!
//! ```
//! use ringraft::{Batch, Config, Consistency, Flush, Member, Node, NodeId, StateMachine};
//!
//! #[derive(Default)]
//! struct Sum(u64);
//!
//! impl StateMachine for Sum {
//!     fn apply(&mut self, batch: &mut Batch<'_>) -> std::io::Result<()> {
//!         while let Some((entry, reply)) = batch.next() {
//!             self.0 += entry.command.len() as u64;
//!             reply.extend_from_slice(&self.0.to_le_bytes());
//!         }
//!         Ok(())
//!     }
//!     fn query(&self, _query: &[u8], reply: &mut Vec<u8>) {
//!         reply.extend_from_slice(&self.0.to_le_bytes());
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! let members = vec![Member { id: NodeId(1), addr: listener.local_addr()?.to_string() }];
//! let config = Config { segment_bytes: 4 << 20, ..Config::new(NodeId(1), dir.path(), members) };
//! let node = Node::start_on(listener, config, Sum::default())?;
//!
//! node.wait_for_leader(std::time::Duration::from_secs(10)).expect("a group of one elects itself");
//! let reply = node.propose(b"hello")?.wait()?;
//! assert_eq!(reply.bytes, 5u64.to_le_bytes());
//! let sum = node.read(b"", Consistency::Linearizable)?.wait()?;
//! assert_eq!(sum.bytes, 5u64.to_le_bytes());
//! node.shutdown()?;
//! # Ok(()) }
//! ```
//!
//! # The way of an entry
//!
//! `ARCHITECTURE.md` draws it; the folders of `flow`, in the order in which an entry passes them: `consensus`, `append`,
//! `network`, `apply`; `request` has its answer. `raft` decides about terms, votes and commits, and does nothing; `flow` carries that out.
//!
//! # What is promised
//!
//! | answer | means |
//! |---|---|
//! | a [`Reply`] | durable on a majority, applied here, exactly at its log index |
//! | [`ProposeError::Unknown`] | may have been applied, or may still be |
//! | any other [`ProposeError`] | not applied, and never will be |
//!
//! [`session`] makes of an unknown outcome a known one: a command that is tried again counts once.

#![warn(unreachable_pub)]

#[doc(hidden)]
pub mod bench;
mod clock;
mod committed;
mod config;
mod entry;
mod error;
mod flow;
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod machine;
mod node;
mod raft;
mod request;
mod resources;
pub mod session;
#[cfg(feature = "sim")]
pub mod sim;
mod state_machine;
mod status;
mod types;
mod wire;

pub use committed::{Committed, ReadCommittedError};
pub use config::{Config, Flush, IdleWay, Lease, Member, Threads};
pub use error::{Fault, ProposeError, ShutdownError, StartError};
pub use host::driver::Driver;
pub use node::{Consistency, Node};
pub use request::outbox::{Outbox, OutboxId};
pub use request::pending::Pending;
pub use request::token::Reply;
pub use ringbuf::Notify;
pub use session::{Session, Sessions};
#[doc(hidden)]
pub use state_machine::Kind;
pub use state_machine::{Batch, Entry, SnapshotWriter, StateMachine};
pub use status::{
    Exclusion, HopStatus, PeerStatus, RefusalStatus, Repairs, RingStatus, Role, SnapshotStatus,
    Status, TransferStatus,
};
pub use types::{Index, NodeId, Term};
