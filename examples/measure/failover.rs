//! How long clients wait when the leader is killed: three counter servers as processes, and `kill -9`.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Common;
use crate::cluster::{temp_dir, until};
use crate::figures::{Figures, Goal};

const NODES: usize = 3;
/// A client that hears nothing for so long gives up.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    /// The servers' election timeout in milliseconds: a follower stands after one to two of them without its leader.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(10..=10_000))]
    election_timeout_ms: u64,
    /// How often a leader is killed in a round.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    kills: u64,
}

pub(crate) fn run(args: &Args) -> Result<Figures, String> {
    let dir = temp_dir(args.common.data.as_deref()).map_err(|error| error.to_string())?;
    let mut figures = Figures::new("failover");
    figures.condition("nodes", NODES);
    figures.condition("election_timeout_ms", args.election_timeout_ms);
    figures.condition("rounds", args.common.rounds);
    figures.condition("kills", args.kills);
    let mut servers = Servers::new(dir.path(), args.election_timeout_ms)?;
    for at in 0..NODES {
        servers.start(at)?;
    }
    let timeout_ms = args.election_timeout_ms as f64;
    for _ in 0..args.common.rounds {
        for _ in 0..args.kills {
            let waited = servers.kill_the_leader()?.as_secs_f64() * 1e3;
            figures.note("from the kill to the next answer", "ms", waited);
            let goal = Goal::AtMost(1.5);
            figures.ratio("that / election timeout", waited / timeout_ms, goal);
        }
    }
    Ok(figures)
}

struct Servers {
    dir: std::path::PathBuf,
    members: String,
    clients: Vec<String>,
    election_timeout: String,
    processes: Vec<Option<Child>>,
}

impl Servers {
    fn new(dir: &Path, election_timeout_ms: u64) -> Result<Self, String> {
        // Taken together, so that they differ; free again for the servers.
        let taken: io::Result<Vec<TcpListener>> = (0..2 * NODES)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect();
        let addrs: io::Result<Vec<String>> = taken.and_then(|taken| {
            let addr = |one: &TcpListener| Ok(one.local_addr()?.to_string());
            taken.iter().map(addr).collect()
        });
        let addrs = addrs.map_err(|error| format!("no ports: {error}"))?;
        let members: Vec<String> = (0..NODES)
            .map(|at| format!("{}={}/{}", at + 1, addrs[at], addrs[NODES + at]))
            .collect();
        Ok(Self {
            dir: dir.to_owned(),
            members: members.join(","),
            clients: addrs[NODES..].to_vec(),
            election_timeout: format!("{election_timeout_ms}ms"),
            processes: (0..NODES).map(|_| None).collect(),
        })
    }

    fn start(&mut self, at: usize) -> Result<(), String> {
        let this = std::env::current_exe().map_err(|error| error.to_string())?;
        let server = this.with_file_name("counter");
        let process = Command::new(&server)
            .args([
                "serve",
                "--id",
                &(at + 1).to_string(),
                "--members",
                &self.members,
            ])
            .args(["--election-timeout", &self.election_timeout])
            .args(["--segment-mib", "4", "--data"])
            .arg(self.dir.join(format!("server-{}", at + 1)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| {
                let server = server.display();
                format!("{server}: {error}; build it: cargo build --release --example counter")
            })?;
        self.processes[at] = Some(process);
        Ok(())
    }

    /// Kills it, and says how long a client of another node waited then for its next increment. All run again afterwards.
    fn kill_the_leader(&mut self) -> Result<Duration, String> {
        let mut leader = None;
        until("leader that all follow", || {
            let says: Vec<Option<(String, String)>> =
                self.clients.iter().map(|addr| role(addr).ok()).collect();
            let leads = |says: &Option<(String, String)>| {
                says.as_ref().is_some_and(|(role, _)| role == "leader")
            };
            leader = says.iter().position(leads);
            let known = leader.map(|at| (at + 1).to_string());
            leader.is_some()
                && says
                    .iter()
                    .all(|says| says.as_ref().map(|(_, leader)| leader) == known.as_ref())
        })?;
        let leader = leader.expect("there is one");
        let mut client = Client::connect(&self.clients[(leader + 1) % NODES])
            .map_err(|error| error.to_string())?;
        // The way is open, and somebody has walked it.
        client.increment().map_err(|error| error.to_string())?;
        let killed = self.processes[leader].as_mut().expect("it runs");
        let begin = Instant::now();
        killed.kill().map_err(|error| error.to_string())?;
        loop {
            match client.increment() {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::Other && begin.elapsed() < SILENCE => {
                }
                Err(error) => return Err(format!("no increment after the kill: {error}")),
            }
        }
        let waited = begin.elapsed();
        let killed = self.processes[leader].as_mut().expect("it ran");
        killed.wait().map_err(|error| error.to_string())?;
        self.start(leader)?;
        Ok(waited)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().flatten() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A node's role and whom it takes for the leader.
fn role(addr: &str) -> io::Result<(String, String)> {
    let mut client = Client::connect(addr)?;
    client
        .stream
        .write_all(b"*2\r\n$4\r\nINFO\r\n$4\r\nraft\r\n")?;
    let mut line = String::new();
    client.answers.read_line(&mut line)?;
    let (mut role, mut leader) = (String::new(), String::new());
    loop {
        line.clear();
        if client.answers.read_line(&mut line)? == 0 || line == "\r\n" {
            return Ok((role, leader));
        }
        if let Some((name, value)) = line.trim_end().split_once(':') {
            match name {
                "role" => role = value.to_owned(),
                "leader" => leader = value.to_owned(),
                _ => {}
            }
        }
    }
}

struct Client {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Client {
    fn connect(addr: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let answers = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, answers })
    }

    /// One increment; what the server answers with an error is [`io::ErrorKind::Other`].
    fn increment(&mut self) -> io::Result<()> {
        self.stream.write_all(b"*2\r\n$4\r\nINCR\r\n$1\r\na\r\n")?;
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.starts_with(':') {
            true => Ok(()),
            false => Err(io::Error::other(line.trim_end().to_owned())),
        }
    }
}
