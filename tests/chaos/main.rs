//! Three real processes, real faults, real clients; and in the end every answer must fit into one order.
//!
//! ```text
//! cargo test --release --test chaos -- --seconds 60 --nemesis all
//! ```
//!
//! A round is a nemesis under load: clients increment, read, set and compare-and-set through every node while it
//! strikes; then all troubles end, every node has to answer within a bounded time, all keys are read once more from
//! every node, and the history of each key is checked for linearizability (`ringraft::sim::linear`). An outcome that
//! a client does not know may be anything, for ever; what was refused must not have happened.
//!
//! That it can fail: with `--server-arg=--no-sync` a power cut has to be found, and it is, at once. `--server` takes
//! a server with a planted bug.
//!
//! `sandbox` is the room in which this happens, `network` and `disks` what it is furnished with, `cluster` the
//! processes, `load` and `resp` their clients, `history` what these saw, `nemesis` what is done to them.

mod cluster;
mod dice;
mod disks;
mod faulty;
mod history;
mod load;
mod nemesis;
mod network;
mod proxy;
mod resp;
mod round;
mod sandbox;
mod tools;
mod trouble;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::nemesis::Nemesis;
use crate::round::{Outcome, Tally};
use crate::trouble::Trouble;
use crate::world::World;

/// Faults on real processes, and whether what their clients saw is linearizable.
#[derive(Parser, Debug)]
#[command(name = "chaos")]
struct Options {
    /// How long all rounds take together; each nemesis gets an equal part.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Which nemeses, separated by commas; see --list.
    #[arg(long, value_delimiter = ',', default_value = "all")]
    nemesis: Vec<String>,
    /// Decides what the nemeses do; without it, another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Clients at a time.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=64))]
    clients: u64,
    /// Says what nemeses there are, and which of them this machine lacks the tools for.
    #[arg(long)]
    list: bool,
    /// Another server than the `counter` example of this checkout.
    #[arg(long)]
    server: Option<PathBuf>,
    /// One more argument of `counter serve`, as in --server-arg=--no-sync: with that, a power cut must be found.
    #[arg(long, allow_hyphen_values = true)]
    server_arg: Vec<String>,
}

/// A nemesis has its say for so long before the next one comes.
const LONGEST_TURN: Duration = Duration::from_secs(15);
/// To end all troubles, to read and to check takes about as long, after the last strike of a turn.
const WIND_UP: Duration = Duration::from_millis(700);

fn main() -> ExitCode {
    let options = Options::parse();
    let chosen = match nemesis::choose(&options.nemesis) {
        Ok(chosen) => chosen,
        Err(unknown) => {
            eprintln!("--nemesis {unknown}: there is no such nemesis; --list names them");
            return ExitCode::from(2);
        }
    };
    if options.list {
        for nemesis in chosen {
            println!("{:<12} {}", nemesis.name(), nemesis.about());
            if let Some(reason) = nemesis.lacks() {
                println!("{:<12} skipped here: {reason}", "");
            }
        }
        return ExitCode::SUCCESS;
    }
    if !sandbox::is_inside() {
        return sandbox::go_inside(options.server.as_deref());
    }
    trouble::stop_on_signals();
    match run(&options, chosen) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Trouble::Interrupted) => {
            println!("interrupted; everything is removed");
            ExitCode::from(130)
        }
        Err(trouble) => {
            println!("BROKEN: {trouble}");
            ExitCode::FAILURE
        }
    }
}

/// True when all that ran was linearizable.
fn run(options: &Options, chosen: Vec<Box<dyn Nemesis>>) -> Result<bool, Trouble> {
    let seed = options.seed.unwrap_or_else(dice::any_seed);
    println!("seed {seed}");
    let mut world = World::make(options.clients, options.server_arg.clone())?;
    let mut able = Vec::new();
    for nemesis in chosen {
        match nemesis.lacks() {
            Some(reason) => println!("skipped: {}: {reason}", nemesis.name()),
            None => able.push(nemesis),
        }
    }
    let begin = Instant::now();
    let span = Duration::from_secs(options.seconds);
    let mut tallies: BTreeMap<&'static str, Tally> = BTreeMap::new();
    println!("{:<12} {}", "nemesis", round::HEAD);
    // What has failed once is not tried again: one history is enough to look into.
    let mut failed: Vec<&str> = Vec::new();
    // Each has a turn, however short the time; then on, turn by turn, while there is time.
    for number in 0_u64.. {
        for at in 0..able.len() {
            let left = span.saturating_sub(begin.elapsed());
            if number > 0 && left.is_zero() {
                break;
            }
            let turn = (left / (able.len() - at) as u32).min(LONGEST_TURN);
            let turn = turn.saturating_sub(WIND_UP);
            let nemesis = able[at].as_mut();
            let name = nemesis.name();
            if failed.contains(&name) {
                continue;
            }
            let tally = tallies.entry(name).or_default();
            let outcome = round::run(&mut world, nemesis, seed, number, turn, tally)?;
            match outcome {
                Outcome::Linearizable => println!("{name:<12} {tally}  linearizable"),
                Outcome::Failed(what) => {
                    failed.push(name);
                    println!("{name:<12} {tally}  {what}");
                    println!("  again: {}", again(options, seed, name));
                }
            }
        }
        if failed.len() == able.len() || begin.elapsed() >= span {
            break;
        }
    }
    world.give_up_cluster()?;
    println!(
        "{} nemeses in {:.0} s: {}",
        able.len(),
        begin.elapsed().as_secs_f64(),
        if failed.is_empty() {
            "linearizable"
        } else {
            "NOT CLEAN"
        }
    );
    Ok(failed.is_empty())
}

/// The command that makes the same choices. What the machine makes of them is its own affair.
fn again(options: &Options, seed: u64, name: &str) -> String {
    let mut command = format!(
        "cargo test --release --test chaos -- --seed {seed} --seconds {} --nemesis {name}",
        options.seconds
    );
    if let Some(server) = &options.server {
        command += &format!(" --server {}", server.display());
    }
    for arg in &options.server_arg {
        command += &format!(" --server-arg={arg}");
    }
    command
}
