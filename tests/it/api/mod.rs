//! Nodes in this process, through the public API alone. Here: the state machine of the tests and how
//! nodes are started; the tests are in the modules below.

mod answers;
mod blocking;
mod group;
mod leaving;
mod life;
mod panics;
mod reads;
mod retries;
mod slow;
mod snapshots;

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringraft::{
    Batch, Config, Consistency, Index, Member, Node, NodeId, Pending, ProposeError, Reply, Role,
    StartError, StateMachine, Term, Threads,
};
use tempfile::TempDir;

use crate::{DEADLINE, until, until_some};

const MAX_ENTRY: usize = 64 << 10;

/// What a state machine has been told, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Applied(Index, Vec<u8>),
    NewTerm(Term),
    LeaderStart(Term),
    LeaderStop(Term),
}

/// A state machine that keeps every command, and the test's hold on it. The reply to a command is how
/// many there are with it; so is that to a query.
#[derive(Clone, Debug, Default)]
struct Journal(Arc<Inside>);

#[derive(Debug, Default)]
struct Inside {
    told: Mutex<Vec<Told>>,
    shut: Mutex<bool>,
    opened: Condvar,
    /// `apply` has come to a gate that is shut.
    stands: AtomicBool,
}

impl Journal {
    fn told(&self) -> Vec<Told> {
        self.0.told.lock().expect("nobody panics with it").clone()
    }

    fn tell(&self, what: Told) {
        self.0
            .told
            .lock()
            .expect("nobody panics with it")
            .push(what);
    }

    fn commands(&self) -> Vec<Vec<u8>> {
        self.told()
            .into_iter()
            .filter_map(|told| match told {
                Told::Applied(_, command) => Some(command),
                _ => None,
            })
            .collect()
    }

    fn count(&self) -> u64 {
        let told = self.0.told.lock().expect("nobody panics with it");
        told.iter()
            .filter(|told| matches!(told, Told::Applied(..)))
            .count() as u64
    }

    /// From now on `apply` waits, until the gate is opened, or dropped by a test that fails.
    fn shut(&self) -> Gate {
        *self.0.shut.lock().expect("nobody panics with it") = true;
        Gate(self.clone())
    }
}

struct Gate(Journal);

impl Gate {
    /// Waits until `apply` does.
    fn until_somebody_stands_there(&self) {
        until("apply has come to the gate", || {
            self.0.0.stands.load(Ordering::Relaxed)
        });
    }

    fn open(self) {}
}

impl Drop for Gate {
    fn drop(&mut self) {
        let inside = &self.0.0;
        *inside.shut.lock().expect("nobody panics with it") = false;
        inside.opened.notify_all();
    }
}

struct Machine {
    journal: Journal,
    count: u64,
}

impl StateMachine for Machine {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        let inside = &self.journal.0;
        let shut = inside.shut.lock().expect("nobody panics with it");
        inside.stands.store(*shut, Ordering::Relaxed);
        drop(
            inside
                .opened
                .wait_while(shut, |shut| *shut)
                .expect("nobody panics with it"),
        );
        while let Some((entry, reply)) = batch.next() {
            match entry.command {
                b"panic" => panic!("the command said so"),
                b"error" => return Err(io::Error::other("the command said so")),
                command => {
                    self.count += 1;
                    self.journal
                        .tell(Told::Applied(entry.index, command.to_vec()));
                    reply.extend_from_slice(&self.count.to_le_bytes());
                }
            }
        }
        Ok(())
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        assert_ne!(query, b"panic", "the query said so");
        reply.extend_from_slice(&self.count.to_le_bytes());
    }

    fn new_term(&mut self, term: Term, _: Index, _: u64) {
        self.journal.tell(Told::NewTerm(term));
    }

    fn leader_start(&mut self, term: Term) {
        self.journal.tell(Told::LeaderStart(term));
    }

    fn leader_stop(&mut self, term: Term) {
        self.journal.tell(Told::LeaderStop(term));
    }
}

fn number(reply: &Reply) -> u64 {
    u64::from_le_bytes(reply.bytes.as_slice().try_into().expect("eight bytes"))
}

fn small(config: Config) -> Config {
    Config {
        election_timeout: Duration::from_millis(300),
        segment_bytes: 1 << 20,
        max_entry_bytes: MAX_ENTRY,
        max_pending: 1024,
        propose_ring: 1024,
        ..config
    }
}

/// For what happens when time runs out.
fn hasty(config: &mut Config) {
    config.election_timeout = Duration::from_millis(300);
    config.proposal_timeout = Duration::from_millis(600);
}

const PLANS: [Threads; 3] = [
    Threads::Shared,
    Threads::SeparateApply,
    Threads::PerStage { cores: Vec::new() },
];

fn start_alone(
    dir: &Path,
    change: impl FnOnce(&mut Config),
) -> Result<(Node, Journal), StartError> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound").to_string();
    let members = vec![Member {
        id: NodeId(1),
        addr,
    }];
    let mut config = small(Config {
        cluster_id: Some(7), // Each start has another port.
        ..Config::new(NodeId(1), dir, members)
    });
    change(&mut config);
    let journal = Journal::default();
    let machine = Machine {
        journal: journal.clone(),
        count: 0,
    };
    Ok((Node::start_on(listener, config, machine)?, journal))
}

/// A group of one that leads.
fn alone(dir: &Path, change: impl FnOnce(&mut Config)) -> (Node, Journal) {
    let (node, journal) = start_alone(dir, change).expect("the node starts");
    until("the only node leads", || node.status().role == Role::Leader);
    (node, journal)
}

/// Three nodes that know each other.
struct Three {
    nodes: Vec<Node>,
    journals: Vec<Journal>,
    _dir: TempDir,
}

impl Three {
    fn start(change: impl Fn(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listeners: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let members: Vec<Member> = (1..)
            .zip(&listeners)
            .map(|(id, listener)| Member {
                id: NodeId(id),
                addr: listener.local_addr().expect("it is bound").to_string(),
            })
            .collect();
        let (mut nodes, mut journals) = (Vec::new(), Vec::new());
        for (id, listener) in (1..).zip(listeners) {
            let path = dir.path().join(format!("node-{id}"));
            let mut config = small(Config::new(NodeId(id), path, members.clone()));
            // Long, so that whoever leads goes on to where a slow machine runs many tests at once.
            config.election_timeout = Duration::from_secs(1);
            change(&mut config);
            let journal = Journal::default();
            let machine = Machine {
                journal: journal.clone(),
                count: 0,
            };
            nodes.push(Node::start_on(listener, config, machine).expect("the node starts"));
            journals.push(journal);
        }
        let three = Self {
            nodes,
            journals,
            _dir: dir,
        };
        three.until_leader(&[0, 1, 2]);
        three
    }

    /// Waits until these nodes agree on a leader among them; says which it is.
    fn until_leader(&self, among: &[usize]) -> usize {
        until_some("a leader on whom all agree", || {
            let leader = self.nodes[among[0]].status().leader?;
            let at = leader.0 as usize - 1;
            let agreed = among
                .iter()
                .all(|&at| self.nodes[at].status().leader == Some(leader));
            let leads = among.contains(&at) && self.nodes[at].status().role == Role::Leader;
            (agreed && leads).then_some(at)
        })
    }

    fn follower_of(&self, leader: usize) -> usize {
        (leader + 1) % self.nodes.len()
    }
}

/// Proposes until it is done; what was refused is proposed again.
fn commit(node: &Node, command: &[u8]) -> Reply {
    until_some("a command is committed", || {
        match node.propose(command).map(Pending::wait) {
            Ok(Ok(reply)) => Some(reply),
            Ok(Err(error)) | Err(error) if error.definitely_not_applied() => None,
            other => panic!("an undisturbed cluster knows what became of a command: {other:?}"),
        }
    })
}

fn read(node: &Node, how: Consistency) -> u64 {
    number(&until_some("a read is answered", || {
        match node.read(b"", how).map(Pending::wait) {
            Ok(Ok(reply)) => Some(reply),
            Ok(Err(_)) | Err(ProposeError::Busy) => None,
            Err(error) => panic!("a read: {error}"),
        }
    }))
}

/// Waits for the answer; the limit keeps a lost answer from stopping the suite.
fn answer(pending: Pending) -> Result<Reply, ProposeError> {
    pending
        .wait_timeout(DEADLINE)
        .expect("every request is answered in the end")
}
