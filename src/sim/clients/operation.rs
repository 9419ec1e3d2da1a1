//! What clients ask for, and what an answer to it must be.

use crate::error::ProposeError;
use crate::request::token::Reply;
use crate::sim::clients::sessions::Next;
use crate::sim::invariants::{Broken, Verdict, broken};
use crate::sim::machine::ledger::Book;
use crate::sim::machine::model::{Deed, Seen};
use crate::types::Index;

/// By which way a read goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Round,
    Lease,
    Log,
    /// What was there so many microseconds ago, but for so many entries.
    Old(u64, u64),
    Stale,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A command without a session.
    Do(Deed),
    /// Of a register; of the counter, where there are none.
    Read(Way, u8),
    /// Only that this index is applied.
    Wait(Index),
    /// In a session, or about one.
    Session(Next),
}

/// What was committed when it was asked is seen by it, as far as it promises that.
pub(crate) fn late_enough(op: u64, ask: Ask, floor: Index, index: Index) -> Verdict {
    let (check, late) = match ask {
        Ask::Wait(_) => ("waits are kept", index >= floor),
        Ask::Read(Way::Old(..), _) => ("old reads are young enough", index >= floor),
        Ask::Read(Way::Stale, _) => ("stale reads are of what is applied", index >= floor),
        Ask::Read(..) => ("reads see what is committed", index >= floor),
        Ask::Do(_) | Ask::Session(_) => ("commands follow what is committed", index > floor),
    };
    if late {
        return Ok(());
    }
    broken(
        check,
        format!(
            "operation {op} ({:?}) is answered at {index}, {} is the least",
            ask, floor
        ),
    )
}

/// The answer to a deed is what the ledger says it must be. Where it was done.
pub(crate) fn believable_deed(
    asked: u64,
    (op, deed): (u64, Deed),
    seen: Option<Seen>,
    reply: &Reply,
    book: &Book,
) -> Result<Index, Broken> {
    let place = book.place_of(op).filter(|&place| place <= reply.index);
    let right = place.map(|place| match deed {
        Deed::Increment => Seen::Count(book.value_at(place)),
        Deed::Write { .. } => Seen::Written(true),
        Deed::CompareAndSet {
            register, expected, ..
        } => Seen::Written(book.register_at(register, place - 1) == expected),
    });
    match (place, seen == right) {
        (Some(place), true) => Ok(place),
        _ => untrue(asked, Ask::Do(deed), seen, reply, book).map(|()| 0),
    }
}

pub(crate) fn untrue(op: u64, ask: Ask, seen: Option<Seen>, reply: &Reply, book: &Book) -> Verdict {
    broken(
        "answers are true",
        format!(
            "operation {op} ({ask:?}) is answered {seen:?} at index {}; the ledger says {:?} there, and the operation at {:?}",
            reply.index,
            book.value_at(reply.index),
            book.place_of(op)
        ),
    )
}

pub(crate) fn name_of_read(way: Way) -> &'static str {
    match way {
        Way::Round => "read: by a round",
        Way::Lease => "read: by a lease, where there is one",
        Way::Log => "read: through the log",
        Way::Old(..) => "read: of bounded age",
        Way::Stale => "read: stale",
    }
}

pub(crate) fn name(error: &ProposeError) -> &'static str {
    match error {
        ProposeError::NotLeader { .. } => "answer: not the leader",
        ProposeError::Busy => "answer: busy",
        ProposeError::TooLarge { .. } => "answer: too large",
        ProposeError::Replaced => "answer: replaced",
        ProposeError::Unknown | ProposeError::WouldDeadlock => "answer: unknown",
        ProposeError::Unconfirmed => "answer: not confirmed",
        ProposeError::Stopped => "answer: stopped",
        ProposeError::NoOutbox => "answer: no outbox",
        ProposeError::SnapshotRunning | ProposeError::NoSnapshot => "answer: no snapshot",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_answered_from_before_its_floor_is_found() {
        let check = |ask, floor| {
            late_enough(1, ask, floor, 5)
                .err()
                .map_or("nothing", |Broken { check, .. }| check)
        };
        let read = |way| Ask::Read(way, 0);
        let least = [
            (read(Way::Round), "reads see what is committed"),
            (read(Way::Lease), "reads see what is committed"),
            (read(Way::Log), "reads see what is committed"),
            (read(Way::Old(5, 0)), "old reads are young enough"),
            (read(Way::Stale), "stale reads are of what is applied"),
            (Ask::Wait(6), "waits are kept"),
        ];
        for (ask, found) in least {
            assert_eq!(check(ask, 5), "nothing", "{ask:?}");
            assert_eq!(check(ask, 6), found, "{ask:?}");
        }
        let command = Ask::Do(Deed::Increment);
        assert_eq!(check(command, 4), "nothing");
        assert_eq!(
            check(command, 5),
            "commands follow what is committed",
            "an index has one command"
        );
    }
}
