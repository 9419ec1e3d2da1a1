//! The reads' part of the consensus stage: finds what each must see, and sends it on to the apply stage with that index.
//!
//! What holds: a read's index is looked up, and the clock is looked at, after the read has been taken from its ring.

use ringbuf::{Receiver, Take};

use crate::error::ProposeError;
use crate::flow::consensus::{Engine, TURN, Unconfirmed};
use crate::flow::rings::{Asked, AtIndex, See};
use crate::request::token::Token;

/// Slots of the ring to the apply stage that reads leave to the news of offices.
const OFFICE_ROOM: usize = 8;

impl Engine {
    /// Takes reads. Most wait for one round that they share; what is known already is answered from it.
    pub(super) fn reads(&mut self, now_us: u64, ring: &mut Receiver<Asked>) -> usize {
        if !self.has_room() || ring.is_empty() {
            return 0;
        }
        let waited = self.reads.len();
        let taken = ring.drain_while(8 * TURN, |slot| {
            match slot.see {
                See::Now => self.confirm(slot.token, 0),
                See::Any => self.answer_at(0, slot.token),
                See::Applied { index } => self.hand_to_apply(AtIndex::Applied {
                    index,
                    token: slot.token,
                }),
                See::Lease | See::AtMost { .. } => self.timed.push((slot.see, slot.token)),
            }
            Take::Taken
        });
        if !self.timed.is_empty() {
            // Only a look at the clock that comes after the reads have come says anything about them: this thread may
            // have stood still since its turn began. See `raft/lease.rs`.
            let now_us = self.shared.clock.now_us();
            let mut timed = std::mem::take(&mut self.timed);
            for (see, token) in timed.drain(..) {
                let (known, entries) = match see {
                    See::AtMost { age_us, entries } => {
                        (self.core.fresh_index(now_us, age_us), entries)
                    }
                    _ => (self.core.lease_index(now_us), 0),
                };
                match known {
                    Some(index) => self.answer_at(index.saturating_sub(entries), token),
                    None => self.confirm(token, entries),
                }
            }
            self.timed = timed;
        }
        if self.reads.len() > waited {
            let context = self.next_read;
            self.next_read += 1;
            self.core.read(now_us, context);
            self.act(now_us, None);
        }
        taken
    }

    /// The read waits for the next round.
    fn confirm(&mut self, token: u64, entries: u64) {
        if self.reads.len() == self.limits.max_reads {
            self.shared
                .table
                .complete(Token(token), Err(ProposeError::Busy), &[]);
            return;
        }
        self.reads.push_back(Unconfirmed {
            context: self.next_read,
            token,
            entries,
        });
    }

    pub(super) fn reads_ready(&mut self, ctx: u64, index: u64) {
        while let Some(&read) = self.reads.front() {
            if read.context > ctx {
                break;
            }
            self.reads.pop_front();
            self.answer_at(index.saturating_sub(read.entries), read.token);
        }
    }

    fn answer_at(&mut self, index: u64, token: u64) {
        self.hand_to_apply(AtIndex::Read { index, token });
    }

    fn hand_to_apply(&mut self, what: AtIndex) {
        let ring = &mut self.rings.at_index;
        let sent = ring.has_room(OFFICE_ROOM + 1) && ring.try_send(|slot| slot.0 = what).is_ok();
        let (AtIndex::Read { token, .. } | AtIndex::Applied { token, .. }) = what else {
            return;
        };
        if !sent {
            self.shared
                .table
                .complete(Token(token), Err(ProposeError::Busy), &[]);
        }
    }

    pub(super) fn reads_failed(&mut self, ctx: u64) {
        // Without a leader nobody was asked; otherwise he was, and did not answer.
        let error = match self.core.leader() {
            None => ProposeError::NotLeader { leader: None },
            Some(_) => ProposeError::Unconfirmed,
        };
        while let Some(&read) = self.reads.front() {
            if read.context > ctx {
                break;
            }
            self.reads.pop_front();
            self.shared
                .table
                .complete(Token(read.token), Err(error.clone()), &[]);
        }
    }
}
