//! How many clients there may be, and how much memory their buffers may take.
//!
//! The node comes first: without a descriptor for its next segment it stops, without one for a client only that client is
//! refused. So [`reserved`] descriptors are never given to clients.

use std::time::{Duration, Instant};

/// Connections that a server can tell apart.
pub const MAX_CLIENTS: usize = 1 << 16;
/// Descriptors for the log, snapshots, locks, threads' wake-ups and standard streams.
const RESERVED: u64 = 64;
/// Descriptors for each other member: connections both ways, and their successors after a failure.
const RESERVED_PER_PEER: u64 = 4;
/// With fewer a node cannot be expected to run: it has about 20 when it idles.
const LEAST_OPEN_FILES: u64 = 48;
/// Interval between log lines of one kind that clients can cause.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_clients: usize,
    /// Bytes of all connections' buffers together.
    pub client_memory: usize,
    /// Bytes of one command in the log.
    pub max_entry_bytes: usize,
}

/// Descriptors that clients do not get: half of all where there are few.
fn reserved(open_files: u64, peers: usize) -> u64 {
    (RESERVED + RESERVED_PER_PEER * peers as u64).min(open_files / 2)
}

/// How many clients a process with `open_files` descriptors may have, of the `wanted` ones. `None`: as many as there are.
pub fn max_clients(open_files: Option<u64>, peers: usize, wanted: usize) -> Result<usize, String> {
    let Some(open_files) = open_files else {
        return Ok(wanted);
    };
    if open_files < LEAST_OPEN_FILES {
        return Err(format!(
            "the limit of open files is {open_files}; a node needs {LEAST_OPEN_FILES} to run and to have clients: raise it (ulimit -n)"
        ));
    }
    let left = open_files - reserved(open_files, peers);
    Ok(wanted.min(usize::try_from(left).unwrap_or(usize::MAX)))
}

/// What clients have taken, and how many got nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientStats {
    pub connected: usize,
    pub buffer_bytes: usize,
    pub accepted: u64,
    /// Refused because there were too many, or no descriptor was left.
    pub rejected: u64,
    /// Disconnected because the buffers of all held too much.
    pub evicted: u64,
}

/// Log lines that clients can cause: one a second, with the number of those that were left out.
#[derive(Debug, Default)]
pub struct LogRate {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogRate {
    /// How many lines were left out since the last one, when another is due.
    pub fn due(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < LOG_INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_keeps_its_descriptors() {
        for (open_files, peers, wanted, clients) in [
            (Some(1 << 20), 2, MAX_CLIENTS, MAX_CLIENTS),
            (Some(1 << 20), 2, 100, 100),
            (Some(1024), 0, MAX_CLIENTS, 960),
            (Some(1024), 4, MAX_CLIENTS, 944),
            (Some(100), 2, MAX_CLIENTS, 50),
            (Some(64), 0, MAX_CLIENTS, 32),
            (None, 2, MAX_CLIENTS, MAX_CLIENTS),
        ] {
            let found = max_clients(open_files, peers, wanted);
            assert_eq!(found, Ok(clients), "{open_files:?}, {peers} peers");
        }
        let error = max_clients(Some(47), 0, 10).expect_err("too few");
        assert!(error.contains("47") && error.contains("ulimit"), "{error}");
    }
}
