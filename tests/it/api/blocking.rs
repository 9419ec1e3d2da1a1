//! User code that blocks: the node's consensus goes on and time limits are kept, whichever piece of user code it is. User code
//! that would wait for its own node is refused.

use std::sync::mpsc;

use ringraft::session::{Session, SessionError};
use ringraft::{Driver, SnapshotWriter};

use super::*;
use crate::ports::Ports;

/// Rounds of a heartbeat and its answer that must come while user code stands.
const ROUNDS: u64 = 50;

/// The default of this machine, and that of another.
fn plans() -> [Threads; 2] {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let other = match cores >= 8 {
        true => Threads::SeparateApply,
        false => Threads::PerStage { cores: Vec::new() },
    };
    [Threads::Auto, other]
}

/// Runs a test with each plan, side by side.
fn with_each_plan(test: impl Fn(&Threads) + Sync) {
    std::thread::scope(|scope| {
        for threads in plans() {
            let test = &test;
            scope.spawn(move || test(&threads));
        }
    });
}

/// Where user code stands still until it is let go.
#[derive(Clone, Default)]
struct Barrier(Arc<Bars>);

#[derive(Default)]
struct Bars {
    shut: Mutex<Option<&'static str>>,
    opened: Condvar,
    stands: AtomicBool,
}

impl Barrier {
    fn shut(&self, at: &'static str) -> Opener {
        *self.0.shut.lock().expect("nobody panics with it") = Some(at);
        self.0.stands.store(false, Ordering::Release);
        Opener(self.clone())
    }

    fn pass(&self, at: &str) {
        let shut = self.0.shut.lock().expect("nobody panics with it");
        if *shut == Some(at) {
            self.0.stands.store(true, Ordering::Release);
            let opened = &self.0.opened;
            drop(
                opened
                    .wait_while(shut, |shut| *shut == Some(at))
                    .expect("nobody panics with it"),
            );
        }
    }

    fn until_somebody_stands(&self) {
        let shut = *self.0.shut.lock().expect("nobody panics with it");
        until(format!("something stands at the barrier {shut:?}"), || {
            self.0.stands.load(Ordering::Acquire)
        });
    }
}

/// Opens the barrier, also when its test fails: the node would never end.
struct Opener(Barrier);

impl Drop for Opener {
    fn drop(&mut self) {
        *self.0.0.shut.lock().expect("nobody panics with it") = None;
        self.0.0.opened.notify_all();
    }
}

struct Blocking(Barrier);

impl StateMachine for Blocking {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while batch.next().is_some() {
            self.0.pass("apply");
        }
        Ok(())
    }

    fn query(&self, _: &[u8], _: &mut Vec<u8>) {
        self.0.pass("query");
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        self.0.pass("snapshot");
        Ok(Box::new(|_| Ok(())))
    }

    fn new_term(&mut self, _: Term, _: Index, _: u64) {
        self.0.pass("new_term");
    }

    fn leader_start(&mut self, _: Term) {
        self.0.pass("leader_start");
    }
}

struct Group {
    nodes: Vec<Node>,
    leader: usize,
    term: Term,
    _dir: TempDir,
}

impl Group {
    fn start(threads: &Threads, barrier: &Barrier) -> Self {
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
        let start = |(id, listener)| {
            let path = dir.path().join(format!("node-{id}"));
            let config = Config {
                // Long, so that a loaded machine deposes nobody; the heartbeats that are counted are as frequent as ever.
                election_timeout: Duration::from_secs(1),
                heartbeat: Duration::from_millis(10),
                threads: threads.clone(),
                forward: false,
                ..small(Config::new(NodeId(id), path, members.clone()))
            };
            Node::start_on(listener, config, Blocking(barrier.clone())).expect("the node starts")
        };
        let nodes: Vec<Node> = (1..).zip(listeners).map(start).collect();
        let (leader, term) = until_some("a leader on whom all agree", || {
            let leader = nodes.iter().position(|n| n.status().role == Role::Leader)?;
            let id = Some(NodeId(leader as u32 + 1));
            let term = nodes[leader].status().term;
            let agreed = |node: &Node| node.leader() == id && node.status().term == term;
            nodes.iter().all(agreed).then_some((leader, term))
        });
        Self {
            nodes,
            leader,
            term,
            _dir: dir,
        }
    }

    fn leader(&self) -> &Node {
        &self.nodes[self.leader]
    }

    fn follower(&self) -> &Node {
        &self.nodes[(self.leader + 1) % 3]
    }

    /// The leader's heartbeats reach the follower, and its answers the leader, again and again, and nobody is elected.
    fn heartbeats_go_on(&self, what: &str) {
        let follower = self.follower().status().id;
        for round in 0..ROUNDS {
            let mark = round.to_le_bytes();
            self.follower().set_piggyback(&mark);
            until(format!("{what}: heartbeat {round} is answered"), || {
                for node in &self.nodes {
                    assert_eq!(node.status().term, self.term, "{what}: an election");
                }
                let peers = self.leader().status().peers;
                let heard = peers.iter().find(|peer| peer.id == follower);
                heard.is_some_and(|peer| peer.piggyback == mark)
            });
        }
    }
}

#[test]
fn a_machine_that_blocks_on_the_leader_deposes_nobody() {
    with_each_plan(|threads| {
        let barrier = Barrier::default();
        let group = Group::start(threads, &barrier);
        for what in ["apply", "query", "snapshot"] {
            let opener = barrier.shut(what);
            let node = group.leader();
            let request = match what {
                "apply" => node.propose(b"x"),
                "query" => node.read(b"", Consistency::Stale),
                _ => node.snapshot(),
            };
            barrier.until_somebody_stands();
            group.heartbeats_go_on(&format!("{what}, {threads:?}"));
            drop(opener);
            let answered = answer(request.expect("it is taken"));
            assert!(answered.is_ok(), "{what}: {answered:?}");
        }
    });
}

#[test]
fn a_machine_that_blocks_when_its_node_is_elected_keeps_it_in_office() {
    with_each_plan(|threads| {
        for what in ["new_term", "leader_start"] {
            let barrier = Barrier::default();
            let opener = barrier.shut(what);
            let group = Group::start(threads, &barrier);
            barrier.until_somebody_stands();
            group.heartbeats_go_on(&format!("{what}, {threads:?}"));
            drop(opener);
        }
    });
}

/// Callbacks, wakers and the notifications of outboxes are user code as well.
#[test]
fn a_callback_that_blocks_holds_up_no_heartbeat() {
    with_each_plan(|threads| {
        let (barrier, barrier_of_machine) = (Barrier::default(), Barrier::default());
        let group = Group::start(threads, &barrier_of_machine);
        for what in ["callback", "refused callback", "notify"] {
            let opener = barrier.shut(what);
            let its = barrier.clone();
            let mut reader = None;
            match what {
                "callback" => {
                    let at_apply = barrier_of_machine.shut("apply");
                    let pending = group.leader().propose(b"x").expect("it is taken");
                    barrier_of_machine.until_somebody_stands();
                    pending.then(move |_| its.pass(what));
                    drop(at_apply);
                }
                // What is refused is answered by the consensus stage itself. When that is sooner than the callback is attached,
                // it runs here.
                "refused callback" => until("a thread of the node runs the callback", || {
                    let (its, (ran_here, here)) = (its.clone(), mpsc::channel());
                    let test = std::thread::current().id();
                    let pending = group.follower().propose(b"x").expect("it is taken");
                    pending.then(move |_| match std::thread::current().id() == test {
                        true => ran_here.send(()).expect("the test waits"),
                        false => its.pass(what),
                    });
                    here.try_recv().is_err()
                }),
                _ => {
                    let outbox = group.follower().outbox(move || its.pass(what));
                    let mut outbox = outbox.expect("the first one");
                    let id = outbox.id();
                    let ((asleep, sleeps), (wake, woken)) = (mpsc::channel(), mpsc::channel());
                    let sleep = move || {
                        asleep.send(()).expect("the test waits");
                        let _ = woken.recv();
                    };
                    let thread = std::thread::spawn(move || outbox.sleep(sleep));
                    sleeps.recv().expect("it goes to sleep");
                    group
                        .follower()
                        .propose_to(id, 1, b"x")
                        .expect("it is taken");
                    reader = Some((thread, wake as mpsc::Sender<()>));
                }
            }
            barrier.until_somebody_stands();
            group.heartbeats_go_on(&format!("{what}, {threads:?}"));
            drop(opener);
            if let Some((thread, wake)) = reader {
                drop(wake);
                assert!(thread.join().expect("the reader does not panic"));
            }
        }
    });
}

/// A node of one with this machine, who runs it if it is driven, and the claim on its port.
fn alone_with(
    dir: &TempDir,
    machine: impl StateMachine,
    threads: Option<&Threads>,
) -> (Node, Option<Driver>, Ports) {
    let mut ports = Ports::claim();
    let member = Member {
        id: NodeId(1),
        addr: format!("127.0.0.1:{}", ports.next()),
    };
    let mut config = small(Config::new(NodeId(1), dir.path(), vec![member]));
    hasty(&mut config);
    let Some(threads) = threads else {
        let (node, driver) = Node::start_driven(config, machine).expect("the node starts");
        return (node, Some(driver), ports);
    };
    config.threads = threads.clone();
    let node = Node::start(config, machine).expect("the node starts");
    (node, None, ports)
}

/// Runs a driven node until that is dropped.
struct Driving(Option<std::thread::JoinHandle<()>>, Arc<AtomicBool>);

impl Driving {
    fn begin(driver: Option<Driver>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let its = stop.clone();
        let drive = |mut driver: Driver| {
            std::thread::spawn(move || {
                while !its.load(Ordering::Acquire) {
                    if !driver.poll() {
                        driver.wait(Duration::from_millis(5));
                    }
                }
            })
        };
        Self(driver.map(drive), stop)
    }
}

impl Drop for Driving {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Release);
        if let Some(thread) = self.0.take() {
            thread.join().expect("the driver does not panic");
        }
    }
}

/// Also those of a node whose only thread is the one that stands still.
#[test]
fn time_limits_are_kept_while_user_code_blocks() {
    let plans = super::PLANS.map(Some).into_iter().chain([None]);
    std::thread::scope(|scope| {
        for threads in plans {
            scope.spawn(move || {
                for what in ["apply", "query", "snapshot"] {
                    let dir = TempDir::new().expect("a temporary directory");
                    let barrier = Barrier::default();
                    let (node, driver, _ports) =
                        alone_with(&dir, Blocking(barrier.clone()), threads.as_ref());
                    let driving = Driving::begin(driver);
                    node.wait_for_leader(DEADLINE).expect("it elects itself");
                    commit(&node, b"there is something");
                    let opener = barrier.shut(what);
                    let blocks = match what {
                        "apply" => node.propose(b"x"),
                        "query" => node.read(b"", Consistency::Stale),
                        _ => node.snapshot(),
                    };
                    let blocks = blocks.expect("it is taken");
                    barrier.until_somebody_stands();
                    let behind = [
                        node.propose(b"y"),
                        node.read(b"", Consistency::Stale),
                        node.read(b"", Consistency::Linearizable),
                        node.snapshot(),
                    ];
                    for pending in behind {
                        let outcome = answer(pending.expect("it is taken"));
                        assert_eq!(outcome, Err(ProposeError::Unknown), "{what}, {threads:?}");
                    }
                    // A snapshot that has begun may take long: its writing does.
                    if what != "snapshot" {
                        assert_eq!(answer(blocks), Err(ProposeError::Unknown), "{threads:?}");
                    } else {
                        drop(blocks);
                    }
                    if threads
                        .as_ref()
                        .is_some_and(|threads| *threads != Threads::Shared)
                    {
                        let (told, hears) = mpsc::channel();
                        let pending = node.propose(b"z").expect("it is taken");
                        pending.then(move |outcome| told.send(outcome).expect("the test waits"));
                        let outcome = hears.recv_timeout(DEADLINE).expect("the callback runs");
                        assert_eq!(outcome, Err(ProposeError::Unknown), "{what}, {threads:?}");
                    }
                    drop(opener);
                    // All slots are free again, and it goes on.
                    commit(&node, b"goes on");
                    until("nothing is left", || node.status().pending == 0);
                    drop(driving);
                }
            });
        }
    });
}

/// Waits for its own node, wherever it is told to.
struct Waiting {
    node: Arc<std::sync::OnceLock<Node>>,
    told: mpsc::Sender<Vec<ProposeError>>,
}

fn every_wait(node: &Node) -> Vec<ProposeError> {
    let refused = |outcome: Result<Reply, ProposeError>| outcome.expect_err("it would wait");
    let limit = DEADLINE;
    let session = Session::open([node.clone()], limit).expect_err("it would wait");
    let SessionError::Refused(session) = session else {
        panic!("{session}");
    };
    let mut seen = vec![session];
    for pending in [
        node.propose(b"x"),
        node.read(b"", Consistency::Linearizable),
    ] {
        seen.push(refused(pending.expect("it is taken").wait()));
    }
    let pending = node.propose(b"x").expect("it is taken");
    let waited = pending.wait_timeout(limit);
    seen.push(refused(waited.expect("no time has passed")));
    seen
}

impl StateMachine for Waiting {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while let Some((entry, _)) = batch.next() {
            if entry.command == b"wait" {
                let node = self.node.get().expect("the test has set it");
                self.told.send(every_wait(node)).expect("the test waits");
            }
        }
        Ok(())
    }

    fn query(&self, query: &[u8], _: &mut Vec<u8>) {
        if query == b"wait" {
            let node = self.node.get().expect("the test has set it");
            self.told.send(every_wait(node)).expect("the test waits");
        }
    }
}

#[test]
fn user_code_that_would_wait_for_its_own_node_is_refused_at_once() {
    for threads in super::PLANS.map(Some).into_iter().chain([None]) {
        let dir = TempDir::new().expect("a temporary directory");
        let slot = Arc::new(std::sync::OnceLock::new());
        let (told, hears) = mpsc::channel();
        let machine = Waiting {
            node: slot.clone(),
            told: told.clone(),
        };
        let (node, driver, _ports) = alone_with(&dir, machine, threads.as_ref());
        slot.set(node.clone()).expect("it is set once");
        let driving = Driving::begin(driver);
        node.wait_for_leader(DEADLINE).expect("it elects itself");
        let hear = |what: &str| {
            let seen = hears.recv_timeout(DEADLINE).expect("user code goes on");
            let expected = vec![ProposeError::WouldDeadlock; 4];
            assert_eq!(seen, expected, "{what}, {threads:?}");
        };

        answer(node.propose(b"wait").expect("it is taken")).expect("it is applied");
        hear("apply");
        let read = node.read(b"wait", Consistency::Stale);
        answer(read.expect("it is taken")).expect("it is answered");
        hear("query");

        until("a thread of the node runs the callback", || {
            let (node, test) = (node.clone(), std::thread::current().id());
            let (told, its) = (told.clone(), node.clone());
            let (ran_here, here) = mpsc::channel();
            let pending = node.propose(b"x").expect("it is taken");
            pending.then(move |_| match std::thread::current().id() == test {
                true => ran_here.send(()).expect("the test waits"),
                false => told.send(every_wait(&its)).expect("the test waits"),
            });
            here.try_recv().is_err()
        });
        hear("callback");

        let (its, told) = (node.clone(), told.clone());
        let notify = move || told.send(every_wait(&its)).expect("the test waits");
        let mut outbox = node.outbox(notify).expect("the first one");
        let id = outbox.id();
        outbox.sleep(|| {
            node.propose_to(id, 1, b"x").expect("it is taken");
            hear("notify");
        });
        // The machine holds a handle on its own node, which ends when it is told to.
        node.shutdown().expect("it leaves in order");
        drop(driving);
    }
}
