//! When the next fault comes, and when the last one is put right.

use crate::sim::plan::Plan;
use crate::sim::rng::Rng;

/// What is put right later.
#[derive(Clone, Debug)]
pub(super) enum Heal {
    /// Ways `(to, from)` that let nothing pass.
    Cuts(Vec<(usize, usize)>),
    Network,
    Room(usize),
    Reads(usize),
}

pub(crate) struct Troubles {
    pub(super) rng: Rng,
    pub(super) next_us: u64,
    /// When the time has come: after how many more polls it strikes.
    pub(super) in_polls: Option<u64>,
    pub(super) heals: Vec<(u64, Heal)>,
}

impl Troubles {
    pub(crate) fn new(mut rng: Rng, plan: &Plan) -> Self {
        let next_us = if plan.troubles.is_empty() {
            u64::MAX
        } else {
            rng.around(plan.trouble_every_us)
        };
        Self {
            rng,
            next_us,
            in_polls: None,
            heals: Vec::new(),
        }
    }

    /// When the next trouble begins or an old one ends.
    pub(crate) fn next_us(&self) -> u64 {
        let heal = self.heals.iter().map(|(at, _)| *at).min();
        self.next_us.min(heal.unwrap_or(u64::MAX))
    }

    /// Whether a trouble begins before the next poll. Counts the polls.
    pub(crate) fn strikes_now(&mut self) -> bool {
        match &mut self.in_polls {
            None => false,
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }
}
