//! Where a node is put together: opens what it stands on, makes the rings, and gives each stage its ends of them.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use net::Net;
use ringbuf::Waker;
use storage::{Dir, Disk, FlushBackend, Log, Options, Recovered, SnapshotId, SnapshotMeta};

use crate::clock::{Clock, micros};
use crate::config::{Config, Flush, Threads};
use crate::error::StartError;
use crate::flow::append::Append;
use crate::flow::apply::{Apply, Begun};
use crate::flow::background::handoff::Handoff;
use crate::flow::background::repair_request::RepairRequest;
use crate::flow::background::trigger::SnapshotTrigger;
use crate::flow::background::worker::BackgroundWorker;
use crate::flow::consensus::entry_sizes::Sizes;
use crate::flow::consensus::{Consensus, Inputs, Rings};
use crate::flow::network::Network;
use crate::flow::network::link::{GroupLink, Link};
use crate::flow::network::receive::Inbound;
use crate::flow::reply::ReplyStage;
use crate::flow::rings::{
    Asked, AtIndex, Bulk, Entry, InBulk, InBulkKind, InSmall, InTransfer, Ingress, News, Proposal,
    See, SendBulk, SendSmall, SendTransfer, Small, ToApply, ToConsensus, Wanted,
};
use crate::flow::shared::Shared;
use crate::flow::transfer::{self, CHUNK_BYTES, Transfer};
use crate::host::agent::SharedAgent;
use crate::host::driver::Driver;
use crate::host::layout::{self, Layout};
use crate::host::restore::begin;
use crate::host::sleepers::{Sleepers, Wakers};
use crate::host::stages::{Aside, Stages};
use crate::host::threads::{self, spawn, spawn_aside};
use crate::raft::{self, Core, Membership, Message};
use crate::request::latency::Hops;
use crate::request::sinks::Sinks;
use crate::request::table::Table;
use crate::request::time_limits::Limits;
use crate::state_machine::Kind;
use crate::state_machine::StateMachine;
use crate::status::Repairs;
use crate::wire::transfer::Parcel;

/// Slots of the rings whose size follows from what their stages do, not from the embedder's load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingSizes {
    pub(crate) small: usize,
    pub(crate) bulk: usize,
    pub(crate) inbound_bulk: usize,
}

impl RingSizes {
    pub(crate) const PRODUCT: Self = Self {
        small: 1024,
        bulk: 512,
        inbound_bulk: 64,
    };
}

/// Slots of the rings that carry snapshots and what is said about them.
pub(crate) const ASIDE_SLOTS: usize = 64;

/// A peer that is there has been dialed, or has dialed, within this.
const FOUNDING_WAIT: Duration = Duration::from_secs(1);

/// Buffers of slots begin with this much and grow to the batch they once held.
pub(crate) const BATCH_BUFFER: usize = 16 << 10;

/// A node that is put together and not yet running.
pub(crate) struct Graph {
    pub(crate) shared: Arc<Shared>,
    pub(crate) ingress: Ingress,
    pub(crate) stages: Stages,
    aside: Aside,
    sleepers: Sleepers,
    layout: Layout,
}

pub(crate) fn build(
    listener: impl FnOnce() -> Result<TcpListener, StartError>,
    config: &Config,
    mut machine: Box<dyn StateMachine>,
) -> Result<Graph, StartError> {
    let nonce = getrandom::u64().map_err(|error| StartError::Io {
        what: "taking a random number".into(),
        source: std::io::Error::other(error.to_string()),
    })?;
    let layout = Layout::of(&config.threads, layout::cores());

    config.check_descriptors(storage::descriptor_limit())?;
    // The directory first: that another process has it says more than that its port is taken.
    let flush_bell = Arc::new(OnceLock::new());
    let kind = machine.kind();
    let (log, recovered) = open_log(config, kind, flush_bell.clone())?;
    check_kind(config, kind, recovered.identity.kind)?;
    report_recovery(config, &recovered);
    let state =
        begin(machine.as_mut(), &log, &recovered, config).map_err(StartError::StateMachine)?;
    let known = log.known_peers().list().to_vec();
    let incarnation = recovered.identity.incarnation;
    let replaces = Arc::new(AtomicBool::new(takes_a_place(&recovered)));
    let mut settings = net::Config::new(config.cluster_id(), u64::from(config.id.0), incarnation);
    settings.kind = kind as u64;
    (settings.known_incarnations, settings.replaces) = (known, replaces.clone());
    let mut net = open_net(listener()?, config, settings, nonce)?;
    if let Some(fd) = log.completion_fd().filter(|_| layout != Layout::PerStage) {
        net.watch(fd).map_err(|source| StartError::Io {
            what: "watching io_uring completions".into(),
            source,
        })?;
    }

    let sleepers = Sleepers::new(&net, layout);
    let wakers = sleepers.wakers();
    assert!(
        flush_bell.set(wakers.append.clone()).is_ok(),
        "the flush has one bell"
    );
    let link = GroupLink {
        net,
        group: config.group,
    };
    let made = wire(
        config,
        Parts {
            log,
            recovered,
            replaces,
            link,
            machine,
            state,
            clock: Clock::system(),
            nonce,
            wakers,
            rings: RingSizes::PRODUCT,
        },
    );
    let graph = Graph {
        shared: made.shared,
        ingress: made.ingress,
        stages: made.stages,
        aside: made.aside,
        sleepers,
        layout,
    };
    graph.announce(config);
    Ok(graph)
}

/// What a node stands on, opened.
pub(crate) struct Parts<D: Dir, L: Link> {
    pub(crate) log: Log<D>,
    pub(crate) recovered: Recovered,
    /// As long as it heals, and its directory takes the place of one that is gone, the peers are told so.
    pub(crate) replaces: Arc<AtomicBool>,
    pub(crate) link: L,
    pub(crate) machine: Box<dyn StateMachine>,
    /// What is in the machine.
    pub(crate) state: SnapshotMeta,
    pub(crate) clock: Clock,
    /// A random number of this life of the node.
    pub(crate) nonce: u64,
    pub(crate) wakers: Wakers,
    pub(crate) rings: RingSizes,
}

/// A node as stages and the handles on them: who runs them is another matter.
pub(crate) struct Group<D: Dir, L: Link> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) ingress: Ingress,
    pub(crate) stages: Stages<D, L>,
    pub(crate) aside: Aside<D>,
}

/// Makes the rings, and gives each stage its ends of them.
pub(crate) fn wire<D: Dir, L: Link>(config: &Config, parts: Parts<D, L>) -> Group<D, L> {
    let Parts {
        log,
        recovered,
        replaces,
        link,
        machine,
        state,
        clock,
        nonce,
        wakers,
        rings,
    } = parts;
    // `replied`: apply and consensus -> reply. See `flow/reply.rs`.
    let (sinks, replied) = Sinks::new(config.max_pending, wakers.reply.clone());
    let table = Arc::new(Table::new(
        config.max_pending,
        config.inline_bytes,
        (nonce >> 32) as u32,
        sinks,
        Arc::new(Hops::new(clock.clone())),
        wakers.limits.clone(),
    ));
    let handoff = Handoff::new(wakers.background.clone(), wakers.apply.clone());
    let repair_request = RepairRequest::new(wakers.background.clone(), wakers.transfer.clone());
    let shared = Arc::new(Shared::new(
        config,
        nonce as u32,
        clock,
        table.clone(),
        (handoff, repair_request),
        log.reader(),
        replaces,
    ));

    *shared.repairs() = Repairs::of_a_start(&recovered);
    let is_healing = recovered.data_loss.is_some();
    shared.healing.store(is_healing, Ordering::Relaxed);
    if let Some(exclusion) = recovered.excluded {
        shared.set_exclusion(exclusion);
    }

    // `propose`: any thread -> consensus. Full: the caller gets `Busy`.
    let inline = config.inline_bytes;
    let (propose, proposals) = ringbuf::ring_many(
        "propose",
        config.propose_ring,
        || Proposal::slot(inline),
        wakers.consensus.clone(),
    );
    // `read`: any thread -> consensus. As many slots as the table has: hardly ever full, then `Busy`.
    let (read, reads) = ringbuf::ring_many(
        "read",
        config.max_pending,
        || Asked {
            see: See::Any,
            token: 0,
        },
        wakers.consensus.clone(),
    );
    // `entry`: consensus -> append, a batch a slot. Full: consensus takes no proposals and no appends.
    let (entry, mut entries) = ringbuf::ring(
        "entry",
        config.entry_ring,
        || Entry::slot(BATCH_BUFFER),
        wakers.append.clone(),
    );
    // `send_small`, `send_bulk`: consensus -> network. Full: consensus takes no input.
    let nothing = Message::HeartbeatReply { term: 0, round: 0 };
    let (send_small, mut sent_small) = ringbuf::ring(
        "send_small",
        rings.small,
        || SendSmall {
            to: 0,
            message: nothing,
        },
        wakers.network.clone(),
    );
    let (send_bulk, mut sent_bulk) = ringbuf::ring(
        "send_bulk",
        rings.bulk,
        || SendBulk {
            to: 0,
            what: Bulk::Refused { term: 0 },
            bytes: Vec::new(),
        },
        wakers.network.clone(),
    );
    // `in_small`, `in_bulk`: network -> consensus. Full: the frame's connection is not read.
    let (in_small, mut small) = ringbuf::ring(
        "in_small",
        rings.small,
        || InSmall {
            from: 0,
            what: Small::Down,
            piggyback: Vec::new(),
        },
        wakers.consensus.clone(),
    );
    let (in_bulk, mut bulk) = ringbuf::ring(
        "in_bulk",
        rings.inbound_bulk,
        || InBulk {
            from: 0,
            what: InBulkKind::Refused,
            body: Vec::with_capacity(BATCH_BUFFER),
        },
        wakers.consensus.clone(),
    );
    // `wanted`: consensus -> transfer. Full: the core asks again.
    let (wanted, asked) = ringbuf::ring(
        "wanted",
        ASIDE_SLOTS,
        || Wanted { to: 0, term: 0 },
        wakers.transfer.clone(),
    );
    // `send_transfer`, `in_transfer`: transfer -> network -> transfer. Full: the transfer waits; what comes in is lost, and
    // asked for again.
    let parcel = Parcel::Done {
        id: SnapshotId {
            index: 0,
            term: 0,
            bytes: 0,
            digest: 0,
        },
    };
    let (send_transfer, mut sent_transfer) = ringbuf::ring(
        "send_transfer",
        ASIDE_SLOTS,
        || SendTransfer {
            to: 0,
            parcel,
            bytes: Arc::default(),
        },
        wakers.network.clone(),
    );
    let chunks = config.snapshot_window_bytes.div_ceil(CHUNK_BYTES);
    let (in_transfer, parcels) = ringbuf::ring(
        "in_transfer",
        (2 * chunks).next_power_of_two().max(ASIDE_SLOTS),
        || InTransfer {
            from: 0,
            parcel,
            bytes: Vec::new(),
        },
        wakers.transfer.clone(),
    );
    // `news`: transfer -> consensus. Full: the transfer waits.
    let (news, mut told) = ringbuf::ring(
        "news",
        ASIDE_SLOTS,
        || ToConsensus(News::Failed { to: 0 }),
        wakers.consensus.clone(),
    );
    sent_transfer.wake_on_release(wakers.transfer.clone());
    told.wake_on_release(wakers.transfer.clone());
    // `apply`: consensus -> apply, what happens at an index. Full: reads are `Busy`.
    let (at_index, mut reached) = ringbuf::ring(
        "apply",
        config.max_pending.max(rings.small),
        || ToApply(AtIndex::LeaderStop { term: 0 }),
        wakers.apply.clone(),
    );
    // Who sleeps because a ring is full is woken when it has room.
    for ring in [
        &mut sent_small as &mut dyn WakeOnRelease,
        &mut sent_bulk,
        &mut entries,
        &mut reached,
    ] {
        ring.wake_writer(wakers.consensus.clone());
    }
    for ring in [&mut small as &mut dyn WakeOnRelease, &mut bulk] {
        ring.wake_writer(wakers.network.clone());
    }
    shared.set_gauges(vec![
        propose.gauge(),
        read.gauge(),
        entry.gauge(),
        send_small.gauge(),
        send_bulk.gauge(),
        in_small.gauge(),
        in_bulk.gauge(),
        send_transfer.gauge(),
        in_transfer.gauge(),
        at_index.gauge(),
        replied.gauge(),
    ]);
    shared.set_flush_backend(log.flush_backend());
    shared.set_wakers(vec![
        wakers.consensus.clone(),
        wakers.append.clone(),
        wakers.network.clone(),
        wakers.apply.clone(),
        wakers.reply.clone(),
        wakers.limits.clone(),
        wakers.background.clone(),
        wakers.transfer.clone(),
    ]);

    let core = Core::new(
        settings(config, nonce),
        restored(config, &recovered, state.index),
        shared.clock.now_us(),
    );
    let reader = log.reader();
    let consensus = Consensus::new(
        core,
        Sizes::new(reader.clone(), recovered.last_index),
        Inputs {
            small,
            bulk,
            propose: proposals,
            news: told,
            read: reads,
        },
        Rings {
            entry,
            send_small,
            send_bulk,
            at_index,
            wanted,
        },
        shared.clone(),
        wakers.apply.clone(),
        wakers.transfer.clone(),
        config,
        recovered.last_time_us.max(state.time_us),
        nonce >> 2,
    );
    let inbound = Inbound::new(
        in_small,
        in_bulk,
        in_transfer,
        shared.clone(),
        config.max_entry_bytes,
        Box::new(log.known_peers()),
    );
    let network = Network::new(
        link,
        reader.clone(),
        sent_small,
        sent_bulk,
        sent_transfer,
        inbound,
        shared.clone(),
    );
    let snapshots = log.snapshots();
    let newest = recovered.snapshot.as_ref().map_or(0, |(id, _)| id.index);
    let now_us = shared.clock.now_us();
    let background = BackgroundWorker::new(
        snapshots.clone(),
        (log.scrub(), log.extent()),
        shared.clone(),
        wakers.consensus.clone(),
        config,
    );
    let transfer = Transfer::new(
        snapshots,
        log.record_source(),
        shared.clone(),
        transfer::Inputs {
            wanted: asked,
            parcels,
        },
        send_transfer,
        news,
        config,
    );
    // Of what was applied without a record of its term nothing can be captured.
    let known = if state.term == 0 { state.index } else { newest };
    let trigger = SnapshotTrigger::new(config, known, now_us, nonce >> 1);
    let apply = Apply::new(
        Begun {
            machine,
            state,
            trigger,
        },
        reader,
        reached,
        shared.clone(),
        wakers.consensus.clone(),
        config.inline_bytes,
    );
    let append = Append::new(
        log,
        entries,
        shared.clone(),
        wakers.consensus,
        wakers.network,
        wakers.apply,
    );
    let reply = ReplyStage { table, replied };
    let limits = Limits::new(shared.clone(), config);
    let stages = Stages {
        consensus,
        append,
        network,
        apply,
        reply,
    };
    Group {
        shared,
        ingress: Ingress { propose, read },
        stages,
        aside: Aside {
            limits,
            background,
            transfer,
        },
    }
}

/// A ring's reading end, whatever it carries.
trait WakeOnRelease {
    fn wake_writer(&mut self, writer: Waker);
}

impl<T: Send + Sync + 'static> WakeOnRelease for ringbuf::Receiver<T> {
    fn wake_writer(&mut self, writer: Waker) {
        self.wake_on_release(writer);
    }
}

fn open_log(
    config: &Config,
    kind: Kind,
    flush_bell: Arc<OnceLock<Waker>>,
) -> Result<(Log<Disk>, Recovered), StartError> {
    let mut options = Options::default();
    options.segment_bytes = config.segment_bytes;
    options.max_record_bytes = config.max_entry_bytes;
    options.kind = kind as u16;
    options.heal = config.members.len() > 1;
    options.replaces = config.rejoin_with_nothing;
    options.sync = config.flush != Flush::Never;
    options.flush = match config.flush {
        Flush::Auto | Flush::Never => FlushBackend::Auto,
        Flush::IoUring => FlushBackend::Uring,
        Flush::Thread => FlushBackend::Thread,
    };
    options.on_complete = Some(Arc::new(move || {
        if let Some(append) = flush_bell.get() {
            append.wake();
        }
    }));
    let path = config.data_dir.join(format!("group-{}", config.group));
    let (log, recovered) = Log::open(
        Disk::new(&path),
        options,
        config.cluster_id(),
        config.group,
        u64::from(config.id.0),
    )?;
    Ok((log, recovered))
}

/// Whether the directory was made by a machine of this kind; one of an older version does not say.
fn check_kind(config: &Config, kind: Kind, made: u16) -> Result<(), StartError> {
    let had = match made {
        0 => return Ok(()),
        had if had == kind as u16 => return Ok(()),
        had if had == Kind::Plain as u16 => Kind::Plain.to_string(),
        had if had == Kind::Sessions as u16 => Kind::Sessions.to_string(),
        had => format!("a kind of state machine that this version does not know, {had}"),
    };
    Err(StartError::StateMachine(format!(
        "{} has the commands of {had}, and this node was started with {kind}, which would read each of them wrongly: start it \
         as before, on every node. To change it, found a new cluster and bring the state over",
        config.data_dir.display()
    )))
}

/// Whether the directory was made in the place of one that is gone, and the node has not got back all that it may have had.
pub(crate) fn takes_a_place(recovered: &Recovered) -> bool {
    recovered
        .data_loss
        .as_ref()
        .is_some_and(|heal| heal.replaces)
}

fn report_recovery(config: &Config, recovered: &Recovered) {
    if takes_a_place(recovered) {
        tracing::warn!(
            node = config.id.0,
            is_new = recovered.is_new,
            "this directory takes the place of one that is gone: the node takes no part before it has heard from all other voters"
        );
    } else if config.rejoin_with_nothing {
        tracing::warn!(
            node = config.id.0,
            "rejoin_with_nothing does nothing here: this node has its directory; leave it out from now on"
        );
    }
    for decision in &recovered.decisions {
        tracing::info!(node = config.id.0, "recovery: {decision}");
    }
    if let Some(heal) = &recovered.data_loss {
        for damage in &heal.damage {
            tracing::error!(
                node = config.id.0,
                "{damage}; it is fetched again from the peers"
            );
        }
        tracing::warn!(
            node = config.id.0,
            upto = heal.upto,
            vote_lost = heal.vote_lost,
            "this node does not stand for election before it has again what its disk has lost"
        );
    }
    tracing::info!(
        node = config.id.0,
        term = recovered.vote.term,
        first = recovered.first_index,
        last = recovered.last_index,
        "the log is open"
    );
}

fn open_net(
    listener: TcpListener,
    config: &Config,
    mut settings: net::Config,
    seed: u64,
) -> Result<Net<crate::flow::network::body::Body>, StartError> {
    // A frame holds one message's entries, or one longer entry, or a batch of forwarded proposals.
    let largest = config
        .max_append_bytes
        .max(config.max_batch_bytes)
        .max(config.max_entry_bytes);
    settings.max_frame_bytes = settings.max_frame_bytes.max(2 * largest);
    settings.bulk_queue_bytes = config
        .max_inflight_bytes
        .saturating_mul(2)
        .max(2 * settings.max_frame_bytes);
    settings.bulk_queue_frames = 2 * config.max_inflight_messages.max(64);
    settings.keepalive = config.election_timeout / 2;
    settings.stall_timeout = (config.election_timeout * 3).max(Duration::from_secs(1));
    settings.backoff_max = (config.election_timeout / 2).max(settings.backoff_min);
    settings.seed = seed;
    settings.max_strangers = config.max_strangers(storage::descriptor_limit());
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| StartError::Io { what, source }
    };
    let mut net = Net::new(settings, listener).map_err(io("setting up the network"))?;
    let mut peers = Vec::new();
    for member in config
        .members
        .iter()
        .filter(|member| member.id != config.id)
    {
        peers.push((u64::from(member.id.0), member.addr.clone()));
    }
    net.set_named_peers(&peers);
    Ok(net)
}

fn settings(config: &Config, seed: u64) -> raft::Settings {
    raft::Settings {
        id: u64::from(config.id.0),
        election_timeout_us: micros(config.election_timeout),
        heartbeat_us: micros(config.heartbeat),
        seed,
        max_append_bytes: config.max_append_bytes as u64,
        max_inflight_messages: config.max_inflight_messages,
        max_inflight_bytes: config.max_inflight_bytes as u64,
        disk_stall_us: micros(config.election_timeout * 4),
        founding_wait_us: micros(FOUNDING_WAIT.max(config.election_timeout * 3)),
        lease_us: config.lease.map(|lease| {
            raft::certain_us(micros(config.election_timeout), lease.max_clock_drift_ppm)
        }),
    }
}

fn restored(config: &Config, recovered: &Recovered, applied: u64) -> raft::Restored {
    let voters = config
        .members
        .iter()
        .map(|member| u64::from(member.id.0))
        .collect();
    raft::Restored {
        term: recovered.vote.term,
        vote: recovered.vote.voted_for,
        base_index: recovered.first_index - 1,
        base_term: recovered.prev_term,
        term_runs: recovered.term_runs.clone(),
        last_index: recovered.last_index,
        // The machine's own disk may be behind a snapshot that the log does not begin with.
        committed: applied.max(recovered.snapshot.as_ref().map_or(0, |(id, _)| id.index)),
        heal: recovered.data_loss.as_ref().map(|heal| raft::Heal {
            upto: heal.upto,
            term: heal.term,
            vote_lost: heal.vote_lost,
        }),
        excluded: recovered.excluded.is_some(),
        membership: Membership::of_voters(voters),
    }
}

impl Graph {
    /// One event with the graph as it is, and warnings of what will be slow.
    fn announce(&self, config: &Config) {
        let rings: Vec<String> = self
            .shared
            .gauges()
            .iter()
            .map(|ring| format!("{}:{}", ring.name(), ring.capacity()))
            .collect();
        let threads = match (self.layout, &config.threads) {
            (Layout::PerStage, Threads::PerStage { cores }) if !cores.is_empty() => {
                format!("consensus append network apply reply, on cores {cores:?}")
            }
            (Layout::PerStage, _) => "consensus append network apply reply".to_owned(),
            (Layout::SeparateApply, _) => {
                "node (consensus, append, network) apply reply".to_owned()
            }
            (Layout::Shared, _) => "one for all stages".to_owned(),
        };
        tracing::info!(
            node = config.id.0,
            threads,
            cores = layout::cores(),
            idle = ?config.idle,
            flush = self.shared.flush_backend(),
            rings = rings.join(" "),
            "propose -> consensus -> entry -> append | send -> network -> in -> consensus -> apply -> replied -> reply"
        );
        threads::warn_of_misconfiguration(config, self.layout);
        if config.flush == Flush::Never {
            tracing::warn!(
                node = config.id.0,
                "flushes are off: acknowledged entries may be lost in a power cut"
            );
        }
    }

    /// Starts the threads of the plan.
    pub(crate) fn spawn(self, config: &Config) -> Result<Vec<JoinHandle<()>>, StartError> {
        let Self {
            shared,
            stages,
            aside,
            sleepers,
            ..
        } = self;
        spawn(shared, stages, aside, sleepers, config)
    }

    /// Leaves the stages on an entry's way to the embedder; those that wait for disks have threads all the same.
    pub(crate) fn drive(
        self,
        config: &Config,
    ) -> Result<(Driver, Vec<JoinHandle<()>>), StartError> {
        let Self {
            shared,
            stages,
            aside,
            sleepers,
            ..
        } = self;
        // The driver first: the last thread on an entry's way ends the node, and there must be one.
        let plan = SharedAgent::new(shared.clone(), stages, config);
        let driver = Driver::new(plan, sleepers.network, config);
        let threads = spawn_aside(shared, aside, sleepers.aside, config)?;
        Ok((driver, threads))
    }
}
