//! A node whose stages the embedder polls.

use std::time::Duration;

use ringbuf::{Backoff, Sleeper};

use crate::clock::micros;
use crate::config::Config;
use crate::error::ShutdownError;
use crate::flow::shared::Stop;
use crate::host::agent::{Agent, LONGEST_IDLE_SLEEP, SharedAgent};
use crate::host::runner::Runner;

/// Runs a node on its embedder's own thread; see [`Node::start_driven`](crate::Node::start_driven).
///
/// A node that is asked to leave ([`Node::shutdown`](crate::Node::shutdown) from another thread,
/// [`Driver::shutdown`] from this one) does so while it is polled, as a node with threads does: it takes nothing new, finishes what
/// is under way as far as it can within `Config::proposal_timeout`, flushes, and answers the rest. So it is to be polled until
/// [`is_running`](Driver::is_running) is false. A driver that is dropped before finishes nothing: what was written is flushed, and
/// every request is answered.
pub struct Driver {
    runner: Option<Runner<SharedAgent>>,
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
    pub(crate) fn new(plan: SharedAgent, sleeper: Sleeper, config: &Config) -> Self {
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
