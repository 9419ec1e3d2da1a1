//! What the clients saw, and whether it fits into one order.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ringraft::sim::linear::{self, counter, register};

/// Steps of a register's search; an honest history needs a few thousand.
const BUDGET: u64 = 4_000_000;

/// Numbers for calls and returns: an operation that returned before another was called has the smaller number.
static EVENTS: AtomicU64 = AtomicU64::new(1);

pub(crate) fn event() -> u64 {
    EVENTS.fetch_add(1, Ordering::SeqCst)
}

/// One operation. `None` where there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Increment(Option<u64>),
    Count(u64),
    Register(register::Kind),
}

#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) client: usize,
    pub(crate) key: String,
    pub(crate) call: u64,
    /// `u64::MAX` when the outcome is unknown.
    pub(crate) ret: u64,
    /// When the answer was there.
    pub(crate) at: Instant,
    pub(crate) what: What,
}

impl Record {
    pub(crate) fn is_known(&self) -> bool {
        self.ret != u64::MAX
    }

    pub(crate) fn is_write(&self) -> bool {
        !matches!(
            self.what,
            What::Count(_) | What::Register(register::Kind::Read(_))
        )
    }
}

/// The first key whose history has no order, and why.
pub(crate) fn check(records: &[Record]) -> Result<(), String> {
    let mut keys: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        keys.entry(&record.key).or_default().push(record);
    }
    keys.into_iter().try_for_each(|(key, records)| {
        check_key(&records).map_err(|why| format!("key {key}, {} operations: {why}", records.len()))
    })
}

fn check_key(records: &[&Record]) -> Result<(), String> {
    let (mut counts, mut registers) = (Vec::new(), Vec::new());
    for record in records {
        let &&Record {
            call, ret, what, ..
        } = record;
        match what {
            What::Increment(value) => {
                let what = counter::Kind::Increment(value);
                counts.push(counter::Op { call, ret, what });
            }
            What::Count(value) => {
                let what = counter::Kind::Read(value);
                counts.push(counter::Op { call, ret, what });
            }
            What::Register(what) => registers.push(register::Op { call, ret, what }),
        }
    }
    linear::check(&counts)?;
    match register::check(&registers, BUDGET) {
        register::Verdict::Linearizable => Ok(()),
        register::Verdict::Violation { explained, stuck } => Err(format!(
            "after {explained} operations, none of these can come next: {stuck:?}"
        )),
        register::Verdict::GaveUp { steps } => Err(format!(
            "no verdict after {steps} steps; an honest history needs far fewer"
        )),
    }
}

/// The longest time without an acknowledged write, in a load that ran from `begin` to `end`.
pub(crate) fn longest_gap(records: &[Record], begin: Instant, end: Instant) -> std::time::Duration {
    let writes = records
        .iter()
        .filter(|record| record.is_write() && record.is_known());
    let mut times: Vec<Instant> = writes.map(|record| record.at).collect();
    times.extend([begin, end]);
    times.sort_unstable();
    times
        .windows(2)
        .map(|two| two[1] - two[0])
        .max()
        .unwrap_or_default()
}

/// One line an operation, in the order of the calls; `-` for a return that never came.
pub(crate) fn render(records: &[Record]) -> String {
    let mut sorted: Vec<&Record> = records.iter().collect();
    sorted.sort_unstable_by_key(|record| record.call);
    let mut text = "# key call return client operation\n".to_owned();
    for Record {
        key,
        call,
        ret,
        client,
        what,
        ..
    } in sorted
    {
        let ret = if *ret == u64::MAX {
            "-".to_owned()
        } else {
            ret.to_string()
        };
        let _ = writeln!(text, "{key} {call} {ret} {client} {what:?}"); // A string takes everything.
    }
    text
}
