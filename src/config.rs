//! Every limit and choice of a node, with its default and what it does.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::clock::COUNTS_SUSPENSION;
use crate::error::StartError;
use crate::machine::memory_of_machine;
use crate::request::token::MAX_SLOTS;
use crate::types::NodeId;

/// The longest election timeout: deadlines are small multiples of it.
const LONGEST_ELECTION: Duration = Duration::from_secs(3600);
/// The longest of the other times, so that no deadline is out of a clock's reach.
const LONGEST_TIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// A voter of the cluster and where its peers reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub id: NodeId,
    /// `host:port` of its raft listener.
    pub addr: String,
}

/// Which threads run the stages.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Threads {
    /// [`PerStage`](Threads::PerStage) from 8 cores on, [`SeparateApply`](Threads::SeparateApply) below.
    #[default]
    Auto,
    /// One thread for consensus, append and network; one for the state machine (apply); one for wakers and callbacks
    /// (reply). User code runs on the latter two only: however long it takes, heartbeats, votes and acknowledgements go on.
    SeparateApply,
    /// All stages on one thread. **Only for user code that is always short**: while `apply`, `query`, `snapshot` (the
    /// capture, not the writing), `leader_start`, a callback, a waker or a `notify` runs, the node sends no heartbeat, and one
    /// that takes an election timeout deposes the leader. It saves the hand-over to the apply thread: benches/README.md has
    /// what that costs. A driven node ([`Node::start_driven`](crate::Node::start_driven)) always runs so, on its embedder's
    /// thread.
    Shared,
    /// Consensus, append, network, apply and reply each on a thread of its own. With `cores`, the threads are pinned
    /// to these cores in that order; fewer cores than threads go round.
    PerStage {
        /// Cores to pin to; empty: the system places the threads.
        cores: Vec<usize>,
    },
}

/// What a thread does when no stage on it has work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleWay {
    /// Never sleeps, never yields: only for threads with a core of their own.
    Spin,
    /// Never sleeps, but lets others run.
    Yield,
    /// Yields for as long as given after the last work, then sleeps until something comes. A longer grace saves
    /// wake-ups (tens of microseconds each on a sleeping core) and costs that much CPU after every burst. A thread that
    /// something comes to only now and then - its last four sleeps were not all shorter than 1 ms - sleeps at once.
    Park {
        /// How long to yield before it sleeps.
        grace: Duration,
    },
}

/// Opts in to lease reads, and states what they rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// By how much the rate of any node's clock may be off, in parts per million of true time. Default: 10,000 (1 %): far
    /// over what a disciplined clock does (some hundreds), under what a broken one may. When a clock is off by more, a
    /// lease read may miss a write that another leader has acknowledged.
    pub max_clock_drift_ppm: u32,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            max_clock_drift_ppm: 10_000,
        }
    }
}

/// How bytes are made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Flush {
    /// io_uring where the kernel and the container allow it, else a thread that calls `fdatasync`.
    #[default]
    Auto,
    /// io_uring, or an error at start.
    IoUring,
    /// The flush thread.
    Thread,
    /// **None: an acknowledged entry may be lost in a power cut.** For tests and measurements only.
    Never,
}

/// The configuration of a node. Build it with [`Config::new`] and change what should differ:
///
/// ```
/// # use ringraft::{Config, Member, NodeId};
/// # use std::time::Duration;
/// let members = vec![Member { id: NodeId(1), addr: "127.0.0.1:7101".into() }];
/// let config = Config {
///     election_timeout: Duration::from_millis(300),
///     ..Config::new(NodeId(1), "/var/lib/counter", members)
/// };
/// # let _ = config;
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this node is.
    pub id: NodeId,
    /// Its directory; made when missing. One process at a time. A relative path is one from where the process stands when the
    /// node starts, wherever it goes later. The number of files that are open in it has a bound, whatever the log's length
    /// ([`Config::max_descriptors`]); each segment is one mapping of memory, so a log has no more segments than the system
    /// allows (`vm.max_map_count`, 65,530 on Linux: 4 TiB by default).
    pub data_dir: PathBuf,
    /// The voters. The same list on every node; it founds the cluster on the first start, when the directory is empty. A
    /// later start with a different list is refused, since that would be another cluster: nothing is lost by it. Ids and
    /// addresses differ from each other, and each address is one that the others can connect to. A host name is looked up anew
    /// each time that its node is dialed, on a thread of its own; one that is not known is a node that is not reached.
    pub members: Vec<Member>,
    /// Where this node listens for its peers, when that is not the address by which they reach it: `0.0.0.0:7101` or
    /// `[::]:7101` for every interface, the address within a container, or one behind a forwarded port. Not part of what the
    /// nodes agree on. Default: `None`, the addresses that this member's own `addr` stands for on this machine - on Debian that
    /// of a host's own name is `127.0.1.1`, where no other machine reaches it: the log warns.
    pub listen: Option<String>,
    /// Keeps apart clusters that can reach each other. Default: the members' ids and addresses do. With a number of
    /// your own (the same on every node) only their ids count beside it, so that members may move to other addresses.
    pub cluster_id: Option<u64>,
    /// The group within the cluster, in every frame and in the directory. Default: 0.
    pub group: u32,

    /// The operator's word that this node's old directory is gone for good, and that no process runs on a copy of it: with an
    /// empty directory the node then comes back under its own id. It takes no part before it has heard from **all** other
    /// voters, so all of them must be there, with their directories, at once or one after the other; its peers refuse the old
    /// directory from then on. Then it gets everything from the leader, and neither votes as if it had lost nothing nor stands
    /// until it has it. That is safe; saying so of a directory that may come back is not. It needs at least three members, and
    /// does nothing on a directory that is not empty but to say so in the log. Default: false, a node with an empty
    /// directory is refused by all who know the old one.
    pub rejoin_with_nothing: bool,

    /// A follower that hears nothing for one to two of these stands for election. Default: 1 s. Minimum: 10 ms. Maximum: 1 hour.
    pub election_timeout: Duration,
    /// A leader shows itself at least this often. Default: a tenth of the election timeout, when zero. Maximum: half of it.
    pub heartbeat: Duration,
    /// A request that is not decided by then is answered `Unknown`, within 10 ms after that. A thread of its own sees to
    /// it (`limits`), so it holds while the state machine or a disk stands still. A callback, a waker or a `notify` is run by the
    /// reply stage: with [`Threads::Shared`] and in a driven node not before user code returns; a thread in
    /// [`Pending::wait`](crate::Pending::wait) is woken in any case. ARCHITECTURE.md lists who keeps which time limit. Default:
    /// 10 s. Minimum: the election timeout. Maximum: 365 days.
    pub proposal_timeout: Duration,
    /// Lets this node answer [`Consistency::Lease`](crate::Consistency::Lease) by a lease while it leads, and promise one to
    /// its leader. Default: `None`, such reads are confirmed by a round as others are.
    ///
    /// The price: a voter that has promised votes for nobody for an election timeout, so a leader whose process died is
    /// not replaced sooner, and a node that starts does not vote for as long. Linux only, where there is a clock that goes on
    /// while the machine is suspended; a virtual machine that is stopped from outside must be told of the time that went by.
    /// To turn it off, stop the node for at least an election timeout.
    pub lease: Option<Lease>,
    /// A proposal on a follower goes to the leader; otherwise it is answered `NotLeader`. Default: true.
    pub forward: bool,

    /// Which threads run the stages. Default: by the number of cores, with user code apart.
    pub threads: Threads,
    /// What they do without work. Default: park after a grace of 50 µs.
    pub idle: IdleWay,

    /// How bytes are made durable. Default: by probing.
    pub flush: Flush,
    /// The size of a log segment file; each is written once ahead of need. Default: 64 MiB. Minimum: 64 KiB and four
    /// times the largest entry. Maximum: 16 GiB. A multiple of 4096.
    pub segment_bytes: u64,

    /// The longest command, in bytes. Default: 1 MiB. Maximum: 16 MiB.
    pub max_entry_bytes: usize,
    /// Commands up to this long travel inside their ring slot; a longer one is copied
    /// once more. Default: 256.
    pub inline_bytes: usize,
    /// Requests under way on this node; the next one is `Busy`. A power of two. Default: 16,384. Maximum: 16 Mi.
    pub max_pending: usize,
    /// Bytes of long commands (over `inline_bytes`) that wait in the propose ring; beyond it is `Busy`. Default: 64 MiB.
    /// Buffers for them are kept for the next ones, up to 28 MiB of those that were needed.
    pub max_spilled_bytes: usize,
    /// The slots of the propose ring. A power of two. Default: 16,384.
    pub propose_ring: usize,
    /// The slots of the entry ring, each a batch. A power of two. Default: 64.
    pub entry_ring: usize,
    /// Entries that are encoded, written and flushed together. Default: 256 KiB; a longer single entry goes alone. Maximum: 256
    /// MiB.
    pub max_batch_bytes: usize,
    /// Entries that one message carries to a peer. Default: 256 KiB; a longer single entry goes alone. Maximum: 256 MiB.
    pub max_append_bytes: usize,
    /// Messages with entries on their way to one peer, unanswered. Default: 256. Maximum: 65,536.
    pub max_inflight_messages: usize,
    /// Bytes of entries on their way to one peer, unanswered. Default: 8 MiB.
    pub max_inflight_bytes: usize,
    /// Entries that a leader has appended and not yet committed; beyond it no proposal is taken from the ring.
    /// Default: 64 MiB.
    pub max_uncommitted_bytes: usize,

    /// A snapshot is taken when this much of the log has been applied since the last one, if the state machine takes any.
    /// The directory then holds no more than about three snapshots, three times this and five segments (two of them wait
    /// for their next life), if one is taken before the next is due. 0: not by bytes. Default: 256 MiB.
    pub snapshot_every_bytes: u64,
    /// Likewise after so many entries. 0: not by entries. Default: 0.
    pub snapshot_every_entries: u64,
    /// Likewise after so long, if anything was applied; the first time after a part of it that chance decides, so that the
    /// nodes do not do it at once. Zero: not by time. Default: zero. Maximum: 365 days.
    pub snapshot_every: Duration,
    /// Entries before the newest snapshot that stay in the log, for followers that are only a little behind: as many, and no
    /// more bytes than [`Config::snapshot_every_bytes`] and a segment (0: whatever they have). Default: 65,536.
    pub log_tail_entries: u64,
    /// Bytes of a snapshot on their way to one follower. Default: 4 MiB. Minimum: 1 KiB. Maximum: 1 GiB.
    pub snapshot_window_bytes: usize,
    /// The most that is written (or read again), and the most that is sent, of snapshots in a second, in bytes. 0: as fast
    /// as it goes. Default: 0.
    pub snapshot_bytes_per_second: u64,
    /// So long after the last time, all of the log and the snapshots is read from the disk again, to find what has gone bad
    /// there. Zero: never. Default: an hour. Maximum: 365 days.
    pub scrub_every: Duration,
    /// The most that this reads in a second, in bytes. Default: 2 MiB.
    pub scrub_bytes_per_second: u64,
}

impl Config {
    /// The defaults for this node.
    pub fn new(id: NodeId, data_dir: impl Into<PathBuf>, members: Vec<Member>) -> Self {
        Self {
            id,
            data_dir: data_dir.into(),
            members,
            listen: None,
            cluster_id: None,
            group: 0,
            rejoin_with_nothing: false,
            election_timeout: Duration::from_secs(1),
            heartbeat: Duration::ZERO,
            lease: None,
            proposal_timeout: Duration::from_secs(10),
            forward: true,
            threads: Threads::Auto,
            idle: IdleWay::Park {
                grace: Duration::from_micros(50),
            },
            flush: Flush::Auto,
            segment_bytes: 64 << 20,
            max_entry_bytes: 1 << 20,
            inline_bytes: 256,
            max_pending: 16 << 10,
            max_spilled_bytes: 64 << 20,
            propose_ring: 16 << 10,
            entry_ring: 64,
            max_batch_bytes: 256 << 10,
            max_append_bytes: 256 << 10,
            max_inflight_messages: 256,
            max_inflight_bytes: 8 << 20,
            max_uncommitted_bytes: 64 << 20,
            snapshot_every_bytes: 256 << 20,
            snapshot_every_entries: 0,
            snapshot_every: Duration::ZERO,
            log_tail_entries: 64 << 10,
            snapshot_window_bytes: 4 << 20,
            snapshot_bytes_per_second: 0,
            scrub_every: Duration::from_secs(3600),
            scrub_bytes_per_second: 2 << 20,
        }
    }

    /// Checks each field and how they relate; fills in what was left to be derived.
    pub(crate) fn checked(mut self) -> Result<Self, StartError> {
        let wrong = |what: String| Err(StartError::Config(what));
        if self.id.0 == 0 {
            return wrong("id: 0 is not a node id, they start at 1".into());
        }
        for (at, member) in self.members.iter().enumerate() {
            if member.id.0 == 0 {
                return wrong("members: 0 is not a node id, they start at 1".into());
            }
            if self.members[..at].iter().any(|other| other.id == member.id) {
                return wrong(format!(
                    "members: node {} stands twice in the list",
                    member.id
                ));
            }
            if let Some(trouble) = address_trouble(&member.addr) {
                return wrong(format!(
                    "members: node {} has the address {:?}: {trouble}",
                    member.id, member.addr
                ));
            }
            if let Some(other) = self.members[..at]
                .iter()
                .find(|other| is_same_address(&other.addr, &member.addr))
            {
                return wrong(format!(
                    "members: node {} and node {} have one address, {}: each needs a listener of its own",
                    other.id, member.id, member.addr
                ));
            }
        }
        if !self.members.iter().any(|member| member.id == self.id) {
            return wrong(format!(
                "members: this node, {}, is not in the list",
                self.id
            ));
        }
        if let Some(listen) = &self.listen {
            let every = matches!(listen.parse::<SocketAddr>(), Ok(addr) if addr.ip().is_unspecified() && addr.port() > 0);
            if let Some(trouble) = address_trouble(listen).filter(|_| !every) {
                return wrong(format!("listen: {listen:?}: {trouble}"));
            }
        }
        if self.rejoin_with_nothing && self.members.len() < 3 {
            return wrong(format!(
                "rejoin_with_nothing: in a group of {} nobody can be elected without this node, so nobody could give it back \
                 what it has lost",
                self.members.len()
            ));
        }
        if self.data_dir.as_os_str().is_empty() {
            return wrong("data_dir: it is empty; \".\" is the working directory".into());
        }
        self.data_dir = std::path::absolute(&self.data_dir).map_err(|error| {
            StartError::Config(format!(
                "data_dir: {} is relative to a working directory that cannot be found: {error}",
                self.data_dir.display()
            ))
        })?;
        if !(Duration::from_millis(10)..=LONGEST_ELECTION).contains(&self.election_timeout) {
            return wrong(format!(
                "election_timeout: {:?} is not in 10ms ..= 1 hour",
                self.election_timeout
            ));
        }
        for (name, value, otherwise) in [
            ("proposal_timeout", self.proposal_timeout, ""),
            ("snapshot_every", self.snapshot_every, "; zero: not by time"),
            ("scrub_every", self.scrub_every, "; zero: never"),
        ] {
            if value > LONGEST_TIME {
                return wrong(format!(
                    "{name}: {value:?} is over the maximum of 365 days{otherwise}"
                ));
            }
        }
        if self.heartbeat.is_zero() {
            self.heartbeat = self.election_timeout / 10;
        }
        if self.heartbeat > self.election_timeout / 2 {
            return wrong(format!(
                "heartbeat: {:?} is more than half of the election timeout {:?}: one lost heartbeat would start an election",
                self.heartbeat, self.election_timeout
            ));
        }
        if let Some(Lease {
            max_clock_drift_ppm: drift,
        }) = self.lease
        {
            if drift >= 500_000 {
                return wrong(format!(
                    "lease: a drift of {drift} ppm leaves no time that is certain; it is under 500000"
                ));
            }
            if !COUNTS_SUSPENSION {
                return wrong(
                    "lease: this system has no clock known here that goes on while the machine is suspended; leave it out"
                        .into(),
                );
            }
        }
        for (name, value) in [
            ("max_pending", self.max_pending),
            ("propose_ring", self.propose_ring),
            ("entry_ring", self.entry_ring),
        ] {
            if !value.is_power_of_two() || value < ringbuf::MIN_MANY_CAPACITY {
                let least = ringbuf::MIN_MANY_CAPACITY;
                return wrong(format!(
                    "{name}: {value} is not a power of two of at least {least}"
                ));
            }
        }
        if self.max_pending > MAX_SLOTS {
            return wrong(format!(
                "max_pending: {} is over {MAX_SLOTS}",
                self.max_pending
            ));
        }
        if self.max_entry_bytes == 0 || self.max_entry_bytes > 16 << 20 {
            return wrong(format!(
                "max_entry_bytes: {} is not in 1 ..= 16 MiB",
                self.max_entry_bytes
            ));
        }
        if self.segment_bytes < (64 << 10).max(4 * self.max_entry_bytes as u64) {
            return wrong(format!(
                "segment_bytes: {} is less than 64 KiB or four times max_entry_bytes ({})",
                self.segment_bytes, self.max_entry_bytes
            ));
        }
        if self.segment_bytes > 16 << 30 || !self.segment_bytes.is_multiple_of(4096) {
            return wrong(format!(
                "segment_bytes: {} is not a multiple of 4096 up to 16 GiB",
                self.segment_bytes
            ));
        }
        for (name, value) in [
            ("max_batch_bytes", self.max_batch_bytes),
            ("max_append_bytes", self.max_append_bytes),
        ] {
            if value > 256 << 20 {
                return wrong(format!("{name}: {value} is over the maximum of 256 MiB"));
            }
        }
        if self.max_inflight_messages > 64 << 10 {
            return wrong(format!(
                "max_inflight_messages: {} is over the maximum of 65536",
                self.max_inflight_messages
            ));
        }
        if self.max_inflight_bytes < self.max_append_bytes {
            return wrong(format!(
                "max_inflight_bytes: {} is less than max_append_bytes ({}): not one full message could be sent",
                self.max_inflight_bytes, self.max_append_bytes
            ));
        }
        if self.max_inflight_messages == 0
            || self.max_batch_bytes == 0
            || self.max_append_bytes == 0
        {
            return wrong(
                "max_inflight_messages, max_batch_bytes and max_append_bytes are at least 1".into(),
            );
        }
        if self.max_uncommitted_bytes < self.max_batch_bytes {
            return wrong(format!(
                "max_uncommitted_bytes: {} is less than max_batch_bytes ({})",
                self.max_uncommitted_bytes, self.max_batch_bytes
            ));
        }
        if !(1 << 10..=1 << 30).contains(&self.snapshot_window_bytes) {
            return wrong(format!(
                "snapshot_window_bytes: {} is not in 1 KiB ..= 1 GiB",
                self.snapshot_window_bytes
            ));
        }
        if self.scrub_bytes_per_second == 0 {
            return wrong(
                "scrub_bytes_per_second: 0 would never end; scrub_every of zero turns it off"
                    .into(),
            );
        }
        if self.proposal_timeout < self.election_timeout {
            return wrong(format!(
                "proposal_timeout: {:?} is less than the election timeout {:?}: every election would end in unknown outcomes",
                self.proposal_timeout, self.election_timeout
            ));
        }
        self.check_memory(memory_of_machine())?;
        Ok(self)
    }

    /// What the hello frame and the directory carry: it differs wherever the members or the given id do.
    pub(crate) fn cluster_id(&self) -> u64 {
        let mut members: Vec<String> = self
            .members
            .iter()
            .map(|member| match self.cluster_id {
                Some(_) => member.id.to_string(),
                None => format!("{}={}", member.id, member.addr),
            })
            .collect();
        members.sort();
        let text = format!("{:?} {}", self.cluster_id, members.join(","));
        // Two checksums of one text would be functions of each other: the second is of its reverse.
        let turned: String = text.chars().rev().collect();
        u64::from(crc32c::crc32c(text.as_bytes())) << 32
            | u64::from(crc32c::crc32c(turned.as_bytes()))
    }
}

/// What is wrong with an address that others are to connect to, as far as its text shows; whether a name is known is found
/// out when it is dialed.
fn address_trouble(addr: &str) -> Option<String> {
    const FORM: &str = "it is not host:port, as 10.0.0.1:7101, [fd00::1]:7101 or host-1:7101";
    if let Ok(addr) = addr.parse::<SocketAddr>() {
        let text = match (addr.ip().is_unspecified(), addr.port()) {
            (true, _) => {
                "nobody can connect to every interface at once; name the address or the host name under which the others \
                 reach this node, and let it listen on every interface by Config::listen (serve --listen)"
            }
            (false, 0) => "the others cannot know which port is free there; name one",
            (false, _) => return None,
        };
        return Some(text.into());
    }
    let Some((host, port)) = addr.rsplit_once(':') else {
        return Some(format!("{FORM}; the port is missing"));
    };
    if host.contains(':') {
        return Some(format!("{FORM}; an IPv6 address stands in brackets"));
    }
    let is_host =
        !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "/[]@,".contains(c));
    match port.parse::<u16>() {
        Ok(1..) if is_host => None,
        _ => Some(FORM.into()),
    }
}

/// Whether two addresses are the same text but for its form. (Two names of one host are not told apart here: the nodes
/// refuse each other when they meet.)
fn is_same_address(one: &str, other: &str) -> bool {
    match (one.parse::<SocketAddr>(), other.parse::<SocketAddr>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one.eq_ignore_ascii_case(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Config {
        let member = |id| Member {
            id: NodeId(id),
            addr: format!("127.0.0.1:{}", 7100 + id),
        };
        Config::new(NodeId(1), "/nowhere", vec![member(1), member(2), member(3)])
    }

    #[test]
    fn defaults_agree_with_each_other() {
        let config = three().checked().expect("the defaults are right");
        assert_eq!(config.heartbeat, Duration::from_millis(100));
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_field_and_the_values() {
        let refused = |change: fn(&mut Config)| {
            let mut config = three();
            change(&mut config);
            config.checked().expect_err("should be refused").to_string()
        };
        assert!(refused(|c| c.id = NodeId(9)).contains("9, is not in the list"));
        assert!(refused(|c| c.members[1].id = NodeId(1)).contains("stands twice"));
        let alone = refused(|c| {
            c.rejoin_with_nothing = true;
            c.members.truncate(2);
        });
        assert!(alone.contains("in a group of 2"), "{alone}");
        assert!(refused(|c| c.heartbeat = Duration::from_millis(600)).contains("more than half"));
        let lease = |drift| {
            Some(Lease {
                max_clock_drift_ppm: drift,
            })
        };
        let mut leased = three();
        leased.lease = lease(499_999);
        assert_eq!(leased.checked().is_ok(), COUNTS_SUSPENSION);
        leased = three();
        leased.lease = lease(500_000);
        let error = leased
            .checked()
            .expect_err("no time is certain")
            .to_string();
        assert!(error.contains("500000 ppm"), "{error}");
        for (change, says) in [
            (
                (|c| c.election_timeout = Duration::MAX) as fn(&mut Config),
                "election_timeout",
            ),
            (|c| c.heartbeat = Duration::MAX, "heartbeat"),
            (
                |c| c.proposal_timeout = Duration::MAX,
                "over the maximum of 365 days",
            ),
            (|c| c.snapshot_every = Duration::MAX, "zero: not by time"),
            (|c| c.scrub_every = Duration::MAX, "zero: never"),
            (
                |c| c.snapshot_window_bytes = usize::MAX,
                "snapshot_window_bytes",
            ),
            (|c| c.segment_bytes = u64::MAX, "segment_bytes"),
            (|c| c.max_append_bytes = usize::MAX, "max_append_bytes"),
            (|c| c.max_batch_bytes = usize::MAX, "max_batch_bytes"),
            (
                |c| c.max_inflight_messages = usize::MAX,
                "max_inflight_messages",
            ),
            (|c| c.listen = Some("0.0.0.0".into()), "listen"),
            (|c| c.listen = Some("0.0.0.0:0".into()), "listen"),
            (|c| c.data_dir = PathBuf::new(), "data_dir: it is empty"),
            (|c| c.members.clear(), "is not in the list"),
            (
                |c| c.members[2].addr = "127.0.0.1:7101".into(),
                "node 1 and node 3 have one address",
            ),
        ] {
            let error = refused(change);
            assert!(error.contains(says), "{error}");
        }
        assert!(refused(|c| c.max_pending = 100).contains("max_pending: 100"));
        assert!(refused(|c| c.max_pending = 1 << 25).contains("over 16777216"));
        assert!(refused(|c| c.segment_bytes = 1 << 20).contains("four times"));
        assert!(refused(|c| c.max_inflight_bytes = 1).contains("not one full message"));
    }

    #[test]
    fn an_address_is_one_that_others_can_connect_to() {
        for addr in ["10.0.0.1:1", "[fd00::1]:7101", "host-1:7101", "a.b.c:65535"] {
            assert_eq!(address_trouble(addr), None, "{addr}");
        }
        for (addr, says) in [
            ("", "host:port"),
            ("host", "port is missing"),
            ("127.0.0.1", "port is missing"),
            (":7101", "host:port"),
            ("host:", "host:port"),
            ("host:0", "host:port"),
            ("host:70000", "host:port"),
            ("host name:7101", "host:port"),
            ("http://host:7101", "brackets"),
            ("fd00::1:7101", "brackets"),
            ("127.0.0.1:0", "which port"),
            ("0.0.0.0:7101", "every interface"),
            ("[::]:7101", "every interface"),
        ] {
            let trouble = address_trouble(addr).expect(addr);
            assert!(trouble.contains(says), "{addr}: {trouble}");
        }
        for listen in ["0.0.0.0:7101", "[::]:7101", "host-1:7101"] {
            let config = Config {
                listen: Some(listen.into()),
                ..three()
            };
            assert!(config.checked().is_ok(), "{listen}");
        }
        assert!(is_same_address("Host:1", "host:1"));
        assert!(is_same_address("[fd00:0::1]:1", "[fd00::1]:1"));
        assert!(!is_same_address("host:1", "host:2"));
    }

    #[test]
    fn a_relative_directory_is_one_from_where_the_process_stands_at_the_start() {
        let mut config = three();
        config.data_dir = "data/one".into();
        let dir = config.checked().expect("relative is fine").data_dir;
        let here = std::env::current_dir().expect("it stands somewhere");
        assert_eq!(dir, here.join("data/one"));
        // Checked twice, it is still the same.
        let mut again = three();
        again.data_dir = dir.clone();
        assert_eq!(again.checked().expect("absolute is fine").data_dir, dir);
    }

    #[test]
    fn the_cluster_id_follows_the_members_and_not_their_order() {
        let mut turned = three();
        turned.members.reverse();
        assert_eq!(three().cluster_id(), turned.cluster_id());
        turned.members[0].addr.push('1');
        assert_ne!(three().cluster_id(), turned.cluster_id());
    }

    #[test]
    fn with_an_id_given_members_may_move_but_not_change() {
        let named = |change: fn(&mut Config)| {
            let mut config = Config {
                cluster_id: Some(7),
                ..three()
            };
            change(&mut config);
            config.cluster_id()
        };
        assert_eq!(named(|_| ()), named(|c| c.members[0].addr.push('1')));
        assert_ne!(named(|_| ()), named(|c| drop(c.members.pop())));
        assert_ne!(named(|_| ()), named(|c| c.cluster_id = Some(8)));
    }
}
