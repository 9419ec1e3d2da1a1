//! Falling asleep and waking up through every interleaving of up to so many preemptions, with the
//! product's own [`Sleeper`] and [`Waker`].
//!
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 cargo test -p ringraft-ringbuf --lib --release`
//!
//! The ring is a counter here, published with Release and looked at with Acquire as the rings are.
//! A lost wake-up is a reader that parks for ever, which loom reports as a deadlock: time does not
//! pass in a model. That it would be reported is shown by the protocol with a step left out, which
//! must fail.

use std::sync::Arc;

use loom::model;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicBool, AtomicUsize, fence};
use loom::thread;

use crate::{Sleeper, Waker};

/// What a writer publishes and the reader looks for. (Std's `Arc`, since loom's aborts the process
/// when it is dropped in the unwinding of a model that was found to be wrong, as some here must
/// be.)
#[derive(Clone)]
struct Published(Arc<AtomicUsize>);

impl Published {
    fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(0)))
    }

    /// As a ring with one writer does.
    fn set(&self, to: usize) {
        self.0.store(to, Release);
    }

    /// As a ring with many does.
    fn add(&self) {
        self.0.fetch_add(1, Release);
    }

    fn get(&self) -> usize {
        self.0.load(Acquire)
    }
}

/// Takes until `goal` is reached, and sleeps whenever there is nothing.
fn take_until(goal: usize, published: &Published, sleeper: &Sleeper) {
    let mut taken = 0;
    while taken < goal {
        let available = published.get();
        if available == taken {
            sleeper.park(|| published.get() > taken, None);
        }
        taken = available;
    }
}

fn write_as_one_of_many(published: &Published, waker: &Waker) -> thread::JoinHandle<()> {
    let (published, waker) = (published.clone(), waker.clone());
    thread::spawn(move || {
        published.add();
        waker.wake();
    })
}

/// Runs the reader beside its writers and waits for all. The reader has a thread of its own, which
/// ends without waiting for the writers: a late unpark may hit it anywhere, and in loom one that
/// hits a thread inside `join` is an error.
fn run_all(reader: impl FnOnce() + 'static, writers: Vec<thread::JoinHandle<()>>) {
    let reader = thread::spawn(reader);
    for writer in writers {
        writer.join().unwrap();
    }
    reader.join().unwrap();
}

#[test]
fn no_wake_up_is_lost_with_one_writer() {
    model(|| {
        let sleeper = Sleeper::parking();
        let waker = sleeper.waker();
        let published = Published::new();
        let writer = {
            let (published, waker) = (published.clone(), waker.clone());
            thread::spawn(move || {
                for to in 1..=2 {
                    published.set(to);
                    waker.wake();
                }
            })
        };
        run_all(move || take_until(2, &published, &sleeper), vec![writer]);
        assert!(
            waker.notifications() <= 2,
            "a slot needs one notification at most"
        );
    });
}

#[test]
fn no_wake_up_is_lost_with_two_writers() {
    model(|| {
        let sleeper = Sleeper::parking();
        let waker = sleeper.waker();
        let published = Published::new();
        let writers = [(); 2].map(|()| write_as_one_of_many(&published, &waker));
        run_all(move || take_until(2, &published, &sleeper), writers.into());
        assert!(
            waker.notifications() <= 2,
            "a slot needs one notification at most"
        );
    });
}

#[test]
fn one_sleeper_is_woken_for_each_of_two_rings() {
    model(|| {
        let sleeper = Sleeper::parking();
        let rings = [(); 2].map(|()| Published::new());
        let writers = [0, 1].map(|at: usize| write_as_one_of_many(&rings[at], &sleeper.waker()));
        let reader = move || {
            let available = || rings.iter().map(Published::get).sum::<usize>();
            let mut taken = 0;
            while taken < 2 {
                if available() == taken {
                    sleeper.park(|| available() > taken, None);
                }
                taken = available();
            }
        };
        run_all(reader, writers.into());
    });
}

/// A writer that waits for room, and a reader that waits for slots, each with a sleeper of its own.
#[test]
fn a_writer_without_room_and_a_reader_without_slots_wake_each_other() {
    model(|| {
        let (reader, writer) = (Sleeper::parking(), Sleeper::parking());
        let (sent, freed) = (Published::new(), Published::new());
        let wake_writer = writer.waker();
        let writing = {
            let (sent, freed, wake_reader) = (sent.clone(), freed.clone(), reader.waker());
            thread::spawn(move || {
                sent.set(1);
                wake_reader.wake();
                // The ring has one slot: the second send needs the first to be freed.
                while freed.get() == 0 {
                    writer.park(|| freed.get() > 0, None);
                }
                sent.set(2);
                wake_reader.wake();
            })
        };
        let reading = move || {
            take_until(1, &sent, &reader);
            freed.set(1);
            wake_writer.wake();
            while sent.get() < 2 {
                reader.park(|| sent.get() == 2, None);
            }
        };
        run_all(reading, vec![writing]);
    });
}

/// The protocol once more with steps that can be left out, and nothing else different.
#[derive(Clone, Copy)]
struct Steps {
    reader_fence: bool,
    writer_fence: bool,
    look_again: bool,
}

const ALL: Steps = Steps {
    reader_fence: true,
    writer_fence: true,
    look_again: true,
};

impl Steps {
    fn wake(self, asleep: &AtomicBool, sleeper: &thread::Thread) {
        if self.writer_fence {
            fence(SeqCst);
        }
        if asleep.load(Relaxed)
            && asleep
                .compare_exchange(true, false, Acquire, Relaxed)
                .is_ok()
        {
            sleeper.unpark();
        }
    }

    fn sleep(self, asleep: &AtomicBool, has_work: impl FnOnce() -> bool) {
        asleep.store(true, Release);
        if self.reader_fence {
            fence(SeqCst);
        }
        if !(self.look_again && has_work()) {
            thread::park();
        }
        asleep.store(false, Relaxed);
    }

    fn run(self) {
        model(move || {
            let asleep = Arc::new(AtomicBool::new(false));
            let published = Published::new();
            let reader = {
                let (asleep, published) = (Arc::clone(&asleep), published.clone());
                thread::spawn(move || {
                    while published.get() == 0 {
                        self.sleep(&asleep, || published.get() > 0);
                    }
                })
            };
            published.set(1);
            self.wake(&asleep, reader.thread());
            reader.join().unwrap();
        });
    }
}

#[test]
fn with_all_its_steps_it_holds() {
    ALL.run();
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_readers_fence_a_wake_up_is_lost() {
    Steps {
        reader_fence: false,
        ..ALL
    }
    .run();
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_writers_fence_a_wake_up_is_lost() {
    Steps {
        writer_fence: false,
        ..ALL
    }
    .run();
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_looking_again_a_wake_up_is_lost() {
    Steps {
        look_again: false,
        ..ALL
    }
    .run();
}
