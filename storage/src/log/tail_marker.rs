//! The marker behind the last record of a segment: how recovery tells a torn tail from damage.
//!
//! ```text
//!  0        4          8        16           24              32     40            48
//!  ├ crc32c ┼ ffffffff ┼ magic  ┼─ end_index ┼─ flushed_index ┼─ seq ┼─ incarnation ┤
//! ```
//!
//! Every batch is written together with a marker behind it, and the next batch's first record takes the
//! marker's place. A marker is this node's own and never leaves it. Its second word is a length no record
//! has, so neither is taken for the other; segment number and incarnation tell it from markers of the
//! file's former life and from payloads that look like one.

use crate::record::{u32_at, u64_at};

/// Bytes of a marker.
pub(crate) const MARKER_LEN: usize = 48;

const NO_LENGTH: u32 = u32::MAX;
const TAIL: u64 = u64::from_le_bytes(*b"rr tail\n");
const SEAL: u64 = u64::from_le_bytes(*b"rr seal\n");

/// What ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarkerKind {
    /// The log, for now.
    Tail,
    /// The segment: the log goes on in the next one.
    Seal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TailMarker {
    pub(crate) kind: MarkerKind,
    /// The last index before the marker.
    pub(crate) end_index: u64,
    /// Everything up to here was durable when the marker was written. 0 when nothing is ever flushed.
    pub(crate) flushed_index: u64,
    /// The number of the segment.
    pub(crate) seq: u64,
    /// The incarnation of the directory.
    pub(crate) incarnation: u64,
}

impl TailMarker {
    pub(crate) fn encode(&self) -> [u8; MARKER_LEN] {
        let mut out = [0; MARKER_LEN];
        out[4..8].copy_from_slice(&NO_LENGTH.to_le_bytes());
        let magic = match self.kind {
            MarkerKind::Tail => TAIL,
            MarkerKind::Seal => SEAL,
        };
        out[8..16].copy_from_slice(&magic.to_le_bytes());
        out[16..24].copy_from_slice(&self.end_index.to_le_bytes());
        out[24..32].copy_from_slice(&self.flushed_index.to_le_bytes());
        out[32..40].copy_from_slice(&self.seq.to_le_bytes());
        out[40..48].copy_from_slice(&self.incarnation.to_le_bytes());
        let crc = crc32c::crc32c(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The marker at the front of `bytes`, whole and of this segment's present life.
    pub(crate) fn decode(bytes: &[u8], seq: u64, incarnation: u64) -> Option<TailMarker> {
        if bytes.len() < MARKER_LEN || u32_at(bytes, 4) != NO_LENGTH {
            return None;
        }
        let bytes = &bytes[..MARKER_LEN];
        let kind = match u64_at(bytes, 8) {
            TAIL => MarkerKind::Tail,
            SEAL => MarkerKind::Seal,
            _ => return None,
        };
        let marker = TailMarker {
            kind,
            end_index: u64_at(bytes, 16),
            flushed_index: u64_at(bytes, 24),
            seq: u64_at(bytes, 32),
            incarnation: u64_at(bytes, 40),
        };
        let whole = crc32c::crc32c(&bytes[4..]) == u32_at(bytes, 0);
        (whole && marker.seq == seq && marker.incarnation == incarnation).then_some(marker)
    }

    /// Whether a marker stands at the front of `bytes`, of whichever life.
    pub(crate) fn looks_like(bytes: &[u8]) -> bool {
        bytes.len() >= MARKER_LEN
            && u32_at(bytes, 4) == NO_LENGTH
            && [TAIL, SEAL].contains(&u64_at(bytes, 8))
    }

    /// The furthest positions that markers in `bytes` tell of; 0 without markers.
    pub(crate) fn furthest(bytes: &[u8], seq: u64, incarnation: u64) -> Furthest {
        let mut furthest = Furthest::default();
        for (block, at) in bytes.chunks(4096).zip((0..).step_by(4096)) {
            // The first eight bytes of a marker lie in one block and are not zero.
            if is_zero(block) {
                continue;
            }
            for at in (at..at + block.len()).step_by(8) {
                if let Some(marker) = TailMarker::decode(&bytes[at..], seq, incarnation) {
                    furthest.add(Furthest {
                        flushed: marker.flushed_index,
                        end: marker.end_index,
                        tail: match marker.kind {
                            MarkerKind::Tail => marker.end_index,
                            MarkerKind::Seal => 0,
                        },
                    });
                }
            }
        }
        furthest
    }
}

/// How far markers say that the log went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Furthest {
    /// It was durable up to here.
    pub(crate) flushed: u64,
    /// It was written up to here.
    pub(crate) end: u64,
    /// It ended here, and did not go on in another segment.
    pub(crate) tail: u64,
}

impl Furthest {
    /// The further of both.
    pub(crate) fn add(&mut self, other: Furthest) {
        self.flushed = self.flushed.max(other.flushed);
        self.end = self.end.max(other.end);
        self.tail = self.tail.max(other.tail);
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|block| block == &ZEROS[..block.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{self, RecordError};

    const MARK: TailMarker = TailMarker {
        kind: MarkerKind::Tail,
        end_index: 12,
        flushed_index: 9,
        seq: 3,
        incarnation: 77,
    };

    #[test]
    fn a_mark_is_read_back_only_in_its_own_life() {
        let bytes = MARK.encode();
        assert_eq!(TailMarker::decode(&bytes, 3, 77), Some(MARK));
        assert_eq!(TailMarker::decode(&bytes, 4, 77), None);
        assert_eq!(TailMarker::decode(&bytes, 3, 78), None);
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        for bit in 0..MARKER_LEN * 8 {
            let mut bytes = MARK.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(TailMarker::decode(&bytes, 3, 77), None, "bit {bit}");
        }
    }

    #[test]
    fn a_mark_is_no_record() {
        let mut bytes = MARK.encode().to_vec();
        bytes.resize(4096, 0);
        assert_eq!(
            record::decode(&bytes),
            Err(RecordError::TooLong { len: NO_LENGTH })
        );
    }

    #[test]
    fn the_furthest_flushed_position_is_found_among_leftovers() {
        let mut bytes = vec![0xAB; 1000];
        bytes[16..64].copy_from_slice(&MARK.encode());
        bytes[504..552].copy_from_slice(
            &TailMarker {
                flushed_index: 11,
                ..MARK
            }
            .encode(),
        );
        bytes[952..].copy_from_slice(
            &TailMarker {
                flushed_index: 10,
                ..MARK
            }
            .encode(),
        );
        // Of the file's former life.
        bytes[600..648].copy_from_slice(
            &TailMarker {
                flushed_index: 99,
                seq: 2,
                ..MARK
            }
            .encode(),
        );
        let furthest = |flushed| Furthest {
            flushed,
            end: 12,
            tail: 12,
        };
        assert_eq!(TailMarker::furthest(&bytes, 3, 77), furthest(11));
        assert_eq!(TailMarker::furthest(&[0; 20], 3, 77), Furthest::default());
        // Over the border of a block, behind a block of zeros.
        let mut bytes = vec![0; 3 * 4096];
        for at in [4096 + 4048, 2 * 4096 - 8, 2 * 4096, 3 * 4096 - 48] {
            bytes.fill(0);
            bytes[at..at + 48].copy_from_slice(&MARK.encode());
            assert_eq!(TailMarker::furthest(&bytes, 3, 77), furthest(9), "{at}");
        }
    }
}
