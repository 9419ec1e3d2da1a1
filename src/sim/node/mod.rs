//! A simulated node: its disk, which outlives it, and the stages of the life that it leads now.

pub(crate) mod act;
pub(crate) mod clock;
pub(crate) mod link;

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use storage::{Log, Memory, Reader, Recovered, StorageError};

use crate::clock::Clock;
use crate::config::Config;
use crate::error::{Fault, ProposeError};
use crate::flow::shared::Shared;
use crate::host::build::{self, Parts, RingSizes};
use crate::host::restore::begin;
use crate::host::stages::{Aside, Stages};
use crate::node::Node;
use crate::request::outbox::Outbox;
use crate::request::token::Reply;
use crate::sim::invariants::leadership::Copy;
use crate::sim::invariants::logs::{Kept, Model};
use crate::sim::invariants::wakes::Bells;
use crate::sim::machine::recorder::MachineDisk;
use crate::sim::network::Fabric;
use crate::sim::node::act::Act;
use crate::sim::node::clock::NodeClock;
use crate::sim::node::link::SimLink;
use crate::state_machine::StateMachine;
use crate::status::Role;

/// An answer on its way to the client: the operation's number, and what became of it.
pub(crate) type Answer = (u64, Result<Reply, ProposeError>);

/// Answers that a node has given and its clients have not taken yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers(Arc<Mutex<Vec<Answer>>>);

impl Answers {
    pub(crate) fn push(&self, answer: Answer) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(answer);
    }

    pub(crate) fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A node between a start and a crash.
pub(crate) struct Life {
    pub(crate) stages: Stages<Memory, SimLink>,
    pub(crate) aside: Aside<Memory>,
    pub(crate) node: Node,
    pub(crate) outbox: Outbox,
    pub(crate) shared: Arc<Shared>,
    pub(crate) reader: Reader,
    pub(crate) clock: NodeClock,
    pub(crate) answers: Answers,
    /// When the flush that runs is let go; `None` while none runs.
    pub(crate) flush_done_us: Option<u64>,
    pub(crate) committed: u64,
    pub(crate) applied: u64,
    /// How much of the log was to be let go of, when it was last looked at.
    pub(crate) compact: u64,
    /// Who of its stages sleeps.
    pub(crate) bells: Bells,
}

/// Why a life does not begin.
#[derive(Debug)]
pub(crate) enum Refusal {
    Storage(StorageError),
    Machine(String),
}

impl From<StorageError> for Refusal {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage(error) => error.fmt(f),
            Self::Machine(why) => f.write_str(why),
        }
    }
}

/// Everything a life begins with.
pub(crate) struct Start<'a> {
    pub(crate) at: usize,
    pub(crate) config: &'a Config,
    pub(crate) rings: RingSizes,
    pub(crate) disk: &'a Memory,
    pub(crate) fabric: &'a Fabric,
    pub(crate) machine: Box<dyn StateMachine>,
    pub(crate) clock: NodeClock,
    pub(crate) nonce: u64,
}

pub(crate) fn open(
    disk: &Memory,
    config: &Config,
) -> Result<(Log<Memory>, Recovered), StorageError> {
    let mut options = storage::Options::default();
    options.segment_bytes = config.segment_bytes;
    options.max_record_bytes = config.max_entry_bytes;
    options.heal = config.members.len() > 1;
    options.replaces = config.rejoin_with_nothing;
    Log::open(
        disk.clone(),
        options,
        config.cluster_id(),
        config.group,
        u64::from(config.id.0),
    )
}

/// A life, what its disk gave back, and the directories that its peers are known with.
type Begun = (Life, Recovered, Vec<(u64, u64)>);

impl Life {
    pub(crate) fn begin(start: Start<'_>) -> Result<Begun, Refusal> {
        let Start {
            at,
            config,
            rings,
            disk,
            fabric,
            mut machine,
            clock,
            nonce,
        } = start;
        let (log, recovered) = open(disk, config)?;
        let state = begin(machine.as_mut(), &log, &recovered, config).map_err(Refusal::Machine)?;
        let known = log.known_peers().list().to_vec();
        let reader = log.reader();
        let bells = Bells::new();
        let made = build::wire(
            config,
            Parts {
                log,
                replaces: Arc::new(AtomicBool::new(build::takes_a_place(&recovered))),
                recovered: recovered.clone(),
                state,
                link: SimLink::new(at, fabric.clone()),
                machine,
                clock: Clock::Simulated(clock.clone()),
                nonce,
                wakers: bells.wakers(),
                rings,
            },
        );
        let node = Node::new(made.shared.clone(), made.ingress, config, Vec::new());
        let outbox = node.outbox(|| ()).expect("the first outbox of a node");
        let life = Self {
            stages: made.stages,
            aside: made.aside,
            node,
            outbox,
            shared: made.shared,
            reader,
            clock,
            answers: Answers::default(),
            flush_done_us: None,
            committed: 0,
            applied: 0,
            compact: 0,
            bells,
        };
        Ok((life, recovered, known))
    }

    /// One poll of one stage, as its thread would do it.
    pub(crate) fn poll(&mut self, act: Act) -> Result<usize, Fault> {
        let now_us = self.clock.now_us();
        let Stages {
            consensus,
            append,
            network,
            apply,
            reply,
        } = &mut self.stages;
        match act {
            Act::Receive => network.receive(None),
            Act::Finish => append.finish(now_us),
            Act::Consensus => Ok(consensus.poll(now_us)),
            Act::Write => append.write(now_us),
            Act::Apply => apply.poll(now_us),
            Act::Reply => Ok(reply.poll()),
            Act::Send => Ok(network.send()),
            Act::Flush => append.flush(now_us),
            Act::Save => Ok(self.aside.background.poll(now_us)),
            Act::Transfer => Ok(self.aside.transfer.poll(now_us)),
            Act::Limits => Ok(self.aside.limits.poll(now_us)),
        }
    }

    /// Whether any stage would find something, by its own word: this is what a thread asks before it sleeps.
    pub(crate) fn has_work(&mut self) -> bool {
        self.stages.has_work()
            || self.aside.background.has_work()
            || self.aside.transfer.has_work()
            || self.aside.limits.has_work()
    }

    /// The true time at which a stage wants to be polled even if nothing comes.
    pub(crate) fn deadline_us(&self) -> u64 {
        let own = self
            .stages
            .deadline_us()
            .min(self.aside.transfer.deadline_us())
            .min(self.aside.background.deadline_us())
            .min(self.aside.limits.deadline_us());
        self.clock.true_time_of(own)
    }

    /// Ends as a node ends that can no longer keep its promises: it answers what it can.
    pub(crate) fn fail(&mut self, fault: Fault) {
        self.shared.fail(fault);
        let closed = self.stages.close(false);
        assert!(closed.is_ok(), "nothing is written any more");
        self.shared.end();
    }

    /// Whether a node that leaves has done everything that it had taken.
    pub(crate) fn is_drained(&mut self) -> bool {
        self.stages.drained() && self.shared.table.all_answered()
    }

    /// The end, in order: as the shared thread does it.
    pub(crate) fn close(&mut self) -> Result<(), Fault> {
        self.stages.close(true)?;
        self.shared.end();
        Ok(())
    }

    pub(crate) fn kept(&self) -> Kept {
        let log = self.stages.append.log();
        Kept {
            durable: log.durable(),
            vote: log.durable_vote(),
        }
    }

    pub(crate) fn durable(&self) -> u64 {
        self.stages.append.log().durable()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // Nobody listens any more. This only lets go of callbacks that would keep the table alive for ever.
        self.shared.end();
    }
}

/// How a node is damaged of whose files something is wrong.
pub(crate) const DAMAGED: &str = "damaged";

/// How a node is damaged that runs on with a record that has gone bad.
pub(crate) const ROTTEN: &str = "rotten";

/// How a node is damaged whose directory is empty, and whose operator has said that the old one is gone.
pub(crate) const REJOINS: &str = "wiped, and rejoins";

/// What the disk of a node was told to do wrong, so that what comes of it is no surprise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Armed {
    /// An operation will fail with EIO.
    pub(crate) error: bool,
    /// The power will fail in an operation.
    pub(crate) power: bool,
    /// There is no room for new files.
    pub(crate) full: bool,
    /// The state machine will panic.
    pub(crate) panic: bool,
}

/// A node over all its lives.
pub(crate) struct SimNode {
    pub(crate) config: Config,
    pub(crate) disk: Memory,
    pub(crate) life: Option<Life>,
    /// That of its state machine, which outlives it too.
    pub(crate) machine_disk: MachineDisk,
    /// Lives begun so far.
    pub(crate) lives: u64,
    pub(crate) model: Model,
    /// Of the last life that ended.
    pub(crate) kept: Option<Kept>,
    pub(crate) rate_ppm: u64,
    pub(crate) wall_offset_us: i64,
    /// While it is paused: until when.
    pub(crate) paused_until_us: Option<u64>,
    /// While it is down: when it is started again.
    pub(crate) start_us: u64,
    pub(crate) slow_until_us: u64,
    pub(crate) armed: Armed,
    /// There is no room on its disk, now.
    pub(crate) no_room: bool,
    /// Its disk cannot be read.
    pub(crate) no_reads: bool,
    /// Its disk was damaged or wiped while it was down.
    pub(crate) damaged: Option<&'static str>,
    /// It ever was: a bad place may be found long after.
    pub(crate) was_damaged: bool,
    /// A copy of the disk from before it was damaged, of a node without peers.
    pub(crate) backup: Option<Memory>,
    /// It is not started any more.
    pub(crate) retired: bool,
    /// It leaves in order, until its own clock shows this at the latest.
    pub(crate) drains_until_us: Option<u64>,
    /// What may have work, by bits of acts; nothing: it sleeps, until `wake_us` at the latest.
    pub(crate) hot: u16,
    pub(crate) wake_us: u64,
    /// An act whose thread does not get the processor, and until when.
    pub(crate) stalled: Option<(u16, u64)>,
    /// Turns without any work since something was done, although the stages said that there is some.
    pub(crate) spins: u32,
    /// As it was seen last: role and term.
    pub(crate) seen: (Role, u64),
    /// A new leader, whose log is still to be looked at: term, its first index, and how far was committed.
    pub(crate) owes: Option<(u64, u64, u64)>,
    /// The log of the directory that was wiped or damaged: what it had acknowledged was durable then.
    pub(crate) had: Option<(Model, u64)>,
    /// A bit for each peer whose directory it knows, durably.
    pub(crate) met: u64,
    /// Bad places that were put right in this life.
    pub(crate) mended: u64,
}

impl SimNode {
    pub(crate) fn runs(&self) -> bool {
        self.life.is_some() && self.paused_until_us.is_none()
    }

    /// How far its disk holds the log, whether it runs or not.
    pub(crate) fn durable(&self) -> u64 {
        match (&self.life, self.kept) {
            (Some(life), _) => life.durable(),
            (None, Some(kept)) => kept.durable,
            (None, None) => 0,
        }
    }

    /// What it is counted for in a commit: its log, and how far that is durable.
    pub(crate) fn copy(&self) -> Copy<'_> {
        Copy {
            model: &self.model,
            durable: self.durable(),
            had: self.had.as_ref().map(|(model, durable)| (model, *durable)),
        }
    }

    /// What the scheduler may poll.
    pub(crate) fn ready(&self) -> u16 {
        if self.runs() {
            self.hot & !self.stalled.map_or(0, |(act, _)| act)
        } else {
            0
        }
    }
}
