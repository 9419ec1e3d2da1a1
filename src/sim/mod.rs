//! Runs the stages of whole clusters in one thread from a seed.
//!
//! It is the product's own code that runs: the stages of [`Node`](crate::Node), on their rings, over their log; only
//! the threads, the clock, the network and the disk are the simulator's. The seed decides in which order stages are
//! polled, how large everything is, and what goes wrong and when. The same seed is the same run, byte for byte.
//!
//! While it runs, everything that Raft promises is looked at after each step; in the end all troubles stop, and the
//! cluster must come to rest within a bounded time.
//!
//! ```
//! use ringraft::sim;
//!
//! let report = sim::run(&sim::Options::new(42));
//! assert_eq!(report.failure, None);
//! // The same seed is the same run.
//! assert_eq!(sim::run(&sim::Options::new(42)).trace_hash, report.trace_hash);
//! println!("{} s simulated in {} polls", report.simulated.as_secs(), report.steps);
//! ```

mod clients;
mod counts;
mod coverage;
mod fault_schedule;
mod invariants;
pub mod linear;
mod machine;
mod network;
pub(crate) mod node;
mod plan;
mod rng;
#[cfg(test)]
mod tests;
mod trace;
mod world;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

pub use self::counts::Counts;
pub(crate) use self::invariants::Broken;

use self::trace::Listener;
use self::world::World;
use crate::flow::guard::text;

/// What to run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Ends the run after so many polls, without a look at whether the cluster comes to rest.
    pub steps: Option<u64>,
}

impl Options {
    /// A whole run from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, steps: None }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which check.
    pub check: String,
    /// What it saw.
    pub facts: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.facts)
    }
}

/// A run that is over.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Of which seed.
    pub seed: u64,
    /// Nodes of the cluster.
    pub nodes: usize,
    /// How long it was for the cluster.
    pub simulated: Duration,
    /// Polls of stages.
    pub steps: u64,
    /// Operations of the clients.
    pub operations: u64,
    /// A number of everything that happened: equal for equal runs.
    pub trace_hash: u64,
    /// Faults, rare paths and answers, by name.
    pub counts: Counts,
    /// What does not hold; `None` when everything does.
    pub failure: Option<Failure>,
    /// The last lines of the trace, for [`run_traced`].
    pub tail: Vec<String>,
}

/// Every name in [`Counts`] that a long run must have met at least once: all kinds of faults, and the rare paths.
pub fn expected() -> impl Iterator<Item = &'static str> {
    let faults = plan::TROUBLES.iter().map(|(_, name)| *name);
    faults.chain(coverage::MARKS)
}

/// Runs one seed.
pub fn run(options: &Options) -> Report {
    go(options, None)
}

/// As [`run`], and hands each event to `listener`, a line each, as it happens.
pub fn run_traced(options: &Options, listener: &mut dyn FnMut(&str)) -> Report {
    go(options, Some(listener))
}

fn go(options: &Options, listener: Option<Listener<'_>>) -> Report {
    let mut world = World::new(options.seed, listener);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run_whole(options.steps)));
    let failure = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(Broken { check, facts })) => Some(Failure {
            check: check.to_owned(),
            facts,
        }),
        Err(panic) => Some(Failure {
            check: "no panic".to_owned(),
            facts: text(&*panic).to_owned(),
        }),
    };
    if let Some(failure) = &failure {
        world::tell!(world, "FAILED {failure}");
    }
    let mut counts = std::mem::take(&mut world.counts);
    counts.merge(&world.fabric.state().counts);
    counts.merge(&world.clients.counts);
    let digest = world.ledger.book().digest();
    world.trace.note(digest);
    Report {
        seed: options.seed,
        nodes: world.plan.nodes,
        simulated: Duration::from_micros(world.now_us),
        steps: world.steps,
        operations: world.clients.begun(),
        trace_hash: world.trace.hash(),
        counts,
        failure,
        tail: world.trace.into_tail(),
    }
}

impl World<'_> {
    fn run_whole(&mut self, steps: Option<u64>) -> Result<(), Broken> {
        let until_us = self.plan.duration_us;
        world::tell!(self, "{:?}", self.plan);
        if self.run(until_us, steps.unwrap_or(u64::MAX))? && steps.is_none() {
            self.must_live(self.steps)?;
        }
        self.look_at_ledger()?;
        self.clients.look_back(&mut self.counts)
    }
}
