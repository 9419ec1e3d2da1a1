//! Opening the segment files of a directory: which are in use, which are not, which cannot be told.
//!
//! Nothing is changed here, and no record is looked at. A file whose header is damaged is an error, unless the log may be
//! healed from its peers: then it is put aside, and `plan.rs` asks what it may have held.

use std::path::Path;
use std::sync::Arc;

use crate::decision::{Decision, Found};
use crate::error::{Doing, StorageError};
use crate::files::identity::Identity;
use crate::log::handle::Handle;
use crate::log::segment::{
    RECORDS_AT, SEGMENT_HEADER_LEN, SegmentHeader, SparseIndex, State, View, segment_name,
};
use crate::log::tail_marker::MARKER_LEN;
use crate::medium::is_medium_error;
use crate::medium::{Dir, File};
use crate::recovery::segment_reader::SegmentReader;

/// No log gets here; and what is below can be counted up from without looking.
pub(crate) const MAX_INDEX: u64 = 1 << 62;

/// A segment in use, before its records were looked at.
#[derive(Debug)]
pub(crate) struct Candidate<F> {
    pub(crate) header: SegmentHeader,
    pub(crate) name: String,
    pub(crate) view: View,
    pub(crate) file: Handle<F>,
}

impl<F: File> Candidate<F> {
    /// Its bytes, from the file: a place of the map that the disk does not give back would end the process.
    pub(crate) fn source(&self) -> Result<SegmentReader<F>, StorageError> {
        Ok(SegmentReader::new(self.file.get()?, self.header.len))
    }
}

/// A segment file whose header does not say what it is.
#[derive(Debug)]
pub(crate) struct Broken<F> {
    pub(crate) name: String,
    /// As its name says.
    pub(crate) seq: u64,
    file: Handle<F>,
    len: u64,
    /// What is wrong, and where.
    pub(crate) offset: u64,
    pub(crate) detail: String,
}

impl<F: File> Broken<F> {
    /// Its bytes; the records are in there from [`RECORDS_AT`] on, or were.
    pub(crate) fn source(&self) -> Result<SegmentReader<F>, StorageError> {
        Ok(SegmentReader::new(self.file.get()?, self.len))
    }
}

/// What the folder `log` holds.
#[derive(Debug)]
pub(crate) struct SegmentScan<F> {
    /// The segments in use, in the order of use.
    pub(crate) candidates: Vec<Candidate<F>>,
    /// Only when the log may be healed.
    pub(crate) broken: Vec<Broken<F>>,
    pub(crate) to_remove: Vec<String>,
    pub(crate) decisions: Vec<Decision>,
    /// The number of the next segment.
    pub(crate) next_seq: u64,
}

/// Opens every segment file. With `heal`, damaged headers are put aside and are no error.
pub(crate) fn scan_segments<D: Dir>(
    dir: &D,
    identity: &Identity,
    heal: bool,
) -> Result<SegmentScan<D::File>, StorageError> {
    let mut found = SegmentScan {
        candidates: Vec::new(),
        broken: Vec::new(),
        to_remove: Vec::new(),
        decisions: Vec::new(),
        next_seq: 1,
    };
    let mut names = dir.list("log").doing("list", &dir.path("log"))?;
    names.sort_unstable();
    for name in names {
        let full = format!("log/{name}");
        if name.ends_with(".tmp") {
            found
                .decisions
                .push(Decision::new(&*full, Found::Unfinished));
            found.to_remove.push(full);
            continue;
        }
        let Some(seq) = seq_of(&name) else {
            found.decisions.push(Decision::new(full, Found::Unknown));
            continue;
        };
        let (header, file) = match open_segment(dir, &full) {
            Ok(opened) => opened,
            Err(StorageError::Corrupt { offset, detail, .. }) if heal => {
                found.next_seq = found.next_seq.max(seq + 1);
                let path = dir.path(&full);
                let file = dir.open(&full).doing("open", &path)?;
                let len = file.length().doing("read the length of", &path)?;
                let mut file = Handle::Open(file);
                file.close(dir, full.clone());
                found.broken.push(Broken {
                    name: full,
                    seq,
                    file,
                    len,
                    offset,
                    detail,
                });
                continue;
            }
            Err(error) => return Err(error),
        };
        // A recycled segment carries its next number before it has the name.
        found.next_seq = found
            .next_seq
            .max(header.seq.saturating_add(1))
            .max(seq + 1);
        check_owner(&header, file.path(), identity)?;
        if header.state == State::Spare {
            found.decisions.push(Decision::new(&*full, Found::Spare));
            found.to_remove.push(full);
            continue;
        }
        if header.seq != seq {
            let detail = format!(
                "the header says segment {}, the name says {seq}",
                header.seq
            );
            return Err(StorageError::corrupt(file.path(), 32, detail));
        }
        if !(1..MAX_INDEX).contains(&header.base) {
            let detail = format!("begins with record {}, which is no index", header.base);
            return Err(StorageError::corrupt(file.path(), 40, detail));
        }
        if let Some(before) = found.candidates.last()
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
        // A long log has more segments than the process may have files.
        let mut file = Handle::Open(file);
        file.close(dir, full.clone());
        found.candidates.push(Candidate {
            header,
            name: full,
            view,
            file,
        });
    }
    Ok(found)
}

/// The number in the name of a segment file; `None` for other files.
pub(crate) fn seq_of(name: &str) -> Option<u64> {
    let seq = name.strip_suffix(".seg")?.parse().ok()?;
    (segment_name(seq) == format!("log/{name}") && seq < u64::MAX).then_some(seq)
}

fn check_owner(
    header: &SegmentHeader,
    path: &Path,
    identity: &Identity,
) -> Result<(), StorageError> {
    let names = [
        ("cluster", header.cluster_id, identity.cluster_id),
        ("group", header.group_id.into(), identity.group_id.into()),
    ];
    match names
        .into_iter()
        .find(|(_, found, expected)| found != expected)
    {
        None => Ok(()),
        Some((what, found, expected)) => Err(StorageError::Foreign {
            path: path.into(),
            what,
            found,
            expected,
        }),
    }
}

/// Opens a segment file and reads its header.
pub(crate) fn open_segment<D: Dir>(
    dir: &D,
    name: &str,
) -> Result<(SegmentHeader, D::File), StorageError> {
    let path = dir.path(name);
    let file = dir.open(name).doing("open", &path)?;
    let len = file.length().doing("read the length of", &path)?;
    if len < RECORDS_AT + MARKER_LEN as u64 {
        let detail = format!("the file has {len} bytes, too few for a segment");
        return Err(StorageError::corrupt(&path, 0, detail));
    }
    let mut bytes = [0; SEGMENT_HEADER_LEN];
    match file.read_at(0, &mut bytes) {
        Err(error) if is_medium_error(&error) => {
            let detail = format!("the segment header cannot be read: {error}");
            return Err(StorageError::corrupt(&path, 0, detail));
        }
        read => read.doing_at("read", &path, 0)?,
    }
    Ok((SegmentHeader::decode(&bytes, &path, len)?, file))
}
