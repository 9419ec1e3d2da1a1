//! Replacing the whole log by a snapshot that stands for it: afterwards it is empty, and goes on behind the snapshot.
//!
//! The danger: half of the old segments are gone and the power fails. What is left must not be taken for the log, and a
//! new segment behind a gap not for its torn end. Hence the steps, each durable before the next:
//! 1. the snapshot is there, whole: whoever asks for the reset has seen to that;
//! 2. a flush that runs is waited for; the next segment is at hand, so that a full disk shows before anything is changed;
//! 3. the intent `reset_to` goes into the meta file; from here on a start finishes the job;
//! 4. all old segments are removed, in any order, and before them those that were on their way out already;
//! 5. the new segment gets its header and its marker;
//! 6. the intent is cleared, before any new record can be reported durable.
//!
//! A start does the same when it finds a snapshot that the log does not reach, or contradicts: the process ended between
//! the two. It refuses when a gap is between snapshot and log: an empty log would be a lie.
//!
//! `tests/reset.rs` cuts the power before each single operation of this.

use std::collections::VecDeque;
use std::mem;

use crate::error::{Doing, StorageError};
use crate::files::identity::Identity;
use crate::files::meta::{META_NAME, MetaState};
use crate::log::FlushState;
use crate::log::Log;
use crate::log::loaded::Loaded;
use crate::log::preallocate::{Segment, SegmentFactory, Spare};
use crate::log::segment::{RECORDS_AT, SegmentHeader, State, segment_name};
use crate::log::tail_marker::{MarkerKind, TailMarker};
use crate::medium::{Dir, File};
use crate::recovery::segment_reader::{SegmentReader, Unsound};
use crate::recovery::segments::open_segment;
use crate::snapshot::scan::FolderScan;

impl<D: Dir> Log<D> {
    /// Replaces the whole log by an empty one: the next record is `index + 1`, behind a record of `term`. Durable when it
    /// returns: it waits for the disk several times. Readers see the new end at once; whoever holds a slice of the old
    /// log keeps it.
    ///
    /// The snapshot at `index` must be durable before ([`crate::Snapshots`]): it is all that is left of the old log.
    ///
    /// # Errors
    /// The medium failed. When there was no room for a new segment, nothing was changed, and the log goes on.
    ///
    /// # Panics
    /// When `index + 1` is below the first index of the log, or there is no such index or term.
    pub fn reset_to(&mut self, index: u64, term: u64) -> Result<(), StorageError> {
        self.check()?;
        let first = self.first();
        assert!(
            index + 1 >= first,
            "replacing a log that begins with {first} by a snapshot at {index}"
        );
        assert!(
            index > 0 && term > 0,
            "replacing the log by a snapshot at {index} of term {term}"
        );
        let spare = self.preallocator.take()?;
        let result = self.reset(spare, index, term);
        self.keep(result)
    }

    fn reset(&mut self, spare: Spare<D::File>, index: u64, term: u64) -> Result<(), StorageError> {
        if self.land(true)? == FlushState::Done {
            self.done_unsaid = true;
        }
        // No list first: who sees the new end then finds nothing of the old log below it.
        self.published.set_list([].into());
        self.published.set_written(index);

        self.save_reset(Some((index, term)))?;

        let old = mem::take(&mut self.segments);
        self.enter(spare.into_segment(index + 1, term));
        (self.last, self.last_term, self.durable) = (index, term, index);
        self.preallocator.clear(old)?;

        self.write_tail(true, &[], index, MarkerKind::Tail)?;
        let segment = self.segments.back_mut().expect("it was just entered");
        if self.options.sync {
            let path = segment.file.path();
            segment.file.file().sync().doing("flush", path)?;
        }
        segment.dirty = false;
        self.publish_list();

        self.save_reset(None)?;
        // As after a truncation: whoever counts writes by the flushes that cover them shall hear of it.
        self.news = true;
        Ok(())
    }

    /// Writes the meta file with this intent, and waits until it is durable.
    fn save_reset(&mut self, reset_to: Option<(u64, u64)>) -> Result<(), StorageError> {
        self.meta.set(MetaState {
            reset_to,
            ..self.meta.state()
        });
        self.write_meta()
    }
}

/// A new segment in use, empty, with its marker: the log begins in it.
pub(crate) fn begin_log<D: Dir>(
    segment_factory: &mut SegmentFactory<D>,
    incarnation: u64,
    base: u64,
    prev_term: u64,
) -> Result<Segment<D::File>, StorageError> {
    let segment = segment_factory.preallocate()?.into_segment(base, prev_term);
    let header = SegmentHeader {
        state: State::InUse,
        cluster_id: segment_factory.cluster_id,
        group_id: segment_factory.group_id,
        seq: segment.view.seq,
        base,
        prev_term,
        len: segment_factory.segment_bytes,
    };
    let marker = TailMarker {
        kind: MarkerKind::Tail,
        end_index: base - 1,
        flushed_index: if segment_factory.sync { base - 1 } else { 0 },
        seq: segment.view.seq,
        incarnation,
    };
    let file = segment.file.file();
    file.write_at(0, &header.encode())
        .doing_at("write", file.path(), 0)?;
    file.write_at(RECORDS_AT, &marker.encode())
        .doing_at("write", file.path(), RECORDS_AT)?;
    if segment_factory.sync {
        file.sync().doing("flush", file.path())?;
    }
    Ok(segment)
}

/// Steps 4 and 5 at a start, with the intent durable: whatever is in the folder goes.
pub(crate) fn replace<D: Dir>(
    segment_factory: &mut SegmentFactory<D>,
    identity: &Identity,
    (index, term): (u64, u64),
) -> Result<Loaded<D::File>, StorageError> {
    for name in files_of_log(&segment_factory.dir)? {
        let path = segment_factory.dir.path(&name);
        segment_factory.dir.remove(&name).doing("remove", &path)?;
    }
    segment_factory.sync_names()?;
    let segment = begin_log(segment_factory, identity.incarnation, index + 1, term)?;
    Ok(Loaded {
        segments: VecDeque::from([segment]),
        tail: RECORDS_AT,
        last: index,
        last_term: term,
        last_time_us: 0,
        prev_term: term,
        term_runs: Vec::new(),
        marked: if segment_factory.sync { index } else { 0 },
        next_seq: segment_factory.next_seq,
        decisions: Vec::new(),
    })
}

/// The names of segments and unfinished segments, in the order of use. Other files are not ours.
fn files_of_log<D: Dir>(dir: &D) -> Result<Vec<String>, StorageError> {
    let mut names = dir.list("log").doing("list", &dir.path("log"))?;
    names.sort_unstable();
    let full = names.iter().map(|name| format!("log/{name}"));
    Ok(full
        .filter(|name| name.ends_with(".tmp") || seq_of(name).is_some())
        .collect())
}

/// The number of the segment that has this path, if one has.
fn seq_of(name: &str) -> Option<u64> {
    let seq = name.strip_prefix("log/")?.strip_suffix(".seg")?;
    let seq = seq.parse().ok()?;
    (segment_name(seq) == name).then_some(seq)
}

/// The number after those of all segments.
pub(crate) fn seq_after_all<D: Dir>(dir: &D) -> Result<u64, StorageError> {
    let names = files_of_log(dir)?;
    let last = names.iter().filter_map(|name| seq_of(name)).max();
    Ok(last.unwrap_or(0) + 1)
}

/// What shall replace the log, when a start finds that this was begun.
pub(crate) fn target<D: Dir>(
    dir: &D,
    begun: (u64, u64),
    alone: bool,
    snapshots: &FolderScan<D>,
) -> Result<(u64, u64), StorageError> {
    let (index, term) = begun;
    let path = dir.path(META_NAME);
    let newest = snapshots.covered();
    let Some(newest) = newest.filter(|newest| newest.0 > index || *newest == begun) else {
        let detail = format!(
            "the log was being replaced by the snapshot at {index} of term {term}, which is not there{}",
            snapshots.bad_ones()
        );
        return Err(StorageError::corrupt(&path, 0, detail));
    };
    // A copy is torn only by the write that follows the intent, which clears it, and by then the log is empty. If it is
    // not, this was over long ago, the copy that said so went bad, and what stands there was promised since.
    if alone && goes_on_behind(dir, begun)? {
        let detail = format!(
            "the copy in force is damaged: the other one wants the log replaced by the snapshot at {index}, but it goes \
             on behind it"
        );
        return Err(StorageError::corrupt(&path, 0, detail));
    }
    Ok(newest)
}

/// Whether records stand behind the snapshot that was to replace the log.
pub(crate) fn goes_on_behind<D: Dir>(
    dir: &D,
    (index, term): (u64, u64),
) -> Result<bool, StorageError> {
    for name in files_of_log(dir)? {
        if seq_of(&name).is_none() {
            continue;
        }
        let (header, file) = open_segment(dir, &name)?;
        let begins = (header.base, header.prev_term) == (index + 1, term);
        if header.state == State::InUse && begins {
            let first = SegmentReader::new(file, header.len)
                .record(RECORDS_AT)?
                .map(drop);
            return Ok(!matches!(first, Err(Unsound::Bytes(_))));
        }
    }
    Ok(false)
}

/// Refuses a log that begins behind a gap, before anything is changed in it. A front that cannot be read is for those who
/// read all of it.
pub(crate) fn check_front<D: Dir>(dir: &D, snapshots: &FolderScan<D>) -> Result<(), StorageError> {
    for name in files_of_log(dir)? {
        if seq_of(&name).is_none() {
            continue;
        }
        let Ok((header, _)) = open_segment(dir, &name) else {
            return Ok(());
        };
        if header.state == State::InUse {
            return check_gap(dir, header.base, snapshots);
        }
    }
    Ok(())
}

/// Records that neither a sound snapshot nor the log has are lost: the log is no log without them.
fn check_gap<D: Dir>(dir: &D, first: u64, snapshots: &FolderScan<D>) -> Result<(), StorageError> {
    let covered = snapshots.newest.as_ref().map_or(0, |(id, _)| id.index);
    if first <= covered + 1 {
        return Ok(());
    }
    let snapshot = match &snapshots.newest {
        Some((id, _)) => format!("the newest sound snapshot ends with {}", id.index),
        None => "no sound snapshot is there".into(),
    };
    let detail = format!(
        "the records {}..={} are missing: the log begins with {first}, {snapshot}{}",
        covered + 1,
        first - 1,
        snapshots.bad_ones()
    );
    Err(StorageError::Corrupt {
        path: dir.path("log"),
        offset: 0,
        index: Some(covered + 1),
        detail,
    })
}

/// What the newest snapshot means for the log that was found: `Some` when it must replace it.
pub(crate) fn judge<D: Dir>(
    dir: &D,
    loaded: &Loaded<D::File>,
    snapshots: &FolderScan<D>,
) -> Result<Option<(u64, u64)>, StorageError> {
    let first = loaded.segments[0].view.base;
    let (last, runs) = (loaded.last, &loaded.term_runs);
    judge_log(dir, first, last, loaded.prev_term, runs, snapshots)
}

/// The same, of a log that was only looked at.
pub(crate) fn judge_log<D: Dir>(
    dir: &D,
    first: u64,
    last: u64,
    prev_term: u64,
    term_runs: &[(u64, u64)],
    snapshots: &FolderScan<D>,
) -> Result<Option<(u64, u64)>, StorageError> {
    check_gap(dir, first, snapshots)?;
    let Some((id, _)) = &snapshots.newest else {
        return Ok(None);
    };
    let replaced = Some((id.index, id.term));
    if last < id.index {
        return Ok(replaced);
    }
    let run = term_runs.partition_point(|&(_, from)| from <= id.index);
    let term = match run.checked_sub(1) {
        Some(run) => term_runs[run].0,
        None => prev_term,
    };
    if term == id.term {
        return Ok(None);
    }
    if id.index >= first {
        // Records that were never committed, in the place of those that the snapshot stands for.
        return Ok(replaced);
    }
    // What was let go was committed, as is what the snapshot holds: they cannot differ.
    let (index, path) = (id.index, dir.path("log"));
    let detail = format!(
        "the log goes on behind record {index} of term {term}, the snapshot says it was of term {}",
        id.term
    );
    let (offset, index) = (0, Some(index));
    Err(StorageError::Corrupt {
        path,
        offset,
        index,
        detail,
    })
}
