//! `BGSAVE` and `LASTSAVE`: snapshots that clients ask for.
//!
//! One that a client began is known here until its answer comes; those that the node takes by itself are in its status.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use ringraft::{Node, ProposeError, Status};

/// What became of the snapshots that clients asked for.
#[derive(Clone, Debug, Default)]
pub struct Saves(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    running: AtomicBool,
    failed: AtomicBool,
    /// When the last one ended well, in seconds since the Unix epoch; also where there was nothing new to save.
    last: AtomicU64,
}

impl Saves {
    /// Begins one; the text is what the client is told.
    pub fn begin(&self, node: &Node) -> Result<&'static str, String> {
        if self.is_running(&node.status()) {
            return Err("ERR Background save already in progress".into());
        }
        let pending = node
            .snapshot()
            .map_err(|error| format!("ERR no background save: {error}"))?;
        self.0.running.store(true, Ordering::Release);
        let known = self.0.clone();
        pending.then(move |outcome| {
            match outcome {
                Ok(_) => {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH);
                    let now = now.map_or(0, |time| time.as_secs());
                    known.last.fetch_max(now, Ordering::AcqRel);
                    known.failed.store(false, Ordering::Release);
                }
                // The node began one by itself a moment before: what was asked for is being done.
                Err(ProposeError::SnapshotRunning) => {}
                Err(_) => known.failed.store(true, Ordering::Release),
            }
            known.running.store(false, Ordering::Release);
        });
        Ok("Background saving started")
    }

    pub fn is_running(&self, status: &Status) -> bool {
        self.0.running.load(Ordering::Acquire) || status.snapshot.taking.is_some()
    }

    /// When the last one was finished, in seconds since the Unix epoch; 0: none by this process.
    pub fn last(&self, status: &Status) -> u64 {
        let by_itself = status.snapshot.taken_unix_us / 1_000_000;
        by_itself.max(self.0.last.load(Ordering::Acquire))
    }

    /// Whether the last one ended well, as far as is known.
    pub fn is_well(&self, status: &Status) -> bool {
        status.snapshot.trouble.is_none() && !self.0.failed.load(Ordering::Acquire)
    }
}
