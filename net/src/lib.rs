//! The network of ringraft: checksummed frames between the nodes of a cluster, over one TCP
//! connection per pair of nodes.
//!
//! It knows frames, connections and peers, and nothing of what a message means. It has no threads:
//! one owner calls [`Net::poll`], which waits for sockets, for other threads ([`Waker`]) and for
//! foreign events ([`Net::watch`]) in one place.
//!
//! - **Who connects.** Either of two nodes dials, without ever waiting, and again and again with a
//!   growing pause; the one with the larger id gives the other a start. When both do at once, the
//!   connection stays that the smaller id has made. Both say who they are first; a
//!   node of another cluster, a stranger, or a known node with another data directory is refused
//!   (but for one that says that it has lost the old one), and both logs say why.
//! - **Names.** A peer that is configured by a host name is looked up at each dial, at most once a
//!   second, on a thread that only this lookup holds up. A name that is not known is a node that is
//!   not reached; the addresses that were found last serve until there are others.
//! - **Two lanes.** Between any two frames the small lane goes first, and little bulk is given to
//!   the kernel ahead of it. A frame's body is written from where it lies.
//! - **Limits.** Queues, buffers, frames and strangers are bounded ([`Config`]); nothing is
//!   allocated per frame. A consumer without room puts a frame on hold, and TCP holds the sender
//!   back.
//! - **No promise of delivery.** What is queued for a peer is dropped when its connection goes; its
//!   user sends again. While a connection lasts, the frames of a lane arrive in order and once.
//!
//! Whoever can reach the port and knows the cluster's ids can speak as a node: there is no
//! authentication here. Keep the port within a trusted network.
//!
//! ```
//! use std::net::TcpListener;
//! use std::time::Instant;
//! use net::{Config, Event, Handled, Lane, Net};
//!
//! # fn main() -> std::io::Result<()> {
//! let (one, two) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
//! let addresses = [(1, one.local_addr()?), (2, two.local_addr()?)];
//! let mut one: Net<Vec<u8>> = Net::new(Config::new(7, 1, 100), one)?;
//! let mut two: Net<Vec<u8>> = Net::new(Config::new(7, 2, 200), two)?;
//! one.set_peers(&addresses);
//! two.set_peers(&addresses);
//! let mut received = Vec::new();
//! while received.is_empty() {
//!     let mut up = false;
//!     one.poll(Instant::now(), Some(std::time::Duration::from_millis(1)), &mut |event| {
//!         up |= matches!(event, Event::Up { peer: 2, .. });
//!         Handled::Taken
//!     })?;
//!     if up {
//!         let body = Some(b"hello".to_vec());
//!         one.send(2, Lane::Small, 1, 0, b"to all", body).expect("it has just come up");
//!         one.flush();
//!     }
//!     two.poll(Instant::now(), Some(std::time::Duration::from_millis(1)), &mut |event| {
//!         if let Event::Frame { peer: 1, head: b"to all", body, .. } = event {
//!             received.extend_from_slice(body);
//!         }
//!         Handled::Taken
//!     })?;
//! }
//! assert_eq!(received, b"hello");
//! # Ok(())
//! # }
//! ```

mod config;
mod conn;
mod conns;
mod event;
mod event_loop;
mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod hello;
mod inbox;
mod lifecycle;
mod names;
mod net;
mod outbox;
mod peer;
mod socket;
mod waker;

pub use crate::config::Config;
pub use crate::event::{Event, Handled, Reason, SendError, Stats};
pub use crate::frame::{FIRST_RESERVED_KIND, FrameError, HEADER_BYTES, MAX_HEAD_BYTES};
pub use crate::hello::{OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, Refusal};
pub use crate::names::Resolver;
pub use crate::net::Net;
pub use crate::outbox::{Lane, MAX_SMALL_FRAME_BYTES};
pub use crate::waker::Waker;

#[cfg(test)]
mod tests;
