//! The nodes: a process on each host.
//!
//! Invariant: nothing ends unless somebody here ended it, or said that it may; [`Cluster::look_after`] holds that.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::network::{self, CLIENT_PORT, RAFT_PORT, addr};
use crate::resp::{Connection, Reply};
use crate::sandbox;
use crate::trouble::{Fallible, Trouble, look};

/// Far more than any node needs for what it is waited for here, also on a machine with other work.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub(crate) struct Cluster {
    servers: Vec<Server>,
    members: String,
    args: Vec<String>,
}

#[derive(Debug)]
struct Server {
    child: Option<Child>,
    stopped: bool,
    data: PathBuf,
    log: PathBuf,
    /// How long its log was when it was started last.
    logged: usize,
    /// What stands before its command line, as `unshare --time`.
    wrap: Vec<String>,
}

/// What a node says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Face {
    pub(crate) term: u64,
    pub(crate) leads: bool,
}

pub(crate) fn client_addr(id: usize) -> SocketAddr {
    let text = format!("{}:{CLIENT_PORT}", addr(id));
    text.parse().expect("an address that was made here")
}

/// The `--members` of these nodes.
pub(crate) fn members(ids: &[usize]) -> String {
    let member = |id: &usize| {
        let host = addr(*id);
        format!("{id}={host}:{RAFT_PORT}/{host}:{CLIENT_PORT}")
    };
    ids.iter().map(member).collect::<Vec<_>>().join(",")
}

impl Cluster {
    /// Starts nodes `1 ..= data.len()` with these directories.
    pub(crate) fn start(logs: &Path, data: Vec<PathBuf>, args: &[String]) -> Fallible<Self> {
        let ids: Vec<usize> = (1..=data.len()).collect();
        let server = |(id, data): (&usize, PathBuf)| Server {
            child: None,
            stopped: false,
            data,
            log: logs.join(format!("node-{id}.log")),
            logged: 0,
            wrap: Vec::new(),
        };
        let servers = ids.iter().zip(data).map(server).collect();
        let args = args.to_vec();
        let mut cluster = Self {
            servers,
            members: members(&ids),
            args,
        };
        for &id in &ids {
            cluster.start_one(id)?;
        }
        cluster.until_ready()?;
        Ok(cluster)
    }

    pub(crate) fn ids(&self) -> Vec<usize> {
        (1..=self.servers.len()).collect()
    }

    /// A node's data directory.
    pub(crate) fn data(&self, id: usize) -> PathBuf {
        self.servers[id - 1].data.clone()
    }

    pub(crate) fn set_data(&mut self, id: usize, data: PathBuf) {
        self.servers[id - 1].data = data;
    }

    /// Puts another program before the node's, from its next start on.
    pub(crate) fn set_wrap(&mut self, id: usize, wrap: &[&str]) {
        self.servers[id - 1].wrap = wrap.iter().map(|&word| word.to_owned()).collect();
    }

    pub(crate) fn start_one(&mut self, id: usize) -> Fallible<()> {
        let server = &mut self.servers[id - 1];
        assert!(server.child.is_none(), "node {id} runs already");
        server.logged = std::fs::metadata(&server.log).map_or(0, |meta| meta.len() as usize);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&server.log)?;
        let mut command = network::on(id);
        command.args(&server.wrap).arg(sandbox::server());
        command.args(["serve", "--id", &id.to_string(), "--members", &self.members]);
        command.arg("--data").arg(&server.data);
        command.args([
            "--election-timeout",
            "300ms",
            "--segment-mib",
            "4",
            // Several in every turn, so that each kind of trouble meets them at each step.
            "--snapshot-every-bytes",
            "98304",
            "--snapshot-every",
            "1",
            "--log-tail-entries",
            "64",
            "--scrub-every",
            "2",
            "--log",
            "info",
        ]);
        command.args(&self.args).env("RUST_BACKTRACE", "1");
        // Ctrl-C is for the program alone.
        command.process_group(0);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        server.child = Some(command.spawn()?);
        server.stopped = false;
        Ok(())
    }

    pub(crate) fn runs(&self, id: usize) -> bool {
        self.servers[id - 1].child.is_some()
    }

    /// Of those that run.
    pub(crate) fn pid(&self, id: usize) -> Option<u32> {
        self.servers[id - 1].child.as_ref().map(Child::id)
    }

    fn signal(&self, id: usize, signal: Signal) -> Fallible<()> {
        let pid = self.pid(id).and_then(|pid| Pid::from_raw(pid as i32));
        let pid = pid.ok_or_else(|| Trouble::Broken(format!("node {id} does not run")))?;
        // It was not waited for, so the number is still this child's.
        kill_process(pid, signal).map_err(|error| Trouble::Broken(error.to_string()))
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, id: usize) -> Fallible<()> {
        if let Some(mut child) = self.servers[id - 1].child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Takes its time away.
    pub(crate) fn stop(&mut self, id: usize) -> Fallible<()> {
        self.signal(id, Signal::STOP)?;
        self.servers[id - 1].stopped = true;
        Ok(())
    }

    pub(crate) fn go_on(&mut self, id: usize) -> Fallible<()> {
        self.signal(id, Signal::CONT)?;
        self.servers[id - 1].stopped = false;
        Ok(())
    }

    /// How it ended, if it has ended by itself; then it may be started again.
    pub(crate) fn ended(&mut self, id: usize) -> Fallible<Option<ExitStatus>> {
        let server = &mut self.servers[id - 1];
        let status = server
            .child
            .as_mut()
            .map(Child::try_wait)
            .transpose()?
            .flatten();
        if status.is_some() {
            server.child = None;
        }
        Ok(status)
    }

    /// Waits until it ends by itself, as it should.
    pub(crate) fn until_ended(&mut self, id: usize) -> Fallible<ExitStatus> {
        look(PATIENCE, || self.ended(id))?
            .ok_or_else(|| Trouble::Found(format!("node {id} does not end")))
    }

    /// Lets all of them run, but for those that ended without being told to: these are a finding.
    pub(crate) fn mend(&mut self) -> Fallible<()> {
        self.look_after()?;
        for id in self.ids() {
            if self.servers[id - 1].stopped && self.runs(id) {
                self.go_on(id)?;
            }
            if !self.runs(id) {
                self.start_one(id)?;
            }
        }
        Ok(())
    }

    /// None of those that should run has ended, and none has panicked.
    pub(crate) fn look_after(&mut self) -> Fallible<()> {
        for id in self.ids() {
            let ended = self.ended(id)?;
            let log = self.log(id);
            if let Some(status) = ended {
                let last = log.lines().last().unwrap_or("without a word");
                return Err(Trouble::Found(format!("node {id} ended, {status}: {last}")));
            }
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                return Err(Trouble::Found(format!("node {id}: {line}")));
            }
        }
        Ok(())
    }

    /// All that it has written, over all its lives.
    pub(crate) fn log(&self, id: usize) -> String {
        let bytes = std::fs::read(&self.servers[id - 1].log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What it has written since its last start.
    pub(crate) fn last_words(&self, id: usize) -> String {
        let log = self.log(id);
        log.get(self.servers[id - 1].logged..)
            .unwrap_or_default()
            .to_owned()
    }

    /// Who leads, as far as those know that answer.
    pub(crate) fn leader(&self) -> Option<usize> {
        let faces = self
            .ids()
            .into_iter()
            .filter_map(|id| Some((id, face(id)?)));
        let leads = faces.filter(|(_, face)| face.leads);
        leads.max_by_key(|(_, face)| face.term).map(|(id, _)| id)
    }

    /// Waits until every node takes a write: the cluster is whole again, and said so within a bounded time.
    pub(crate) fn until_ready(&mut self) -> Fallible<()> {
        for id in self.ids() {
            let ready = look(PATIENCE, || {
                self.look_after()?;
                let asked = Connection::open(client_addr(id), Duration::from_secs(2))
                    .and_then(|mut connection| connection.ask(&["SET", "ready", "1"]));
                Ok(matches!(asked, Ok(Reply::Simple(_))).then_some(()))
            })?;
            if ready.is_none() {
                let faces: Vec<_> = self.ids().into_iter().map(|id| (id, face(id))).collect();
                return Err(Trouble::Found(format!(
                    "node {id} takes no write, {PATIENCE:?} after all troubles ended: {faces:?}"
                )));
            }
        }
        Ok(())
    }
}

/// What a node says of itself now, if it speaks.
pub(crate) fn face(id: usize) -> Option<Face> {
    let says = section(id, "raft")?;
    Some(Face {
        term: says.get("term")?.parse().ok()?,
        leads: says.get("role")? == "leader",
    })
}

/// The fields of a part of `INFO`, if the node speaks.
pub(crate) fn section(id: usize, name: &str) -> Option<HashMap<String, String>> {
    let mut connection = Connection::open(client_addr(id), Duration::from_millis(200)).ok()?;
    let Reply::Bulk(Some(text)) = connection.ask(&["INFO", name]).ok()? else {
        return None;
    };
    let fields = text
        .lines()
        .filter_map(|line| line.trim_end().split_once(':'));
    let owned = fields.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Some(owned.collect())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for id in self.ids() {
            let _ = self.kill(id); // It may have ended by itself.
        }
    }
}
