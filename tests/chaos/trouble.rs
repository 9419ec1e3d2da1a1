//! Why something ends before its end, and waiting that ends when somebody says so.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Why a round ends before its end.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Ctrl-C.
    Interrupted,
    /// The product does not do what it promises.
    Found(String),
    /// This program, or the machine, could not do what was to be done.
    Broken(String),
}

pub(crate) type Fallible<T> = Result<T, Trouble>;

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupted => f.write_str("interrupted"),
            Self::Found(what) => write!(f, "FOUND: {what}"),
            Self::Broken(what) => f.write_str(what),
        }
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on a signal ends the run in order.
pub(crate) fn stop_on_signals() {
    let stop = STOP.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // It fails for signals that cannot be handled; these can.
        let _ = signal_hook::flag::register(signal, stop.clone());
    }
}

fn go_on() -> Fallible<()> {
    match STOP.get() {
        Some(stop) if stop.load(Ordering::Relaxed) => Err(Trouble::Interrupted),
        _ => Ok(()),
    }
}

/// Lets time pass.
pub(crate) fn pass(span: Duration) -> Fallible<()> {
    let end = Instant::now() + span;
    loop {
        go_on()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(20)));
    }
}

/// Looks until something is there. `None` when the time is over.
pub(crate) fn look<T>(
    limit: Duration,
    mut find: impl FnMut() -> Fallible<Option<T>>,
) -> Fallible<Option<T>> {
    let end = Instant::now() + limit;
    loop {
        go_on()?;
        if let Some(found) = find()? {
            return Ok(Some(found));
        }
        if Instant::now() > end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
