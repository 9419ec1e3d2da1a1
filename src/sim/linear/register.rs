//! Whether a register's history is linearizable: reads, writes and compare-and-set, by search.
//!
//! The search of Wing and Gong with Lowe's memory: operations are taken one at a time, each of those that were called
//! before the first return that is still to come; a set of operations that was left with the same value before is not
//! searched twice. Two rules keep it short, and lose nothing:
//!
//! 1. An operation that changes nothing and fits the present value is taken at once. If some order exists, one exists
//!    that begins with it: moved to the front, it changes no value that another one sees.
//! 2. An operation whose outcome is unknown is taken only right before one that tells the difference: a read of its
//!    value, a compare-and-set that expects it, or one that failed because of it. Whatever else follows could have
//!    come before it, or hides it, and then it need not have happened.
//!
//! J. M. Wing and C. Gong, *Testing and verifying concurrent objects* (1993); G. Lowe, *Testing for linearizability*
//! (2016); the linked list of events is that of Anishathalye's Porcupine.

use std::collections::HashSet;

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

/// What an operation was, and what was answered. A register that was never written is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The value that was found; nothing follows from a read whose outcome is unknown.
    Read(Option<i64>),
    /// The value that was written.
    Write(i64),
    /// Writes `new` where `expected` is found.
    CompareAndSet {
        /// What has to be there.
        expected: Option<i64>,
        /// What replaces it.
        new: i64,
        /// Whether it did; without meaning where the outcome is unknown.
        done: bool,
    },
}

/// What came of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none.
    Violation {
        /// How many of the operations with an answer were explained at the best.
        explained: usize,
        /// Of the rest, those that could have come next then, but for their answers.
        stuck: Vec<Op>,
    },
    /// The budget was used up before either was certain.
    GaveUp {
        /// The steps that were made.
        steps: u64,
    },
}

impl Verdict {
    /// Whether an order was found.
    pub fn is_linearizable(&self) -> bool {
        *self == Self::Linearizable
    }
}

/// Whether the history is that of one register, which begins as `None`. A step is one operation taken; an honest history
/// needs hardly more steps than it has operations.
///
/// # Panics
/// When an operation returns before it is called: that is no history.
pub fn check(history: &[Op], budget: u64) -> Verdict {
    Search::new(history).run(budget)
}

/// The end of the list of events, and its beginning.
const ENDS: usize = 0;

/// A call or a return in the list of those that are still to be explained.
#[derive(Clone, Copy, Debug)]
struct Event {
    op: usize,
    is_call: bool,
    before: usize,
    after: usize,
}

/// One choice that can be taken back.
#[derive(Debug)]
struct Taken {
    op: usize,
    value: Option<i64>,
    doubtful: bool,
}

struct Search {
    /// Those with an answer by their calls, then the unknown ones by theirs.
    ops: Vec<Op>,
    /// `ops[answered ..]` are unknown.
    answered: usize,
    /// A ring through [`ENDS`], by time. Of `ops[i]`, with an answer: the call is `events[2 * i + 1]`, the return the
    /// next one.
    events: Vec<Event>,
    /// The unknown ones that were taken, by their place behind `answered`.
    used: Vec<bool>,
    left: usize,
    value: Option<i64>,
    /// The last one taken was an unknown one: the next has to tell the difference.
    doubtful: bool,
    /// Which were taken, as the sum of their marks. Two sets with the same 128 bits are taken for one.
    set: u128,
    trail: Vec<Taken>,
    /// Of each level: the length of `trail` and of `candidates` at its beginning.
    levels: Vec<(usize, usize)>,
    candidates: Vec<usize>,
    seen: HashSet<(u128, Option<i64>, bool)>,
}

impl Search {
    fn new(history: &[Op]) -> Self {
        let is_read = |op: &&Op| matches!(op.what, Kind::Read(_));
        let unknown = |op: &&Op| op.ret == u64::MAX;
        let mut ops: Vec<Op> = history.iter().filter(|op| !unknown(op)).copied().collect();
        ops.sort_unstable_by_key(|op| op.call);
        let answered = ops.len();
        ops.extend(history.iter().filter(|op| unknown(op) && !is_read(op)));
        ops[answered..].sort_unstable_by_key(|op| op.call);

        let mut order: Vec<(u64, usize)> = Vec::with_capacity(2 * answered);
        for (at, op) in ops[..answered].iter().enumerate() {
            assert!(op.call < op.ret, "{op:?} returns before it is called");
            order.extend([(op.call, 2 * at + 1), (op.ret, 2 * at + 2)]);
        }
        order.sort_unstable();
        let event = |at: usize| Event {
            op: at.wrapping_sub(1) / 2,
            is_call: at % 2 == 1,
            before: ENDS,
            after: ENDS,
        };
        let mut events: Vec<Event> = (0..=2 * answered).map(event).collect();
        let mut last = ENDS;
        for (_, at) in order {
            events[last].after = at;
            events[at].before = last;
            last = at;
        }
        events[ENDS].before = last;
        events[last].after = ENDS;
        Self {
            used: vec![false; ops.len() - answered],
            ops,
            answered,
            events,
            left: answered,
            value: None,
            doubtful: false,
            set: 0,
            trail: Vec::new(),
            levels: Vec::new(),
            candidates: Vec::new(),
            seen: HashSet::new(),
        }
    }

    fn run(mut self, budget: u64) -> Verdict {
        let mut steps = 0;
        let (mut best, mut stuck) = (usize::MAX, Vec::new());
        loop {
            self.take_what_changes_nothing();
            if self.left == 0 {
                return Verdict::Linearizable;
            }
            if self.left < best {
                best = self.left;
                stuck = self.window().map(|op| self.ops[op]).collect();
            }
            self.levels.push((self.trail.len(), self.candidates.len()));
            if self.seen.insert((self.set, self.value, self.doubtful)) {
                self.find_candidates();
            }
            if !self.take_next() {
                let explained = self.answered - best;
                return Verdict::Violation { explained, stuck };
            }
            steps += 1;
            if steps > budget {
                return Verdict::GaveUp { steps };
            }
        }
    }

    /// Those with an answer that were called before the first return that is left.
    fn window(&self) -> impl Iterator<Item = usize> + '_ {
        let mut at = ENDS;
        std::iter::from_fn(move || {
            at = self.events[at].after;
            (at != ENDS && self.events[at].is_call).then(|| self.events[at].op)
        })
    }

    /// Rule 1. The value stays, so one pass is enough, also over the calls that become possible on the way.
    fn take_what_changes_nothing(&mut self) {
        let mut at = self.events[ENDS].after;
        while at != ENDS && self.events[at].is_call {
            let Event { op, before, .. } = self.events[at];
            let fits = match self.ops[op].what {
                Kind::Read(found) => found == self.value,
                Kind::CompareAndSet { expected, done, .. } => !done && expected != self.value,
                Kind::Write(_) => false,
            };
            if fits {
                self.take(op, self.value);
                at = before;
            }
            at = self.events[at].after;
        }
    }

    /// The last ones are tried first: those with an answer, the earliest call first.
    fn find_candidates(&mut self) {
        let first_return = {
            let mut at = self.events[ENDS].after;
            while self.events[at].is_call {
                at = self.events[at].after;
            }
            self.ops[self.events[at].op].ret
        };
        for at in (0..self.used.len()).rev() {
            let op = self.answered + at;
            if !self.used[at] && self.ops[op].call < first_return && self.effect(op).is_some() {
                self.candidates.push(op);
            }
        }
        let begin = self.candidates.len();
        let mut at = self.events[ENDS].after;
        while self.events[at].is_call {
            let op = self.events[at].op;
            if self.effect(op).is_some() {
                self.candidates.push(op);
            }
            at = self.events[at].after;
        }
        self.candidates[begin..].reverse();
    }

    /// The value after it, if it can be taken now and changes something.
    fn effect(&self, op: usize) -> Option<i64> {
        match self.ops[op].what {
            Kind::Write(value) => (!self.doubtful).then_some(value), // Rule 2: it would hide the unknown one.
            Kind::CompareAndSet {
                expected,
                new,
                done,
            } => ((done || op >= self.answered) && expected == self.value).then_some(new),
            Kind::Read(_) => None,
        }
    }

    /// Goes back as far as needed, and takes the next candidate. False when there is none anywhere.
    fn take_next(&mut self) -> bool {
        while let Some(&(trail, candidates)) = self.levels.last() {
            while self.trail.len() > trail {
                self.take_back();
            }
            if self.candidates.len() > candidates {
                let op = self.candidates.pop().expect("there are more");
                let value = self.effect(op);
                self.take(op, value);
                return true;
            }
            self.levels.pop();
        }
        false
    }

    fn take(&mut self, op: usize, value: Option<i64>) {
        self.trail.push(Taken {
            op,
            value: self.value,
            doubtful: self.doubtful,
        });
        self.value = value;
        self.set = self.set.wrapping_add(mark(op));
        self.doubtful = op >= self.answered;
        if self.doubtful {
            self.used[op - self.answered] = true;
            return;
        }
        self.left -= 1;
        for at in [2 * op + 1, 2 * op + 2] {
            let Event { before, after, .. } = self.events[at];
            self.events[before].after = after;
            self.events[after].before = before;
        }
    }

    fn take_back(&mut self) {
        let Taken {
            op,
            value,
            doubtful,
        } = self.trail.pop().expect("something was taken");
        (self.value, self.doubtful) = (value, doubtful);
        self.set = self.set.wrapping_sub(mark(op));
        if op >= self.answered {
            self.used[op - self.answered] = false;
            return;
        }
        self.left += 1;
        // The other way round, so that each finds its neighbours as it left them.
        for at in [2 * op + 2, 2 * op + 1] {
            let Event { before, after, .. } = self.events[at];
            self.events[before].after = at;
            self.events[after].before = at;
        }
    }
}

/// 128 bits for each operation, by the finalizer of splitmix64.
fn mark(op: usize) -> u128 {
    let mix = |z: u64| {
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let step = 0x9e37_79b9_7f4a_7c15_u64;
    let at = (2 * op as u64 + 1).wrapping_mul(step);
    u128::from(mix(at)) << 64 | u128::from(mix(at.wrapping_add(step)))
}

#[cfg(test)]
mod tests {
    use super::Verdict::Linearizable;
    use super::*;
    use crate::sim::linear::dice::Dice;

    const LOST: u64 = u64::MAX;

    fn op(call: u64, ret: u64, what: Kind) -> Op {
        Op { call, ret, what }
    }

    fn read(call: u64, ret: u64, value: impl Into<Option<i64>>) -> Op {
        op(call, ret, Kind::Read(value.into()))
    }

    fn write(call: u64, ret: u64, value: i64) -> Op {
        op(call, ret, Kind::Write(value))
    }

    fn cas(call: u64, ret: u64, expected: impl Into<Option<i64>>, new: i64, done: bool) -> Op {
        let expected = expected.into();
        let what = Kind::CompareAndSet {
            expected,
            new,
            done,
        };
        op(call, ret, what)
    }

    fn good(history: &[Op]) -> bool {
        let verdict = check(history, 1_000_000);
        assert!(
            !matches!(verdict, Verdict::GaveUp { .. }),
            "{verdict:?}: {history:?}"
        );
        verdict.is_linearizable()
    }

    #[test]
    fn what_contradicts_itself_is_found() {
        assert!(good(&[]));
        assert!(good(&[write(1, 2, 7), read(3, 4, 7)]));
        assert!(!good(&[write(1, 2, 7), read(3, 4, None)]), "a stale read");
        assert!(!good(&[read(1, 2, 7), write(3, 4, 7)]), "out of nothing");
        assert!(
            good(&[write(1, 4, 7), read(2, 3, None)]),
            "before the write"
        );
        assert!(
            !good(&[write(1, 8, 7), read(2, 3, 7), read(4, 5, None)]),
            "there and gone"
        );
        assert!(good(&[cas(1, 2, None, 5, true), cas(3, 4, 5, 6, true)]));
        assert!(
            !good(&[cas(1, 2, None, 5, true), cas(3, 4, None, 6, true)]),
            "both cannot have found nothing"
        );
        assert!(
            !good(&[write(1, 2, 5), cas(3, 4, 5, 6, false)]),
            "it had to do it"
        );
    }

    #[test]
    fn an_unknown_outcome_may_come_late_or_never() {
        let late = [write(1, LOST, 7), read(2, 3, None), read(4, 5, 7)];
        assert!(good(&late));
        assert!(good(&late[..2]), "never");
        assert!(!good(&[late[0], read(2, 3, 7), read(4, 5, None)]), "undone");
        assert!(
            !good(&[read(1, 2, 7), write(3, LOST, 7)]),
            "before its call"
        );
        let chain = [
            write(1, LOST, 7),
            cas(2, LOST, 7, 8, false),
            write(3, 4, 1),
            read(5, 6, 8),
        ];
        assert!(good(&chain), "two in a row, after the write");
        assert!(
            good(&[write(1, 2, 5), write(3, LOST, 6), cas(4, 5, 5, 9, false)]),
            "nobody reads it, but somebody failed because of it"
        );
    }

    #[test]
    fn a_violation_names_where_it_got_stuck() {
        let history = [write(1, 2, 7), read(3, 4, 7), read(5, 6, 8), read(7, 8, 7)];
        let expected = Verdict::Violation {
            explained: 2,
            stuck: vec![history[2]],
        };
        assert_eq!(check(&history, 100), expected);
    }

    /// 2,000 operations of eight clients, a tenth of them in doubt: more than any search without rule 2 gets through.
    #[test]
    fn a_long_honest_history_takes_hardly_more_steps_than_it_has_operations() {
        let mut dice = Dice(11);
        let (mut value, mut time) = (None, 32);
        let mut history = Vec::new();
        for new in 1..2_000_i64 {
            time += 8;
            // It takes effect at `time`; eight are under way at once.
            let (call, ret) = (time - dice.between(1, 28), time + dice.between(1, 28));
            let (call, ret) = (call * 4_000 + new as u64, ret * 4_000 + new as u64);
            let lost = dice.below(10) == 0;
            let happens = !lost || dice.below(2) == 0;
            let ret = if lost { LOST } else { ret };
            let what = match dice.below(3) {
                0 => Kind::Read(value),
                1 => Kind::Write(new),
                _ => {
                    let guess = (dice.below(2) == 0).then_some(new - 2);
                    let expected = if dice.below(2) == 0 { value } else { guess };
                    let done = expected == value;
                    Kind::CompareAndSet {
                        expected,
                        new,
                        done,
                    }
                }
            };
            match what {
                Kind::Write(new) if happens => value = Some(new),
                Kind::CompareAndSet {
                    new, done: true, ..
                } if happens => value = Some(new),
                _ => {}
            }
            history.push(op(call, ret, what));
        }
        assert_eq!(check(&history, 50_000), Linearizable);
        let at = history.len() / 2;
        history[at] = read(history[at].call, history[at].call + 1, -1);
        assert!(
            matches!(check(&history, 5_000_000), Verdict::Violation { .. }),
            "a value that nobody wrote, in the middle"
        );
    }

    #[test]
    fn it_gives_up_where_it_is_told_to() {
        let history = [write(1, 4, 1), write(2, 5, 2), read(6, 7, 3)];
        assert_eq!(check(&history, 1), Verdict::GaveUp { steps: 2 });
        assert!(!good(&history));
    }

    /// Tries every order, and for the unknown ones also that they never happened.
    fn slow(left: &mut Vec<Op>, value: Option<i64>) -> bool {
        let Some(end) = left.iter().map(|op| op.ret).min().filter(|&r| r < LOST) else {
            return true;
        };
        for at in 0..left.len() {
            let op = left[at];
            let after = match op.what {
                _ if op.call > end => None,
                Kind::Read(found) => (op.ret == LOST || found == value).then_some(value),
                Kind::Write(new) => Some(Some(new)),
                Kind::CompareAndSet {
                    expected,
                    new,
                    done,
                } => (op.ret == LOST || done == (expected == value))
                    .then_some(if expected == value { Some(new) } else { value }),
            };
            if let Some(after) = after {
                left.remove(at);
                let found = slow(left, after);
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
        let mut dice = Dice(5);
        let mut verdicts = [0, 0];
        for _ in 0..60_000 {
            let count = dice.between(1, 6);
            // Few values: the same one is written twice, and what is expected is often there.
            let values = dice.between(1, 4);
            let times = dice.shuffled(2 * count);
            let history: Vec<Op> = times
                .chunks(2)
                .map(|pair| {
                    let (call, ret) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
                    let ret = if dice.below(4) == 0 { LOST } else { ret };
                    let new = dice.below(values) as i64;
                    let old = Some(dice.below(values + 1) as i64).filter(|&v| v < values as i64);
                    match dice.below(4) {
                        0 => write(call, ret, new),
                        1 => cas(call, ret, old, new, dice.below(2) == 0),
                        _ => read(call, ret, old),
                    }
                })
                .collect();
            let slow = slow(&mut history.clone(), None);
            assert_eq!(good(&history), slow, "{history:?}");
            verdicts[usize::from(slow)] += 1;
        }
        assert!(verdicts.iter().all(|&count| count > 5000), "{verdicts:?}");
    }
}
