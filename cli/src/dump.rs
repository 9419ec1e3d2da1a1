//! `log dump`: the records, a line each, and the bad places where they are.

use std::fmt::Write;
use std::ops::ControlFlow;

use serde_json::json;
use storage::inspect::{Dumped, ReadOnly, dump};
use storage::record::Record;

use crate::out::{Out, hex};
use crate::{DumpArgs, Failed, Payload, Verdict, target};

pub(crate) fn run(args: &DumpArgs, out: &mut Out) -> Result<Verdict, Failed> {
    let dirs = target::groups(&args.at.dir)?;
    let indexes = args.from..=args.to.unwrap_or(u64::MAX);
    if indexes.is_empty() {
        return Err(Failed::Said(format!(
            "--from {} is behind --to {}",
            indexes.start(),
            indexes.end()
        )));
    }
    let mut verdict = Verdict::Sound;
    for dir in &dirs {
        if dirs.len() > 1 && !args.at.json {
            out.line(dir.display())?;
        }
        let mut failed = None;
        dump(&ReadOnly::new(dir), indexes.clone(), &mut |what| {
            if matches!(what, Dumped::Bad { .. }) {
                verdict = Verdict::Damaged;
            }
            let line = match args.at.json {
                true => json_line(dir, &what, args),
                false => text_line(&what, args),
            };
            match out.line(line) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(failed) = failed {
            return Err(failed);
        }
    }
    Ok(verdict)
}

fn text_line(what: &Dumped<'_>, args: &DumpArgs) -> String {
    match what {
        Dumped::Record {
            file,
            offset,
            record,
            behind_damage,
        } => {
            let header = record.header;
            let mut line = format!(
                "{:>10}  term {:<6} kind {:<3} {:>8} B  {file}:{offset}",
                header.index,
                header.term,
                header.kind,
                record.payload.len()
            );
            if *behind_damage {
                line += "  (behind damage)";
            }
            if let Some((payload, cut)) = payload(record, args) {
                line += &format!("  {payload}{}", if cut { "…" } else { "" });
            }
            line
        }
        Dumped::Bad { file, bad } => {
            let index = bad.index.map_or("?".to_owned(), |index| index.to_string());
            format!("{index:>10}  BAD at {file}:{}: {}", bad.offset, bad.detail)
        }
    }
}

fn json_line(dir: &std::path::Path, what: &Dumped<'_>, args: &DumpArgs) -> String {
    let value = match what {
        Dumped::Record {
            file,
            offset,
            record,
            behind_damage,
        } => {
            let header = record.header;
            let payload = payload(record, args);
            json!({
                "path": dir,
                "file": file,
                "offset": offset,
                "index": header.index,
                "term": header.term,
                "time_us": header.time_us,
                "origin": hex(header.origin),
                "token": hex(header.token),
                "kind": header.kind,
                "payload_bytes": record.payload.len(),
                "payload": payload.as_ref().map(|(text, _)| text),
                "payload_cut": payload.is_some_and(|(_, cut)| cut),
                "behind_damage": behind_damage,
                "bad": null,
            })
        }
        Dumped::Bad { file, bad } => json!({
            "path": dir,
            "file": file,
            "offset": bad.offset,
            "index": bad.index,
            "bad": bad.detail,
        }),
    };
    value.to_string()
}

/// The payload as asked for, and whether some of it was left away.
fn payload(record: &Record<'_>, args: &DumpArgs) -> Option<(String, bool)> {
    let shown = &record.payload[..record.payload.len().min(args.limit)];
    let cut = shown.len() < record.payload.len();
    let text = match args.payload {
        Payload::None => return None,
        Payload::Text => shown.escape_ascii().to_string(),
        Payload::Hex => shown.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
    };
    Some((text, cut))
}
