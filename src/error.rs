//! What can go wrong, by what the caller may do next.
//!
//! The one distinction that matters to a caller is *refused* against *unknown*: a refused command was not and
//! will never be applied, so it may be sent again; an unknown one may have been, or may still be.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::types::NodeId;

/// Why a proposal or a read has no result. A read changes nothing, so it may be repeated whatever is said of it.
///
/// Every variant but [`Unknown`](ProposeError::Unknown) and [`WouldDeadlock`](ProposeError::WouldDeadlock) means that the
/// command is not applied and never will be; [`definitely_not_applied`](ProposeError::definitely_not_applied) says so.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProposeError {
    /// This node does not lead and the call asked for a leader, or no leader is known. Nothing was appended.
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// A ring or the table of pending requests is full: the cluster has more work than it finishes. Nothing was
    /// appended; try again after a pause.
    Busy,
    /// The command is longer than `Config::max_entry_bytes`. Nothing was appended.
    TooLarge {
        /// The longest command that is taken, in bytes.
        max: usize,
    },
    /// The command was handed to a leader which lost its office before it was committed, and a later leader's log
    /// has none of it. Not applied; it may be sent again.
    Replaced,
    /// The outcome is not known: the command may have been applied, or may still be. The only answer that must
    /// not be repeated blindly.
    Unknown,
    /// The calling thread is one of the node itself - this is the state machine, a callback, a waker or a `notify` - and would
    /// wait for itself. A request that was handed in is still under way: as with `Unknown`, it may be applied. Use
    /// [`Pending::then`](crate::Pending::then) or an [`Outbox`](crate::Outbox), or wait on a thread of your own.
    WouldDeadlock,
    /// The outbox that the request names was dropped, or is another node's. Nothing was appended.
    NoOutbox,
    /// A snapshot is being taken already.
    SnapshotRunning,
    /// No snapshot was taken: [`Status::snapshot`](crate::Status::snapshot) says why.
    NoSnapshot,
    /// A read only: nobody has confirmed in time that this node may answer it, since the leader was lost or cut off
    /// meanwhile. Read again.
    Unconfirmed,
    /// The node has stopped, or is stopping; nothing was appended. [`Status::error`](crate::Status::error) says why.
    Stopped,
}

impl ProposeError {
    /// False only for [`Unknown`](ProposeError::Unknown) and [`WouldDeadlock`](ProposeError::WouldDeadlock): the command was
    /// not applied and will not be.
    pub fn definitely_not_applied(&self) -> bool {
        !matches!(self, Self::Unknown | Self::WouldDeadlock)
    }
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader {
                leader: Some(leader),
            } => {
                write!(
                    f,
                    "not the leader, node {leader} leads; nothing was appended"
                )
            }
            Self::NotLeader { leader: None } => {
                f.write_str("no leader is known at the moment; nothing was appended, try again")
            }
            Self::Busy => f.write_str("busy; nothing was appended, try again after a pause"),
            Self::TooLarge { max } => {
                write!(
                    f,
                    "longer than the limit of {max} bytes (Config::max_entry_bytes)"
                )
            }
            Self::Replaced => {
                f.write_str("the leader changed before it was committed; not applied, try again")
            }
            Self::Unknown => {
                f.write_str("outcome unknown: it may have been applied, or may still be")
            }
            Self::WouldDeadlock => f.write_str(
                "not waited for: this is a thread of the node itself, which would wait for itself; the request is under way. Use \
                 Pending::then or an Outbox, or wait on a thread of your own",
            ),
            Self::NoOutbox => f.write_str(
                "the outbox was dropped, or belongs to another node; nothing was appended",
            ),
            Self::SnapshotRunning => f.write_str("a snapshot is being taken already"),
            Self::NoSnapshot => f.write_str("no snapshot was taken; the status says why"),
            Self::Unconfirmed => f.write_str(
                "not read: the leader was lost or did not confirm the read in time; read again",
            ),
            Self::Stopped => f.write_str("the node has stopped; nothing was appended"),
        }
    }
}

/// The sentence: a `main` that returns it prints this.
impl fmt::Debug for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for ProposeError {}

/// Why a node did not start.
#[non_exhaustive]
pub enum StartError {
    /// A field of the configuration, or the relation of two, cannot be.
    Config(String),
    /// The data directory cannot be used: another process has it, it belongs to another cluster, it is damaged.
    Storage(storage::StorageError),
    /// The listening socket, a thread or another resource of the system.
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The state machine refused to open, or panicked in doing so.
    StateMachine(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(what) => write!(f, "configuration: {what}"),
            Self::Storage(error @ storage::StorageError::Corrupt { .. }) => write!(
                f,
                "{error}; `ringraft log verify` shows what is left, and docs/operating.md says what to do with peers and without"
            ),
            Self::Storage(error) => write!(f, "{error}"),
            Self::Io { what, source } => write!(f, "{what}: {source}"),
            Self::StateMachine(what) => write!(f, "state machine: {what}"),
        }
    }
}

/// The sentence: a `main` that returns it prints this.
impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Storage(error) => Some(error),
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<storage::StorageError> for StartError {
    fn from(error: storage::StorageError) -> Self {
        Self::Storage(error)
    }
}

/// Why a running node stopped promising. Final for this process: nothing is retried as if it had not happened.
#[derive(Clone)]
#[non_exhaustive]
pub enum Fault {
    /// A write or a flush failed; the text names the file, the offset and the cause.
    Storage(Arc<str>),
    /// User code panicked or returned an error; the text names the index and the message.
    StateMachine(Arc<str>),
    /// The event loop of the network failed as a whole (one peer's trouble never does).
    Network(Arc<str>),
    /// A stage of the node panicked; the text names the stage and the message. A bug of ringraft, or of what it calls, such as
    /// a `tracing` subscriber. Nothing was written, flushed or acknowledged by that stage afterwards: start the node again.
    Panic(Arc<str>),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage(what) => write!(f, "storage: {what}"),
            Self::StateMachine(what) => write!(f, "state machine: {what}"),
            Self::Network(what) => write!(f, "network: {what}"),
            Self::Panic(what) => write!(f, "panic: {what}"),
        }
    }
}

/// The sentence: a `main` that returns it prints this.
impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Fault {}

/// Why [`Node::shutdown`](crate::Node::shutdown) was not, or not yet, an end in order.
#[derive(Clone)]
#[non_exhaustive]
pub enum ShutdownError {
    /// The node has ended: by this fault, or it came up in leaving.
    Fault(Fault),
    /// The time is over, and these stages still run; user code in them (`apply`, `restore`, a callback) does not return. They
    /// leave when it does, and shutting down again waits for that. Until then the directory and the address are not free.
    StillRunning {
        /// The stages, by the names of their threads.
        stages: Vec<&'static str>,
        /// How long was waited.
        limit: Duration,
    },
    /// The node was asked to leave, and does; but this is one of its own threads (in the state machine, a callback or a
    /// `notify`, or the one that polls its [`Driver`](crate::Driver)), which cannot wait for that.
    OwnThread,
}

impl ShutdownError {
    /// How long a shutdown waits: for what is under way, and then for the disk to take it.
    pub(crate) fn limit(proposal_timeout: Duration) -> Duration {
        proposal_timeout.saturating_add(proposal_timeout.max(Duration::from_secs(2)))
    }
}

impl fmt::Display for ShutdownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "{fault}"),
            Self::StillRunning { stages, limit } => write!(
                f,
                "after {limit:?} these stages still run: {}; user code in them (or the disk) does not return, and the \
                 directory and the address are not free before it does",
                stages.join(", ")
            ),
            Self::OwnThread => f.write_str(
                "asked to leave, but a thread of the node itself cannot wait for that: shut down from another thread, or \
                 poll the driver to its end",
            ),
        }
    }
}

/// The sentence: a `main` that returns it prints this.
impl fmt::Debug for ShutdownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for ShutdownError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Fault(fault) => Some(fault),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_without_advice_that_holds_for_some_only() {
        let damaged = StartError::Storage(storage::StorageError::Corrupt {
            path: "/data/log".into(),
            offset: 7,
            index: Some(3),
            detail: "a bad checksum".into(),
        });
        let text = damaged.to_string();
        assert!(
            text.contains("index 3") && text.contains("docs/operating.md"),
            "{text}"
        );
        assert!(!text.contains("from its peers"), "{text}");
        assert_eq!(format!("{damaged:?}"), text);
    }
}
