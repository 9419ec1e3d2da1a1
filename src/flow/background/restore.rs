//! A snapshot becomes the state of a machine.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use storage::{Dir, SnapshotId, SnapshotMeta, SnapshotReader, Snapshots};

use crate::flow::guard::text;
use crate::state_machine::StateMachine;
use crate::types::Index;

/// Opens the snapshot of everything up to `index`.
pub(crate) fn open<D: Dir>(
    snapshots: &Snapshots<D>,
    index: Index,
) -> Result<(SnapshotId, SnapshotReader<D>), String> {
    let id = snapshots
        .list()
        .iter()
        .copied()
        .find(|id| id.index == index);
    let id = id.ok_or_else(|| format!("the snapshot of everything up to {index} is not there"))?;
    let reader = snapshots.open(id).map_err(|error| error.to_string())?;
    Ok((id, reader))
}

/// Replaces the machine's state by a snapshot, which it reads through what `wrap` makes of it.
pub(crate) fn restore<D: Dir, R: Read>(
    (id, reader): (SnapshotId, SnapshotReader<D>),
    machine: &mut dyn StateMachine,
    wrap: impl FnOnce(SnapshotReader<D>) -> R,
) -> Result<SnapshotMeta, String> {
    let meta = reader.meta().clone();
    let mut reader = wrap(reader);
    match catch_unwind(AssertUnwindSafe(|| machine.restore(&mut reader))) {
        Ok(Ok(())) => Ok(meta),
        Ok(Err(error)) => Err(format!(
            "restore of snapshot {id} returned an error: {error}"
        )),
        Err(panic) => Err(format!(
            "restore of snapshot {id} panicked: {}",
            text(&*panic)
        )),
    }
}
