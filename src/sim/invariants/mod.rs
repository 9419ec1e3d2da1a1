//! What must hold at every moment of a run, each looked at right after the poll that could break it.
//!
//! | file | what |
//! |---|---|
//! | `logs` | log matching; nothing committed is truncated; recovery keeps what was durable and invents nothing |
//! | `leadership` | election safety, leader completeness, commits on a quorum of durable logs in the leader's own term |
//! | `promises` | no vote, acknowledgement or term is told before it is durable |
//! | `bounds` | `purged <= older snapshot`, `purged <= applied <= committed`, `durable <= written`, rings and tables within their limits |
//! | `wakes` | a stage that has work is awake |
//!
//! That state machines agree, that nothing is applied twice, and that what was refused is nowhere, is the ledger's; what a
//! session promises to its client, that of `retries`.

pub(crate) mod bounds;
pub(crate) mod leadership;
pub(crate) mod logs;
pub(crate) mod promises;
pub(crate) mod wakes;

use std::fmt;

/// A check that has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) check: &'static str,
    pub(crate) facts: String,
}

/// Most of the checks: nothing to say, or what was found.
pub(crate) type Verdict = Result<(), Broken>;

pub(crate) fn broken(check: &'static str, facts: impl fmt::Display) -> Verdict {
    Err(Broken {
        check,
        facts: facts.to_string(),
    })
}
