//! Who decides: majorities, and pairs of them while the membership changes.
//!
//! Raft §6: while two memberships are in force, every decision needs a majority of each.

/// How a vote stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tally {
    Won,
    Lost,
    Open,
}

/// The voters and learners of a group. While `outgoing` is not empty, both sets of voters must
/// agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) voters: Vec<u64>,
    pub(crate) outgoing: Vec<u64>,
    pub(crate) learners: Vec<u64>,
}

fn majority(voters: &[u64]) -> usize {
    voters.len() / 2 + 1
}

/// The highest value that a majority has reached. No voters hold nothing back.
fn reached_by_majority(voters: &[u64], reached: &impl Fn(u64) -> u64) -> u64 {
    if voters.is_empty() {
        return u64::MAX;
    }
    let need = majority(voters);
    // Groups are small: comparing each with each needs no memory, and no order that could be
    // broken.
    voters
        .iter()
        .map(|&id| reached(id))
        .filter(|&value| voters.iter().filter(|&&id| reached(id) >= value).count() >= need)
        .max()
        .unwrap_or(0)
}

fn tally(voters: &[u64], vote: &impl Fn(u64) -> Option<bool>) -> Tally {
    let count = |what| voters.iter().filter(|&&id| vote(id) == Some(what)).count();
    if voters.is_empty() || count(true) >= majority(voters) {
        Tally::Won
    } else if voters.len() - count(false) < majority(voters) {
        Tally::Lost
    } else {
        Tally::Open
    }
}

impl Membership {
    pub(crate) fn of_voters(voters: Vec<u64>) -> Self {
        Self {
            voters,
            ..Self::default()
        }
    }

    /// The highest value reached by a majority of each set of voters.
    pub(crate) fn reached(&self, reached: impl Fn(u64) -> u64) -> u64 {
        reached_by_majority(&self.voters, &reached)
            .min(reached_by_majority(&self.outgoing, &reached))
    }

    pub(crate) fn tally(&self, vote: impl Fn(u64) -> Option<bool>) -> Tally {
        match (tally(&self.voters, &vote), tally(&self.outgoing, &vote)) {
            (Tally::Won, Tally::Won) => Tally::Won,
            (Tally::Lost, _) | (_, Tally::Lost) => Tally::Lost,
            _ => Tally::Open,
        }
    }

    pub(crate) fn is_voter(&self, id: u64) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Everybody who gets the log.
    pub(crate) fn everyone(&self) -> impl Iterator<Item = u64> {
        let later = self.outgoing.iter().filter(|id| !self.voters.contains(id));
        let learners = self.learners.iter().filter(|id| !self.is_voter(**id));
        self.voters.iter().chain(later).chain(learners).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::rng::Rng;

    #[test]
    fn the_commit_rule_is_that_of_a_sorted_list() {
        let mut rng = Rng::new(3);
        for _ in 0..5000 {
            let size = 1 + rng.below(8);
            let voters: Vec<u64> = (1..=size).collect();
            let values: Vec<u64> = (0..size).map(|_| rng.below(6)).collect();
            let mut sorted = values.clone();
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            let slow = sorted[voters.len() / 2];
            let fast = Membership::of_voters(voters).reached(|id| values[id as usize - 1]);
            assert_eq!(fast, slow, "{values:?}");
        }
    }

    #[test]
    fn a_joint_membership_needs_both_majorities() {
        let joint = Membership {
            voters: vec![1, 2, 3],
            outgoing: vec![3, 4, 5],
            learners: vec![6],
        };
        let reached = |ids: &'static [u64]| joint.reached(move |id| u64::from(ids.contains(&id)));
        assert_eq!(reached(&[1, 2]), 0, "no majority of the outgoing ones");
        assert_eq!(reached(&[4, 5]), 0, "no majority of the incoming ones");
        assert_eq!(reached(&[1, 3, 4]), 1);
        assert_eq!(reached(&[1, 2, 6]), 0, "a learner counts in none");
        assert_eq!(joint.tally(|id| (id <= 2).then_some(true)), Tally::Open);
        assert_eq!(joint.tally(|id| (id >= 4).then_some(false)), Tally::Lost);
        assert_eq!(joint.everyone().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn half_of_an_even_group_decides_nothing() {
        let four = Membership::of_voters(vec![1, 2, 3, 4]);
        assert_eq!(four.tally(|id| (id <= 2).then_some(true)), Tally::Open);
        assert_eq!(
            four.tally(|id| (id <= 2).then_some(false)),
            Tally::Lost,
            "three can no longer be won"
        );
        assert_eq!(four.tally(|id| (id <= 3).then_some(true)), Tally::Won);
    }
}
