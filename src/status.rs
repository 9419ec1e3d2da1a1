//! What a node says of itself.

use std::fmt;
use std::time::Duration;

use storage::decision::{Action, Found};
use storage::{Recovered, SnapshotId};

use crate::error::Fault;
use crate::types::{Index, NodeId, Term};

/// What a node is in its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows, or waits for, a leader.
    Follower,
    /// Stands for election (or asks whether it could win one).
    Candidate,
    /// Leads.
    Leader,
    /// Gets the log and has no vote.
    Learner,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Learner => "learner",
        })
    }
}

/// A copy of a node's state, at one moment of each of its parts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// Who this is.
    pub id: NodeId,
    /// What it is.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Who leads this term, as far as it knows.
    pub leader: Option<NodeId>,
    /// The first entry that its log still has.
    pub first: Index,
    /// The last entry it has, durable or not.
    pub last: Index,
    /// The last entry that its own disk holds for certain.
    pub durable: Index,
    /// The last entry it knows to be committed.
    pub committed: Index,
    /// The last entry its state machine has applied.
    pub applied: Index,
    /// Flushes since the start.
    pub flushes: u64,
    /// Entries that these flushes covered.
    pub flushed_entries: u64,
    /// Requests of this node that wait for their answer.
    pub pending: usize,
    /// Which way bytes are made durable.
    pub flush_backend: &'static str,
    /// Each ring: how full it is and how often it was.
    pub rings: Vec<RingStatus>,
    /// The peers, as the leader sees them; empty on others.
    pub peers: Vec<PeerStatus>,
    /// Where the time of commands went that were proposed on this node while it led, in the last ten to twenty seconds.
    pub hops: Vec<HopStatus>,
    /// Its snapshots, and those on their way.
    pub snapshot: SnapshotStatus,
    /// Whether it lost records that it had acknowledged, and gets them back from its peers: until then it has no vote.
    pub healing: bool,
    /// A peer knows this node with another directory: it takes no part in elections and acknowledges nothing, until its
    /// operator has decided.
    pub excluded: Option<Exclusion>,
    /// Peers that refuse this node, or that it refuses, until they are heard again.
    pub refusals: Vec<RefusalStatus>,
    /// What was found bad on its disk since its process began, and what was done about it.
    pub repairs: Repairs,
    /// Why it stopped promising, when it did.
    pub error: Option<Fault>,
}

/// How full a ring is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RingStatus {
    /// The ring's name in the picture.
    pub name: &'static str,
    /// Its slots.
    pub capacity: usize,
    /// How many of them wait to be read.
    pub depth: usize,
    /// How often a writer found it full.
    pub full: u64,
}

/// A node's snapshots.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SnapshotStatus {
    /// The newest one stands for everything up to here; 0 when there is none.
    pub index: Index,
    /// The length of its file.
    pub bytes: u64,
    /// What all snapshots take on disk, also those that are not finished.
    pub disk_bytes: u64,
    /// How many this process has taken, and when the last of them was finished, in microseconds since the Unix epoch.
    pub taken: u64,
    /// See `taken`; 0 when it has taken none.
    pub taken_unix_us: u64,
    /// How many this process has received and restored.
    pub restored: u64,
    /// Bytes written of the one that is being taken.
    pub taking: Option<u64>,
    /// The one that is being received.
    pub receiving: Option<TransferStatus>,
    /// Those that are being sent.
    pub sending: Vec<TransferStatus>,
    /// What went wrong last, and not since.
    pub trouble: Option<String>,
    /// What was last found bad on the disk, in the log or in a snapshot.
    pub rot: Option<String>,
}

/// What a node has found bad on its disk, and what was done about it: by its start, and since then by reading again in the
/// background ([`Config::scrub_every`](crate::Config::scrub_every)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Repairs {
    /// Files or copies that the start wrote anew from what was sound beside them, and segments that it dropped because a
    /// snapshot has what was bad in them.
    pub mended_at_start: u64,
    /// Torn ends of the log that it cut off: nobody had been told of what was in them.
    pub cut_at_start: u64,
    /// Files that it put under another name: snapshots that were bad.
    pub set_aside_at_start: u64,
    /// Places behind which it gave up what had been promised, to get it back from the peers; see [`Status::healing`].
    pub healed_at_start: u64,
    /// Places that were found bad while the node ran.
    pub found: u64,
    /// Of them, those that were put right in their place: with a peer's bytes of the records, or a header from memory.
    pub mended: u64,
    /// The last of all these, in words.
    pub last: Option<String>,
}

impl Repairs {
    pub(crate) fn of_a_start(recovered: &Recovered) -> Self {
        let mut repairs = Self::default();
        // What weighs more is told last, and stays.
        let mut told = Vec::new();
        for decision in &recovered.decisions {
            let (count, weight) = match (decision.action, &decision.found) {
                (Action::Rewrite, _) | (_, Found::MetaSlotTorn | Found::Covered { .. }) => {
                    (&mut repairs.mended_at_start, 1)
                }
                (Action::Cut, Found::Torn { .. }) => (&mut repairs.cut_at_start, 0),
                (Action::SetAside, _) => (&mut repairs.set_aside_at_start, 2),
                (Action::Heal, _) => (&mut repairs.healed_at_start, 3),
                // It says what is wrong with the file; that the log ends before it follows.
                (Action::Remove, Found::SegmentDamaged { in_use: true, .. }) => {
                    (&mut repairs.healed_at_start, 5)
                }
                (Action::Remove, Found::GivenUp) => (&mut repairs.healed_at_start, 3),
                _ => continue,
            };
            *count += 1;
            told.push((weight, decision.to_string()));
        }
        if let Some(wound) = recovered
            .data_loss
            .iter()
            .flat_map(|heal| &heal.damage)
            .last()
        {
            let text = format!("{wound}; it is fetched again from the peers");
            told.push((4, text));
        }
        let last = told.into_iter().max_by_key(|(weight, _)| *weight);
        repairs.last = last.map(|(_, text)| format!("at the start: {text}"));
        repairs
    }
}

/// Why a node takes no part: its directory is not the one that a peer has met it with.
///
/// It has probably been started with an empty directory, since the volume with its log was not mounted. What it promised in
/// the other directory may contradict whatever it promises now. This is kept in the file `excluded`, so a restart does not end it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exclusion {
    /// The peer that refused it first; `None` when the file is damaged.
    pub by: Option<NodeId>,
    /// The incarnation of the directory that the peer knows.
    pub known_incarnation: u64,
    /// The incarnation that was refused.
    pub incarnation: u64,
}

impl Exclusion {
    pub(crate) fn of(exclusion: &storage::Exclusion) -> Self {
        Self {
            by: (exclusion.by != 0).then_some(NodeId(exclusion.by as u32)),
            known_incarnation: exclusion.known,
            incarnation: exclusion.incarnation,
        }
    }
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            Some(by) => write!(
                f,
                "node {by} knows this node with the directory {:x}, this one is {:x}. ",
                self.known_incarnation, self.incarnation
            )?,
            None => f.write_str("a peer knows this node with another directory. ")?,
        }
        f.write_str(
            "This node takes no part in elections and acknowledges nothing. If its volume is not mounted, stop it and mount the \
             volume. If the other directory is lost for good, stop it, empty this directory and start it with \
             `rejoin_with_nothing`. If the peer is wrong, remove the file `excluded` from this directory",
        )
    }
}

/// A peer with which this node has no connection, since one side refuses the other. It is tried again all the time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusalStatus {
    /// The peer.
    pub peer: NodeId,
    /// The peer refuses this node; otherwise this node refuses it.
    pub by_peer: bool,
    /// Why, and what to do.
    pub reason: String,
}

/// A snapshot on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransferStatus {
    /// To or from whom.
    pub peer: NodeId,
    /// What it stands for.
    pub index: Index,
    /// How much is there.
    pub bytes: u64,
    /// Of how much.
    pub of_bytes: u64,
    /// On the average since it began.
    pub bytes_per_second: u64,
}

impl SnapshotStatus {
    pub(crate) fn keep(&mut self, newest: Option<SnapshotId>, disk_bytes: u64) {
        (self.index, self.bytes) = newest.map_or((0, 0), |id| (id.index, id.bytes));
        self.disk_bytes = disk_bytes;
    }

    pub(crate) fn finish_taking(&mut self, unix_us: u64) {
        self.taking = None;
        self.trouble = None;
        self.taken += 1;
        self.taken_unix_us = unix_us;
    }

    pub(crate) fn failed(&mut self, index: Index, why: &dyn fmt::Display) {
        self.trouble = Some(format!("snapshot of everything up to {index}: {why}"));
    }
}

/// A peer, as the leader sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Who.
    pub id: NodeId,
    /// The last entry it is known to hold durably.
    pub matched: Index,
    /// The next entry it is to be sent.
    pub next: Index,
    /// Bytes on their way to it, unanswered.
    pub inflight_bytes: u64,
    /// Whether it has answered within the last election timeout.
    pub active: bool,
    /// What it last attached to its answers ([`Node::set_piggyback`](crate::Node::set_piggyback)).
    pub piggyback: Vec<u8>,
}

/// How long commands take for a part of their way. One at a time is followed.
///
/// | name | from | to |
/// |---|---|---|
/// | `queue` | the call | the consensus stage has given it its index |
/// | `write` | there | it is in the log, readable and not yet durable |
/// | `flush` | there | this node's own disk has it for certain |
/// | `peers` | written | the first peer has answered that its disk has it |
/// | `commit` | its index | a majority has it; `write`, `flush` and `peers` lie within |
/// | `apply` | committed | the state machine has applied it |
/// | `answer` | applied | the caller has taken the answer |
/// | `total` | the call | the caller has taken the answer |
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HopStatus {
    /// Which part.
    pub name: &'static str,
    /// Commands that were followed.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: Duration,
    /// Nor did 99 of 100 take longer than this.
    pub p99: Duration,
    /// The slowest.
    pub max: Duration,
}

impl Status {
    /// Why is it slow: the hops that own the most of the median and of the 99th percentile, in this order. When it is the
    /// commit, the part of it that took longest stands in its place. `None` when no command was followed.
    pub fn why_slow(&self) -> Option<(&HopStatus, &HopStatus)> {
        let slowest = |time: fn(&HopStatus) -> Duration, among: &[&str]| {
            let hops = self.hops.iter().filter(|hop| hop.count > 0);
            hops.filter(|hop| among.contains(&hop.name))
                .max_by_key(|hop| time(hop))
        };
        let owner = |time: fn(&HopStatus) -> Duration| {
            let hop = slowest(time, &["queue", "commit", "apply", "answer"])?;
            match hop.name {
                "commit" => slowest(time, &["write", "flush", "peers"]).or(Some(hop)),
                _ => Some(hop),
            }
        };
        Some((owner(|hop| hop.p50)?, owner(|hop| hop.p99)?))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "node {} {} term {} leader ",
            self.id, self.role, self.term
        )?;
        match self.leader {
            Some(leader) => write!(f, "{leader}")?,
            None => f.write_str("none")?,
        }
        write!(
            f,
            " last {} durable {} committed {} applied {} pending {}",
            self.last, self.durable, self.committed, self.applied, self.pending
        )?;
        if let Some(exclusion) = &self.excluded {
            write!(f, ", excluded: {exclusion}")?;
        }
        Ok(())
    }
}
