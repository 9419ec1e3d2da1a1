//! What the state machine begins with: its own disk, a snapshot, or nothing; and the log goes on from there.
//!
//! A machine with a disk of its own may be ahead of the log after a power failure: it applies what is committed and written, and
//! the log's flush may still be under way. What is missing in the log was committed by other nodes, and never acknowledged by
//! this one. So a node with peers starts, votes as its log allows, and gets the entries from its leader; those that the machine
//! has are written and not applied again. Term and time of the machine's last entry are unknown until then, hence no snapshot
//! is captured before an entry behind it is applied (`flow/apply/mod.rs`).

use std::panic::{AssertUnwindSafe, catch_unwind};

use storage::{Dir, Log, Recovered, SnapshotMeta};

use crate::config::Config;
use crate::flow::background::restore::{open, restore};
use crate::flow::guard::text;
use crate::state_machine::StateMachine;
use crate::types::Index;
use crate::wire;

/// Brings the machine to a state from which the log goes on; returns what is in it.
pub(crate) fn begin<D: Dir>(
    machine: &mut dyn StateMachine,
    log: &Log<D>,
    recovered: &Recovered,
    config: &Config,
) -> Result<SnapshotMeta, String> {
    let own = match catch_unwind(AssertUnwindSafe(|| machine.open())) {
        Ok(Ok(own)) => own,
        Ok(Err(error)) => return Err(format!("open returned an error: {error}")),
        Err(panic) => return Err(format!("open panicked: {}", text(&*panic))),
    };
    let (first, last) = (recovered.first_index, recovered.last_index);
    let covers = own + 1 >= first;
    match &recovered.snapshot {
        Some((id, _)) if own == 0 || !covers => {
            restore(open(&log.snapshots(), id.index)?, machine, |from| from)
        }
        _ if !covers => Err(format!(
            "it has applied everything up to {own}, but the log begins with {first}, and there is no snapshot: what is \
             between is gone here; {}",
            match config.members.len() {
                1 =>
                    "restore both directories, of its log and of its state, from backups of the same time",
                _ =>
                    "empty the directories of the node's log and of its state, and it gets all of it from its peers under a new \
                     node id",
            }
        )),
        // Alone, a node applies nothing that its own log has not made durable.
        _ if own > last && config.members.len() == 1 => Err(format!(
            "it has applied everything up to {own}, but the log ends with {last}: the log has lost entries {} to {own}, \
             which were acknowledged, and there is no peer to get them from; or one of the two directories is an older \
             copy, or another node's. Put back the log's directory that belongs to this state, or empty both and begin anew",
            last + 1
        )),
        _ => {
            if own > last {
                tracing::warn!(
                    node = config.id.0,
                    applied = own,
                    last,
                    "the state machine is ahead of the log, which had not flushed the entries in between: the node gets \
                     them from its peers"
                );
            }
            let members = wire::members(&config.members);
            let time_us = time_of(log, own).unwrap_or(recovered.last_time_us);
            Ok(SnapshotMeta {
                index: own,
                term: term_of(recovered, own),
                time_us,
                members,
            })
        }
    }
}

/// 0 where the log does not tell.
fn term_of(recovered: &Recovered, index: Index) -> u64 {
    if index > recovered.last_index {
        return 0;
    }
    let runs = &recovered.term_runs;
    match runs.partition_point(|run| run.1 <= index) {
        0 => recovered.prev_term,
        behind => runs[behind - 1].0,
    }
}

fn time_of<D: Dir>(log: &Log<D>, index: Index) -> Option<u64> {
    let slice = log.reader().slice(index, index, u64::MAX)?;
    slice.records().next().map(|record| record.header.time_us)
}
