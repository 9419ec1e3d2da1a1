//! A group of cores with model disks and a model network, and what must hold at every step.
//!
//! - At most one leader a term; it has every committed entry when it comes into office.
//! - What is committed never changes, is first committed by a leader, and is on the disks of a
//!   quorum at that moment, whatever the leader itself believes.
//! - A vote, a candidacy, an acknowledgement, a term: none of them is said before it is on the
//!   disk.
//! - A read sees everything that was committed anywhere when it was asked for; so would one that a lease answers, now.
//! - Windows are kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::raft::{Core, Membership, Message, Outcome, Output, Restored, Role, Settings, Sizes};

/// An entry; `id` is never used twice, so that equal places can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) term: u64,
    pub(super) id: u64,
    pub(super) bytes: u64,
}

/// Bytes per entry, from index 1 on. What the core decided on and nobody wrote yet, the first of a
/// term, has one.
#[derive(Debug, Default)]
pub(super) struct EntryBytes(Vec<u64>);

impl Sizes for EntryBytes {
    fn fit(&self, first: u64, last: u64, max_bytes: u64) -> (u64, u64) {
        assert!(1 <= first && first <= last, "asked for {first} ..= {last}");
        let bytes_of = |index: u64| self.0.get(index as usize - 1).copied().unwrap_or(1);
        let (mut fits, mut bytes) = (first, bytes_of(first));
        while fits < last && bytes + bytes_of(fits + 1) <= max_bytes {
            fits += 1;
            bytes += bytes_of(fits);
        }
        (fits, bytes)
    }
}

#[derive(Clone, Debug)]
enum Write {
    Vote { term: u64, vote: Option<u64> },
    Truncate { after: u64 },
    Append(Vec<Entry>),
}

/// What a power cut leaves.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pub(super) term: u64,
    pub(super) vote: Option<u64>,
    pub(super) log: Vec<Entry>,
}

impl Image {
    fn carry_out(&mut self, write: Write) {
        match write {
            Write::Vote { term, vote } => (self.term, self.vote) = (term, vote),
            Write::Truncate { after } => self.log.truncate(after as usize),
            Write::Append(entries) => self.log.extend(entries),
        }
    }

    fn known_term(&self) -> u64 {
        self.term.max(self.log.last().map_or(0, |entry| entry.term))
    }

    fn restored(&self, membership: Membership) -> Restored {
        let mut term_runs: Vec<(u64, u64)> = Vec::new();
        for (index, entry) in (1..).zip(&self.log) {
            if term_runs.last().is_none_or(|run| run.0 != entry.term) {
                term_runs.push((entry.term, index));
            }
        }
        Restored {
            term: self.term,
            vote: self.vote,
            base_index: 0,
            base_term: 0,
            term_runs,
            last_index: self.log.len() as u64,
            committed: 0,
            heal: None,
            excluded: false,
            membership,
        }
    }
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u64,
    /// `None` while it is down.
    pub(super) core: Option<Core>,
    /// What was handed to the disk stage: appends are sent from here.
    pub(super) log: Vec<Entry>,
    pub(super) image: Image,
    writes: VecDeque<(u64, Write)>,
    bytes: EntryBytes,
    commit: u64,
    /// Reads that wait: the context, and how much was committed anywhere when they were asked for.
    reads: VecDeque<(u64, u64)>,
}

#[derive(Clone, Debug)]
pub(super) struct Envelope {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) message: Message,
    entries: Vec<Entry>,
}

/// How often something happened: a random test in which nothing happens proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) offices: u64,
    pub(super) truncations: u64,
    pub(super) reads_ready: u64,
    /// Looks at a lease that ran.
    pub(super) leases: u64,
    pub(super) crashes_with_writes: u64,
    /// Commits that did not need the leader's own disk.
    pub(super) commits_ahead_of_own_disk: u64,
}

#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) now_us: u64,
    pub(super) nodes: Vec<Node>,
    /// What is under way, in the order it was sent.
    pub(super) net: Vec<Envelope>,
    /// Nodes that nothing reaches or leaves.
    pub(super) isolated: BTreeSet<u64>,
    pub(super) committed: Vec<Entry>,
    pub(super) counts: Counts,
    /// What happened since it was last taken, a line each.
    pub(super) trace: Vec<String>,
    settings: Settings,
    membership: Membership,
    leaders: BTreeMap<u64, u64>,
    next_entry: u64,
}

impl Cluster {
    pub(super) fn new(membership: Membership, settings: Settings) -> Self {
        let mut cluster = Self {
            now_us: 0,
            nodes: Vec::new(),
            net: Vec::new(),
            isolated: BTreeSet::new(),
            committed: Vec::new(),
            counts: Counts::default(),
            trace: Vec::new(),
            settings,
            leaders: BTreeMap::new(),
            next_entry: 1,
            membership,
        };
        for id in cluster.membership.everyone().collect::<Vec<_>>() {
            cluster.nodes.push(Node {
                id,
                core: None,
                log: Vec::new(),
                image: Image::default(),
                writes: VecDeque::new(),
                bytes: EntryBytes::default(),
                commit: 0,
                reads: VecDeque::new(),
            });
            cluster.start(id);
        }
        cluster
    }

    pub(super) fn node(&self, id: u64) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.id == id)
            .expect("a node of the group")
    }

    fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes
            .iter_mut()
            .find(|node| node.id == id)
            .expect("a node of the group")
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    pub(super) fn is_up(&self, id: u64) -> bool {
        self.node(id).core.is_some()
    }

    /// The leader of the highest term, as it believes itself.
    pub(super) fn leader(&self) -> Option<u64> {
        let cores = self.nodes.iter().filter_map(|node| node.core.as_ref());
        cores
            .filter(|core| core.is_leader())
            .max_by_key(|core| core.term())
            .map(|core| core.id())
    }

    pub(super) fn say(&mut self, line: impl Into<String>) {
        self.trace.push(line.into());
    }
}

/// Starting and stopping.
impl Cluster {
    /// Starts a node from what its disk holds.
    pub(super) fn start(&mut self, id: u64) {
        let mut settings = self.settings.clone();
        settings.id = id;
        settings.seed = self.settings.seed.wrapping_mul(31).wrapping_add(id);
        let (membership, now_us) = (self.membership.clone(), self.now_us);
        let node = self.node_mut(id);
        assert!(node.core.is_none(), "{id} runs already");
        node.log = node.image.log.clone();
        node.bytes = EntryBytes(node.log.iter().map(|entry| entry.bytes).collect());
        node.core = Some(Core::new(settings, node.image.restored(membership), now_us));
        self.act(id, &[], 0);
    }

    /// Stops a node whose disk keeps the first `kept` of the writes that were not reported yet.
    pub(super) fn crash(&mut self, id: u64, kept: usize) {
        let node = self.node_mut(id);
        node.core = None;
        for (at, (_, write)) in std::mem::take(&mut node.writes).into_iter().enumerate() {
            if at < kept {
                node.image.carry_out(write);
            }
        }
        node.commit = 0;
        node.reads.clear();
        self.net.retain(|envelope| envelope.to != id);
    }

    /// Gives a node another past, and starts it anew.
    pub(super) fn restore(&mut self, id: u64, term: u64, vote: Option<u64>, terms: &[u64]) {
        self.crash(id, 0);
        let log = (1..).zip(terms).map(|(index, &term)| Entry {
            term,
            id: term * 1_000_000 + index,
            bytes: 1,
        });
        self.node_mut(id).image = Image {
            term,
            vote,
            log: log.collect(),
        };
        self.start(id);
    }
}

/// What can happen to a node.
impl Cluster {
    /// Hands something to a running node's core and carries out what it says.
    fn step(&mut self, id: u64, what: impl FnOnce(&mut Core, &EntryBytes, u64)) {
        let now_us = self.now_us;
        let node = self.node_mut(id);
        if let Some(core) = &mut node.core {
            what(core, &node.bytes, now_us);
            self.act(id, &[], 0);
            self.check_leases();
        }
    }

    pub(super) fn tick(&mut self, id: u64) {
        self.step(id, |core, bytes, now_us| core.tick(now_us, bytes));
    }

    /// As if the election timer had run out, which a leader has none of.
    pub(super) fn campaign(&mut self, id: u64) {
        self.step(id, |core, bytes, now_us| {
            core.now_us = now_us;
            if !core.is_leader() {
                core.campaign(bytes);
            }
        });
    }

    pub(super) fn peer_up(&mut self, id: u64, peer: u64) {
        self.step(id, |core, bytes, now_us| core.peer_up(now_us, peer, bytes));
    }

    pub(super) fn peer_down(&mut self, id: u64, peer: u64) {
        self.step(id, |core, _, now_us| core.peer_down(now_us, peer));
    }

    pub(super) fn look_at_clock(&mut self, id: u64, now_us: u64) {
        let core = self.node_mut(id).core.as_mut().expect("it is up");
        core.look_at_clock(now_us);
    }

    pub(super) fn read(&mut self, id: u64, ctx: u64) {
        let committed = self.committed.len() as u64;
        if self.is_up(id) {
            self.node_mut(id).reads.push_back((ctx, committed));
        }
        self.step(id, |core, _, now_us| core.read(now_us, ctx));
    }

    /// False when it does not lead.
    pub(super) fn propose(&mut self, id: u64, count: u64, bytes_each: u64) -> bool {
        let (now_us, next_entry) = (self.now_us, self.next_entry);
        let node = self.node_mut(id);
        let Some(core) = node.core.as_mut().filter(|core| core.is_leader()) else {
            return false;
        };
        node.bytes.0.extend((0..count).map(|_| bytes_each));
        let term = core.term();
        let batch_bytes = count * bytes_each;
        let proposed = core
            .propose(now_us, count, batch_bytes, &node.bytes)
            .expect("a leader takes it");
        let entries: Vec<_> = (0..count)
            .map(|n| Entry {
                term,
                id: next_entry + n,
                bytes: bytes_each,
            })
            .collect();
        let place = (node.log.len() as u64 + 1, node.log.len() as u64 + count);
        assert_eq!(
            (proposed.first, proposed.last),
            place,
            "where the batch stands"
        );
        node.log.extend_from_slice(&entries);
        node.writes
            .push_back((proposed.write, Write::Append(entries)));
        self.next_entry += count;
        self.say(format!(
            "  write {}: entries {}..={}",
            proposed.write, place.0, place.1
        ));
        self.act(id, &[], 0);
        true
    }

    /// Writes that the disk owes.
    pub(super) fn owed(&self, id: u64) -> usize {
        self.node(id).writes.len()
    }

    /// The disk finishes the next `count` writes and reports the last.
    pub(super) fn persist(&mut self, id: u64, count: usize) {
        let node = self.node_mut(id);
        let mut upto = None;
        for _ in 0..count {
            let Some((seq, write)) = node.writes.pop_front() else {
                break;
            };
            assert!(upto < Some(seq), "write {seq} comes after {upto:?}");
            node.image.carry_out(write);
            upto = Some(seq);
        }
        if let Some(upto) = upto {
            self.report_persisted(id, upto);
        }
    }

    /// The disk says so, again perhaps.
    pub(super) fn report_persisted(&mut self, id: u64, upto: u64) {
        self.say(format!("{id} disk {upto}"));
        self.step(id, |core, bytes, now_us| {
            core.persisted(now_us, upto, bytes)
        });
    }

    pub(super) fn deliver(&mut self, envelope: &Envelope) {
        let Envelope {
            from,
            to,
            message,
            entries,
        } = envelope;
        let now_us = self.now_us;
        if self.isolated.contains(from) || self.isolated.contains(to) {
            return;
        }
        self.say(format!("{to} <- {from} {message}"));
        let node = self.node_mut(*to);
        let Some(core) = &mut node.core else { return };
        core.receive(now_us, *from, message, &node.bytes);
        let first = if let Message::Append(append) = message {
            append.prev_index + 1
        } else {
            0
        };
        self.act(*to, entries, first);
    }
}

/// Carrying out what a core said, and checking it.
impl Cluster {
    /// `received` are the entries of the append that this is about, from index `first` on.
    fn act(&mut self, id: u64, received: &[Entry], first: u64) {
        while let Some(output) = self.node_mut(id).core.as_mut().and_then(Core::pop_output) {
            self.say(format!("  {output}"));
            self.carry_out(id, output, received, first);
        }
        self.check_node(id);
    }

    fn carry_out(&mut self, id: u64, output: Output, received: &[Entry], received_first: u64) {
        let next_entry = self.next_entry;
        let node = self.node_mut(id);
        match output {
            Output::SaveVote { write, term, vote } => {
                node.writes.push_back((write, Write::Vote { term, vote }));
            }
            Output::Truncate { write, after } => {
                assert!(
                    node.commit <= after,
                    "{id} truncates after {after}, below its commit"
                );
                node.log.truncate(after as usize);
                node.bytes.0.truncate(after as usize);
                node.writes.push_back((write, Write::Truncate { after }));
                self.counts.truncations += 1;
            }
            Output::AppendReceived { write, first, last } => {
                assert_eq!(first, node.log.len() as u64 + 1, "{id} appends with a gap");
                let at = |index: u64| (index - received_first) as usize;
                let entries = received[at(first)..=at(last)].to_vec();
                node.log.extend_from_slice(&entries);
                node.bytes.0.extend(entries.iter().map(|entry| entry.bytes));
                node.writes.push_back((write, Write::Append(entries)));
            }
            Output::AppendTermStart { write, index, term } => {
                assert_eq!(index, node.log.len() as u64 + 1, "{id} appends with a gap");
                let entry = Entry {
                    term,
                    id: next_entry,
                    bytes: 1,
                };
                node.log.push(entry);
                node.bytes.0.push(1);
                node.writes.push_back((write, Write::Append(vec![entry])));
                self.next_entry += 1;
            }
            Output::Send { to, message } => self.send(id, to, message),
            Output::Commit { index } => self.commit(id, index),
            Output::ReadReady { ctx, index } => self.read_ready(id, ctx, index),
            Output::ReadFailed { ctx } => node.reads.retain(|read| read.0 > ctx),
            Output::Role {
                role: Role::Leader,
                term,
                ..
            } => self.office(id, term),
            Output::Role { .. } => {}
            Output::SendSnapshot { .. } | Output::Install { .. } | Output::Healed { .. } => {
                unreachable!("nobody lets go of entries here, or loses any")
            }
        }
    }

    fn office(&mut self, id: u64, term: u64) {
        self.counts.offices += 1;
        let leader = *self.leaders.entry(term).or_insert(id);
        assert_eq!(leader, id, "two leaders in term {term}");
        let log = &self.node(id).log;
        for (index, entry) in (1..).zip(&self.committed) {
            let here = log.get(index - 1);
            assert_eq!(
                here,
                Some(entry),
                "leader {id} of term {term} lacks committed {index}"
            );
        }
    }

    fn commit(&mut self, id: u64, index: u64) {
        let known = self.committed.len();
        let at = index as usize;
        let node = self.node(id);
        assert!(
            node.commit < index,
            "{id} commits {index} after {}",
            node.commit
        );
        assert!(
            at <= node.log.len(),
            "{id} commits {index} of a log to {}",
            node.log.len()
        );
        let same = at.min(known);
        assert_eq!(
            node.log[..same],
            self.committed[..same],
            "{id} commits something else"
        );
        if at > known {
            let leads = node.core.as_ref().is_some_and(Core::is_leader);
            assert!(leads, "{id} commits {index} before any leader does");
            let log = node.log[..at].to_vec();
            let durable = |peer: u64| {
                let image = &self.node(peer).image;
                u64::from(image.log.len() >= at && image.log[..at] == log[..])
            };
            let on_own_disk = durable(id) == 1;
            let on_quorum = self.membership.reached(durable) == 1;
            assert!(
                on_quorum,
                "{id} commits {index}, which is not on the disks of a quorum"
            );
            self.counts.commits_ahead_of_own_disk += u64::from(!on_own_disk);
            self.committed = log;
        }
        self.node_mut(id).commit = index;
    }

    fn read_ready(&mut self, id: u64, ctx: u64, index: u64) {
        let node = self.node_mut(id);
        let mut answered = 0;
        while let Some(&(asked, committed)) = node.reads.front()
            && asked <= ctx
        {
            node.reads.pop_front();
            assert!(
                committed <= index,
                "{id} reads at {index}, but {committed} was committed"
            );
            answered += 1;
        }
        self.counts.reads_ready += answered;
    }

    fn send(&mut self, from: u64, to: u64, message: Message) {
        let node = self.node(from);
        let image = &node.image;
        match message {
            Message::Vote {
                term, pre: false, ..
            } => {
                let kept = (image.term, image.vote);
                assert_eq!(
                    kept,
                    (term, Some(from)),
                    "{from} stands on a vote not on its disk"
                );
            }
            Message::VoteReply {
                term,
                pre: false,
                granted: true,
            } => {
                let kept = (image.term, image.vote);
                assert_eq!(
                    kept,
                    (term, Some(to)),
                    "{from} grants a vote not on its disk"
                );
            }
            Message::AppendReply {
                term,
                outcome: Outcome::Matched { index },
                ..
            } => {
                let at = index as usize;
                let durable = image.log.len();
                assert!(
                    at <= durable,
                    "{from} acknowledges {index}, but its disk ends at {durable}"
                );
                let leader = self.node(to);
                if leader
                    .core
                    .as_ref()
                    .is_some_and(|core| core.is_leader() && core.term() == term)
                {
                    let same = image.log[..at] == leader.log[..at];
                    assert!(
                        same,
                        "{from} acknowledges {index}, which is not as {to} has it"
                    );
                }
            }
            _ => {}
        }
        let says_term = match message {
            Message::VoteReply {
                pre: true, granted, ..
            } => !granted,
            Message::VoteReply { .. } | Message::AppendReply { .. } => true,
            Message::HeartbeatReply { .. } => true,
            _ => false,
        };
        if says_term {
            let (term, known) = (message.term(), image.known_term());
            assert!(
                term <= known,
                "{from} says term {term}, but its disk knows {known}"
            );
        }
        let mut entries = Vec::new();
        if let Message::Append(append) = &message {
            entries = node.log[append.prev_index as usize..append.last as usize].to_vec();
            let told: Vec<u64> = (append.prev_index + 1..=append.last)
                .map(|index| {
                    let runs = append.runs.as_slice();
                    runs[runs.partition_point(|run| run.1 <= index) - 1].0
                })
                .collect();
            assert!(
                told.iter().eq(entries.iter().map(|entry| &entry.term)),
                "terms of {message}"
            );
        }
        if !self.isolated.contains(&from) && !self.isolated.contains(&to) {
            self.net.push(Envelope {
                from,
                to,
                message,
                entries,
            });
        }
    }

    /// What a lease answers for at this moment is everything that was ever committed.
    fn check_leases(&mut self) {
        for node in &self.nodes {
            let Some(core) = &node.core else { continue };
            let Some(index) = core.lease_index(self.now_us) else {
                continue;
            };
            let committed = self.committed.len() as u64;
            assert!(
                index >= committed,
                "{} would read at {index} by its lease, but {committed} was committed",
                node.id
            );
            self.counts.leases += 1;
        }
    }

    fn check_node(&mut self, id: u64) {
        let settings = &self.settings;
        let node = self.node(id);
        let Some(core) = &node.core else { return };
        assert_eq!(
            core.last_index(),
            node.log.len() as u64,
            "{id}'s log ends where it says"
        );
        if !core.is_leader() || core.commit == core.last_index() {
            let waiting = core.uncommitted_bytes();
            assert_eq!(
                waiting, 0,
                "{id} counts bytes as uncommitted, though nothing is"
            );
        }
        if !core.is_leader() {
            return;
        }
        for peer in &core.peers {
            let (sent, bytes) = (peer.window.messages(), peer.window.bytes());
            let fits = bytes <= settings.max_inflight_bytes || sent <= 1;
            assert!(
                sent <= settings.max_inflight_messages,
                "{sent} in flight to {}",
                peer.id
            );
            assert!(fits, "{bytes} bytes in flight to {}", peer.id);
            assert!(
                peer.matched < peer.next,
                "{} of {}",
                peer.matched,
                peer.next
            );
        }
    }
}

/// Settings that most tests share: an election timeout of 100 ms, heartbeats every 20 ms.
pub(super) fn settings() -> Settings {
    Settings {
        id: 0,
        election_timeout_us: 100_000,
        heartbeat_us: 20_000,
        seed: 1,
        max_append_bytes: 1000,
        max_inflight_messages: 4,
        max_inflight_bytes: 4000,
        disk_stall_us: 400_000,
        founding_wait_us: 0,
        lease_us: None,
    }
}
