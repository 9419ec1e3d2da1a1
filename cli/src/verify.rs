//! `log verify`: whether a directory is sound, and what is not.

use serde_json::json;
use storage::inspect::{Inspection, Outcome, inspect};

use crate::out::{self, Out};
use crate::{Failed, Verdict, Where, target};

pub(crate) fn run(at: &Where, out: &mut Out) -> Result<Verdict, Failed> {
    let mut all_of_them = Verdict::Sound;
    let mut all = Vec::new();
    for dir in target::groups(&at.dir)? {
        let seen = inspect(&dir)?;
        all_of_them = all_of_them.and(verdict(&seen));
        if at.json {
            let damage = seen.damage();
            all.push(json!({
                "path": seen.path,
                "sound": damage.is_empty(),
                "damage": damage,
                "notes": seen.notes(),
            }));
        } else {
            out.line(seen.path.display())?;
            conclusion(&seen, out)?;
        }
    }
    if at.json {
        out.json(&json!({ "directories": all }))?;
    }
    Ok(all_of_them)
}

pub(crate) fn verdict(seen: &Inspection) -> Verdict {
    match seen.damage().is_empty() {
        true => Verdict::Sound,
        false => Verdict::Damaged,
    }
}

/// The last lines about a directory: what is wrong, and what happens at the next start.
pub(crate) fn conclusion(seen: &Inspection, out: &mut Out) -> Result<(), Failed> {
    for line in seen.notes() {
        out.line(format_args!("  note: {line}"))?;
    }
    let damage = seen.damage();
    if damage.is_empty() {
        return match &seen.alone {
            Outcome::Opens { first, last, .. } => {
                out.line(format_args!("  SOUND: records {}", out::run(*first, *last)))
            }
            _ => out.line("  SOUND: no log in it yet"),
        };
    }
    for line in &damage {
        out.line(format_args!("  DAMAGED: {line}"))?;
    }
    out.line(format_args!(
        "  a node without peers {}",
        outcome(&seen.alone)
    ))?;
    out.line(format_args!(
        "  a node with peers    {}",
        outcome(&seen.with_peers)
    ))
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Opens {
            first, last, lost, ..
        } => {
            let records = out::run(*first, *last);
            match lost {
                None => format!("starts with records {records}"),
                Some(u64::MAX) => format!(
                    "starts with records {records}, and does not vote before the others have given it what it promised; \
                     how much that is is not known"
                ),
                Some(upto) => {
                    format!(
                        "starts with records {records}, and does not vote before it has them up to {upto} again"
                    )
                }
            }
        }
        Outcome::Refused(_) => "does not start".to_owned(),
        Outcome::Empty => "starts a new log".to_owned(),
    }
}
