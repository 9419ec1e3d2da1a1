//! `snapshot info` and `snapshot verify`: every snapshot, read to its end.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use storage::inspect::{self, SnapshotReport};

use crate::out::{self, Out};
use crate::{Failed, Verdict, Where, target};

pub(crate) fn run(at: &Where, all: bool, out: &mut Out) -> Result<Verdict, Failed> {
    let (dirs, only) = match at.dir.is_file() {
        true => of_file(&at.dir)?,
        false => (target::groups(&at.dir)?, None),
    };
    let mut verdict = Verdict::Sound;
    let mut found = Vec::new();
    for dir in dirs {
        let mut snapshots = inspect::snapshots(&dir)?;
        snapshots.retain(|snapshot| only.as_ref().is_none_or(|only| *only == snapshot.file));
        if let (Some(only), true) = (&only, snapshots.is_empty()) {
            let dir = dir.display();
            return Err(Failed::Said(format!("{only} is no snapshot of {dir}")));
        }
        if snapshots.iter().any(|snapshot| snapshot.read.is_err()) {
            verdict = Verdict::Damaged;
        }
        if at.json {
            let snapshots: Vec<_> = snapshots.iter().map(as_json).collect();
            let aside = inspect::snapshots_set_aside(&dir)?;
            found.push(json!({ "path": dir, "snapshots": snapshots, "set_aside": aside }));
            continue;
        }
        out.line(dir.display())?;
        for snapshot in snapshots
            .iter()
            .filter(|snapshot| all || snapshot.read.is_err())
        {
            out.line(format_args!("  {}", line(snapshot)))?;
        }
        for file in inspect::snapshots_set_aside(&dir)? {
            out.line(format_args!("  note: {}", inspect::set_aside(&file)))?;
        }
        let bad = snapshots.iter().filter(|snapshot| snapshot.read.is_err());
        let (bad, of) = (bad.count(), snapshots.len());
        out.line(match (bad, of) {
            (_, 0) => "  no snapshot".to_owned(),
            (0, of) => format!("  SOUND: {of} of {of}"),
            (bad, of) => format!("  DAMAGED: {bad} of {of}"),
        })?;
    }
    if at.json {
        out.json(&json!({ "directories": found }))?;
    }
    Ok(verdict)
}

/// The directory of the group to which this snapshot belongs, and its name there.
fn of_file(file: &Path) -> Result<(Vec<PathBuf>, Option<String>), Failed> {
    let whole = std::fs::canonicalize(file)
        .map_err(|error| Failed::Said(format!("cannot read {}: {error}", file.display())))?;
    let name = whole.file_name().and_then(|name| name.to_str());
    let folder = whole.parent().filter(|folder| folder.ends_with("snap"));
    match (name, folder.and_then(Path::parent)) {
        (Some(name), Some(group)) => Ok((vec![group.to_owned()], Some(format!("snap/{name}")))),
        _ => Err(Failed::Said(format!(
            "{} is not in the folder `snap` of a group: whose snapshot it is cannot be checked",
            file.display()
        ))),
    }
}

fn line(snapshot: &SnapshotReport) -> String {
    let id = snapshot.id;
    let mut line = format!(
        "{}  index {}, term {}, {}",
        snapshot.file,
        id.index,
        id.term,
        out::bytes(id.bytes)
    );
    line += &match &snapshot.read {
        Ok(meta) => format!(
            ", {} of members, sound",
            out::bytes(meta.members.len() as u64)
        ),
        Err(error) => format!(" BAD: {error}"),
    };
    line
}

fn as_json(snapshot: &SnapshotReport) -> Value {
    let meta = snapshot.read.as_ref().ok();
    json!({
        "file": snapshot.file,
        "index": snapshot.id.index,
        "term": snapshot.id.term,
        "bytes": snapshot.id.bytes,
        "digest": out::hex(snapshot.id.digest.into()),
        "time_us": meta.map(|meta| meta.time_us),
        "members_bytes": meta.map(|meta| meta.members.len()),
        "sound": meta.is_some(),
        "bad": snapshot.read.as_ref().err().map(ToString::to_string),
    })
}
