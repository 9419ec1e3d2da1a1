//! One thread of a node: it polls its agent, idles, and finds the way out.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use ringbuf::{Backoff, Rest, Sleeper};

use crate::flow::guard;
use crate::flow::shared::{Shared, Stop};
use crate::host::agent::Agent;
use crate::request::own_thread::Current;

/// One thread: a plan, how it idles, and the way out.
pub(super) struct Runner<P: Agent> {
    pub(super) plan: P,
    pub(super) shared: Arc<Shared>,
    pub(super) sleeper: Sleeper,
    pub(super) backoff: Backoff,
    /// Its name among the threads of the node that have not ended.
    pub(super) name: &'static str,
    /// It answers no request.
    pub(super) is_aside: bool,
    /// When draining gives up.
    pub(super) drain_until_us: Option<u64>,
    pub(super) drain_limit_us: u64,
}

impl<P: Agent> Runner<P> {
    pub(super) fn run(mut self) {
        self.guarded(|runner| {
            while runner.step() {}
            runner.plan.close();
        });
        self.leave();
    }

    /// Runs something of the plan. After a panic the node has failed, and the plan is to be left as it is.
    pub(super) fn guarded<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> Option<T> {
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
    pub(super) fn leave(self) {
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

    pub(super) fn current(&self) -> Current {
        Current::of(Arc::as_ptr(&self.shared.table), P::RUNS_USER_CODE)
    }

    /// One turn, and the idling after it. False when the thread should end.
    pub(super) fn step(&mut self) -> bool {
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
    pub(super) fn goes_on(&mut self, now_us: u64, has_worked: bool) -> bool {
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

    pub(super) fn rest(&mut self, longest: Duration) -> bool {
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
    pub(super) fn sleep(&mut self, timeout: Duration) -> bool {
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
