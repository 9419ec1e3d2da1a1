//! What is left of a ring after a closure has panicked.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::{ManySender, Take, Waker, ring, ring_many};

/// A panic without the message that `panic!` prints.
fn fail() {
    resume_unwind(Box::new("on purpose"));
}

fn send_and_fail(sender: &ManySender<u64>) {
    let panic = catch_unwind(AssertUnwindSafe(|| {
        sender.try_send(|slot| {
            *slot = 99;
            fail();
        })
    }))
    .expect_err("the panic comes through");
    assert_eq!(panic.downcast_ref(), Some(&"on purpose"));
}

#[test]
fn a_slot_whose_one_writer_panicked_is_filled_again() {
    let (mut sender, mut receiver) = ring("panics", 2, || 0, Waker::none());
    sender.try_send(|slot| *slot = 1).unwrap();
    let sent = catch_unwind(AssertUnwindSafe(|| {
        sender.try_send(|slot| {
            *slot = 99;
            fail();
        })
    }));
    assert!(sent.is_err());
    assert_eq!(sender.gauge().sent(), 1);
    sender.try_send(|slot| *slot = 2).unwrap();
    let mut got = Vec::new();
    receiver.drain(8, |value| got.push(*value));
    assert_eq!(got, [1, 2]);
}

#[test]
fn a_slot_whose_writer_of_many_panicked_is_passed_over() {
    let (sender, mut receiver) = ring_many("panics", 64, || 0, Waker::none());
    send_and_fail(&sender);
    sender.try_send(|slot| *slot = 1).unwrap();
    send_and_fail(&sender);
    sender.try_send(|slot| *slot = 2).unwrap();
    let mut got = Vec::new();
    assert_eq!(
        receiver.drain(2, |value| got.push(*value)),
        2,
        "the limit counts what is shown"
    );
    assert_eq!(got, [1, 2]);
    assert!(receiver.is_empty());
}

#[test]
fn a_reader_that_only_looks_sees_behind_what_it_passes_over() {
    let (sender, mut receiver) = ring_many("panics", 64, || 0, Waker::none());
    send_and_fail(&sender);
    send_and_fail(&sender);
    sender.try_send(|slot| *slot = 7).unwrap();
    for _ in 0..2 {
        let mut front = None;
        let taken = receiver.drain_while(1, |value| {
            front = Some(*value);
            Take::Stop
        });
        assert_eq!((taken, front), (0, Some(7)));
    }
    assert_eq!(receiver.gauge().depth(), 1);
}

#[test]
fn panics_do_not_use_up_the_ring_nor_its_handles() {
    let (sender, mut receiver) = ring_many("panics", 64, || 0, Waker::none());
    // More often than there are slots, and handles, by one thread and so on one handle first.
    for round in 0..500 {
        send_and_fail(&sender);
        sender.try_send(|slot| *slot = round).unwrap();
        let mut got = Vec::new();
        receiver.drain(8, |value| got.push(*value));
        assert_eq!(got, [round]);
    }
}

#[test]
fn a_slot_whose_reader_panicked_does_not_come_again_but_those_behind_it_do() {
    let (mut sender, mut receiver) = ring("panics", 4, || 0, Waker::none());
    for value in 1..=4 {
        sender.try_send(|slot| *slot = value).unwrap();
    }
    let drained = catch_unwind(AssertUnwindSafe(|| {
        receiver.drain(8, |value| {
            if *value == 2 {
                fail();
            }
        })
    }));
    assert!(drained.is_err());
    assert_eq!(sender.room(), 2);
    let mut got = Vec::new();
    receiver.drain(8, |value| got.push(*value));
    assert_eq!(got, [3, 4]);
}

#[test]
fn a_sender_used_while_its_thread_unwinds_still_sends() {
    struct SayGoodbye(ManySender<u64>);
    impl Drop for SayGoodbye {
        fn drop(&mut self) {
            self.0.try_send(|slot| *slot = 1).unwrap();
        }
    }
    let (sender, mut receiver) = ring_many("panics", 64, || 0, Waker::none());
    let goodbye = SayGoodbye(sender.clone());
    let failed = catch_unwind(AssertUnwindSafe(move || {
        let _goodbye = goodbye;
        fail();
    }));
    assert!(failed.is_err());
    sender.try_send(|slot| *slot = 2).unwrap();
    let mut got = Vec::new();
    receiver.drain(8, |value| got.push(*value));
    assert_eq!(got, [1, 2]);
}
