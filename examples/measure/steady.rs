//! Proposals at a steady rate, and how long each took from the moment it was due: a load that waits while the cluster
//! stands still would not see the standstill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringraft::{Node, Notify, ProposeError};

/// Commands under way at the most; what is due beyond is late, and counts as that.
const SLOTS: usize = 8192;

pub(crate) struct Unpark(pub(crate) Thread);

impl Notify for Unpark {
    fn notify(&self) {
        self.0.unpark();
    }
}

pub(crate) struct Steady {
    phase: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What the load saw.
pub(crate) struct Seen {
    /// How long commands took that were due in each phase, in nanoseconds.
    pub(crate) phases: Vec<Histogram<u64>>,
    /// Commands that were not answered with a reply.
    pub(crate) lost: u64,
}

impl Seen {
    pub(crate) fn p99_ms(&self, phase: usize) -> f64 {
        self.ms(phase, 0.99)
    }

    pub(crate) fn ms(&self, phase: usize, quantile: f64) -> f64 {
        self.phases[phase].value_at_quantile(quantile) as f64 / 1e6
    }
}

impl Steady {
    /// Begins with phase 0.
    pub(crate) fn begin(node: &Node, per_second: u64, payload: usize, phases: usize) -> Self {
        let (phase, stop) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (node, its_phase, its_stop) = (node.clone(), phase.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            drive(&node, per_second, payload, phases, (&its_phase, &its_stop))
        });
        Self {
            phase,
            stop,
            thread,
        }
    }

    /// What is due from now on belongs to this phase.
    pub(crate) fn enter(&self, phase: usize) {
        self.phase.store(phase, Ordering::Relaxed);
    }

    pub(crate) fn end(self) -> Result<Seen, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| "the load panicked".to_owned())
    }
}

fn drive(
    node: &Node,
    per_second: u64,
    payload: usize,
    phases: usize,
    (phase, stop): (&AtomicUsize, &AtomicBool),
) -> Seen {
    let bounds = || Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("sound bounds");
    let mut seen = Seen {
        phases: (0..phases).map(|_| bounds()).collect(),
        lost: 0,
    };
    let thread = std::thread::current();
    let mut outbox = node.outbox(Unpark(thread)).expect("an outbox is free");
    let command = vec![0x5a; payload];
    let gap = Duration::from_nanos(1_000_000_000 / per_second);
    let mut due = Instant::now();
    let mut under_way = vec![(due, 0); SLOTS];
    let mut free: Vec<u64> = (0..SLOTS as u64).collect();
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        if stopping && free.len() == SLOTS {
            return seen;
        }
        while !stopping && due <= Instant::now() {
            let Some(tag) = free.pop() else { break };
            match node.propose_to(outbox.id(), tag, &command) {
                Ok(()) => {
                    under_way[tag as usize] = (due, phase.load(Ordering::Relaxed));
                    due += gap;
                }
                Err(ProposeError::Busy) => {
                    free.push(tag);
                    break;
                }
                Err(_) => {
                    free.push(tag);
                    seen.lost += 1;
                    due += gap;
                }
            }
        }
        let Seen { phases, lost } = &mut seen;
        let drained = outbox.drain(usize::MAX, |tag, outcome, _| {
            let (since, phase) = under_way[tag as usize];
            match outcome {
                Ok(_) => {
                    let took = since.elapsed().as_nanos() as u64;
                    phases[phase].saturating_record(took);
                }
                Err(_) => *lost += 1,
            }
            free.push(tag);
        });
        if drained == 0 {
            let pause = if stopping {
                Duration::from_millis(10)
            } else {
                due.saturating_duration_since(Instant::now())
                    .min(Duration::from_millis(10))
            };
            outbox.sleep(|| std::thread::park_timeout(pause));
        }
    }
}
