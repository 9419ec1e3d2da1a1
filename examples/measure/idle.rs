//! What three nodes cost that nobody asks for anything.

use std::time::{Duration, Instant};

use crate::Common;
use crate::cluster::{Cluster, temp_dir};
use crate::figures::{Figures, Goal};
use crate::process::{cpu_seconds, sleeps};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How long each round takes.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

pub(crate) fn run(args: &Args) -> Result<Figures, String> {
    let dir = temp_dir(args.common.data.as_deref()).map_err(|error| error.to_string())?;
    let mut figures = Figures::new("idle");
    figures.condition("nodes", 3);
    figures.condition("election_timeout_ms", 1000);
    figures.condition("rounds", args.common.rounds);
    figures.condition("seconds", args.seconds);
    let cluster = Cluster::new(dir.path(), 3, |_| ());
    let mut cluster = cluster.map_err(|error| error.to_string())?;
    for at in 0..3 {
        cluster.start(at, Nothing)?;
    }
    cluster.leader()?;
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..args.common.rounds {
        let (begin, cpu, woken) = (Instant::now(), cpu_seconds(), sleeps());
        std::thread::sleep(Duration::from_secs(args.seconds));
        let seconds = begin.elapsed().as_secs_f64();
        figures.note(
            "CPU of all nodes",
            "% of a core",
            (cpu_seconds() - cpu) / seconds * 100.0,
        );
        figures.note(
            "wake-ups of all nodes",
            "/s",
            (sleeps() - woken) as f64 / seconds,
        );
    }
    figures.set_goal("CPU of all nodes", Goal::AtMost(0.5));
    cluster.shutdown()?;
    Ok(figures)
}

struct Nothing;

impl ringraft::StateMachine for Nothing {
    fn apply(&mut self, batch: &mut ringraft::Batch<'_>) -> std::io::Result<()> {
        while batch.next().is_some() {}
        Ok(())
    }

    fn query(&self, _: &[u8], _: &mut Vec<u8>) {}
}
