//! The consensus core: it is told what happened and when, and says what is to be done. It does
//! nothing itself.
//!
//! No clock, thread, file, socket, ring or payload byte is in here, so a run is a function of its
//! inputs and the seed. No input from a peer makes it panic: what cannot be from a sound peer is
//! ignored.
//!
//! The user calls one of the entry points below, and after each takes the [`Output`]s, in order,
//! and carries them out. Writes are numbered; [`Core::persisted`] says how far the disk has come.
//!
//! Ongaro, "Consensus: Bridging Theory and Practice" (thesis): §3 (the algorithm), §6.4 (reads),
//! §9.6 (pre-vote), §10.2.1 (parallel disk writes). `docs/paper.md` has what differs.

mod durable;
mod election;
mod exclusion;
mod follower;
mod heal;
mod leader;
mod lease;
mod log;
mod message;
mod progress;
mod quorum;
mod read;
mod rng;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;

pub(crate) use self::heal::Heal;
use self::heal::{Asking, HEALS, LostVote};
pub(crate) use self::lease::certain_us;
pub(crate) use self::message::{Append, MAX_RUNS, Message, Outcome};
pub(crate) use self::quorum::Membership;

use self::durable::{Durable, Promise};
use self::lease::Lease;
use self::log::TermRuns;
use self::progress::Progress;
use self::read::Reads;
use self::rng::Rng;

/// Tells how many entries fit into so many bytes.
pub(crate) trait Sizes {
    /// Of `first ..= last`: the last entry that fits with those before it into `max_bytes`, at
    /// least `first`, and their bytes.
    fn fit(&self, first: u64, last: u64, max_bytes: u64) -> (u64, u64);
}

/// No sound peer names a term or an index so high; below it, none that is reckoned with overflows.
const REACH: u64 = 1 << 62;

/// The core's limits and times.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) id: u64,
    pub(crate) election_timeout_us: u64,
    pub(crate) heartbeat_us: u64,
    pub(crate) seed: u64,
    pub(crate) max_append_bytes: u64,
    pub(crate) max_inflight_messages: usize,
    pub(crate) max_inflight_bytes: u64,
    /// A leader whose disk has finished nothing for so long, with writes outstanding, steps down.
    pub(crate) disk_stall_us: u64,
    /// How long a node without a term or an entry waits to hear from every peer before it campaigns or votes.
    pub(crate) founding_wait_us: u64,
    /// How long a lease lasts, less than an election timeout; `None`: there are none, and nothing is
    /// promised to others.
    pub(crate) lease_us: Option<u64>,
}

/// What the disk gave back at the start.
#[derive(Clone, Debug)]
pub(crate) struct Restored {
    pub(crate) term: u64,
    pub(crate) vote: Option<u64>,
    pub(crate) base_index: u64,
    pub(crate) base_term: u64,
    pub(crate) term_runs: Vec<(u64, u64)>,
    pub(crate) last_index: u64,
    /// Everything up to here is known to be committed: a snapshot of it is there, or the state machine has it. It may be
    /// behind `last_index`: a state machine with a disk of its own keeps what the log had written and not yet flushed.
    pub(crate) committed: u64,
    /// What is missing that had been durable.
    pub(crate) heal: Option<Heal>,
    /// A peer has refused this node's directory.
    pub(crate) excluded: bool,
    pub(crate) membership: Membership,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Follower,
    PreCandidate,
    Candidate,
    Leader,
    Learner,
}

/// What is to be done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    SaveVote {
        write: u64,
        term: u64,
        vote: Option<u64>,
    },
    Truncate {
        write: u64,
        after: u64,
    },
    /// Append `first ..= last` of the append that was just received.
    AppendReceived {
        write: u64,
        first: u64,
        last: u64,
    },
    /// Append the first entry of the own term.
    AppendTermStart {
        write: u64,
        index: u64,
        term: u64,
    },
    Send {
        to: u64,
        message: Message,
    },
    Commit {
        index: u64,
    },
    /// This peer needs what the log has no more.
    SendSnapshot {
        to: u64,
    },
    /// The log is to be replaced by the snapshot that was received: it ends with entry `index` of `term`, and what is
    /// committed now is what is in it.
    Install {
        write: u64,
        index: u64,
        term: u64,
    },
    /// What had been lost is here again, and so are all writes before this one.
    Healed {
        write: u64,
    },
    /// All reads up to context `ctx` may be answered when `index` is applied.
    ReadReady {
        ctx: u64,
        index: u64,
    },
    /// No reads up to context `ctx` can be answered.
    ReadFailed {
        ctx: u64,
    },
    /// Role, term or leader is another.
    Role {
        role: Role,
        term: u64,
        leader: Option<u64>,
    },
}

/// Where a batch of proposals will stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proposed {
    pub(crate) write: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

#[derive(Debug)]
pub(crate) struct Core {
    settings: Settings,
    membership: Membership,
    log: TermRuns,
    term: u64,
    vote: Option<u64>,
    role: Role,
    leader: Option<u64>,
    commit: u64,
    /// At the start, how far entries were known to be committed; the log may end before. Every leader has them: who lacks one is
    /// no candidate, this node included.
    known_committed: u64,
    /// Everybody else, in the order of the membership.
    peers: Vec<Progress>,
    durable: Durable,
    /// As a leader: the last entry of the own disk, counted from the first of the own term on.
    own_matched: u64,
    /// As a leader: the first entry of the own term.
    term_start: u64,
    /// As a leader: `(last index, bytes)` of batches that are not committed.
    uncommitted: VecDeque<(u64, u64)>,
    uncommitted_bytes: u64,
    votes: Vec<(u64, bool)>,
    /// When a leader was last heard, for stickiness.
    heard_leader_us: Option<u64>,
    /// As a follower or candidate: when to stand. As a leader: when to look whether a quorum is
    /// there.
    election_due_us: u64,
    heartbeat_due_us: u64,
    reads: Reads,
    excluded: bool,
    /// See [`Core::awaits_peers`].
    founding_until_us: u64,
    /// The other members, and since when each is connected: see [`Core::awaits_peers`].
    unmet: Vec<(u64, u64)>,
    heal: Option<Heal>,
    lost_vote: Option<LostVote>,
    asking: Asking,
    lease: Lease,
    rng: Rng,
    now_us: u64,
    outputs: VecDeque<Output>,
}

/// The entry points. Each takes the time, which never goes back.
impl Core {
    pub(crate) fn new(settings: Settings, restored: Restored, now_us: u64) -> Self {
        let (id, seed) = (settings.id, settings.seed);
        let founding_wait_us = settings.founding_wait_us;
        let lost_vote = LostVote::of(&restored, id);
        let log = TermRuns::new(
            restored.base_index,
            restored.base_term,
            restored.term_runs,
            restored.last_index,
        );
        // A crash between the two may have left entries of a term that the vote file has not.
        let term = restored.term.max(log.last_term());
        let vote = restored.vote.filter(|_| term == restored.term);
        let alone = restored.membership.voters == [id] && restored.membership.outgoing.is_empty();
        let bound_us = match settings.lease_us {
            // What it may have promised in its last life.
            Some(_) if !alone => now_us + settings.election_timeout_us,
            _ => 0,
        };
        let peers = restored
            .membership
            .everyone()
            .filter(|&peer| peer != id)
            .map(|peer| {
                Progress::new(
                    peer,
                    settings.max_inflight_messages,
                    settings.max_inflight_bytes,
                )
            })
            .collect();
        let everyone = restored.membership.everyone();
        let unmet = everyone
            .filter(|&peer| peer != id)
            .map(|peer| (peer, u64::MAX))
            .collect();
        let mut core = Self {
            rng: Rng::new(settings.seed),
            role: if restored.membership.is_voter(id) {
                Role::Follower
            } else {
                Role::Learner
            },
            commit: restored
                .base_index
                .max(restored.committed.min(restored.last_index)),
            known_committed: restored.committed,
            membership: restored.membership,
            settings,
            log,
            term,
            vote,
            leader: None,
            peers,
            durable: Durable::new(),
            own_matched: 0,
            term_start: 0,
            uncommitted: VecDeque::with_capacity(1024),
            uncommitted_bytes: 0,
            votes: Vec::with_capacity(16),
            heard_leader_us: None,
            election_due_us: 0,
            heartbeat_due_us: u64::MAX,
            reads: Reads::new(),
            excluded: false,
            founding_until_us: now_us.saturating_add(founding_wait_us),
            unmet,
            lost_vote,
            asking: Asking::new(seed, now_us),
            heal: restored.heal,
            lease: Lease::new(bound_us),
            now_us,
            outputs: VecDeque::with_capacity(1024),
        };
        core.reset_election_timer();
        if restored.excluded {
            core.sit_out();
        } else if alone {
            core.election_due_us = now_us; // Nobody else could lead.
        }
        core
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now_us: u64, sizes: &impl Sizes) {
        self.now_us = now_us;
        if self.excluded {
            return;
        }
        self.expire_asked_reads();
        self.ask_to_heal();
        match self.role {
            Role::Leader => self.tick_leader(sizes),
            _ if now_us >= self.election_due_us => self.campaign(sizes),
            _ => {}
        }
    }

    /// When the next tick has something to do.
    pub(crate) fn next_deadline(&self) -> u64 {
        if self.excluded {
            return u64::MAX;
        }
        let due = match self.role {
            Role::Leader => self.heartbeat_due_us.min(self.election_due_us),
            _ => self.election_due_us,
        };
        due.min(self.heal_deadline())
            .min(self.asked_reads_deadline())
    }

    /// A peer has said something. For an append, its entries are at hand until the outputs have
    /// been taken.
    pub(crate) fn receive(
        &mut self,
        now_us: u64,
        from: u64,
        message: &Message,
        sizes: &impl Sizes,
    ) {
        self.now_us = now_us;
        if from == self.settings.id || !self.peers.iter().any(|peer| peer.id == from) {
            return; // Nobody of this group.
        }
        if message.term() >= REACH {
            return; // Taken up, it would leave no term to stand in.
        }
        if self.excluded {
            return;
        }
        if self.lost_vote.is_some() {
            self.hear_term(from, message);
            return;
        }
        match *message {
            Message::Vote {
                term,
                pre,
                last_index,
                last_term,
            } => {
                self.on_vote(from, term, pre, (last_term, last_index));
            }
            Message::VoteReply { term, pre, granted } => {
                self.on_vote_reply(from, term, pre, granted, sizes)
            }
            Message::Append(ref append) => self.on_append(from, append),
            Message::Heartbeat {
                term,
                commit,
                round,
            } => self.on_heartbeat(from, term, commit, round),
            Message::AppendReply {
                term,
                round,
                outcome,
            } => self.on_append_reply(from, term, round, outcome, sizes),
            Message::HeartbeatReply { term, round } => {
                self.on_heartbeat_reply(from, term, round, sizes)
            }
            Message::ReadIndex { term, ctx } => {
                if ctx & HEALS != 0 {
                    self.on_heal_ask(from);
                }
                self.on_read_index(from, term, ctx);
            }
            Message::ReadIndexReply { term, ctx, index } if ctx & HEALS != 0 => {
                self.hear_upto(term, ctx, index);
            }
            Message::ReadIndexReply { term, ctx, index } => {
                self.on_read_index_reply(from, term, ctx, index)
            }
            Message::LeaseAsk {
                term,
                number,
                promise_us,
            } => self.on_lease_ask(from, term, number, promise_us),
            Message::LeasePromise { term, number } => self.on_lease_promise(from, term, number),
        }
    }

    /// Appends `count` entries of `bytes` in all, if this node leads: `None` otherwise.
    pub(crate) fn propose(
        &mut self,
        now_us: u64,
        count: u64,
        bytes: u64,
        sizes: &impl Sizes,
    ) -> Option<Proposed> {
        self.now_us = now_us;
        if self.role != Role::Leader || count == 0 {
            return None;
        }
        let first = self.log.last() + 1;
        let write = self.append_own(count, bytes);
        self.replicate_to_all(sizes);
        Some(Proposed {
            write,
            first,
            last: self.log.last(),
        })
    }

    /// Every write up to `upto` is durable.
    pub(crate) fn persisted(&mut self, now_us: u64, upto: u64, sizes: &impl Sizes) {
        self.now_us = now_us;
        let own = self.durable.finish(upto, self.term, now_us);
        self.keep_promises(sizes);
        if let Some(last) = own.filter(|_| self.role == Role::Leader) {
            self.own_matched = self.own_matched.max(last);
            if self.advance_commit() {
                self.replicate_to_all(sizes);
            }
        }
    }

    /// Asks for the index that a read must see: `ReadReady` or `ReadFailed` will name `ctx`, which
    /// rises.
    pub(crate) fn read(&mut self, now_us: u64, ctx: u64) {
        self.now_us = now_us;
        self.on_read(ctx);
    }

    /// There is a connection to the peer.
    pub(crate) fn peer_up(&mut self, now_us: u64, id: u64, sizes: &impl Sizes) {
        self.now_us = now_us;
        let Some(at) = self.peers.iter().position(|peer| peer.id == id) else {
            return;
        };
        self.meet(id, now_us);
        let peer = &mut self.peers[at];
        peer.up = true;
        peer.probe(peer.next);
        if self.role == Role::Leader {
            self.heartbeat(at);
            self.replicate(at, sizes);
        }
    }

    /// There is none any more: what was in flight is lost.
    pub(crate) fn peer_down(&mut self, now_us: u64, id: u64) {
        self.now_us = now_us;
        self.meet(id, u64::MAX);
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.id == id) {
            peer.up = false;
            peer.lose_in_flight();
        }
        if self.leader == Some(id) && self.role != Role::Leader {
            self.miss_leader();
        }
    }

    pub(crate) fn pop_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
}

/// What it knows, for whoever shows it.
impl Core {
    pub(crate) fn term(&self) -> u64 {
        self.term
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        self.leader
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.log.last()
    }

    pub(crate) fn commit(&self) -> u64 {
        self.commit
    }

    /// The first entry of the own term, for a leader.
    pub(crate) fn term_start(&self) -> u64 {
        self.term_start
    }

    pub(crate) fn uncommitted_bytes(&self) -> u64 {
        self.uncommitted_bytes
    }

    /// The peers, as a leader sees them: `(id, matched, next, bytes in flight, heard within an
    /// election timeout)`.
    pub(crate) fn peers(&self) -> impl Iterator<Item = (u64, u64, u64, u64, bool)> {
        self.peers.iter().map(|peer| {
            let active = peer.up && peer.heard_us + self.settings.election_timeout_us > self.now_us;
            (
                peer.id,
                peer.matched,
                peer.next,
                peer.window.bytes(),
                active,
            )
        })
    }
}

impl Core {
    fn send(&mut self, to: u64, message: Message) {
        self.outputs.push_back(Output::Send { to, message });
    }

    /// Sends what promises something when the write it rests on is durable.
    fn promise(&mut self, rests_on: u64, to: u64, message: Message) {
        if self.durable.is_done(rests_on) {
            self.send(to, message);
        } else {
            self.durable
                .hold(rests_on, self.term, Promise::Say { to, message });
        }
    }

    fn keep_promises(&mut self, sizes: &impl Sizes) {
        while let Some(promise) = self.durable.next_kept(self.term) {
            match promise {
                _ if self.excluded => {} // What it promised in its other directory may contradict it.

                Promise::Stand => self.stand(sizes),
                Promise::Say { to, message } => {
                    // Acknowledgements are cumulative: of those that one flush sets free only the
                    // last need be said.
                    if let Some(Output::Send {
                        to: last_to,
                        message: last,
                    }) = self.outputs.back_mut()
                        && *last_to == to
                        && supersedes(&message, last)
                    {
                        *last = message;
                    } else {
                        self.send(to, message);
                    }
                }
            }
        }
    }

    fn announce_role(&mut self) {
        self.outputs.push_back(Output::Role {
            role: self.role,
            term: self.term,
            leader: self.leader,
        });
    }

    fn id(&self) -> u64 {
        self.settings.id
    }
}

/// Whether an acknowledgement says all that an earlier one says.
fn supersedes(later: &Message, earlier: &Message) -> bool {
    match (later, earlier) {
        (
            Message::AppendReply {
                term,
                round,
                outcome: Outcome::Matched { index },
            },
            Message::AppendReply {
                term: of,
                round: before,
                outcome: Outcome::Matched { index: less },
            },
        ) => term == of && before <= round && less <= index,
        _ => false,
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Learner => "learner",
        })
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = |id: &Option<u64>| id.map_or_else(|| "none".to_owned(), |id| id.to_string());
        match self {
            Self::SaveVote { write, term, vote } => {
                write!(f, "write {write}: term={term} vote={}", none(vote))
            }
            Self::Truncate { write, after } => write!(f, "write {write}: truncate after {after}"),
            Self::AppendReceived { write, first, last } => {
                write!(f, "write {write}: entries {first}..={last}")
            }
            Self::AppendTermStart { write, index, term } => {
                write!(f, "write {write}: entry {index} starts term {term}")
            }
            Self::Send { to, message } => write!(f, "-> {to} {message}"),
            Self::Commit { index } => write!(f, "commit {index}"),
            Self::SendSnapshot { to } => write!(f, "-> {to} a snapshot"),
            Self::Install { write, index, term } => {
                write!(f, "write {write}: the log becomes snapshot {term}/{index}")
            }
            Self::Healed { write } => write!(f, "write {write}: healed"),
            Self::ReadReady { ctx, index } => write!(f, "reads to {ctx} ready at {index}"),
            Self::ReadFailed { ctx } => write!(f, "reads to {ctx} failed"),
            Self::Role { role, term, leader } => {
                write!(f, "{role} term={term} leader={}", none(leader))
            }
        }
    }
}
