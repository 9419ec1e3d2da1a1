//! Opening the segment files of a directory: which are in use, which are not, which cannot be told.
//!
//! Nothing is changed here, and no record is looked at. A file whose header is damaged is an error, unless the log may be
//! healed from its peers: then it is put aside, and `plan.rs` asks what it may have held.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Doing, StorageError};
use crate::file::{Dir, File, Map};
use crate::identity::Identity;
use crate::mark::MARK_LEN;
use crate::recover::{Decision, Found};
use crate::segment::{
    RECORDS_AT, SEGMENT_HEADER_LEN, SegmentHeader, SparseIndex, State, View, segment_name,
};

/// No log gets here; and what is below can be counted up from without looking.
pub(crate) const MAX_INDEX: u64 = 1 << 62;

/// A segment in use, before its records were looked at.
#[derive(Debug)]
pub(crate) struct Candidate<F> {
    pub(crate) header: SegmentHeader,
    pub(crate) name: String,
    pub(crate) view: View,
    pub(crate) file: F,
}

impl<F> Candidate<F> {
    /// Its bytes from `offset` on.
    pub(crate) fn rest(&self, offset: u64) -> &[u8] {
        self.view.map.slice(offset as usize..self.view.map.len())
    }
}

/// A segment file whose header does not say what it is.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) name: String,
    /// As its name says.
    pub(crate) seq: u64,
    /// `None` when the file is empty.
    map: Option<Map>,
    /// What is wrong, and where.
    pub(crate) offset: u64,
    pub(crate) detail: String,
}

impl Broken {
    /// Where its records are, or were.
    pub(crate) fn records(&self) -> &[u8] {
        match &self.map {
            Some(map) if map.len() as u64 > RECORDS_AT => map.slice(RECORDS_AT as usize..map.len()),
            _ => &[],
        }
    }
}

/// What the folder `log` holds.
#[derive(Debug)]
pub(crate) struct Survey<F> {
    /// The segments in use, in the order of use.
    pub(crate) candidates: Vec<Candidate<F>>,
    /// Only when the log may be healed.
    pub(crate) broken: Vec<Broken>,
    pub(crate) to_remove: Vec<String>,
    pub(crate) decisions: Vec<Decision>,
    /// The number of the next segment.
    pub(crate) next_seq: u64,
}

/// Opens every segment file. With `heal`, damaged headers are put aside and are no error.
pub(crate) fn survey<D: Dir>(
    dir: &D,
    identity: &Identity,
    heal: bool,
) -> Result<Survey<D::File>, StorageError> {
    let mut found = Survey {
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
                let map = match file.length().doing("read the length of", &path)? {
                    0 => None,
                    _ => Some(file.map().doing("map", &path)?),
                };
                found.broken.push(Broken {
                    name: full,
                    seq,
                    map,
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
    if len < RECORDS_AT + MARK_LEN as u64 {
        let detail = format!("the file has {len} bytes, too few for a segment");
        return Err(StorageError::corrupt(&path, 0, detail));
    }
    let mut bytes = [0; SEGMENT_HEADER_LEN];
    file.read_at(0, &mut bytes).doing_at("read", &path, 0)?;
    Ok((SegmentHeader::decode(&bytes, &path, len)?, file))
}
