//! The network stage: messages leave for the peers (`send`) and arrive from them (`receive`), through a `link`.

pub(crate) mod body;
pub(crate) mod link;
pub(crate) mod receive;
pub(crate) mod send;

use std::sync::Arc;
use std::time::Duration;

use ringbuf::Receiver;
use storage::Reader;

use crate::error::Fault;
use crate::flow::network::body::Pool;
use crate::flow::network::link::Link;
use crate::flow::network::receive::Inbound;
use crate::flow::network::send::Outbound;
use crate::flow::rings::{SendBulk, SendSmall, SendTransfer};
use crate::flow::shared::Shared;

/// The network stage: this file has the half that sends, `receive.rs` the other.
pub(crate) struct Network<L: Link> {
    link: L,
    outbound: Outbound,
    inbound: Inbound,
}

impl<L: Link> Network<L> {
    pub(crate) fn new(
        link: L,
        reader: Reader,
        small: Receiver<SendSmall>,
        bulk: Receiver<SendBulk>,
        transfer: Receiver<SendTransfer>,
        inbound: Inbound,
        shared: Arc<Shared>,
    ) -> Self {
        let pool = Arc::new(Pool::new());
        let outbound = Outbound {
            reader,
            small,
            bulk,
            transfer,
            shared,
            pool,
            piggyback: Arc::from([]),
        };
        Self {
            link,
            outbound,
            inbound,
        }
    }

    /// Sends what waits in the rings.
    pub(crate) fn send(&mut self) -> usize {
        let Self { link, outbound, .. } = self;
        let sent = outbound.small(link) + outbound.bulk(link) + outbound.transfer(link);
        if sent > 0 {
            link.flush();
        }
        sent
    }

    /// Takes what the sockets have, sleeping for it for `timeout` at the most.
    pub(crate) fn receive(&mut self, timeout: Option<Duration>) -> Result<usize, Fault> {
        let Self {
            link,
            inbound,
            outbound,
        } = self;
        inbound.begin();
        let heard = link
            .poll(timeout, &mut |event| inbound.on(event))
            .map_err(|error| Fault::Network(format!("waiting for sockets: {error}").into()))?;
        inbound.check()?;
        if inbound.trim() {
            // The buffers that forwarded proposals had are not needed either.
            outbound.pool.trim();
        }
        Ok(heard)
    }

    pub(crate) fn has_work(&mut self) -> bool {
        !self.outbound.small.is_empty()
            || self.outbound.bulk_ready()
            || !self.outbound.transfer.is_empty()
            || self.inbound.can_resume()
    }
}
