//! The clients: each asks one thing after the other, at a measured pace, of a node that it leaves when it is let down.
//!
//! What they write is unique, so that a value says who wrote it. A request without an answer is never repeated.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringraft::sim::linear::register::Kind;

use crate::cluster::{client_addr, face};
use crate::dice::Dice;
use crate::history::{Record, What, event};
use crate::resp::{Connection, Reply};

/// A client waits for so long; then it does not know.
const PATIENCE: Duration = Duration::from_millis(1200);
/// Between two requests of a client.
const PACE: Duration = Duration::from_millis(6);
/// How a connection reads, on whichever node: all of these must be linearizable.
const READ_MODES: [&str; 3] = ["index", "lease", "log"];
const COUNTERS: usize = 2;
const REGISTERS: usize = 4;
/// The counter that goes on from round to round.
pub(crate) const TOTAL: &str = "total";
/// Who reads last, among the numbers of clients.
const LAST_READER: usize = 1000;

/// What all clients of a round saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) records: Vec<Record>,
    pub(crate) refused: u64,
    /// Answers that no node may give.
    pub(crate) strange: Vec<String>,
    /// Leaders that were seen, each with its term.
    pub(crate) leaders: Vec<(u64, usize)>,
}

#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Seen>>,
}

/// The keys of a round.
pub(crate) fn keys(round: u64) -> Vec<String> {
    let counters = (0..COUNTERS).map(|at| format!("r{round}:c{at}"));
    let registers = (0..REGISTERS).map(|at| format!("r{round}:x{at}"));
    let total = std::iter::once(TOTAL.to_owned());
    total.chain(counters).chain(registers).collect()
}

fn is_counter(key: &str) -> bool {
    key == TOTAL || key.contains(":c")
}

impl Load {
    /// As many clients as asked for, and one that watches who leads.
    pub(crate) fn start(clients: usize, nodes: usize, round: u64, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number: usize| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let dice = Dice::new(seed, "client", number as u64);
                Client::new(number, nodes, round, dice).work(&stop)
            })
        };
        let mut threads: Vec<_> = (0..clients).map(client).collect();
        let watch = stop.clone();
        threads.push(std::thread::spawn(move || watch_leaders(nodes, &watch)));
        Self {
            stop,
            clients: threads,
        }
    }

    pub(crate) fn finish(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for client in self.clients.drain(..) {
            let seen = client.join().expect("a client does not panic");
            all.records.extend(seen.records);
            all.refused += seen.refused;
            all.strange.extend(seen.strange);
            all.leaders.extend(seen.leaders);
        }
        all.leaders.sort_unstable();
        all.leaders.dedup();
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join(); // Something else has failed already.
        }
    }
}

/// Two leaders of one term would be two lines here.
fn watch_leaders(nodes: usize, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        for id in 1..=nodes {
            let leads = face(id).filter(|face| face.leads);
            let leader = leads.map(|face| (face.term, id));
            seen.leaders
                .extend(leader.filter(|leader| !seen.leaders.contains(leader)));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    seen
}

struct Client {
    number: usize,
    nodes: usize,
    node: usize,
    keys: Vec<String>,
    dice: Dice,
    connection: Option<Connection>,
    written: i64,
    /// Of each register, what was seen last.
    known: HashMap<String, Option<i64>>,
    seen: Seen,
}

impl Client {
    fn new(number: usize, nodes: usize, round: u64, dice: Dice) -> Self {
        Self {
            number,
            nodes,
            node: number % nodes + 1,
            keys: keys(round),
            dice,
            connection: None,
            written: 0,
            known: HashMap::new(),
            seen: Seen::default(),
        }
    }

    fn work(mut self, stop: &AtomicBool) -> Seen {
        while !stop.load(Ordering::Relaxed) {
            let begin = Instant::now();
            if self.connection.is_none() {
                let mode = READ_MODES[self.dice.below(READ_MODES.len())];
                self.connection = Connection::open(client_addr(self.node), PATIENCE)
                    .and_then(|mut connection| {
                        connection.ask(&["READMODE", mode])?;
                        Ok(connection)
                    })
                    .ok();
            }
            match self.connection.take() {
                Some(connection) => self.ask(connection),
                None => self.move_on(),
            }
            std::thread::sleep(PACE.saturating_sub(begin.elapsed()));
        }
        self.seen
    }

    fn move_on(&mut self) {
        self.node = self.dice.below(self.nodes) + 1;
        std::thread::sleep(PACE);
    }

    fn ask(&mut self, mut connection: Connection) {
        let key = self.keys[self.dice.below(self.keys.len())].clone();
        self.written += 1;
        let new = (self.number as i64 + 1) << 32 | self.written;
        let (new_text, known) = (new.to_string(), self.known.get(&key).copied().flatten());
        let known_text = known.map_or("nil".to_owned(), |value| value.to_string());
        // What it is if nobody knows what became of it.
        let (args, unknown): (Vec<&str>, What) = match (is_counter(&key), self.dice.below(3)) {
            (true, 0) => (vec!["GET", &key], What::Count(0)),
            (true, _) => (vec!["INCR", &key], What::Increment(None)),
            (false, 0) => (vec!["GET", &key], What::Register(Kind::Read(None))),
            (false, 1) => (
                vec!["SET", &key, &new_text],
                What::Register(Kind::Write(new)),
            ),
            (false, _) => {
                let kind = Kind::CompareAndSet {
                    expected: known,
                    new,
                    done: false,
                };
                (
                    vec!["CAS", &key, &known_text, &new_text],
                    What::Register(kind),
                )
            }
        };
        let call = event();
        let reply = connection.ask(&args);
        let at = Instant::now();
        let mut ret = event();
        let what = match &reply {
            Err(_) => None,
            Ok(Reply::Error(text)) if text.starts_with("UNKNOWN") => None,
            Ok(Reply::Error(text)) if text.starts_with("TRYAGAIN") => {
                self.seen.refused += 1;
                self.connection = Some(connection);
                if self.dice.flip() {
                    self.connection = None;
                    self.move_on();
                }
                return;
            }
            Ok(reply) => match answered(unknown, reply) {
                Some(what) => Some(what),
                None => {
                    self.seen
                        .strange
                        .push(format!("{args:?} was answered {reply:?}"));
                    return;
                }
            },
        };
        match what {
            Some(What::Register(Kind::Read(value))) => _ = self.known.insert(key.clone(), value),
            Some(What::Register(Kind::Write(_) | Kind::CompareAndSet { done: true, .. })) => {
                self.known.insert(key.clone(), Some(new));
            }
            Some(What::Register(_)) => _ = self.known.remove(&key),
            Some(_) => {}
            None => ret = u64::MAX,
        }
        if reply.is_ok() {
            self.connection = Some(connection);
        } else {
            self.move_on();
        }
        let what = what.unwrap_or(unknown);
        let record = Record {
            client: self.number,
            key,
            call,
            ret,
            at,
            what,
        };
        if record.is_known() || record.is_write() {
            self.seen.records.push(record); // Nothing follows from a read without an answer.
        }
    }
}

/// The operation with its answer, if it is one that can be given to it.
fn answered(asked: What, reply: &Reply) -> Option<What> {
    let number = |text: &Option<String>| match text {
        None => Some(None),
        Some(text) => text.parse::<i64>().ok().map(Some),
    };
    Some(match (asked, reply) {
        (What::Increment(_), Reply::Integer(value)) => {
            What::Increment(Some(u64::try_from(*value).ok()?))
        }
        (What::Count(_), Reply::Bulk(text)) => {
            What::Count(u64::try_from(number(text)?.unwrap_or(0)).ok()?)
        }
        (What::Register(Kind::Read(_)), Reply::Bulk(text)) => {
            What::Register(Kind::Read(number(text)?))
        }
        (What::Register(Kind::Write(_)), Reply::Simple(_)) => asked,
        (What::Register(Kind::CompareAndSet { expected, new, .. }), Reply::Integer(done)) => {
            let done = *done == 1;
            What::Register(Kind::CompareAndSet {
                expected,
                new,
                done,
            })
        }
        _ => return None,
    })
}

/// Reads all keys of a round once more, from every node. `Err` names the node that does not answer.
pub(crate) fn last_reads(nodes: usize, round: u64) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    for node in 1..=nodes {
        for key in keys(round) {
            let asked = if is_counter(&key) {
                What::Count(0)
            } else {
                What::Register(Kind::Read(None))
            };
            let deadline = Instant::now() + crate::cluster::PATIENCE;
            loop {
                let call = event();
                let reply = Connection::open(client_addr(node), PATIENCE)
                    .and_then(|mut connection| connection.ask(&["GET", &key]));
                let (at, ret) = (Instant::now(), event());
                if let Some(what) = reply.as_ref().ok().and_then(|reply| answered(asked, reply)) {
                    records.push(Record {
                        client: LAST_READER,
                        key,
                        call,
                        ret,
                        at,
                        what,
                    });
                    break;
                }
                if at > deadline {
                    return Err(format!("node {node} does not read {key}: {reply:?}"));
                }
            }
        }
    }
    Ok(records)
}
