//! Reading a directory after a stop, and doing what `recover.rs` decides.
//!
//! Invariants: nothing is changed before everything was looked at; every step of the repair leaves a
//! state from which the next start reaches the same end; what is reported as recovered is durable.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Doing, StorageError};
use crate::file::{Dir, File};
use crate::identity::Identity;
use crate::mark::{MARK_LEN, Mark, MarkKind, is_zero};
use crate::meta::META_NAME;
use crate::prepare::Segment;
use crate::record::{self, RecordError};
use crate::recover::{Action, Decision, Found};
use crate::segment::{
    RECORDS_AT, SEGMENT_HEADER_LEN, SegmentHeader, SparseIndex, State, View, segment_name,
};

/// The log as found, ready to go on.
pub(crate) struct Loaded<F> {
    pub(crate) segments: VecDeque<Segment<F>>,
    /// Where the next record goes in the last segment.
    pub(crate) tail: u64,
    pub(crate) last: u64,
    pub(crate) last_term: u64,
    pub(crate) last_time_us: u64,
    /// Term of the record before the first.
    pub(crate) prev_term: u64,
    pub(crate) term_runs: Vec<(u64, u64)>,
    /// What the mark at the tail says was flushed.
    pub(crate) marked: u64,
    pub(crate) next_seq: u64,
    pub(crate) decisions: Vec<Decision>,
}

/// A segment in use, before its records were looked at.
struct Candidate<F> {
    header: SegmentHeader,
    name: String,
    view: View,
    file: F,
}

/// Where the walk over a segment's records ended, and why.
struct Walk {
    /// The index that was expected next.
    next: u64,
    offset: u64,
    term: u64,
    time_us: u64,
    why: String,
}

/// A truncation that was begun, as the meta file tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intent {
    /// The last index to keep.
    pub(crate) after: u64,
    /// The file's other copy is bad.
    pub(crate) alone: bool,
}

/// Reads the log of `dir`, repairs what may be repaired, and makes all of it durable.
pub(crate) fn recover<D: Dir>(
    dir: &D,
    identity: &Identity,
    intent: Option<Intent>,
    sync: bool,
) -> Result<Loaded<D::File>, StorageError> {
    let mut decisions = Vec::new();
    let mut to_remove = Vec::new();
    let mut next_seq = 1;
    let candidates = survey(dir, identity, &mut decisions, &mut to_remove, &mut next_seq)?;
    let Some(front) = candidates.first() else {
        let detail = "no segment is in use, although the directory was a log";
        return Err(StorageError::corrupt(&dir.path("log"), 0, detail));
    };
    let (base, prev_term) = (front.header.base, front.header.prev_term);
    let limit = intent.map_or(u64::MAX, |intent| intent.after);
    if limit < base - 1 {
        let detail = format!("a truncation after {limit} was begun, the log starts at {base}");
        return Err(StorageError::corrupt(front.file.path(), 0, detail));
    }

    // Walk from the front until the records end.
    let mut term_runs = Vec::new();
    let mut at = Walk {
        next: base,
        offset: RECORDS_AT,
        term: prev_term,
        time_us: 0,
        why: String::new(),
    };
    let mut ending = 0;
    // What the mark at the end says was flushed; the end needs no new mark.
    let mut sound_mark = None;
    for (i, candidate) in candidates.iter().enumerate() {
        ending = i;
        at = walk(candidate, at, limit, &mut term_runs)?;
        let bytes = rest(candidate, at.offset);
        let mark = Mark::decode(bytes, candidate.header.seq, identity.incarnation)
            .filter(|mark| mark.end_index == at.next - 1);
        if at.next > limit {
            // A copy is torn only by the write that follows the intent, which clears it, and by then
            // nothing was left behind it. If there is something, the truncation was over long ago, the
            // copy that said so went bad, and what stands there was promised since.
            let goes_on = record::decode(bytes).is_ok() || i + 1 < candidates.len();
            if goes_on && intent.is_some_and(|intent| intent.alone) {
                let detail = format!(
                    "the copy in force is damaged: the other one wants the log to end at {limit}, but \
                     it goes on"
                );
                return Err(StorageError::corrupt(&dir.path(META_NAME), 0, detail));
            }
            decisions.push(Decision::new(
                &*candidate.name,
                Found::TruncationBegun { after: limit },
            ));
            break;
        }
        let (first, last) = (candidate.header.base, at.next - 1);
        match (mark, candidates.get(i + 1)) {
            (
                Some(Mark {
                    kind: MarkKind::Seal,
                    ..
                }),
                Some(next),
            ) if (next.header.base, next.header.prev_term) == (at.next, at.term) => {
                decisions.push(Decision::new(
                    &*candidate.name,
                    Found::Sealed { first, last },
                ));
            }
            (Some(mark), None) => {
                let leftovers = !is_zero(&bytes[MARK_LEN..]);
                let found = Found::Tail {
                    first,
                    last,
                    leftovers,
                };
                decisions.push(Decision::new(&*candidate.name, found));
                sound_mark = (mark.kind == MarkKind::Tail).then_some(mark.flushed_index);
                break;
            }
            (_, next) => {
                if let (Some(_), Some(next)) = (mark, next)
                    && next.header.base != at.next
                {
                    at.why = format!("the next segment begins with {}", next.header.base);
                }
                let flushed =
                    evidence(&candidates[i..], at.offset, identity.incarnation).min(limit);
                let (index, offset) = (at.next, at.offset);
                let found = if index <= flushed {
                    Found::Damaged {
                        index,
                        offset,
                        flushed,
                    }
                } else {
                    Found::Torn { index, offset }
                };
                let decision = Decision::new(&*candidate.name, found);
                if decision.action == Action::Refuse {
                    let detail = format!(
                        "the log had been durable up to {flushed}, but record {index} is not there: {}",
                        at.why
                    );
                    let path = candidate.file.path().into();
                    return Err(StorageError::Corrupt {
                        path,
                        offset,
                        index: Some(index),
                        detail,
                    });
                }
                decisions.push(decision);
                break;
            }
        }
    }
    let behind = match intent {
        Some(_) => Found::BehindTruncation,
        None => Found::BehindTear,
    };
    for candidate in &candidates[ending + 1..] {
        decisions.push(Decision::new(&*candidate.name, behind.clone()));
        to_remove.push(candidate.name.clone());
    }
    decisions.sort_by(|a, b| a.file.cmp(&b.file));

    // From here on the directory is changed. Every step leaves a state from which the same end is
    // reached again: segments go back to front, and the last one keeps what it knows until the end.
    for name in to_remove.iter().rev() {
        dir.remove(name).doing("remove", &dir.path(name))?;
        sync_names(dir, sync)?;
    }
    sync_names(dir, sync)?;
    let last = at.next - 1;
    let seen = match sound_mark {
        Some(flushed) => flushed,
        None => evidence(&candidates[ending..], at.offset, identity.incarnation).min(last),
    };
    let segments: VecDeque<_> = candidates
        .into_iter()
        .take(ending + 1)
        .map(|c| Segment {
            view: Arc::new(c.view),
            file: c.file,
            dirty: false,
        })
        .collect();
    let tail = segments.back().expect("the walk ended in one of them");
    let mark = |flushed_index| Mark {
        kind: MarkKind::Tail,
        end_index: last,
        flushed_index,
        seq: tail.view.seq,
        incarnation: identity.incarnation,
    };
    if sound_mark.is_none() {
        write(&tail.file, at.offset, &mark(seen).encode())?;
    }
    let behind = at.offset + MARK_LEN as u64;
    erase(&tail.view, &tail.file, behind, intent.is_some())?;
    let mut marked = seen;
    if sync {
        renew(&segments, seen, last)?;
        // Also what looked sound: it may have been in the page cache only.
        for segment in &segments {
            flush(&segment.file)?;
        }
        if marked != last {
            write(&tail.file, at.offset, &mark(last).encode())?;
            flush(&tail.file)?;
            marked = last;
        }
    }
    Ok(Loaded {
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
    })
}

/// Opens every segment in use, in the order of use.
fn survey<D: Dir>(
    dir: &D,
    identity: &Identity,
    decisions: &mut Vec<Decision>,
    to_remove: &mut Vec<String>,
    next_seq: &mut u64,
) -> Result<Vec<Candidate<D::File>>, StorageError> {
    let mut names = dir.list("log").doing("list", &dir.path("log"))?;
    names.sort_unstable();
    let mut candidates: Vec<Candidate<D::File>> = Vec::new();
    for name in names {
        let full = format!("log/{name}");
        if name.ends_with(".tmp") {
            decisions.push(Decision::new(&*full, Found::Unfinished));
            to_remove.push(full);
            continue;
        }
        let seq = name.strip_suffix(".seg").and_then(|seq| seq.parse().ok());
        let Some(seq) = seq.filter(|&seq| segment_name(seq) == full) else {
            decisions.push(Decision::new(full, Found::Unknown));
            continue;
        };
        let (header, file) = open_segment(dir, &full)?;
        // A recycled segment carries its next number before it has the name.
        *next_seq = (*next_seq).max(header.seq + 1).max(seq + 1);
        let names = [
            ("cluster", header.cluster_id, identity.cluster_id),
            ("group", header.group_id.into(), identity.group_id.into()),
        ];
        for (what, found, expected) in names {
            if found != expected {
                let path = file.path().into();
                return Err(StorageError::Foreign {
                    path,
                    what,
                    found,
                    expected,
                });
            }
        }
        if header.state == State::Spare {
            decisions.push(Decision::new(&*full, Found::Spare));
            to_remove.push(full);
            continue;
        }
        if header.seq != seq {
            let detail = format!(
                "the header says segment {}, the name says {seq}",
                header.seq
            );
            return Err(StorageError::corrupt(file.path(), 32, detail));
        }
        if let Some(before) = candidates.last()
            && header.base < before.header.base
        {
            let (base, before) = (header.base, before.header.base);
            let detail = format!("begins with record {base}, the segment before with {before}");
            return Err(StorageError::corrupt(file.path(), 40, detail));
        }
        let map = file.map().doing("map", file.path())?;
        let SegmentHeader {
            base,
            prev_term,
            len,
            ..
        } = header;
        let view = View {
            seq,
            base,
            prev_term,
            map,
            index: SparseIndex::new(len),
            lease: Arc::default(),
        };
        candidates.push(Candidate {
            header,
            name: full,
            view,
            file,
        });
    }
    Ok(candidates)
}

/// Opens a segment file and reads its header.
pub(crate) fn open_segment<D: Dir>(
    dir: &D,
    name: &str,
) -> Result<(SegmentHeader, D::File), StorageError> {
    let path = dir.path(name);
    let file = dir.open(name).doing("open", &path)?;
    let len = file.length().doing("read the length of", &path)?;
    if len < RECORDS_AT + MARK_LEN as u64 {
        let detail = format!("the file has {len} bytes, too few for a segment");
        return Err(StorageError::corrupt(&path, 0, detail));
    }
    let mut bytes = [0; SEGMENT_HEADER_LEN];
    file.read_at(0, &mut bytes).doing_at("read", &path, 0)?;
    Ok((SegmentHeader::decode(&bytes, &path, len)?, file))
}

/// Walks the records of one segment: each verified, each the successor of the one before.
fn walk<F: File>(
    candidate: &Candidate<F>,
    from: Walk,
    limit: u64,
    term_runs: &mut Vec<(u64, u64)>,
) -> Result<Walk, StorageError> {
    let view = &candidate.view;
    let mut at = Walk {
        offset: RECORDS_AT,
        why: String::new(),
        ..from
    };
    while at.next <= limit {
        let bytes = rest(candidate, at.offset);
        let header = match record::decode(bytes) {
            Ok((record, len))
                if record.header.index == at.next && record.header.term >= at.term =>
            {
                view.index.note(at.next - view.base, at.offset);
                at.offset += len as u64;
                record.header
            }
            Ok((record, _)) => {
                let record::Header { index, term, .. } = record.header;
                at.why = format!("record {index} of term {term} is in its place");
                break;
            }
            Err(RecordError::Version(found)) if record::u64_at(bytes, 8) == at.next => {
                let (found, supported) = (found.into(), record::VERSION.into());
                return Err(StorageError::Version {
                    path: candidate.file.path().into(),
                    found,
                    supported,
                });
            }
            Err(error) => {
                at.why = error.to_string();
                break;
            }
        };
        if term_runs
            .last()
            .is_none_or(|&(term, _)| term != header.term)
        {
            term_runs.push((header.term, header.index));
        }
        (at.next, at.term, at.time_us) = (header.index + 1, header.term, header.time_us);
    }
    Ok(at)
}

/// The bytes of a segment from `offset` on.
fn rest<F>(candidate: &Candidate<F>, offset: u64) -> &[u8] {
    candidate
        .view
        .map
        .slice(offset as usize..candidate.view.map.len())
}

/// How far the marks from `offset` of the first segment on say that the log had been durable.
fn evidence<F>(candidates: &[Candidate<F>], offset: u64, incarnation: u64) -> u64 {
    let mut from = offset;
    let mut furthest = 0;
    for candidate in candidates {
        let bytes = rest(candidate, from);
        furthest = furthest.max(Mark::furthest_flushed(
            bytes,
            candidate.header.seq,
            incarnation,
        ));
        from = RECORDS_AT;
    }
    furthest
}

/// Writes once more what no mark says was flushed.
///
/// When a flush fails the kernel keeps the pages and calls them clean. A process that starts after that reads them, and
/// a flush of clean pages is no flush: they would be gone with the next power failure. Written again they are dirty.
fn renew<F: File>(
    segments: &VecDeque<Segment<F>>,
    flushed: u64,
    last: u64,
) -> Result<(), StorageError> {
    const CHUNK: usize = 256 << 10;
    for (number, Segment { view, file, .. }) in segments.iter().enumerate() {
        let end_index = segments
            .get(number + 1)
            .map_or(last, |next| next.view.base - 1);
        if end_index <= flushed {
            continue;
        }
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
        let end = offset_of(end_index + 1) + MARK_LEN;
        let mut at = from;
        while at < end {
            let next = (at + CHUNK).min(end);
            // A copy, for the source of the write is a map of the place that it goes to.
            let bytes = view.map.slice(at..next).to_vec();
            write(file, at as u64, &bytes)?;
            at = next;
        }
    }
    Ok(())
}

/// Writes zeros over what is not zero in `from..`, or over `all` of it: an erasure that was begun may be in the page
/// cache only (see [`renew`]).
fn erase<F: File>(view: &View, file: &F, from: u64, all: bool) -> Result<(), StorageError> {
    const CHUNK: usize = 64 * 1024;
    let (mut at, end) = (from as usize, view.map.len());
    while at < end {
        let next = (at + CHUNK).min(end);
        if all || !is_zero(view.map.slice(at..next)) {
            write(file, at as u64, &[0; CHUNK][..next - at])?;
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
