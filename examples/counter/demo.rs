//! The demonstration: three nodes in this process, over real sockets and real files, under load, with the leader killed in
//! the middle; and at the end an account of every increment.
//!
//! Each load thread has a session: an increment whose outcome it does not learn is sent again, to another node if need be, and
//! counts once all the same. So the account at the end is exact.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringraft::session::{self, Limits, Numbers, Request, Sequence, Session, Sessions};
use ringraft::{Config, Consistency, Member, Node, NodeId, Outbox, ProposeError, Role};

use crate::machine::{Answer, Command, Counters};

const KEY: &[u8] = b"demo";
const NODES: u32 = 3;
const ELECTION_TIMEOUT: Duration = Duration::from_millis(300);
/// Increments that each load thread keeps in flight; there is one thread a node.
const INFLIGHT: usize = 256;
/// A session's window is as long as what is in flight.
fn limits() -> Limits {
    Limits {
        window: INFLIGHT as u32,
        ..Limits::default()
    }
}
const LIMIT: Duration = Duration::from_secs(30);

type Failure = Box<dyn std::error::Error>;

/// What became of the increments.
#[derive(Debug, Default)]
struct Account {
    acknowledged: AtomicU64,
    /// Tries that had no known outcome, and those that were refused: both were sent again.
    unknown: AtomicU64,
    refused: AtomicU64,
    /// Answers that an increment must not get.
    wrong: Mutex<Vec<String>>,
    /// Microseconds since the start: when the leader was killed, and when the first increment begun after that was
    /// acknowledged.
    killed_us: AtomicU64,
    back_us: AtomicU64,
    stop: AtomicBool,
}

/// The nodes that run; a killed one is missing.
type Nodes = Arc<RwLock<Vec<Option<Node>>>>;

struct Cluster {
    dir: PathBuf,
    addrs: Vec<SocketAddr>,
    nodes: Nodes,
}

impl Cluster {
    fn start(dir: &Path) -> Result<Self, Failure> {
        let listeners: Vec<TcpListener> = (0..NODES)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<_, _>>()?;
        let addrs = listeners
            .iter()
            .map(TcpListener::local_addr)
            .collect::<Result<_, _>>()?;
        let cluster = Self {
            dir: dir.to_owned(),
            addrs,
            nodes: Nodes::default(),
        };
        let nodes: Vec<Option<Node>> = listeners
            .into_iter()
            .enumerate()
            .map(|(at, listener)| cluster.node(at, listener).map(Some))
            .collect::<Result<_, _>>()?;
        *write(&cluster.nodes) = nodes;
        Ok(cluster)
    }

    fn node(&self, at: usize, listener: TcpListener) -> Result<Node, Failure> {
        let member = |(at, addr): (usize, &SocketAddr)| Member {
            id: NodeId(at as u32 + 1),
            addr: addr.to_string(),
        };
        let members = self.addrs.iter().enumerate().map(member).collect();
        let id = NodeId(at as u32 + 1);
        let config = Config {
            election_timeout: ELECTION_TIMEOUT,
            segment_bytes: 16 << 20,
            ..Config::new(id, self.dir.join(format!("node-{id}")), members)
        };
        let machine = Sessions::new(Counters::default(), limits());
        Ok(Node::start_on(listener, config, machine)?)
    }

    fn leader(&self) -> Result<usize, Failure> {
        until("a leader", || {
            read(&self.nodes).iter().position(|node| {
                node.as_ref()
                    .is_some_and(|node| node.status().role == Role::Leader)
            })
        })
    }

    /// Stops the leader where it stands. Returns which it was.
    fn kill_leader(&self) -> Result<usize, Failure> {
        let at = self.leader()?;
        let node = write(&self.nodes)[at].take();
        if let Some(node) = node {
            node.shutdown_now();
        }
        Ok(at)
    }

    fn restart(&self, at: usize) -> Result<(), Failure> {
        let node = self.node(at, TcpListener::bind(self.addrs[at])?)?;
        write(&self.nodes)[at] = Some(node);
        Ok(())
    }
}

/// A line on standard output; the demonstration ends when nobody takes it.
macro_rules! say {
    ($($line:tt)*) => {
        writeln!(std::io::stdout(), $($line)*)
            .map_err(|error| format!("writing to standard output: {error}"))?
    };
}

/// Runs the demonstration; an error is what disagrees.
pub fn run(seconds: u64, data: Option<&Path>) -> Result<(), Failure> {
    let temporary = match data {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    say!("three nodes in {}, flushes on", temporary.path().display());
    let cluster = Cluster::start(temporary.path())?;
    let leader = cluster.leader()?;
    say!(
        "node {} leads; {} increments in flight for {seconds} s",
        leader + 1,
        INFLIGHT * NODES as usize
    );

    let account = Arc::new(Account::default());
    let latency = Arc::new(Mutex::new(Histogram::<u64>::new_with_bounds(
        1, 60_000_000, 3,
    )?));
    let start = Instant::now();
    let threads: Vec<_> = (0..NODES as usize)
        .map(|at| {
            let (nodes, account, latency) =
                (cluster.nodes.clone(), account.clone(), latency.clone());
            std::thread::spawn(move || Load::open(nodes, at, account, start)?.run(&latency))
        })
        .collect();

    let time = Duration::from_secs(seconds);
    let mut killed = None;
    let mut shown = 0;
    while start.elapsed() < time {
        std::thread::sleep(Duration::from_millis(500));
        let done = account.acknowledged.load(Ordering::Relaxed);
        say!(
            "{:5.1} s  {:>9} increments  {:>8}/s",
            start.elapsed().as_secs_f64(),
            done,
            (done - shown) * 2
        );
        shown = done;
        if killed.is_none() && start.elapsed() >= time / 2 {
            let at = cluster.kill_leader()?;
            account
                .killed_us
                .store(start.elapsed().as_micros() as u64, Ordering::SeqCst);
            say!("         killed node {}, the leader", at + 1);
            killed = Some(at);
        }
    }
    let killed = killed.ok_or("the time was too short to kill a leader")?;
    account.stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().map_err(|_| "a load thread panicked")??;
    }
    let seconds = start.elapsed().as_secs_f64();
    cluster.restart(killed)?;

    let result = check(&cluster, &account);
    let latency = latency.lock().unwrap_or_else(PoisonError::into_inner);
    report(&cluster, &account, &latency, seconds)?;
    result?;
    for node in read(&cluster.nodes).iter().flatten() {
        node.shutdown()?;
    }
    say!(
        "all accounted for: each of {} increments counted exactly once, {} tries without an outcome and {} refused ones among them",
        account.acknowledged.load(Ordering::SeqCst),
        account.unknown.load(Ordering::SeqCst),
        account.refused.load(Ordering::SeqCst),
    );
    Ok(())
}

/// Every increment was acknowledged, each is there once, and all nodes say so.
fn check(cluster: &Cluster, account: &Account) -> Result<(), Failure> {
    let nodes: Vec<Node> = read(&cluster.nodes).iter().flatten().cloned().collect();
    let mut query = Vec::new();
    Request::Plain.encode(&mut query);
    Command::Get { key: KEY }.encode(&mut query);
    let mut answers = Vec::new();
    for node in &nodes {
        let value = until("a linearizable read", || {
            let reply = node
                .read(&query, Consistency::Linearizable)
                .ok()?
                .wait()
                .ok()?;
            let session::Answer::Applied(answer) = session::Answer::decode(&reply.bytes) else {
                return None;
            };
            match Answer::decode(answer) {
                Answer::Value(value) => Some((value.unwrap_or(0) as u64, reply.index)),
                _ => None,
            }
        })?;
        answers.push(value);
    }
    let acknowledged = account.acknowledged.load(Ordering::SeqCst);
    say!("values (at index): {answers:?}");
    for (node, &(value, _)) in nodes.iter().zip(&answers) {
        if value != acknowledged {
            return Err(format!(
                "node {} says {value}, but {acknowledged} increments were acknowledged",
                node.status().id
            )
            .into());
        }
    }
    let wrong = account.wrong.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(first) = wrong.first() {
        return Err(format!("{} wrong answers, the first is {first}", wrong.len()).into());
    }
    if acknowledged == 0 || account.back_us.load(Ordering::SeqCst) == 0 {
        return Err("no increment was acknowledged after the leader had been killed".into());
    }
    Ok(())
}

fn report(
    cluster: &Cluster,
    account: &Account,
    latency: &Histogram<u64>,
    seconds: f64,
) -> Result<(), Failure> {
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let acknowledged = count(&account.acknowledged);
    let away_us = count(&account.back_us).saturating_sub(count(&account.killed_us));
    let status = cluster
        .leader()
        .ok()
        .and_then(|at| read(&cluster.nodes)[at].clone())
        .map(|node| node.status());
    say!();
    say!("acknowledged          {acknowledged}");
    say!("unknown and repeated  {}", count(&account.unknown));
    say!("refused and repeated  {}", count(&account.refused));
    say!(
        "throughput            {:.0}/s",
        acknowledged as f64 / seconds
    );
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        say!(
            "latency {name:6}        {:.2} ms",
            latency.value_at_quantile(quantile) as f64 / 1e3
        );
    }
    say!(
        "without a leader      {:.0} ms (election timeout {} ms)",
        away_us as f64 / 1e3,
        ELECTION_TIMEOUT.as_millis()
    );
    if let Some(status) = status {
        say!(
            "entries per flush     {:.1}",
            status.flushed_entries as f64 / status.flushes.max(1) as f64
        );
        say!("flushes by            {}", status.flush_backend);
    }
    Ok(())
}

/// One thread that keeps increments in flight, on its own node while that runs.
struct Load {
    nodes: Nodes,
    at: usize,
    on: Option<(Node, Outbox)>,
    account: Arc<Account>,
    start: Instant,
    numbers: Numbers,
    /// When an increment was begun, by its number within the window.
    since_us: Vec<u64>,
    /// Increments that are begun and not acknowledged; of those, what a node has, and what is to be sent again.
    open: usize,
    handed_in: usize,
    again: Vec<Sequence>,
    command: Vec<u8>,
    bytes: Vec<u8>,
    latency: Histogram<u64>,
}

impl Load {
    fn open(
        nodes: Nodes,
        at: usize,
        account: Arc<Account>,
        start: Instant,
    ) -> Result<Self, String> {
        let mut command = Vec::new();
        Command::Add { key: KEY, delta: 1 }.encode(&mut command);
        let mut all: Vec<Node> = read(&nodes).iter().flatten().cloned().collect();
        let first = at % all.len().max(1);
        all.rotate_left(first);
        let session = Session::open(all, LIMIT).map_err(|error| format!("a session: {error}"))?;
        Ok(Self {
            nodes,
            at,
            on: None,
            account,
            start,
            numbers: session.into_numbers(),
            since_us: vec![0; INFLIGHT],
            open: 0,
            handed_in: 0,
            again: Vec::new(),
            command,
            bytes: Vec::new(),
            latency: Histogram::new_with_bounds(1, 60_000_000, 3).expect("sound bounds"),
        })
    }

    fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    fn run(mut self, into: &Mutex<Histogram<u64>>) -> Result<(), String> {
        while !self.account.stop.load(Ordering::Relaxed) {
            self.turn(true);
        }
        // Nothing is left in doubt: what has no outcome is asked for until it has one.
        let deadline = Instant::now() + LIMIT;
        while self.open > 0 {
            if Instant::now() > deadline {
                return Err(format!("{} increments have no outcome", self.open));
            }
            self.turn(false);
        }
        let _ = into
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(&self.latency);
        Ok(())
    }

    fn turn(&mut self, begin: bool) {
        let refused = !self.fill(begin);
        if self.drain() == 0 {
            if !self.again.is_empty() {
                return std::thread::sleep(Duration::from_millis(1)); // Asking faster ends no election.
            }
            // Refused: there is no leader for now. Otherwise an answer will come.
            self.sleep(if refused {
                Duration::from_millis(1)
            } else {
                Duration::from_millis(100)
            });
        }
    }

    /// A node that runs, with an outbox on it; when the one in use has ended, the next one.
    fn connect(&mut self) -> bool {
        if self.on.is_none() {
            let nodes = read(&self.nodes);
            let found =
                (0..nodes.len()).find_map(|step| nodes[(self.at + step) % nodes.len()].clone());
            drop(nodes);
            let me: Thread = std::thread::current();
            self.on = found.and_then(|node| {
                let outbox = node.outbox(move || me.unpark())?;
                Some((node, outbox))
            });
        }
        self.on.is_some()
    }

    /// Proposes until all are in flight; what is to be sent again goes first. False when it is refused for now.
    fn fill(&mut self, begin: bool) -> bool {
        if !self.connect() {
            return false;
        }
        let now_us = self.now_us();
        while let Some(sequence) = self.next(begin, now_us) {
            self.bytes.clear();
            self.numbers.encode(sequence, &mut self.bytes);
            self.bytes.extend_from_slice(&self.command);
            let Some((node, outbox)) = &self.on else {
                unreachable!("it is connected");
            };
            if let Err(error) = node.propose_to(outbox.id(), sequence, &self.bytes) {
                self.again.push(sequence);
                // A node that has ended answers what it had taken; then the next one is used.
                if error == ProposeError::Stopped && self.handed_in == 0 {
                    self.on = None;
                }
                return false;
            }
            self.handed_in += 1;
        }
        true
    }

    fn next(&mut self, begin: bool, now_us: u64) -> Option<Sequence> {
        if let Some(sequence) = self.again.pop() {
            return Some(sequence);
        }
        let sequence = begin.then(|| self.numbers.take()).flatten()?;
        self.since_us[sequence as usize % INFLIGHT] = now_us;
        self.open += 1;
        Some(sequence)
    }

    fn drain(&mut self) -> usize {
        let now_us = self.now_us();
        let Self {
            on,
            account,
            numbers,
            since_us,
            open,
            handed_in,
            again,
            latency,
            ..
        } = self;
        let Some((_, outbox)) = on else { return 0 };
        let killed_us = account.killed_us.load(Ordering::Relaxed);
        let mut progress = 0;
        outbox.drain(usize::MAX, |sequence, outcome, answer| {
            *handed_in -= 1;
            match outcome {
                Ok(_) => {
                    progress += 1;
                    *open -= 1;
                    numbers.done(sequence);
                    let since = since_us[sequence as usize % INFLIGHT];
                    match session::Answer::decode(answer) {
                        session::Answer::Applied(_) => {
                            account.acknowledged.fetch_add(1, Ordering::Relaxed)
                        }
                        other => {
                            let text = format!("{other:?} to increment {sequence}");
                            let mut wrong =
                                account.wrong.lock().unwrap_or_else(PoisonError::into_inner);
                            return wrong.push(text);
                        }
                    };
                    let _ = latency.record((now_us - since).max(1));
                    if killed_us != 0 && since > killed_us {
                        let _ = account.back_us.compare_exchange(
                            0,
                            now_us,
                            Ordering::Relaxed,
                            Ordering::Relaxed,
                        );
                    }
                }
                Err(error) => {
                    let count = match error {
                        ProposeError::Unknown => &account.unknown,
                        _ => &account.refused,
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                    again.push(sequence);
                }
            }
        });
        progress
    }

    fn sleep(&mut self, limit: Duration) {
        match &mut self.on {
            Some((_, outbox)) => {
                outbox.sleep(|| std::thread::park_timeout(limit));
            }
            None => std::thread::park_timeout(limit),
        }
    }
}

/// Waits for a condition, for as long as is reasonable.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, Failure> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(format!("waited {LIMIT:?} for {what}").into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn read(nodes: &Nodes) -> std::sync::RwLockReadGuard<'_, Vec<Option<Node>>> {
    nodes.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(nodes: &Nodes) -> std::sync::RwLockWriteGuard<'_, Vec<Option<Node>>> {
    nodes.write().unwrap_or_else(PoisonError::into_inner)
}
