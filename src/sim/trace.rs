//! What a run did, as one number and, where somebody wants to read it, as one line an event.

use std::collections::VecDeque;
use std::fmt;

use crate::sim::rng::mix;

/// Lines that are kept for a failure.
const TAIL: usize = 400;

/// Takes the lines as they come.
pub(crate) type Listener<'a> = &'a mut dyn FnMut(&str);

pub(crate) struct Trace<'a> {
    hash: u64,
    listener: Option<Listener<'a>>,
    /// The last lines; kept only where somebody listens.
    tail: VecDeque<String>,
}

impl<'a> Trace<'a> {
    pub(crate) fn new(listener: Option<Listener<'a>>) -> Self {
        Self {
            hash: 0,
            listener,
            tail: VecDeque::new(),
        }
    }

    /// Two runs of which any event differs have other numbers in the end.
    pub(crate) fn note(&mut self, what: u64) {
        self.hash = mix(self.hash ^ what);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Whether lines are worth making.
    pub(crate) fn listens(&self) -> bool {
        self.listener.is_some()
    }

    pub(crate) fn line(&mut self, now_us: u64, what: fmt::Arguments<'_>) {
        let Some(listener) = &mut self.listener else {
            return;
        };
        let line = format!(
            "{:>11}.{:06} {what}",
            now_us / 1_000_000,
            now_us % 1_000_000
        );
        listener(&line);
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    pub(crate) fn into_tail(self) -> Vec<String> {
        self.tail.into()
    }
}
