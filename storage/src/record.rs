//! The one encoding of an entry: the same bytes on the leader's disk, on the wire, on the
//! follower's disk and at the state machine.
//!
//! ```text
//!  0        4        8                16               24               32
//!  ├ crc32c ┼─ len ──┼──── index ─────┼───── term ─────┼──── time_us ───┤
//!  ├──── origin ─────┼──── token ─────┼kind┼ver┼─ zero ─┼─ payload … ─ 0 ┤
//!  32                40               48   49  50       56         8-aligned
//! ```
//!
//! Invariants: the checksum covers everything behind itself, padding too; a region of zeros never
//! decodes (kind 0 is no record, and the checksum of zeros is not zero); nothing is read before the
//! length that leads there has been compared with the bytes at hand.

use std::fmt;

/// Bytes of a record before its payload.
pub const HEADER_LEN: usize = 56;

/// The version of the encoding which this library writes and reads.
pub const VERSION: u8 = 1;

/// The largest payload the format can carry, in bytes (1 GiB). Logs set a lower limit of their own.
pub const MAX_PAYLOAD: usize = 1 << 30;

/// What a record says about itself, beside length and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Position in the log; the first record of a log is 1.
    pub index: u64,
    /// Term of the leader that made the record.
    pub term: u64,
    /// The leader's clock when it made the record, in µs since the Unix epoch.
    pub time_us: u64,
    /// The node at which the proposal entered; opaque to storage.
    pub origin: u64,
    /// The origin's own name for the proposal; opaque to storage.
    pub token: u64,
    /// What the payload is; opaque to storage, but never 0.
    pub kind: u8,
}

/// A decoded record, borrowed from the bytes it was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The fields before the payload.
    pub header: Header,
    /// The payload, without its padding.
    pub payload: &'a [u8],
    /// The whole encoded record: what goes to a peer or another disk verbatim.
    pub bytes: &'a [u8],
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordError {
    /// Nothing was written here: length, index and kind are zero.
    Empty,
    /// The bytes end before the record does.
    Short {
        /// Bytes the record needs.
        need: usize,
        /// Bytes at hand.
        have: usize,
    },
    /// The length field exceeds what the format allows.
    TooLong {
        /// The length field, in bytes.
        len: u32,
    },
    /// The checksum does not match the bytes.
    Checksum {
        /// The checksum in the record.
        stored: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
    /// A sound record of an encoding which this library does not read.
    Version(u8),
    /// Checksum good, but a field holds what no writer puts there (kind 0, reserved bytes not zero).
    Malformed,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::Empty => write!(f, "no record here"),
            RecordError::Short { need, have } => {
                write!(f, "the record needs {need} bytes, only {have} are there")
            }
            RecordError::TooLong { len } => write!(f, "impossible payload length {len}"),
            RecordError::Checksum { stored, computed } => {
                write!(f, "checksum is {stored:08x}, its bytes say {computed:08x}")
            }
            RecordError::Version(v) => {
                write!(f, "record version {v}, this build reads version {VERSION}")
            }
            RecordError::Malformed => write!(f, "kind 0 or reserved bytes in use"),
        }
    }
}

impl std::error::Error for RecordError {}

/// Bytes which a record with a payload of `payload_len` bytes takes, padding included.
pub const fn encoded_len(payload_len: usize) -> usize {
    HEADER_LEN + payload_len.next_multiple_of(8)
}

/// Appends the encoded record to `out`.
///
/// # Panics
/// When `header.kind` is 0 or the payload is longer than [`MAX_PAYLOAD`].
pub fn encode_into(out: &mut Vec<u8>, header: &Header, payload: &[u8]) {
    let at = out.len();
    out.resize(at + encoded_len(payload.len()), 0);
    encode_to(&mut out[at..], header, payload);
}

/// Writes the encoded record to the front of `out` and returns how many bytes it took.
///
/// # Panics
/// When `out` is shorter than [`encoded_len`] of the payload, and as [`encode_into`].
pub fn encode_to(out: &mut [u8], header: &Header, payload: &[u8]) -> usize {
    assert!(header.kind != 0, "kind 0 means that there is no record");
    let (len, total) = (payload.len(), encoded_len(payload.len()));
    assert!(
        len <= MAX_PAYLOAD,
        "payload of {len} bytes, the format ends at {MAX_PAYLOAD}"
    );
    let out = &mut out[..total];
    out[4..8].copy_from_slice(&(len as u32).to_le_bytes());
    out[8..16].copy_from_slice(&header.index.to_le_bytes());
    out[16..24].copy_from_slice(&header.term.to_le_bytes());
    out[24..32].copy_from_slice(&header.time_us.to_le_bytes());
    out[32..40].copy_from_slice(&header.origin.to_le_bytes());
    out[40..48].copy_from_slice(&header.token.to_le_bytes());
    out[48] = header.kind;
    out[49] = VERSION;
    out[50..56].fill(0);
    out[56..56 + len].copy_from_slice(payload);
    out[56 + len..].fill(0);
    let crc = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    total
}

/// Decodes and verifies the record at the front of `bytes`; returns it and the bytes it took.
///
/// # Errors
/// [`RecordError`], which says what is there instead of a sound record.
pub fn decode(bytes: &[u8]) -> Result<(Record<'_>, usize), RecordError> {
    let record = peek(bytes)?;
    let stored = u32_at(bytes, 0);
    let computed = crc32c::crc32c(&record.bytes[4..]);
    if stored != computed {
        return Err(RecordError::Checksum { stored, computed });
    }
    if bytes[49] != VERSION {
        return Err(RecordError::Version(bytes[49]));
    }
    if bytes[48] == 0 || bytes[50..56] != [0; 6] {
        return Err(RecordError::Malformed);
    }
    Ok((record, record.bytes.len()))
}

/// Reads the record at the front of `bytes` without verifying its checksum: for bytes which this
/// process has verified before.
///
/// # Errors
/// Only what the length field shows: [`RecordError::Empty`], `Short`, `TooLong`.
pub fn peek(bytes: &[u8]) -> Result<Record<'_>, RecordError> {
    if bytes.len() < HEADER_LEN {
        return Err(RecordError::Short {
            need: HEADER_LEN,
            have: bytes.len(),
        });
    }
    let len = u32_at(bytes, 4);
    if len as usize > MAX_PAYLOAD {
        return Err(RecordError::TooLong { len });
    }
    let header = Header {
        index: u64_at(bytes, 8),
        term: u64_at(bytes, 16),
        time_us: u64_at(bytes, 24),
        origin: u64_at(bytes, 32),
        token: u64_at(bytes, 40),
        kind: bytes[48],
    };
    if len == 0 && header.index == 0 && header.kind == 0 {
        return Err(RecordError::Empty);
    }
    let total = encoded_len(len as usize);
    if bytes.len() < total {
        return Err(RecordError::Short {
            need: total,
            have: bytes.len(),
        });
    }
    let payload = &bytes[HEADER_LEN..HEADER_LEN + len as usize];
    Ok(Record {
        header,
        payload,
        bytes: &bytes[..total],
    })
}

/// The records of a batch, each verified; ends after the last one or after the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Walks `bytes`, which holds whole records one behind the other, and verifies each.
    pub fn new(bytes: &'a [u8]) -> Records<'a> {
        Records { rest: bytes }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let found = decode(self.rest).map(|(record, _)| record);
        self.rest = match &found {
            Ok(record) => &self.rest[record.bytes.len()..],
            Err(_) => &[],
        };
        Some(found)
    }
}

/// The records in bytes which this process has verified before, such as those that
/// [`crate::Reader`] hands out: checksums are not looked at again.
pub fn walk(bytes: &[u8]) -> Walk<'_> {
    Walk { rest: bytes }
}

/// See [`walk`]. Ends after the last record, and before anything that cannot be one.
#[derive(Clone, Debug)]
pub struct Walk<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Walk<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let record = peek(self.rest).ok()?;
        self.rest = &self.rest[record.bytes.len()..];
        Some(record)
    }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(index: u64) -> Header {
        Header {
            index,
            term: 3,
            time_us: 1_700_000_000_000_000,
            origin: 2,
            token: 77,
            kind: 1,
        }
    }

    fn encoded(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_into(&mut out, &header(9), payload);
        out
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        for len in [0, 1, 7, 8, 9, 511, 4096] {
            let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let bytes = encoded(&payload);
            assert_eq!(bytes.len() % 8, 0);
            let (record, taken) = decode(&bytes).expect("sound");
            assert_eq!(
                (record.header, record.payload, taken),
                (header(9), &payload[..], bytes.len())
            );
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = encoded(b"hello");
        assert_eq!(bytes.len(), 64);
        assert_eq!(u32_at(&bytes, 0), crc32c::crc32c(&bytes[4..]));
        assert_eq!(&bytes[4..8], &[5, 0, 0, 0]);
        assert_eq!(&bytes[8..16], &[9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[48..56], &[1, VERSION, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[56..], b"hello\0\0\0");
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let good = encoded(b"thirteen byte");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit} flipped, nobody noticed");
        }
    }

    #[test]
    fn any_cut_is_noticed_without_reading_behind_it() {
        let good = encoded(&[7; 100]);
        for len in 0..good.len() {
            let need = if len < HEADER_LEN {
                HEADER_LEN
            } else {
                good.len()
            };
            assert_eq!(
                decode(&good[..len]),
                Err(RecordError::Short { need, have: len })
            );
        }
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(decode(&[0; 4096]), Err(RecordError::Empty));
        // Also not when their checksum is right.
        let mut bytes = [0; HEADER_LEN];
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes), Err(RecordError::Empty));
    }

    #[test]
    fn an_impossible_length_is_refused_before_it_is_used() {
        let mut bytes = encoded(b"x");
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&bytes), Err(RecordError::TooLong { len: u32::MAX }));
    }

    #[test]
    fn a_sound_record_of_another_version_is_told_from_damage() {
        let mut bytes = encoded(b"x");
        bytes[49] = 2;
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes), Err(RecordError::Version(2)));
    }

    #[test]
    fn a_batch_is_walked_up_to_the_first_bad_record() {
        let mut batch = Vec::new();
        for index in 1..=3 {
            encode_into(&mut batch, &header(index), &[index as u8; 20]);
        }
        let indexes: Vec<u64> = Records::new(&batch)
            .map(|r| r.expect("sound").header.index)
            .collect();
        assert_eq!(indexes, [1, 2, 3]);

        let second = encoded_len(20) + 60;
        batch[second] ^= 1;
        let walk: Vec<_> = Records::new(&batch).collect();
        assert_eq!(walk.len(), 2);
        assert!(matches!(walk[1], Err(RecordError::Checksum { .. })));
        assert_eq!(super::walk(&batch).count(), 3);
    }
}
