//! Which thread runs which stage, how it idles, and how it ends.
//!
//! A thread polls its stages as long as one has work, then idles as configured, and sleeps only after it has announced
//! that and has looked again (`ringbuf::Sleeper`). The stages know nothing of it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ringbuf::{Backoff, Idle, Sleeper};

use crate::clock::micros;
use crate::config::{Config, IdleWay, Threads};
use crate::error::StartError;
use crate::flow::guard;
use crate::flow::shared::{Shared, Stop};
use crate::host::agent::{Agent, CoreAgent, SharedAgent, idle};
use crate::host::layout::{Layout, cores};
use crate::host::runner::Runner;
use crate::host::sleepers::{AsideSleepers, Sleepers};
use crate::host::stages::{Aside, Stages};

pub(crate) fn warn_of_misconfiguration(config: &Config, layout: Layout) {
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
        let plan = SharedAgent::new(shared, stages, config);
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
        let plan = CoreAgent {
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
    LowPriority,
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
        plan: impl Agent,
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
            background,
            transfer,
        } = aside;
        let idle = Idle::Park {
            grace: Duration::ZERO,
        };
        Ok(vec![
            self.run("limits", Share::Aside, idle, limits, sleepers.limits)?,
            self.run(
                "background",
                Share::LowPriority,
                idle,
                background,
                sleepers.background,
            )?,
            self.run(
                "transfer",
                Share::LowPriority,
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
        plan: impl Agent,
        sleeper: Sleeper,
    ) -> Result<JoinHandle<()>, StartError> {
        let is_aside = matches!(share, Share::Aside | Share::LowPriority);
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
                    Share::LowPriority => storage::at_low_priority(),
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
