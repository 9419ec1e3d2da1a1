//! What is promised of writes, reads, snapshots, slow parts, idling and failover, each by one command, as ratios within one run.
//!
//! ```text
//! cargo run --release --example measure -- snapshots [--bytes 1GiB]
//! cargo run --release --example measure -- reads
//! cargo run --release --example measure -- slow
//! cargo run --release --example measure -- idle
//! cargo run --release --example measure -- goals
//! cargo run --release --example measure -- failover
//! ```
//!
//! Three durable nodes and the load run in this process (but for `failover`), over loopback, in a temporary directory that is
//! removed at the end. What is compared is measured in turns: every figure is the median of the rounds, with the least and the
//! most.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod cluster;
#[path = "../../benches/three_nodes/count.rs"]
mod count;
mod driver;
mod etcd;
mod failover;
mod figures;
#[path = "../../benches/three_nodes/floor.rs"]
mod floor;
mod goals;
mod idle;
mod line;
mod process;
mod reads;
mod slow;
mod snapshots;
mod steady;

#[derive(Parser)]
#[command(about = "Measures a durable cluster in this process, as ratios within one run")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Taking, verifying and installing a large snapshot, and what that does to writes.
    Snapshots(snapshots::Args),
    /// Reads in every mode, on the leader and on a follower, and what they cost writes.
    Reads(reads::Args),
    /// What a slow or dead part costs the rest.
    Slow(slow::Args),
    /// What three idle nodes cost.
    Idle(idle::Args),
    /// One write in flight, thousands, half of that, long ones.
    Goals(goals::Args),
    /// How long clients wait when the leader is killed.
    Failover(failover::Args),
}

/// What all of them take.
#[derive(Args, Clone)]
struct Common {
    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// Where the data directories are made; they are removed at the end. Default: the system's temporary directory.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Print one JSON object and nothing else.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    // Says something when RUST_LOG is set.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let done = match Cli::parse().what {
        What::Snapshots(args) => snapshots::run(&args).map(|figures| (figures, args.common)),
        What::Reads(args) => reads::run(&args).map(|figures| (figures, args.common)),
        What::Slow(args) => slow::run(&args).map(|figures| (figures, args.common)),
        What::Idle(args) => idle::run(&args).map(|figures| (figures, args.common)),
        What::Goals(args) => goals::run(&args).map(|figures| (figures, args.common)),
        What::Failover(args) => failover::run(&args).map(|figures| (figures, args.common)),
    };
    match done {
        Ok((figures, common)) => {
            figures.print(common.json);
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("measure: {why}");
            ExitCode::FAILURE
        }
    }
}
