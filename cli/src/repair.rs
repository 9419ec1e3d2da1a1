//! `repair`: changes that lose something. Each takes the node's lock, says what it drops, and does nothing without `--yes`.

use std::path::Path;

use serde_json::json;
use storage::decision::{Action, Found};
use storage::inspect::{Inspection, Outcome, Small, inspect};
use storage::medium::{Dir, LockError};
use storage::{Decision, Disk, Log, Options};

use crate::out::{self, Out};
use crate::{Failed, RepairArgs, Verdict, target};

pub(crate) fn run(args: &RepairArgs, out: &mut Out) -> Result<Verdict, Failed> {
    let dirs = target::groups(&args.at.dir)?;
    let [dir] = dirs.as_slice() else {
        let names: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        return Err(Failed::Said(format!(
            "one group at a time; name one of {}",
            names.join(", ")
        )));
    };
    let seen = inspect(dir)?;
    let plan = match args.how {
        how if how.unsafe_accept_shorter_log => accept_shorter_log(&seen)?,
        how if how.unsafe_forget_heal => forget_heal(&seen)?,
        _ => forget_peers(&seen)?,
    };
    // Also when it is only said what would be done: of a node that runs it would not be true.
    let lock = lock(dir)?;
    if args.yes {
        let done = match &plan {
            RecoveryPlan::Cut { .. } => {
                drop(lock);
                cut(dir, &seen)
            }
            RecoveryPlan::Remove { file, .. } => remove(dir, file),
            RecoveryPlan::Nothing { .. } => Ok(()),
        };
        done?;
    }
    say(dir, &plan, args, out)?;
    match (&plan, args.yes) {
        (RecoveryPlan::Nothing { .. }, _) | (_, true) => Ok(Verdict::Sound),
        _ => Err(Failed::Said(
            "nothing was changed; to do it, say --yes".to_owned(),
        )),
    }
}

/// What is done, and what is lost by it.
enum RecoveryPlan {
    Nothing { why: String },
    Remove { file: &'static str, lost: String },
    Cut { lost: String, files: Vec<String> },
}

fn accept_shorter_log(seen: &Inspection) -> Result<RecoveryPlan, Failed> {
    let (first, last, lost, decisions) = match (&seen.alone, &seen.with_peers) {
        (Outcome::Opens { .. } | Outcome::Empty, _) => {
            let why = "it starts as it is: nothing needs to be cut off".to_owned();
            return Ok(RecoveryPlan::Nothing { why });
        }
        (
            Outcome::Refused(_),
            Outcome::Opens {
                first,
                last,
                lost,
                decisions,
            },
        ) => (first, last, lost, decisions),
        (Outcome::Refused(_), Outcome::Refused(error)) => {
            return Err(Failed::Said(format!("this cannot be repaired: {error}")));
        }
        (Outcome::Refused(_), Outcome::Empty) => {
            return Err(Failed::Said("there is no log to be repaired".to_owned()));
        }
    };
    let mut dropped = format!(
        "the log is records {} from then on",
        out::run(*first, *last)
    );
    dropped += &match lost {
        Some(u64::MAX) => {
            ", and what was behind it is LOST; how much that was is not known".to_owned()
        }
        Some(upto) => format!(", and records {} are LOST", out::run(last + 1, *upto)),
        None => String::new(),
    };
    if seen.vote().is_none() {
        dropped += "; term and vote are LOST: the node may vote twice in a term";
    }
    let changed =
        |decision: &&Decision| decision.action != Action::Keep && decision.found != Found::Spare;
    let words = |decision: &Decision| match decision.action {
        Action::Heal => decision
            .to_string()
            .replace("to be fetched again from the peers", "cut there"),
        _ => decision.to_string(),
    };
    let files = decisions.iter().filter(changed).map(words).collect();
    Ok(RecoveryPlan::Cut {
        lost: dropped,
        files,
    })
}

fn forget_heal(seen: &Inspection) -> Result<RecoveryPlan, Failed> {
    if let Outcome::Refused(error) = &seen.alone {
        return Err(Failed::Said(format!("the log itself is damaged: {error}")));
    }
    let lost = match &seen.heal {
        Small::Missing => {
            let why = "the directory vouches for its log already".to_owned();
            return Ok(RecoveryPlan::Nothing { why });
        }
        small => match small.value() {
            Some(heal) => {
                let mut words = match heal.upto {
                    0 => "no record is missing".to_owned(),
                    u64::MAX => {
                        "the log may LACK what it acknowledged; how much is not known".to_owned()
                    }
                    upto => format!("the log may LACK records up to {upto} that it acknowledged"),
                };
                if heal.vote_lost {
                    words += "; the vote is LOST: the node may vote twice in a term";
                }
                words
            }
            None => "what the log LACKS is not known, and the vote may be LOST".to_owned(),
        },
    };
    let lost = format!("the node votes again, although {lost}");
    Ok(RecoveryPlan::Remove { file: "heal", lost })
}

fn forget_peers(seen: &Inspection) -> Result<RecoveryPlan, Failed> {
    let lost = match &seen.peers {
        Small::Missing => {
            let why = "no peer is known".to_owned();
            return Ok(RecoveryPlan::Nothing { why });
        }
        small => match small.value() {
            Some(peers) => {
                let peers: Vec<_> = peers
                    .iter()
                    .map(|(node, of)| format!("{node} ({of:#x})"))
                    .collect();
                format!(
                    "the directories of these nodes are FORGOTTEN: {}",
                    peers.join(", ")
                )
            }
            None => "which directories the peers had is LOST already".to_owned(),
        },
    };
    Ok(RecoveryPlan::Remove {
        file: "peers",
        lost,
    })
}

fn lock(dir: &Path) -> Result<<Disk as Dir>::Lock, Failed> {
    Disk::new(dir).lock("LOCK").map_err(|error| match error {
        LockError::Held(pid) => {
            let pid = pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
            Failed::Said(format!(
                "the node runs{pid} in {}: stop it first",
                dir.display()
            ))
        }
        LockError::Io(error) => Failed::Said(format!("cannot lock {}: {error}", dir.display())),
    })
}

/// Opens the log as a node with peers would, and vouches for what is left.
fn cut(dir: &Path, seen: &Inspection) -> Result<(), Failed> {
    let Some(id) = seen.identity.value() else {
        return Err(Failed::Said(
            "whose directory this is cannot be read".to_owned(),
        ));
    };
    let mut options = Options::default();
    options.heal = true;
    // The spare segment that an open log makes shall be as long as the others.
    let longest = seen.segments.iter().map(|segment| segment.file_bytes).max();
    let whole = longest.filter(|bytes| bytes.is_multiple_of(4096) && *bytes >= 16 << 10);
    if let Some(bytes) = whole {
        options.segment_bytes = bytes;
        options.max_record_bytes = options.max_record_bytes.min(bytes as usize / 2);
    }
    let (mut log, _) = Log::open(
        Disk::new(dir),
        options,
        id.cluster_id,
        id.group_id,
        id.node_id,
    )?;
    log.healed()?;
    log.close()?;
    Ok(())
}

fn remove(dir: &Path, file: &str) -> Result<(), Failed> {
    let disk = Disk::new(dir);
    let failed = |error| {
        Failed::Said(format!(
            "cannot remove {}: {error}",
            disk.path(file).display()
        ))
    };
    disk.remove(file).map_err(failed)?;
    disk.sync_dir("").map_err(failed)
}

fn say(dir: &Path, plan: &RecoveryPlan, args: &RepairArgs, out: &mut Out) -> Result<(), Failed> {
    let (lost, files) = match plan {
        RecoveryPlan::Nothing { why } => (why.clone(), Vec::new()),
        RecoveryPlan::Remove { file, lost } => (lost.clone(), vec![format!("{file}: removed")]),
        RecoveryPlan::Cut { lost, files } => (lost.clone(), files.clone()),
    };
    let done = args.yes && !matches!(plan, RecoveryPlan::Nothing { .. });
    if args.at.json {
        return out.json(&json!({ "path": dir, "done": done, "lost": lost, "files": files }));
    }
    out.line(dir.display())?;
    for file in files {
        out.line(format_args!(
            "  {}{file}",
            if done { "" } else { "would be: " }
        ))?;
    }
    out.line(format_args!("  {lost}"))
}
