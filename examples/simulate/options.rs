//! The command line.

use std::ops::Range;

use clap::Parser;

/// Runs simulated clusters from seeds.
#[derive(Debug, Parser)]
pub struct Options {
    /// Run this seed alone
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "jobs", "hours"])]
    pub seed: Option<u64>,
    /// End the run after so many polls of stages
    #[arg(long, value_name = "N", requires = "seed")]
    pub steps: Option<u64>,
    /// Print one line an event
    #[arg(long, requires = "seed")]
    pub trace: bool,
    /// Run these seeds, the last one not included
    #[arg(long, value_name = "A..B", value_parser = range, default_value = "0..2000")]
    pub seeds: Range<u64>,
    /// Threads, each with a seed of its own at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: u16,
    /// Go on from the first of the seeds for so long, however many that are
    #[arg(long, value_name = "H", value_parser = hours)]
    pub hours: Option<f64>,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| {
        text.trim()
            .parse::<u64>()
            .map_err(|_| format!("`{text}` is not a seed: a number up to {}", u64::MAX))
    };
    let (first, end) = text
        .split_once("..")
        .ok_or_else(|| format!("`{text}` is not a range of seeds, such as 0..2000"))?;
    let range = number(first)?..number(end)?;
    if range.is_empty() {
        return Err(format!("there is no seed in {text}"));
    }
    Ok(range)
}

fn hours(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(hours) if hours > 0.0 && hours.is_finite() => Ok(hours),
        _ => Err(format!("`{text}` is not a number of hours")),
    }
}
