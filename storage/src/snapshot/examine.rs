//! Looking at the folder of snapshots from outside, of any cluster, without changing anything: for tools.

use crate::decision::SnapshotFound;
use crate::error::{Doing, StorageError};
use crate::medium::{Dir, File};
use crate::snapshot::blocks::{Manner, Scan};
use crate::snapshot::check::{Checker, Owner};
use crate::snapshot::format::CHUNK_SIZES;
use crate::snapshot::id::{BAD, FOLDER, PARTIAL, SnapshotId, SnapshotMeta, UNFINISHED, WHOLE};
use crate::snapshot::read::read_piece;

/// A file in the folder of snapshots.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Examined {
    /// Its name, relative to the directory of the log.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// What it is; `None` for a file that this library does not know.
    pub found: Option<SnapshotFound>,
    /// What its name says.
    pub id: Option<SnapshotId>,
    /// What its header says, when that is sound.
    pub meta: Option<SnapshotMeta>,
    /// Up to where it is sound.
    pub sound_bytes: u64,
    /// What is wrong behind that.
    pub damage: Option<StorageError>,
}

/// Whatever the length of their chunks is.
const MANNER: Manner = Manner {
    chunk_bytes: *CHUNK_SIZES.end(),
    sync: false,
    aside: false,
};

/// Reads all files in the folder, in the order of their names. With `owner` (cluster and group), those of another one
/// count as damaged.
///
/// # Errors
/// The folder cannot be listed, or a file not be opened.
pub fn examine<D: Dir>(dir: &D, owner: Option<(u64, u32)>) -> Result<Vec<Examined>, StorageError> {
    let mut names = dir.list(FOLDER).doing("list", &dir.path(FOLDER))?;
    names.sort_unstable();
    let owner = owner.map(|(cluster_id, group_id)| Owner {
        cluster_id,
        group_id,
    });
    names
        .into_iter()
        .map(|name| examine_file(dir, &name, owner))
        .collect()
}

fn examine_file<D: Dir>(
    dir: &D,
    name: &str,
    owner: Option<Owner>,
) -> Result<Examined, StorageError> {
    let full = format!("{FOLDER}/{name}");
    let path = dir.path(&full);
    let file = dir.open(&full).doing("open", &path)?;
    let bytes = file.length().doing("read the length of", &path)?;
    let named = [
        (WHOLE, SnapshotFound::Whole),
        (PARTIAL, SnapshotFound::Partial),
        (BAD, SnapshotFound::SetAside),
    ];
    let named = named
        .into_iter()
        .find_map(|(ending, found)| Some((SnapshotId::of_file(name, ending)?, found)));
    let mut examined = Examined {
        file: full,
        bytes,
        found: name
            .ends_with(UNFINISHED)
            .then_some(SnapshotFound::Unfinished),
        id: None,
        meta: None,
        sound_bytes: 0,
        damage: None,
    };
    let Some((id, found)) = named else {
        return Ok(examined);
    };
    let mut checker = Checker::new(id, owner, &path);
    let (mut scan, mut buffer) = (Scan::new(file, MANNER), Vec::new());
    let damage = loop {
        match read_piece(&mut scan, &mut checker, &mut buffer) {
            Ok(Some(_)) => {}
            Ok(None) if bytes > id.bytes => {
                let detail = format!("the file has {bytes} bytes, its name says {}", id.bytes);
                break Some(StorageError::snapshot(&path, id.bytes..bytes, detail));
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    examined.id = Some(id);
    examined.meta = checker.meta().cloned();
    examined.sound_bytes = checker.at();
    examined.found = Some(match (&found, &damage) {
        (SnapshotFound::Whole, Some(error)) => SnapshotFound::Bad {
            detail: error.to_string(),
        },
        _ => found,
    });
    examined.damage = damage;
    Ok(examined)
}
