//! The table: which sessions there are, what each has had applied, and the first answers to that.
//!
//! ```text
//! one session, window 8          low              low + window
//!   sequence    … 40  41  42     43  44  45  46 …  51
//!               TooOld           │   │   ?   │     TooFar
//!               (the client      │   │   never came
//!                has those)      its first answer, or NotKept
//! ```
//!
//! It changes by log entries alone: what is evicted follows from their order and their leader's stamps. Invariants: nothing
//! below `low` is ever applied again; a sequence at or above it has an answer here, or `Gone`, exactly when it has been
//! applied; sessions stand in `oldest … newest` in the order of the last entry that named them.
//!
//! Memory: short answers (up to 22 bytes) lie in the session's ring, which grows to the window that its client uses and
//! is then reused: no allocation per entry. A longer answer is one allocation and counts against `kept_bytes`; the
//! oldest of them make room. Raft thesis §6.3.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use super::code::{Answer, Request, Sequence, close_applied};
use super::{Limits, Watch};
use crate::clock::micros;
use crate::state_machine::Entry;
use crate::types::Index;

/// Answers up to this length are kept in place.
pub(super) const SHORT_BYTES: usize = 22;
/// No session: the end of the list, or no place.
const NONE: u32 = u32::MAX;

/// What is known of one sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Not applied.
    Free,
    Short {
        len: u8,
        bytes: [u8; SHORT_BYTES],
    },
    /// In `Table::long`, under the log index at which it was applied.
    Long(Index),
    /// Applied, and the answer has made room.
    Gone,
}

// What `Limits` says of memory rests on it.
const _: () = assert!(size_of::<Kept>() == 24);

#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    /// The last entry that named it, and that entry's stamp.
    pub(super) used_at: Index,
    pub(super) used_us: u64,
    /// Nothing below it is applied any more.
    pub(super) low: Sequence,
    /// A ring: `sequence & (len - 1)`, for `low .. low + len`. Its length is a power of two, or nothing yet.
    slots: Vec<Kept>,
    older: u32,
    newer: u32,
}

/// A long answer, and whose it is.
#[derive(Clone, Debug)]
pub(super) struct Long {
    pub(super) place: u32,
    pub(super) sequence: Sequence,
    pub(super) bytes: Arc<[u8]>,
}

/// Where the answer to a command that is being applied is to be kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    place: u32,
    sequence: Sequence,
    index: Index,
}

/// What is to be done with an entry.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    /// Its answer is written.
    Answered,
    /// The wrapped machine's command begins after so many bytes, and its answer is to be given to [`Table::keep`].
    Once(usize, Ticket),
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) limits: Limits,
    places: Vec<Session>,
    free: Vec<u32>,
    by_id: HashMap<u64, u32, BuildHasherDefault<IdHasher>>,
    oldest: u32,
    newest: u32,
    long: BTreeMap<Index, Long>,
    long_bytes: u64,
    /// How many were opened, and how many of those had to make room, since the group was founded.
    pub(super) opened: u64,
    pub(super) evicted: u64,
    pub(super) watch: Watch,
}

/// Session ids are log indexes: one multiplication spreads them.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0 ^ u64::from(byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        let product = u128::from(id ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Table {
    pub(super) fn new(limits: Limits, watch: Watch) -> Self {
        Self {
            limits,
            places: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::default(),
            oldest: NONE,
            newest: NONE,
            long: BTreeMap::new(),
            long_bytes: 0,
            opened: 0,
            evicted: 0,
            watch,
        }
    }

    /// Judges an entry that is not plain; what has an answer already, or gets none, is answered in `reply`.
    pub(super) fn take(&mut self, entry: &Entry<'_>, reply: &mut Vec<u8>) -> Verdict {
        let Some((request, rest)) = Request::decode(entry.command) else {
            Answer::Malformed.encode(reply);
            return Verdict::Answered;
        };
        let skip = entry.command.len() - rest.len();
        let answer = match request {
            Request::Plain => unreachable!("it passes by the table"),
            Request::Numbered {
                session,
                sequence,
                mark,
            } => match self.admit(entry, session, sequence, mark, reply) {
                Ok(Some(ticket)) => return Verdict::Once(skip, ticket),
                Ok(None) => {
                    self.watch.add_repeated();
                    return Verdict::Answered;
                }
                Err(refusal) => {
                    self.watch.add_refused();
                    refusal
                }
            },
            Request::Open => {
                self.expire(entry.time_us);
                self.open(entry.index, entry.time_us);
                Answer::Opened {
                    session: entry.index,
                    window: self.limits.window,
                }
            }
            Request::Close { session } => match self.used(entry, session) {
                Some(place) => {
                    self.remove(place);
                    Answer::Done
                }
                None => Answer::Expired,
            },
            Request::Keep { session, mark } => match self.used(entry, session) {
                Some(place) => {
                    self.forget_below(place, mark);
                    Answer::Done
                }
                None => Answer::Expired,
            },
            Request::Limit(limits) => {
                self.limits = limits;
                self.expire(entry.time_us);
                while self.by_id.len() > limits.sessions as usize {
                    self.evict_oldest();
                }
                self.make_room();
                Answer::Done
            }
        };
        answer.encode(reply);
        self.tell();
        Verdict::Answered
    }

    /// `None`: it was applied before, and its first answer is written.
    fn admit(
        &mut self,
        entry: &Entry<'_>,
        session: u64,
        sequence: Sequence,
        mark: Option<Sequence>,
        reply: &mut Vec<u8>,
    ) -> Result<Option<Ticket>, Answer<'static>> {
        let place = self.used(entry, session).ok_or(Answer::Expired)?;
        let of = &self.places[place as usize];
        if sequence < of.low {
            return Err(Answer::TooOld);
        }
        let window = u64::from(self.limits.window);
        let low = mark
            .unwrap_or_else(|| sequence.saturating_sub(window - 1))
            .max(of.low);
        let kept = of.kept(sequence);
        // What was applied has its answer, also when the window has become shorter since.
        if kept == Kept::Free && sequence - low >= window {
            return Err(Answer::TooFar);
        }
        self.forget_below(place, low);
        match kept {
            Kept::Free => Ok(Some(Ticket {
                place,
                sequence,
                index: entry.index,
            })),
            Kept::Short { len, bytes } => {
                reply.extend_from_slice(&bytes[..len as usize]);
                close_applied(reply);
                Ok(None)
            }
            Kept::Long(at) => {
                reply.extend_from_slice(&self.long[&at].bytes);
                close_applied(reply);
                Ok(None)
            }
            Kept::Gone => Err(Answer::NotKept),
        }
    }

    /// Keeps the first answer to what [`take`](Self::take) let through.
    pub(super) fn keep(&mut self, ticket: Ticket, answer: &[u8]) {
        let Ticket {
            place,
            sequence,
            index,
        } = ticket;
        let kept = if answer.len() <= SHORT_BYTES {
            let mut bytes = [0; SHORT_BYTES];
            bytes[..answer.len()].copy_from_slice(answer);
            let len = answer.len() as u8;
            Kept::Short { len, bytes }
        } else {
            self.add_long(
                index,
                Long {
                    place,
                    sequence,
                    bytes: answer.into(),
                },
            );
            Kept::Long(index)
        };
        self.places[place as usize].put(sequence, kept);
        if kept == Kept::Long(index) {
            self.make_room();
            self.tell();
        }
    }

    /// The place of a session that is named by an entry, which is a use of it.
    fn used(&mut self, entry: &Entry<'_>, session: u64) -> Option<u32> {
        self.expire(entry.time_us);
        let place = *self.by_id.get(&session)?;
        let of = &mut self.places[place as usize];
        (of.used_at, of.used_us) = (entry.index, entry.time_us);
        if self.newest != place {
            self.unlink(place);
            self.link_newest(place);
        }
        Some(place)
    }

    fn open(&mut self, id: u64, time_us: u64) {
        while self.by_id.len() >= self.limits.sessions as usize {
            self.evict_oldest();
        }
        self.opened += 1;
        self.add(id, id, time_us, 0);
    }

    /// Adds one, as the newest.
    pub(super) fn add(&mut self, id: u64, used_at: Index, used_us: u64, low: Sequence) -> u32 {
        let session = Session {
            id,
            used_at,
            used_us,
            low,
            slots: Vec::new(),
            older: NONE,
            newer: NONE,
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place as usize] = session;
                place
            }
            None => {
                self.places.push(session);
                self.places.len() as u32 - 1
            }
        };
        let before = self.by_id.insert(id, place);
        assert_eq!(before, None, "session {id} was opened twice");
        self.link_newest(place);
        place
    }

    /// Those that were not used for so long by now.
    fn expire(&mut self, now_us: u64) {
        let Some(after) = self.limits.expire_after else {
            return;
        };
        let after_us = micros(after);
        let before = self.evicted;
        while self.oldest != NONE
            && now_us.saturating_sub(self.places[self.oldest as usize].used_us) > after_us
        {
            self.evict_oldest();
        }
        if self.evicted != before {
            self.tell();
        }
    }

    fn evict_oldest(&mut self) {
        assert_ne!(self.oldest, NONE, "a table without a session is not full");
        let of = &self.places[self.oldest as usize];
        tracing::debug!(session = of.id, last_used = of.used_at, "session evicted");
        self.evicted += 1;
        self.remove(self.oldest);
    }

    fn remove(&mut self, place: u32) {
        self.unlink(place);
        let of = &mut self.places[place as usize];
        let slots = std::mem::take(&mut of.slots);
        let id = of.id;
        for kept in slots {
            self.drop_long(kept);
        }
        let removed = self.by_id.remove(&id);
        assert_eq!(removed, Some(place), "session {id} has one place");
        self.free.push(place);
    }

    fn forget_below(&mut self, place: u32, mark: Sequence) {
        let of = &mut self.places[place as usize];
        let before = of.low;
        if mark <= before {
            return;
        }
        of.low = mark;
        let len = of.slots.len() as u64;
        for sequence in before..mark.min(before.saturating_add(len)) {
            let of = &mut self.places[place as usize];
            let at = of.at(sequence);
            let kept = std::mem::replace(&mut of.slots[at], Kept::Free);
            self.drop_long(kept);
        }
    }

    fn drop_long(&mut self, kept: Kept) {
        if let Kept::Long(at) = kept
            && let Some(long) = self.long.remove(&at)
        {
            self.long_bytes -= long.bytes.len() as u64;
        }
    }

    pub(super) fn add_long(&mut self, index: Index, long: Long) {
        self.long_bytes += long.bytes.len() as u64;
        self.long.insert(index, long);
    }

    /// The oldest long answers go, until the rest is within the limit.
    fn make_room(&mut self) {
        while self.long_bytes > self.limits.kept_bytes
            && let Some((_, long)) = self.long.pop_first()
        {
            self.long_bytes -= long.bytes.len() as u64;
            self.places[long.place as usize].put(long.sequence, Kept::Gone);
        }
    }

    fn unlink(&mut self, place: u32) {
        let (older, newer) = {
            let of = &self.places[place as usize];
            (of.older, of.newer)
        };
        match self.places.get_mut(older as usize) {
            Some(of) => of.newer = newer,
            None => self.oldest = newer,
        }
        match self.places.get_mut(newer as usize) {
            Some(of) => of.older = older,
            None => self.newest = older,
        }
    }

    fn link_newest(&mut self, place: u32) {
        let newest = self.newest;
        match self.places.get_mut(newest as usize) {
            Some(of) => of.newer = place,
            None => self.oldest = place,
        }
        let of = &mut self.places[place as usize];
        (of.older, of.newer) = (newest, NONE);
        self.newest = place;
    }

    /// All sessions, by id.
    pub(super) fn sorted(&self) -> Vec<&Session> {
        let mut sessions: Vec<&Session> = Vec::with_capacity(self.by_id.len());
        let mut at = self.oldest;
        while let Some(of) = self.places.get(at as usize) {
            sessions.push(of);
            at = of.newer;
        }
        sessions.sort_unstable_by_key(|of| of.id);
        sessions
    }

    /// Long answers, oldest first, with their sessions' ids.
    pub(super) fn long(&self) -> impl ExactSizeIterator<Item = (Index, u64, &Long)> {
        let id = |long: &Long| self.places[long.place as usize].id;
        self.long
            .iter()
            .map(move |(&index, long)| (index, id(long), long))
    }

    pub(super) fn session_mut(&mut self, place: u32) -> &mut Session {
        &mut self.places[place as usize]
    }

    /// Publishes what there is, for whoever looks.
    pub(super) fn tell(&self) {
        self.watch.set(
            self.by_id.len() as u64,
            self.long_bytes,
            self.opened,
            self.evicted,
        );
    }
}

impl Session {
    fn at(&self, sequence: Sequence) -> usize {
        (sequence & (self.slots.len() as u64 - 1)) as usize
    }

    fn kept(&self, sequence: Sequence) -> Kept {
        if sequence - self.low < self.slots.len() as u64 {
            self.slots[self.at(sequence)]
        } else {
            Kept::Free
        }
    }

    pub(super) fn put(&mut self, sequence: Sequence, kept: Kept) {
        let len = (sequence - self.low) as usize + 1;
        if len > self.slots.len() {
            self.grow(len.next_power_of_two());
        }
        let at = self.at(sequence);
        self.slots[at] = kept;
    }

    fn grow(&mut self, len: usize) {
        let slots = std::mem::replace(&mut self.slots, vec![Kept::Free; len]);
        let before = slots.len() as u64;
        for step in 0..before {
            let sequence = self.low.wrapping_add(step);
            let at = self.at(sequence);
            self.slots[at] = slots[(sequence & (before - 1)) as usize];
        }
    }

    /// What is kept, by sequence.
    pub(super) fn all_kept(&self) -> impl Iterator<Item = (Sequence, Kept)> {
        (0..self.slots.len() as u64)
            .map(|step| self.low.wrapping_add(step))
            .map(|sequence| (sequence, self.slots[self.at(sequence)]))
            .filter(|&(_, kept)| kept != Kept::Free)
    }
}
