//! Runs the files of `testdata`: commands, a line `----`, and what they made happen, a line each.
//! `UPDATE=1` writes what happened into the files; read the difference before you believe it.
//!
//! | command | does |
//! |---|---|
//! | `nodes 3 [outgoing=3,4] [learners=4]` | makes a group of 1..=3 |
//! | .. `[window=4] [window-bytes=4000] [append-bytes=1000]` | with these limits |
//! | .. `[lease=95]` | with leases of so many milliseconds |
//! | `restore 1 term=2 [vote=1] [log=1,1,2]` | restarts it with another past: a term an entry |
//! | `campaign 1` | as if its election timer ran out |
//! | `elect 1` | has it elected and its first entry everywhere, without a word about it |
//! | `propose 1 [count=1] [bytes=1]` | a batch, `bytes` an entry |
//! | `persist 1 [count=2]` | its disk finishes the next writes, or all |
//! | `deliver 2 [from=1] [count=1] [nth=0]` | messages arrive, in order; or the `nth` that waits |
//! | `drop 2 [from=1]` | messages to it are lost |
//! | `stash x 2 [from=1]`, `copy ..`, `release x` | messages to it wait aside (once more) |
//! | `isolate 3`, `heal` | nothing reaches or leaves it |
//! | `down 1 2`, `up 1 2` | 1 is told that its connection to 2 is gone, or there |
//! | `crash 2 [kept=1]`, `start 2` | its disk loses what it owes, but for the first `kept` writes |
//! | `pass 20` | milliseconds go by |
//! | `tick 1 [2 ..]` | they look at the clock |
//! | `run 100` | as many milliseconds of a group whose disks and network are quick |
//! | `read 2 7` | 2 asks for a read index under context 7 |
//! | `lease 1` | what it would answer a lease read with |
//! | `fresh 1 50` | what it would answer a read with that may be so many milliseconds old |
//! | `clock 2 30` | 2 looks at its clock, which is so many milliseconds ahead of its turn |
//! | `stabilize [1 2]` | disks finish and messages arrive until nothing is left to do |
//! | `quiet COMMAND` | the same without a word about it |
//! | `status`, `log`, `net` | shows nodes, logs (on the disk: before the bar), messages |

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::cluster::{Cluster, Envelope, settings};
use crate::raft::Membership;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/raft/testdata");

#[derive(Default)]
struct Script {
    cluster: Option<Cluster>,
    stashes: BTreeMap<String, Vec<Envelope>>,
}

/// A command's words: numbers and names in order, and `key=value`.
struct Words<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn new(line: &'a str) -> Self {
        let mut words = Self {
            plain: Vec::new(),
            named: BTreeMap::new(),
        };
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some((key, value)) => drop(words.named.insert(key, value)),
                None => words.plain.push(word),
            }
        }
        words
    }

    fn number(&self, at: usize) -> u64 {
        let word = self
            .plain
            .get(at)
            .unwrap_or_else(|| panic!("a number is missing at {at}"));
        word.parse()
            .unwrap_or_else(|_| panic!("{word} is no number"))
    }

    fn ids(&self, from: usize, all: &[u64]) -> Vec<u64> {
        let ids: Vec<u64> = (from..self.plain.len()).map(|at| self.number(at)).collect();
        if ids.is_empty() { all.to_vec() } else { ids }
    }

    fn get(&self, key: &str) -> Option<u64> {
        self.named
            .get(key)
            .map(|value| value.parse().expect("a number after ="))
    }

    fn list(&self, key: &str) -> Vec<u64> {
        let words = self.named.get(key).map_or("", |list| list);
        words
            .split(',')
            .filter(|word| !word.is_empty())
            .map(|word| word.parse().unwrap())
            .collect()
    }
}

impl Script {
    fn cluster(&mut self) -> &mut Cluster {
        self.cluster.as_mut().expect("`nodes` comes first")
    }

    fn run(&mut self, line: &str) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words = Words::new(rest);
        match verb {
            "nodes" => self.make(&words),
            "quiet" => {
                let said = self.cluster().trace.len();
                self.run(rest);
                self.cluster().trace.truncate(said);
            }
            "stash" | "copy" | "release" => self.stash(verb, &words),
            _ => self.act(verb, &words),
        }
    }

    fn make(&mut self, words: &Words<'_>) {
        let mut settings = settings();
        if let Some(window) = words.get("window") {
            settings.max_inflight_messages = window as usize;
        }
        settings.max_inflight_bytes = words.get("window-bytes").unwrap_or(4000);
        settings.max_append_bytes = words.get("append-bytes").unwrap_or(1000);
        settings.lease_us = words.get("lease").map(|ms| 1000 * ms);
        let membership = Membership {
            voters: (1..=words.number(0)).collect(),
            outgoing: words.list("outgoing"),
            learners: words.list("learners"),
        };
        self.cluster = Some(Cluster::new(membership, settings));
    }

    fn stash(&mut self, verb: &str, words: &Words<'_>) {
        let name = words.plain[0].to_owned();
        if verb == "release" {
            for envelope in self.stashes.remove(&name).expect("a stash of that name") {
                self.cluster().deliver(&envelope);
            }
            return;
        }
        let (to, from) = (words.number(1), words.get("from"));
        let cluster = self.cluster();
        let is_meant = |envelope: &Envelope| meant(envelope, to, from);
        let meant: Vec<_> = cluster
            .net
            .iter()
            .filter(|e| is_meant(e))
            .cloned()
            .collect();
        if verb == "stash" {
            cluster.net.retain(|envelope| !is_meant(envelope));
        }
        assert!(!meant.is_empty(), "nothing is under way to {to}");
        self.stashes.entry(name).or_default().extend(meant);
    }

    fn act(&mut self, verb: &str, words: &Words<'_>) {
        let cluster = self.cluster();
        let all = cluster.ids();
        match verb {
            "restore" => {
                let vote = words.get("vote");
                let term = words.get("term").expect("term=");
                cluster.restore(words.number(0), term, vote, &words.list("log"));
            }
            "campaign" => cluster.campaign(words.number(0)),
            "elect" => {
                let said = cluster.trace.len();
                cluster.campaign(words.number(0));
                stabilize(cluster, &all);
                assert_eq!(cluster.leader(), Some(words.number(0)), "was not elected");
                cluster.trace.truncate(said);
            }
            "propose" => {
                let (count, bytes) = (
                    words.get("count").unwrap_or(1),
                    words.get("bytes").unwrap_or(1),
                );
                if !cluster.propose(words.number(0), count, bytes) {
                    cluster.say(format!("{} does not lead", words.number(0)));
                }
            }
            "persist" => {
                let count = words
                    .get("count")
                    .map_or(usize::MAX, |count| count as usize);
                cluster.persist(words.number(0), count);
            }
            "deliver" => deliver(cluster, words),
            "drop" => {
                let (to, from) = (words.number(0), words.get("from"));
                cluster.net.retain(|envelope| !meant(envelope, to, from));
            }
            "isolate" => {
                let id = words.number(0);
                cluster.isolated.insert(id);
                cluster
                    .net
                    .retain(|envelope| envelope.to != id && envelope.from != id);
            }
            "heal" => cluster.isolated.clear(),
            "down" => cluster.peer_down(words.number(0), words.number(1)),
            "up" => cluster.peer_up(words.number(0), words.number(1)),
            "crash" => cluster.crash(words.number(0), words.get("kept").unwrap_or(0) as usize),
            "start" => cluster.start(words.number(0)),
            "pass" => cluster.now_us += 1000 * words.number(0),
            "run" => {
                for _ in 0..words.number(0) / 5 {
                    cluster.now_us += 5000;
                    all.iter().for_each(|&id| cluster.tick(id));
                    stabilize(cluster, &all);
                }
            }
            "tick" => words.ids(0, &all).iter().for_each(|&id| cluster.tick(id)),
            "read" => cluster.read(words.number(0), words.number(1)),
            "lease" | "fresh" => {
                let (id, now_us) = (words.number(0), cluster.now_us);
                let core = cluster.node(id).core.as_ref().expect("it is up");
                let known = match verb {
                    "lease" => core.lease_index(now_us),
                    _ => core.fresh_index(now_us, 1000 * words.number(1)),
                };
                let known = known.map_or("not known".to_owned(), |index| format!("at {index}"));
                cluster.say(format!("{id} {verb}: {known}"));
            }
            "clock" => {
                let ahead_us = cluster.now_us + 1000 * words.number(1);
                cluster.look_at_clock(words.number(0), ahead_us);
            }
            "stabilize" => stabilize(cluster, &words.ids(0, &all)),
            "status" => words
                .ids(0, &all)
                .iter()
                .for_each(|&id| status(cluster, id)),
            "log" => words.ids(0, &all).iter().for_each(|&id| log(cluster, id)),
            "net" => {
                let lines = cluster
                    .net
                    .iter()
                    .map(|e| format!("{} <- {} {}", e.to, e.from, e.message));
                let lines: Vec<_> = lines.collect();
                lines.into_iter().for_each(|line| cluster.say(line));
            }
            _ => panic!("{verb} is no command"),
        }
    }
}

fn meant(envelope: &Envelope, to: u64, from: Option<u64>) -> bool {
    envelope.to == to && from.is_none_or(|from| envelope.from == from)
}

fn deliver(cluster: &mut Cluster, words: &Words<'_>) {
    let (to, from) = (words.number(0), words.get("from"));
    let skipped = words.get("nth").unwrap_or(0) as usize;
    let one = if words.get("nth").is_some() {
        1
    } else {
        u64::MAX
    };
    // What these bring about is not delivered with them.
    let waiting = cluster
        .net
        .iter()
        .filter(|envelope| meant(envelope, to, from))
        .count();
    assert!(waiting > skipped, "nothing is under way to {to}");
    for _ in 0..words.get("count").unwrap_or(one).min(waiting as u64) {
        let at = cluster
            .net
            .iter()
            .enumerate()
            .filter(|(_, envelope)| meant(envelope, to, from));
        let at = at.map(|(at, _)| at).nth(skipped).expect("counted before");
        let envelope = cluster.net.remove(at);
        cluster.deliver(&envelope);
    }
}

fn stabilize(cluster: &mut Cluster, ids: &[u64]) {
    for _ in 0..1000 {
        let mut moved = false;
        for &id in ids {
            moved |= cluster.owed(id) > 0;
            cluster.persist(id, usize::MAX);
        }
        while let Some(at) = cluster.net.iter().position(|e| ids.contains(&e.to)) {
            moved = true;
            let envelope = cluster.net.remove(at);
            cluster.deliver(&envelope);
            if cluster.trace.len() > 10_000 {
                panic!("it does not come to rest: {:#?}", &cluster.trace[9_980..]);
            }
        }
        if !moved {
            return;
        }
    }
    panic!("it does not come to rest");
}

fn status(cluster: &mut Cluster, id: u64) {
    let Some(core) = &cluster.node(id).core else {
        cluster.say(format!("{id} is down"));
        return;
    };
    let none = |id: Option<u64>| id.map_or_else(|| "none".to_owned(), |id| id.to_string());
    let mut line = format!(
        "{id} {} term={} vote={} leader={} commit={} last={}",
        core.role(),
        core.term(),
        none(core.vote),
        none(core.leader()),
        core.commit,
        core.last_index()
    );
    if core.is_leader() {
        for peer in &core.peers {
            let (sent, bytes) = (peer.window.messages(), peer.window.bytes());
            let _ = write!(
                line,
                " | {} matched={} next={}",
                peer.id, peer.matched, peer.next
            );
            let _ = write!(line, " {:?} in flight {sent}, {bytes} bytes", peer.mode);
        }
    }
    cluster.say(line);
}

fn log(cluster: &mut Cluster, id: u64) {
    let node = cluster.node(id);
    let terms = |entries: &[super::cluster::Entry]| {
        entries
            .iter()
            .map(|entry| entry.term.to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let same = node
        .log
        .iter()
        .zip(&node.image.log)
        .take_while(|(a, b)| a == b)
        .count();
    let line = format!(
        "{id}: {} | {}",
        terms(&node.log[..same]),
        terms(&node.log[same..])
    );
    cluster.say(line.trim_end().to_owned());
}

/// Runs a file's commands, and returns it with what they made happen.
fn replay(text: &str) -> String {
    let mut script = Script::default();
    let mut out = Vec::new();
    for block in text.trim_end().split("\n\n") {
        let commands: Vec<&str> = block.lines().take_while(|line| *line != "----").collect();
        let mut said = commands.join("\n");
        let mut ran = false;
        for line in commands
            .iter()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
        {
            script.run(line);
            ran = true;
        }
        if ran {
            said.push_str("\n----");
            for line in std::mem::take(&mut script.cluster().trace) {
                said.push('\n');
                said.push_str(&line);
            }
        }
        out.push(said);
    }
    out.join("\n\n") + "\n"
}

#[test]
fn the_core_does_what_the_files_say() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut files: Vec<_> = std::fs::read_dir(Path::new(DATA))
        .expect("the directory of the files")
        .map(|entry| entry.expect("an entry of it").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 20, "only {} files in {DATA}", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let wanted = std::fs::read_to_string(&path).expect("a readable file");
        let happened = match std::panic::catch_unwind(|| replay(&wanted)) {
            Ok(happened) => happened,
            Err(_) => {
                wrong.push(format!("{name}: panics, see above"));
                continue;
            }
        };
        if update && happened != wanted {
            std::fs::write(&path, happened).expect("a writable file");
        } else if happened != wanted {
            let differs = happened
                .lines()
                .zip(wanted.lines())
                .position(|(a, b)| a != b);
            let at =
                differs.unwrap_or_else(|| happened.lines().count().min(wanted.lines().count()));
            let line = |text: &str| text.lines().nth(at).unwrap_or("(the end)").to_owned();
            wrong.push(format!(
                "{name}:{}: wanted `{}`, but it was `{}`",
                at + 1,
                line(&wanted),
                line(&happened)
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "(UPDATE=1 takes what happened)\n{}",
        wrong.join("\n")
    );
}
