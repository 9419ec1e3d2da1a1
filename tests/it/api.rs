//! Nodes in this process, through the public API alone.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use ringraft::{
    Batch, Config, Consistency, Fault, Index, Member, Node, NodeId, Pending, ProposeError, Reply,
    Role, StartError, StateMachine, Term, Threads,
};
use tempfile::TempDir;

use crate::ports::Ports;
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

const PLANS: [Threads; 2] = [Threads::Shared, Threads::PerStage { cores: Vec::new() }];

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

#[test]
fn a_group_of_one_commits_by_itself_and_numbers_its_entries() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
        let mut last = 0;
        for n in 1..=50u64 {
            let reply = answer(node.propose(&n.to_le_bytes()).expect("it is taken")).expect("done");
            assert_eq!(number(&reply), n, "the state machine's own reply");
            assert!(reply.index > last, "{} comes after {last}", reply.index);
            last = reply.index;
        }
        assert_eq!(read(&node, Consistency::Linearizable), 50);
        assert_eq!(read(&node, Consistency::Stale), 50);
        let status = node.status();
        assert_eq!(
            (status.applied, status.committed, status.durable),
            (last, last, last)
        );
        assert!(
            status.flushes > 0 && status.flushed_entries >= 50,
            "{status:?}"
        );
        assert_eq!(node.status().pending, 0);
        node.shutdown().expect("it leaves in order");
        node.shutdown().expect("twice is as good as once");
        assert_eq!(journal.count(), 50);
        assert_eq!(node.propose(b"late").map(drop), Err(ProposeError::Stopped));
        assert_eq!(
            node.read(b"", Consistency::Stale).map(drop),
            Err(ProposeError::Stopped)
        );
    }
}

#[test]
fn each_of_three_nodes_takes_proposals_and_all_apply_the_same() {
    for threads in PLANS {
        let three = Three::start(|config| config.threads = threads.clone());
        let mut under_way = Vec::new();
        for n in 0..200u32 {
            for (at, node) in three.nodes.iter().enumerate() {
                let command = format!("{at}/{n}");
                under_way.push((at, node.propose(command.as_bytes()).expect("it is taken")));
            }
        }
        let mut last_of = [0; 3];
        for (at, pending) in under_way {
            let reply = answer(pending).expect("it is committed");
            assert!(
                reply.index > last_of[at],
                "one thread's proposals on one node keep their order"
            );
            last_of[at] = reply.index;
        }
        for (node, journal) in three.nodes.iter().zip(&three.journals) {
            until("every node has applied all", || journal.count() == 600);
            assert!(node.status().error.is_none());
        }
        let commands: Vec<_> = three.journals.iter().map(Journal::commands).collect();
        assert_eq!(commands[0], commands[1]);
        assert_eq!(commands[1], commands[2]);
        for node in &three.nodes {
            node.shutdown().expect("it leaves in order");
        }
    }
}

#[test]
fn long_commands_go_through_rings_segments_and_wire() {
    let three = Three::start(|_| ());
    let leader = three.until_leader(&[0, 1, 2]);
    let long = |seed: u8, len: usize| (0..len).map(|n| n as u8 ^ seed).collect::<Vec<u8>>();
    // 60 times 64 KiB: several segments of 1 MiB.
    let sizes = [1, 255, 256, 257, 4096, MAX_ENTRY - 1, MAX_ENTRY];
    for round in 0..30u8 {
        for node in [leader, three.follower_of(leader)] {
            commit(&three.nodes[node], &long(round, MAX_ENTRY));
        }
    }
    for size in sizes {
        commit(&three.nodes[leader], &long(7, size));
    }
    let expected: Vec<_> = (0..30u8)
        .flat_map(|round| [long(round, MAX_ENTRY), long(round, MAX_ENTRY)])
        .chain(sizes.map(|size| long(7, size)))
        .collect();
    for journal in &three.journals {
        until("every node has applied all", || {
            journal.count() == expected.len() as u64
        });
        assert!(
            journal.commands() == expected,
            "the bytes arrive as they were sent"
        );
    }
    for node in &three.nodes {
        let refused = node.propose(&long(0, MAX_ENTRY + 1)).map(drop);
        assert_eq!(refused, Err(ProposeError::TooLarge { max: MAX_ENTRY }));
    }
}

#[test]
fn an_answer_can_be_waited_for_called_back_and_awaited() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
        let gate = journal.shut();

        // With a limit: given back when the time is over, still under way.
        let waited = node.propose(b"1").expect("it is taken");
        let waited = waited
            .wait_timeout(Duration::from_millis(1))
            .expect_err("apply waits");

        let (heard, hear) = mpsc::channel();
        let say = heard.clone();
        let called_back = node.propose(b"2").expect("it is taken");
        called_back.then(move |answer| say.send(answer).expect("the test listens"));

        let mut awaited = pin!(node.propose(b"3").expect("it is taken"));
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(flag.clone());
        let mut context = Context::from_waker(&waker);
        assert!(
            awaited.as_mut().poll(&mut context).is_pending(),
            "apply waits"
        );
        assert!(!flag.woken(), "nothing has happened yet");

        // Nobody will hear of this one; it is applied all the same.
        drop(node.propose(b"4").expect("it is taken"));

        gate.open();
        assert_eq!(number(&answer(waited).expect("applied")), 1);
        let second = hear
            .recv_timeout(DEADLINE)
            .expect("the callback runs")
            .expect("applied");
        assert_eq!(number(&second), 2);
        until("the waker is woken", || flag.woken());
        match awaited.as_mut().poll(&mut context) {
            Poll::Ready(Ok(reply)) => assert_eq!(number(&reply), 3),
            other => panic!("woken, and then {other:?}"),
        }
        until("the one without a listener is applied", || {
            journal.count() == 4
        });

        // An answer that is there already calls back too, and a callback that panics harms nobody.
        let late = node.propose(b"5").expect("it is taken");
        until("it is applied", || journal.count() == 5);
        late.then(move |answer| heard.send(answer).expect("the test listens"));
        let fifth = hear
            .recv_timeout(DEADLINE)
            .expect("the callback runs")
            .expect("applied");
        assert_eq!(number(&fifth), 5);
        node.propose(b"6")
            .expect("it is taken")
            .then(|_| panic!("a callback's own trouble"));
        assert_eq!(number(&commit(&node, b"7")), 7);
        until("every slot is free again", || node.status().pending == 0);
        node.shutdown()
            .expect("the callback's panic is not the node's");
    }
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Flag {
    fn woken(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn an_outbox_yields_answers_in_the_order_of_the_log() {
    for threads in PLANS {
        let three = Three::start(|config| config.threads = threads.clone());
        let readers: Vec<_> = three
            .nodes
            .iter()
            .map(|node| {
                let node = node.clone();
                std::thread::spawn(move || {
                    let reader = std::thread::current();
                    let mut outbox = node
                        .outbox(move || reader.unpark())
                        .expect("an outbox is free");
                    let (mut sent, mut heard, mut last) = (0, 0, 0);
                    let deadline = Instant::now() + DEADLINE;
                    while heard < 2000 {
                        assert!(
                            Instant::now() < deadline,
                            "{heard} of 2000 answers after {DEADLINE:?}"
                        );
                        while sent < 2000 {
                            match node.propose_to(outbox.id(), sent, &sent.to_le_bytes()) {
                                Ok(()) => sent += 1,
                                Err(ProposeError::Busy) => break,
                                Err(error) => panic!("proposing: {error}"),
                            }
                        }
                        let drained = outbox.drain(64, |tag, outcome, reply| {
                            let index = outcome.expect("an undisturbed cluster commits");
                            assert_eq!(tag, heard, "one thread's proposals keep their order");
                            assert!(index > last, "{index} after {last}");
                            assert_eq!(reply.len(), 8);
                            (heard, last) = (heard + 1, index);
                        });
                        if drained == 0 {
                            outbox.sleep(|| std::thread::park_timeout(DEADLINE));
                        }
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.join().expect("the reader is content");
        }
        for journal in &three.journals {
            until("every node has applied all", || journal.count() == 6000);
        }
    }
}

#[test]
fn an_outbox_carries_reads_and_there_are_fifteen() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (node, _journal) = alone(dir.path(), |_| ());
    let mut outboxes: Vec<_> = (0..15)
        .map(|_| node.outbox(|| ()).expect("fifteen can be had"))
        .collect();
    assert!(node.outbox(|| ()).is_none(), "and no more");
    let outbox = outboxes.last_mut().expect("fifteen");
    commit(&node, b"one");
    for (tag, how) in [(1, Consistency::Linearizable), (2, Consistency::Stale)] {
        node.read_to(outbox.id(), tag, b"", how)
            .expect("it is taken");
        let mut heard = None;
        until("the read is answered", || {
            outbox.drain(1, |tag, outcome, reply| {
                heard = Some((tag, outcome, reply.to_vec()))
            });
            heard.is_some()
        });
        let (of, outcome, reply) = heard.expect("it is answered");
        assert_eq!((of, reply), (tag, 1u64.to_le_bytes().to_vec()));
        assert!(outcome.is_ok());
    }
}

#[test]
fn a_node_with_all_it_can_bear_is_busy_and_recovers() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| {
            (config.threads, config.max_pending) = (threads.clone(), 64);
        });
        let gate = journal.shut();
        let taken: Vec<_> = (0..64)
            .map(|_| node.propose(b"x").expect("there is room for 64"))
            .collect();
        assert_eq!(node.propose(b"x").map(drop), Err(ProposeError::Busy));
        assert_eq!(
            node.read(b"", Consistency::Stale).map(drop),
            Err(ProposeError::Busy)
        );
        assert_eq!(node.status().pending, 64);
        gate.open();
        for (n, pending) in (1..).zip(taken) {
            assert_eq!(number(&answer(pending).expect("applied")), n);
        }
        assert_eq!(number(&commit(&node, b"again")), 65);
        node.shutdown().expect("it leaves in order");
        assert_eq!(journal.count(), 65, "what was refused was not applied");
    }
}

#[test]
fn bytes_of_long_commands_are_bounded_too() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (node, journal) = alone(dir.path(), |config| {
        (config.threads, config.max_spilled_bytes) = (Threads::Shared, 1000);
    });
    assert_eq!(node.propose(&[0; 1001]).map(drop), Err(ProposeError::Busy));
    // Many times the budget, one after the other: it is given back.
    for _ in 0..20 {
        commit(&node, &[0; 900]);
    }
    assert_eq!(journal.count(), 20);
}

#[test]
fn a_node_that_does_not_lead_says_who_does() {
    let three = Three::start(|_| ());
    let leader = three.until_leader(&[0, 1, 2]);
    let named = Some(NodeId(leader as u32 + 1));
    for (at, node) in three.nodes.iter().enumerate() {
        let outcome = answer(
            node.propose_as_leader(b"for the leader")
                .expect("it is taken"),
        );
        match outcome {
            Ok(_) => assert_eq!(at, leader),
            Err(error) => {
                assert_ne!(at, leader);
                assert_eq!(error, ProposeError::NotLeader { leader: named });
                assert!(error.definitely_not_applied());
            }
        }
    }

    let three = Three::start(|config| config.forward = false);
    let leader = three.until_leader(&[0, 1, 2]);
    let named = Some(NodeId(leader as u32 + 1));
    let follower = &three.nodes[three.follower_of(leader)];
    let outcome = answer(follower.propose(b"for the leader").expect("it is taken"));
    assert_eq!(outcome, Err(ProposeError::NotLeader { leader: named }));
    commit(&three.nodes[leader], b"for the leader");
    assert_eq!(three.journals[leader].count(), 1);
}

#[test]
fn a_linearizable_read_on_any_node_sees_what_any_other_acknowledged() {
    for threads in PLANS {
        let three = Three::start(|config| config.threads = threads.clone());
        for n in 1..=60 {
            commit(&three.nodes[n % 3], b"+");
            let seen = read(
                &three.nodes[(n + 1 + n / 3 % 2) % 3],
                Consistency::Linearizable,
            );
            assert_eq!(
                seen, n as u64,
                "all that was acknowledged before, and there was no more"
            );
        }
        for node in &three.nodes {
            let mut last = 0;
            until("a stale read gets there in the end", || {
                let seen = read(node, Consistency::Stale);
                assert!(
                    seen >= last,
                    "one node's past does not run backwards: {seen} after {last}"
                );
                last = seen;
                seen == 60
            });
        }
    }
}

#[test]
fn without_a_quorum_only_stale_reads_are_answered() {
    let three = Three::start(|config| config.proposal_timeout = Duration::from_millis(600));
    commit(&three.nodes[0], b"+");
    let left = three.until_leader(&[0, 1, 2]);
    for at in (0..3).filter(|&at| at != left) {
        three.nodes[at].shutdown_now();
    }
    assert_eq!(read(&three.nodes[left], Consistency::Stale), 1);
    // The leader of a moment ago must not believe itself.
    let outcome = answer(
        three.nodes[left]
            .read(b"", Consistency::Linearizable)
            .expect("it is taken"),
    );
    assert!(
        matches!(
            outcome,
            Err(ProposeError::NotLeader { .. } | ProposeError::Unknown)
        ),
        "{outcome:?}"
    );
    until("it steps down", || {
        three.nodes[left].status().role != Role::Leader
    });
    until("it knows that nobody leads", || {
        three.nodes[left].status().leader.is_none()
    });
    let outcome = answer(three.nodes[left].propose(b"+").expect("it is taken"));
    assert_eq!(outcome, Err(ProposeError::NotLeader { leader: None }));
    assert_eq!(read(&three.nodes[left], Consistency::Stale), 1);
}

#[test]
fn a_state_machine_that_fails_stops_its_node_and_everybody_hears() {
    for threads in PLANS {
        for (bad, says) in [(&b"panic"[..], "panicked"), (b"error", "error")] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
            let gate = journal.shut();
            let before = node.propose(b"good").expect("it is taken");
            let guilty = node.propose(bad).expect("it is taken");
            let after = node.propose(b"after").expect("it is taken");
            gate.open();
            let fault = until_some("the node says why it stopped", || node.status().error);
            let text = fault.to_string();
            assert!(matches!(fault, Fault::StateMachine(_)), "{text}");
            assert!(
                text.contains(says) && text.contains("the command said so"),
                "{text}"
            );
            assert_eq!(number(&answer(before).expect("it was applied before")), 1);
            for pending in [guilty, after] {
                let outcome = answer(pending);
                assert_eq!(
                    outcome,
                    Err(ProposeError::Unknown),
                    "it is in the log for ever"
                );
            }
            assert_eq!(node.propose(b"late").map(drop), Err(ProposeError::Stopped));
            let left = node.shutdown().expect_err("the fault is not forgotten");
            assert_eq!(left.to_string(), text);
            assert_eq!(journal.count(), 1);
        }
    }
}

#[test]
fn a_query_that_panics_stops_its_node_and_no_other() {
    let three = Three::start(|_| ());
    let leader = three.until_leader(&[0, 1, 2]);
    let follower = three.follower_of(leader);
    let outcome = answer(
        three.nodes[follower]
            .read(b"panic", Consistency::Stale)
            .expect("taken"),
    );
    assert!(outcome.is_err(), "{outcome:?}");
    let fault = until_some("the node says why", || three.nodes[follower].status().error);
    assert!(fault.to_string().contains("the query said so"), "{fault}");
    commit(&three.nodes[leader], b"goes on");
    assert!(three.nodes[leader].status().error.is_none());
}

#[test]
fn shutdown_answers_every_request() {
    for threads in PLANS {
        let three = Three::start(|config| {
            config.threads = threads.clone();
            config.proposal_timeout = Duration::from_millis(400);
        });
        let leader = three.until_leader(&[0, 1, 2]);
        let node = &three.nodes[leader];
        for at in (0..3).filter(|&at| at != leader) {
            three.nodes[at].shutdown_now();
        }
        // Nothing can be committed any more.
        let mut outbox = node.outbox(|| ()).expect("an outbox is free");
        let called = Arc::new(AtomicUsize::new(0));
        let mut waiting = Vec::new();
        for tag in 0..20 {
            waiting.push(node.propose(b"x").expect("it is taken"));
            node.propose_to(outbox.id(), tag, b"x")
                .expect("it is taken");
            let called = called.clone();
            node.propose(b"x")
                .expect("it is taken")
                .then(move |answer| {
                    assert!(answer.is_err());
                    called.fetch_add(1, Ordering::SeqCst);
                });
        }
        node.shutdown().expect("no fault: it was asked to");
        for pending in waiting {
            let outcome = answer(pending);
            assert!(outcome.is_err(), "nothing was committed: {outcome:?}");
        }
        let mut heard = 0;
        outbox.drain(usize::MAX, |_, outcome, _| {
            assert!(outcome.is_err());
            heard += 1;
        });
        assert_eq!(heard, 20, "when shutdown returns, all answers are there");
        assert_eq!(called.load(Ordering::SeqCst), 20);
        assert_eq!(node.status().pending, 0);
    }
}

#[test]
fn shutdown_finishes_what_can_be_finished() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
        let waiting: Vec<_> = (0..500)
            .map(|_| node.propose(b"x").expect("it is taken"))
            .collect();
        node.shutdown().expect("it leaves in order");
        let mut done = 0;
        for pending in waiting {
            match answer(pending) {
                Ok(_) => done += 1,
                Err(error) => assert_eq!(error, ProposeError::Stopped, "nothing is left in doubt"),
            }
        }
        assert_eq!(journal.count(), done);
    }
}

#[test]
fn a_restart_replays_the_log_in_order_after_a_clean_end_and_after_a_crash() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut acknowledged: Vec<Vec<u8>> = Vec::new();
    let payload = vec![b'.'; 20_000]; // 60 a round: a segment and more.
    for (round, threads) in PLANS.iter().cycle().take(4).enumerate() {
        let (node, journal) = alone(dir.path(), |config| config.threads = threads.clone());
        until("the log is replayed", || {
            journal.count() >= acknowledged.len() as u64
        });
        assert!(
            journal.commands() == acknowledged,
            "round {round}: all of it, once, in order"
        );
        let mut pending = Vec::new();
        for n in 0..60 {
            let mut command = format!("{round}/{n}").into_bytes();
            command.extend_from_slice(&payload);
            pending.push(node.propose(&command).expect("it is taken"));
            acknowledged.push(command);
        }
        for pending in pending {
            answer(pending).expect("it is committed");
        }
        if round % 2 == 0 {
            node.shutdown_now();
        } else {
            node.shutdown().expect("it leaves in order");
        }
    }
}

#[test]
fn a_directory_belongs_to_one_node_at_a_time_and_to_one_cluster() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let named = dir.path().display().to_string();
    let (node, _) = alone(dir.path(), |_| ());
    let error = start_alone(dir.path(), |_| ())
        .expect_err("the directory is in use")
        .to_string();
    assert!(
        error.contains(&named) && error.contains("in use"),
        "{error}"
    );
    commit(&node, b"the first is not disturbed");
    node.shutdown().expect("it leaves in order");

    let error = start_alone(dir.path(), |config| config.cluster_id = Some(8))
        .expect_err("the directory is another cluster's")
        .to_string();
    assert!(
        error.contains(&named) && error.contains("cluster"),
        "{error}"
    );
    let (node, journal) = alone(dir.path(), |_| ());
    until("nothing was changed by the attempts", || {
        journal.count() == 1
    });
    drop(node);
}

#[test]
fn the_state_machine_hears_of_terms_and_leadership() {
    for threads in PLANS {
        let three = Three::start(|config| config.threads = threads.clone());
        let first = three.until_leader(&[0, 1, 2]);
        let first_term = three.nodes[first].status().term;
        commit(&three.nodes[first], b"x");
        until("the leader's machine is told", || {
            three.journals[first]
                .told()
                .contains(&Told::LeaderStart(first_term))
        });
        three.nodes[first].shutdown().expect("it leaves in order");
        assert!(
            three.journals[first]
                .told()
                .contains(&Told::LeaderStop(first_term)),
            "a start is followed by a stop, at shutdown at the latest"
        );

        let others: Vec<usize> = (0..3).filter(|&at| at != first).collect();
        let second = three.until_leader(&others);
        let second_term = three.nodes[second].status().term;
        assert!(second_term > first_term);
        until("the next leader's machine is told", || {
            three.journals[second]
                .told()
                .contains(&Told::LeaderStart(second_term))
        });
        for at in others {
            until("all have the new term's first entry", || {
                three.journals[at]
                    .told()
                    .contains(&Told::NewTerm(second_term))
            });
            three.nodes[at].shutdown().expect("it leaves in order");
        }
        for journal in &three.journals {
            check_leadership(&journal.told());
        }
    }
}

/// Terms begin in order; a leadership begins after its term did, and ends before the next begins.
fn check_leadership(told: &[Told]) {
    let (mut term, mut leading) = (0, None);
    for what in told {
        match *what {
            Told::NewTerm(next) => {
                assert!(next > term, "term {next} after {term}: {told:?}");
                term = next;
            }
            Told::LeaderStart(of) => {
                assert_eq!((of, leading), (term, None), "{told:?}");
                leading = Some(of);
            }
            Told::LeaderStop(of) => assert_eq!(leading.take(), Some(of), "{told:?}"),
            Told::Applied(..) => {}
        }
    }
    assert_eq!(leading, None, "every start has its stop: {told:?}");
}

#[test]
fn what_a_follower_attaches_reaches_the_leader() {
    let three = Three::start(|_| ());
    for text in ["first", "second, and longer", ""] {
        for (at, node) in three.nodes.iter().enumerate() {
            node.set_piggyback(format!("{at} {text}").as_bytes());
        }
        let leader = &three.nodes[three.until_leader(&[0, 1, 2])];
        until("the leader has heard from both", || {
            let peers = leader.status().peers;
            peers.len() == 2
                && peers.iter().all(|peer| {
                    peer.active && peer.piggyback == format!("{} {text}", peer.id.0 - 1).as_bytes()
                })
        });
    }
    // What is too long is cut, not refused.
    let leader = three.until_leader(&[0, 1, 2]);
    let follower = three.follower_of(leader);
    three.nodes[follower].set_piggyback(&[b'x'; 100]);
    until("64 bytes arrive", || {
        let peers = three.nodes[leader].status().peers;
        peers.iter().any(|peer| peer.piggyback == [b'x'; 64])
    });
}

#[test]
fn an_embedder_can_drive_a_node_from_its_own_loop() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut ports = Ports::claim();
    let addr = format!("127.0.0.1:{}", ports.next());
    let members = vec![Member {
        id: NodeId(1),
        addr,
    }];
    let config = small(Config::new(NodeId(1), dir.path(), members));
    let journal = Journal::default();
    let machine = Machine {
        journal: journal.clone(),
        count: 0,
    };
    let (node, mut driver) = Node::start_driven(config, machine).expect("the node starts");

    let turn = |driver: &mut ringraft::Driver| {
        if !driver.poll() {
            driver.wait(Duration::from_millis(10));
        }
    };
    until("it leads", || {
        turn(&mut driver);
        node.status().role == Role::Leader
    });
    let mut pending: Vec<_> = (0..100u8)
        .map(|n| node.propose(&[n]).expect("it is taken"))
        .collect();
    let mut done = 0;
    until("all are answered", || {
        turn(&mut driver);
        for waiting in std::mem::take(&mut pending) {
            match waiting.wait_timeout(Duration::ZERO) {
                Ok(outcome) => {
                    outcome.expect("it is committed");
                    done += 1;
                }
                Err(waiting) => pending.push(waiting),
            }
        }
        pending.is_empty()
    });
    assert_eq!((done, journal.count()), (100, 100));

    // A proposal from another thread wakes a driver that waits.
    let other = node.clone();
    let from_afar = std::thread::spawn(move || commit(&other, b"from afar"));
    until("the other thread has its answer", || {
        if !driver.poll() {
            driver.wait(DEADLINE);
        }
        from_afar.is_finished()
    });
    from_afar.join().expect("it was committed");

    node.shutdown().expect("it is asked to leave");
    until("it has left", || {
        turn(&mut driver);
        !driver.is_running()
    });
    assert!(!driver.poll());
    assert_eq!(node.propose(b"late").map(drop), Err(ProposeError::Stopped));
}
