//! What has been received on one connection and not been taken yet.
//!
//! ```text
//!  0        start                 end              len
//!  ├──taken──┼──frame──┼──frame──┼──part──┼──spare──┤
//! ```
//!
//! Invariants: `start <= end <= len`; after [`Inbox::spare`] there is room for at least one more
//! byte of the frame that begins at `start`; the buffer never grows beyond `max_frame_bytes`, and
//! only for a frame whose length was checked.

use crate::frame::{Decoded, Frame, FrameError, HEADER_BYTES, decode};

/// A frame that is moved to the front costs a copy; so much is always worth it for room to read
/// into.
const CHEAP_COPY: usize = 4 << 10;

#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// How long the frame at `start` is, as far as is known.
    need: usize,
    /// The frame at `start` is whole and its checksum has been compared: a held frame is not
    /// checked again.
    checked: bool,
    /// The size without frames that need more.
    usual_bytes: usize,
    max_frame_bytes: usize,
}

impl Inbox {
    pub(crate) fn new(usual_bytes: usize, max_frame_bytes: usize) -> Self {
        assert!(
            usual_bytes >= HEADER_BYTES,
            "{usual_bytes} bytes do not hold a header"
        );
        Self {
            bytes: vec![0; usual_bytes].into(),
            start: 0,
            end: 0,
            need: HEADER_BYTES,
            checked: false,
            usual_bytes,
            max_frame_bytes,
        }
    }

    /// From now on with other limits; what has been received stays.
    pub(crate) fn resize(&mut self, usual_bytes: usize, max_frame_bytes: usize) {
        self.usual_bytes = usual_bytes;
        self.max_frame_bytes = max_frame_bytes;
        self.reallocate(usual_bytes.max(self.end - self.start));
    }

    /// Where the next received bytes go. Never empty.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        let kept = self.end - self.start;
        assert!(
            kept < self.need,
            "the {kept} bytes received hold a whole frame of {}",
            self.need
        );
        if self.need > self.bytes.len() {
            self.reallocate(
                self.need
                    .next_power_of_two()
                    .min(self.max_frame_bytes)
                    .max(self.need),
            );
        } else if self.start + self.need > self.bytes.len()
            || (kept <= CHEAP_COPY && self.bytes.len() - self.end < self.bytes.len() / 2)
        {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, kept);
        }
        &mut self.bytes[self.end..]
    }

    /// The first `count` bytes of the spare part have been received.
    pub(crate) fn received(&mut self, count: usize) {
        assert!(
            self.end + count <= self.bytes.len(),
            "{count} bytes at {} of {}",
            self.end,
            self.bytes.len()
        );
        self.end += count;
    }

    /// The first frame, if it is there as a whole. It stays until it is taken.
    pub(crate) fn first(&mut self) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
        if self.end - self.start < self.need {
            return Ok(None);
        }
        match decode(
            &self.bytes[self.start..self.end],
            self.max_frame_bytes,
            !self.checked,
        )? {
            Decoded::Partial { need } => {
                self.need = need;
                Ok(None)
            }
            Decoded::Whole { frame, bytes } => {
                self.need = bytes;
                self.checked = true;
                Ok(Some((frame, bytes)))
            }
        }
    }

    /// The first frame, which is `count` bytes long, is done with.
    pub(crate) fn take(&mut self, count: usize) {
        assert!(
            self.checked && count == self.need,
            "{count} bytes taken of a frame of {}",
            self.need
        );
        self.start += count;
        self.need = HEADER_BYTES;
        self.checked = false;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// It has grown for a long frame and could shrink again.
    pub(crate) fn is_grown(&self) -> bool {
        self.bytes.len() > self.usual_bytes && self.need <= self.usual_bytes
    }

    /// Gives back what it has grown by, unless it is still in use.
    pub(crate) fn shrink(&mut self) {
        if self.is_grown() && self.end - self.start <= self.usual_bytes {
            self.reallocate(self.usual_bytes);
        }
    }

    /// Bytes received and not taken.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.end - self.start
    }

    /// Bytes of the buffer.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    fn reallocate(&mut self, capacity: usize) {
        let kept = self.end - self.start;
        let mut bytes = vec![0; capacity].into_boxed_slice();
        bytes[..kept].copy_from_slice(&self.bytes[self.start..self.end]);
        self.bytes = bytes;
        (self.start, self.end) = (0, kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Label, header};

    const LIMIT: usize = 1 << 16;

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        let head = [kind; 5];
        let header = header(Label { group: 1, kind }, &head, body.len(), None);
        [&header[..], &head, body].concat()
    }

    /// Feeds `bytes` in pieces no longer than `most`, and returns kind and body of each frame as
    /// they become whole.
    fn feed(inbox: &mut Inbox, mut bytes: &[u8], most: usize) -> Vec<(u8, Vec<u8>)> {
        let mut seen = Vec::new();
        while !bytes.is_empty() {
            let spare = inbox.spare();
            let count = spare.len().min(most).min(bytes.len());
            spare[..count].copy_from_slice(&bytes[..count]);
            inbox.received(count);
            bytes = &bytes[count..];
            while let Some((frame, length)) = inbox.first().expect("well formed") {
                seen.push((frame.label.kind, frame.body.to_vec()));
                inbox.take(length);
            }
        }
        seen
    }

    #[test]
    fn every_split_into_two_reads_gives_the_same_frames() {
        let bodies: [&[u8]; 3] = [b"", b"some body", &[7; 90]];
        let stream: Vec<u8> = bodies
            .iter()
            .enumerate()
            .flat_map(|(kind, body)| frame(kind as u8, body))
            .collect();
        let whole: Vec<(u8, Vec<u8>)> = bodies
            .iter()
            .enumerate()
            .map(|(kind, body)| (kind as u8, body.to_vec()))
            .collect();
        for cut in 0..=stream.len() {
            let mut inbox = Inbox::new(64, LIMIT);
            let mut seen = feed(&mut inbox, &stream[..cut], usize::MAX);
            seen.extend(feed(&mut inbox, &stream[cut..], usize::MAX));
            assert_eq!(seen, whole, "cut at {cut}");
        }
    }

    #[test]
    fn pieces_of_any_size_and_buffers_of_any_size_give_the_same_frames() {
        let bodies: Vec<Vec<u8>> = (0..40u8)
            .map(|i| vec![i; usize::from(i) * 37 % 300])
            .collect();
        let stream: Vec<u8> = bodies
            .iter()
            .enumerate()
            .flat_map(|(i, b)| frame(i as u8, b))
            .collect();
        let whole: Vec<(u8, Vec<u8>)> = bodies
            .iter()
            .enumerate()
            .map(|(i, b)| (i as u8, b.clone()))
            .collect();
        for usual in [16, 17, 100, 333, 5000] {
            for most in [1, 2, 3, 7, 16, 64, 1000] {
                let mut inbox = Inbox::new(usual, LIMIT);
                assert_eq!(
                    feed(&mut inbox, &stream, most),
                    whole,
                    "buffer {usual}, pieces {most}"
                );
            }
        }
    }

    #[test]
    fn it_grows_for_a_long_frame_and_shrinks_afterwards() {
        let mut inbox = Inbox::new(256, LIMIT);
        let long = frame(1, &[1; 50_000]);
        assert_eq!(feed(&mut inbox, &long[..40_000], 1000).len(), 0);
        inbox.shrink();
        assert!(
            inbox.capacity() >= long.len(),
            "in use: {}",
            inbox.capacity()
        );
        assert_eq!(feed(&mut inbox, &long[40_000..], 1000).len(), 1);
        assert!(inbox.capacity() <= LIMIT && inbox.is_grown());
        let begun = frame(2, &[2; 100]);
        assert_eq!(feed(&mut inbox, &begun[..30], 30).len(), 0);
        inbox.shrink();
        assert_eq!(inbox.capacity(), 256);
        assert_eq!(feed(&mut inbox, &begun[30..], 1000), [(2, vec![2; 100])]);
    }

    #[test]
    fn a_length_over_the_limit_makes_no_room() {
        let mut inbox = Inbox::new(256, LIMIT);
        let long = frame(1, &vec![1; LIMIT]);
        let spare = inbox.spare();
        spare[..16].copy_from_slice(&long[..16]);
        inbox.received(16);
        assert!(matches!(inbox.first(), Err(FrameError::TooLarge { .. })));
        assert_eq!(inbox.capacity(), 256);
    }

    #[test]
    fn a_frame_that_is_not_taken_is_offered_again() {
        let mut inbox = Inbox::new(256, LIMIT);
        let bytes = frame(4, b"held");
        inbox.spare()[..bytes.len()].copy_from_slice(&bytes);
        inbox.received(bytes.len());
        for _ in 0..3 {
            let (frame, count) = inbox.first().expect("well formed").expect("whole");
            assert_eq!((frame.body, count), (&b"held"[..], bytes.len()));
        }
        inbox.take(bytes.len());
        assert_eq!(inbox.first(), Ok(None));
    }
}
