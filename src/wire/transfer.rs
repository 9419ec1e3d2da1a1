//! What nodes say to each other about snapshots, and about records that one has lost.

use storage::scrub::record_repair::NotFetched;
use storage::{SnapshotId, StorageError};

use crate::wire::{Head, HeadError, RECORDS, SNAPSHOT, exactly};

/// What nodes say to each other about snapshots, and about records that one has lost; the bytes of both go beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parcel {
    /// The leader would send this one.
    Offer { id: SnapshotId },
    /// It shall be sent from `offset` on, whatever was sent before.
    Want { id: SnapshotId, offset: u64 },
    /// A part of the file, from `offset` on.
    Chunk { id: SnapshotId, offset: u64 },
    /// Everything before `offset` is written.
    Have { id: SnapshotId, offset: u64 },
    /// The follower has it, or more.
    Done { id: SnapshotId },
    /// It takes in another one, which makes progress.
    Busy { id: SnapshotId },
    /// It could not be taken in; the follower's status says more.
    Refused { id: SnapshotId, why: Refusal },
    /// The records from `first` to at most `last` are bad here: about so many bytes of them, and one at least.
    WantRecords { first: u64, last: u64, bytes: u64 },
    /// Here they are.
    GiveRecords { first: u64, last: u64 },
    /// They are not to be had here.
    NoRecords { first: u64, why: NotFetched },
}

/// Why a follower has not taken a snapshot in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The follower could not write it, or read it again.
    Receiver,
    /// What came is not what its checksums say: the sender's file may be bad.
    Corrupt,
}

impl Refusal {
    pub(crate) fn of(error: &StorageError) -> Self {
        match error {
            StorageError::Snapshot { .. } => Self::Corrupt,
            _ => Self::Receiver,
        }
    }
}

impl Parcel {
    /// Whether bytes go beside it, on the bulk lane.
    pub(crate) fn is_bulk(self) -> bool {
        matches!(self, Parcel::Chunk { .. } | Parcel::GiveRecords { .. })
    }
}

/// Kind and head of what is said about a snapshot, or about lost records.
pub(crate) fn encode(parcel: Parcel) -> (u8, Head) {
    let mut head = Head::default();
    let (step, id, offset) = match parcel {
        Parcel::WantRecords { first, last, bytes } => {
            head.u64s([0, first, last, bytes]);
            return (RECORDS, head);
        }
        Parcel::GiveRecords { first, last } => {
            head.u64s([1, first, last, 0]);
            return (RECORDS, head);
        }
        Parcel::NoRecords { first, why } => {
            let why = match why {
                NotFetched::Purged => 0,
                NotFetched::Ahead => 1,
                NotFetched::Bad => 2,
            };
            head.u64s([2, first, 0, why]);
            return (RECORDS, head);
        }
        Parcel::Offer { id } => (0, id, 0),
        Parcel::Want { id, offset } => (1, id, offset),
        Parcel::Chunk { id, offset } => (2, id, offset),
        Parcel::Have { id, offset } => (3, id, offset),
        Parcel::Done { id } => (4, id, 0),
        Parcel::Busy { id } => (5, id, 0),
        Parcel::Refused { id, why } => (6, id, why as u64),
    };
    let digest = u64::from(id.digest);
    head.u64s([step, id.index, id.term, id.bytes, digest, offset]);
    (SNAPSHOT, head)
}

pub(super) fn decode_records(head: &[u8]) -> Result<Parcel, HeadError> {
    let kind = RECORDS;
    let [step, first, last, value] = exactly(kind, head)?;
    let impossible = Err(HeadError::Value { kind });
    // No record has such an index, and the one behind the last can be counted.
    if first == 0 || last == u64::MAX {
        return impossible;
    }
    Ok(match (step, last, value) {
        (0, last, bytes) if last >= first => Parcel::WantRecords { first, last, bytes },
        (1, last, 0) if last >= first => Parcel::GiveRecords { first, last },
        (2, 0, why) => Parcel::NoRecords {
            first,
            why: match why {
                0 => NotFetched::Purged,
                1 => NotFetched::Ahead,
                2 => NotFetched::Bad,
                _ => return impossible,
            },
        },
        _ => return impossible,
    })
}

pub(super) fn decode_parcel(head: &[u8]) -> Result<Parcel, HeadError> {
    let kind = SNAPSHOT;
    let [step, index, term, bytes, digest, offset] = exactly(kind, head)?;
    let digest = u32::try_from(digest).map_err(|_| HeadError::Value { kind })?;
    let id = SnapshotId {
        index,
        term,
        bytes,
        digest,
    };
    Ok(match step {
        0 => Parcel::Offer { id },
        1 => Parcel::Want { id, offset },
        2 => Parcel::Chunk { id, offset },
        3 => Parcel::Have { id, offset },
        4 => Parcel::Done { id },
        5 => Parcel::Busy { id },
        6 => Parcel::Refused {
            id,
            why: match offset {
                0 => Refusal::Receiver,
                1 => Refusal::Corrupt,
                _ => return Err(HeadError::Value { kind }),
            },
        },
        _ => return Err(HeadError::Value { kind }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Frame, decode};

    #[test]
    fn what_is_said_about_transfers_comes_back() {
        let id = SnapshotId {
            index: 9,
            term: 3,
            bytes: 1 << 33,
            digest: u32::MAX,
        };
        let offset = 1 << 32;
        for what in [
            Parcel::Offer { id },
            Parcel::Want { id, offset },
            Parcel::Chunk { id, offset },
            Parcel::Have { id, offset },
            Parcel::Done { id },
            Parcel::Busy { id },
            Parcel::Refused {
                id,
                why: Refusal::Receiver,
            },
            Parcel::Refused {
                id,
                why: Refusal::Corrupt,
            },
        ] {
            let (kind, head) = encode(what);
            assert_eq!(kind, SNAPSHOT);
            assert_eq!(decode(kind, head.as_ref()), Ok(Frame::Parcel(what)));
        }
        let (first, last, bytes) = (5, 7, 1 << 40);
        let mut records = vec![
            Parcel::WantRecords { first, last, bytes },
            Parcel::GiveRecords { first, last },
        ];
        for why in [NotFetched::Purged, NotFetched::Ahead, NotFetched::Bad] {
            records.push(Parcel::NoRecords { first, why });
        }
        for what in records {
            let (kind, head) = encode(what);
            assert_eq!(kind, RECORDS);
            assert_eq!(decode(kind, head.as_ref()), Ok(Frame::Parcel(what)));
        }
    }
}
