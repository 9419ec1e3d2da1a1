//! The part of a frame that is not copied into its head, and the buffers that it is made of.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use storage::Slice;

/// The part of a frame that is not copied into its head.
pub(crate) enum Body {
    /// Records where they lie in the log.
    Log(Slice),
    /// Forwarded proposals, or the tokens of refused ones.
    Pooled(Pooled),
    /// A part of a snapshot, or records; who made it takes the buffer again when it is sent.
    Parcel(Arc<Vec<u8>>),
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Log(slice) => slice.as_ref(),
            Self::Pooled(pooled) => &pooled.bytes,
            Self::Parcel(bytes) => bytes,
        }
    }
}

/// Buffers for forwarded proposals.
pub(super) struct Pool {
    kept: ArrayQueue<Vec<u8>>,
    /// Bytes that those hold.
    held: AtomicUsize,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self {
            kept: ArrayQueue::new(POOLED),
            held: AtomicUsize::new(0),
        }
    }

    pub(super) fn take(&self) -> Vec<u8> {
        let buffer = self.kept.pop().unwrap_or_default();
        self.held.fetch_sub(buffer.capacity(), Ordering::Relaxed);
        buffer
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if self.held.fetch_add(capacity, Ordering::Relaxed) + capacity > POOLED_BYTES
            || self.kept.push(buffer).is_err()
        {
            self.held.fetch_sub(capacity, Ordering::Relaxed);
        }
    }

    /// Gives them all back to the system.
    pub(super) fn trim(&self) {
        for _ in 0..POOLED {
            drop(self.take());
        }
    }
}

/// A buffer that returns to its pool.
pub(crate) struct Pooled {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.bytes));
    }
}

pub(super) fn pooled(pool: &Arc<Pool>, bytes: &[u8]) -> Pooled {
    let mut buffer = pool.take();
    buffer.clear();
    buffer.extend_from_slice(bytes);
    Pooled {
        bytes: buffer,
        pool: pool.clone(),
    }
}

/// Buffers for forwarded proposals that are kept for the next ones.
const POOLED: usize = 64;

/// Bytes of these, at the most.
pub(crate) const POOLED_BYTES: usize = 16 << 20;
