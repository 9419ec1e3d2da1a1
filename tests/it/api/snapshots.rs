//! Snapshots through the public API: taken when asked for, by size and at an exact index; restored at a start; the log
//! lets go of its front; state machines with a disk of their own.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringraft::{
    Batch, Config, Consistency, Index, Member, Node, NodeId, ProposeError, ReadCommittedError,
    Role, SnapshotWriter, StartError, StateMachine,
};

use crate::api::{PLANS, alone, answer, commit, number, read, small};
use crate::{until, until_some};

/// The test's hold on a [`Tally`].
#[derive(Clone, Default)]
struct Hold {
    /// Commands that `apply` has seen in this life.
    applied: Arc<AtomicU64>,
    /// Writers wait while it is set.
    shut: Arc<AtomicBool>,
    /// The next writer fails.
    fails: Arc<AtomicBool>,
    /// What a machine with a disk of its own has on it: the last index, and the count.
    disk: Arc<Mutex<(Index, u64)>>,
}

/// Counts commands; its reply is how many there are. `snap` takes a snapshot right behind itself.
struct Tally {
    hold: Hold,
    count: u64,
    own_disk: bool,
}

impl StateMachine for Tally {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        let mut next = batch.next();
        while let Some((entry, reply)) = next {
            let (index, snap) = (entry.index, entry.command == b"snap");
            let known = self.own_disk && index <= self.hold.disk.lock().expect("sound").0;
            if !known {
                self.count += 1;
                self.hold.applied.fetch_add(1, Ordering::Relaxed);
                if self.own_disk {
                    *self.hold.disk.lock().expect("sound") = (index, self.count);
                }
            }
            reply.extend_from_slice(&self.count.to_le_bytes());
            if snap {
                batch.snapshot_here();
            }
            next = batch.next();
        }
        Ok(())
    }

    fn query(&self, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&self.count.to_le_bytes());
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let (count, hold) = (self.count, self.hold.clone());
        Ok(Box::new(move |out: &mut dyn Write| {
            until("the test lets the writer go on", || {
                !hold.shut.load(Ordering::Relaxed)
            });
            if hold.fails.swap(false, Ordering::Relaxed) {
                return Err(io::Error::other("the test said so"));
            }
            out.write_all(&count.to_le_bytes())
        }))
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        self.count = u64::from_le_bytes(bytes);
        Ok(())
    }

    fn open(&mut self) -> io::Result<Index> {
        if !self.own_disk {
            return Ok(0);
        }
        let (index, count) = *self.hold.disk.lock().expect("sound");
        self.count = count;
        Ok(index)
    }
}

fn try_start(
    dir: &Path,
    hold: &Hold,
    own_disk: bool,
    change: impl FnOnce(&mut Config),
) -> Result<Node, StartError> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound").to_string();
    let members = vec![Member {
        id: NodeId(1),
        addr,
    }];
    let mut config = small(Config {
        cluster_id: Some(7), // Each start has another port.
        log_tail_entries: 0,
        ..Config::new(NodeId(1), dir, members)
    });
    change(&mut config);
    let machine = Tally {
        hold: hold.clone(),
        count: 0,
        own_disk,
    };
    Node::start_on(listener, config, machine)
}

fn start(dir: &Path, hold: &Hold, own_disk: bool, change: impl FnOnce(&mut Config)) -> Node {
    let node = try_start(dir, hold, own_disk, change).expect("the node starts");
    until("the only node leads", || node.status().role == Role::Leader);
    node
}

fn snapshot(node: &Node) -> Result<Index, ProposeError> {
    answer(node.snapshot().expect("it is taken")).map(|reply| reply.index)
}

#[test]
fn a_snapshot_is_taken_when_asked_for_and_a_start_begins_with_it() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let hold = Hold::default();
        let node = start(dir.path(), &hold, false, |c| c.threads = threads.clone());
        let indexes = [0; 20].map(|_| commit(&node, b"+").index);
        let taken = snapshot(&node).expect("there is something new");
        assert_eq!(taken, indexes[19], "of all that was applied");
        assert_eq!(
            snapshot(&node),
            Ok(taken),
            "with nothing new the one there is"
        );
        let status = node.status().snapshot;
        assert_eq!((status.taken, status.index), (1, taken), "{status:?}");
        assert!(status.taken_unix_us > 0 && status.bytes > 0, "{status:?}");
        commit(&node, b"+");
        node.shutdown().expect("it leaves in order");

        let again = Hold::default();
        let node = start(dir.path(), &again, false, |c| c.threads = threads.clone());
        assert_eq!(read(&node, Consistency::Linearizable), 21);
        assert_eq!(
            again.applied.load(Ordering::Relaxed),
            1,
            "what the snapshot has is not applied again"
        );
        node.shutdown().expect("it leaves in order");
    }
}

#[test]
fn one_snapshot_at_a_time_and_commands_are_applied_meanwhile() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hold = Hold::default();
    let node = start(dir.path(), &hold, false, |_| ());
    let first = commit(&node, b"+").index;
    hold.shut.store(true, Ordering::Relaxed);
    let slow = node.snapshot().expect("taken");
    until("it is being written", || {
        answer(node.snapshot().expect("taken")) == Err(ProposeError::SnapshotRunning)
    });
    for n in 2..=50 {
        assert_eq!(number(&commit(&node, b"+")), n, "applied beside the writer");
    }
    hold.shut.store(false, Ordering::Relaxed);
    assert_eq!(answer(slow).expect("it is finished").index, first);
    assert!(snapshot(&node).expect("there is more now") > first);
}

#[test]
fn a_snapshot_that_fails_costs_only_itself() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hold = Hold::default();
    let node = start(dir.path(), &hold, false, |_| ());
    commit(&node, b"+");
    hold.fails.store(true, Ordering::Relaxed);
    assert_eq!(snapshot(&node), Err(ProposeError::NoSnapshot));
    let trouble = node.status().snapshot.trouble.expect("the status says why");
    assert!(trouble.contains("the test said so"), "{trouble}");
    let index = commit(&node, b"+").index;
    assert_eq!(snapshot(&node), Ok(index));
    assert_eq!(node.status().snapshot.trouble, None, "it is over");
}

#[test]
fn a_state_machine_without_snapshots_keeps_its_log() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (node, _) = alone(dir.path(), |config| config.snapshot_every_entries = 1);
    for _ in 0..10 {
        commit(&node, b"+");
    }
    assert_eq!(snapshot(&node), Err(ProposeError::NoSnapshot));
    assert!(node.status().error.is_none());
    assert_eq!(node.status().first, 1);
}

#[test]
fn the_log_lets_go_of_what_two_snapshots_stand_for_and_the_rest_can_be_read_back() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hold = Hold::default();
    let node = start(dir.path(), &hold, false, |config| {
        config.segment_bytes = 256 << 10;
        config.snapshot_every_bytes = 400 << 10;
    });
    let long = vec![b'x'; 32 << 10];
    let last = until_some("the front of the log goes", || {
        let reply = commit(&node, &long);
        (node.status().first > 1).then_some(reply.index)
    });
    let first = node.status().first;
    let gone = node.read_committed(1);
    assert_eq!(gone, Err(ReadCommittedError::Compacted { first }));
    let entry = node.read_committed(last).expect("it is in the log");
    assert_eq!((entry.index, entry.command), (last, Some(long)));
    assert_eq!(entry.origin, NodeId(1));
    let ahead = node.read_committed(last + 1);
    assert_eq!(
        ahead,
        Err(ReadCommittedError::NotCommitted { committed: last })
    );
    let count = read(&node, Consistency::Linearizable);
    node.shutdown().expect("it leaves in order");

    let node = start(dir.path(), &Hold::default(), false, |config| {
        config.segment_bytes = 256 << 10;
    });
    assert_eq!(read(&node, Consistency::Linearizable), count);
    assert!(node.status().first >= first, "what is gone stays gone");
}

#[test]
fn a_snapshot_can_be_of_an_exact_index() {
    for threads in PLANS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = start(dir.path(), &Hold::default(), false, |c| c.threads = threads);
        let under_way: Vec<_> = (0..100)
            .map(|n| if n == 40 { &b"snap"[..] } else { b"+" })
            .map(|command| node.propose(command).expect("it is taken"))
            .collect();
        let replies: Vec<_> = under_way
            .into_iter()
            .map(|pending| answer(pending).expect("committed"))
            .collect();
        until("the snapshot is there", || {
            node.status().snapshot.taken == 1
        });
        assert_eq!(node.status().snapshot.index, replies[40].index);
        assert_eq!(
            number(&replies[99]),
            100,
            "those behind it were applied too"
        );
    }
}

#[test]
fn a_state_machine_with_a_disk_of_its_own_goes_on_from_there() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hold = Hold::default();
    let node = start(dir.path(), &hold, true, |_| ());
    for _ in 0..30 {
        commit(&node, b"+");
    }
    node.shutdown().expect("it leaves in order");
    assert_eq!(hold.applied.swap(0, Ordering::Relaxed), 30);

    let node = start(dir.path(), &hold, true, |_| ());
    assert_eq!(read(&node, Consistency::Linearizable), 30);
    assert_eq!(hold.applied.load(Ordering::Relaxed), 0, "it has them");
    node.shutdown().expect("it leaves in order");

    // A copy of another node's disk, or an older log.
    hold.disk.lock().expect("sound").0 += 1000;
    let refused = try_start(dir.path(), &hold, true, |_| ()).expect_err("it is ahead of the log");
    let says = refused.to_string();
    assert!(
        says.contains("the log ends with")
            && says.contains("applied everything up to")
            && says.contains("no peer to get them from"),
        "{says}"
    );
}

/// One of three nodes whose state machines have disks of their own.
fn one_of_three(dir: &Path, members: &[Member], at: usize, hold: &Hold) -> Node {
    let id = members[at].id;
    let path = dir.join(id.0.to_string());
    let mut config = small(Config::new(id, path, members.to_vec()));
    config.election_timeout = Duration::from_secs(1);
    let machine = Tally {
        hold: hold.clone(),
        count: 0,
        own_disk: true,
    };
    let listener = TcpListener::bind(&members[at].addr).expect("its own port");
    Node::start_on(listener, config, machine).expect("the node starts")
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("it is there") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), &to).expect("copied")),
        }
    }
}

#[test]
fn a_disk_that_is_ahead_of_a_log_with_peers_waits_for_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let holds = [Hold::default(), Hold::default(), Hold::default()];
    let reserved = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let members: Vec<Member> = (1..)
        .zip(&reserved)
        .map(|(id, listener)| Member {
            id: NodeId(id),
            addr: listener.local_addr().expect("it is bound").to_string(),
        })
        .collect();
    drop(reserved);
    let start = |at: usize| one_of_three(dir.path(), &members, at, &holds[at]);
    let mut nodes: Vec<Node> = (0..3).map(start).collect();
    let mut last = 0;
    for _ in 0..30 {
        last = commit(&nodes[0], b"+").index;
    }
    let has_all = |node: &Node, last: Index| {
        until("all is applied", || node.status().applied >= last);
    };
    has_all(&nodes[2], last);
    nodes[2].shutdown().expect("it leaves in order");
    // What a power failure leaves of the log, when it comes before the next flush.
    let (log, flushed) = (dir.path().join("3"), dir.path().join("flushed"));
    copy_folder(&log, &flushed);
    nodes[2] = start(2);
    for _ in 0..30 {
        last = commit(&nodes[0], b"+").index;
    }
    has_all(&nodes[2], last);
    nodes[2].shutdown().expect("it leaves in order");
    std::fs::remove_dir_all(&log).expect("removed");
    copy_folder(&flushed, &log);
    // The peers are down: the node has only what is left.
    for node in &nodes[..2] {
        node.shutdown().expect("it leaves in order");
    }
    let machine_has = holds[2].disk.lock().expect("sound").0;
    holds[2].applied.store(0, Ordering::Relaxed);

    nodes[2] = start(2);
    let status = nodes[2].status();
    assert!(status.last < machine_has, "{status}");
    assert!(
        status.applied <= status.committed && status.committed <= status.last,
        "{status}"
    );
    assert_eq!(read(&nodes[2], Consistency::Stale), 60);
    let refused = snapshot(&nodes[2]).expect_err("the term of its last entry is not known");
    assert_eq!(refused, ProposeError::NoSnapshot);

    nodes[0] = start(0);
    nodes[1] = start(1);
    last = commit(&nodes[0], b"+").index;
    has_all(&nodes[2], last);
    assert_eq!(read(&nodes[2], Consistency::Linearizable), 61);
    assert_eq!(
        holds[2].applied.load(Ordering::Relaxed),
        1,
        "what the machine had is not applied again"
    );
    assert!(snapshot(&nodes[2]).expect("a snapshot") >= last);
    for node in &nodes {
        node.shutdown().expect("it leaves in order");
    }
}

#[test]
fn a_disk_that_the_log_cannot_catch_up_with_gets_the_snapshot() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hold = Hold::default();
    let tiny = |config: &mut Config| {
        config.segment_bytes = 256 << 10;
        config.snapshot_every_bytes = 300 << 10;
    };
    let node = start(dir.path(), &hold, true, tiny);
    let long = vec![b'x'; 32 << 10];
    until("the front of the log goes", || {
        commit(&node, &long);
        node.status().first > 1
    });
    let count = read(&node, Consistency::Linearizable);
    node.shutdown().expect("it leaves in order");
    *hold.disk.lock().expect("sound") = (0, 0);

    let node = start(dir.path(), &hold, true, tiny);
    assert_eq!(read(&node, Consistency::Linearizable), count);
}

#[test]
fn a_tail_of_long_entries_is_bounded_by_their_bytes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hold = Hold::default();
    let every = 2 << 20;
    let node = start(dir.path(), &hold, false, |config| {
        config.snapshot_every_bytes = every;
        config.log_tail_entries = 1 << 16;
    });
    // In entries it would be the tail for long.
    let long = vec![7; 60_000];
    let mut last = 0;
    while last < 8 * every / long.len() as u64 {
        last = commit(&node, &long).index;
    }
    let most = 4 * every / long.len() as u64;
    until("the log is let go of", || node.status().first + most > last);
    node.shutdown().expect("it leaves in order");
}
