//! What a polling thread does between two polls that found nothing.
//!
//! Waking a sleeping core costs tens of microseconds, so a thread that has just worked looks a
//! little longer before it sleeps; a thread that has nothing to do for longer than that sleeps and
//! costs nothing. One that is woken now and then, for a heartbeat, would look in vain each time: it
//! sleeps at once, until work comes in a rush again.

use std::hint;
use std::thread;
use std::time::{Duration, Instant};

/// Idle polls that only pause the processor for a moment, before the first system call.
const SPINS: u32 = 16;
/// A sleep of this length is a lull: what comes after it is no rush.
const LULL: Duration = Duration::from_millis(1);
/// So many shorter sleeps, one after the other, make a rush. A heartbeat and its answers make fewer.
const RUSH: u32 = 4;

/// What a thread does when it has no work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Polls without a pause: only for threads with a core of their own.
    Spin,
    /// Polls, and lets other threads run between polls.
    Yield,
    /// Yields for as long as `grace` after the last work, then sleeps until it is woken. Whose last
    /// few sleeps were not all shorter than a millisecond sleeps at once.
    Park {
        /// How long to yield before sleeping. Zero sleeps at once. A longer grace saves wake-ups
        /// (tens of microseconds each) and costs that much of a core after every burst.
        grace: Duration,
    },
}

impl Default for Idle {
    /// Sleeps after 50 µs without work, in a rush.
    fn default() -> Self {
        Self::Park {
            grace: Duration::from_micros(50),
        }
    }
}

/// What to do after a poll that found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Rest {
    /// Poll again: the pause has been made already.
    Again,
    /// Sleep, by [`Sleeper::park`](crate::Sleeper::park) or
    /// [`Sleeper::sleep`](crate::Sleeper::sleep), then poll.
    Sleep,
}

/// Counts a thread's idle polls, and decides between spinning, yielding and sleeping.
#[derive(Debug)]
pub struct Backoff {
    idle: Idle,
    /// Idle polls since the last work, up to [`SPINS`].
    spins: u32,
    /// When the first yield since the last work was.
    idle_since: Option<Instant>,
    /// Since when it sleeps.
    asleep_since: Option<Instant>,
    /// Sleeps since the last lull, up to [`RUSH`].
    short_sleeps: u32,
}

impl Backoff {
    /// One for each polling thread.
    pub fn new(idle: Idle) -> Self {
        Self {
            idle,
            spins: 0,
            idle_since: None,
            asleep_since: None,
            short_sleeps: 0,
        }
    }

    /// After a poll that found work: the grace begins anew when that work is over.
    #[inline]
    pub fn worked(&mut self) {
        self.spins = 0;
        self.idle_since = None;
        if let Some(since) = self.asleep_since.take() {
            self.woken_after(since.elapsed());
        }
    }

    fn woken_after(&mut self, slept: Duration) {
        self.short_sleeps = match slept < LULL {
            true => RUSH.min(self.short_sleeps + 1),
            false => 0,
        };
    }

    /// After a poll that found nothing: makes the pause that is due, or says that it is time to
    /// sleep. It goes on saying so until [`Backoff::worked`], so that who wakes up for a timer
    /// alone sleeps again at once.
    #[inline]
    pub fn rest(&mut self) -> Rest {
        let Idle::Park { grace } = self.idle else {
            match self.idle {
                Idle::Spin => hint::spin_loop(),
                _ => thread::yield_now(),
            }
            return Rest::Again;
        };
        if grace.is_zero() {
            return Rest::Sleep;
        }
        let rush = self.short_sleeps == RUSH;
        if rush && self.spins < SPINS {
            self.spins += 1;
            hint::spin_loop();
            return Rest::Again;
        }
        let now = Instant::now();
        if rush && self.rest_at(now, grace) == Rest::Again {
            thread::yield_now();
            return Rest::Again;
        }
        self.asleep_since.get_or_insert(now);
        Rest::Sleep
    }

    fn rest_at(&mut self, now: Instant, grace: Duration) -> Rest {
        let since = *self.idle_since.get_or_insert(now);
        if now.saturating_duration_since(since) < grace {
            Rest::Again
        } else {
            Rest::Sleep
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_may_not_sleep_never_does() {
        for idle in [Idle::Spin, Idle::Yield] {
            let mut backoff = Backoff::new(idle);
            assert!((0..1000).all(|_| backoff.rest() == Rest::Again), "{idle:?}");
        }
    }

    #[test]
    fn no_grace_sleeps_at_once() {
        let mut backoff = Backoff::new(Idle::Park {
            grace: Duration::ZERO,
        });
        assert_eq!(backoff.rest(), Rest::Sleep);
    }

    #[test]
    fn the_grace_is_counted_from_the_last_work() {
        let grace = Duration::from_micros(50);
        let mut backoff = Backoff::new(Idle::Park { grace });
        let start = Instant::now();
        let at = |us| start + Duration::from_micros(us);
        assert_eq!(backoff.rest_at(at(0), grace), Rest::Again);
        assert_eq!(backoff.rest_at(at(49), grace), Rest::Again);
        backoff.worked();
        assert_eq!(
            backoff.rest_at(at(60), grace),
            Rest::Again,
            "the grace begins anew"
        );
        assert_eq!(backoff.rest_at(at(109), grace), Rest::Again);
        assert_eq!(backoff.rest_at(at(110), grace), Rest::Sleep);
        assert_eq!(
            backoff.rest_at(at(111), grace),
            Rest::Sleep,
            "who wakes for nothing sleeps again at once"
        );
    }

    #[test]
    fn a_thread_that_is_woken_now_and_then_sleeps_at_once() {
        let mut backoff = Backoff::new(Idle::default());
        let sleeps_at_once = |backoff: &mut Backoff| {
            let rest = backoff.rest();
            backoff.asleep_since = None; // Its length is given below.
            backoff.worked();
            rest == Rest::Sleep
        };
        let (short, long) = (Duration::from_micros(900), LULL);
        // A heartbeat and two answers, again and again.
        for _ in 0..10 {
            for slept in [long, short, short] {
                backoff.woken_after(slept);
                assert!(sleeps_at_once(&mut backoff));
            }
        }
        for _ in 0..2 {
            assert!(sleeps_at_once(&mut backoff), "{backoff:?}");
            backoff.woken_after(short);
        }
        for _ in 0..10 {
            assert!(!sleeps_at_once(&mut backoff), "a rush: {backoff:?}");
            backoff.woken_after(short);
        }
        backoff.woken_after(long);
        assert!(sleeps_at_once(&mut backoff), "a lull ends it");
    }

    #[test]
    fn only_a_sleep_counts_as_one() {
        let mut backoff = Backoff::new(Idle::default());
        for _ in 0..100 {
            backoff.worked();
        }
        assert_eq!(backoff.short_sleeps, 0);
        assert_eq!(backoff.rest(), Rest::Sleep);
        let since = backoff.asleep_since;
        // A timer, and nothing to do.
        assert_eq!(backoff.rest(), Rest::Sleep);
        assert_eq!((backoff.asleep_since, since.is_some()), (since, true));
        backoff.worked();
        assert_eq!(backoff.asleep_since, None);
    }

    #[test]
    fn a_parking_thread_spins_first_in_a_rush_and_sleeps_in_the_end() {
        let mut backoff = Backoff::new(Idle::default());
        backoff.short_sleeps = RUSH;
        let mut polls = 1;
        while backoff.rest() == Rest::Again {
            polls += 1;
        }
        assert!(polls > SPINS, "slept after {polls} polls");
        assert_eq!(backoff.rest(), Rest::Sleep);
        backoff.asleep_since = None;
        backoff.worked();
        assert_eq!(backoff.rest(), Rest::Again);
    }
}
