//! All that a nemesis can lay hands on: hosts, disks, nodes; and how it is put right again.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::disks::{Disks, Ground, checked};
use crate::history::Record;
use crate::network::Network;
use crate::trouble::{Fallible, Trouble};

/// Nodes at the most; one host more is for strangers.
pub(crate) const MAX_NODES: usize = 5;
/// The host on which no member lives.
pub(crate) const STRANGER: usize = MAX_NODES + 1;

/// On what a nemesis wants to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) ground: Ground,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) network: Network,
    // Before the disks it stands on: what is written to cannot be taken away.
    cluster: Option<Cluster>,
    pub(crate) disks: Disks,
    shape: Option<Shape>,
    clusters: usize,
    rounds: u64,
    /// What was seen of the counter that lives as long as the cluster.
    pub(crate) total: Vec<Record>,
    args: Vec<String>,
    pub(crate) clients: usize,
    dir: TempDir,
}

impl World {
    pub(crate) fn make(clients: u64, args: Vec<String>) -> Fallible<Self> {
        let dir = tempfile::Builder::new()
            .prefix("ringraft-chaos-")
            .tempdir()?;
        checked(dir.path())?;
        Ok(Self {
            network: Network::make(STRANGER)?,
            cluster: None,
            disks: Disks::none(),
            shape: None,
            clusters: 0,
            rounds: 0,
            total: Vec::new(),
            args,
            clients: clients as usize,
            dir,
        })
    }

    /// The cluster of the rounds before if it is of this shape and on plain ground, else a new one.
    pub(crate) fn take_shape(&mut self, shape: Shape) -> Fallible<()> {
        if self.cluster.is_some() && self.shape == Some(shape) && shape.ground == Ground::Plain {
            return self.cluster().until_ready();
        }
        self.give_up_cluster()?;
        self.clusters += 1;
        let place = self.place();
        std::fs::create_dir_all(&place)?;
        self.disks = Disks::make(&place, shape)?;
        let data: Vec<PathBuf> = (1..=shape.nodes).map(|id| self.disks.data(id)).collect();
        let mut args = self.args.clone();
        if self.clusters.is_multiple_of(2) {
            args.push("--lease".into()); // Else a read by lease is confirmed by a round.
        }
        self.cluster = Some(Cluster::start(&place, data, &args)?);
        self.shape = Some(shape);
        Ok(())
    }

    /// Where the logs of this cluster are, and room for more.
    pub(crate) fn place(&self) -> PathBuf {
        self.dir.path().join(format!("cluster-{}", self.clusters))
    }

    /// A number that no other round of this run has: its keys are named by it.
    pub(crate) fn next_round(&mut self) -> u64 {
        self.rounds += 1;
        self.rounds
    }

    /// Ends it and takes its disks away.
    pub(crate) fn give_up_cluster(&mut self) -> Fallible<()> {
        self.network.heal()?;
        self.cluster = None;
        self.total.clear();
        let old = std::mem::replace(&mut self.disks, Disks::none());
        old.remove()
    }

    pub(crate) fn cluster(&mut self) -> &mut Cluster {
        self.cluster.as_mut().expect("a nemesis strikes a cluster")
    }

    /// Ends all troubles, and waits until every node takes a write.
    pub(crate) fn mend(&mut self) -> Fallible<()> {
        self.network.heal()?;
        self.cluster().mend()?;
        self.cluster().until_ready()
    }

    /// Puts the history and the logs of all nodes where they stay, for whoever looks into it.
    pub(crate) fn keep(&self, name: &str, history: &str) -> Fallible<PathBuf> {
        let pid = std::process::id();
        let mut place = std::env::temp_dir().join(format!("ringraft-chaos-kept-{name}"));
        for number in 1.. {
            if !place.exists() {
                break;
            }
            place.set_file_name(format!("ringraft-chaos-kept-{name}-{pid}-{number}"));
        }
        std::fs::create_dir_all(&place)?;
        std::fs::write(place.join("history.txt"), history)?;
        let logs = self.place();
        let entries =
            std::fs::read_dir(logs).map_err(|error| Trouble::Broken(error.to_string()))?;
        for entry in entries {
            let path = entry?.path();
            if let (Some("log"), Some(name)) =
                (path.extension().and_then(|e| e.to_str()), path.file_name())
            {
                std::fs::copy(&path, place.join(name))?;
            }
        }
        Ok(place)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.give_up_cluster(); // What it could not take away goes with the room.
    }
}
