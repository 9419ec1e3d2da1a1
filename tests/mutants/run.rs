//! Test of the tests: plants known bugs, one at a time, and sees that each is caught.
//!
//! ```text
//! cargo run --release --example mutants              all of them
//! cargo run --release --example mutants -- --list
//! cargo run --release --example mutants -- --only vote_not_flushed --seeds 5000
//! ```
//!
//! The bugs are texts beside this file (`list`), so the product is free of them. The source tree is
//! copied to `target/mutants/tree`; there one bug is planted, built, and shown to its catcher. First the
//! catchers see the tree without a bug, and must find nothing: who cries always, shows nothing. What a
//! catcher said is in `target/mutants/logs`.

mod list;
mod workshop;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use list::{Catcher, Mutant};
use workshop::{Outcome, WITHOUT, Workshop};

#[derive(Parser)]
#[command(about = "Plants known bugs and sees that each is caught")]
struct Options {
    /// Only these, by name
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Let this one look instead of the one that each names: `test --lib`
    #[arg(long)]
    catcher: Option<Catcher>,
    /// Show what there is
    #[arg(long)]
    list: bool,
    /// The most seeds that the simulator gets for a bug
    #[arg(long, default_value_t = 3000)]
    seeds: u64,
    /// The most seconds that a catcher gets for a bug, without building it; the simulator then has
    /// had the seeds that there was time for
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Threads of the simulator
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mutants: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything was caught.
fn run(options: &Options) -> Result<bool, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut mutants = list::read(root)?;
    for name in &options.only {
        if !mutants.iter().any(|mutant| mutant.name == *name) {
            return Err(format!("there is no `{name}`; --list shows what there is"));
        }
    }
    mutants.retain(|mutant| options.only.is_empty() || options.only.contains(&mutant.name));
    if let Some(catcher) = &options.catcher {
        mutants.iter_mut().for_each(|m| m.catcher = catcher.clone());
    }
    if options.list {
        for mutant in &mutants {
            println!("{}", mutant.name);
            println!("    {}", mutant.why);
            println!("    lesson {} · {}", mutant.lesson, mutant.catcher);
        }
        return Ok(true);
    }

    let limit = Duration::from_secs(options.seconds);
    let workshop = Workshop::new(root, options.seeds, options.jobs, limit)?;
    let mut catchers: Vec<Catcher> = mutants.iter().map(|m| m.catcher.clone()).collect();
    catchers.sort();
    catchers.dedup();
    for catcher in &catchers {
        let begun = Instant::now();
        match workshop.show(WITHOUT, catcher)? {
            Outcome::Quiet => {
                let seconds = begun.elapsed().as_secs();
                println!("without a bug `{catcher}` finds nothing ({seconds} s)");
            }
            Outcome::Endless if *catcher == Catcher::Simulate => {
                let seconds = options.seconds;
                println!(
                    "without a bug `{catcher}` finds nothing in {seconds} s, but not all seeds ran"
                );
            }
            outcome => return Err(format!("without a bug `{catcher}` says: {outcome}")),
        }
    }

    let widest = mutants.iter().map(|m| m.name.len()).max().unwrap_or(0);
    println!("\n{:widest$}  {:>6}  {:>6}  caught by", "bug", "seeds", "s");
    let mut escaped = Vec::new();
    for mutant in &mutants {
        let begun = Instant::now();
        let outcome = show(&workshop, mutant)?;
        let seconds = begun.elapsed().as_secs();
        let (name, seeds) = (&mutant.name, outcome.seeds());
        println!("{name:widest$}  {seeds:>6}  {seconds:>6}  {outcome}");
        if !matches!(outcome, Outcome::Caught { .. }) {
            escaped.push(name.as_str());
        }
    }
    match &*escaped {
        [] => println!("\nall {} caught", mutants.len()),
        names => println!(
            "\n{} of {} escaped: {}",
            names.len(),
            mutants.len(),
            names.join(", ")
        ),
    }
    Ok(escaped.is_empty())
}

/// Plants the bug, shows it to its catcher, and takes it out again.
fn show(workshop: &Workshop, mutant: &Mutant) -> Result<Outcome, String> {
    let changed = mutant.apply(workshop.tree())?;
    let planted = workshop.plant(&changed)?;
    let outcome = workshop.show(&mutant.name, &mutant.catcher);
    planted.take_out()?;
    outcome
}
