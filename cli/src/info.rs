//! `log info`: whose directory it is, every file of its log on a line, and what the next start does.

use serde_json::{Value, json};
use storage::inspect::{Inspection, Outcome, SegmentReport, SegmentState, Small, inspect};
use storage::{DataLoss, Decision};

use crate::out::{self, Out};
use crate::{Failed, Verdict, Where, target, verify};

pub(crate) fn run(at: &Where, out: &mut Out) -> Result<Verdict, Failed> {
    let mut verdict = Verdict::Sound;
    let mut all = Vec::new();
    for dir in target::groups(&at.dir)? {
        let seen = inspect(&dir)?;
        verdict = verdict.and(verify::verdict(&seen));
        if at.json {
            all.push(as_json(&seen));
        } else {
            text(&seen, out)?;
        }
    }
    if at.json {
        out.json(&json!({ "directories": all }))?;
    }
    Ok(verdict)
}

fn text(seen: &Inspection, out: &mut Out) -> Result<(), Failed> {
    out.line(seen.path.display())?;
    match seen.identity.value() {
        Some(id) => out.line(format_args!(
            "  cluster {:#x}, group {}, node {}, incarnation {:#x}",
            id.cluster_id, id.group_id, id.node_id, id.incarnation
        ))?,
        None => out.line("  identity: not readable")?,
    }
    match seen.vote() {
        Some(vote) => {
            let voted = vote
                .voted_for
                .map_or("no vote".to_owned(), |node| format!("vote for node {node}"));
            out.line(format_args!("  term {}, {voted}", vote.term))?;
        }
        None => out.line("  term and vote: not readable")?,
    }
    if let Some(peers) = seen.peers.value() {
        let peers: Vec<_> = peers
            .iter()
            .map(|(node, of)| format!("{node} ({of:#x})"))
            .collect();
        out.line(format_args!("  met peers: {}", peers.join(", ")))?;
    }
    if let Some(pid) = seen.last_opened_by {
        out.line(format_args!(
            "  last opened by process {pid}; if that still runs, this picture is of several moments"
        ))?;
    }
    for segment in &seen.segments {
        out.line(format_args!(
            "  {}",
            line(segment, decision(seen, &segment.file))
        ))?;
    }
    verify::conclusion(seen, out)
}

/// A segment on a line.
fn line(segment: &SegmentReport, decision: Option<&Decision>) -> String {
    let mut line = format!("{:<26} {:<10}", segment.file, state(segment.state));
    if segment.state == SegmentState::InUse {
        let records = out::run(segment.base, segment.last);
        let terms = match (segment.term_runs.first(), segment.term_runs.last()) {
            (Some((first, _)), Some((last, _))) if first != last => {
                format!("terms {first}..={last}")
            }
            (Some((term, _)), _) => format!("term {term}"),
            _ => "no term".to_owned(),
        };
        let used = out::bytes(segment.record_bytes);
        line += &format!(
            " {records:<20} {terms:<14} {used:>10} of {:<10}",
            out::bytes(segment.file_bytes)
        );
        line += &match segment.marker {
            Some(marker) if marker.seal => {
                format!(" sealed; flushed to {}", marker.flushed_index)
            }
            Some(marker) => format!(" the end; flushed to {}", marker.flushed_index),
            None => String::new(),
        };
    } else {
        line += &format!(" {:>58}", out::bytes(segment.file_bytes));
    }
    if let Some(bad) = &segment.bad {
        line += &format!(" BAD at offset {}", bad.offset);
        if let Some(index) = bad.index {
            line += &format!(", index {index}");
        }
        line += &format!(": {}", bad.detail);
        if segment.intact_behind > 0 {
            line += &format!(
                " (intact records behind it up to {})",
                segment.intact_behind
            );
        }
    }
    if let Some(decision) = decision {
        let words = decision.to_string();
        line += &format!("; start: {}", words.rsplit(": ").next().unwrap_or_default());
    }
    line
}

/// What a start does with a file; with peers, when it does not start without.
fn decision<'a>(seen: &'a Inspection, file: &str) -> Option<&'a Decision> {
    let decisions = match (&seen.alone, &seen.with_peers) {
        (Outcome::Opens { decisions, .. }, _) | (_, Outcome::Opens { decisions, .. }) => decisions,
        _ => return None,
    };
    decisions.iter().find(|decision| decision.file == file)
}

fn state(state: SegmentState) -> &'static str {
    match state {
        SegmentState::InUse => "in use",
        SegmentState::Spare => "spare",
        SegmentState::Unfinished => "unfinished",
        SegmentState::Unreadable => "unreadable",
        SegmentState::Unknown => "unknown",
    }
}

/// The fields of a directory. They stay: others may be added.
pub(crate) fn as_json(seen: &Inspection) -> Value {
    let vote = seen.vote();
    let peers = seen.peers.value().map(|peers| {
        let pair = |(node, of): &(u64, u64)| json!({ "node": node, "incarnation": out::hex(*of) });
        peers.iter().map(pair).collect::<Vec<_>>()
    });
    let heal = match &seen.heal {
        Small::Missing => Value::Null,
        small => heal_json(small.value()),
    };
    json!({
        "path": seen.path,
        "sound": seen.damage().is_empty(),
        "damage": seen.damage(),
        "identity": seen.identity.value().map(|id| json!({
            "cluster": out::hex(id.cluster_id),
            "group": id.group_id,
            "node": id.node_id,
            "incarnation": out::hex(id.incarnation),
        })),
        "term": vote.map(|vote| vote.term),
        "voted_for": vote.and_then(|vote| vote.voted_for),
        "peers": peers,
        "heal": heal,
        "excluded_by": seen.excluded.map(|exclusion| exclusion.by),
        "last_opened_by": seen.last_opened_by,
        "segments": seen.segments.iter().map(|s| segment_json(s, decision(seen, &s.file))).collect::<Vec<_>>(),
        "alone": outcome_json(&seen.alone),
        "with_peers": outcome_json(&seen.with_peers),
    })
}

fn heal_json(heal: Option<&DataLoss>) -> Value {
    match heal {
        Some(heal) => {
            json!({ "upto": out::upto(heal.upto), "term": heal.term, "vote_lost": heal.vote_lost })
        }
        None => json!({ "upto": null, "term": null, "vote_lost": true }),
    }
}

fn segment_json(segment: &SegmentReport, decision: Option<&Decision>) -> Value {
    let in_use = segment.state == SegmentState::InUse;
    let terms = segment.term_runs.iter();
    json!({
        "file": segment.file,
        "state": state(segment.state),
        "seq": segment.seq,
        "first": in_use.then_some(segment.base),
        "last": in_use.then_some(segment.last),
        "term_before": in_use.then_some(segment.prev_term),
        "terms": terms.map(|(term, first)| json!({ "term": term, "first": first })).collect::<Vec<_>>(),
        "file_bytes": segment.file_bytes,
        "record_bytes": segment.record_bytes,
        "marker": segment.marker.map(|marker| json!({
            "kind": if marker.seal { "seal" } else { "tail" },
            "end": marker.end_index,
            "flushed": marker.flushed_index,
        })),
        "leftovers": segment.leftovers,
        "bad": segment.bad.as_ref().map(|bad| json!({
            "offset": bad.offset,
            "index": bad.index,
            "detail": bad.detail,
        })),
        "intact_behind": segment.intact_behind,
        "decision": decision.map(ToString::to_string),
    })
}

fn outcome_json(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Opens {
            first, last, lost, ..
        } => json!({
            "starts": true,
            "first": first,
            "last": last,
            "loses": lost.is_some(),
            "lost_upto": lost.map_or(Value::Null, out::upto),
        }),
        Outcome::Refused(error) => json!({ "starts": false, "reason": error.to_string() }),
        Outcome::Empty => {
            json!({ "starts": true, "first": 1, "last": 0, "loses": false, "lost_upto": null })
        }
    }
}
