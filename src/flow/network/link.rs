//! The door to the network: what the network stage needs of it. The product's is `net::Net`; a simulator has its own.

use std::io;
use std::time::{Duration, Instant};

use net::{Event, Handled, Lane, Net, SendError};

use crate::flow::network::body::Body;

pub(crate) trait Link: Send + 'static {
    /// Queues a frame. A body of log records carries its own checksums; any other is covered by the frame's.
    fn send(
        &mut self,
        to: u64,
        lane: Lane,
        kind: u8,
        head: &[u8],
        body: Option<Body>,
    ) -> Result<(), SendError>;
    /// Hands on what is queued.
    fn flush(&mut self);
    /// Tells what has come, sleeping for it for `timeout` at the most.
    fn poll(
        &mut self,
        timeout: Option<Duration>,
        on: &mut impl FnMut(Event<'_>) -> Handled,
    ) -> io::Result<usize>;
}

/// The group's share of the node's connections.
pub(crate) struct GroupLink {
    pub(crate) net: Net<Body>,
    pub(crate) group: u32,
}

impl Link for GroupLink {
    fn send(
        &mut self,
        to: u64,
        lane: Lane,
        kind: u8,
        head: &[u8],
        body: Option<Body>,
    ) -> Result<(), SendError> {
        match body {
            Some(body @ Body::Pooled(_)) => self
                .net
                .send_covered(to, lane, kind, self.group, head, body),
            body => self.net.send(to, lane, kind, self.group, head, body),
        }
    }

    fn flush(&mut self) {
        self.net.flush();
    }

    fn poll(
        &mut self,
        timeout: Option<Duration>,
        on: &mut impl FnMut(Event<'_>) -> Handled,
    ) -> io::Result<usize> {
        let group = self.group;
        self.net
            .poll(Instant::now(), timeout, &mut |event| match event {
                // A frame for a group that is not here: of a later version, or of a node that was set up otherwise.
                Event::Frame {
                    peer,
                    group: other,
                    kind,
                    ..
                } if other != group => {
                    tracing::debug!(
                        peer,
                        group = other,
                        kind,
                        "a frame for a group that is not on this node"
                    );
                    Handled::Taken
                }
                event => on(event),
            })
    }
}
