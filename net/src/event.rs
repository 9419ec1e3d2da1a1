//! What the network tells its user, and why connections end.

use std::{fmt, io};

use crate::frame::FrameError;
use crate::hello::Refusal;

/// What [`Net::poll`](crate::Net::poll) tells. Of one peer: `Up`, its frames in the order they were
/// sent, `Down`.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The peer is connected and is who it should be.
    Up {
        /// Who.
        peer: u64,
        /// Names its data directory; worth keeping for `Config::known_incarnations`.
        incarnation: u64,
        /// Its directory takes the place of one that is gone, whose incarnation is to be kept no more.
        replaces: bool,
    },
    /// The peer is gone, and with it all that was queued for it or has been received from it and
    /// not been taken.
    Down {
        /// Who.
        peer: u64,
        /// Why.
        reason: Reason,
    },
    /// A peer and this node will not talk to each other, until something is changed on one side.
    /// Told again at each attempt.
    Refused {
        /// The other side. When this node refuses: who it says it is.
        peer: u64,
        /// The peer refuses; otherwise this node does.
        by_peer: bool,
        /// Why, and what to do.
        refusal: Refusal,
    },
    /// A frame, whose head is as it was sent. The body is only if the sender had it covered.
    Frame {
        /// The sender.
        peer: u64,
        /// As sent.
        kind: u8,
        /// As sent.
        group: u32,
        /// As sent.
        head: &'a [u8],
        /// As received, see above.
        body: &'a [u8],
    },
}

/// What has become of an event. Only frames can be held; for other events it does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// It is done with.
    Taken,
    /// There is no room for it now: it will be offered again at the next poll, and until it is
    /// taken that connection is not read, so that TCP holds the sender back. Other connections go
    /// on.
    Hold,
}

/// Why a connection ended or did not come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The other side closed it.
    Closed,
    /// No address is known for the peer's name.
    Unresolved,
    /// The system said so.
    Io {
        /// During what: `"connect"`, `"read"`, `"write"`.
        doing: &'static str,
        /// The kind of error.
        kind: io::ErrorKind,
        /// The system's number of it.
        code: Option<i32>,
    },
    /// What came is no frame.
    Frame(FrameError),
    /// A frame that has no business here: another than a hello at first, or a second hello.
    Unexpected {
        /// Its kind.
        kind: u8,
    },
    /// Not connected, or no hello, within `Config::hello_timeout`.
    NoHello,
    /// Nothing arrived for `Config::stall_timeout`.
    Silent,
    /// Nothing could be sent for `Config::stall_timeout`.
    Stalled {
        /// Bytes that were waiting.
        queued_bytes: usize,
    },
    /// This node refused the other.
    Refused(Refusal),
    /// The other node refused this one.
    RefusedByPeer(Refusal),
    /// The peer has connected anew.
    Replaced,
    /// The peer was taken off the list, or has got another address.
    Removed,
    /// Too many others wait to say who they are.
    Evicted,
}

impl Reason {
    pub(crate) fn io(doing: &'static str, error: &io::Error) -> Self {
        Self::Io {
            doing,
            kind: error.kind(),
            code: error.raw_os_error(),
        }
    }

    /// A part of normal life, not worth a warning.
    pub(crate) fn is_expected(&self) -> bool {
        matches!(self, Self::Replaced | Self::Removed)
    }

    /// Both sides had dialed, and the other connection stays.
    pub(crate) fn is_crossing(&self) -> bool {
        matches!(
            self,
            Self::Refused(Refusal::Direction { .. })
                | Self::RefusedByPeer(Refusal::Direction { .. })
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => write!(f, "closed by the other side"),
            Self::Unresolved => write!(f, "no address is known for its name"),
            Self::Io {
                doing,
                code: Some(code),
                ..
            } => {
                write!(f, "{doing}: {}", io::Error::from_raw_os_error(*code))
            }
            Self::Io {
                doing,
                kind,
                code: None,
            } => write!(f, "{doing}: {kind}"),
            Self::Frame(error) => error.fmt(f),
            Self::Unexpected { kind } => {
                write!(f, "a frame of kind {kind:#04x} where it does not belong")
            }
            Self::NoHello => write!(f, "not connected, or no hello, in time"),
            Self::Silent => write!(f, "nothing heard for too long, not even a ping"),
            Self::Stalled { queued_bytes } => {
                write!(
                    f,
                    "it takes no bytes, {queued_bytes} have waited for too long"
                )
            }
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
            Self::RefusedByPeer(refusal) => write!(f, "refused by the other side: {refusal}"),
            Self::Replaced => write!(f, "the peer has connected anew"),
            Self::Removed => write!(
                f,
                "taken off the list of peers, or moved to another address"
            ),
            Self::Evicted => write!(f, "too many connections that have not said who they are"),
        }
    }
}

/// Why a frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// There is no connection to that node now, or it is no peer.
    Down,
    /// The lane has no room; it gets some when the peer reads.
    Full,
    /// The frame is over `Config::max_frame_bytes`, or over 64 KiB on the small lane, or its head
    /// is over 64 KiB - 1.
    TooLarge,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "the peer is not connected",
            Self::Full => "the lane to the peer is full",
            Self::TooLarge => "the frame is over the limit",
        })
    }
}

impl std::error::Error for SendError {}

/// What has happened with one peer since it was added. Counts never go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// It is connected now.
    pub up: bool,
    /// Its incarnation, if it was ever seen or is known from the configuration.
    pub incarnation: Option<u64>,
    /// Times it came up.
    pub connects: u64,
    /// Times it went down, or could not be reached.
    pub drops: u64,
    /// Why the last connection ended, or the last attempt failed.
    pub last_reason: Option<Reason>,
    /// Frames received and taken, without hellos and pings.
    pub frames_in: u64,
    /// Bytes received in whole frames that were taken, with hellos and pings.
    pub bytes_in: u64,
    /// Frames queued, without hellos and pings.
    pub frames_out: u64,
    /// Bytes written, with hellos and pings.
    pub bytes_out: u64,
    /// Sends that were answered `Full`.
    pub full: u64,
    /// Times a frame was put on hold by the consumer.
    pub holds: u64,
    /// Bytes that wait to be written now.
    pub queued_bytes: usize,
}
