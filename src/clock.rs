//! What time it is: the machine's, or a simulator's.
//!
//! The machine's clock goes on while the machine is suspended, where the system has one that does: a leader that comes
//! back from that must find its lease over. (A virtual machine that is stopped and resumed from outside without being
//! told may see no time go by on any clock.)

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A time in microseconds, as everything in here reckons; one that is too long for that is for ever.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The end of a caller's time limit; `None`: so far away that no clock reaches it.
pub(crate) fn deadline(limit: Duration) -> Option<Instant> {
    Instant::now().checked_add(limit)
}

/// What is left until a [`deadline`].
pub(crate) fn time_left(deadline: Option<Instant>) -> Duration {
    deadline.map_or(Duration::MAX, |at| {
        at.saturating_duration_since(Instant::now())
    })
}

/// The node's clocks. Stages are told the time of their turn; what must know that of a request looks again.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    /// The machine's.
    System { start: Duration },
    /// A simulator's, which it moves.
    #[cfg(feature = "sim")]
    Simulated(crate::sim::node::clock::NodeClock),
}

impl Clock {
    pub(crate) fn system() -> Self {
        Self::System {
            start: since_boot(),
        }
    }

    /// Microseconds since the node started; never goes back.
    pub(crate) fn now_us(&self) -> u64 {
        match self {
            Self::System { start } => micros(since_boot().saturating_sub(*start)),
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
                .map_or(0, micros),
            #[cfg(feature = "sim")]
            Self::Simulated(clock) => clock.unix_us(),
        }
    }
}

/// Whether the clock goes on while the machine is suspended.
pub(crate) const COUNTS_SUSPENSION: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// Since some moment before this process started.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn since_boot() -> Duration {
    use std::sync::OnceLock;
    static FIRST_LOOK: OnceLock<Instant> = OnceLock::new();
    FIRST_LOOK.get_or_init(Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_clock_goes_on_and_never_back() {
        let clock = Clock::system();
        let (first, began) = (clock.now_us(), std::time::Instant::now());
        let mut last = first;
        while began.elapsed() < Duration::from_millis(2) {
            let now = clock.now_us();
            assert!(last <= now, "from {last} back to {now}");
            last = now;
        }
        // Looked at once more: the thread may have stood still after the last look.
        let last = clock.now_us();
        assert!(
            last >= first + 1_000,
            "it moved from {first} to {last} in 2 ms"
        );
    }
}
