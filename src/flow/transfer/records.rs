//! Records for a node whose disk has lost them while it ran: asked of one peer after the other, and given to one.
//!
//! Who gives reads from its own disk and verifies; it gives what it has applied and nothing else, for only that is the same
//! everywhere. Who asks verifies again, and knows where the bytes go (`background/scrubber.rs`, `storage::mend`).

use std::sync::Arc;

use storage::Dir;
use storage::scrub::record_repair::{NotFetched, RecordSource};

use crate::flow::background::repair_request::Ask;
use crate::flow::transfer::{CHUNK_BYTES, Tools};
use crate::wire::transfer::Parcel;

/// Requests of peers that one turn answers; those beyond are lost, and repeated by who has sent them.
const MOST_GIVEN: usize = 2;

/// Both halves.
pub(super) struct Records<D: Dir> {
    record_source: RecordSource<D>,
    given: usize,
    fetch: Option<Fetch>,
}

/// One repair_request on its way.
struct Fetch {
    ask: Ask,
    /// Who is to be asked still, the next one last; who does not answer is asked twice.
    left: Vec<u64>,
    asked: u64,
    until_us: u64,
    why: Vec<String>,
}

impl<D: Dir> Records<D> {
    pub(super) fn new(record_source: RecordSource<D>) -> Self {
        Self {
            record_source,
            given: 0,
            fetch: None,
        }
    }

    /// A peer has lost some.
    pub(super) fn wanted(
        &mut self,
        tools: &mut Tools<D>,
        to: u64,
        (first, last, bytes): (u64, u64, u64),
    ) {
        if self.given >= MOST_GIVEN {
            return;
        }
        self.given += 1;
        let last = last.min(tools.shared.marks.certain());
        let mut records = Vec::new();
        let given =
            self.record_source
                .give(first, last, bytes.min(CHUNK_BYTES as u64), &mut records);
        let parcel = match given {
            Ok(last) => Parcel::GiveRecords { first, last },
            Err(why) => Parcel::NoRecords { first, why },
        };
        let node = tools.shared.id.0;
        tracing::info!(
            node,
            to,
            first,
            "asked for records that were found bad: {given:?}"
        );
        let _ = tools.send.try_send(|slot| {
            slot.to = to;
            slot.parcel = parcel;
            slot.bytes = Arc::new(records);
        });
    }

    /// A peer has answered.
    pub(super) fn answered(
        &mut self,
        tools: &mut Tools<D>,
        now_us: u64,
        from: u64,
        said: Parcel,
        bytes: &[u8],
    ) {
        let Some(fetch) = self.fetch.as_mut().filter(|fetch| fetch.asked == from) else {
            return; // Too late, or nobody asked.
        };
        let wanted = fetch.ask.want.first;
        match said {
            Parcel::GiveRecords { first, .. } if first == wanted => {
                tools
                    .shared
                    .repair_request
                    .answer(Ok((from, bytes.to_vec())));
                self.fetch = None;
            }
            Parcel::NoRecords { first, why } if first == wanted => {
                let why = match why {
                    NotFetched::Purged => "its log begins behind them",
                    NotFetched::Ahead => "it has not applied them",
                    NotFetched::Bad => "they are bad there too",
                };
                fetch.why.push(format!("node {from}: {why}"));
                self.next(tools, now_us);
            }
            _ => {}
        }
    }

    pub(super) fn turn(&mut self, tools: &mut Tools<D>, now_us: u64) -> usize {
        self.given = 0;
        if !tools.has_room() {
            return 0;
        }
        if let Some(ask) = tools.shared.repair_request.take_ask() {
            let leader = tools.shared.leader().map(|leader| u64::from(leader.0));
            let peers = tools.shared.peer_status();
            let mut peers: Vec<u64> = peers.iter().map(|peer| u64::from(peer.id.0)).collect();
            peers.retain(|peer| !ask.not_of.contains(peer));
            peers.sort_by_key(|peer| Some(*peer) == leader);
            self.fetch = Some(Fetch {
                ask,
                left: peers.repeat(2),
                asked: 0,
                until_us: 0,
                why: Vec::new(),
            });
            self.next(tools, now_us);
            return 1;
        }
        match &mut self.fetch {
            Some(fetch) if now_us >= fetch.until_us => {
                let asked = fetch.asked;
                if !fetch.left.contains(&asked) {
                    fetch.why.push(format!("node {asked}: no answer"));
                }
                self.next(tools, now_us);
                1
            }
            _ => 0,
        }
    }

    /// Asks the next peer, or says that there is none.
    fn next(&mut self, tools: &mut Tools<D>, now_us: u64) {
        let Some(fetch) = &mut self.fetch else {
            return;
        };
        let refused = |peer: u64| format!("node {peer}: ");
        let next = loop {
            match fetch.left.pop() {
                Some(peer) if fetch.why.iter().any(|why| why.starts_with(&refused(peer))) => {}
                next => break next,
            }
        };
        let Some(peer) = next else {
            let why = match fetch.why.is_empty() {
                true => "there is nobody to ask".to_owned(),
                false => fetch.why.join("; "),
            };
            tools.shared.repair_request.answer(Err(why));
            self.fetch = None;
            return;
        };
        let want = fetch.ask.want;
        fetch.asked = peer;
        fetch.until_us = now_us + tools.times.records_us;
        let (first, last, bytes) = (want.first, want.last, want.bytes);
        tools.say(peer, Parcel::WantRecords { first, last, bytes });
    }

    pub(super) fn has_work(&self, tools: &Tools<D>) -> bool {
        tools.shared.repair_request.is_asked()
    }

    pub(super) fn deadline_us(&self) -> u64 {
        self.fetch.as_ref().map_or(u64::MAX, |fetch| fetch.until_us)
    }
}
