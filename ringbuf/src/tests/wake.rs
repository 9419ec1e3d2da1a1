//! When a reader is notified, and when it need not be.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::{Sleeper, Take, Waker, ring, ring_many};

fn sleeper_that_counts() -> (Sleeper, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let sleeper = Sleeper::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    (sleeper, count)
}

#[test]
fn a_reader_that_is_awake_is_not_notified() {
    let (sleeper, notified) = sleeper_that_counts();
    let (mut sender, mut receiver) = ring("wake", 4, || 0, sleeper.waker());
    for _ in 0..100 {
        sender.try_send(|slot| *slot += 1).unwrap();
        receiver.drain(4, |_| ());
    }
    assert_eq!(notified.load(Ordering::Relaxed), 0);
}

#[test]
fn a_burst_notifies_a_sleeper_once() {
    let (sleeper, notified) = sleeper_that_counts();
    let (mut one, receiver) = ring("one", 16, || 0, sleeper.waker());
    let (many, _others) = ring_many("many", 64, || 0, sleeper.waker());
    let slept = sleeper.sleep(
        || !receiver.is_empty(),
        || {
            for value in 0..10 {
                one.try_send(|slot| *slot = value).unwrap();
                many.try_send(|slot| *slot = value).unwrap();
            }
        },
    );
    assert!(slept);
    assert_eq!(notified.load(Ordering::Relaxed), 1);
    assert_eq!(sleeper.waker().notifications(), 1);
    one.try_send(|slot| *slot = 0).unwrap();
    assert_eq!(notified.load(Ordering::Relaxed), 1, "it is awake again");
}

#[test]
fn each_sleep_is_notified_anew() {
    let (sleeper, notified) = sleeper_that_counts();
    let (mut sender, mut receiver) = ring("wake", 4, || 0, sleeper.waker());
    for round in 1..=10 {
        assert!(sleeper.sleep(|| !receiver.is_empty(), || sender.try_send(|_| ()).unwrap()));
        assert_eq!(notified.load(Ordering::Relaxed), round);
        assert_eq!(receiver.drain(4, |_| ()), 1);
    }
}

#[test]
fn a_writer_of_many_notifies_too_even_one_that_panics() {
    let (sleeper, notified) = sleeper_that_counts();
    let (sender, receiver) = ring_many("wake", 64, || 0, sleeper.waker());
    assert!(sleeper.sleep(|| !receiver.is_empty(), || sender.try_send(|_| ()).unwrap()));
    assert_eq!(notified.load(Ordering::Relaxed), 1);
    let sleep = || {
        let panics = || sender.try_send(|_| resume_unwind(Box::new(())));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    };
    assert!(sleeper.sleep(|| false, sleep));
    assert_eq!(
        notified.load(Ordering::Relaxed),
        2,
        "its slot has to be passed over"
    );
}

#[test]
fn what_came_before_the_last_look_keeps_the_reader_awake() {
    let sleeper = Sleeper::parking();
    let (mut sender, receiver) = ring("wake", 4, || 0, sleeper.waker());
    sender.try_send(|_| ()).unwrap();
    assert!(!sleeper.sleep(|| !receiver.is_empty(), || unreachable!("there is work")));
    assert_eq!(sleeper.waker().notifications(), 0);
}

#[test]
fn what_comes_after_the_last_look_ends_the_sleep_at_once() {
    let sleeper = Sleeper::parking();
    let (mut sender, receiver) = ring("wake", 4, || 0, sleeper.waker());
    // The send falls between the look and the park; without its notification this would sleep for
    // ever.
    let slept = sleeper.park(
        || {
            let had_work = !receiver.is_empty();
            sender.try_send(|_| ()).unwrap();
            had_work
        },
        None,
    );
    assert!(slept);
    assert_eq!(sleeper.waker().notifications(), 1);
}

#[test]
fn a_park_ends_with_its_timeout() {
    assert!(Sleeper::parking().park(|| false, Some(Duration::from_millis(1))));
}

#[test]
fn a_writer_without_room_is_woken_when_slots_are_released() {
    let (writing, notified) = sleeper_that_counts();
    let (mut sender, mut receiver) = ring("wake", 4, || 0, Waker::none());
    receiver.wake_on_release(writing.waker());
    while sender.try_send(|_| ()).is_ok() {}
    assert_eq!(sender.room(), 0);
    let nothing_released = Cell::new(false);
    writing.sleep(
        || sender.has_room(1),
        || {
            receiver.drain_while(4, |_| Take::Stop);
            nothing_released.set(notified.load(Ordering::Relaxed) == 0);
            assert_eq!(receiver.drain(3, |_| ()), 3);
        },
    );
    assert!(
        nothing_released.get(),
        "a batch that released nothing wakes nobody"
    );
    assert_eq!(notified.load(Ordering::Relaxed), 1);
    assert_eq!(sender.room(), 3);
}

#[test]
fn a_waker_of_nobody_can_be_woken() {
    let waker = Waker::none();
    waker.wake();
    assert_eq!(waker.notifications(), 0);
}

#[test]
#[should_panic(expected = "can park")]
fn a_sleeper_that_nobody_unparks_does_not_park() {
    Sleeper::new(|| ()).park(|| false, None);
}

#[test]
fn a_parking_sleeper_stays_on_its_thread() {
    let sleeper = Sleeper::parking();
    // Made here and moved there: fine. Then here again: nobody would unpark it.
    let sleeper = thread::spawn(move || {
        sleeper.park(|| true, None);
        sleeper
    });
    let sleeper = sleeper.join().unwrap();
    let here = catch_unwind(AssertUnwindSafe(|| sleeper.park(|| true, None)));
    assert!(here.is_err());
}

#[test]
fn an_announced_sleep_is_notified_once() {
    let (sleeper, notified) = sleeper_that_counts();
    let waker = sleeper.waker();
    waker.wake();
    assert_eq!(notified.load(Ordering::Relaxed), 0);
    for round in 1..3 {
        sleeper.announce();
        waker.wake();
        waker.wake();
        assert_eq!(notified.load(Ordering::Relaxed), round);
    }
}
