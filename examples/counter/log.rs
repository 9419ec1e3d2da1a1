//! Log lines on their way to standard error, on a thread of its own.
//!
//! Invariant: whoever logs neither waits nor fails. When nobody reads standard error, its disk is full, or [`WAITING_LINES`]
//! wait, lines are lost and counted, and the next one that gets through is followed by their number.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Lines that may wait for a slow reader.
const WAITING_LINES: usize = 4096;
/// At the end of the process the lines that wait get this long.
const LAST_LINES: Duration = Duration::from_secs(1);

enum Item {
    Line(Vec<u8>),
    /// Everything before it was written, or is lost.
    Flush(SyncSender<()>),
}

/// The log; dropped at the end of the process, it waits a moment for what was logged last.
pub struct Log {
    lines: Lines,
}

/// A handle for writing whole lines. It never fails.
#[derive(Clone)]
pub struct Lines {
    to: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

impl Log {
    pub fn start() -> io::Result<Self> {
        Self::start_on(io::stderr())
    }

    fn start_on(out: impl Write + Send + 'static) -> io::Result<Self> {
        // Any thread -> the log's thread. Full: the line is lost.
        let (to, items) = sync_channel(WAITING_LINES);
        let lost = Arc::new(AtomicU64::new(0));
        let of_thread = lost.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_out(&items, out, &of_thread))?;
        Ok(Self {
            lines: Lines { to, lost },
        })
    }

    pub fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// Writes a line of its own.
    pub fn line(&self, text: &str) {
        self.lines.send(format!("{text}\n").into_bytes());
    }
}

impl Lines {
    fn send(&self, line: Vec<u8>) {
        if self.to.try_send(Item::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Write for Lines {
    /// `tracing-subscriber` writes an event with one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.send(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_out(items: &Receiver<Item>, mut out: impl Write, lost: &AtomicU64) {
    for item in items {
        match item {
            Item::Line(line) => {
                if out.write_all(&line).is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let missing = lost.swap(0, Ordering::Relaxed);
                if missing > 0 && writeln!(out, "{missing} log lines were lost").is_err() {
                    lost.fetch_add(missing, Ordering::Relaxed);
                }
            }
            Item::Flush(done) => {
                let _ = done.send(()); // Whoever asked may have given up.
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let (done, written) = sync_channel(1);
        // With a full queue, or a reader that takes nothing, the last lines are lost.
        if self.lines.to.try_send(Item::Flush(done)).is_ok() {
            let _ = written.recv_timeout(LAST_LINES);
        }
    }
}
