//! Many seeds: on some threads, with a line of progress, and in the end what was met and what was not.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ringraft::sim::{self, Counts, Report};

use crate::options::Options;

/// From so many seeds on, everything that is expected must have been met.
const LONG: u64 = 2_000;

/// True: nothing failed, and nothing is missing.
pub fn run(options: &Options) -> bool {
    let next = AtomicU64::new(options.seeds.start);
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let limit = options
        .hours
        .map(|hours| Duration::from_secs_f64(hours * 3600.0));
    let (reports, done) = mpsc::channel();
    let mut total = Total::default();
    // What panics is caught and reported with its seed; its place is worth a line.
    std::panic::set_hook(Box::new(|panic| eprintln!("\n{panic}")));
    let failed = thread::scope(|scope| {
        for _ in 0..options.jobs {
            let reports = reports.clone();
            scope.spawn(|| {
                let reports = reports;
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let over = match limit {
                        Some(limit) => begun.elapsed() >= limit,
                        None => seed >= options.seeds.end,
                    };
                    if over || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if reports.send(sim::run(&sim::Options::new(seed))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(reports);
        let mut progress = Progress::new(begun, options.seeds.end - options.seeds.start, limit);
        let mut failed: Option<Report> = None;
        for report in done {
            total.take(&report);
            progress.show(&total);
            // Seeds that were begun earlier are waited for: the lowest one that fails is the one to look at.
            if report.failure.is_some()
                && failed.as_ref().is_none_or(|first| report.seed < first.seed)
            {
                stop.store(true, Ordering::Relaxed);
                failed = Some(report);
            }
        }
        progress.end();
        failed
    });
    let _ = std::panic::take_hook();
    total.print(begun.elapsed());
    if let Some(report) = failed {
        crate::failed(&report, false);
        return false;
    }
    let missing = total.missing();
    if total.seeds >= LONG && !missing.is_empty() {
        println!("in {} seeds never met:", total.seeds);
        for name in &missing {
            println!("              {name}");
        }
        return false;
    }
    println!("{} seeds passed", total.seeds);
    true
}

#[derive(Default)]
struct Total {
    seeds: u64,
    simulated: Duration,
    steps: u64,
    operations: u64,
    counts: Counts,
}

impl Total {
    fn take(&mut self, report: &Report) {
        self.seeds += 1;
        self.simulated += report.simulated;
        self.steps += report.steps;
        self.operations += report.operations;
        self.counts.merge(&report.counts);
    }

    fn missing(&self) -> Vec<&'static str> {
        sim::expected()
            .filter(|name| self.counts.of(name) == 0)
            .collect()
    }

    fn print(&self, took: Duration) {
        print!("{}", self.counts);
        println!(
            "{} seeds in {:.1} s: {:.1} seeds/s, {:.0} simulated seconds per second, {} polls, {} operations",
            self.seeds,
            took.as_secs_f64(),
            self.seeds as f64 / took.as_secs_f64(),
            self.simulated.as_secs_f64() / took.as_secs_f64(),
            self.steps,
            self.operations,
        );
    }
}

/// A line that is written over on a terminal, and now and then a new one elsewhere.
struct Progress {
    begun: Instant,
    shown: Instant,
    seeds: u64,
    limit: Option<Duration>,
    over: bool,
}

impl Progress {
    fn new(begun: Instant, seeds: u64, limit: Option<Duration>) -> Self {
        Self {
            begun,
            shown: begun,
            seeds,
            limit,
            over: std::io::stderr().is_terminal(),
        }
    }

    fn show(&mut self, total: &Total) {
        let every = if self.over { 200 } else { 10_000 };
        if self.shown.elapsed() < Duration::from_millis(every) {
            return;
        }
        self.shown = Instant::now();
        let took = self.begun.elapsed();
        let seconds = took.as_secs_f64();
        let part = match self.limit {
            Some(limit) => seconds / limit.as_secs_f64(),
            None => total.seeds as f64 / self.seeds as f64,
        };
        let bar = "#".repeat((part.min(1.0) * 30.0) as usize);
        let (begin, end) = if self.over { ("\r", "") } else { ("", "\n") };
        eprint!(
            "{begin}[{bar:<30}] {} seeds, {:.1} seeds/s, {:.0} simulated s/s{end}",
            total.seeds,
            total.seeds as f64 / seconds,
            total.simulated.as_secs_f64() / seconds
        );
        let _ = std::io::stderr().flush();
    }

    fn end(&self) {
        if self.over {
            eprintln!();
        }
    }
}
