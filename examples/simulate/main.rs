//! Runs simulated clusters from seeds: one, to look at it, or many, to find one that fails.
//!
//! ```text
//! cargo run --release --example simulate -- --seed 42 --trace
//! cargo run --release --example simulate -- --seeds 0..10000 --jobs 2
//! cargo run --release --example simulate -- --hours 8
//! ```
//!
//! Exit code 1: a check failed, and the command that shows it again is printed; or a long run never met a fault or a
//! rare path that it should have.

mod many;
mod options;

use std::process::ExitCode;

use clap::Parser;
use ringraft::sim::{self, Report};

use options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let sound = match options.seed {
        Some(seed) => one(seed, &options),
        None => many::run(&options),
    };
    if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// One seed, whole or in part.
fn one(seed: u64, options: &Options) -> bool {
    let mut of_run = sim::Options::new(seed);
    of_run.steps = options.steps;
    let report = if options.trace {
        sim::run_traced(&of_run, &mut |line| println!("{line}"))
    } else {
        sim::run(&of_run)
    };
    print!("{}", report.counts);
    println!(
        "seed {seed}: {} nodes, {:.3} s simulated, {} polls, {} operations, trace hash {:016x}",
        report.nodes,
        report.simulated.as_secs_f64(),
        report.steps,
        report.operations,
        report.trace_hash
    );
    if report.failure.is_some() {
        failed(&report, options.trace);
    }
    report.failure.is_none()
}

/// Says what failed, what came before it, and how to see it again.
fn failed(report: &Report, shown: bool) {
    let seed = report.seed;
    if !shown {
        // The same seed is the same run, so the trace need not be kept while nobody asks for it.
        let again = sim::run_traced(&sim::Options::new(seed), &mut |_| ());
        let from = again.tail.len().saturating_sub(60);
        for line in &again.tail[from..] {
            println!("{line}");
        }
        if again.trace_hash != report.trace_hash {
            println!("the run was another this time: it does not depend on its seed alone");
        }
    }
    if let Some(failure) = &report.failure {
        println!("seed {seed} failed: {failure}");
    }
    println!("replay: cargo run --release --example simulate -- --seed {seed} --trace");
}
