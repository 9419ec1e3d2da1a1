//! A stage that has work is awake: whoever gives it something wakes it.
//!
//! The stages of a simulated node have no threads, so nothing sleeps, and a wake-up that is missing costs nothing: every
//! stage is polled in the end. On a machine its thread sleeps until something else wakes it, which on an idle node is for
//! ever. So each stage announces its sleep as its thread would, whenever it says that it has no work, and is looked at
//! until somebody wakes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringbuf::{Sleeper, Waker};
use storage::Memory;

use crate::host::sleepers::Wakers;
use crate::host::stages::{Aside, Stages};
use crate::sim::invariants::{Verdict, broken};
use crate::sim::node::act::Act;
use crate::sim::node::link::SimLink;

/// What has a thread of its own when every stage has one.
const STAGES: [&str; 8] = [
    "consensus",
    "append",
    "network",
    "apply",
    "reply",
    "limits",
    "background",
    "transfer",
];

fn stage_of(act: Act) -> usize {
    match act {
        Act::Consensus => 0,
        Act::Write | Act::Flush | Act::Finish => 1,
        Act::Receive | Act::Send => 2,
        Act::Apply => 3,
        Act::Reply => 4,
        Act::Limits => 5,
        Act::Save => 6,
        Act::Transfer => 7,
    }
}

struct Bell {
    sleeper: Sleeper,
    rung: Arc<AtomicBool>,
    /// It said that it has no work when it was polled last.
    rests: bool,
}

pub(crate) struct Bells([Bell; STAGES.len()]);

impl Bells {
    pub(crate) fn new() -> Self {
        Self(STAGES.map(|_| {
            let rung = Arc::new(AtomicBool::new(false));
            let ring = rung.clone();
            Bell {
                sleeper: Sleeper::new(move || ring.store(true, Ordering::Relaxed)),
                rung,
                rests: false,
            }
        }))
    }

    pub(crate) fn wakers(&self) -> Wakers {
        let of = |stage: usize| -> Waker { self.0[stage].sleeper.waker() };
        Wakers {
            consensus: of(0),
            append: of(1),
            network: of(2),
            apply: of(3),
            reply: of(4),
            limits: of(5),
            background: of(6),
            transfer: of(7),
        }
    }

    /// Looks at all that rest, after a poll of `act` that did something; one that did nothing woke nobody and had to wake nobody.
    pub(crate) fn look(
        &mut self,
        number: u64,
        (act, work): (Act, usize),
        now_us: u64,
        stages: &mut Stages<Memory, SimLink>,
        aside: &mut Aside<Memory>,
    ) -> Verdict {
        let polled = stage_of(act);
        for (stage, bell) in self.0.iter_mut().enumerate() {
            if stage != polled && (work == 0 || !bell.rests || bell.rung.load(Ordering::Relaxed)) {
                continue;
            }
            let (has_work, due_us) = match stage {
                0 => (stages.consensus.has_work(), stages.consensus.deadline_us()),
                1 => (stages.append.has_entries(), stages.append.deadline_us()),
                2 => (stages.network.has_work(), u64::MAX),
                3 => (stages.apply.has_work(), stages.apply.deadline_us()),
                4 => (stages.reply.has_work(), u64::MAX),
                5 => (aside.limits.has_work(), aside.limits.deadline_us()),
                6 => (aside.background.has_work(), aside.background.deadline_us()),
                _ => (aside.transfer.has_work(), aside.transfer.deadline_us()),
            };
            if stage == polled {
                bell.rests = !has_work;
                bell.rung.store(false, Ordering::Relaxed);
                bell.sleeper.announce();
            } else if has_work && now_us < due_us {
                let stage = STAGES[stage];
                return broken(
                    "wakes",
                    format_args!(
                        "node {number}: {stage} sleeps, has work after a poll of {act:?}, and nobody has woken it"
                    ),
                );
            }
        }
        Ok(())
    }
}
