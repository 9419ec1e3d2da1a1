//! A node whose process has no descriptor left, and one that has too few to begin with.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ringraft::{Batch, Config, Member, Node, NodeId, StartError, StateMachine};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::DEADLINE;

/// Takes snapshots of nothing.
struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while batch.next().is_some() {}
        Ok(())
    }

    fn query(&self, _query: &[u8], _reply: &mut Vec<u8>) {}
}

fn alone(dir: &Path) -> (TcpListener, Config) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound").to_string();
    let id = NodeId(1);
    let config = Config {
        segment_bytes: 64 << 10,
        max_entry_bytes: 16 << 10,
        cluster_id: Some(1),
        election_timeout: Duration::from_millis(100),
        ..Config::new(id, dir, vec![Member { id, addr }])
    };
    (listener, config)
}

/// Runs a test below once more, in a process of its own.
fn in_its_own_process(test: &str) {
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", &format!("descriptors::{test}"), "--ignored"])
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

fn limit_descriptors(to: u64) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = Some(to);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).expect("it may be lowered");
}

#[test]
fn a_node_goes_on_when_others_have_taken_all_descriptors() {
    in_its_own_process("all_are_taken");
}

#[test]
#[ignore = "takes all descriptors of its process; run by the test above in a process of its own"]
fn all_are_taken() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let (listener, config) = alone(temp.path());
    limit_descriptors(config.max_descriptors());
    let node = Node::start_on(listener, config, Nothing).expect("it starts");
    node.wait_for_leader(DEADLINE).expect("a leader");
    let mut taken = Vec::new();
    // Two hundred segments.
    for _ in 0..900 {
        taken.extend(std::iter::from_fn(|| File::open("/dev/null").ok()));
        let pending = node.propose(&[7; 15 << 10]).expect("not busy");
        let outcome = pending.wait();
        outcome.unwrap_or_else(|error| panic!("{error}: {:?}", node.status().error));
    }
    assert!(!taken.is_empty());
    node.shutdown().expect("in order");
    drop(taken);
    let (listener, config) = alone(temp.path());
    let node = Node::start_on(listener, config, Nothing).expect("it starts with a long log");
    node.wait_for_leader(DEADLINE).expect("a leader");
    assert!(node.status().durable >= 900);
    node.shutdown().expect("in order");
}

#[test]
fn a_process_with_too_few_descriptors_is_told_how_many_it_takes() {
    in_its_own_process("too_few");
}

#[test]
#[ignore = "lowers the limit of its process; run by the test above in a process of its own"]
fn too_few() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let (listener, config) = alone(temp.path());
    let least = config.min_descriptors();
    limit_descriptors(least - 1);
    let refused = listener.try_clone().expect("a copy");
    match Node::start_on(refused, config.clone(), Nothing) {
        Err(StartError::Config(text)) => {
            assert!(text.contains(&format!("this node needs {least}")), "{text}")
        }
        other => panic!("it should be refused: {other:?}"),
    }
    limit_descriptors(least + 1);
    let node =
        Node::start_on(listener, config, Nothing).expect("with the tempdir's own it is enough");
    node.wait_for_leader(DEADLINE).expect("a leader");
    for _ in 0..50 {
        let pending = node.propose(&[7; 15 << 10]).expect("not busy");
        pending.wait().expect("committed");
    }
    node.shutdown().expect("in order");
}
