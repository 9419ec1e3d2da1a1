//! What this process costs: its own memory, its CPU time, its wake-ups, as /proc tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// CPU time of all threads, the system's work for them included.
pub(crate) fn cpu_seconds() -> f64 {
    // The process's own file has the main thread only: each thread has one.
    threads("schedstat")
        .iter()
        .filter_map(|text| text.split(' ').next()?.parse::<f64>().ok())
        .sum::<f64>()
        / 1e9
}

/// How often a thread of this process went to sleep of its own will: about as often it was woken.
pub(crate) fn sleeps() -> u64 {
    threads("status")
        .iter()
        .filter_map(|text| field(text, "voluntary_ctxt_switches:"))
        .sum()
}

fn threads(file: &str) -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let read = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join(file)).ok();
    tasks.flatten().filter_map(read).collect()
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Memory that is its own, in KiB: mapped files, which are page cache, are left out.
pub(crate) fn own_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    field(&status, "RssAnon:").unwrap_or(0)
}

/// Looks every few milliseconds how much memory the process has.
pub(crate) struct MemoryWatch {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    base: u64,
    thread: Option<JoinHandle<()>>,
}

impl MemoryWatch {
    pub(crate) fn begin() -> Self {
        let (stop, most) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (seen_stop, seen_most) = (stop.clone(), most.clone());
        let thread = std::thread::spawn(move || {
            while !seen_stop.load(Ordering::Relaxed) {
                seen_most.fetch_max(own_kib(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self {
            stop,
            most,
            base: own_kib(),
            thread: Some(thread),
        }
    }

    /// By how much it grew at the most, in MiB.
    pub(crate) fn grown_mib(mut self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // It cannot panic; without it the most is what it was.
        }
        self.most.load(Ordering::Relaxed).saturating_sub(self.base) as f64 / 1024.0
    }
}
