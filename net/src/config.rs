//! Every limit of the network, with its default and what it does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::frame::HEADER_BYTES;
use crate::names::Resolver;

/// The configuration of a [`Net`](crate::Net). Build it with [`Config::new`] and change what should
/// differ.
#[derive(Clone, Debug)]
pub struct Config {
    /// Keeps apart clusters that can reach each other; the same on every node.
    pub cluster_id: u64,
    /// This node. Of two nodes the one with the smaller id dials first.
    pub node_id: u64,
    /// Names this node's data directory; a peer refuses a node that comes back with another one.
    pub incarnation: u64,
    /// What sort of content the cluster shares, in a number of the user's own; the same on every node that knows it. A node
    /// of another kind is refused. Default: 0, nothing is known.
    pub kind: u64,
    /// As long as this is set, a hello says that the directory takes the place of one that is gone, and that the node
    /// promises nothing that the old one could have promised otherwise: a peer that knows the old incarnation takes it in
    /// then, and refuses the old one. Default: not set.
    pub replaces: Arc<AtomicBool>,
    /// Incarnations of peers that are known from earlier, as `(node, incarnation)`. A peer that is
    /// not in this list is taken at its first word, and held to it for as long as this process
    /// lives. Default: none.
    pub known_incarnations: Vec<(u64, u64)>,

    /// The longest frame, header included, in both directions; the same on every node. Default: 4
    /// MiB + 64 KiB. Minimum: 1 KiB. Maximum: 1 GiB.
    pub max_frame_bytes: usize,
    /// Bytes that wait on the small lane to one peer; beyond it a send is `Full`. Default: 256 KiB.
    /// Minimum: 1 KiB.
    pub small_queue_bytes: usize,
    /// Bytes that wait on the bulk lane to one peer; beyond it a send is `Full`. Default: 16 MiB.
    /// Minimum: `max_frame_bytes`.
    pub bulk_queue_bytes: usize,
    /// Frames that wait on the bulk lane to one peer; beyond it a send is `Full`. Default: 512.
    pub bulk_queue_frames: usize,
    /// What one connection reads into. A longer frame makes it grow for a while. Default: 512 KiB.
    /// Minimum: 1 KiB.
    pub read_buffer_bytes: usize,
    /// Bulk that is given to the kernel before the network takes it; a small frame waits behind so
    /// much at most (TCP_NOTSENT_LOWAT, on Linux). Default: 128 KiB.
    pub unsent_bytes: u32,
    /// The kernel's send and receive buffer of each connection. Default: `None`, the system tunes
    /// them itself.
    pub socket_buffer_bytes: Option<usize>,
    /// Connections that have been accepted and have not said who they are. One more evicts the
    /// oldest. Default: 64.
    pub max_strangers: usize,

    /// The pause after the first failed dial; it doubles with each further one. Default: 10 ms.
    /// Minimum: 1 ms.
    pub backoff_min: Duration,
    /// The longest pause between dials; each pause is shortened at random by up to a half. Default:
    /// 500 ms.
    pub backoff_max: Duration,
    /// A connection that is not made, or has not said who it is, by then is closed. Default: 2 s.
    pub hello_timeout: Duration,
    /// A connection on which nothing was sent for so long sends a ping. Default: 500 ms. Maximum:
    /// half of any node's `stall_timeout`.
    pub keepalive: Duration,
    /// A connection on which nothing arrives, or that takes none of what waits to be sent, for so
    /// long is closed. A connection whose frame is on hold is not expected to bring anything.
    /// Default: 3 s. Minimum: twice `keepalive`.
    pub stall_timeout: Duration,
    /// How host names of peers are looked up. Default: as the system does.
    pub resolver: Resolver,
    /// Makes the pauses between dials differ from node to node. Default: the node id.
    pub seed: u64,
}

impl Config {
    /// The defaults for this node.
    pub fn new(cluster_id: u64, node_id: u64, incarnation: u64) -> Self {
        Self {
            cluster_id,
            node_id,
            incarnation,
            kind: 0,
            replaces: Arc::default(),
            known_incarnations: Vec::new(),
            max_frame_bytes: (4 << 20) + (64 << 10),
            small_queue_bytes: 256 << 10,
            bulk_queue_bytes: 16 << 20,
            bulk_queue_frames: 512,
            read_buffer_bytes: 512 << 10,
            unsent_bytes: 128 << 10,
            socket_buffer_bytes: None,
            max_strangers: 64,
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(500),
            hello_timeout: Duration::from_secs(2),
            keepalive: Duration::from_millis(500),
            stall_timeout: Duration::from_secs(3),
            resolver: Resolver::default(),
            seed: node_id,
        }
    }

    /// Checks each field and how they relate.
    pub(crate) fn check(&self) -> io::Result<()> {
        let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        for (name, value) in [
            ("max_frame_bytes", self.max_frame_bytes),
            ("small_queue_bytes", self.small_queue_bytes),
            ("read_buffer_bytes", self.read_buffer_bytes),
        ] {
            if !(1 << 10..=1 << 30).contains(&value) {
                return wrong(format!("{name}: {value} is not in 1 KiB ..= 1 GiB"));
            }
        }
        if self.bulk_queue_bytes < self.max_frame_bytes {
            return wrong(format!(
                "bulk_queue_bytes: {} is less than max_frame_bytes ({}): the longest frame could \
                 never be sent",
                self.bulk_queue_bytes, self.max_frame_bytes
            ));
        }
        if !(1..=1 << 20).contains(&self.bulk_queue_frames) {
            return wrong(format!(
                "bulk_queue_frames: {} is not in 1 ..= 2^20",
                self.bulk_queue_frames
            ));
        }
        if !(1..=1 << 14).contains(&self.max_strangers) {
            return wrong(format!(
                "max_strangers: {} is not in 1 ..= 2^14",
                self.max_strangers
            ));
        }
        if self.unsent_bytes < HEADER_BYTES as u32 {
            return wrong(format!(
                "unsent_bytes: {} does not even hold a header",
                self.unsent_bytes
            ));
        }
        if self.backoff_min < Duration::from_millis(1) || self.backoff_max < self.backoff_min {
            return wrong(format!(
                "backoff_min, backoff_max: {:?} and {:?} are not at least 1ms and in order",
                self.backoff_min, self.backoff_max
            ));
        }
        if self.hello_timeout.is_zero() || self.keepalive.is_zero() {
            return wrong("hello_timeout and keepalive are more than 0".into());
        }
        if self.stall_timeout < self.keepalive * 2 {
            return wrong(format!(
                "stall_timeout: {:?} is less than twice keepalive ({:?}): one late ping would \
                 close the connection",
                self.stall_timeout, self.keepalive
            ));
        }
        for (at, (node, incarnation)) in self.known_incarnations.iter().enumerate() {
            let earlier = self.known_incarnations[..at]
                .iter()
                .find(|(other, _)| other == node);
            if let Some((_, other)) = earlier.filter(|(_, other)| other != incarnation) {
                return wrong(format!(
                    "known_incarnations: node {node} has two, {other:#x} and {incarnation:#x}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_agree_with_each_other() {
        Config::new(1, 2, 3)
            .check()
            .expect("the defaults are right");
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_field_and_the_values() {
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::new(1, 2, 3);
            change(&mut config);
            config.check().expect_err("should be refused").to_string()
        };
        assert!(refused(|c| c.max_frame_bytes = 5).contains("max_frame_bytes: 5"));
        assert!(
            refused(|c| c.bulk_queue_bytes = 4 << 20)
                .contains("4194304 is less than max_frame_bytes")
        );
        assert!(refused(|c| c.bulk_queue_frames = 0).contains("bulk_queue_frames: 0"));
        assert!(refused(|c| c.max_strangers = 0).contains("max_strangers: 0"));
        assert!(refused(|c| c.backoff_max = Duration::from_millis(1)).contains("10ms and 1ms"));
        assert!(
            refused(|c| c.stall_timeout = Duration::from_millis(900)).contains("twice keepalive")
        );
        assert!(
            refused(|c| c.known_incarnations = vec![(3, 1), (3, 2)]).contains("node 3 has two")
        );
    }
}
