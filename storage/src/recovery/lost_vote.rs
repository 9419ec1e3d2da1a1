//! Term and vote after both copies of the meta file were lost.

use crate::damage::{Damage, LostRecords};
use crate::decision::{Decision, Found};
use crate::error::{Doing, StorageError};
use crate::files::heal::HealFile;
use crate::files::identity::Identity;
use crate::files::meta::{META_LEN, META_NAME, Meta, MetaState, Vote};
use crate::medium::{Dir, File};
use crate::options::Options;
use crate::recovery::plan::{self, Rules};

const META_TEMPORARY: &str = "meta.tmp";

/// Whether this error about the file `meta` says that term and vote are lost.
pub(crate) fn is_loss(error: &StorageError) -> bool {
    match error {
        StorageError::Corrupt { .. } => true,
        StorageError::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The log was being replaced by a snapshot that is damaged: nothing is left of either.
pub(crate) fn reset_without_snapshot(found: &StorageError) -> LostRecords {
    let damage = Damage {
        file: "log".into(),
        offset: 0,
        index: None,
        detail: found.to_string(),
    };
    let upto = u64::MAX;
    LostRecords { upto, damage }
}

/// Makes the file `meta` anew, after both copies of term and vote were lost: the highest term that a record shows, and a
/// vote for the node itself there, so that it votes for nobody in it. That it may have voted in later ones too goes into
/// `healing`, first.
pub(crate) fn remake_meta<D: Dir>(
    dir: &D,
    identity: &Identity,
    snapshot: Option<(u64, u64)>,
    options: &Options,
    healing: &mut HealFile<D>,
    found: &StorageError,
) -> Result<Decision, StorageError> {
    let rules = Rules {
        heal: true,
        healing: healing.is_some(),
        snapshot,
    };
    let term = plan::look(dir, identity, None, rules)?.term;
    let term = term.max(snapshot.map_or(0, |(_, term)| term));
    let detail = match found {
        StorageError::Corrupt { detail, .. } => detail.clone(),
        _ => "the file is missing".into(),
    };
    let damage = Damage {
        file: META_NAME.into(),
        offset: 0,
        index: None,
        detail,
    };
    healing.vote_lost(term, damage)?;

    let path = dir.path(META_TEMPORARY);
    let file = dir
        .create(META_TEMPORARY, META_LEN)
        .doing("create", &path)?;
    let mut meta = Meta::create(file, identity.incarnation)?;
    let vote = Vote {
        term,
        voted_for: Some(identity.node_id),
    };
    meta.set(MetaState {
        vote,
        truncate_after: None,
        reset_to: None,
    });
    // Into both copies.
    for _ in 0..2 {
        meta.write()?;
        if options.sync {
            meta.file.sync().doing("flush", &path)?;
        }
        meta.flushed();
    }
    dir.rename(META_TEMPORARY, META_NAME)
        .doing("rename", &path)?;
    if options.sync {
        dir.sync_dir("").doing("flush the directory of", &path)?;
    }
    Ok(Decision::healing(META_NAME, Found::MetaDamaged))
}
