//! Orders of a node's positions, and limits of what it keeps.

use std::sync::atomic::Ordering;

use crate::sim::invariants::{Verdict, broken};
use crate::sim::node::Life;
use crate::sim::node::act::Act;

/// After a poll of `act`: the positions that it may have moved.
pub(crate) fn positions(node: u64, life: &mut Life, act: Act) -> Verdict {
    let marks = &life.shared.marks;
    let log = life.stages.append.log();
    let committed = marks.committed.load(Ordering::Relaxed);
    let applied = marks.applied.load(Ordering::Relaxed);
    let says = |what: String| broken("positions in order", format!("node {node}: {what}"));
    if committed < life.committed {
        says(format!(
            "committed goes from {} back to {committed}",
            life.committed
        ))?;
    }
    if applied < life.applied {
        says(format!(
            "applied goes from {} back to {applied}",
            life.applied
        ))?;
    }
    if applied > committed {
        says(format!("applied {applied} is over committed {committed}"))?;
    }
    // A snapshot is on its way into the log, or into the state machine.
    let restore = marks.restore.load(Ordering::Relaxed);
    if act == Act::Apply && applied > log.last() && applied > restore {
        says(format!("applied {applied} is over written {}", log.last()))?;
    }
    if log.durable() > log.last() {
        says(format!(
            "durable {} is over written {}",
            log.durable(),
            log.last()
        ))?;
    }
    if log.first() > applied + 1 && log.first() > restore + 1 {
        says(format!(
            "the log begins at {}, applied is {applied}",
            log.first()
        ))?;
    }
    let compact = marks.compact.load(Ordering::Relaxed);
    if compact != life.compact {
        life.compact = compact;
        let_go(compact, life).or_else(says)?;
    }
    (life.committed, life.applied) = (committed, applied);
    Ok(())
}

/// The log lets go of what the older of two snapshots stands for: both can be begun with. Where something went bad in it,
/// the newest one has to do.
fn let_go(compact: u64, life: &Life) -> Result<(), String> {
    let snapshots = life.stages.append.log().snapshots().list();
    let had_rot = life.shared.snapshots().rot.is_some();
    let stands_for = match &*snapshots {
        [.., newest] if had_rot => newest.index,
        [.., older, _] => older.index,
        _ => 0,
    };
    if compact <= stands_for {
        return Ok(());
    }
    Err(format!(
        "the log lets go of everything up to {compact}, and the snapshots allow {stands_for}: {snapshots:?}"
    ))
}

/// What waits somewhere in the node is within its limits.
pub(crate) fn memory(node: u64, life: &Life, limits: &crate::Config) -> Verdict {
    let says = |what: &str, found: usize, most: usize| {
        broken(
            "bounded memory",
            format!("node {node}: {found} {what}, {most} are the limit"),
        )
    };
    let pending = life.shared.table.taken();
    if pending > limits.max_pending {
        says("requests pending", pending, limits.max_pending)?;
    }
    let spilled = life.shared.spill.waiting();
    if spilled > limits.max_spilled_bytes {
        says("bytes of long commands", spilled, limits.max_spilled_bytes)?;
    }
    let waiting = life.stages.consensus.waiting();
    if waiting.reads > limits.max_pending {
        says("reads waiting", waiting.reads, limits.max_pending)?;
    }
    let at_index = life.stages.apply.waiting_reads();
    if at_index > limits.max_pending {
        says("reads waiting for an index", at_index, limits.max_pending)?;
    }
    // The clock asks for a write an election timeout at the most; a disk that stands still stops that too.
    if waiting.held_writes > 16 {
        says("writes held for a full ring", waiting.held_writes, 16)?;
    }
    // One batch may go over: the limit is looked at before it is taken.
    let most = limits.max_uncommitted_bytes
        + limits.max_batch_bytes.max(limits.max_entry_bytes + 64)
        + forwarded_batch(limits);
    if waiting.uncommitted_bytes > most as u64 {
        says(
            "bytes uncommitted",
            waiting.uncommitted_bytes as usize,
            most,
        )?;
    }
    Ok(())
}

/// Forwarded proposals arrive as a batch of their own node's making; each entry grows by a header.
fn forwarded_batch(limits: &crate::Config) -> usize {
    8 * limits.max_batch_bytes.max(limits.max_entry_bytes)
}
