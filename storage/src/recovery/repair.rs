//! Doing what `plan.rs` found to be done after a stop.
//!
//! Invariants: nothing is changed before everything was looked at; every step of the repair leaves a
//! state from which the next start reaches the same end; what is reported as recovered is durable. Before anything is cut
//! that had been promised, the file `heal` says so, durably.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::decision::Decision;
use crate::error::{Doing, StorageError};
use crate::files::heal::HealFile;
use crate::files::identity::Identity;
use crate::log::loaded::Loaded;
use crate::log::preallocate::Segment;
use crate::log::segment::View;
use crate::log::tail_marker::{MARKER_LEN, MarkerKind, TailMarker, is_zero};
use crate::medium::PAGE;
use crate::medium::{Dir, File};
use crate::options::Options;
use crate::recovery::plan::{self, Intent, RecoveryPlan, Rules};
use crate::recovery::segment_reader::{SegmentReader, patch};

/// What recovery leaves.
pub(crate) enum Repaired<F> {
    /// The log.
    Log(Loaded<F>),
    /// Nothing of the log can be kept, and nothing was changed: it begins anew behind the newest snapshot, or with 1.
    Nothing(Vec<Decision>),
}

/// Reads the log of `dir`, repairs what may be repaired, and makes all of it durable. What was lost goes into `healing`.
pub(crate) fn recover<D: Dir>(
    dir: &D,
    identity: &Identity,
    intent: Option<Intent>,
    snapshot: Option<(u64, u64)>,
    options: &Options,
    healing: &mut HealFile<D>,
) -> Result<Repaired<D::File>, StorageError> {
    let rules = Rules {
        heal: options.heal,
        healing: healing.is_some(),
        snapshot,
    };
    let sync = options.sync;
    let mut plan = plan::look(dir, identity, intent, rules)?;
    if let Some(lost) = plan.lost.take() {
        healing.lost(lost, plan.term)?;
    }
    if plan.keep.is_empty() {
        return Ok(Repaired::Nothing(plan.decisions));
    }

    // From here on the directory is changed. Every step leaves a state from which the same end is
    // reached again: segments go back to front, and the last one keeps what it knows until the end.
    for name in &plan.remove {
        dir.remove(name).doing("remove", &dir.path(name))?;
        sync_names(dir, sync)?;
    }
    sync_names(dir, sync)?;
    let RecoveryPlan {
        keep,
        at,
        term_runs,
        sound_marker,
        seen,
        reseal,
        next_seq,
        decisions,
        prev_term,
        ..
    } = plan;
    let last = at.next - 1;
    let seen = sound_marker.unwrap_or(seen);
    let mut segments: VecDeque<_> = keep
        .into_iter()
        .map(|c| Segment {
            view: Arc::new(c.view),
            file: c.file,
            dirty: false,
        })
        .collect();
    for seal in reseal {
        let Segment { view, file, .. } = &segments[seal.segment];
        let file = file.get()?;
        let marker = TailMarker {
            kind: MarkerKind::Seal,
            end_index: seal.end_index,
            flushed_index: seal.end_index.min(seen),
            seq: view.seq,
            incarnation: identity.incarnation,
        };
        patch(&file, seal.offset, &marker.encode())?;
        if sync {
            // Closed and opened again it might not tell of a write that failed.
            flush(&file)?;
        }
    }
    let tail = segments.back_mut().expect("the plan keeps one");
    let file = tail.file.open()?.clone();
    let tail = tail.view.clone();
    let marker = |flushed_index| TailMarker {
        kind: MarkerKind::Tail,
        end_index: last,
        flushed_index,
        seq: tail.seq,
        incarnation: identity.incarnation,
    };
    if sound_marker.is_none() {
        patch(&file, at.offset, &marker(seen).encode())?;
    }
    let behind = at.offset + MARKER_LEN as u64;
    erase(&tail, &file, behind, intent.is_some())?;
    let mut marked = seen;
    if sync {
        renew(&segments, seen, last)?;
        // Also what looked sound: it may have been in the page cache only.
        for segment in &segments {
            flush(&segment.file.get()?)?;
        }
        if marked != last {
            write(&file, at.offset, &marker(last).encode())?;
            flush(&file)?;
            marked = last;
        }
    }
    Ok(Repaired::Log(Loaded {
        segments,
        tail: at.offset,
        last,
        last_term: at.term,
        last_time_us: at.time_us,
        prev_term,
        term_runs,
        marked,
        next_seq,
        decisions,
    }))
}

/// Writes once more what no marker says was flushed.
///
/// When a flush fails the kernel keeps the pages and calls them clean. A process that starts after that reads them, and
/// a flush of clean pages is no flush: they would be gone with the next power failure. Written again they are dirty.
fn renew<F: File>(
    segments: &VecDeque<Segment<F>>,
    flushed: u64,
    last: u64,
) -> Result<(), StorageError> {
    const CHUNK: usize = 256 << 10;
    let mut bytes = Vec::new();
    for (number, Segment { view, file, .. }) in segments.iter().enumerate() {
        let end_index = segments
            .get(number + 1)
            .map_or(last, |next| next.view.base - 1);
        if end_index <= flushed {
            continue;
        }
        let file = file.get()?;
        let offset_of = |index| match view.seek(index, u64::MAX) {
            Some((found, offset)) if found == index => offset as usize,
            other => panic!(
                "record {index} of segment {} was just verified: {other:?}",
                view.seq
            ),
        };
        // A header is flushed together with the first records behind it.
        let from = if view.base > flushed {
            0
        } else {
            offset_of(flushed + 1)
        };
        let end = offset_of(end_index + 1) + MARKER_LEN;
        let mut at = from;
        while at < end {
            let next = (at + CHUNK).min(end);
            bytes.resize(next - at, 0);
            file.read_at(at as u64, &mut bytes)
                .doing_at("read", file.path(), at as u64)?;
            write(&file, at as u64, &bytes)?;
            at = next;
        }
        // Before it is closed: opened again it might not tell of a write that failed.
        flush(&file)?;
    }
    Ok(())
}

/// Writes zeros over what is not zero in `from..`, or over `all` of it: an erasure that was begun may be in the page
/// cache only (see [`renew`]). What cannot be read counts as not zero, and can be read and written again afterwards:
/// the log will go on in there.
fn erase<F: File>(view: &View, file: &F, from: u64, all: bool) -> Result<(), StorageError> {
    const CHUNK: u64 = 64 * 1024;
    let (mut at, end) = (from, view.map.len() as u64);
    let mut source = SegmentReader::new(file.clone(), end);
    while at < end {
        // To the border of a page: none is written in part that is not known.
        let next = ((at + CHUNK) / PAGE * PAGE).min(end);
        let len = (next - at) as usize;
        let zero = is_zero(&source.bytes(at, len)?[..len]);
        if all || !zero || source.hole(at..next).is_some() {
            patch(file, at, &[0; CHUNK as usize][..len])?;
        }
        at = next;
    }
    Ok(())
}

fn write<F: File>(file: &F, at: u64, bytes: &[u8]) -> Result<(), StorageError> {
    file.write_at(at, bytes).doing_at("write", file.path(), at)
}

fn flush<F: File>(file: &F) -> Result<(), StorageError> {
    file.sync().doing("flush", file.path())
}

fn sync_names<D: Dir>(dir: &D, sync: bool) -> Result<(), StorageError> {
    if sync {
        dir.sync_dir("log")
            .doing("flush the directory", &dir.path("log"))?;
    }
    Ok(())
}
