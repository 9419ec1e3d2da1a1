//! What a thread runs: its stages, as one.

use std::sync::Arc;
use std::time::Duration;

use ringbuf::Idle;
use storage::Disk;

use crate::config::{Config, IdleWay};
use crate::error::Fault;
use crate::flow::append::Append;
use crate::flow::apply::Apply;
use crate::flow::background::worker::BackgroundWorker;
use crate::flow::consensus::Consensus;
use crate::flow::network::Network;
use crate::flow::network::link::GroupLink;
use crate::flow::reply::ReplyStage;
use crate::flow::shared::{Shared, Stop};
use crate::flow::transfer::Transfer;
use crate::host::stages::Stages;
use crate::request::time_limits::Limits;

/// The stages over the product's file system and network.
pub(super) type DiskAppend = Append<Disk>;

pub(super) type DiskSaver = BackgroundWorker<Disk>;

pub(super) type DiskTransfer = Transfer<Disk>;

pub(super) type NetNetwork = Network<GroupLink>;

/// What a thread runs: its stages, as one.
pub(crate) trait Agent: Send + 'static {
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

pub(super) fn idle(config: &Config) -> Idle {
    match config.idle {
        IdleWay::Spin => Idle::Spin,
        IdleWay::Yield => Idle::Yield,
        IdleWay::Park { grace } => Idle::Park { grace },
    }
}

/// All stages on one thread, which sleeps in the network's poll.
pub(crate) struct SharedAgent {
    pub(super) shared: Arc<Shared>,
    pub(super) stages: Stages,
    pub(super) idle: Idle,
    /// The stage that runs.
    pub(super) at: &'static str,
}

impl SharedAgent {
    pub(crate) fn new(shared: Arc<Shared>, stages: Stages, config: &Config) -> Self {
        Self {
            shared,
            stages,
            idle: idle(config),
            at: "network",
        }
    }
}

impl Agent for SharedAgent {
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
pub(super) struct CoreAgent {
    pub(super) consensus: Consensus,
    pub(super) append: DiskAppend,
    pub(super) network: NetNetwork,
    /// The stage that runs.
    pub(super) at: &'static str,
}

impl Agent for CoreAgent {
    /// In the order of [`SharedAgent`].
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

impl Agent for Consensus {
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

impl Agent for DiskAppend {
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

impl Agent for NetNetwork {
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

impl Agent for Apply {
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

impl Agent for ReplyStage {
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

impl Agent for Limits {
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

impl Agent for DiskSaver {
    const RUNS_USER_CODE: bool = true;

    fn turn(&mut self, now_us: u64) -> Result<usize, Fault> {
        Ok(self.poll(now_us))
    }
    fn has_work(&mut self) -> bool {
        BackgroundWorker::has_work(self)
    }
    fn deadline_us(&self) -> u64 {
        BackgroundWorker::deadline_us(self)
    }
    fn drained(&mut self) -> bool {
        // A snapshot that is being written is given up. A machine that waits here is waited for by the apply stage.
        !BackgroundWorker::has_work(self)
    }
    fn close(&mut self) {}
    fn stage(&self) -> &'static str {
        "background"
    }
}

impl Agent for DiskTransfer {
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

/// In a thread of its own the append stage sleeps this long at the most while a flush runs whose end nobody announces.
pub(super) const FLUSH_LOOK: Duration = Duration::from_micros(20);

/// The longest sleep of a thread that has nothing to do in an idle node.
pub(super) const LONGEST_IDLE_SLEEP: Duration = Duration::from_secs(10);
