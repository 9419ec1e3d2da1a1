//! Clients that ask again as soon as they are answered: writers, readers, or both, all from one thread.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringraft::{Consistency, Node, Outbox, ProposeError};

use crate::cluster::until;
use crate::steady::Unpark;

/// Who asks, and what for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clients {
    pub(crate) writers: usize,
    pub(crate) payload: usize,
    pub(crate) readers: usize,
    pub(crate) how: Consistency,
    /// Readers ask once for each write that was answered, and not more often.
    pub(crate) as_often_as_writes: bool,
}

impl Clients {
    pub(crate) fn writers(writers: usize, payload: usize) -> Self {
        Self {
            writers,
            payload,
            readers: 0,
            how: Consistency::Stale,
            as_often_as_writes: false,
        }
    }

    pub(crate) fn readers(readers: usize, how: Consistency) -> Self {
        Self {
            writers: 0,
            payload: 0,
            readers,
            how,
            as_often_as_writes: false,
        }
    }
}

/// What one sort of request came to.
pub(crate) struct Done {
    pub(crate) count: u64,
    pub(crate) latency: Histogram<u64>,
    /// How often there was no room for one.
    pub(crate) busy: u64,
    /// Requests that ended without an answer.
    pub(crate) failed: u64,
}

impl Done {
    fn new() -> Self {
        let bounds = Histogram::new_with_bounds(1, 600_000_000_000, 3);
        Self {
            count: 0,
            latency: bounds.expect("sound bounds"),
            busy: 0,
            failed: 0,
        }
    }

    pub(crate) fn us(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// What a span of time brought.
pub(crate) struct Span {
    pub(crate) seconds: f64,
    pub(crate) writes: Done,
    pub(crate) reads: Done,
}

impl Span {
    pub(crate) fn writes_per_s(&self) -> f64 {
        self.writes.count as f64 / self.seconds
    }

    pub(crate) fn reads_per_s(&self) -> f64 {
        self.reads.count as f64 / self.seconds
    }
}

pub(crate) struct Driver {
    node: Node,
    outbox: Outbox,
    clients: Clients,
    command: Vec<u8>,
    /// When each tag was asked; those of writers come first.
    since: Vec<Instant>,
    free_writers: Vec<u64>,
    free_readers: Vec<u64>,
    /// Reads that may be asked, where they are as many as writes.
    due_reads: u64,
    writes: Done,
    reads: Done,
}

impl Driver {
    /// To be used from the thread that makes it.
    pub(crate) fn new(node: &Node, clients: Clients) -> Self {
        let unpark = Unpark(std::thread::current());
        let mut driver = Self {
            node: node.clone(),
            outbox: node.outbox(unpark).expect("an outbox is free"),
            command: Vec::new(),
            since: Vec::new(),
            free_writers: Vec::new(),
            free_readers: Vec::new(),
            due_reads: 0,
            clients,
            writes: Done::new(),
            reads: Done::new(),
        };
        driver.change(clients);
        driver
    }

    /// Other clients from now on: a node has outboxes for a few drivers only.
    pub(crate) fn change(&mut self, clients: Clients) {
        self.finish();
        let all = clients.writers + clients.readers;
        self.command = vec![0x5a; clients.payload];
        self.since = vec![Instant::now(); all];
        self.free_writers = (0..clients.writers as u64).collect();
        self.free_readers = (clients.writers as u64..all as u64).collect();
        self.due_reads = 0;
        self.clients = clients;
    }

    /// Goes on for so long, and says what that brought.
    pub(crate) fn run(&mut self, time: Duration) -> Span {
        (self.writes, self.reads) = (Done::new(), Done::new());
        let begin = Instant::now();
        while begin.elapsed() < time {
            self.ask();
            if self.drain() == 0 {
                let pause = Duration::from_millis(10);
                self.outbox.sleep(|| std::thread::park_timeout(pause));
            }
        }
        Span {
            seconds: begin.elapsed().as_secs_f64(),
            writes: std::mem::replace(&mut self.writes, Done::new()),
            reads: std::mem::replace(&mut self.reads, Done::new()),
        }
    }

    /// Goes on until each of these nodes has let go of a part of its log twice: from then on it uses segments again.
    pub(crate) fn until_steady(&mut self, nodes: Vec<&Node>) -> Result<(), String> {
        let firsts = || nodes.iter().map(|node| node.status().first);
        for _ in 0..2 {
            let before: Vec<u64> = firsts().collect();
            until("node that lets go of its log", || {
                self.run(Duration::from_millis(200));
                firsts().zip(&before).all(|(now, before)| now > *before)
            })?;
        }
        Ok(())
    }

    /// Warms up with such clients, measures, and waits for what is still under way.
    pub(crate) fn measure(&mut self, clients: Clients, time: Duration) -> Span {
        self.change(clients);
        self.run(Duration::from_millis(300));
        let span = self.run(time);
        self.finish();
        span
    }

    /// Waits for what is under way.
    pub(crate) fn finish(&mut self) {
        while self.free_writers.len() + self.free_readers.len() < self.since.len() {
            if self.drain() == 0 {
                let pause = Duration::from_millis(10);
                self.outbox.sleep(|| std::thread::park_timeout(pause));
            }
        }
    }

    fn ask(&mut self) {
        let now = Instant::now();
        let to = self.outbox.id();
        while let Some(tag) = self.free_writers.pop() {
            let asked = self.node.propose_to(to, tag, &self.command);
            self.since[tag as usize] = now;
            if let Err(error) = asked {
                self.free_writers.push(tag);
                self.writes.refused(&error);
                break;
            }
        }
        while !self.clients.as_often_as_writes || self.due_reads > 0 {
            let Some(tag) = self.free_readers.pop() else {
                break;
            };
            let asked = self.node.read_to(to, tag, b"", self.clients.how);
            self.since[tag as usize] = now;
            if let Err(error) = asked {
                self.free_readers.push(tag);
                self.reads.refused(&error);
                break;
            }
            self.due_reads = self.due_reads.saturating_sub(1);
        }
    }

    fn drain(&mut self) -> usize {
        let now = Instant::now();
        let Self {
            outbox,
            clients,
            since,
            free_writers,
            free_readers,
            due_reads,
            writes,
            reads,
            ..
        } = self;
        outbox.drain(usize::MAX, |tag, outcome, _| {
            let is_write = tag < clients.writers as u64;
            let (done, free) = if is_write {
                *due_reads += 1;
                (&mut *writes, &mut *free_writers)
            } else {
                (&mut *reads, &mut *free_readers)
            };
            free.push(tag);
            match outcome {
                Ok(_) => {
                    let took = now.saturating_duration_since(since[tag as usize]);
                    done.latency.saturating_record(took.as_nanos() as u64);
                    done.count += 1;
                }
                Err(_) => done.failed += 1,
            }
        })
    }
}

impl Done {
    fn refused(&mut self, error: &ProposeError) {
        match error {
            ProposeError::Busy => self.busy += 1,
            _ => self.failed += 1,
        }
    }
}
