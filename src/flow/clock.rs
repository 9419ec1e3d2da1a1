//! What time it is: the machine's, or a simulator's.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The node's clocks. Stages do not read them: they are told the time.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    /// The machine's.
    System { start: Instant },
    /// A simulator's, which it moves.
    #[cfg(feature = "sim")]
    Simulated(crate::sim::clock::NodeClock),
}

impl Clock {
    pub(crate) fn system() -> Self {
        Self::System {
            start: Instant::now(),
        }
    }

    /// Microseconds since the node started; never goes back.
    pub(crate) fn now_us(&self) -> u64 {
        match self {
            Self::System { start } => {
                u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
            }
            #[cfg(feature = "sim")]
            Self::Simulated(clock) => clock.now_us(),
        }
    }

    /// Whether it goes by itself, so that somebody may sleep by it.
    pub(crate) fn is_real(&self) -> bool {
        matches!(self, Self::System { .. })
    }

    /// Microseconds since the Unix epoch, by the wall clock: it may jump.
    pub(crate) fn unix_us(&self) -> u64 {
        match self {
            Self::System { .. } => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| {
                    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
                }),
            #[cfg(feature = "sim")]
            Self::Simulated(clock) => clock.unix_us(),
        }
    }
}
