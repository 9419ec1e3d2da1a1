//! Sessions on real nodes: leaders are stopped and started, clients send everything to everyone and again, and each command is
//! counted once.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ringraft::session::{Answer, Limits, Request, Session, SessionError, Sessions};
use ringraft::{Config, Consistency, Member, Node, NodeId, Pending, ProposeError, Role};
use tempfile::TempDir;

use crate::api::{Journal, Machine, answer, commit, small};
use crate::{DEADLINE, until, until_some};

/// Three nodes of which one at a time may be away. A journal begins anew with its node.
struct Restless {
    dir: TempDir,
    addrs: Vec<SocketAddr>,
    running: Arc<RwLock<Vec<Option<Node>>>>,
    journals: Vec<Journal>,
}

impl Restless {
    fn start(limits: impl Fn() -> Limits) -> Self {
        let listeners: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let addr = |listener: &TcpListener| listener.local_addr().expect("it is bound");
        let mut group = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            addrs: listeners.iter().map(addr).collect(),
            running: Arc::default(),
            journals: vec![Journal::default(); 3],
        };
        let nodes = listeners
            .into_iter()
            .enumerate()
            .map(|(at, listener)| Some(group.node(at, listener, limits())))
            .collect();
        *group.running.write().expect("nobody panics with it") = nodes;
        group
    }

    fn node(&mut self, at: usize, listener: TcpListener, limits: Limits) -> Node {
        let id = |at: usize| NodeId(at as u32 + 1);
        let members = self.addrs.iter().enumerate().map(|(at, addr)| Member {
            id: id(at),
            addr: addr.to_string(),
        });
        let path = self.dir.path().join(format!("node-{at}"));
        let config = small(Config::new(id(at), path, members.collect()));
        let journal = Journal::default();
        self.journals[at] = journal.clone();
        let machine = Sessions::new(Machine { journal, count: 0 }, limits);
        Node::start_on(listener, config, machine).expect("the node starts")
    }

    fn nodes(&self) -> Vec<Node> {
        running(&self.running)
    }

    /// Stops the leader where it stands; says which it was.
    fn stop_leader(&self) -> usize {
        let at = until_some("a leader", || {
            let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
            running.iter().position(|node| {
                node.as_ref()
                    .is_some_and(|node| node.status().role == Role::Leader)
            })
        });
        let node = self.running.write().expect("nobody panics with it")[at].take();
        node.expect("it runs").shutdown_now();
        at
    }

    fn start_again(&mut self, at: usize) {
        let listener = until_some("its port is free again", || {
            TcpListener::bind(self.addrs[at]).ok()
        });
        let node = self.node(at, listener, Limits::default());
        self.running.write().expect("nobody panics with it")[at] = Some(node);
    }
}

fn running(nodes: &RwLock<Vec<Option<Node>>>) -> Vec<Node> {
    let nodes = nodes.read().unwrap_or_else(PoisonError::into_inner);
    nodes.iter().flatten().cloned().collect()
}

/// Sends one command to every node at once, and again as long as none has answered. All answers that come are the same.
fn storm(nodes: &RwLock<Vec<Option<Node>>>, bytes: &[u8]) -> Vec<u8> {
    until_some("a command of a session is answered", || {
        let pending: Vec<Pending> = running(nodes)
            .iter()
            .chain(running(nodes).iter())
            .filter_map(|node| node.propose(bytes).ok())
            .collect();
        let mut answers: Vec<Vec<u8>> = pending
            .into_iter()
            .filter_map(|pending| answer(pending).ok())
            .map(|reply| match Answer::decode(&reply.bytes) {
                Answer::Applied(answer) => answer.to_vec(),
                other => panic!("{other:?}"),
            })
            .collect();
        answers.dedup();
        assert!(answers.len() <= 1, "one command, two answers: {answers:?}");
        answers.pop()
    })
}

#[test]
fn retry_storms_over_leaders_that_come_and_go_count_each_command_once() {
    const CLIENTS: usize = 4;
    let mut group = Restless::start(Limits::default);
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (nodes, stop, done) = (group.running.clone(), stop.clone(), done.clone());
            std::thread::spawn(move || {
                let mut session =
                    Session::open(running(&nodes), DEADLINE).expect("a session is opened");
                let mut answers = Vec::new();
                let text = |n: usize| format!("{client}/{n}").into_bytes();
                // Every second client waits for one node at a time; the others do not wait at all.
                if client % 2 == 0 {
                    while !stop.load(Ordering::Relaxed) {
                        *session.nodes() = running(&nodes);
                        let answer = session.propose(&text(answers.len()));
                        answers.push(answer.expect("its outcome becomes known"));
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    return answers;
                }
                let mut numbers = session.into_numbers();
                while !stop.load(Ordering::Relaxed) {
                    let sequence = numbers.take().expect("the window is open");
                    let mut bytes = Vec::new();
                    numbers.encode(sequence, &mut bytes);
                    bytes.extend_from_slice(&text(answers.len()));
                    answers.push(storm(&nodes, &bytes));
                    numbers.done(sequence);
                    done.fetch_add(1, Ordering::Relaxed);
                }
                answers
            })
        })
        .collect();
    let until_more = |count: usize| {
        let enough = done.load(Ordering::Relaxed) + count;
        until(format_args!("{count} more commands"), || {
            done.load(Ordering::Relaxed) >= enough
        });
    };
    for _ in 0..3 {
        until_more(40);
        let stopped = group.stop_leader();
        until_more(40);
        group.start_again(stopped);
    }
    stop.store(true, Ordering::Relaxed);
    let answers: Vec<Vec<Vec<u8>>> = clients
        .into_iter()
        .map(|client| client.join().expect("the client is content"))
        .collect();

    let acknowledged: usize = answers.iter().map(Vec::len).sum();
    let distinct: HashSet<&Vec<u8>> = answers.iter().flatten().collect();
    assert_eq!(
        distinct.len(),
        acknowledged,
        "each command had a count of its own"
    );
    let sent: HashSet<Vec<u8>> = answers
        .iter()
        .enumerate()
        .flat_map(|(client, answers)| {
            (0..answers.len()).map(move |n| format!("{client}/{n}").into_bytes())
        })
        .collect();
    for (at, journal) in group.journals.iter().enumerate() {
        until(format_args!("node {at} has applied all"), || {
            journal.count() as usize >= acknowledged
        });
        let applied = journal.commands();
        let distinct: HashSet<Vec<u8>> = applied.iter().cloned().collect();
        assert_eq!(
            applied.len(),
            distinct.len(),
            "node {at} applied a command twice"
        );
        assert!(
            distinct == sent,
            "node {at} applied what was acknowledged, and nothing else"
        );
    }
    for node in group.nodes() {
        node.shutdown().expect("it leaves in order");
    }
}

#[test]
fn a_session_that_has_made_room_says_so_and_applies_nothing() {
    let group = Restless::start(|| Limits {
        sessions: 1,
        ..Limits::default()
    });
    let mut first = Session::open(group.nodes(), DEADLINE).expect("a session is opened");
    first.propose(b"one").expect("it is applied");
    let mut second = Session::open(group.nodes(), DEADLINE).expect("another is opened");
    assert_eq!(
        first.propose(b"two"),
        Err(SessionError::Expired { in_doubt: false })
    );
    second.propose(b"three").expect("it is applied");
    let mut plain = Vec::new();
    Request::Plain.encode(&mut plain);
    plain.extend_from_slice(b"four");
    commit(&group.nodes()[0], &plain);
    for journal in &group.journals {
        until("every node has applied all", || journal.count() == 3);
        assert_eq!(
            journal.commands(),
            [&b"one"[..], b"three", b"four"].map(<[u8]>::to_vec)
        );
    }
    let mut query = Vec::new();
    Request::Plain.encode(&mut query);
    let read = group.nodes()[1].read(&query, Consistency::Stale);
    let reply = answer(read.expect("it is taken")).expect("it is answered");
    assert_eq!(
        Answer::decode(&reply.bytes),
        Answer::Applied(&3u64.to_le_bytes())
    );
    second.close().expect("it is closed");
}

#[test]
fn a_session_without_a_node_that_runs_says_that_nothing_was_applied() {
    let group = Restless::start(Limits::default);
    let mut session = Session::open(group.nodes(), Duration::MAX).expect("a session is opened");
    session
        .propose(b"with all the time there is")
        .expect("it is applied");
    for node in group.nodes() {
        node.shutdown().expect("it leaves in order");
    }
    session.set_limit(Duration::from_millis(20));
    assert_eq!(
        session.propose(b"late"),
        Err(SessionError::Refused(ProposeError::Stopped))
    );
    session.nodes().clear();
    assert_eq!(
        session.propose(b"to nobody"),
        Err(SessionError::Refused(ProposeError::Stopped))
    );
}

#[test]
fn a_machine_that_is_wrapped_later_or_not_any_more_is_refused() {
    let machine = || Machine {
        journal: Journal::default(),
        count: 0,
    };
    let wrapped = || Sessions::new(machine(), Limits::default());
    let start = |dir: &TempDir, is_wrapped: bool| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("it is bound").to_string();
        let config = small(Config {
            cluster_id: Some(7), // Each start has another port.
            ..Config::new(
                NodeId(1),
                dir.path(),
                vec![Member {
                    id: NodeId(1),
                    addr,
                }],
            )
        });
        match is_wrapped {
            true => Node::start_on(listener, config, wrapped()),
            false => Node::start_on(listener, config, machine()),
        }
    };
    for is_wrapped in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Also without a single entry: the directory says it from its first start on.
        let node = start(&dir, is_wrapped).expect("a new directory takes either");
        node.shutdown().expect("it leaves in order");
        for _ in 0..2 {
            let error = start(&dir, !is_wrapped)
                .expect_err("it is refused")
                .to_string();
            let (had, has) = match is_wrapped {
                true => (
                    "commands of a state machine wrapped in Sessions",
                    "with a state machine that is not wrapped",
                ),
                false => (
                    "commands of a state machine that is not wrapped",
                    "with a state machine wrapped in Sessions",
                ),
            };
            assert!(error.contains(had) && error.contains(has), "{error}");
        }
        let node = start(&dir, is_wrapped).expect("as before it starts");
        until("it leads", || node.status().role == Role::Leader);
    }
}

#[test]
fn nodes_of_which_one_is_wrapped_refuse_each_other() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let members: Vec<Member> = (1..)
        .zip(&listeners)
        .map(|(id, listener)| Member {
            id: NodeId(id),
            addr: listener.local_addr().expect("it is bound").to_string(),
        })
        .collect();
    let nodes = (1..).zip(listeners).map(|(id, listener)| {
        let path = dir.path().join(id.to_string());
        let config = small(Config::new(NodeId(id), path, members.clone()));
        let machine = Machine {
            journal: Journal::default(),
            count: 0,
        };
        let started = match id {
            1 => Node::start_on(listener, config, machine),
            _ => Node::start_on(listener, config, Sessions::new(machine, Limits::default())),
        };
        started.expect("the node starts")
    });
    let nodes: Vec<Node> = nodes.collect();
    until("both say why", || {
        nodes.iter().all(|node| {
            let refusals = node.status().refusals;
            refusals
                .iter()
                .any(|refusal| refusal.reason.contains("wrapped in Sessions"))
        })
    });
    assert!(nodes.iter().all(|node| node.leader().is_none()));
}
