//! Both rings against a queue: random sequences of what a writer and a reader can do, each answer
//! compared.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use proptest::prelude::*;

use crate::{Full, Gauge, ManySender, Receiver, Sender, Take, Waker, ring, ring_many};

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    /// The closure that fills the slot panics.
    SendAndPanic,
    Drain(usize),
    /// Take up to the limit, but say `Stop` to the slot at `stop_at`.
    DrainUntil {
        limit: usize,
        stop_at: usize,
    },
    /// Take up to the limit, but panic at the slot at `panic_at`.
    DrainAndPanic {
        limit: usize,
        panic_at: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let limit = || prop_oneof![4 => 0..8_usize, 1 => Just(usize::MAX), 1 => 0..100_usize];
    prop_oneof![
        4 => (0..40_usize).prop_map(Step::Send),
        1 => Just(Step::SendAndPanic),
        2 => limit().prop_map(Step::Drain),
        2 => (limit(), 0..10_usize).prop_map(|(limit, stop_at)| Step::DrainUntil { limit, stop_at }),
        1 => (limit(), 0..10_usize)
            .prop_map(|(limit, panic_at)| Step::DrainAndPanic { limit, panic_at }),
    ]
}

/// What the two kinds of writers have in common.
trait Writer {
    fn try_send(&mut self, fill: impl FnOnce(&mut u64)) -> Result<(), Full>;
    /// Whether a slot is used up by a panic in `fill`.
    const PANIC_USES_A_SLOT: bool;
    fn check_room(&mut self, room: usize);
}

impl Writer for Sender<u64> {
    const PANIC_USES_A_SLOT: bool = false;

    fn try_send(&mut self, fill: impl FnOnce(&mut u64)) -> Result<(), Full> {
        Self::try_send(self, fill)
    }

    fn check_room(&mut self, room: usize) {
        assert!(self.has_room(room) && !self.has_room(room + 1));
        assert_eq!(self.room(), room);
    }
}

impl Writer for ManySender<u64> {
    const PANIC_USES_A_SLOT: bool = true;

    fn try_send(&mut self, fill: impl FnOnce(&mut u64)) -> Result<(), Full> {
        Self::try_send(self, fill)
    }

    fn check_room(&mut self, _room: usize) {}
}

/// The ring as it should be: `None` is a slot the reader passes over.
struct Model {
    capacity: usize,
    slots: VecDeque<Option<u64>>,
    next: u64,
    sent: u64,
    full: u64,
}

impl Model {
    /// What a reader with that limit takes, and what stands in front afterwards.
    fn take(&mut self, limit: usize, last: impl Fn(usize) -> bool) -> Vec<u64> {
        let mut taken = Vec::new();
        while taken.len() < limit && !last(taken.len()) {
            match self.slots.pop_front() {
                None => break,
                Some(slot) => taken.extend(slot),
            }
        }
        // A slot to pass over is freed by a reader that looks at the one behind it.
        while taken.len() < limit && self.slots.front() == Some(&None) {
            self.slots.pop_front();
        }
        taken
    }

    fn check(&self, writer: &mut impl Writer, reader: &Receiver<u64>, gauge: &Gauge) {
        let depth = self.slots.len();
        assert_eq!(reader.is_empty(), depth == 0);
        assert_eq!(gauge.depth(), depth);
        assert_eq!(
            (gauge.sent(), gauge.received()),
            (self.sent, self.sent - depth as u64)
        );
        assert_eq!(gauge.full_count(), self.full);
        writer.check_room(self.capacity - depth);
    }
}

fn compare<W: Writer>(steps: &[Step], (mut writer, mut reader): (W, Receiver<u64>)) {
    let gauge = reader.gauge();
    let capacity = gauge.capacity();
    let mut model = Model {
        capacity,
        slots: VecDeque::new(),
        next: 0,
        sent: 0,
        full: 0,
    };
    for step in steps {
        match *step {
            Step::Send(count) => (0..count).for_each(|_| send(&mut model, &mut writer)),
            Step::SendAndPanic => send_and_panic(&mut model, &mut writer),
            Step::Drain(limit) => {
                let mut got = Vec::new();
                let count = reader.drain(limit, |value| got.push(*value));
                assert_eq!(count, got.len());
                assert_eq!(got, model.take(limit, |_| false));
            }
            Step::DrainUntil { limit, stop_at } => {
                let mut got = Vec::new();
                let count = reader.drain_while(limit, |value| {
                    if got.len() == stop_at {
                        return Take::Stop;
                    }
                    got.push(*value);
                    Take::Taken
                });
                assert_eq!(count, got.len());
                assert_eq!(got, model.take(limit, |taken| taken == stop_at));
            }
            Step::DrainAndPanic { limit, panic_at } => {
                let mut got = Vec::new();
                let panicked = catch_unwind(AssertUnwindSafe(|| {
                    reader.drain(limit, |value| {
                        got.push(*value);
                        if got.len() > panic_at {
                            // Without the message that `panic!` prints.
                            resume_unwind(Box::new(()));
                        }
                    })
                }))
                .is_err();
                let limit = if panicked { panic_at + 1 } else { limit };
                assert_eq!(panicked, got.len() > panic_at);
                assert_eq!(got, model.take(limit, |_| false));
            }
        }
        model.check(&mut writer, &reader, &gauge);
    }
}

fn send(model: &mut Model, writer: &mut impl Writer) {
    let value = model.next;
    let fits = model.slots.len() < model.capacity;
    assert_eq!(writer.try_send(|slot| *slot = value).is_ok(), fits);
    if fits {
        model.slots.push_back(Some(value));
        model.next += 1;
        model.sent += 1;
    } else {
        model.full += 1;
    }
}

fn send_and_panic<W: Writer>(model: &mut Model, writer: &mut W) {
    let sent = catch_unwind(AssertUnwindSafe(|| {
        writer.try_send(|slot| {
            *slot = u64::MAX;
            resume_unwind(Box::new(()))
        })
    }));
    let fits = model.slots.len() < model.capacity;
    assert_eq!(
        sent.is_err(),
        fits,
        "the closure is called when there is a slot for it"
    );
    if !fits {
        model.full += 1;
    } else if W::PANIC_USES_A_SLOT {
        model.slots.push_back(None);
        model.sent += 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_writer(steps in prop::collection::vec(step(), 1..60), log in 0..8_u32) {
        compare(&steps, ring("model", 1 << log, || 0, Waker::none()));
    }

    #[test]
    fn many_writers(steps in prop::collection::vec(step(), 1..60), log in 6..8_u32) {
        compare(&steps, ring_many("model", 1 << log, || 0, Waker::none()));
    }
}
