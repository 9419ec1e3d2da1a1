//! What every handle of a node and every stage of it can see.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ringbuf::{Gauge, Waker};
use storage::Reader;

use crate::clock::Clock;
use crate::config::Config;
use crate::error::{Fault, ShutdownError};
use crate::flow::background::handoff::Handoff;
use crate::flow::background::repair_request::RepairRequest;
use crate::flow::guard;
use crate::flow::watermarks::Marks;
use crate::host::ending::Ending;
use crate::request::large::Spill;
use crate::request::latency::Hops;
use crate::request::own_thread;
use crate::request::table::Table;
use crate::status::Repairs;
use crate::status::{Exclusion, PeerStatus, RefusalStatus, Role, SnapshotStatus};
use crate::types::NodeId;

/// How far a node is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    No = 0,
    /// Take nothing new; finish what is there.
    Drain = 1,
    /// Leave everything as it is.
    Now = 2,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: NodeId,
    /// The stamp of entries proposed by this process: node id in the upper half, a random number of this process in the
    /// lower, so that an entry of an earlier life is nobody's here.
    pub(crate) origin: u64,
    pub(crate) clock: Clock,
    pub(crate) table: Arc<Table>,
    pub(crate) marks: Marks,
    pub(crate) hops: Arc<Hops>,
    /// `term`, and `role << 32 | leader` beside it, for the status and for refusing early.
    pub(crate) term: AtomicU64,
    pub(crate) face: AtomicU64,
    pub(crate) spill: Spill,
    pub(crate) peers: Mutex<Vec<PeerStatus>>,
    pub(crate) handoff: Handoff,
    pub(crate) repair_request: RepairRequest,
    pub(crate) ending: Ending,
    repairs: Mutex<Repairs>,
    /// For whoever reads committed entries back; no stage does it by this one.
    reader: Mutex<Reader>,
    snapshots: Mutex<SnapshotStatus>,
    pub(crate) healing: AtomicBool,
    exclusion: OnceLock<Exclusion>,
    /// Peers with which there is no talking, for the status.
    refusals: Mutex<Vec<RefusalStatus>>,
    /// It heals, and its directory was made in the place of one that is gone: the network says so to the peers.
    pub(crate) replaces: Arc<AtomicBool>,
    piggyback: Mutex<Arc<[u8]>>,
    pub(crate) piggyback_changed: AtomicBool,
    /// How often requests were answered because their time was over.
    pub(crate) expired: AtomicU64,
    gauges: OnceLock<Vec<Gauge>>,
    flush_backend: OnceLock<&'static str>,
    stop: AtomicU8,
    fault: OnceLock<Fault>,
    /// One a thread; all are woken when the node is to stop.
    wakers: OnceLock<Vec<Waker>>,
}

impl Shared {
    pub(crate) fn new(
        config: &Config,
        nonce: u32,
        clock: Clock,
        table: Arc<Table>,
        (handoff, repair_request): (Handoff, RepairRequest),
        reader: Reader,
        replaces: Arc<AtomicBool>,
    ) -> Self {
        let id = config.id;
        let peers = config
            .members
            .iter()
            .filter(|member| member.id != id)
            .map(|member| PeerStatus {
                id: member.id,
                matched: 0,
                next: 0,
                inflight_bytes: 0,
                active: false,
                piggyback: Vec::new(),
            })
            .collect();
        Self {
            id,
            origin: u64::from(id.0) << 32 | u64::from(nonce),
            clock,
            hops: table.hops().clone(),
            table,
            marks: Marks::default(),
            term: AtomicU64::new(0),
            face: AtomicU64::new(0),
            spill: Spill::new(config.max_spilled_bytes),
            peers: Mutex::new(peers),
            handoff,
            repair_request,
            ending: Ending::default(),
            repairs: Mutex::default(),
            reader: Mutex::new(reader),
            snapshots: Mutex::default(),
            healing: AtomicBool::new(false),
            exclusion: OnceLock::new(),
            refusals: Mutex::default(),
            replaces,
            piggyback: Mutex::new(Arc::from([])),
            piggyback_changed: AtomicBool::new(false),
            expired: AtomicU64::new(0),
            gauges: OnceLock::new(),
            flush_backend: OnceLock::new(),
            stop: AtomicU8::new(Stop::No as u8),
            fault: OnceLock::new(),
            wakers: OnceLock::new(),
        }
    }

    /// The log, for reading entries back.
    pub(crate) fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the snapshots, for the status. Nobody on the entry's way looks at it.
    pub(crate) fn snapshots(&self) -> MutexGuard<'_, SnapshotStatus> {
        self.snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found bad on the disk and put right, for the status.
    pub(crate) fn repairs(&self) -> MutexGuard<'_, Repairs> {
        self.repairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer has refused this node's directory: the log says so once in a process.
    pub(crate) fn set_exclusion(&self, exclusion: storage::Exclusion) {
        let exclusion = Exclusion::of(&exclusion);
        tracing::error!(node = self.id.0, "excluded: {exclusion}");
        let _ = self.exclusion.set(exclusion);
    }

    /// What helps against something bad on the disk that no snapshot has taken the place of.
    pub(crate) fn advice_on_rot(&self) -> &'static str {
        match self.peer_status().is_empty() {
            true => {
                "keep the node running until a snapshot is taken: without peers it does not start again with what is bad, and \
                 a backup is needed (docs/operating.md)"
            }
            false => "restart the node, and it gets it from its peers",
        }
    }

    pub(crate) fn exclusion(&self) -> Option<&Exclusion> {
        self.exclusion.get()
    }

    fn refusals_mut(&self) -> MutexGuard<'_, Vec<RefusalStatus>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn refusals(&self) -> Vec<RefusalStatus> {
        self.refusals_mut().clone()
    }

    pub(crate) fn note_refusal(&self, peer: u64, by_peer: bool, reason: &dyn fmt::Display) {
        self.forget_refusal(peer);
        self.refusals_mut().push(RefusalStatus {
            peer: NodeId(peer as u32),
            by_peer,
            reason: reason.to_string(),
        });
    }

    pub(crate) fn forget_refusal(&self, peer: u64) {
        self.refusals_mut()
            .retain(|refusal| u64::from(refusal.peer.0) != peer);
    }

    pub(crate) fn set_gauges(&self, gauges: Vec<Gauge>) {
        assert!(
            self.gauges.set(gauges).is_ok(),
            "the rings of a node are made once"
        );
    }

    pub(crate) fn gauges(&self) -> &[Gauge] {
        self.gauges.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn set_flush_backend(&self, way: &'static str) {
        assert!(
            self.flush_backend.set(way).is_ok(),
            "the log of a node is opened once"
        );
    }

    pub(crate) fn flush_backend(&self) -> &'static str {
        self.flush_backend.get().copied().unwrap_or("not started")
    }

    pub(crate) fn set_piggyback(&self, bytes: &[u8]) {
        *self
            .piggyback
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = bytes.into();
        self.piggyback_changed.store(true, Ordering::Release);
    }

    pub(crate) fn piggyback(&self) -> Arc<[u8]> {
        self.piggyback
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set_wakers(&self, wakers: Vec<Waker>) {
        assert!(
            self.wakers.set(wakers).is_ok(),
            "the threads of a node are made once"
        );
    }

    pub(crate) fn wake_all(&self) {
        for waker in self.wakers.get().into_iter().flatten() {
            waker.wake();
        }
    }

    pub(crate) fn stop(&self) -> Stop {
        match self.stop.load(Ordering::Acquire) {
            0 => Stop::No,
            1 => Stop::Drain,
            _ => Stop::Now,
        }
    }

    /// Asks the threads to end. A stronger wish is not taken back by a weaker one.
    pub(crate) fn request_stop(&self, how: Stop) {
        self.stop.fetch_max(how as u8, Ordering::AcqRel);
        self.wake_all();
    }

    /// The node can no longer keep its promises: it says why, once, and ends.
    pub(crate) fn fail(&self, fault: Fault) {
        let text = fault.to_string();
        let _ = self.fault.set(fault);
        self.request_stop(Stop::Now);
        guard::log(|| tracing::error!(node = self.id.0, "stops: {text}"));
    }

    /// The last thread has ended: nobody will answer any more, and nobody is led or followed.
    pub(crate) fn end(&self) {
        self.set_face(self.term(), Role::Follower, None);
        // A stage that panicked may have handed a request on without a note of it.
        let in_doubt = matches!(self.fault.get(), Some(Fault::Panic(_)));
        self.table.abandon_all(in_doubt);
        self.clear_desk();
    }

    /// Drops a state machine that nobody takes back, or a snapshot that nobody writes.
    fn clear_desk(&self) {
        guard::contain("dropping a state machine", || self.handoff.clear());
    }

    /// A thread of the node ends, and has let go of what it held. The last one on an entry's way answers what is left.
    pub(crate) fn leave(&self, name: &'static str, is_aside: bool) {
        if !is_aside && self.ending.let_go() {
            self.end();
        } else if self.table.ended() {
            self.clear_desk();
        }
        self.ending.leave(name);
    }

    /// Waits until the node, which was asked to leave, has left. Requests are answered then, also when it does not.
    pub(crate) fn wait_for_end(&self, limit: Duration) -> Result<(), ShutdownError> {
        if let Err(stages) = self.ending.wait(limit) {
            self.table.abandon_all(true);
            return Err(ShutdownError::StillRunning { stages, limit });
        }
        match self.fault() {
            None => Ok(()),
            Some(fault) => Err(ShutdownError::Fault(fault)),
        }
    }

    /// Whether this thread is one of the node's own, which cannot wait for its end.
    pub(crate) fn is_own_thread(&self) -> bool {
        own_thread::is_of(Arc::as_ptr(&self.table)) || self.ending.is_driver()
    }

    pub(crate) fn term(&self) -> u64 {
        self.term.load(Ordering::Acquire)
    }

    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.get().cloned()
    }

    pub(crate) fn set_face(&self, term: u64, role: Role, leader: Option<u64>) {
        self.term.store(term, Ordering::Release);
        let leader = leader.unwrap_or(0) & 0xffff_ffff;
        self.face
            .store((role as u64) << 32 | leader, Ordering::Release);
    }

    /// What this node is to others: nothing more once it has failed or was stopped at once, whatever its stages last said.
    pub(crate) fn role(&self) -> Role {
        match self.stop() {
            Stop::Now => Role::Follower,
            _ => self.role_of_consensus(),
        }
    }

    fn role_of_consensus(&self) -> Role {
        match self.face.load(Ordering::Acquire) >> 32 {
            0 => Role::Follower,
            1 => Role::Candidate,
            2 => Role::Leader,
            _ => Role::Learner,
        }
    }

    /// Whether this node leads in `term`, at this moment.
    pub(crate) fn leads(&self, term: u64) -> bool {
        self.role_of_consensus() == Role::Leader && self.term() == term
    }

    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leader = self.face.load(Ordering::Acquire) as u32;
        (leader != 0 && self.stop() != Stop::Now).then_some(NodeId(leader))
    }

    pub(crate) fn peer_status(&self) -> Vec<PeerStatus> {
        self.peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
