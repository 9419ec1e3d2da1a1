//! Bytes: what stands in front of a command or a query, and behind an answer.
//!
//! ```text
//! plain      0 │ the wrapped machine's command or query
//! numbered   1 │ session: u64 │ sequence: u64 │ behind: u16 │ the wrapped machine's command
//! open       2
//! close      3 │ session: u64
//! keep       4 │ session: u64 │ mark: u64
//! limit      5 │ sessions: u32 │ window: u32 │ kept_bytes: u64 │ expire_after_us: u64
//!
//! answer     the wrapped machine's answer, or what the verdict says │ verdict: u8
//! ```
//!
//! All numbers are little endian. `behind` is how far the client's mark is below the sequence; [`NO_MARK`] there says
//! that the client gives none. The verdict stands at the end, since the wrapped machine may do with the buffer before
//! it what it likes.

use std::time::Duration;

use super::Limits;

/// A client's own number for a command of a session; the first is 1.
pub type Sequence = u64;

/// The length of what stands in front of a numbered command.
pub const NUMBERED_BYTES: usize = 19;

const PLAIN: u8 = 0;
const NUMBERED: u8 = 1;
const OPEN: u8 = 2;
const CLOSE: u8 = 3;
const KEEP: u8 = 4;
const LIMIT: u8 = 5;

const NO_MARK: u16 = u16::MAX;

const APPLIED: u8 = 0;
const OPENED: u8 = 1;
const DONE: u8 = 2;
const TOO_OLD: u8 = 3;
const NOT_KEPT: u8 = 4;
const TOO_FAR: u8 = 5;
const EXPIRED: u8 = 6;
const MALFORMED: u8 = 7;

/// What a command to a [`Sessions`](super::Sessions) machine is; it is written in front of the wrapped machine's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The wrapped machine's command follows, and is applied whenever it comes. The same before a query.
    Plain,
    /// The wrapped machine's command follows, and is applied once.
    Numbered {
        /// What [`Answer::Opened`] named.
        session: u64,
        /// The client's number for this command.
        sequence: Sequence,
        /// The client has the answers to everything below it, or does not want them any more. `None`: no word of it,
        /// then the answers to the last `window` sequence numbers are kept.
        mark: Option<Sequence>,
    },
    /// Opens a session.
    Open,
    /// Ends a session: its place and what was kept for it are free.
    Close {
        /// Which.
        session: u64,
    },
    /// Says that a session is in use, and up to where its client has answers.
    Keep {
        /// Which.
        session: u64,
        /// As in `Numbered`.
        mark: Sequence,
    },
    /// Changes the limits, for all from here on.
    Limit(Limits),
}

impl Request {
    /// Appends it to `out`; behind `Plain` and `Numbered` the wrapped machine's bytes are to follow.
    ///
    /// # Panics
    /// A mark above the sequence is a mistake of the caller.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Plain => out.push(PLAIN),
            Self::Numbered {
                session,
                sequence,
                mark,
            } => {
                let behind = match mark {
                    None => NO_MARK,
                    Some(mark) => {
                        assert!(mark <= sequence, "mark {mark} is above sequence {sequence}");
                        // No window is so long: what comes of it is `TooFar`, and the mark is not taken.
                        u16::try_from(sequence - mark).map_or(NO_MARK - 1, |b| b.min(NO_MARK - 1))
                    }
                };
                out.push(NUMBERED);
                out.extend_from_slice(&session.to_le_bytes());
                out.extend_from_slice(&sequence.to_le_bytes());
                out.extend_from_slice(&behind.to_le_bytes());
            }
            Self::Open => out.push(OPEN),
            Self::Close { session } => {
                out.push(CLOSE);
                out.extend_from_slice(&session.to_le_bytes());
            }
            Self::Keep { session, mark } => {
                out.push(KEEP);
                out.extend_from_slice(&session.to_le_bytes());
                out.extend_from_slice(&mark.to_le_bytes());
            }
            Self::Limit(limits) => {
                out.push(LIMIT);
                encode_limits(&limits, out);
            }
        }
    }

    /// Reads what [`encode`](Self::encode) wrote, and what stands behind it. `None`: it is no request.
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (&tag, rest) = bytes.split_first()?;
        let request = match tag {
            PLAIN => return Some((Self::Plain, rest)),
            NUMBERED => {
                let (session, rest) = take_u64(rest)?;
                let (sequence, rest) = take_u64(rest)?;
                let (behind, rest) = rest.split_first_chunk()?;
                let mark = match u16::from_le_bytes(*behind) {
                    NO_MARK => None,
                    behind => Some(sequence.checked_sub(u64::from(behind))?),
                };
                let numbered = Self::Numbered {
                    session,
                    sequence,
                    mark,
                };
                return Some((numbered, rest));
            }
            OPEN => (Self::Open, rest),
            CLOSE => {
                let (session, rest) = take_u64(rest)?;
                (Self::Close { session }, rest)
            }
            KEEP => {
                let (session, rest) = take_u64(rest)?;
                let (mark, rest) = take_u64(rest)?;
                (Self::Keep { session, mark }, rest)
            }
            LIMIT => {
                let (limits, rest) = decode_limits(rest)?;
                (Self::Limit(limits), rest)
            }
            _ => return None,
        };
        request.1.is_empty().then_some(request)
    }
}

/// A look at the first byte, for the many that need no more: where the wrapped machine's bytes begin.
pub(super) fn is_plain(bytes: &[u8]) -> Option<usize> {
    (bytes.first() == Some(&PLAIN)).then_some(1)
}

pub(super) const LIMITS_BYTES: usize = 24;

pub(super) fn encode_limits(limits: &Limits, out: &mut Vec<u8>) {
    out.extend_from_slice(&limits.sessions.to_le_bytes());
    out.extend_from_slice(&limits.window.to_le_bytes());
    out.extend_from_slice(&limits.kept_bytes.to_le_bytes());
    // Zero is never a limit: it would be reached at once.
    let expire_us = limits
        .expire_after
        .map_or(0, |after| u64::try_from(after.as_micros()).unwrap_or(0));
    out.extend_from_slice(&expire_us.to_le_bytes());
}

/// `None`: they are not limits that can be.
pub(super) fn decode_limits(bytes: &[u8]) -> Option<(Limits, &[u8])> {
    let (sessions, rest) = bytes.split_first_chunk()?;
    let (window, rest) = rest.split_first_chunk()?;
    let (kept_bytes, rest) = take_u64(rest)?;
    let (expire_us, rest) = take_u64(rest)?;
    let limits = Limits {
        sessions: u32::from_le_bytes(*sessions),
        window: u32::from_le_bytes(*window),
        kept_bytes,
        expire_after: (expire_us > 0).then(|| Duration::from_micros(expire_us)),
    };
    limits.check().ok().map(|()| (limits, rest))
}

fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (value, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*value), rest))
}

/// What a [`Sessions`](super::Sessions) machine answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// It is applied: what the wrapped machine answered, the first time. To a query, what it answered now.
    Applied(&'a [u8]),
    /// A session is open.
    Opened {
        /// Its name: the log index at which it was opened.
        session: u64,
        /// How many commands may be between the client's mark and the newest.
        window: u32,
    },
    /// It is closed, kept, or the limits are changed.
    Done,
    /// Not applied now: the client itself has said that it needs no answer to this sequence number any more.
    TooOld,
    /// Applied before, once; but the answer was long and had to make room for others' (`Limits::kept_bytes`).
    NotKept,
    /// Not applied: it is further above the client's mark than the window is long.
    TooFar,
    /// Not applied now: there is no such session. It was closed, or not used for long and had to make room.
    Expired,
    /// Not applied: these bytes are no request.
    Malformed,
}

impl<'a> Answer<'a> {
    /// Reads what a `Sessions` machine wrote. An answer that it did not write is `Malformed`.
    pub fn decode(answer: &'a [u8]) -> Self {
        match answer.split_last() {
            Some((&APPLIED, rest)) => Self::Applied(rest),
            Some((&OPENED, rest)) => match take_u64(rest) {
                Some((session, &[a, b, c, d])) => Self::Opened {
                    session,
                    window: u32::from_le_bytes([a, b, c, d]),
                },
                _ => Self::Malformed,
            },
            Some((&DONE, [])) => Self::Done,
            Some((&TOO_OLD, [])) => Self::TooOld,
            Some((&NOT_KEPT, [])) => Self::NotKept,
            Some((&TOO_FAR, [])) => Self::TooFar,
            Some((&EXPIRED, [])) => Self::Expired,
            _ => Self::Malformed,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let verdict = match *self {
            Self::Applied(answer) => {
                out.extend_from_slice(answer);
                APPLIED
            }
            Self::Opened { session, window } => {
                out.extend_from_slice(&session.to_le_bytes());
                out.extend_from_slice(&window.to_le_bytes());
                OPENED
            }
            Self::Done => DONE,
            Self::TooOld => TOO_OLD,
            Self::NotKept => NOT_KEPT,
            Self::TooFar => TOO_FAR,
            Self::Expired => EXPIRED,
            Self::Malformed => MALFORMED,
        };
        out.push(verdict);
    }
}

/// Behind what the wrapped machine has written already.
pub(super) fn close_applied(out: &mut Vec<u8>) {
    out.push(APPLIED);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Request; 7] = [
        Request::Plain,
        Request::Numbered {
            session: 7,
            sequence: 900,
            mark: Some(890),
        },
        Request::Numbered {
            session: u64::MAX,
            sequence: 0,
            mark: None,
        },
        Request::Open,
        Request::Close { session: 1 << 40 },
        Request::Keep {
            session: 3,
            mark: 12,
        },
        Request::Limit(Limits::DEFAULT),
    ];

    #[test]
    fn every_request_is_read_back_with_what_follows_it() {
        for request in ALL {
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            assert_eq!(Request::decode(&bytes), Some((request, &[][..])));
            for cut in 0..bytes.len() {
                assert_eq!(Request::decode(&bytes[..cut]), None, "{request:?} at {cut}");
            }
            let carries = matches!(request, Request::Plain | Request::Numbered { .. });
            bytes.push(9);
            let expected = carries.then_some((request, &[9][..]));
            assert_eq!(Request::decode(&bytes), expected, "{request:?}");
        }
        assert_eq!(Request::decode(&[77]), None);
    }

    #[test]
    fn a_mark_far_behind_stays_behind_and_one_below_zero_is_refused() {
        let mut bytes = Vec::new();
        let far = Request::Numbered {
            session: 1,
            sequence: 1 << 20,
            mark: Some(1),
        };
        far.encode(&mut bytes);
        let read = Request::decode(&bytes).map(|(request, _)| request);
        let Some(Request::Numbered { mark, .. }) = read else {
            panic!("{read:?}")
        };
        assert_eq!(mark, Some((1 << 20) - u64::from(NO_MARK - 1)));
        bytes[9..17].copy_from_slice(&5u64.to_le_bytes());
        assert_eq!(Request::decode(&bytes), None, "5 - 65534");
    }

    #[test]
    fn limits_that_cannot_be_are_no_request() {
        for limits in [
            Limits {
                sessions: 0,
                ..Limits::DEFAULT
            },
            Limits {
                window: 0,
                ..Limits::DEFAULT
            },
            Limits {
                window: super::super::MAX_WINDOW + 1,
                ..Limits::DEFAULT
            },
        ] {
            let mut bytes = Vec::new();
            Request::Limit(limits).encode(&mut bytes);
            assert_eq!(Request::decode(&bytes), None, "{limits:?}");
        }
    }

    #[test]
    fn every_answer_is_read_back() {
        let opened = Answer::Opened {
            session: 5,
            window: 256,
        };
        for answer in [
            Answer::Applied(b""),
            Answer::Applied(b"\x07\x06\x05"),
            opened,
            Answer::Done,
            Answer::TooOld,
            Answer::NotKept,
            Answer::TooFar,
            Answer::Expired,
            Answer::Malformed,
        ] {
            let mut bytes = Vec::new();
            answer.encode(&mut bytes);
            assert_eq!(Answer::decode(&bytes), answer);
        }
        for bad in [&[][..], &[3, TOO_OLD], &[1, 2, OPENED], &[99]] {
            assert_eq!(Answer::decode(bad), Answer::Malformed, "{bad:?}");
        }
    }
}
