//! What the state machine begins with: its own disk, a snapshot, or nothing; and the log goes on from there.

use std::panic::{AssertUnwindSafe, catch_unwind};

use storage::{Dir, Log, Recovered, SnapshotMeta};

use crate::flow::guard::text;
use crate::flow::saver;
use crate::wire;
use crate::{Config, Index, StateMachine};

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
            saver::restore(saver::open(&log.snapshots(), id.index)?, machine, |from| {
                from
            })
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
        _ if own > last && recovered.heal.is_none() => Err(format!(
            "it has applied everything up to {own}, but the log ends with {last}: one of the two directories is not \
             this node's, or an older copy"
        )),
        _ => Ok(SnapshotMeta {
            index: own,
            term: term_of(recovered, own),
            time_us: time_of(log, own).unwrap_or(recovered.last_time_us),
            members: wire::members(&config.members),
        }),
    }
}

fn term_of(recovered: &Recovered, index: Index) -> u64 {
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
