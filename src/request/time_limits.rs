//! The time limit of requests: `Config::proposal_timeout`, kept by a thread that waits for nobody.
//!
//! The stages stand still whenever user code or a disk does; a request's limit must hold then above all. So its keeper is a
//! thread of its own in every plan, the driven one included, that runs no user code, waits for no disk and for no socket. It
//! answers what is over its limit in the table of requests and unparks threads that wait for it; wakers, callbacks and
//! notifications, which are user code, are left to the reply stage.
//!
//! It sleeps until the earliest limit of the requests there are, and in an idle node for as long as that is idle: the first
//! request that finds nobody watching wakes it (`Table::take`), the later ones have later limits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::clock::micros;
use crate::config::Config;
use crate::flow::shared::Shared;

/// Limits that are over within this time are kept together.
const TOGETHER_US: u64 = 10_000;

pub(crate) struct Limits {
    shared: Arc<Shared>,
    limit_us: u64,
    /// `u64::MAX` while there are no requests.
    next_us: u64,
}

impl Limits {
    pub(crate) fn new(shared: Arc<Shared>, config: &Config) -> Self {
        Self {
            shared,
            limit_us: micros(config.proposal_timeout),
            next_us: u64::MAX,
        }
    }

    /// Answers what is over its limit. Returns how many requests that were.
    pub(crate) fn poll(&mut self, now_us: u64) -> usize {
        let table = &self.shared.table;
        if now_us < self.next_us && !self.has_work() {
            return 0;
        }
        let (expired, oldest) = table.expire(now_us.saturating_sub(self.limit_us));
        if expired > 0 {
            // Reads among them wait with the apply stage, which forgets them.
            self.shared.expired.fetch_add(1, Ordering::AcqRel);
        }
        if table.unwatch_if_idle() {
            self.next_us = u64::MAX;
        } else {
            // What comes from now on has a later limit.
            let since_us = oldest.unwrap_or(now_us).min(now_us);
            let over_us = since_us.saturating_add(self.limit_us).saturating_add(1);
            self.next_us = over_us.max(now_us + TOGETHER_US.min(self.limit_us / 8));
        }
        expired
    }

    pub(crate) fn deadline_us(&self) -> u64 {
        self.next_us
    }

    pub(crate) fn has_work(&self) -> bool {
        self.next_us == u64::MAX && self.shared.table.is_watched()
    }
}
