//! Writing: lines, or JSON; and small things in words.

use std::fmt;
use std::io::{self, BufWriter, Stdout, Write};

use serde_json::Value;

use crate::Failed;

/// Standard output. A reader that goes away ends the command.
#[derive(Debug)]
pub(crate) struct Out {
    out: BufWriter<Stdout>,
}

impl Out {
    pub(crate) fn new() -> Out {
        Out {
            out: BufWriter::new(io::stdout()),
        }
    }

    pub(crate) fn line(&mut self, line: impl fmt::Display) -> Result<(), Failed> {
        writeln!(self.out, "{line}").map_err(failed)
    }

    pub(crate) fn json(&mut self, value: &Value) -> Result<(), Failed> {
        let text = serde_json::to_string_pretty(value).expect("a value that was just made");
        self.line(text)
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failed> {
        self.out.flush().map_err(failed)
    }
}

fn failed(error: io::Error) -> Failed {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failed::Closed,
        _ => Failed::Said(format!("cannot write the output: {error}")),
    }
}

/// Ids and incarnations: JSON readers that count in doubles would round them.
pub(crate) fn hex(id: u64) -> String {
    format!("{id:#x}")
}

/// `upto` of a log that lacks something: `null` when it is not known.
pub(crate) fn upto(index: u64) -> Value {
    match index {
        u64::MAX => Value::Null,
        index => index.into(),
    }
}

/// Bytes for people.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let (mut value, mut unit) = (n as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A run of indexes.
pub(crate) fn run(first: u64, last: u64) -> String {
    if first > last {
        return "none".to_owned();
    }
    format!("{first}..={last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_said_in_the_unit_that_fits() {
        let said = [0, 1023, 1024, 1536, 64 << 20, 1 << 50].map(bytes);
        assert_eq!(
            said,
            [
                "0 B",
                "1023 B",
                "1.0 KiB",
                "1.5 KiB",
                "64.0 MiB",
                "1024.0 TiB"
            ]
        );
    }
}
