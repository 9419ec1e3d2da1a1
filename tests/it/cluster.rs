//! The counter example as real processes, and what can be done to them.
//!
//! Invariant: when a [`Cluster`] goes, its processes are gone; when its test failed, their logs are
//! printed first.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Once;
use std::time::Duration;

use redis::{Connection, FromRedisValue, RedisError};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::ports::Ports;
use crate::{DEADLINE, until, until_some};

/// A client gives up on a silent server after this long.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(12);

/// Some servers of one cluster, numbered from 1.
pub(crate) struct Cluster {
    servers: Vec<Server>,
    /// The `--members` of all.
    pub(crate) members: String,
    dir: TempDir,
    _ports: Ports,
}

struct Server {
    child: Option<Child>,
    raft: u16,
    client: u16,
    data: PathBuf,
    log: PathBuf,
    more: Vec<String>,
    /// Where standard error goes instead of `log`.
    stderr: Option<File>,
    /// The limit of open files of its process, if it is to have one of its own.
    open_files: Option<u64>,
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done(i64),
    /// Not applied, and it never will be.
    Refused,
    /// It may have been applied: the server said so, or the connection broke.
    Unknown,
}

/// The executable: `cargo test` builds examples beside the tests.
pub(crate) fn counter() -> PathBuf {
    static BUILD: Once = Once::new();
    built(&BUILD, "examples/counter", &["--example", "counter"])
}

/// The command line tool.
pub(crate) fn ringraft() -> PathBuf {
    static BUILD: Once = Once::new();
    let package = ["--package", "ringraft-cli", "--bin", "ringraft"];
    built(&BUILD, "ringraft", &package)
}

/// An executable of this workspace, which is built when it is not there.
fn built(once: &Once, name: &str, what: &[&str]) -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own executable");
    let profile = own
        .parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps/it-*");
    let path = profile.join(name);
    once.call_once(|| {
        if path.exists() {
            return;
        }
        // `cargo test --test it` leaves all others out.
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet"]).args(what);
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo.env(
            "CARGO_TARGET_DIR",
            profile.parent().expect("target/<profile>"),
        );
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let built = cargo.status().expect("cargo runs");
        assert!(built.success(), "building {name}: {built}");
    });
    assert!(path.exists(), "{} was not built", path.display());
    path
}

impl Cluster {
    /// Starts `count` servers and waits until they have a leader.
    pub(crate) fn start(count: usize) -> Self {
        let mut cluster = Self::prepare(count);
        for id in 1..=count {
            cluster.start_one(id);
        }
        cluster.until_leader();
        cluster
    }

    /// As [`start`](Cluster::start), each with more of the command line.
    pub(crate) fn start_with_args(count: usize, args: &[&str]) -> Self {
        let mut cluster = Self::prepare(count);
        for id in 1..=count {
            cluster.set_args(id, args);
            cluster.start_one(id);
        }
        cluster.until_leader();
        cluster
    }

    /// Everything but the processes.
    pub(crate) fn prepare(count: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut ports = Ports::claim();
        let servers: Vec<Server> = (1..=count)
            .map(|id| Server {
                child: None,
                raft: ports.next(),
                client: ports.next(),
                data: dir.path().join(format!("data-{id}")),
                log: dir.path().join(format!("log-{id}")),
                more: Vec::new(),
                stderr: None,
                open_files: None,
            })
            .collect();
        let members = members(&servers);
        Self {
            servers,
            members,
            dir,
            _ports: ports,
        }
    }

    fn server(&self, id: usize) -> &Server {
        &self.servers[id - 1]
    }

    fn server_mut(&mut self, id: usize) -> &mut Server {
        &mut self.servers[id - 1]
    }

    pub(crate) fn ids(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.servers.len()
    }

    /// Those whose process runs, stopped or not.
    pub(crate) fn running(&self) -> Vec<usize> {
        self.ids()
            .filter(|&id| self.server(id).child.is_some())
            .collect()
    }

    pub(crate) fn data(&self, id: usize) -> PathBuf {
        self.server(id).data.clone()
    }

    /// Puts a server's data elsewhere, before its first start.
    pub(crate) fn set_data(&mut self, id: usize, data: PathBuf) {
        self.server_mut(id).data = data;
    }

    /// More of the command line, from the next start on.
    pub(crate) fn set_args(&mut self, id: usize, args: &[&str]) {
        self.server_mut(id).more = args.iter().map(|&arg| arg.to_owned()).collect();
    }

    /// Where a server's standard error goes at its next start.
    pub(crate) fn set_stderr(&mut self, id: usize, to: File) {
        self.server_mut(id).stderr = Some(to);
    }

    /// The limit of open files of its process, from the next start on.
    pub(crate) fn set_open_files(&mut self, id: usize, limit: u64) {
        self.server_mut(id).open_files = Some(limit);
    }

    pub(crate) fn pid(&self, id: usize) -> u32 {
        let child = self.server(id).child.as_ref().expect("the server runs");
        child.id()
    }

    pub(crate) fn client_port(&self, id: usize) -> u16 {
        self.server(id).client
    }

    pub(crate) fn raft_port(&self, id: usize) -> u16 {
        self.server(id).raft
    }

    /// Starts the process; see [`until_answers`](Cluster::until_answers).
    pub(crate) fn start_one(&mut self, id: usize) {
        let members = self.members.clone();
        self.start_with(id, &members);
    }

    /// Starts the process with another list of members.
    pub(crate) fn start_with(&mut self, id: usize, members: &str) {
        let server = self.server_mut(id);
        assert!(server.child.is_none(), "server {id} runs already");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&server.log);
        let log = log.expect("a log file in the temporary directory");
        let stdout = log.try_clone().expect("a second handle of the log");
        let mut command = command(id, &server.data, members, &server.more);
        if let Some(limit) = server.open_files {
            command = limited(&command, limit);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(server.stderr.take().unwrap_or(log))
            .spawn()
            .expect("the counter starts");
        server.child = Some(child);
    }

    /// Starts the process with more arguments, now and until others are given.
    pub(crate) fn start_with_more(&mut self, id: usize, more: &[&str]) {
        self.server_mut(id).more = more.iter().map(|arg| (*arg).to_owned()).collect();
        self.start_one(id);
    }

    /// The directory of a server that does not run is gone.
    pub(crate) fn remove_data(&self, id: usize) {
        let server = self.server(id);
        assert!(server.child.is_none(), "server {id} runs");
        fs::remove_dir_all(&server.data).expect("its directory is removed");
    }

    /// Its directory is under another name meanwhile.
    pub(crate) fn swap_data(&self, id: usize, with: &Path) {
        let server = self.server(id);
        assert!(server.child.is_none(), "server {id} runs");
        let aside = self.dir.path().join("aside");
        if with.exists() {
            fs::rename(with, &aside).expect("moved");
        }
        if server.data.exists() {
            fs::rename(&server.data, with).expect("moved");
        }
        if aside.exists() {
            fs::rename(&aside, &server.data).expect("moved");
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a server that is expected to end by itself; its exit code and what it said. The servers of this
    /// cluster are left alone.
    pub(crate) fn run_to_end(
        &self,
        id: usize,
        data: &Path,
        members: &str,
    ) -> (Option<i32>, String) {
        let path = self.dir.path().join(format!("run-{id}"));
        let log = File::create(&path).expect("a log file in the temporary directory");
        let child = command(id, data, members, &[])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            .spawn()
            .expect("the counter starts");
        let mut child = Guard(child);
        let status = until_some("the process ends by itself", || {
            child.0.try_wait().expect("a child can be waited for")
        });
        (
            status.code(),
            fs::read_to_string(&path).expect("what it said"),
        )
    }

    fn signal(&self, id: usize, signal: Signal) {
        let child = self.server(id).child.as_ref().expect("the server runs");
        // Not waited for yet, so the number is still this child's.
        let pid = Pid::from_raw(child.id() as i32).expect("a process has a number");
        kill_process(pid, signal).expect("a child can be sent signals");
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, id: usize) {
        let mut child = self.server_mut(id).child.take().expect("the server runs");
        child.kill().expect("a child can be killed");
        child.wait().expect("a killed child ends");
    }

    /// Asks it to leave; how it left.
    pub(crate) fn terminate(&mut self, id: usize) -> ExitStatus {
        self.signal(id, Signal::TERM);
        self.until_exit(id)
    }

    /// Waits until the process ends by itself.
    pub(crate) fn until_exit(&mut self, id: usize) -> ExitStatus {
        let mut child = self.server_mut(id).child.take().expect("the server runs");
        let mut ended = None;
        let deadline = std::time::Instant::now() + DEADLINE;
        while ended.is_none() && std::time::Instant::now() < deadline {
            ended = child.try_wait().expect("a child can be waited for");
            std::thread::sleep(Duration::from_millis(2));
        }
        self.server_mut(id).child = ended.is_none().then_some(child);
        ended.unwrap_or_else(|| panic!("server {id} does not end"))
    }

    /// Takes its time away.
    pub(crate) fn stall(&self, id: usize) {
        self.signal(id, Signal::STOP);
    }

    pub(crate) fn resume(&self, id: usize) {
        self.signal(id, Signal::CONT);
    }

    /// What the process has logged so far, over all its lives.
    pub(crate) fn log(&self, id: usize) -> String {
        fs::read_to_string(&self.server(id).log).unwrap_or_default()
    }

    /// Waits until the process has logged that; its lines come from a thread of their own. All that it has logged.
    pub(crate) fn until_logs(&self, id: usize, what: &str) -> String {
        until_some(format_args!("server {id} logs {what:?}"), || {
            Some(self.log(id)).filter(|log| log.contains(what))
        })
    }

    /// A connection of the `redis` crate.
    pub(crate) fn connect(&self, id: usize) -> Result<Connection, RedisError> {
        connect(self.client_port(id))
    }

    /// A connection to a server that is there.
    pub(crate) fn client(&self, id: usize) -> Connection {
        until_some(format_args!("server {id} takes clients"), || {
            self.connect(id).ok()
        })
    }

    /// What `INFO raft` says.
    pub(crate) fn info(&self, id: usize) -> Option<Info> {
        self.section(id, "raft")
    }

    /// What `INFO` says under this head.
    pub(crate) fn section(&self, id: usize, name: &str) -> Option<Info> {
        let mut connection = self.connect(id).ok()?;
        let text: String = redis::cmd("INFO").arg(name).query(&mut connection).ok()?;
        let fields = text
            .lines()
            .filter_map(|line| line.trim_end().split_once(':'));
        Some(Info(
            fields
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        ))
    }

    /// Waits until all that run agree on one leader; says which.
    pub(crate) fn until_leader(&self) -> usize {
        self.until_leader_of(&self.running())
    }

    /// Waits until these agree on a leader among them.
    pub(crate) fn until_leader_of(&self, among: &[usize]) -> usize {
        until_some(format_args!("servers {among:?} have a leader"), || {
            let infos: Option<Vec<Info>> = among.iter().map(|&id| self.info(id)).collect();
            let infos = infos?;
            let leader = infos[0].number("leader") as usize;
            let at = among.iter().position(|&id| id == leader)?;
            let agreed = infos
                .iter()
                .all(|info| info.number("leader") as usize == leader);
            (agreed && infos[at].text("role") == "leader").then_some(leader)
        })
    }

    /// Waits until a server takes commands.
    pub(crate) fn until_answers(&self, id: usize) {
        until(format_args!("server {id} answers"), || {
            self.info(id).is_some()
        });
    }

    /// Waits until all that run have applied what the leader has.
    pub(crate) fn until_equal(&self) {
        until("all have applied the same", || {
            let infos: Option<Vec<Info>> =
                self.running().into_iter().map(|id| self.info(id)).collect();
            infos.is_some_and(|infos| {
                let applied = infos[0].number("applied");
                infos
                    .iter()
                    .all(|info| (info.number("applied"), info.number("last")) == (applied, applied))
            })
        });
    }

    /// Repeats a command that changes nothing, or whose repetition changes nothing, until it is answered.
    pub(crate) fn ask<T: FromRedisValue>(&self, id: usize, command: &[&str]) -> T {
        until_some(format_args!("server {id} answers {command:?}"), || {
            let mut connection = self.connect(id).ok()?;
            let mut asked = redis::cmd(command[0]);
            asked.arg(&command[1..]);
            match asked.query(&mut connection) {
                Ok(value) => Some(value),
                Err(error) if error.is_io_error() => None,
                Err(error) if matches!(error.code(), Some("TRYAGAIN" | "UNKNOWN")) => None,
                Err(error) => panic!("{command:?} on server {id}: {error}"),
            }
        })
    }

    pub(crate) fn get(&self, id: usize, key: &str) -> i64 {
        self.ask::<Option<i64>>(id, &["GET", key]).unwrap_or(0)
    }

    /// Increments once for certain: refused attempts are repeated; an unknown outcome fails the test.
    pub(crate) fn incr(&self, id: usize, key: &str) -> i64 {
        let mut connection = self.client(id);
        until_some(
            format_args!("server {id} increments {key}"),
            || match incr(&mut connection, key) {
                Outcome::Done(value) => Some(value),
                Outcome::Refused => None,
                Outcome::Unknown => panic!("INCR {key} on server {id} ended in doubt, undisturbed"),
            },
        )
    }
}

fn members(servers: &[Server]) -> String {
    let member = |(id, server): (usize, &Server)| {
        format!("{id}=127.0.0.1:{}/127.0.0.1:{}", server.raft, server.client)
    };
    (1..).zip(servers).map(member).collect::<Vec<_>>().join(",")
}

fn command(id: usize, data: &Path, members: &str, more: &[String]) -> Command {
    let mut command = Command::new(counter());
    command
        .arg("serve")
        .args(["--id", &id.to_string()])
        .arg("--data")
        .arg(data);
    command.args([
        "--members",
        members,
        "--election-timeout",
        "300ms",
        "--segment-mib",
        "4",
    ]);
    command.args(["--log", "info"]).args(more);
    command.env("RUST_BACKTRACE", "1");
    command
}

/// The same, with its own limit of open files.
fn limited(command: &Command, open_files: u64) -> Command {
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        "ulimit -n \"$0\" && exec \"$@\"",
        &open_files.to_string(),
    ]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.env("RUST_BACKTRACE", "1");
    shell
}

pub(crate) fn connect(port: u16) -> Result<Connection, RedisError> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/"))?;
    let connection = client.get_connection_with_timeout(CLIENT_TIMEOUT)?;
    connection.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    connection.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    Ok(connection)
}

/// One attempt.
pub(crate) fn incr(connection: &mut Connection, key: &str) -> Outcome {
    match redis::cmd("INCR").arg(key).query::<i64>(connection) {
        Ok(value) => Outcome::Done(value),
        Err(error) if error.code() == Some("TRYAGAIN") => Outcome::Refused,
        Err(error) if error.code() == Some("UNKNOWN") || error.is_io_error() => Outcome::Unknown,
        Err(error) => panic!("INCR {key}: {error}"),
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for server in &mut self.servers {
            if let Some(mut child) = server.child.take() {
                let _ = child.kill(); // It may have ended by itself.
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            for id in self.ids() {
                let log = self.log(id);
                let lines: Vec<&str> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(60)..];
                println!(
                    "--- server {id}, its last {} lines\n{}",
                    tail.len(),
                    tail.join("\n")
                );
            }
        }
    }
}

/// A process that does not outlive its test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill(); // It may have ended by itself.
        let _ = self.0.wait();
    }
}

/// The fields of a part of `INFO`.
#[derive(Clone, Debug)]
pub(crate) struct Info(HashMap<String, String>);

impl Info {
    pub(crate) fn text(&self, field: &str) -> &str {
        self.find(field).unwrap_or("")
    }

    pub(crate) fn find(&self, field: &str) -> Option<&str> {
        self.0.get(field).map(String::as_str)
    }

    pub(crate) fn number(&self, field: &str) -> u64 {
        self.text(field).parse().unwrap_or_else(|_| {
            panic!(
                "INFO says {field}:{:?}, not a number: {self}",
                self.text(field)
            )
        })
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
