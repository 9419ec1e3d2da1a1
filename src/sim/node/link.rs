//! A simulated node's door to the simulated network.

use std::io;
use std::time::Duration;

use net::{Event, Handled, Lane, Reason, Refusal, SendError};

use crate::flow::network::body::Body;
use crate::flow::network::link::Link;
use crate::raft::Message;
use crate::sim::network::{Fabric, Said, What};
use crate::wire;

/// The link of one life of a node. Nodes are numbered from 0 in here, and from 1 in the product.
#[derive(Debug)]
pub(crate) struct SimLink {
    me: usize,
    fabric: Fabric,
}

impl SimLink {
    pub(crate) fn new(me: usize, fabric: Fabric) -> Self {
        Self { me, fabric }
    }
}

impl Link for SimLink {
    fn send(
        &mut self,
        to: u64,
        lane: Lane,
        kind: u8,
        head: &[u8],
        body: Option<Body>,
    ) -> Result<(), SendError> {
        let to = to as usize - 1;
        let mut state = self.fabric.state();
        // What promises something is looked at as it leaves, whatever becomes of it then.
        if let Ok(wire::Frame::Message { message, .. }) = wire::decode(kind, head)
            && matches!(
                message,
                Message::Vote { .. }
                    | Message::VoteReply { .. }
                    | Message::AppendReply { .. }
                    | Message::HeartbeatReply { .. }
            )
        {
            state.said.push(Said {
                by: self.me,
                to,
                message,
            });
        }
        if state.way(self.me, to).seen.is_none() {
            return Err(SendError::Down);
        }
        let frame = What::Frame {
            kind,
            head: head.to_vec(),
            body: body.map_or_else(Vec::new, |body| body.as_ref().to_vec()),
        };
        if state.send(self.me, to, lane == Lane::Bulk, frame) {
            Ok(())
        } else {
            Err(SendError::Full)
        }
    }

    fn flush(&mut self) {}

    fn poll(
        &mut self,
        _timeout: Option<Duration>,
        on: &mut impl FnMut(Event<'_>) -> Handled,
    ) -> io::Result<usize> {
        let me = self.me;
        let mut state = self.fabric.state();
        let (peers, count) = state.shuffled_peers(me);
        let mut left = state.frames_a_poll();
        let mut taken = 0;
        for &from in &peers[..count] {
            state.way(me, from).held = false;
            while left > 0 {
                let Some(item) = state.way(me, from).ready.pop_front() else {
                    break;
                };
                let peer = from as u64 + 1;
                left -= 1;
                let handled = match &item.what {
                    What::Up {
                        incarnation,
                        replaces,
                    } => {
                        state.way(me, from).seen = Some(item.epoch);
                        state.news.push((me, from, item.epoch, true));
                        on(Event::Up {
                            peer,
                            incarnation: *incarnation,
                            replaces: *replaces,
                        })
                    }
                    What::Down => {
                        let way = state.way(me, from);
                        if way.seen.is_none_or(|seen| seen > item.epoch) {
                            continue; // It never heard of that connection, or has heard of its end.
                        }
                        way.seen = None;
                        state.news.push((me, from, item.epoch, false));
                        on(Event::Down {
                            peer,
                            reason: Reason::Closed,
                        })
                    }
                    &What::Refused { known, incarnation } => on(Event::Refused {
                        peer,
                        by_peer: true,
                        refusal: Refusal::Incarnation {
                            ours: known,
                            theirs: incarnation,
                        },
                    }),
                    What::Frame { .. } if state.way(me, from).seen != Some(item.epoch) => continue,
                    What::Frame { kind, head, body } => on(Event::Frame {
                        peer,
                        kind: *kind,
                        group: 0,
                        head,
                        body,
                    }),
                };
                if handled == Handled::Hold && matches!(item.what, What::Frame { .. }) {
                    let way = state.way(me, from);
                    way.ready.push_front(item);
                    way.held = true;
                    state.counts.add("network: frame put on hold");
                    break;
                }
                taken += 1;
            }
        }
        Ok(taken)
    }
}
