//! Looking at a directory without changing anything: of a node that runs, that crashed, or a copy of one.
//!
//! Nothing is locked, no file is opened for writing, none is made. What is shown as the decision of the next start comes
//! from the code that makes it (`recovery/plan.rs`). While a node runs in the directory, what is shown is of several moments: its
//! last records may look torn.
//!
//! Any bytes are borne: what cannot be read is part of the answer. An error is only what the system refuses.

mod dump;
mod readonly;
mod segment;
mod small;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use dump::{Dumped, dump};
pub use readonly::ReadOnly;
pub use segment::{Bad, MarkerSeen, SegmentReport, SegmentState};
pub use small::{MetaReport, SlotSeen, Small};

use crate::damage::DataLoss;
use crate::decision::{Action, Decision, Found, SnapshotFound};
use crate::error::{Doing, StorageError};
use crate::files::exclusion::Exclusion;
use crate::files::identity::Identity;
use crate::files::meta::Vote;
use crate::medium::Dir;
use crate::options::Options;
use crate::recovery::plan::{self, Intent, Rules};
use crate::recovery::reset;
use crate::snapshot::id::{self, SnapshotId, SnapshotMeta};
use crate::snapshot::scan::{self, FolderScan};

/// What a directory holds, and what a start would make of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// The directory.
    pub path: PathBuf,
    /// The process that opened it last, as its lock file says. It may be gone.
    pub last_opened_by: Option<u32>,
    /// The file `identity`.
    pub identity: Small<Identity>,
    /// The file `meta`: term, vote, and what was under way.
    pub meta: MetaReport,
    /// The file `peers`: node and incarnation.
    pub peers: Small<Vec<(u64, u64)>>,
    /// The file `heal`.
    pub heal: Small<DataLoss>,
    /// The file `excluded`.
    pub excluded: Option<Exclusion>,
    /// The files in `log/`, by name.
    pub segments: Vec<SegmentReport>,
    /// The files in `snap/`: what was found, and what the next start does.
    pub snapshots: Vec<Decision>,
    /// What a start makes of it, when the node has no peers to heal from.
    pub alone: Outcome,
    /// The same, with peers.
    pub with_peers: Outcome,
}

/// What a start makes of a directory.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It opens, with these records.
    Opens {
        /// Index of the first record; `last + 1` without one.
        first: u64,
        /// Index of the last one.
        last: u64,
        /// What was promised up to here is cut off first; `u64::MAX` when that is not known.
        lost: Option<u64>,
        /// What is done file by file.
        decisions: Vec<Decision>,
    },
    /// It does not open.
    Refused(StorageError),
    /// There is no log in it, and one is made.
    Empty,
}

impl Inspection {
    /// Everything that is damaged or lost, a line each; empty for a sound directory. A torn tail is no damage: nobody was
    /// told of what is cut off there. Neither is what an earlier start has put aside: see [`Inspection::notes`].
    pub fn damage(&self) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(self.identity.trouble("identity"));
        lines.extend(self.meta.trouble());
        lines.extend(self.peers.trouble("peers"));
        lines.extend(self.heal.trouble("heal"));
        if let Some(heal) = self.heal.value() {
            lines.push(match heal.upto {
                0 => "heal: the vote was lost and is not settled yet".to_owned(),
                u64::MAX => {
                    "heal: the log lacks what it promised; how much is not known".to_owned()
                }
                upto => format!("heal: the log may lack records up to {upto} that it promised"),
            });
        }
        if let Some(Exclusion { by, .. }) = self.excluded {
            lines.push(format!(
                "excluded: node {by} refused this directory, since it knows this node with another one"
            ));
        }
        let bad = |decision: &&Decision| {
            matches!(decision.found, Found::Snapshot(SnapshotFound::Bad { .. }))
        };
        lines.extend(self.snapshots.iter().filter(bad).map(without_action));
        let mut said = String::new();
        let decisions = match (&self.alone, &self.with_peers) {
            (Outcome::Refused(error), with_peers) => {
                said = place(error);
                let known =
                    |line: &String| line.contains("damaged") && said.contains("both copies");
                if !lines.iter().any(known) {
                    lines.push(said.clone());
                }
                match with_peers {
                    Outcome::Opens { decisions, .. } => decisions.as_slice(),
                    _ => &[],
                }
            }
            (Outcome::Opens { decisions, .. }, _) => decisions.as_slice(),
            (Outcome::Empty, _) => &[],
        };
        let of_files = decisions.iter().filter(|decision| {
            let damage = matches!(decision.action, Action::Heal | Action::Rewrite)
                || matches!(
                    decision.found,
                    Found::SegmentDamaged { .. } | Found::GivenUp
                );
            damage && !said.contains(&decision.file)
        });
        lines.extend(of_files.map(without_action));
        lines
    }

    /// What is no damage and worth knowing, a line each: snapshots that were found damaged earlier, and stand for nothing
    /// any more.
    pub fn notes(&self) -> Vec<String> {
        let aside = |decision: &&Decision| {
            matches!(decision.found, Found::Snapshot(SnapshotFound::SetAside))
        };
        let aside = self.snapshots.iter().filter(aside);
        aside.map(|decision| set_aside(&decision.file)).collect()
    }

    /// Term and vote as the next start reads them.
    pub fn vote(&self) -> Option<Vote> {
        self.meta.in_force().map(|slot| slot.vote)
    }
}

/// What a file with the end `.bad` is.
pub fn set_aside(file: &str) -> String {
    format!(
        "{file} is a snapshot that was found damaged and put aside; nothing reads it any more, and it may be removed when \
         it was looked at"
    )
}

/// The files of such snapshots in the directory of one group.
///
/// # Errors
/// The directory cannot be read.
pub fn snapshots_set_aside(path: &Path) -> Result<Vec<String>, StorageError> {
    let dir = ReadOnly::new(path);
    let mut names = dir.list("snap").doing("list", &dir.path("snap"))?;
    names.retain(|name| SnapshotId::of_file(name, id::BAD).is_some());
    names.sort_unstable();
    Ok(names.iter().map(|name| format!("snap/{name}")).collect())
}

/// The last part of a decision says what is done, and nothing is done here.
fn without_action(decision: &Decision) -> String {
    let line = decision.to_string();
    match line.rfind(": ") {
        Some(end) => line[..end].to_owned(),
        None => line,
    }
}

/// What is wrong and where, without what `Log::open` advises.
fn place(error: &StorageError) -> String {
    let StorageError::Corrupt {
        path,
        offset,
        index,
        detail,
    } = error
    else {
        return error.to_string();
    };
    let index = index.map_or(String::new(), |index| format!(", index {index}"));
    let path = path.display();
    format!("{path} is damaged at offset {offset}{index}: {detail}")
}

/// Looks at the directory of one group.
///
/// # Errors
/// Only what the system refuses: the directory is not there, or may not be read.
pub fn inspect(path: &Path) -> Result<Inspection, StorageError> {
    inspect_in(&ReadOnly::new(path))
}

/// The same, in any kind of directory.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_in<D: Dir>(dir: &ReadOnly<D>) -> Result<Inspection, StorageError> {
    let root = dir.path("");
    let names = dir.list("").doing("list", &root)?;
    let has = |name: &str| names.iter().any(|found| found == name);
    let identity = small::identity(dir, has("identity"))?;
    let meta = small::meta(dir, has("meta"))?;
    let peers = small::peers(dir, has("peers"))?;
    // Without the identity the other files tell of which life of the directory they are.
    let incarnation = identity.value().map(|identity| identity.incarnation);
    let incarnation = incarnation.or(meta.in_force().map(|slot| slot.incarnation));
    let heal = small::heal(dir, has("heal"), incarnation)?;
    let excluded = Exclusion::read(dir, &names)?;
    let segments = segment::all(dir, incarnation)?;
    let healing = !matches!(heal, Small::Missing);
    let survey = match identity.value() {
        Some(identity) => Some(survey(dir, identity)?),
        None => None,
    };
    let snapshots = match &survey {
        Some(survey) => survey.decisions().to_vec(),
        None => Vec::new(),
    };
    let outcome = |heal| {
        let (Some(identity), Some(survey)) = (identity.value(), &survey) else {
            return Ok(without_identity(dir, &identity, &meta, &segments));
        };
        outcome(dir, identity, &meta, survey, heal, healing)
    };
    Ok(Inspection {
        alone: outcome(false)?,
        with_peers: outcome(true)?,
        path: root,
        last_opened_by: readonly::last_pid(dir),
        identity,
        meta,
        peers,
        heal,
        excluded,
        segments,
        snapshots,
    })
}

/// A snapshot, all of which was read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SnapshotReport {
    /// The file, relative to the directory.
    pub file: String,
    /// Which it is.
    pub id: SnapshotId,
    /// What it says of itself, or where it is bad.
    pub read: Result<SnapshotMeta, StorageError>,
}

/// Reads every snapshot of the directory of one group, oldest first, to its end.
///
/// # Errors
/// The directory cannot be read, or does not say whose it is.
pub fn snapshots(path: &Path) -> Result<Vec<SnapshotReport>, StorageError> {
    let dir = ReadOnly::new(path);
    let names = dir.list("").doing("list", &dir.path(""))?;
    if !names.iter().any(|name| name == "identity") {
        return Ok(Vec::new());
    }
    let (identity, _) = Identity::read(&dir)?;
    let all = scan::verify_all(&dir, &identity, &unflushed(), &Arc::new(()))?;
    let report = |(id, read): (SnapshotId, _)| SnapshotReport {
        file: id.file("snap"),
        id,
        read,
    };
    Ok(all.into_iter().map(report).collect())
}

fn unflushed() -> Options {
    Options {
        sync: false,
        ..Options::default()
    }
}

fn survey<D: Dir>(
    dir: &ReadOnly<D>,
    identity: &Identity,
) -> Result<FolderScan<ReadOnly<D>>, StorageError> {
    // Nothing is flushed, and nobody is kept out.
    scan::scan_folder(dir, identity, &unflushed(), &Arc::new(()))
}

fn without_identity<D: Dir>(
    dir: &ReadOnly<D>,
    identity: &Small<Identity>,
    meta: &MetaReport,
    segments: &[SegmentReport],
) -> Outcome {
    let detail = match identity {
        Small::Damaged(detail) => format!("{detail}; nothing else says which node this is"),
        _ if segments.is_empty() && meta.in_force().is_none() => return Outcome::Empty,
        _ => "the file is missing".to_owned(),
    };
    let path = dir.path("identity");
    Outcome::Refused(StorageError::corrupt(&path, 0, detail))
}

/// What `recovery/open.rs` does, without doing it.
fn outcome<D: Dir>(
    dir: &ReadOnly<D>,
    identity: &Identity,
    meta: &MetaReport,
    survey: &FolderScan<ReadOnly<D>>,
    heal: bool,
    healing: bool,
) -> Result<Outcome, StorageError> {
    match decide(dir, identity, meta, survey, heal, healing) {
        // A file that went away while it was looked at, by a node that runs.
        Err(error @ StorageError::Io { .. }) => Err(error),
        Err(error) => Ok(Outcome::Refused(error)),
        Ok(outcome) => Ok(outcome),
    }
}

fn decide<D: Dir>(
    dir: &ReadOnly<D>,
    identity: &Identity,
    meta: &MetaReport,
    survey: &FolderScan<ReadOnly<D>>,
    heal: bool,
    healing: bool,
) -> Result<Outcome, StorageError> {
    let covered = survey.covered();
    let empty = |(index, _): (u64, u64), lost| Outcome::Opens {
        first: index + 1,
        last: index,
        lost,
        decisions: Vec::new(),
    };
    let slot = meta.in_force();
    let alone = meta.slots.contains(&None);
    if slot.is_none() && !heal {
        let detail = "both copies of term and vote are damaged";
        return Err(StorageError::corrupt(&dir.path("meta"), 0, detail));
    }
    let begun = match slot.and_then(|slot| slot.reset_to) {
        Some(begun) if heal && alone && reset::goes_on_behind(dir, begun)? => None,
        begun => begun,
    };
    if let Some(begun) = begun {
        return match reset::target(dir, begun, alone, survey) {
            Err(StorageError::Corrupt { .. }) if heal => {
                Ok(empty(covered.unwrap_or_default(), Some(u64::MAX)))
            }
            target => Ok(empty(target?, None)),
        };
    }
    if !heal {
        reset::check_front(dir, survey)?;
    }
    let intent = slot
        .and_then(|slot| slot.truncate_after)
        .map(|after| Intent { after, alone });
    let rules = Rules {
        heal,
        healing,
        snapshot: covered,
    };
    let plan = plan::look(dir, identity, intent, rules)?;
    let lost = plan.lost.as_ref().map(|lost| lost.upto);
    if !plan.keep.is_empty() {
        let (last, runs) = (plan.at.next - 1, &plan.term_runs);
        if let Some(snapshot) =
            reset::judge_log(dir, plan.base, last, plan.prev_term, runs, survey)?
        {
            return Ok(empty(snapshot, lost));
        }
    }
    Ok(Outcome::Opens {
        first: plan.base,
        last: plan.at.next - 1,
        lost,
        decisions: plan.decisions,
    })
}
