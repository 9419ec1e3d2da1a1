//! The table of requests without a node: who is woken, and when.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};

use ringbuf::Receiver;

use crate::clock::Clock;
use crate::request::latency::Hops;
use crate::request::pending::Pending;
use crate::request::sinks::{Answered, Sinks};
use crate::request::table::{Table, WAITING_CALLER};
use crate::request::token::Reply;

const SLOTS: usize = 64;

fn table() -> (Arc<Table>, Receiver<Answered>) {
    let (sinks, replied) = Sinks::new(SLOTS, ringbuf::Waker::none());
    let hops = Arc::new(Hops::new(Clock::system()));
    (
        Arc::new(Table::new(
            SLOTS,
            64,
            0,
            sinks,
            hops,
            ringbuf::Waker::none(),
        )),
        replied,
    )
}

fn request(table: &Arc<Table>) -> Pending {
    let token = table
        .take(WAITING_CALLER, 0, 0, b"")
        .expect("a slot is free");
    Pending::new(table.clone(), token)
}

/// A waker that counts.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_callback_that_is_woken_early_waits_for_its_answer() {
    let (table, _replied) = table();
    let pending = request(&table);
    let token = pending.token;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hear = heard.clone();
    pending.then(move |answer| hear.lock().expect("no panic").push(answer));
    for _ in 0..3 {
        // As by whoever saw the answer to the slot's previous round, and wakes only now.
        table.slots[token.slot()].waker.wake();
        assert!(heard.lock().expect("no panic").is_empty());
    }
    table.complete(token, Ok(7), b"seven");
    for _ in 0..3 {
        table.deliver(token);
    }
    let heard = heard.lock().expect("no panic");
    let reply = Reply {
        index: 7,
        bytes: b"seven".to_vec(),
    };
    assert_eq!(*heard, [Ok(reply)], "once");
    assert_eq!(table.taken(), 0);
}

#[test]
fn wake_ups_from_many_threads_run_a_callback_once_and_behind_its_answer() {
    let (table, _replied) = table();
    for round in 0..2000 {
        let pending = request(&table);
        let token = pending.token;
        let (answered, called) = (Arc::new(AtomicBool::new(false)), Arc::new(Count::default()));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while called.0.load(Ordering::SeqCst) == 0 {
                        table.slots[token.slot()].waker.wake();
                        std::thread::yield_now();
                    }
                });
            }
            let (see, call) = (answered.clone(), called.clone());
            pending.then(move |answer| {
                assert!(see.load(Ordering::SeqCst) && answer.is_ok());
                call.wake();
            });
            answered.store(true, Ordering::SeqCst);
            table.complete(token, Ok(round), b"");
            table.deliver(token);
        });
        assert_eq!(called.0.load(Ordering::SeqCst), 1, "round {round}");
    }
    assert_eq!(table.taken(), 0);
}

#[test]
fn a_callback_that_has_run_leaves_nothing_in_its_slot() {
    let (table, _replied) = table();
    for is_early in [true, false] {
        let pending = request(&table);
        let token = pending.token;
        let kept = Arc::new(());
        let held = kept.clone();
        if is_early {
            table.complete(token, Ok(1), b"");
        }
        pending.then(move |_| drop(held));
        if !is_early {
            table.complete(token, Ok(1), b"");
            table.deliver(token);
        }
        assert_eq!(Arc::strong_count(&kept), 1);
        assert_eq!(Arc::strong_count(&table), 1, "no cycle keeps the table");
    }
}

#[test]
fn a_token_of_long_ago_reaches_no_later_request_of_its_slot() {
    let slots = ringbuf::MIN_MANY_CAPACITY;
    let table = |first_round| {
        let (sinks, _) = Sinks::new(slots, ringbuf::Sleeper::new(|| ()).waker());
        let hops = Arc::new(Hops::new(Clock::system()));
        Table::new(slots, 16, first_round, sinks, hops, ringbuf::Waker::none())
    };
    let take = |table: &Table| table.take(WAITING_CALLER, 0, 0, &[]).expect("a slot");
    // One life goes through its first rounds, the other begins 2^32 later.
    let old = take(&table(0));
    let table = table(u32::MAX);
    let mut seen = Vec::new();
    for _ in 0..2 * slots {
        let token = take(&table);
        assert!(!seen.contains(&token) && token != old, "{token:?}");
        table.complete(old, Ok(1), &[]);
        assert!(table.is_open(token), "answered by {old:?}");
        table.untake(token);
        seen.push(token);
    }
}

#[test]
fn a_request_that_has_its_answer_reaches_nobody_elses_slot() {
    let (table, _replied) = table();
    let nobody = Waker::from(Arc::new(Count::default()));
    // Each slot once, and all of their futures kept.
    let mut old: Vec<Pending> = (0..SLOTS)
        .map(|_| {
            let mut pending = request(&table);
            table.complete(pending.token, Ok(1), b"");
            let polled = Pin::new(&mut pending).poll(&mut Context::from_waker(&nobody));
            assert!(polled.is_ready());
            pending
        })
        .collect();
    let mut next = request(&table);
    let woken = Arc::new(Count::default());
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    assert!(Pin::new(&mut next).poll(&mut context).is_pending());
    for pending in &mut old {
        let again = catch_unwind(AssertUnwindSafe(|| {
            let _ = Pin::new(pending).poll(&mut Context::from_waker(&nobody));
        }));
        assert!(again.is_err(), "a used-up future says so");
    }
    drop(old);
    table.complete(next.token, Ok(2), b"");
    table.deliver(next.token);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert!(Pin::new(&mut next).poll(&mut context).is_ready());
}

#[test]
fn a_future_that_goes_takes_its_waker_along() {
    let (table, _replied) = table();
    for is_answered in [false, true] {
        let task = Arc::new(Count::default());
        let waker = Waker::from(task.clone());
        let mut pending = request(&table);
        let token = pending.token;
        assert!(
            Pin::new(&mut pending)
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        drop(waker);
        if is_answered {
            table.complete(token, Ok(1), b"");
        }
        drop(pending);
        assert_eq!(Arc::strong_count(&task), 1);
    }
}
