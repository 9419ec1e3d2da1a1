//! Named 64-bit counters, replicated: a server that any Redis client can talk to.
//!
//! Without arguments it demonstrates itself: three nodes in this process, under load, with the leader killed in the middle.
//! `counter serve` runs one node of a cluster; see `--help`.

mod commands;
mod connection;
mod demo;
mod info;
mod limits;
mod log;
mod machine;
mod resp;
mod saves;
mod server;
mod store;
mod transaction;

use std::io::{IsTerminal, Write};
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringraft::session::{Limits, Sessions};
use ringraft::{Config, Flush, Lease, Member, Node, NodeId, Threads};
use tracing_subscriber::EnvFilter;

use crate::log::Log;
use crate::server::{End, Server};

#[derive(Parser)]
#[command(
    name = "counter",
    about = "Named 64-bit counters, replicated, for any Redis client",
    version
)]
struct Cli {
    #[command(subcommand)]
    command: Option<What>,
    #[command(flatten)]
    demo: DemoArgs,
}

#[derive(Args)]
struct DemoArgs {
    /// Demonstration: how long to drive load.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(2..=3600))]
    seconds: u64,
    /// Demonstration: where to make the data directories, which are removed at the end.
    #[arg(long)]
    data: Option<PathBuf>,
    /// What to log, as `tracing` filters say it.
    #[arg(long, default_value = "error", global = true)]
    log: String,
}

#[derive(Subcommand)]
enum What {
    /// Runs one node of a cluster.
    Serve(Serve),
}

#[derive(Args)]
struct Serve {
    /// Which of the members this is.
    #[arg(long)]
    id: u32,
    /// Its directory; made on the first start. One process at a time.
    #[arg(long)]
    data: PathBuf,
    /// All members, the same list on every node: `ID=RAFT_HOST:PORT/CLIENT_HOST:PORT`, separated by commas.
    #[arg(long, value_delimiter = ',', required = true, value_parser = parse_member)]
    members: Vec<Listed>,
    /// Where this node listens for its peers, when that is not its own RAFT_HOST:PORT: `0.0.0.0:PORT` for every interface.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Where it listens for clients, when that is not its own CLIENT_HOST:PORT.
    #[arg(long, value_name = "HOST:PORT")]
    listen_clients: Option<String>,
    /// A follower that hears nothing for one to two of these stands for election.
    #[arg(long, default_value = "1000ms", value_parser = humantime::parse_duration)]
    election_timeout: Duration,
    /// Which threads run the stages of a node.
    #[arg(long, value_enum, default_value_t = Plan::Auto)]
    threads: Plan,
    /// How bytes are made durable.
    #[arg(long, value_enum, default_value_t = Way::Auto)]
    flush: Way,
    /// No flushes at all: acknowledged writes may be lost in a power cut. For tests only.
    #[arg(long, conflicts_with = "flush")]
    no_sync: bool,
    /// Leases, for `READMODE lease`: by how much the rate of any node's clock may be off, in parts per million. The same on
    /// every node.
    #[arg(long, value_name = "PPM", num_args = 0..=1, default_missing_value = "10000")]
    lease: Option<u32>,
    /// This node's old directory is gone for good, and no process runs on a copy of it: with an empty one it comes back under
    /// its id, when all other members are there. Does nothing when the directory is not empty.
    #[arg(long)]
    rejoin: bool,
    /// Size of a log segment in MiB; each is written once ahead of need.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(4..=4096))]
    segment_mib: u64,
    /// Takes a snapshot when this many bytes of the log were applied since the last one. 0: not by bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20)]
    snapshot_every_bytes: u64,
    /// Likewise after so long, if anything was applied: seconds, or with a unit as `10m`. 0: not by time.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_time)]
    snapshot_every: Duration,
    /// The most that is written, and sent, of snapshots in a second. 0: as fast as it goes.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    snapshot_bytes_per_second: u64,
    /// Entries before the newest snapshot that stay in the log, for followers that are only a little behind; no more bytes of
    /// them than from one snapshot to the next.
    #[arg(long, value_name = "COUNT", default_value_t = 64 << 10)]
    log_tail_entries: u64,
    /// So long after the last time, log and snapshots are read again to find what has gone bad on the disk. 0: never.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_time)]
    scrub_every: Duration,
    /// Clients at one time; others are refused. Fewer when the limit of open files does not allow as many: 64 descriptors, and
    /// 4 for each other member, are left to the node, or half of all where there are few.
    #[arg(long, value_name = "COUNT", default_value_t = limits::MAX_CLIENTS as u64,
        value_parser = clap::value_parser!(u64).range(1..=limits::MAX_CLIENTS as u64))]
    max_clients: u64,
    /// The most that the buffers of all clients hold together; when they hold more, the client with the largest ones is
    /// disconnected.
    #[arg(long, value_name = "BYTES", default_value_t = 512 << 20,
        value_parser = clap::value_parser!(u64).range(4 << 20..))]
    client_memory: u64,
}

/// Seconds, or what `humantime` reads.
fn parse_time(text: &str) -> Result<Duration, humantime::DurationError> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Plan {
    Auto,
    SeparateApply,
    Shared,
    PerStage,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    Auto,
    IoUring,
    Thread,
}

/// One member as the command line names it.
#[derive(Clone, Debug)]
struct Listed {
    id: u32,
    raft: String,
    client: String,
}

fn parse_member(text: &str) -> Result<Listed, String> {
    let parts = text
        .split_once('=')
        .and_then(|(id, addrs)| Some((id, addrs.split_once('/')?)));
    let Some((id, (raft, client))) = parts else {
        return Err(format!(
            "{text:?} is not ID=RAFT_HOST:PORT/CLIENT_HOST:PORT"
        ));
    };
    let id = id.parse().map_err(|_| format!("{id:?} is not a node id"))?;
    for addr in [raft, client] {
        let port = addr
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() {
            return Err(format!("{addr:?} is not HOST:PORT"));
        }
    }
    Ok(Listed {
        id,
        raft: raft.into(),
        client: client.into(),
    })
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = match EnvFilter::try_new(&cli.demo.log) {
        Ok(filter) => filter,
        Err(error) => {
            // Nobody may read it, which changes nothing.
            let _ = writeln!(std::io::stderr(), "--log {:?}: {error}", cli.demo.log);
            return ExitCode::from(2);
        }
    };
    let log = match Log::start() {
        Ok(log) => log,
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "counter: starting the log's thread: {error}"
            );
            return ExitCode::FAILURE;
        }
    };
    let lines = log.lines();
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(move || lines.clone())
        // Its last resort is a macro that panics when standard error is gone.
        .log_internal_errors(false)
        .init();
    let done = match &cli.command {
        None => demo::run(cli.demo.seconds, cli.demo.data.as_deref()),
        Some(What::Serve(args)) => serve(args, &log),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.line(&format!("counter: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Serve, log: &Log) -> Result<(), Box<dyn std::error::Error>> {
    if args.no_sync {
        log.line(
            "WARNING: --no-sync: nothing is flushed; acknowledged writes may be lost in a power cut",
        );
    }
    let Some(me) = args.members.iter().find(|member| member.id == args.id) else {
        let _ = writeln!(std::io::stderr(), "--id {}: not in --members", args.id);
        std::process::exit(2);
    };
    let open_files = raise_open_files();
    let max_clients = limits::max_clients(
        open_files,
        args.members.len().saturating_sub(1),
        args.max_clients as usize,
    )?;
    let stop = server::stop_on_signals()?;
    let members = args
        .members
        .iter()
        .map(|member| Member {
            id: NodeId(member.id),
            addr: member.raft.clone(),
        })
        .collect();
    let config = Config {
        listen: args.listen.clone(),
        election_timeout: args.election_timeout,
        proposal_timeout: Duration::from_secs(10).max(args.election_timeout.saturating_mul(4)),
        threads: match args.threads {
            Plan::Auto => Threads::Auto,
            Plan::SeparateApply => Threads::SeparateApply,
            Plan::Shared => Threads::Shared,
            Plan::PerStage => Threads::PerStage { cores: Vec::new() },
        },
        flush: match (args.no_sync, args.flush) {
            (true, _) => Flush::Never,
            (_, Way::Auto) => Flush::Auto,
            (_, Way::IoUring) => Flush::IoUring,
            (_, Way::Thread) => Flush::Thread,
        },
        lease: args.lease.map(|max_clock_drift_ppm| Lease {
            max_clock_drift_ppm,
        }),
        rejoin_with_nothing: args.rejoin,
        segment_bytes: args.segment_mib << 20,
        snapshot_every_bytes: args.snapshot_every_bytes,
        snapshot_every: args.snapshot_every,
        snapshot_bytes_per_second: args.snapshot_bytes_per_second,
        log_tail_entries: args.log_tail_entries,
        scrub_every: args.scrub_every,
        ..Config::new(NodeId(args.id), &args.data, members)
    };
    let clients_at = args.listen_clients.as_ref().unwrap_or(&me.client);
    let client_addr = clients_at
        .to_socket_addrs()
        .map_err(|error| format!("{clients_at}, where clients are to connect: {error}"))?
        .next()
        .ok_or_else(|| format!("{clients_at}: the name has no address"))?;
    let machine = Sessions::new(machine::Counters::default(), Limits::default());
    let sessions = machine.watch();
    let limits = limits::Limits {
        max_clients,
        client_memory: usize::try_from(args.client_memory).unwrap_or(usize::MAX),
        max_entry_bytes: config.max_entry_bytes,
    };
    let node = Node::start(config, machine)?;
    // Most elections end within two or three of these.
    let patience = args.election_timeout * 5;
    let mut server = Server::bind(node.clone(), sessions, client_addr, patience, limits)
        .map_err(|error| format!("listening for clients on {client_addr}: {error}"))?;
    tracing::info!("node {} takes clients on {client_addr}", args.id);
    let end = server.run(&stop)?;
    let left = node.shutdown();
    server.finish();
    match end {
        End::Asked => {
            tracing::info!("node {} has left in order", args.id);
            Ok(left?)
        }
        End::Fault(fault) => Err(format!("node {} stopped: {fault}", args.id).into()),
    }
}

/// Thousands of clients need as many descriptors: asks for all that this process may have. How many those are; `None`: no limit.
fn raise_open_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("raising the limit of open files: {error}");
    }
    getrlimit(Resource::Nofile).current
}
