//! Which thread runs which stage, how it idles, and how it ends.
//!
//! A thread polls its stages as long as one has work, then idles as configured, and sleeps only after it has announced
//! that and has looked again (`ringbuf::Sleeper`). The stages know nothing of it.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ringbuf::{Backoff, Idle, Rest, Sleeper};
use storage::Disk;

use crate::flow::append::Append;
use crate::flow::apply::Apply;
use crate::flow::clock::micros;
use crate::flow::consensus::Consensus;
use crate::flow::current::Current;
use crate::flow::graph::{AsideSleepers, Sleepers};
use crate::flow::guard;
use crate::flow::limits::Limits;
use crate::flow::link::GroupLink;
use crate::flow::replicate::Network;
use crate::flow::reply::ReplyStage;
use crate::flow::saver::Saver;
use crate::flow::shared::{Shared, Stop};
use crate::flow::stages::{Aside, Stages};
use crate::flow::transfer::Transfer;
use crate::{Config, Fault, IdleWay, ShutdownError, StartError, Threads};

/// The longest sleep of a thread that has nothing to do in an idle node.
const LONGEST_IDLE_SLEEP: Duration = Duration::from_secs(10);
/// In a thread of its own the append stage sleeps this long at the most while a flush runs whose end nobody announces.
const FLUSH_LOOK: Duration = Duration::from_micros(20);

/// The stages over the product's file system and network.
type DiskAppend = Append<Disk>;
type DiskSaver = Saver<Disk>;
type DiskTransfer = Transfer<Disk>;
type NetNetwork = Network<GroupLink>;

/// What a thread runs: its stages, as one.
pub(crate) trait Plan: Send + 'static {
    /// Whether wakers, callbacks and notifications may run on its thread.
    const RUNS_USER_CODE: bool = false;
    /// The longest sleep: a thread looks round now and then, should all else fail.
    const LONGEST_SLEEP: Duration = Duration::from_secs(1);

    /// One turn. Returns how much was done.
    fn turn(&mut self, now_us: u64) -> Result<usize, Fault>;
    /// Whether another turn would find something.
    fn has_work(&mut self) -> bool;
    /// When there will be something to do even if nothing comes.
    fn deadline_us(&self) -> u64;
    /// Sleeps until it is woken, or for `timeout`.
    fn sleep(&mut self, timeout: Duration) -> Result<(), Fault> {
        std::thread::park_timeout(timeout);
        Ok(())
    }
    /// Whether everything that was taken is done, so that a draining node may end.
    fn drained(&mut self) -> bool;
    /// The end, in order. Never called after a panic.
    fn close(&mut self);
    /// Which stage runs, for a fault.
    fn stage(&self) -> &'static str;
}

/// Which stages share a thread: [`Threads`] without `Auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Shared,
    SeparateApply,
    PerStage,
}

impl Layout {
    pub(crate) fn of(threads: &Threads, cores: usize) -> Self {
        match threads {
            Threads::Shared => Self::Shared,
            Threads::SeparateApply => Self::SeparateApply,
            Threads::PerStage { .. } => Self::PerStage,
            Threads::Auto if cores >= 8 => Self::PerStage,
            Threads::Auto => Self::SeparateApply,
        }
    }
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

pub(crate) fn warn_of_foot_guns(config: &Config, layout: Layout) {
    let threads = match layout {
        Layout::Shared => 1,
        Layout::SeparateApply => 3,
        Layout::PerStage => 5,
    };
    if matches!(config.idle, IdleWay::Spin) && threads > cores() {
        tracing::warn!(
            node = config.id.0,
            "{threads} threads spin on {} cores: each waits for one that is not running; use IdleWay::Park",
            cores()
        );
    }
    if let Threads::PerStage { cores: pins } = &config.threads
        && let Some(core) = pins.iter().find(|core| **core >= cores())
    {
        tracing::warn!(
            node = config.id.0,
            "there is no core {core} to pin a thread to: it floats"
        );
    }
}

fn idle(config: &Config) -> Idle {
    match config.idle {
        IdleWay::Spin => Idle::Spin,
        IdleWay::Yield => Idle::Yield,
        IdleWay::Park { grace } => Idle::Park { grace },
    }
}

/// All stages on one thread, which sleeps in the network's poll.
pub(crate) struct SharedPlan {
    shared: Arc<Shared>,
    stages: Stages,
    idle: Idle,
    /// The stage that runs.
    at: &'static str,
}

impl SharedPlan {
    pub(crate) fn new(shared: Arc<Shared>, stages: Stages, config: &Config) -> Self {
        Self {
            shared,
            stages,
            idle: idle(config),
            at: "network",
        }
    }
}

impl Plan for SharedPlan {
    const RUNS_USER_CODE: bool = true;

    /// In the order in which an entry passes, so that one turn carries it as far as it can go; what is sent leaves before
    /// the own flush begins.
    fn turn(&mut self, now_us: u64) -> Result<usize, Fault> {
        let Stages {
            consensus,
            append,
            network,
            apply,
            reply,
        } = &mut self.stages;
        let at = &mut self.at;
        *at = "network";
        let mut work = network.receive(Some(Duration::ZERO))?;
        *at = "append";
        work += append.finish(now_us)?;
        *at = "consensus";
        work += consensus.poll(now_us);
        *at = "append";
        work += append.write(now_us)?;
        *at = "apply";
        work += apply.poll(now_us)?;
        *at = "reply";
        work += reply.poll();
        *at = "network";
        work += network.send();
        *at = "append";
        work += append.flush(now_us)?;
        *at = "idle";
        Ok(work)
    }

    fn has_work(&mut self) -> bool {
        self.stages.has_work()
    }

    fn deadline_us(&self) -> u64 {
        self.stages.deadline_us()
    }

    fn sleep(&mut self, timeout: Duration) -> Result<(), Fault> {
        self.stages.network.receive(Some(timeout)).map(drop)
    }

    fn drained(&mut self) -> bool {
        self.stages.drained()
    }

    fn close(&mut self) {
        let settle = self.shared.stop() == Stop::Drain;
        self.at = "closing";
        if let Err(fault) = self.stages.close(settle) {
            self.shared.fail(fault);
        }
    }

    fn stage(&self) -> &'static str {
        self.at
    }
}

/// The stages that run no user code, on one thread, which sleeps in the network's poll.
struct CorePlan {
    consensus: Consensus,
    append: DiskAppend,
    network: NetNetwork,
    /// The stage that runs.
    at: &'static str,
}

impl Plan for CorePlan {
    /// In the order of [`SharedPlan`].
    fn turn(&mut self, now_us: u64) -> Result<usize, Fault> {
        let Self {
            consensus,
            append,
            network,
            at,
        } = self;
        *at = "network";
        let mut work = network.receive(Some(Duration::ZERO))?;
        *at = "append";
        work += append.finish(now_us)?;
        *at = "consensus";
        work += consensus.poll(now_us);
        *at = "append";
        work += append.write(now_us)?;
        *at = "network";
        work += network.send();
        *at = "append";
        work += append.flush(now_us)?;
        *at = "idle";
        Ok(work)
    }

    fn has_work(&mut self) -> bool {
        self.consensus.has_work() || self.append.has_work() || self.network.has_work()
    }

    fn deadline_us(&self) -> u64 {
        self.consensus.deadline_us().min(self.append.deadline_us())
    }

    fn sleep(&mut self, timeout: Duration) -> Result<(), Fault> {
        self.network.receive(Some(timeout)).map(drop)
    }

    fn drained(&mut self) -> bool {
        !self.has_work() && !self.append.flushing()
    }

    fn close(&mut self) {
        self.at = "closing";
        self.consensus.close();
        self.append.close_or_fail();
    }

    fn stage(&self) -> &'static str {
        self.at
    }
}

impl Plan for Consensus {
    fn turn(&mut self, now_us: u64) -> Result<usize, Fault> {
        Ok(self.poll(now_us))
    }
    fn has_work(&mut self) -> bool {
        Consensus::has_work(self)
    }
    fn deadline_us(&self) -> u64 {
        Consensus::deadline_us(self)
    }
    fn drained(&mut self) -> bool {
        !Consensus::has_work(self)
    }
    fn close(&mut self) {
        Consensus::close(self);
    }
    fn stage(&self) -> &'static str {
        "consensus"
    }
}

impl Plan for DiskAppend {
    fn turn(&mut self, now_us: u64) -> Result<usize, Fault> {
        Ok(self.finish(now_us)? + self.write(now_us)? + self.flush(now_us)?)
    }
    fn has_work(&mut self) -> bool {
        Append::has_work(self)
    }
    fn deadline_us(&self) -> u64 {
        Append::deadline_us(self)
    }
    /// While a flush runs, entries that come are written at once, so this does not block in the flush: it looks.
    fn sleep(&mut self, timeout: Duration) -> Result<(), Fault> {
        std::thread::park_timeout(if self.flushing() {
            timeout.min(FLUSH_LOOK)
        } else {
            timeout
        });
        Ok(())
    }
    fn drained(&mut self) -> bool {
        !Append::has_work(self) && !self.flushing()
    }
    fn close(&mut self) {
        self.close_or_fail();
    }
    fn stage(&self) -> &'static str {
        "append"
    }
}

impl Plan for NetNetwork {
    fn turn(&mut self, _: u64) -> Result<usize, Fault> {
        Ok(self.send() + self.receive(Some(Duration::ZERO))?)
    }
    fn has_work(&mut self) -> bool {
        NetNetwork::has_work(self)
    }
    fn deadline_us(&self) -> u64 {
        u64::MAX // The sockets' timers are its own poll's.
    }
    fn sleep(&mut self, timeout: Duration) -> Result<(), Fault> {
        self.receive(Some(timeout)).map(drop)
    }
    fn drained(&mut self) -> bool {
        !NetNetwork::has_work(self)
    }
    fn close(&mut self) {}
    fn stage(&self) -> &'static str {
        "network"
    }
}

impl Plan for Apply {
    const RUNS_USER_CODE: bool = true;
    const LONGEST_SLEEP: Duration = LONGEST_IDLE_SLEEP;

    fn turn(&mut self, now_us: u64) -> Result<usize, Fault> {
        self.poll(now_us)
    }
    fn has_work(&mut self) -> bool {
        Apply::has_work(self)
    }
    fn deadline_us(&self) -> u64 {
        Apply::deadline_us(self)
    }
    fn drained(&mut self) -> bool {
        self.caught_up() && !Apply::has_work(self)
    }
    fn close(&mut self) {
        Apply::close(self);
    }
    fn stage(&self) -> &'static str {
        "apply"
    }
}

impl Plan for ReplyStage {
    const RUNS_USER_CODE: bool = true;
    const LONGEST_SLEEP: Duration = LONGEST_IDLE_SLEEP;

    fn turn(&mut self, _: u64) -> Result<usize, Fault> {
        Ok(self.poll())
    }
    fn has_work(&mut self) -> bool {
        ReplyStage::has_work(self)
    }
    fn deadline_us(&self) -> u64 {
        u64::MAX
    }
    fn drained(&mut self) -> bool {
        !ReplyStage::has_work(self)
    }
    fn close(&mut self) {
        while self.poll() > 0 {}
    }
    fn stage(&self) -> &'static str {
        "reply"
    }
}

impl Plan for Limits {
    const LONGEST_SLEEP: Duration = LONGEST_IDLE_SLEEP;

    fn turn(&mut self, now_us: u64) -> Result<usize, Fault> {
        Ok(self.poll(now_us))
    }
    fn has_work(&mut self) -> bool {
        Limits::has_work(self)
    }
    fn deadline_us(&self) -> u64 {
        Limits::deadline_us(self)
    }
    fn drained(&mut self) -> bool {
        true // And every request has its answer.
    }
    fn close(&mut self) {}
    fn stage(&self) -> &'static str {
        "limits"
    }
}

impl Plan for DiskSaver {
    const RUNS_USER_CODE: bool = true;

    fn turn(&mut self, now_us: u64) -> Result<usize, Fault> {
        Ok(self.poll(now_us))
    }
    fn has_work(&mut self) -> bool {
        Saver::has_work(self)
    }
    fn deadline_us(&self) -> u64 {
        Saver::deadline_us(self)
    }
    fn drained(&mut self) -> bool {
        // A snapshot that is being written is given up. A machine that waits here is waited for by the apply stage.
        !Saver::has_work(self)
    }
    fn close(&mut self) {}
    fn stage(&self) -> &'static str {
        "saver"
    }
}

impl Plan for DiskTransfer {
    fn turn(&mut self, now_us: u64) -> Result<usize, Fault> {
        Ok(self.poll(now_us))
    }
    fn has_work(&mut self) -> bool {
        Transfer::has_work(self)
    }
    fn deadline_us(&self) -> u64 {
        Transfer::deadline_us(self)
    }
    fn drained(&mut self) -> bool {
        true
    }
    fn close(&mut self) {}
    fn stage(&self) -> &'static str {
        "transfer"
    }
}

/// One thread: a plan, how it idles, and the way out.
struct Runner<P: Plan> {
    plan: P,
    shared: Arc<Shared>,
    sleeper: Sleeper,
    backoff: Backoff,
    /// Its name among the threads of the node that have not ended.
    name: &'static str,
    /// It answers no request.
    is_aside: bool,
    /// When draining gives up.
    drain_until_us: Option<u64>,
    drain_limit_us: u64,
}

impl<P: Plan> Runner<P> {
    fn run(mut self) {
        self.guarded(|runner| {
            while runner.step() {}
            runner.plan.close();
        });
        self.leave();
    }

    /// Runs something of the plan. After a panic the node has failed, and the plan is to be left as it is.
    fn guarded<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let _entered = self.current().enter();
        match catch_unwind(AssertUnwindSafe(|| run(self))) {
            Ok(done) => Some(done),
            Err(panic) => {
                self.shared.fail(guard::fault(self.plan.stage(), &*panic));
                None
            }
        }
    }

    /// Lets go of what the stages hold, and then of those who wait for the last of them.
    fn leave(self) {
        let _entered = self.current().enter();
        let Self {
            plan,
            shared,
            name,
            is_aside,
            ..
        } = self;
        // The state machine goes with it, whose end is code of the embedder.
        guard::contain("dropping a stage", || drop(plan));
        shared.leave(name, is_aside);
    }

    fn current(&self) -> Current {
        Current::of(Arc::as_ptr(&self.shared.table), P::RUNS_USER_CODE)
    }

    /// One turn, and the idling after it. False when the thread should end.
    fn step(&mut self) -> bool {
        let now_us = self.shared.clock.now_us();
        match self.plan.turn(now_us) {
            Err(fault) => {
                self.shared.fail(fault);
                return false;
            }
            Ok(0) => {}
            Ok(_) => {
                self.backoff.worked();
                return self.goes_on(now_us, true);
            }
        }
        if !self.goes_on(now_us, false) {
            return false;
        }
        match self.backoff.rest() {
            Rest::Again => true,
            Rest::Sleep => self.rest(P::LONGEST_SLEEP),
        }
    }

    /// A node that is to end does so as soon as everything is done, or the time for that is over.
    fn goes_on(&mut self, now_us: u64, has_worked: bool) -> bool {
        match self.shared.stop() {
            Stop::No => true,
            Stop::Now => false,
            Stop::Drain => {
                let until = *self
                    .drain_until_us
                    .get_or_insert(now_us.saturating_add(self.drain_limit_us));
                let mut is_done = || self.plan.drained() && self.shared.table.all_answered();
                now_us < until && (has_worked || !is_done())
            }
        }
    }

    fn rest(&mut self, longest: Duration) -> bool {
        let now_us = self.shared.clock.now_us();
        let mut until = self.plan.deadline_us();
        if let Some(drain_until) = self.drain_until_us {
            until = until.min(drain_until).min(now_us + 1000);
        }
        let timeout = Duration::from_micros(until.saturating_sub(now_us)).min(longest);
        if timeout.is_zero() {
            return true;
        }
        self.sleep(timeout)
    }

    /// Sleeps until there is something to do, or for `timeout`. False when the sleep itself failed, and with it the node.
    fn sleep(&mut self, timeout: Duration) -> bool {
        let shared = &self.shared;
        let (plan, before) = (RefCell::new(&mut self.plan), shared.stop());
        let mut slept = Ok(());
        self.sleeper.sleep(
            || plan.borrow_mut().has_work() || shared.stop() != before,
            || slept = plan.borrow_mut().sleep(timeout),
        );
        if let Err(fault) = slept {
            shared.fail(fault);
            return false;
        }
        true
    }
}

pub(crate) fn spawn(
    shared: Arc<Shared>,
    stages: Stages,
    aside: Aside,
    sleepers: Sleepers,
    config: &Config,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let Some(user) = sleepers.user else {
        let starter = Starter::new(shared.clone(), config);
        let mut threads = starter.start_aside(aside, sleepers.aside)?;
        let plan = SharedPlan::new(shared, stages, config);
        threads.push(starter.start("node", 0, plan, sleepers.network)?);
        return Ok(threads);
    };
    let Stages {
        consensus,
        append,
        network,
        apply,
        reply,
    } = stages;
    let starter = Starter::new(shared, config);
    let mut threads = starter.start_aside(aside, sleepers.aside)?;
    if let Some(core) = sleepers.core {
        threads.push(starter.start("consensus", 0, consensus, core.consensus)?);
        threads.push(starter.start("append", 1, append, core.append)?);
        threads.push(starter.start("network", 2, network, sleepers.network)?);
    } else {
        let plan = CorePlan {
            consensus,
            append,
            network,
            at: "network",
        };
        threads.push(starter.start("node", 0, plan, sleepers.network)?);
    }
    threads.push(starter.start("apply", 3, apply, user.apply)?);
    threads.push(starter.start("reply", 4, reply, user.reply)?);
    Ok(threads)
}

/// Starts the threads that a node has even when its stages are driven by the embedder.
pub(crate) fn spawn_aside(
    shared: Arc<Shared>,
    aside: Aside,
    sleepers: AsideSleepers,
    config: &Config,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    Starter::new(shared, config).start_aside(aside, sleepers)
}

/// What a thread gets of the cores.
enum Share {
    Full,
    Pinned(usize),
    /// No entry passes through it.
    Aside,
    /// Likewise, and nobody's answer waits for it.
    AtLeisure,
}

struct Starter<'a> {
    shared: Arc<Shared>,
    config: &'a Config,
}

/// So long as threads are being started, none of them is the last.
const STARTING: &str = "starting";

impl<'a> Starter<'a> {
    fn new(shared: Arc<Shared>, config: &'a Config) -> Self {
        shared.ending.enter(STARTING, false);
        Self { shared, config }
    }

    fn start(
        &self,
        name: &'static str,
        at: usize,
        plan: impl Plan,
        sleeper: Sleeper,
    ) -> Result<JoinHandle<()>, StartError> {
        let share = match &self.config.threads {
            Threads::PerStage { cores } if !cores.is_empty() => {
                Share::Pinned(cores[at % cores.len()])
            }
            _ => Share::Full,
        };
        self.run(name, share, idle(self.config), plan, sleeper)
    }

    /// These are not on an entry's way: they are not pinned, and sleep when there is nothing to do. Those that wait for disks
    /// let the others go first.
    fn start_aside(
        &self,
        aside: Aside,
        sleepers: AsideSleepers,
    ) -> Result<Vec<JoinHandle<()>>, StartError> {
        let Aside {
            limits,
            saver,
            transfer,
        } = aside;
        let idle = Idle::Park {
            grace: Duration::ZERO,
        };
        Ok(vec![
            self.run("limits", Share::Aside, idle, limits, sleepers.limits)?,
            self.run("saver", Share::AtLeisure, idle, saver, sleepers.saver)?,
            self.run(
                "transfer",
                Share::AtLeisure,
                idle,
                transfer,
                sleepers.transfer,
            )?,
        ])
    }

    fn run(
        &self,
        name: &'static str,
        share: Share,
        idle: Idle,
        plan: impl Plan,
        sleeper: Sleeper,
    ) -> Result<JoinHandle<()>, StartError> {
        let is_aside = matches!(share, Share::Aside | Share::AtLeisure);
        self.shared.ending.enter(name, is_aside);
        let runner = Runner {
            plan,
            shared: self.shared.clone(),
            sleeper,
            backoff: Backoff::new(idle),
            name,
            is_aside,
            drain_until_us: None,
            drain_limit_us: micros(self.config.proposal_timeout),
        };
        std::thread::Builder::new()
            .name(format!("rr{}-{name}", self.config.id))
            .spawn(move || {
                match share {
                    Share::Full | Share::Aside => {}
                    Share::Pinned(id) => {
                        if !core_affinity::set_for_current(core_affinity::CoreId { id }) {
                            guard::log(|| {
                                tracing::warn!(
                                    "a thread could not be pinned to core {id}: it floats"
                                );
                            });
                        }
                    }
                    Share::AtLeisure => storage::at_low_priority(),
                }
                runner.run();
            })
            .map_err(|source| {
                self.shared.request_stop(Stop::Now);
                self.shared.leave(name, is_aside);
                StartError::Io {
                    what: format!("starting the {name} thread"),
                    source,
                }
            })
    }
}

impl Drop for Starter<'_> {
    fn drop(&mut self) {
        self.shared.leave(STARTING, false);
    }
}

/// Runs a node on its embedder's own thread; see [`Node::start_driven`](crate::Node::start_driven).
///
/// A node that is asked to leave ([`Node::shutdown`](crate::Node::shutdown) from another thread,
/// [`Driver::shutdown`] from this one) does so while it is polled, as a node with threads does: it takes nothing new, finishes what
/// is under way as far as it can within `Config::proposal_timeout`, flushes, and answers the rest. So it is to be polled until
/// [`is_running`](Driver::is_running) is false. A driver that is dropped before finishes nothing: what was written is flushed, and
/// every request is answered.
pub struct Driver {
    runner: Option<Runner<SharedPlan>>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Driver, {}",
            if self.runner.is_some() {
                "running"
            } else {
                "ended"
            }
        )
    }
}

impl Driver {
    pub(crate) fn new(plan: SharedPlan, sleeper: Sleeper, config: &Config) -> Self {
        const NAME: &str = "driver";
        plan.shared.ending.enter(NAME, false);
        plan.shared.ending.made_driver();
        let (shared, idle) = (plan.shared.clone(), plan.idle);
        let runner = Runner {
            plan,
            shared,
            sleeper,
            backoff: Backoff::new(idle),
            name: NAME,
            is_aside: false,
            drain_until_us: None,
            drain_limit_us: micros(config.proposal_timeout),
        };
        Self {
            runner: Some(runner),
        }
    }

    /// One turn of all stages, without sleeping. Returns whether anything was done; false for ever once the node has
    /// ended.
    pub fn poll(&mut self) -> bool {
        let Some(runner) = &mut self.runner else {
            return false;
        };
        runner.shared.ending.drives();
        let turn = runner.guarded(|runner| {
            let now_us = runner.shared.clock.now_us();
            let work = match runner.plan.turn(now_us) {
                Ok(work) => work,
                Err(fault) => {
                    runner.shared.fail(fault);
                    0
                }
            };
            (work > 0, runner.goes_on(now_us, work > 0))
        });
        match turn {
            Some((worked, goes_on)) => {
                if !goes_on {
                    self.end();
                }
                worked
            }
            None => {
                self.leave();
                false
            }
        }
    }

    /// Sleeps until something comes that a [`poll`](Driver::poll) would take, or for `limit`.
    pub fn wait(&mut self, limit: Duration) {
        let Some(runner) = &mut self.runner else {
            return;
        };
        runner.shared.ending.drives();
        if runner.guarded(|runner| runner.rest(limit)).is_none() {
            self.leave();
        }
    }

    /// Whether the node still runs.
    pub fn is_running(&self) -> bool {
        self.runner.is_some()
    }

    /// Leaves in order, as [`Node::shutdown`](crate::Node::shutdown) does from other threads: drives the node to its end, and
    /// waits for the threads that write and send snapshots.
    ///
    /// # Errors
    /// [`ShutdownError`]: as there. User code that blocks on this very thread is waited for without a limit.
    pub fn shutdown(mut self) -> Result<(), ShutdownError> {
        let Some(runner) = &self.runner else {
            return Ok(());
        };
        let shared = runner.shared.clone();
        let limit = ShutdownError::limit(Duration::from_micros(runner.drain_limit_us));
        shared.request_stop(Stop::Drain);
        while self.is_running() {
            if !self.poll() {
                self.wait(LONGEST_IDLE_SLEEP);
            }
        }
        shared.wait_for_end(limit)
    }

    fn end(&mut self) {
        if let Some(runner) = &mut self.runner {
            runner.shared.request_stop(Stop::Drain);
            runner.guarded(|runner| runner.plan.close());
        }
        self.leave();
    }

    fn leave(&mut self) {
        if let Some(runner) = self.runner.take() {
            runner.shared.ending.driver_left();
            runner.leave();
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_code_shares_a_thread_with_consensus_only_where_that_was_asked_for() {
        for cores in [1, 2, 4, 7, 8, 64] {
            let layout = Layout::of(&Threads::Auto, cores);
            assert_ne!(layout, Layout::Shared, "{cores} cores");
            assert_eq!(Layout::of(&Threads::Shared, cores), Layout::Shared);
        }
    }
}
