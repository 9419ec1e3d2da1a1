//! The product from outside: nodes in this process through the public API (`api`), and the counter
//! example as real processes (`counter`) that are killed, stopped, starved (`faults`), bereft of their directories (`rejoin`),
//! lied to (`strangers`), read from in every mode (`reads`), and whose logs give way to snapshots (`snapshots`, `rot`);
//! `cluster`, `load` and `ports` are what these stand on. `tidy` looks at the sources.
//!
//! Nothing here sleeps for a fixed time: a test waits for a condition and fails when the condition
//! has not come by [`DEADLINE`].

mod api;
mod cluster;
mod corpus;
mod counter;
#[cfg(target_os = "linux")]
mod descriptors;
mod faults;
mod imports;
mod load;
mod mutants;
mod ports;
mod reads;
mod rejoin;
mod rot;
mod snapshots;
mod strangers;
mod tidy;

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Far more than anything here takes; a test that needs it has failed.
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
fn until(what: impl Display, mut condition: impl FnMut() -> bool) {
    until_some(what, || condition().then_some(()));
}

/// Waits until `find` finds something.
fn until_some<T>(what: impl Display, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {DEADLINE:?} in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(2)); // The pace of looking, not the wait.
    }
}
