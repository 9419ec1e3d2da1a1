//! Rings of pre-allocated slots between threads, and how their readers sleep.
//!
//! ```text
//!   Sender ──────┐ try_send: fills a free slot or     ┌────────────┐   drain(limit): up to `limit` slots,
//!   ManySender ──┤ says Full; wakes a sleeping reader │ slot│slot│… │──────────────────▶ Receiver
//!   ManySender ──┘                                    └────────────┘   then frees them all at once
//! ```
//!
//! What holds:
//! - Slots are made once, by [`ring`] or [`ring_many`], and used again and again: sending and
//!   receiving allocate nothing and wait for nobody. The writer that finds no slot free is told
//!   [`Full`] at once.
//! - What one thread sends arrives in that order, every slot exactly once.
//! - A writer cannot keep a reference into a slot, nor a reader: both see it inside a closure only.
//! - A reader bounds what it takes ([`Receiver::drain`]) and may leave the rest ([`Take::Stop`]).
//! - A panic in a closure loses at most the slot it was about: the ring goes on
//!   ([`Sender::try_send`], [`ManySender::try_send`] and [`Receiver::drain`] say how).
//! - A wake-up is never lost: [`Sleeper`] announces, looks again, and only then sleeps.
//!
//! The slots and cursors are those of the `disruptor` crate, of which this is the one user: its
//! event poller and its `try_publish`, and nothing else of it. There is no unsafe code here.
//!
//! ```
//! use ringbuf::{Backoff, Idle, Rest, Sleeper};
//!
//! let sleeper = Sleeper::parking();
//! let (mut sender, mut receiver) = ringbuf::ring("numbers", 8, || 0_u64, sleeper.waker());
//! let reader = std::thread::spawn(move || {
//!     let mut backoff = Backoff::new(Idle::default());
//!     let (mut sum, mut count) = (0, 0);
//!     while count < 100 {
//!         let taken = receiver.drain(16, |number| sum += number);
//!         count += taken;
//!         if taken > 0 {
//!             backoff.worked();
//!         } else if backoff.rest() == Rest::Sleep {
//!             sleeper.park(|| !receiver.is_empty(), None);
//!         }
//!     }
//!     sum
//! });
//! for number in 1..=100 {
//!     while sender.try_send(|slot| *slot = number).is_err() {
//!         std::thread::yield_now();
//!     }
//! }
//! assert_eq!(reader.join().unwrap(), 5050);
//! ```

#![forbid(unsafe_code)]

mod backoff;
mod idle;
mod sync;

// Under loom only the wake-up protocol is compiled: the rings are made of std's atomics, which loom
// cannot follow.
#[cfg(not(all(loom, test)))]
mod gauge;
#[cfg(not(all(loom, test)))]
mod many;
#[cfg(not(all(loom, test)))]
mod receiver;
#[cfg(not(all(loom, test)))]
mod ring;

#[cfg(test)]
mod tests;

pub use backoff::{Backoff, Idle, Rest};
pub use idle::{Notify, Sleeper, Waker};

#[cfg(not(all(loom, test)))]
pub use self::{
    gauge::Gauge,
    many::{MIN_MANY_CAPACITY, ManySender, ring_many},
    receiver::{Receiver, Take},
    ring::{Full, Sender, ring},
};
