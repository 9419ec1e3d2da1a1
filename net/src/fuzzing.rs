//! A way into frames and greetings for the fuzz targets of `fuzz/targets`; not part of the interface.

use crate::frame::{Decoded, Frame, FrameError, Label, decode, header};
use crate::hello::{Hello, Refusal};
use crate::inbox::Inbox;

/// A frame that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedFrame {
    /// The group in its label.
    pub group: u32,
    /// The kind in its label.
    pub kind: u8,
    /// The head.
    pub head: Vec<u8>,
    /// The body.
    pub body: Vec<u8>,
}

impl OwnedFrame {
    fn of(frame: &Frame<'_>) -> Self {
        Self {
            group: frame.label.group,
            kind: frame.label.kind,
            head: frame.head.to_vec(),
            body: frame.body.to_vec(),
        }
    }

    fn label(&self) -> Label {
        Label {
            group: self.group,
            kind: self.kind,
        }
    }

    /// The bytes that travel.
    pub fn encode(&self, covers_body: bool) -> Vec<u8> {
        let covered = covers_body.then_some(&*self.body);
        let header = header(self.label(), &self.head, self.body.len(), covered);
        [&header[..], &self.head, &self.body].concat()
    }

    /// The head of the hello or of the refusal that this frame is understood as, written anew;
    /// `None` when it is neither.
    pub fn greeting(&self) -> Option<Vec<u8>> {
        let frame = Frame {
            label: self.label(),
            head: &self.head,
            body: &self.body,
        };
        let hello = Hello::decode(&frame).map(|hello| hello.encode().to_vec());
        hello.or_else(|| Refusal::decode(&frame).map(|refusal| refusal.encode().to_vec()))
    }
}

/// The frames of `bytes`, and the bytes they take; or what is wrong behind them. Nothing is kept
/// between frames: the slow definition of what a [`Stream`] gives.
pub fn decode_all(
    mut bytes: &[u8],
    max_frame_bytes: usize,
) -> (Vec<OwnedFrame>, Result<(), FrameError>) {
    let mut frames = Vec::new();
    loop {
        match decode(bytes, max_frame_bytes, true) {
            Ok(Decoded::Partial { .. }) => return (frames, Ok(())),
            Ok(Decoded::Whole { frame, bytes: len }) => {
                frames.push(OwnedFrame::of(&frame));
                bytes = &bytes[len..];
            }
            Err(error) => return (frames, Err(error)),
        }
    }
}

/// What one connection reads into.
#[derive(Debug)]
pub struct Stream(Inbox);

impl Stream {
    /// With these limits, as [`Config`](crate::Config) has them.
    pub fn new(read_buffer_bytes: usize, max_frame_bytes: usize) -> Self {
        Self(Inbox::new(read_buffer_bytes, max_frame_bytes))
    }

    /// Bytes of its buffer.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Takes `bytes` as they come from a socket, as many at once as it has room for.
    ///
    /// # Errors
    /// What the frames behind those in `frames` are not; nothing can be received any more.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        frames: &mut Vec<OwnedFrame>,
    ) -> Result<(), FrameError> {
        while !bytes.is_empty() {
            let spare = self.0.spare();
            let count = spare.len().min(bytes.len());
            spare[..count].copy_from_slice(&bytes[..count]);
            self.0.received(count);
            bytes = &bytes[count..];
            while let Some((frame, len)) = self.0.first()? {
                frames.push(OwnedFrame::of(&frame));
                self.0.take(len);
            }
            self.0.shrink();
        }
        Ok(())
    }
}
