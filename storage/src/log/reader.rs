//! Reading the log while it grows, from any thread.
//!
//! The log publishes bytes and position in this order: bytes written, index noted, (when a segment
//! begins) list of segments replaced and its generation raised, then `written` stored with Release. A
//! reader loads `written` with Acquire first, so whatever it finds below is there. The list is behind
//! a mutex that is taken only when the generation has moved: at most once per segment.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::log::segment::View;

type List = Arc<[Arc<View>]>;

/// What the log shows to its readers.
#[derive(Debug)]
pub(crate) struct Published {
    written: AtomicU64,
    /// Truncations begun: bytes that were published are written again only after this was raised.
    truncations: AtomicU64,
    generation: AtomicU64,
    list: Mutex<List>,
}

impl Published {
    pub(crate) fn new(written: u64, list: List) -> Published {
        let (written, generation) = (AtomicU64::new(written), AtomicU64::new(0));
        Published {
            written,
            truncations: AtomicU64::new(0),
            generation,
            list: Mutex::new(list),
        }
    }

    /// The records up to `index` may be read, and (after a truncation) no others.
    pub(crate) fn set_written(&self, index: u64) {
        if index < self.written.load(Ordering::Relaxed) {
            self.truncations.fetch_add(1, Ordering::AcqRel);
        }
        self.written.store(index, Ordering::Release);
    }

    /// No code panics while it holds the list, so a poisoned mutex still guards a whole one.
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_list(&self, list: List) {
        let mut place = self.list();
        *place = list;
        // Still under the mutex: who sees this generation finds this list.
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// Reads the log; one per thread. Clones look at the same log.
///
/// Between the start and the next segment border it neither allocates nor locks.
#[derive(Clone, Debug)]
pub struct Reader {
    published: Arc<Published>,
    seen: RefCell<Seen>,
}

/// The list of segments as this reader saw it last.
#[derive(Clone, Debug)]
struct Seen {
    generation: u64,
    list: List,
}

/// A run of records out of one segment, not copied. Whoever holds it keeps the segment's file from
/// being used again, so let go of it.
#[derive(Clone, Debug)]
pub struct Slice {
    view: Arc<View>,
    range: Range<usize>,
    first: u64,
    last: u64,
}

impl Slice {
    /// Index of its first record.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Index of its last record.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Encoded bytes in it.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Never: a slice holds at least one record.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Its records. They were verified when they were written here; a slice of records that were
    /// truncated meanwhile ends early here, or fails at whoever verifies the checksums.
    pub fn records(&self) -> crate::record::Walk<'_> {
        crate::record::walk(self.as_ref())
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self.view.map.slice(self.range.clone())
    }
}

/// Where a run of records lies.
struct Cut<'a> {
    view: &'a Arc<View>,
    range: Range<u64>,
    last: u64,
}

impl Reader {
    pub(crate) fn new(published: Arc<Published>) -> Reader {
        let list = published.list();
        let generation = published.generation.load(Ordering::Acquire);
        let seen = RefCell::new(Seen {
            generation,
            list: list.clone(),
        });
        drop(list);
        Reader { published, seen }
    }

    /// The last index that can be read: written, not necessarily durable.
    pub fn written(&self) -> u64 {
        self.published.written.load(Ordering::Acquire)
    }

    /// Truncations begun so far. What is read while this stays the same was not being written.
    pub(crate) fn truncations(&self) -> u64 {
        self.published.truncations.load(Ordering::Acquire)
    }

    /// The segment in which record `index` is, or would be, and the one behind it; `None` below the front.
    pub(crate) fn segment_of(&self, index: u64) -> Option<(Arc<View>, Option<Arc<View>>)> {
        let mut seen = self.seen.borrow_mut();
        seen.refresh(&self.published);
        let at = seen.list.partition_point(|view| view.base <= index);
        let view = seen.list[at.checked_sub(1)?].clone();
        Some((view, seen.list.get(at).cloned()))
    }

    /// Index of the first record that can be read, or of the next one; `None` while the log is being replaced.
    pub(crate) fn first(&self) -> Option<u64> {
        let mut seen = self.seen.borrow_mut();
        seen.refresh(&self.published);
        seen.list.first().map(|view| view.base)
    }

    /// The records from `first` to at most `last`, as many as fit into `max_bytes` and lie in one
    /// segment, but at least one. `None` when `first` is not written, was purged, or is after `last`.
    pub fn slice(&self, first: u64, last: u64, max_bytes: u64) -> Option<Slice> {
        self.cut(first, last, max_bytes, |cut| {
            let range = cut.range.start as usize..cut.range.end as usize;
            Slice {
                view: cut.view.clone(),
                range,
                first,
                last: cut.last,
            }
        })
    }

    /// Where [`Reader::slice`] with these arguments would end: its last index and its bytes. For
    /// `None` it is `(first - 1, 0)`.
    pub fn fit(&self, first: u64, last: u64, max_bytes: u64) -> (u64, u64) {
        self.cut(first, last, max_bytes, |cut| {
            (cut.last, cut.range.end - cut.range.start)
        })
        .unwrap_or((first.saturating_sub(1), 0))
    }

    fn cut<T>(
        &self,
        first: u64,
        last: u64,
        max_bytes: u64,
        make: impl FnOnce(Cut<'_>) -> T,
    ) -> Option<T> {
        let written = self.written();
        if first > written || first > last {
            return None;
        }
        let mut seen = self.seen.borrow_mut();
        seen.refresh(&self.published);
        let list = &seen.list;
        let at = list
            .partition_point(|view| view.base <= first)
            .checked_sub(1)?;
        let view = &list[at];
        let end_of_view = list.get(at + 1).map_or(u64::MAX, |next| next.base - 1);
        let last = last.min(written).min(end_of_view);
        let (found, start) = view.seek(first, u64::MAX)?;
        if found != first {
            return None;
        }
        let (mut next, mut end) = view.seek(last + 1, start.saturating_add(max_bytes))?;
        if next <= first {
            // The first record alone is longer than `max_bytes`: it comes alone.
            (next, end) = (first + 1, view.after(first, start)?);
        }
        // A truncation while we looked can only show as a border before the start.
        (start < end).then(|| {
            make(Cut {
                view,
                range: start..end,
                last: next - 1,
            })
        })
    }
}

/// How many bytes of the log lie before a record. It keeps hold of no segment.
#[derive(Clone, Debug)]
pub struct Extent {
    published: Arc<Published>,
}

impl Extent {
    pub(crate) fn new(published: Arc<Published>) -> Extent {
        Extent { published }
    }

    /// The first record of the segment in which record `index` is, or of one before it, so that whole segments of no more
    /// than `bytes` lie between the two. After the front of the log that is the front.
    pub fn back_from(&self, index: u64, bytes: u64) -> u64 {
        let list = self.published.list();
        let at = list.partition_point(|view| view.base <= index);
        let mut first = list[..at].last().map_or(index, |view| view.base);
        let mut left = bytes;
        for view in list[..at.saturating_sub(1)].iter().rev() {
            let Some(rest) = left.checked_sub(view.map.len() as u64) else {
                break;
            };
            (first, left) = (view.base, rest);
        }
        first
    }
}

impl Seen {
    fn refresh(&mut self, published: &Published) {
        if published.generation.load(Ordering::Acquire) != self.generation {
            let list = published.list();
            self.list = list.clone();
            self.generation = published.generation.load(Ordering::Acquire);
        }
    }
}
