//! The rare paths that a long run must have been on, and what it must have seen: what no seed reaches is not tested.

use storage::decision::Found;

/// Each is counted as it is met.
pub(crate) const MARKS: [&str; 54] = [
    "history: compare-and-set, lost",
    "history: compare-and-set, unknown",
    "history: compare-and-set, won",
    "mark: a candidate gave way within its term",
    "mark: a connection was given up",
    "mark: a first answer was known from a snapshot only",
    "mark: a leader stepped down within its term",
    "mark: a lease ran when a read asked for it",
    "mark: a node began to heal",
    "mark: a node could not start for its disk",
    "mark: a node is healed",
    "mark: a node left in order",
    "mark: a node stopped with a fault",
    "mark: a node without peers refused a damaged log",
    "mark: a peer's window was full",
    "mark: a snapshot could not be taken or received",
    "mark: a snapshot took the place of a log",
    "mark: a term was fenced while a flush was in flight",
    "mark: a state machine was ahead of its log",
    "mark: a wiped node has everything again",
    "mark: a wiped node rejoins",
    "mark: an older leader was read from",
    "mark: committed before the leader's own flush",
    "mark: conflicting entries were truncated",
    "mark: ended while a flush was in flight",
    "mark: ended while a snapshot came in",
    "mark: entries of an earlier term committed through a new one",
    "mark: input held back by a full ring",
    "mark: recovery cut a torn tail",
    "mark: recovery erased what was not durable",
    "mark: recovery finished a truncation",
    "mark: recovery found a torn copy of term and vote",
    "mark: recovery found an unfinished segment",
    "mark: refused at once, busy",
    "mark: the limit of uncommitted bytes was reached",
    "mark: the front of a log was let go",
    "mark: the log was ahead of the term on disk",
    "mark: the power failed in recovery",
    "mark: truncated while a flush was in flight",
    "mark: two leaders of different terms at once",
    "mark: written while a flush was in flight",
    "read: by a lease, where there is one",
    "read: by a round",
    "read: of bounded age",
    "read: stale",
    "read: through the log",
    "sessions: answers not kept",
    "sessions: evicted or closed, says a try",
    "sessions: expired, and done",
    "sessions: first answers given again",
    "sessions: given up, and done",
    "sessions: late tries found too old",
    "sessions: too far",
    "sessions: tries beside others",
];

/// The mark of what a recovery has found in a file, if that is rare.
pub(crate) fn of_recovery(found: &Found) -> Option<&'static str> {
    match found {
        Found::Torn { .. } => Some("mark: recovery cut a torn tail"),
        Found::Tail {
            leftovers: true, ..
        } => Some("mark: recovery erased what was not durable"),
        Found::TruncationBegun { .. } => Some("mark: recovery finished a truncation"),
        Found::MetaSlotTorn => Some("mark: recovery found a torn copy of term and vote"),
        Found::Unfinished => Some("mark: recovery found an unfinished segment"),
        _ => None,
    }
}

pub(crate) fn of_full_ring(name: &str) -> &'static str {
    match name {
        "propose" => "ring full: propose",
        "read" => "ring full: read",
        "entry" => "ring full: entry",
        "send_small" => "ring full: send_small",
        "send_bulk" => "ring full: send_bulk",
        "in_small" => "ring full: in_small",
        "in_bulk" => "ring full: in_bulk",
        "apply" => "ring full: apply",
        _ => "ring full: replied",
    }
}
