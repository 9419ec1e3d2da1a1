//! Whether a counter's history is linearizable, in O(n log n).
//!
//! The counter begins at 0; an increment returns the value after it, a read the value it found. Place the increments
//! on the line by the values they returned: the point of value `v` must come after every call at or below `v`, and
//! before every return at or above it. Reads of `v` lie between the points of `v` and `v + 1`. A value that nobody
//! was told needs an increment whose outcome is unknown, called before the value's deadline. Deadlines grow with the
//! value, so handing the unknown ones out by their calls, earliest first, finds an assignment if there is one.

/// An operation as its client saw it. Times are numbers of events: no two are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// When its client began it.
    pub call: u64,
    /// When its client had the answer; `u64::MAX` when the outcome is unknown.
    pub ret: u64,
    /// What it was, and what was answered.
    pub what: Kind,
}

/// What an operation was, and what was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An increment, and the value after it; `None` when the outcome is unknown.
    Increment(Option<u64>),
    /// The value that was found.
    Read(u64),
}

/// Whether the history is that of one counter. `Err` says which operations contradict each other.
pub fn check(history: &[Op]) -> Result<(), String> {
    let mut unknown: Vec<u64> = Vec::new();
    let mut highest = 0;
    for op in history {
        match op.what {
            Kind::Increment(None) => unknown.push(op.call),
            Kind::Increment(Some(value)) | Kind::Read(value) => highest = highest.max(value),
        }
    }
    if highest > history.len() as u64 {
        return Err(format!(
            "the value {highest} was seen, with {} operations in all",
            history.len()
        ));
    }
    let values = highest as usize + 2;
    // Of each value: its increment, the latest call of its reads and their earliest return.
    let mut increments: Vec<Option<Op>> = vec![None; values];
    let mut read_calls = vec![0_u64; values];
    let mut read_rets = vec![u64::MAX; values];
    for op in history {
        match op.what {
            Kind::Increment(None) => {}
            Kind::Increment(Some(0)) => return Err(format!("{op:?} returned 0")),
            Kind::Increment(Some(value)) => {
                if let Some(other) = increments[value as usize].replace(*op) {
                    return Err(format!("{op:?} and {other:?} returned the same value"));
                }
            }
            Kind::Read(value) => {
                let at = value as usize;
                read_calls[at] = read_calls[at].max(op.call);
                read_rets[at] = read_rets[at].min(op.ret);
            }
        }
    }
    // `before[v]`: the point of value v comes before this.
    let mut before = vec![u64::MAX; values];
    for value in (0..=highest as usize).rev() {
        let own = increments[value].map_or(u64::MAX, |op| op.ret);
        before[value] = before[value + 1].min(own).min(read_rets[value]);
    }
    unknown.sort_unstable();
    let mut unknown = unknown.into_iter();
    let mut after = read_calls[0];
    for value in 1..=highest as usize {
        let call = match increments[value] {
            Some(op) => op.call,
            None => unknown.next().ok_or_else(|| {
                format!("nobody can have made the value {value}: no unknown increment is left")
            })?,
        };
        after = after.max(call);
        if after >= before[value] {
            return Err(format!(
                "the value {value} was made before event {} and after event {after}",
                before[value]
            ));
        }
        after = after.max(read_calls[value]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::linear::dice::Dice;

    fn inc(call: u64, ret: u64, value: u64) -> Op {
        let what = Kind::Increment(Some(value));
        Op { call, ret, what }
    }

    fn lost(call: u64) -> Op {
        let (ret, what) = (u64::MAX, Kind::Increment(None));
        Op { call, ret, what }
    }

    fn read(call: u64, ret: u64, value: u64) -> Op {
        let what = Kind::Read(value);
        Op { call, ret, what }
    }

    #[test]
    fn what_contradicts_itself_is_found() {
        assert!(check(&[inc(1, 2, 1), inc(3, 4, 2), read(5, 6, 2)]).is_ok());
        assert!(check(&[inc(1, 2, 2), inc(3, 4, 1)]).is_err(), "order");
        assert!(check(&[inc(1, 2, 1), inc(3, 4, 1)]).is_err(), "twice");
        assert!(check(&[inc(1, 2, 1), read(3, 4, 0)]).is_err(), "stale read");
        assert!(check(&[inc(1, 2, 2)]).is_err(), "out of nothing");
        assert!(check(&[lost(1), inc(2, 3, 2)]).is_ok());
        assert!(check(&[inc(1, 2, 2), lost(3)]).is_err(), "too late");
        assert!(
            check(&[read(1, 2, 1), read(3, 4, 0), lost(0)]).is_err(),
            "reads that go back"
        );
    }

    /// Tries every order.
    fn slow(left: &mut Vec<Op>, value: u64) -> bool {
        let Some(end) = left.iter().map(|op| op.ret).min().filter(|&r| r < u64::MAX) else {
            return true; // Only unknown ones are left: they need not have happened.
        };
        for at in 0..left.len() {
            let op = left[at];
            let fits = op.call < end
                && match op.what {
                    Kind::Increment(got) => got.is_none_or(|got| got == value + 1),
                    Kind::Read(got) => got == value,
                };
            if fits {
                left.remove(at);
                let next = value + u64::from(matches!(op.what, Kind::Increment(_)));
                let found = slow(left, next);
                left.insert(at, op);
                if found {
                    return true;
                }
            }
        }
        false
    }

    #[test]
    fn agrees_with_trying_every_order() {
        let mut dice = Dice(7);
        let mut verdicts = [0, 0];
        for _ in 0..20_000 {
            let count = dice.between(1, 5);
            let ops: Vec<Op> = dice
                .shuffled(2 * count)
                .chunks(2)
                .map(|pair| {
                    let (call, ret) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
                    match dice.below(4) {
                        0 => lost(call),
                        1 => read(call, ret, dice.below(count + 1)),
                        _ => inc(call, ret, dice.between(1, count)),
                    }
                })
                .collect();
            let slow = slow(&mut ops.clone(), 0);
            assert_eq!(check(&ops).is_ok(), slow, "{ops:?}: {:?}", check(&ops));
            verdicts[usize::from(slow)] += 1;
        }
        assert!(verdicts.iter().all(|&count| count > 1000), "{verdicts:?}");
    }
}
