//! `ringraft`: looks at the data directory of a node, whole or broken, and repairs it where somebody takes the blame.
//!
//! `log` and `snapshot` never change anything: no file is opened for writing. `repair` does, under the node's own lock,
//! and each of its ways is named after what is lost by it.
//!
//! Exit codes: 0 all is sound; 1 something is damaged, or lacks what it promised; 2 the command line is wrong, or the
//! system refused something.

mod dump;
mod info;
mod out;
mod repair;
mod snapshot;
mod target;
mod verify;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use out::Out;

/// Looks at the data directories of ringraft nodes, and repairs them.
#[derive(Debug, Parser)]
#[command(
    name = "ringraft",
    version,
    after_help = "Exit codes: 0 sound, 1 damaged or lacking what was promised, 2 usage or I/O.\n\
                  DIR is a node's data directory (with folders `group-N`) or the directory of one group."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The log: its files, its records. Changes nothing.
    #[command(subcommand)]
    Log(LogCommand),
    /// The snapshots. Changes nothing.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Changes a directory in a way that loses something: each way says what. The node must be down.
    Repair(RepairArgs),
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Every file of the log on a line, whose it is, and what the next start does.
    Info(Where),
    /// The records, with the bad places between them. With --json an object a line.
    Dump(DumpArgs),
    /// Only whether it is sound, and what is not.
    Verify(Where),
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Every snapshot on a line: its index and term, its size, whether it is sound. All of them are read to the end.
    Info(Where),
    /// Only whether all of them are sound, and what is not.
    Verify(Where),
}

#[derive(Debug, Args)]
struct Where {
    /// A node's data directory, or that of one group; for snapshots also the file of one.
    dir: PathBuf,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DumpArgs {
    #[command(flatten)]
    at: Where,
    /// The first index.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// The last index [default: the last one that is there].
    #[arg(long)]
    to: Option<u64>,
    /// How to write payloads.
    #[arg(long, value_enum, default_value_t = Payload::Text)]
    payload: Payload,
    /// At most so many bytes of each payload.
    #[arg(long, default_value_t = 64)]
    limit: usize,
}

/// How a payload is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Payload {
    /// As text, other bytes escaped.
    Text,
    /// As hexadecimal digits.
    Hex,
    /// Not at all.
    None,
}

#[derive(Debug, Args)]
struct RepairArgs {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    how: How,
    /// Do it. Without this it is only said what would be done.
    #[arg(long)]
    yes: bool,
}

#[derive(Clone, Copy, Debug, Args)]
#[group(required = true, multiple = false)]
struct How {
    /// Cuts the log off before the first damaged place and lets the node vouch for what is left. What it acknowledged
    /// behind that place is LOST: when this node is one of the majority that had it, the cluster loses it too. Only for a
    /// node without peers; one with peers heals by itself.
    #[arg(long)]
    unsafe_accept_shorter_log: bool,
    /// Lets a node vote again whose log may lack what it acknowledged, and whose vote may be lost: it may elect a leader
    /// without committed entries, and vote TWICE in a term. Only when the peers that would give it back are gone.
    #[arg(long)]
    unsafe_forget_heal: bool,
    /// Removes the list of the directories that the peers had: the node takes them as they come. A peer that LOST its
    /// directory is then counted as if it had lost nothing.
    #[arg(long)]
    unsafe_forget_peers: bool,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Sound,
    Damaged,
}

impl Verdict {
    fn and(self, other: Verdict) -> Verdict {
        match (self, other) {
            (Verdict::Sound, Verdict::Sound) => Verdict::Sound,
            _ => Verdict::Damaged,
        }
    }
}

/// Why a command ended early.
#[derive(Debug)]
enum Failed {
    /// Nobody reads what is written any more.
    Closed,
    /// What to say.
    Said(String),
}

impl From<storage::StorageError> for Failed {
    fn from(error: storage::StorageError) -> Self {
        Failed::Said(error.to_string())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = Out::new();
    let done = run(cli.command, &mut out).and_then(|verdict| out.flush().map(|()| verdict));
    match done {
        Ok(Verdict::Sound) => ExitCode::SUCCESS,
        Ok(Verdict::Damaged) => ExitCode::from(1),
        Err(Failed::Closed) => ExitCode::from(2),
        Err(Failed::Said(text)) => {
            // What was found before that is shown first; nobody reading it is no news.
            let _ = out.flush();
            // Nobody may read this either; the exit code says it, too.
            let _ = writeln!(std::io::stderr(), "ringraft: {text}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command, out: &mut Out) -> Result<Verdict, Failed> {
    match command {
        Command::Log(LogCommand::Info(at)) => info::run(&at, out),
        Command::Log(LogCommand::Dump(args)) => dump::run(&args, out),
        Command::Log(LogCommand::Verify(at)) => verify::run(&at, out),
        Command::Snapshot(SnapshotCommand::Info(at)) => snapshot::run(&at, true, out),
        Command::Snapshot(SnapshotCommand::Verify(at)) => snapshot::run(&at, false, out),
        Command::Repair(args) => repair::run(&args, out),
    }
}
