//! What waits to be sent to one peer: two lanes, made once, cleared when the connection goes.
//!
//! The small lane is a ring of bytes: its frames are copied in whole, so any number of them is one
//! or two slices. The bulk lane keeps headers and heads in a second ring of bytes, and bodies where
//! they lie: they are written from there.
//!
//! Invariants: a frame that has been begun is finished before any other; otherwise the small lane
//! goes first. So only the first bulk frame can be partly written, and while it is, `bulk_done` is
//! not zero. Nothing here allocates after `new`.

use std::collections::VecDeque;
use std::io::IoSlice;

use crate::frame::{HEADER_BYTES, Label, MAX_HEAD_BYTES, frame_bytes, header};

/// The longest frame that the small lane takes.
pub const MAX_SMALL_FRAME_BYTES: usize = 64 << 10;
/// Slices that one write gathers.
pub(crate) const MAX_SLICES: usize = 64;

/// A head on the bulk lane is this long at most for as many frames as the lane holds; longer ones
/// use up others' room.
const USUAL_HEAD_BYTES: usize = 112;

/// Which of the two queues of a peer a frame waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Votes, acknowledgements, heartbeats: before everything on the other lane. At most 64 KiB a
    /// frame, body included.
    Small,
    /// Entries and snapshots.
    Bulk,
}

/// The body of a frame to be sent.
#[derive(Debug)]
pub(crate) struct Body<B> {
    pub(crate) bytes: B,
    /// The checksum of the frame covers it.
    pub(crate) covered: bool,
}

/// The lane has no room; nothing was queued.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Debug)]
struct Queued<B> {
    /// Header and head, in the ring of heads.
    head_bytes: usize,
    body: Option<B>,
    body_bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Outbox<B> {
    small: Ring,
    heads: Ring,
    bulk: VecDeque<Queued<B>>,
    /// Bytes of the first bulk frame that are written.
    bulk_done: usize,
    /// Bytes on the bulk lane, without `bulk_done` taken off.
    bulk_bytes: usize,
    max_bulk_bytes: usize,
    max_bulk_frames: usize,
}

impl<B: AsRef<[u8]>> Outbox<B> {
    pub(crate) fn new(small_bytes: usize, bulk_bytes: usize, bulk_frames: usize) -> Self {
        Self {
            small: Ring::new(small_bytes),
            heads: Ring::new(
                bulk_frames * (HEADER_BYTES + USUAL_HEAD_BYTES) + HEADER_BYTES + MAX_HEAD_BYTES,
            ),
            bulk: VecDeque::with_capacity(bulk_frames),
            bulk_done: 0,
            bulk_bytes: 0,
            max_bulk_bytes: bulk_bytes,
            max_bulk_frames: bulk_frames,
        }
    }

    /// The caller has compared the frame with the limits of a frame.
    pub(crate) fn push(
        &mut self,
        lane: Lane,
        label: Label,
        head: &[u8],
        body: Option<Body<B>>,
    ) -> Result<(), Full> {
        let bytes = body.as_ref().map_or(&[][..], |body| body.bytes.as_ref());
        let covered = body.as_ref().filter(|body| body.covered).map(|_| bytes);
        let total = frame_bytes(head.len(), bytes.len());
        match lane {
            Lane::Small => {
                if self.small.room() < total {
                    return Err(Full);
                }
                self.small.push(&header(label, head, bytes.len(), covered));
                self.small.push(head);
                self.small.push(bytes);
            }
            Lane::Bulk => {
                let head_bytes = HEADER_BYTES + head.len();
                if self.bulk_room() < total || self.heads.room() < head_bytes {
                    return Err(Full);
                }
                self.heads.push(&header(label, head, bytes.len(), covered));
                self.heads.push(head);
                self.bulk_bytes += total;
                let body_bytes = bytes.len();
                self.bulk.push_back(Queued {
                    head_bytes,
                    body: body.map(|body| body.bytes),
                    body_bytes,
                });
            }
        }
        Ok(())
    }

    /// The longest frame that the bulk lane takes now, in bytes, if its head is not extraordinarily
    /// long.
    pub(crate) fn bulk_room(&self) -> usize {
        if self.bulk.len() < self.max_bulk_frames {
            self.max_bulk_bytes - self.bulk_bytes
        } else {
            0
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.small.len == 0 && self.bulk.is_empty()
    }

    /// Bytes on both lanes that are not written yet.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.small.len + self.bulk_bytes - self.bulk_done
    }

    /// Forgets everything; bodies are dropped.
    pub(crate) fn clear(&mut self) {
        self.small.clear();
        self.heads.clear();
        self.bulk.clear();
        (self.bulk_done, self.bulk_bytes) = (0, 0);
    }

    /// What is to be written next, in order, as far as the slices go. Returns their number and the
    /// bytes in them.
    pub(crate) fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> (usize, usize) {
        let mut out = Gather {
            slices,
            count: 0,
            bytes: 0,
        };
        let mut frames = self.bulk.iter();
        let mut head_at = 0;
        if self.bulk_done > 0 {
            let first = frames
                .next()
                .expect("a bulk frame that was begun is still queued");
            out.frame(&self.heads, 0, first, self.bulk_done);
            head_at = first.head_bytes;
        }
        out.push_pair(self.small.slices(0, self.small.len));
        for queued in frames {
            // A head that wraps around and its body are three slices.
            if out.count + 3 > MAX_SLICES {
                break;
            }
            out.frame(&self.heads, head_at, queued, 0);
            head_at += queued.head_bytes;
        }
        (out.count, out.bytes)
    }

    /// The first `count` of the gathered bytes are written.
    pub(crate) fn written(&mut self, mut count: usize) {
        if self.bulk_done > 0 {
            count -= self.bulk_written(count);
        }
        let small = count.min(self.small.len);
        self.small.pop(small);
        count -= small;
        while count > 0 {
            count -= self.bulk_written(count);
        }
    }

    /// Of `count` bytes written, the first bulk frame takes what it still has; returns how many.
    fn bulk_written(&mut self, count: usize) -> usize {
        let first = self
            .bulk
            .front()
            .expect("no more bytes are written than are queued");
        let total = first.head_bytes + first.body_bytes;
        let taken = count.min(total - self.bulk_done);
        self.bulk_done += taken;
        if self.bulk_done == total {
            self.heads.pop(first.head_bytes);
            self.bulk.pop_front();
            self.bulk_bytes -= total;
            self.bulk_done = 0;
        }
        taken
    }
}

/// Fills the array of slices.
struct Gather<'s, 'a> {
    slices: &'s mut [IoSlice<'a>; MAX_SLICES],
    count: usize,
    bytes: usize,
}

impl<'a> Gather<'_, 'a> {
    fn push(&mut self, bytes: &'a [u8]) {
        if !bytes.is_empty() {
            self.slices[self.count] = IoSlice::new(bytes);
            self.count += 1;
            self.bytes += bytes.len();
        }
    }

    fn push_pair(&mut self, (first, second): (&'a [u8], &'a [u8])) {
        self.push(first);
        self.push(second);
    }

    /// The frame whose head begins at `head_at` in `heads`, without its first `done` bytes.
    fn frame<B: AsRef<[u8]>>(
        &mut self,
        heads: &'a Ring,
        head_at: usize,
        queued: &'a Queued<B>,
        done: usize,
    ) {
        let head_done = done.min(queued.head_bytes);
        self.push_pair(heads.slices(head_at + head_done, queued.head_bytes - head_done));
        if let Some(body) = &queued.body {
            let body = body.as_ref();
            assert_eq!(
                body.len(),
                queued.body_bytes,
                "a body has changed its length while it was queued"
            );
            self.push(&body[done - head_done..]);
        }
    }
}

/// Bytes first in, first out, in an array made once.
#[derive(Debug)]
struct Ring {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Ring {
    fn new(capacity: usize) -> Self {
        Self {
            bytes: vec![0; capacity].into(),
            start: 0,
            len: 0,
        }
    }

    fn room(&self) -> usize {
        self.bytes.len() - self.len
    }

    fn push(&mut self, bytes: &[u8]) {
        assert!(
            bytes.len() <= self.room(),
            "{} bytes into room for {}",
            bytes.len(),
            self.room()
        );
        let at = (self.start + self.len) % self.bytes.len();
        let (first, second) = bytes.split_at(bytes.len().min(self.bytes.len() - at));
        self.bytes[at..at + first.len()].copy_from_slice(first);
        self.bytes[..second.len()].copy_from_slice(second);
        self.len += bytes.len();
    }

    /// The `count` bytes from the `from`th on.
    fn slices(&self, from: usize, count: usize) -> (&[u8], &[u8]) {
        assert!(
            from + count <= self.len,
            "{count} bytes from {from} of {}",
            self.len
        );
        let at = (self.start + from) % self.bytes.len();
        let first = count.min(self.bytes.len() - at);
        (&self.bytes[at..at + first], &self.bytes[..count - first])
    }

    fn pop(&mut self, count: usize) {
        assert!(count <= self.len, "{count} bytes of {}", self.len);
        self.len -= count;
        // An empty ring starts anew, so that what comes next is one slice.
        self.start = if self.len == 0 {
            0
        } else {
            (self.start + count) % self.bytes.len()
        };
    }

    fn clear(&mut self) {
        (self.start, self.len) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Decoded, decode};

    const LIMIT: usize = 1 << 20;

    fn outbox() -> Outbox<Vec<u8>> {
        Outbox::new(4096, 20_000, 8)
    }

    fn push(outbox: &mut Outbox<Vec<u8>>, lane: Lane, kind: u8, body: usize) -> Result<(), Full> {
        let body = (body > 0).then(|| Body {
            bytes: vec![kind; body],
            covered: true,
        });
        outbox.push(lane, Label { group: 0, kind }, &[kind; 20], body)
    }

    /// Writes at most `most` bytes to `wire`, as a socket would take them.
    fn write(outbox: &mut Outbox<Vec<u8>>, wire: &mut Vec<u8>, most: usize) -> usize {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let (count, bytes) = outbox.gather(&mut slices);
        let gathered: Vec<u8> = slices[..count]
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .collect();
        assert_eq!(gathered.len(), bytes);
        let taken = bytes.min(most);
        wire.extend_from_slice(&gathered[..taken]);
        outbox.written(taken);
        taken
    }

    fn kinds(mut wire: &[u8]) -> Vec<u8> {
        let mut kinds = Vec::new();
        while !wire.is_empty() {
            match decode(wire, LIMIT, true).expect("what was written is well formed") {
                Decoded::Whole { frame, bytes } => {
                    assert!(frame.body.iter().all(|byte| *byte == frame.label.kind));
                    kinds.push(frame.label.kind);
                    wire = &wire[bytes..];
                }
                Decoded::Partial { need } => panic!("{} bytes left of {need}", wire.len()),
            }
        }
        kinds
    }

    #[test]
    fn small_frames_pass_bulk_between_frames_and_never_inside_one() {
        let (mut outbox, mut wire) = (outbox(), Vec::new());
        for kind in [101, 102, 103] {
            push(&mut outbox, Lane::Bulk, kind, 1000).expect("room");
        }
        push(&mut outbox, Lane::Small, 1, 0).expect("room");
        assert_eq!(
            write(&mut outbox, &mut wire, 500),
            500,
            "frame 1 and the first part of 101"
        );
        push(&mut outbox, Lane::Small, 2, 10).expect("room");
        push(&mut outbox, Lane::Small, 3, 0).expect("room");
        while !outbox.is_empty() {
            write(&mut outbox, &mut wire, 900);
        }
        assert_eq!(kinds(&wire), [1, 101, 2, 3, 102, 103]);
    }

    #[test]
    fn each_lane_has_its_own_end() {
        let mut outbox = outbox();
        let taken = (0..100)
            .take_while(|_| push(&mut outbox, Lane::Bulk, 101, 3000).is_ok())
            .count();
        assert_eq!(taken, 6, "20,000 bytes in frames of 3,036");
        assert_eq!(outbox.bulk_room(), 20_000 - 6 * 3036);
        push(&mut outbox, Lane::Small, 1, 0).expect("the small lane has its own room");
        let taken = (0..1000)
            .take_while(|_| push(&mut outbox, Lane::Small, 1, 0).is_ok())
            .count();
        assert_eq!(taken, 4096 / 36 - 1);
        outbox.clear();
        assert!(outbox.is_empty() && outbox.queued_bytes() == 0);
        let taken = (0..100)
            .take_while(|_| push(&mut outbox, Lane::Bulk, 101, 0).is_ok())
            .count();
        assert_eq!(
            (taken, outbox.bulk_room()),
            (8, 0),
            "8 frames, however short"
        );
    }

    #[test]
    fn the_longest_head_fits_an_empty_lane() {
        let mut outbox = outbox();
        outbox.max_bulk_bytes = LIMIT;
        let head = vec![0; MAX_HEAD_BYTES];
        assert_eq!(
            outbox.push(Lane::Bulk, Label { group: 0, kind: 1 }, &head, None),
            Ok(())
        );
    }

    proptest! {
        /// Whatever is pushed and however little each write takes: every frame arrives whole, each
        /// lane in its order.
        #[test]
        fn frames_arrive_whole_and_in_order(
            steps in prop::collection::vec((any::<bool>(), 0..700usize, 0..2000usize), 1..150),
        ) {
            let (mut outbox, mut wire) = (outbox(), Vec::new());
            let mut sent = [Vec::new(), Vec::new()];
            for (at, (is_bulk, body, most)) in steps.into_iter().enumerate() {
                let kind = (at % 100) as u8 + if is_bulk { 100 } else { 0 };
                let lane = if is_bulk { Lane::Bulk } else { Lane::Small };
                if push(&mut outbox, lane, kind, body) == Ok(()) {
                    sent[usize::from(is_bulk)].push(kind);
                }
                let before = outbox.queued_bytes();
                let taken = write(&mut outbox, &mut wire, most);
                prop_assert_eq!(outbox.queued_bytes(), before - taken);
            }
            while !outbox.is_empty() {
                write(&mut outbox, &mut wire, 123);
            }
            prop_assert_eq!(outbox.queued_bytes(), 0);
            let (bulk, small): (Vec<u8>, Vec<u8>) =
                kinds(&wire).into_iter().partition(|kind| *kind >= 100);
            prop_assert_eq!([small, bulk], sent);
        }
    }
}
