//! What the user calls: start, propose, read, status, shutdown.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ringbuf::Notify;

use crate::clock::{deadline, micros, time_left};
use crate::committed::{self, Committed, ReadCommittedError};
use crate::config::{Config, Threads};
use crate::error::{ProposeError, ShutdownError, StartError};
use crate::flow::rings::{Ask, Ingress, See};
use crate::flow::shared::{Shared, Stop};
use crate::host::build;
use crate::host::driver::Driver;
use crate::request::outbox::{Outbox, OutboxId};
use crate::request::pending::Pending;
use crate::request::sinks::SinkId;
use crate::request::table::WAITING_CALLER;
use crate::request::token::Token;
use crate::state_machine::StateMachine;
use crate::status::{RingStatus, Role, Status};
use crate::types::{Index, NodeId};
use crate::wire::MAX_ATTACHED;

/// What a read must see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Every write that was acknowledged, by any node, before the read began. The leader makes sure with one round to a
    /// quorum, shared by all reads that wait; a follower or a learner asks the leader and answers from its own state.
    Linearizable,
    /// The same, without the round while this node leads and a quorum has promised to elect nobody else
    /// ([`Config::lease`]): it then rests on clocks, within the bound stated there. Where there is no lease - it is not
    /// configured, not certain at the moment, or held by another node - this is `Linearizable`.
    Lease,
    /// Every write that was acknowledged, by any node, longer than `age` before the read began, but for those in the last
    /// `entries` entries of that. Answered without a round when this node has learned something so young from one;
    /// otherwise it waits for a round as `Linearizable` does, which others then profit from. So one round each `age`
    /// serves any number of reads, on any node. `age` is measured by this node's clock.
    AtMost {
        /// How old it may be.
        age: Duration,
        /// How many entries it may lack of what is not younger; a node that has fallen behind waits for fewer.
        entries: u64,
    },
    /// Whatever this node has applied: the past of an unknown age.
    Stale,
    /// As `Linearizable`, by an entry in the log: it costs a write, rests on no round, and stands in the order of the
    /// commands; this node's own that were proposed before are before it. The query may be no longer than a command.
    /// When its outcome is `Unknown` or `Replaced` it may be repeated, since it changes nothing.
    Log,
}

/// A node of the cluster: a handle, cheap to clone, usable from any thread.
///
/// Dropping the last one asks the node to leave, as [`shutdown`](Node::shutdown) does, and waits for it for a second at the
/// most, on threads of the node itself not at all. A node that takes longer leaves by itself; whoever needs its directory or
/// its address again, or wants to know how it left, calls `shutdown`.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    ingress: Ingress,
    max_entry_bytes: usize,
    inline_bytes: usize,
    proposal_timeout: Duration,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node {{ {} }}", self.status())
    }
}

impl Node {
    /// Opens or founds `config.data_dir`, replays it, listens on this member's address and starts the stages.
    ///
    /// # Errors
    /// [`StartError`]: nothing runs then.
    pub fn start(config: Config, machine: impl StateMachine) -> Result<Self, StartError> {
        let config = config.checked()?;
        Self::launch(|| bind(&config), &config, Box::new(machine))
    }

    /// As [`start`](Node::start), on a listener that is bound already; peers reach it under this member's address.
    ///
    /// # Errors
    /// As [`start`](Node::start).
    pub fn start_on(
        listener: TcpListener,
        config: Config,
        machine: impl StateMachine,
    ) -> Result<Self, StartError> {
        Self::launch(|| Ok(listener), &config.checked()?, Box::new(machine))
    }

    fn launch(
        listener: impl FnOnce() -> Result<TcpListener, StartError>,
        config: &Config,
        machine: Box<dyn StateMachine>,
    ) -> Result<Self, StartError> {
        let graph = build::build(listener, config, machine)?;
        let (shared, ingress) = (graph.shared.clone(), graph.ingress.clone());
        let threads = graph.spawn(config).inspect_err(|_| await_end(&shared))?;
        Ok(Self::new(shared, ingress, config, threads))
    }

    /// Starts a node without threads: the embedder runs it by calling [`Driver::poll`] from a thread of its own. All stages
    /// share that thread, whatever `Config::threads` says; see [`Threads::Shared`] for what that asks of user code.
    ///
    /// # Errors
    /// As [`start`](Node::start).
    pub fn start_driven(
        config: Config,
        machine: impl StateMachine,
    ) -> Result<(Self, Driver), StartError> {
        let mut config = config.checked()?;
        config.threads = Threads::Shared; // The embedder's thread is the one that is woken.
        let graph = build::build(|| bind(&config), &config, Box::new(machine))?;
        let (shared, ingress) = (graph.shared.clone(), graph.ingress.clone());
        let (driver, threads) = graph.drive(&config).inspect_err(|_| await_end(&shared))?;
        Ok((Self::new(shared, ingress, &config, threads), driver))
    }

    pub(crate) fn new(
        shared: Arc<Shared>,
        ingress: Ingress,
        config: &Config,
        threads: Vec<JoinHandle<()>>,
    ) -> Self {
        let inner = Inner {
            shared,
            ingress,
            max_entry_bytes: config.max_entry_bytes,
            inline_bytes: config.inline_bytes,
            proposal_timeout: config.proposal_timeout,
            threads: Mutex::new(threads),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Proposes a command: on the leader it is appended, on a follower it goes to the leader first
    /// (`Config::forward`). Never blocks. The command must have been checked by the caller: whatever is proposed will
    /// be given to `StateMachine::apply` on every node.
    ///
    /// Proposals of one node by one thread are appended in their order.
    ///
    /// # Errors
    /// `Busy`, `TooLarge`, `Stopped`: at once, nothing was appended. The others come out of the [`Pending`].
    pub fn propose(&self, command: &[u8]) -> Result<Pending, ProposeError> {
        let token = self
            .inner
            .propose(Ask::Command, WAITING_CALLER, 0, command)?;
        Ok(self.pending(token))
    }

    /// As [`propose`](Node::propose), but `NotLeader` on every other node: it is not forwarded.
    ///
    /// # Errors
    /// As [`propose`](Node::propose).
    pub fn propose_as_leader(&self, command: &[u8]) -> Result<Pending, ProposeError> {
        let token = self
            .inner
            .propose(Ask::LeaderCommand, WAITING_CALLER, 0, command)?;
        Ok(self.pending(token))
    }

    /// As [`propose`](Node::propose), with the answer to `outbox` under `tag`.
    ///
    /// # Errors
    /// As [`propose`](Node::propose), and `NoOutbox` at once; a refusal at once is not repeated in the outbox.
    pub fn propose_to(
        &self,
        outbox: OutboxId,
        tag: u64,
        command: &[u8],
    ) -> Result<(), ProposeError> {
        self.inner
            .propose(Ask::Command, self.inner.sink(outbox)?, tag, command)
            .map(drop)
    }

    /// Asks the state machine ([`StateMachine::query`]), on any node.
    ///
    /// # Errors
    /// `Busy`, `Stopped` at once, and `TooLarge` for [`Consistency::Log`]. Later: `NotLeader` when no leader is known,
    /// `Unconfirmed` when he was lost or does not answer within an election timeout, `Unknown` when this node has not
    /// applied what the read must see within `Config::proposal_timeout`. A read may be repeated after any of them.
    pub fn read(&self, query: &[u8], how: Consistency) -> Result<Pending, ProposeError> {
        let token = self.inner.read(WAITING_CALLER, 0, query, how)?;
        Ok(self.pending(token))
    }

    /// As [`read`](Node::read), with the answer to `outbox` under `tag`.
    ///
    /// # Errors
    /// As [`read`](Node::read), and `NoOutbox` at once.
    pub fn read_to(
        &self,
        outbox: OutboxId,
        tag: u64,
        query: &[u8],
        how: Consistency,
    ) -> Result<(), ProposeError> {
        let sink = self.inner.sink(outbox)?;
        self.inner.read(sink, tag, query, how).map(drop)
    }

    /// Reads a committed entry back from this node's log, verified. It stays there until a snapshot stands for it
    /// (`Config::log_tail_entries` more of them stay than that needs).
    ///
    /// # Errors
    /// [`ReadCommittedError`]: compacted, or not committed yet as far as this node knows.
    pub fn read_committed(&self, index: Index) -> Result<Committed, ReadCommittedError> {
        committed::read(&self.inner.shared, index)
    }

    /// Takes a snapshot of what this node has applied, unless nothing was applied since the last one. The answer comes when
    /// it is on disk and has been read back, however long that takes: its index is what it stands for.
    ///
    /// # Errors
    /// `Busy`, `Stopped` at once; later `SnapshotRunning` when one is being taken already, `NoSnapshot` when it could not be,
    /// and `Unknown` when the state machine did not come to it within `Config::proposal_timeout`.
    pub fn snapshot(&self) -> Result<Pending, ProposeError> {
        let shared = &self.inner.shared;
        let token = self.inner.take(WAITING_CALLER, 0, &[])?;
        if !shared.handoff.call(token) {
            shared.table.untake(token);
            return Err(ProposeError::Busy);
        }
        self.inner.answer_if_ended(token);
        Ok(self.pending(token))
    }

    /// Waits until this node has applied `index` - of a [`Reply`](crate::Reply) from another node, say, to read one's own
    /// writes here with [`Consistency::Stale`]. The answer has no bytes, and names how far it had applied by then.
    ///
    /// # Errors
    /// `Busy`, `Stopped` at once; `Unknown` when it is not applied within `Config::proposal_timeout`.
    pub fn wait_applied(&self, index: Index) -> Result<Pending, ProposeError> {
        let see = See::Applied { index };
        let token = self.inner.ask(WAITING_CALLER, 0, &[], see)?;
        Ok(self.pending(token))
    }

    /// As [`wait_applied`](Node::wait_applied), with the answer to `outbox` under `tag`.
    ///
    /// # Errors
    /// As [`wait_applied`](Node::wait_applied), and `NoOutbox` at once.
    pub fn wait_applied_to(
        &self,
        outbox: OutboxId,
        tag: u64,
        index: Index,
    ) -> Result<(), ProposeError> {
        let see = See::Applied { index };
        self.inner
            .ask(self.inner.sink(outbox)?, tag, &[], see)
            .map(drop)
    }

    fn pending(&self, token: Token) -> Pending {
        Pending::new(self.inner.shared.table.clone(), token)
    }

    /// Makes an outbox, for a thread that handles the answers to many requests. `notify` is called when its reader
    /// sleeps (see [`Outbox::sleep`]) and an answer comes: on the apply or the reply stage. A panic in it is caught and logged.
    /// `None` while the node has all the outboxes it can (15); one that is dropped makes room.
    pub fn outbox(&self, notify: impl Notify + 'static) -> Option<Outbox> {
        Outbox::open(self.inner.shared.table.clone(), notify)
    }

    /// Attaches a few bytes (64 at the most, the rest is cut off) to every answer that this node gives its leader from
    /// now on; the leader finds them in its `status().peers`. They are not replicated: for what may be lost.
    pub fn set_piggyback(&self, bytes: &[u8]) {
        self.inner
            .shared
            .set_piggyback(&bytes[..bytes.len().min(MAX_ATTACHED)]);
    }

    /// What this node knows of itself, now.
    pub fn status(&self) -> Status {
        let shared = &self.inner.shared;
        let marks = &shared.marks;
        let role = shared.role();
        Status {
            id: shared.id,
            role,
            term: shared.term(),
            leader: shared.leader(),
            applied: marks.applied.load(Ordering::Acquire),
            committed: marks.committed.load(Ordering::Acquire),
            durable: marks.durable.load(Ordering::Acquire),
            first: marks.first.load(Ordering::Acquire),
            last: marks.last.load(Ordering::Acquire),
            flushes: marks.flushes.load(Ordering::Relaxed),
            flushed_entries: marks.flushed_entries.load(Ordering::Relaxed),
            pending: shared.table.taken(),
            flush_backend: shared.flush_backend(),
            rings: shared
                .gauges()
                .iter()
                .map(|gauge| RingStatus {
                    name: gauge.name(),
                    capacity: gauge.capacity(),
                    depth: gauge.depth(),
                    full: gauge.full_count(),
                })
                .collect(),
            peers: if role == Role::Leader {
                shared.peer_status()
            } else {
                Vec::new()
            },
            hops: shared.hops.status(),
            snapshot: shared.snapshots().clone(),
            healing: shared.healing.load(Ordering::Acquire),
            excluded: shared.exclusion().cloned(),
            refusals: shared.refusals(),
            repairs: shared.repairs().clone(),
            error: shared.fault(),
        }
    }

    /// Who leads, as far as this node knows; cheaper than the whole [`status`](Node::status).
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.shared.leader()
    }

    /// Waits until this node leads or knows who does, for `limit` at the most; `None` when the time is over or the node
    /// has stopped, and at once on a thread of the node itself, which would wait for itself.
    pub fn wait_for_leader(&self, limit: Duration) -> Option<NodeId> {
        let deadline = deadline(limit);
        loop {
            if let Some(leader) = self.inner.shared.leader() {
                return Some(leader);
            }
            if self.is_own_thread() {
                tracing::error!(
                    node = self.inner.shared.id.0,
                    "wait_for_leader was called on a thread of the node itself, which would wait for itself: use Node::leader, or \
                     wait on a thread of your own"
                );
                return None;
            }
            if time_left(deadline).is_zero() || self.inner.shared.stop() != Stop::No {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether this is a thread of the node: in its state machine, a callback, a waker or a `notify`.
    pub(crate) fn is_own_thread(&self) -> bool {
        self.inner.shared.table.is_own_thread()
    }

    /// Leaves in order: takes nothing new, finishes what is under way as far as it can within
    /// `Config::proposal_timeout`, flushes, answers the rest, and waits until all of that is done. When it returns without an
    /// error or with [`ShutdownError::Fault`], the node is gone: its threads, its address and its directory are free, and a new
    /// node may start on them at once. A snapshot that is being written or restored is given up.
    ///
    /// May be called more than once, also at the same time: each call returns when the node is gone, with the same result. It waits
    /// for `Config::proposal_timeout` and that again (but two seconds), no longer.
    ///
    /// The same holds however the stages run. A node without threads ([`start_driven`](Node::start_driven)) leaves while its driver
    /// is polled, so this waits for whoever does that.
    ///
    /// # Errors
    /// [`ShutdownError`]: the fault that had stopped the node, or that came up in leaving; that user code does not return; or
    /// that this is a thread of the node itself, which has been asked to leave and cannot be waited for.
    pub fn shutdown(&self) -> Result<(), ShutdownError> {
        self.inner.stop(Stop::Drain)
    }

    /// Stops the threads where they stand, as a crash would: nothing is drained, nothing flushed. For tests and
    /// demonstrations of what a crash does. Waits as [`shutdown`](Node::shutdown) does.
    pub fn shutdown_now(&self) {
        let _ = self.inner.stop(Stop::Now);
    }
}

/// Waits for what was started of a node that does not start: its directory is to be free again.
fn await_end(shared: &Shared) {
    let _ = shared.ending.wait(DROP_LIMIT);
}

/// Listens where [`Config::listen`] says, or else on what this member's own address stands for here.
fn bind(config: &Config) -> Result<TcpListener, StartError> {
    let member = config
        .members
        .iter()
        .find(|member| member.id == config.id)
        .expect("checked: this node is a member");
    let at = config.listen.as_ref().unwrap_or(&member.addr);
    let failed = |doing: &str, source: io::Error| StartError::Io {
        what: format!(
            "{doing} {at}, where node {} is to listen (Config::listen names another address, 0.0.0.0:port every interface)",
            config.id
        ),
        source,
    };
    let found: Vec<SocketAddr> = at
        .to_socket_addrs()
        .map_err(|error| failed("looking up", error))?
        .collect();
    let listener = TcpListener::bind(&found[..]).map_err(|error| failed("listening on", error))?;
    warn_of_loopback(config, at, &listener);
    Ok(listener)
}

/// A name that stands for a loopback address at home, while the others are on other hosts: they look it up elsewhere, and find
/// nobody listening there.
fn warn_of_loopback(config: &Config, at: &str, listener: &TcpListener) {
    let host = |addr: &str| addr.rsplit_once(':').map(|(host, _)| host.to_owned());
    let is_name = at.parse::<SocketAddr>().is_err();
    let is_alone = config
        .members
        .iter()
        .all(|member| host(&member.addr) == host(at));
    let Ok(addr) = listener.local_addr() else {
        return;
    };
    if is_name && !is_alone && addr.ip().is_loopback() {
        tracing::warn!(
            node = config.id.0,
            "{at} stands for {addr} on this machine, where no other machine reaches this node; it reaches those that listen \
             elsewhere. Let it listen on 0.0.0.0:{} (Config::listen, serve --listen), or correct the name",
            addr.port()
        );
    }
}

impl Inner {
    /// The sink that an outbox of this node names, while it is there.
    fn sink(&self, outbox: OutboxId) -> Result<SinkId, ProposeError> {
        let table = &self.shared.table;
        let is_ours = outbox.table == table.id() && table.sinks().is_open(outbox.sink);
        is_ours.then_some(outbox.sink).ok_or(ProposeError::NoOutbox)
    }

    fn propose(
        &self,
        ask: Ask,
        sink: SinkId,
        tag: u64,
        command: &[u8],
    ) -> Result<Token, ProposeError> {
        if command.len() > self.max_entry_bytes {
            return Err(ProposeError::TooLarge {
                max: self.max_entry_bytes,
            });
        }
        let token = self.take(sink, tag, &[])?;
        let is_long = command.len() > self.inline_bytes;
        let mut spilled = None;
        if is_long {
            spilled = self.shared.spill.take(command);
            if spilled.is_none() {
                self.shared.table.untake(token);
                return Err(ProposeError::Busy);
            }
        }
        let sent = self.ingress.propose.try_send(|slot| {
            slot.ask = ask;
            slot.token = token.0;
            slot.is_long = is_long;
            slot.inline.clear();
            if is_long {
                let place = slot.spilled.get_mut();
                *place.unwrap_or_else(PoisonError::into_inner) = spilled.take();
            } else {
                slot.inline.extend_from_slice(command);
            }
        });
        if sent.is_err() {
            if let Some(spilled) = spilled {
                self.shared.spill.give_back(spilled);
            }
            self.shared.table.untake(token);
            return Err(ProposeError::Busy);
        }
        self.answer_if_ended(token);
        Ok(token)
    }

    fn read(
        &self,
        sink: SinkId,
        tag: u64,
        query: &[u8],
        how: Consistency,
    ) -> Result<Token, ProposeError> {
        let see = match how {
            Consistency::Linearizable => See::Now,
            Consistency::Lease => See::Lease,
            Consistency::AtMost { age, entries } => See::AtMost {
                age_us: micros(age),
                entries,
            },
            Consistency::Stale => See::Any,
            Consistency::Log => return self.propose(Ask::Query, sink, tag, query),
        };
        self.ask(sink, tag, query, see)
    }

    fn ask(&self, sink: SinkId, tag: u64, query: &[u8], see: See) -> Result<Token, ProposeError> {
        let token = self.take(sink, tag, query)?;
        let sent = self.ingress.read.try_send(|slot| {
            slot.see = see;
            slot.token = token.0;
        });
        if sent.is_err() {
            self.shared.table.untake(token);
            return Err(ProposeError::Busy);
        }
        self.answer_if_ended(token);
        Ok(token)
    }

    /// The stages may have gone after `take` looked: then nobody else answers this request.
    fn answer_if_ended(&self, token: Token) {
        if self.shared.table.ended() {
            self.shared
                .table
                .complete(token, Err(ProposeError::Stopped), &[]);
        }
    }

    fn take(&self, sink: SinkId, tag: u64, request: &[u8]) -> Result<Token, ProposeError> {
        if self.shared.stop() != Stop::No {
            return Err(ProposeError::Stopped);
        }
        let now_us = self.shared.clock.now_us();
        self.shared
            .table
            .take(sink, tag, now_us, request)
            .ok_or(ProposeError::Busy)
    }

    fn stop(&self, how: Stop) -> Result<(), ShutdownError> {
        self.shared.request_stop(how);
        if self.shared.is_own_thread() {
            return Err(ShutdownError::OwnThread);
        }
        let left = self
            .shared
            .wait_for_end(ShutdownError::limit(self.proposal_timeout));
        if !matches!(left, Err(ShutdownError::StillRunning { .. })) {
            self.join();
        }
        left
    }

    /// Waits for the last instructions of threads that have left.
    fn join(&self) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            let _ = thread.join(); // No panic leaves a runner.
        }
    }
}

/// How long dropping the last handle waits for the node to leave.
const DROP_LIMIT: Duration = Duration::from_secs(1);

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.request_stop(Stop::Drain);
        if self.shared.is_own_thread() || self.shared.ending.may_be_driver() {
            return;
        }
        match self.shared.ending.wait(DROP_LIMIT) {
            Ok(()) => {
                self.join();
                if let Some(fault) = self.shared.fault() {
                    tracing::warn!(node = self.shared.id.0, "ended by: {fault}");
                }
            }
            Err(stages) => tracing::warn!(
                node = self.shared.id.0,
                "the last handle is dropped, and the node is still leaving: {}",
                stages.join(", ")
            ),
        }
    }
}
