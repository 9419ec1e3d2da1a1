//! Three durable nodes in this process, each of which can be stopped and started again.

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringraft::{Config, Member, Node, NodeId, Role, StateMachine};
use tempfile::TempDir;

/// Longer than anything here takes; what has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) fn temp_dir(parent: Option<&Path>) -> io::Result<TempDir> {
    match parent {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    }
}

/// How a node's configuration differs from the default.
pub(crate) type Tune = Box<dyn Fn(&mut Config)>;

pub(crate) struct Cluster {
    dir: PathBuf,
    listeners: Vec<TcpListener>,
    /// Where a node's directory is, when it is not beside the others'.
    apart: Vec<Option<PathBuf>>,
    /// By which address the others reach a node, where that is not its own.
    detours: Vec<Option<String>>,
    tune: Tune,
    nodes: Vec<Option<Node>>,
}

impl Cluster {
    /// Nodes that have addresses and do not run yet.
    pub(crate) fn new(
        dir: &Path,
        count: usize,
        tune: impl Fn(&mut Config) + 'static,
    ) -> io::Result<Self> {
        let listen = |_| TcpListener::bind("127.0.0.1:0");
        Ok(Self {
            dir: dir.to_owned(),
            listeners: (0..count).map(listen).collect::<io::Result<_>>()?,
            apart: vec![None; count],
            detours: vec![None; count],
            tune: Box::new(tune),
            nodes: (0..count).map(|_| None).collect(),
        })
    }

    pub(crate) fn node_dir(&self, at: usize) -> PathBuf {
        let dir = self.apart[at].as_ref().unwrap_or(&self.dir);
        dir.join(format!("node-{}", at + 1))
    }

    /// Node `at`, which does not run yet, has its data below this directory.
    pub(crate) fn put(&mut self, at: usize, dir: &Path) {
        self.apart[at] = Some(dir.to_owned());
    }

    pub(crate) fn addr(&self, at: usize) -> String {
        let addr = self.listeners[at].local_addr();
        addr.expect("a bound listener has an address").to_string()
    }

    /// Nodes that start from now on reach node `at` by this address. Who has the smaller id dials, so it is to be the last.
    pub(crate) fn lead_to(&mut self, at: usize, addr: &str) {
        self.detours[at] = Some(addr.to_owned());
    }

    pub(crate) fn start(&mut self, at: usize, machine: impl StateMachine) -> Result<(), String> {
        let members = (0..self.listeners.len()).map(|other| Member {
            id: NodeId(other as u32 + 1),
            addr: match &self.detours[other] {
                Some(addr) if other != at => addr.clone(),
                _ => self.addr(other),
            },
        });
        let mut config = Config {
            // Two runs of one cluster may see a member under other addresses.
            cluster_id: Some(7),
            election_timeout: Duration::from_secs(1),
            ..Config::new(NodeId(at as u32 + 1), self.node_dir(at), members.collect())
        };
        (self.tune)(&mut config);
        let listener = self.listeners[at]
            .try_clone()
            .map_err(|error| error.to_string())?;
        let node = Node::start_on(listener, config, machine)
            .map_err(|error| format!("node {} does not start: {error}", at + 1))?;
        self.nodes[at] = Some(node);
        Ok(())
    }

    pub(crate) fn stop(&mut self, at: usize) -> Result<(), String> {
        match self.nodes[at].take() {
            None => Ok(()),
            Some(node) => node
                .shutdown()
                .map_err(|error| format!("node {} does not leave in order: {error}", at + 1)),
        }
    }

    pub(crate) fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().expect("it runs")
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = (usize, &Node)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(at, node)| Some((at, node.as_ref()?)))
    }

    /// All of those.
    pub(crate) fn all(&self) -> Vec<&Node> {
        self.running().map(|(_, node)| node).collect()
    }

    /// Which node leads; waits for one.
    pub(crate) fn leader(&self) -> Result<usize, String> {
        let mut leader = None;
        until("a leader", || {
            let found = self
                .running()
                .find(|(_, node)| node.status().role == Role::Leader);
            leader = found.map(|(at, _)| at);
            leader.is_some()
        })?;
        Ok(leader.expect("there is one"))
    }

    pub(crate) fn shutdown(mut self) -> Result<(), String> {
        (0..self.nodes.len()).try_for_each(|at| self.stop(at))
    }
}

/// Waits for a condition; a bound says what did not come.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() >= deadline {
            return Err(format!("no {what} within {PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
