//! What a peer is known to have, and what is on its way to it.
//!
//! Invariants: `matched < next`, and everything in `matched + 1 .. next` is in flight while
//! replicating. The window is bounded in messages and in bytes, but one message always fits,
//! however large its entry. Raft thesis §3.5 and §10.2.2 (pipelining).

use std::collections::VecDeque;

/// Messages with entries that no answer has covered yet.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// `(last index, bytes)`, in the order they were sent.
    sent: VecDeque<(u64, u64)>,
    bytes: u64,
    max_messages: usize,
    max_bytes: u64,
}

impl Window {
    fn new(max_messages: usize, max_bytes: u64) -> Self {
        Self {
            sent: VecDeque::with_capacity(max_messages),
            bytes: 0,
            max_messages,
            max_bytes,
        }
    }

    /// Bytes that the next message may carry; 0 when there is no room for one.
    pub(crate) fn room(&self) -> u64 {
        match self.sent.len() {
            0 => self.max_bytes,
            sent if sent >= self.max_messages => 0,
            _ => self.max_bytes.saturating_sub(self.bytes),
        }
    }

    fn push(&mut self, last: u64, bytes: u64) {
        self.sent.push_back((last, bytes));
        self.bytes += bytes;
    }

    fn answered(&mut self, matched: u64) {
        while let Some(&(last, bytes)) = self.sent.front()
            && last <= matched
        {
            self.bytes -= bytes;
            self.sent.pop_front();
        }
    }

    fn clear(&mut self) {
        self.sent.clear();
        self.bytes = 0;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    #[cfg(test)]
    pub(crate) fn messages(&self) -> usize {
        self.sent.len()
    }
}

/// How entries are sent to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Looking for where the logs agree: one message at a time.
    Probe { sent: bool },
    /// They agree up to `matched`: as much as the window takes.
    Replicate,
    /// What it needs next is in no log here, whose base was `base` then: a snapshot is on its way, and no entries.
    Snapshot { base: u64 },
}

#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) id: u64,
    /// What: the last entry that the peer has said it holds durably, in this term. Use: the commit
    /// rule. Invariant: never falls within a term, unless the peer's disk has lost what it held.
    pub(crate) matched: u64,
    /// What: the next entry to send.
    pub(crate) next: u64,
    pub(crate) mode: Mode,
    pub(crate) window: Window,
    /// There is a connection, or nobody has said that there is none.
    pub(crate) up: bool,
    /// When it last said anything in this term.
    pub(crate) heard_us: u64,
    /// When it last acknowledged something new, or began to have something in flight, or was
    /// probed.
    pub(crate) moved_us: u64,
    /// The latest round of reads that it has answered.
    pub(crate) round: u64,
    /// The highest commit index it was told.
    pub(crate) told_commit: u64,
}

impl Progress {
    pub(crate) fn new(id: u64, max_messages: usize, max_bytes: u64) -> Self {
        Self {
            id,
            matched: 0,
            next: 1,
            mode: Mode::Probe { sent: false },
            window: Window::new(max_messages, max_bytes),
            up: true,
            heard_us: 0,
            moved_us: 0,
            round: 0,
            told_commit: 0,
        }
    }

    /// A new office begins: nothing is known.
    pub(crate) fn reset(&mut self, next: u64, now_us: u64) {
        self.matched = 0;
        self.next = next;
        self.mode = Mode::Probe { sent: false };
        self.window.clear();
        self.heard_us = now_us;
        self.moved_us = now_us;
        self.round = 0;
        self.told_commit = 0;
    }

    /// What it has acknowledged so far, it may have lost: that counts for nothing any more.
    pub(crate) fn forget_acknowledged(&mut self) {
        (self.matched, self.told_commit, self.round) = (0, 0, 0);
        if self.mode == Mode::Replicate {
            self.probe(self.next);
        }
    }

    /// What was in flight is taken for lost. While the place where the logs agree is still looked
    /// for, `matched` says nothing, and going back to it would be going back to the beginning of
    /// the log: the probe is made again where it was.
    pub(crate) fn lose_in_flight(&mut self) {
        match self.mode {
            Mode::Probe { .. } => self.probe(self.next),
            Mode::Replicate => self.probe(self.matched + 1),
            Mode::Snapshot { .. } => self.probe(self.next),
        }
    }

    /// Nothing is sent to it until it has a snapshot of everything up to `base`.
    pub(crate) fn await_snapshot(&mut self, base: u64, now_us: u64) {
        self.mode = Mode::Snapshot { base };
        self.window.clear();
        self.moved_us = now_us;
    }

    /// Looks for where the logs agree, from the entry before `next` on.
    pub(crate) fn probe(&mut self, next: u64) {
        self.next = next.max(self.matched + 1);
        self.mode = Mode::Probe { sent: false };
        self.window.clear();
    }

    /// Notes a message that ends with `last` as sent.
    pub(crate) fn sent(&mut self, last: u64, bytes: u64, now_us: u64) {
        match self.mode {
            Mode::Probe { .. } => {
                self.mode = Mode::Probe { sent: true };
                self.moved_us = now_us;
            }
            Mode::Replicate => {
                if self.window.is_empty() {
                    self.moved_us = now_us;
                }
                self.window.push(last, bytes);
                self.next = last + 1;
            }
            Mode::Snapshot { .. } => unreachable!("no entries are sent beside a snapshot"),
        }
    }

    /// The peer holds everything up to `index`.
    pub(crate) fn matched(&mut self, index: u64, now_us: u64) {
        if index > self.matched {
            self.matched = index;
            self.moved_us = now_us;
        }
        let agrees = match self.mode {
            Mode::Probe { .. } => true,
            Mode::Replicate => false,
            // An answer to what was sent before does not end it.
            Mode::Snapshot { base } => self.matched >= base,
        };
        if agrees {
            self.mode = Mode::Replicate;
            self.next = self.matched + 1;
        }
        self.next = self.next.max(self.matched + 1);
        self.window.answered(self.matched);
    }

    /// Whether an answer about a conflict at `prev` tells anything new.
    pub(crate) fn believes_conflict_at(&self, prev: u64) -> bool {
        match self.mode {
            Mode::Replicate => prev > self.matched,
            Mode::Probe { .. } => prev == self.next - 1,
            Mode::Snapshot { .. } => false,
        }
    }
}
