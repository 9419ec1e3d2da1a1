//! Which stages share a thread.

use crate::config::Threads;

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
