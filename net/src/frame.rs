//! A frame: the unit that travels, and its checks.
//!
//! ```text
//!  0          4          8          12     13      14          16
//!  ├──────────┼──────────┼──────────┼──────┼───────┼───────────┼─────────────┬──────────────────┐
//!  │ crc32c   │ len      │ group    │ kind │ flags │ head len  │ head        │ body             │
//!  │ u32      │ u32      │ u32      │ u8   │ u8    │ u16       │ head len    │ len - 8 - head   │
//!  └──────────┴──────────┴──────────┴──────┴───────┴───────────┴─────────────┴──────────────────┘
//!             ╰───────────── the checksum covers this ─────────────────────╯ ╰ with COVERS_BODY ╯
//! ```
//!
//! Numbers are little endian. `len` counts the bytes after the length field. A body whose records
//! carry checksums of their own is not covered a second time.
//!
//! Invariant: a length is compared with the limit before anything is allocated for it or waited
//! for.

use std::fmt;

/// The bytes before the head.
pub const HEADER_BYTES: usize = 16;
/// The longest head that fits the format.
pub const MAX_HEAD_BYTES: usize = u16::MAX as usize;
/// Kinds from here on belong to this crate: hello, refuse, ping.
pub const FIRST_RESERVED_KIND: u8 = 0xF0;

/// The bytes of a frame which its length field does not count.
const UNCOUNTED: usize = 8;
/// The flag: the checksum covers the body as well.
const COVERS_BODY: u8 = 1;

/// What a frame is, without its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) group: u32,
    pub(crate) kind: u8,
}

/// A whole frame whose checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) label: Label,
    pub(crate) head: &'a [u8],
    pub(crate) body: &'a [u8],
}

/// What stands at the beginning of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decoded<'a> {
    /// The beginning of a frame; it is at least `need` bytes long, which is more than there are.
    Partial { need: usize },
    /// A frame, `bytes` long.
    Whole { frame: Frame<'a>, bytes: usize },
}

/// What is wrong with received bytes. The stream cannot be read on after any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The length is over the limit: a peer with larger limits, or something that does not speak
    /// this protocol.
    TooLarge {
        /// The whole frame, by its length field.
        bytes: u64,
        /// The limit in force: that for a hello, or `Config::max_frame_bytes`.
        limit: u64,
    },
    /// The length is less than the header and head need.
    TooShort {
        /// The length field.
        len: u32,
        /// The head's length field.
        head_bytes: u16,
    },
    /// Flags of a newer protocol, or garbage.
    Flags {
        /// All flags.
        flags: u8,
    },
    /// The bytes are not those that were sent.
    Checksum {
        /// What the frame says.
        said: u32,
        /// What its bytes give.
        found: u32,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { bytes, limit } => write!(
                f,
                "a frame of {bytes} bytes is over the limit of {limit}: something else than \
                 ringraft, or other limits there"
            ),
            Self::TooShort { len, head_bytes } => {
                write!(
                    f,
                    "a frame length of {len} has no room for its head of {head_bytes} bytes"
                )
            }
            Self::Flags { flags } => write!(f, "a frame has unknown flags {flags:#04x}"),
            Self::Checksum { said, found } => {
                write!(
                    f,
                    "a frame says checksum {said:#010x}, its bytes give {found:#010x}"
                )
            }
        }
    }
}

impl std::error::Error for FrameError {}

/// The length on the wire of a frame with these parts.
pub(crate) fn frame_bytes(head: usize, body: usize) -> usize {
    HEADER_BYTES + head + body
}

/// The header of a frame. `covered` is the body when the checksum covers it; otherwise only its
/// length is needed.
pub(crate) fn header(
    label: Label,
    head: &[u8],
    body_bytes: usize,
    covered: Option<&[u8]>,
) -> [u8; HEADER_BYTES] {
    let len = frame_bytes(head.len(), body_bytes) - UNCOUNTED;
    let len = u32::try_from(len).expect("the caller has compared the length with its limit");
    let head_bytes =
        u16::try_from(head.len()).expect("the caller has compared the head with its limit");
    let mut header = [0; HEADER_BYTES];
    header[4..8].copy_from_slice(&len.to_le_bytes());
    header[8..12].copy_from_slice(&label.group.to_le_bytes());
    header[12] = label.kind;
    header[13] = if covered.is_some() { COVERS_BODY } else { 0 };
    header[14..16].copy_from_slice(&head_bytes.to_le_bytes());
    let mut crc = crc32c::crc32c(&header[4..]);
    crc = crc32c::crc32c_append(crc, head);
    crc = crc32c::crc32c_append(crc, covered.unwrap_or_default());
    header[..4].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Reads the frame at the beginning of `bytes`. Frames longer than `max_frame_bytes` are refused by
/// their length alone.
///
/// With a body that has its own checksums, a damaged head is found as soon as the head is there, so
/// that nobody waits for, or makes room for, a body that a damaged length announces. Without
/// `verify` the checksum is not compared: the caller has had this frame before.
pub(crate) fn decode(
    bytes: &[u8],
    max_frame_bytes: usize,
    verify: bool,
) -> Result<Decoded<'_>, FrameError> {
    let Some(len) = bytes.get(4..8) else {
        return Ok(Decoded::Partial { need: HEADER_BYTES });
    };
    let len = u32_at(len, 0);
    let total = len as u64 + UNCOUNTED as u64;
    if total > max_frame_bytes as u64 {
        return Err(FrameError::TooLarge {
            bytes: total,
            limit: max_frame_bytes as u64,
        });
    }
    let total = total as usize;
    if total < HEADER_BYTES {
        return Err(FrameError::TooShort { len, head_bytes: 0 });
    }
    let Some(header) = bytes.get(..HEADER_BYTES) else {
        return Ok(Decoded::Partial { need: total });
    };
    let head_bytes = u16::from_le_bytes([header[14], header[15]]);
    let body_at = HEADER_BYTES + usize::from(head_bytes);
    if body_at > total {
        return Err(FrameError::TooShort { len, head_bytes });
    }
    let flags = header[13];
    if flags & !COVERS_BODY != 0 {
        return Err(FrameError::Flags { flags });
    }
    let covered_to = if flags & COVERS_BODY != 0 {
        total
    } else {
        body_at
    };
    let Some(covered) = bytes.get(4..covered_to) else {
        return Ok(Decoded::Partial { need: covered_to });
    };
    if verify {
        let (said, found) = (u32_at(header, 0), crc32c::crc32c(covered));
        if said != found {
            return Err(FrameError::Checksum { said, found });
        }
    }
    let Some(body) = bytes.get(body_at..total) else {
        return Ok(Decoded::Partial { need: total });
    };
    let label = Label {
        group: u32_at(header, 8),
        kind: header[12],
    };
    let frame = Frame {
        label,
        head: &bytes[HEADER_BYTES..body_at],
        body,
    };
    Ok(Decoded::Whole {
        frame,
        bytes: total,
    })
}

/// The number at `at`; the caller has checked that it is there.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The number at `at`; the caller has checked that it is there.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 1 << 16;

    fn encode(kind: u8, group: u32, head: &[u8], body: &[u8], covers: bool) -> Vec<u8> {
        let header = header(
            Label { group, kind },
            head,
            body.len(),
            covers.then_some(body),
        );
        [&header[..], head, body].concat()
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = encode(7, 0x0403_0201, b"head", b"body!", false);
        assert_eq!(
            bytes[4..8],
            (8u32 + 4 + 5).to_le_bytes(),
            "the length counts what follows it"
        );
        assert_eq!(bytes[8..12], [1, 2, 3, 4]);
        assert_eq!(bytes[12..16], [7, 0, 4, 0]);
        assert_eq!(&bytes[16..], b"headbody!");
        assert_eq!(
            u32_at(&bytes, 0),
            crc32c::crc32c(&bytes[4..20]),
            "header and head only"
        );
        let covered = encode(7, 0x0403_0201, b"head", b"body!", true);
        assert_eq!(covered[13], 1);
        assert_eq!(
            u32_at(&covered, 0),
            crc32c::crc32c(&covered[4..]),
            "all of it"
        );
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_the_rest_is_there() {
        let bytes = encode(1, 0, &[], &vec![0; 1000], false);
        let refused = decode(&bytes[..8], 1015, true).expect_err("one byte over the limit");
        assert_eq!(
            refused,
            FrameError::TooLarge {
                bytes: 1016,
                limit: 1015
            }
        );
        assert_eq!(
            decode(&bytes[..8], 1016, true),
            Ok(Decoded::Partial { need: 1016 })
        );
        let huge = [0, 0, 0, 0, 255, 255, 255, 255];
        assert!(matches!(
            decode(&huge, LIMIT, true),
            Err(FrameError::TooLarge {
                bytes: 4_294_967_303,
                ..
            })
        ));
    }

    #[test]
    fn a_damaged_head_is_found_before_the_body_comes() {
        let mut bytes = encode(1, 0, b"head", &[0; 1000], false);
        bytes[17] ^= 1;
        assert!(matches!(
            decode(&bytes[..20], LIMIT, true),
            Err(FrameError::Checksum { .. })
        ));
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        let mut bytes = encode(1, 0, b"head", b"", false);
        bytes[4] = 11;
        assert_eq!(
            decode(&bytes, LIMIT, true),
            Err(FrameError::TooShort {
                len: 11,
                head_bytes: 4
            })
        );
        bytes[4] = 7;
        assert_eq!(
            decode(&bytes, LIMIT, true),
            Err(FrameError::TooShort {
                len: 7,
                head_bytes: 0
            })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_something_without_a_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes, LIMIT, true);
        }

        #[test]
        fn what_goes_in_comes_out_and_every_prefix_waits_for_more(
            kind: u8, group: u32, head in prop::collection::vec(any::<u8>(), 0..80),
            body in prop::collection::vec(any::<u8>(), 0..200), covers: bool,
        ) {
            let bytes = encode(kind, group, &head, &body, covers);
            for cut in 0..bytes.len() {
                match decode(&bytes[..cut], LIMIT, true) {
                    Ok(Decoded::Partial { need }) => {
                        prop_assert!(cut < need && need <= bytes.len());
                    }
                    other => prop_assert!(false, "{cut} bytes of {} gave {other:?}", bytes.len()),
                }
            }
            let frame = Frame { label: Label { group, kind }, head: &head, body: &body };
            let whole = Decoded::Whole { frame, bytes: bytes.len() };
            prop_assert_eq!(decode(&bytes, LIMIT, true), Ok(whole));
        }

        #[test]
        fn a_flipped_bit_under_the_checksum_is_never_taken_for_the_frame(
            head in prop::collection::vec(any::<u8>(), 0..40),
            body in prop::collection::vec(any::<u8>(), 0..40),
            covers: bool, at: prop::sample::Index, bit in 0..8u32,
        ) {
            let mut bytes = encode(3, 9, &head, &body, covers);
            let covered = if covers { bytes.len() } else { HEADER_BYTES + head.len() };
            bytes[at.index(covered)] ^= 1 << bit;
            // A flip in the length may make the frame longer, which then waits for bytes; it is
            // never whole.
            if let Ok(Decoded::Whole { .. }) = decode(&bytes, LIMIT, true) {
                prop_assert!(false, "a damaged frame was taken");
            }
        }
    }
}
