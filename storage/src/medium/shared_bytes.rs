//! Bytes in memory that stand for a mapped file: read through one handle while another writes other ranges.

use std::cell::UnsafeCell;
use std::ops::Range;

/// Bytes that may be written while other ranges of them are read: what a shared map of a file is.
pub(crate) struct SharedBytes(Box<[UnsafeCell<u8>]>);

// SAFETY: all access is through `slice` and `write`, whose callers keep to the contract of
// `medium::Map`: a range is read only after it was published as written, which orders the write before
// the read, and it is written again only when its records were truncated, or are bad and put back.
unsafe impl Sync for SharedBytes {}

impl std::fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedBytes({})", self.len())
    }
}

impl SharedBytes {
    pub(crate) fn new(len: usize) -> SharedBytes {
        let zeros = Box::into_raw(vec![0_u8; len].into_boxed_slice());
        // SAFETY: the pointer comes from a box of just now, and `UnsafeCell<u8>` has the layout of `u8`.
        SharedBytes(unsafe { Box::from_raw(zeros as *mut [UnsafeCell<u8>]) })
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> &[u8] {
        let cells = &self.0[range];
        // SAFETY: the cells are one initialized allocation that lives as long as `self`, and
        // `UnsafeCell<u8>` has the layout of `u8`. That nobody writes this range meanwhile is the
        // promise of the `Sync` note above.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<u8>(), cells.len()) }
    }

    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        let cells = &self.0[at..at + bytes.len()];
        // SAFETY: the range is in bounds, and `bytes` is no part of it since nobody holds a slice of a
        // range that is being written (the `Sync` note above). Writers are serialized by the mutex of
        // the node.
        unsafe {
            let to = UnsafeCell::raw_get(cells.as_ptr()).cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }
}
