//! Reading the records of one segment from the front, each verified and each the successor of the one before.

use crate::error::StorageError;
use crate::log::segment::RECORDS_AT;
use crate::medium::File;
use crate::record::{self, RecordError};
use crate::recovery::segment_reader::Unsound;
use crate::recovery::segments::Candidate;

/// Where the walk over a segment's records ended, and why.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walk {
    /// The index that was expected next.
    pub(crate) next: u64,
    pub(crate) offset: u64,
    pub(crate) term: u64,
    pub(crate) time_us: u64,
    pub(crate) why: String,
    /// It ended at a place that the disk does not give back.
    pub(crate) unreadable: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The right marker is there, and nothing behind it.
    Whole {
        sealed: bool,
    },
    Truncated,
    Torn,
    Damaged {
        flushed: u64,
    },
}

/// Walks the records of one segment: each verified, each the successor of the one before.
pub(crate) fn walk<F: File>(
    candidate: &Candidate<F>,
    from: Walk,
    limit: u64,
    term_runs: &mut Vec<(u64, u64)>,
) -> Result<Walk, StorageError> {
    let view = &candidate.view;
    let mut source = candidate.source()?;
    let mut at = Walk {
        offset: RECORDS_AT,
        why: String::new(),
        unreadable: false,
        ..from
    };
    while at.next <= limit {
        let header = match source.record(at.offset)? {
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
            Err(error) => {
                if let Unsound::Bytes(RecordError::Version(found)) = error
                    && record::u64_at(source.bytes(at.offset, record::HEADER_LEN)?, 8) == at.next
                {
                    let (found, supported) = (found.into(), record::VERSION.into());
                    return Err(StorageError::Version {
                        path: candidate.file.path().into(),
                        found,
                        supported,
                    });
                }
                at.unreadable = matches!(error, Unsound::Unreadable(_));
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
