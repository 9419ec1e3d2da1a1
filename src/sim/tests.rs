//! The simulator itself: it repeats, sound seeds pass, and each check can fail.

use storage::Memory;

use super::*;
use crate::sim::invariants::bounds;
use crate::sim::invariants::leadership::{Copy, Office};
use crate::sim::invariants::logs::Model;
use crate::sim::node::SimNode;
use crate::sim::node::act::Act;
use crate::sim::world::restart::End;

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..8 {
        let (one, other) = (run(&Options::new(seed)), run(&Options::new(seed)));
        assert_eq!(one.trace_hash, other.trace_hash, "seed {seed}");
        assert_eq!(one.counts, other.counts, "seed {seed}");
        assert_eq!(one.steps, other.steps, "seed {seed}");
    }
    let hash = |seed| run(&Options::new(seed)).trace_hash;
    assert_ne!(hash(1), hash(2), "another seed is another run");
}

#[test]
fn a_trace_changes_nothing_and_is_deterministic_itself() {
    let mut lines = [Vec::new(), Vec::new()];
    for lines in &mut lines {
        let report = run_traced(&Options::new(5), &mut |line| lines.push(line.to_owned()));
        assert_eq!(report.trace_hash, run(&Options::new(5)).trace_hash);
        assert_eq!(lines[lines.len() - report.tail.len()..], report.tail);
    }
    assert!(lines[0].len() > 100);
    assert_eq!(lines[0], lines[1]);
}

#[test]
fn a_fixed_set_of_seeds_passes() {
    let mut counts = Counts::default();
    // The last two: many commands for a session with a window of one, while a node that was wiped is refused; and a node
    // that waits for all others to rejoin, one of which has no room to start, and a bad record besides.
    for seed in (0..60).chain([1_795_288_334_437, 1_795_291_065_813]) {
        let report = run(&Options::new(seed));
        assert_eq!(report.failure, None, "seed {seed}");
        counts.merge(&report.counts);
    }
    for met in [
        "history: counter",
        "history: compare-and-set, won",
        "history: compare-and-set, lost",
        "history: compare-and-set, unknown",
        "sessions: first answers given again",
        "sessions: evicted or closed, says a try",
        "mark: a first answer was known from a snapshot only",
    ] {
        assert!(counts.of(met) > 0, "{met}: never, in\n{counts}");
    }
}

#[test]
fn a_run_of_so_many_steps_has_no_more() {
    let options = Options {
        steps: Some(5_000),
        ..Options::new(4)
    };
    assert_eq!(run(&options).steps, 5_000);
}

/// A cluster that has a leader and some entries.
fn at_work() -> World<'static> {
    for seed in 0.. {
        let mut world = World::new(seed, None);
        world.run(2_000_000, u64::MAX).expect("a sound seed");
        let all_up = world.nodes.iter().all(|node| node.life.is_some());
        if world.nodes.len() == 3 && all_up && world.office.committed() > 5 {
            return world;
        }
    }
    unreachable!("there are many such seeds")
}

fn check_of<T>(outcome: Result<T, Broken>) -> &'static str {
    outcome.err().map_or("nothing", |broken| broken.check)
}

#[test]
fn a_second_leader_of_a_term_is_found() {
    let mut office = Office::default();
    assert_eq!(office.leads(0, 3), Ok(true));
    assert_eq!(office.leads(0, 3), Ok(false));
    assert_eq!(check_of(office.leads(1, 3)), "election safety");
}

#[test]
fn a_commit_needs_a_quorum_of_durable_logs_and_the_own_term() {
    let world = at_work();
    let model = &world.nodes[0].model;
    let (last, empty) = (model.last(), Model::default());
    let term = model.term(last).expect("it has entries");
    let commit = |leader_durable, follower_durable, term| {
        let log = |model, durable| Copy {
            model,
            durable,
            had: None,
        };
        let logs = [
            log(model, leader_durable),
            log(model, follower_durable),
            log(&empty, 0),
        ];
        check_of(Office::default().commits(0, term, last, &logs))
    };
    assert_eq!(commit(last, last, term), "nothing");
    assert_eq!(commit(last, last - 1, term), "committed on a quorum");
    assert_eq!(commit(last - 1, last, term), "committed on a quorum");
    assert_eq!(commit(last, last, term + 1), "committed on a quorum");
}

#[test]
fn a_leader_without_what_is_committed_is_found_and_so_is_who_cuts_it() {
    let world = at_work();
    let committed = world.office.committed();
    let office = (100, committed + 1);
    let complete = |log| check_of(world.office.complete(0, office, committed, log));
    let has_it = |node: &&SimNode| node.model.last() >= committed;
    let whole = world.nodes.iter().find(has_it).expect("it is committed");
    assert_eq!(complete(&whole.model), "nothing");
    assert_eq!(complete(&Model::default()), "leader completeness");
    let term = whole.model.term(1).expect("it has entries");
    assert_eq!(check_of(world.office.cuts(0, (1, term + 1))), "nothing");
    assert_eq!(
        check_of(world.office.cuts(0, (1, term))),
        "committed entries stay"
    );
    assert_eq!(
        check_of(world.office.follows(0, committed + 1)),
        "commit of a follower"
    );
}

#[test]
fn positions_that_go_back_and_tables_that_overflow_are_found() {
    let mut world = at_work();
    let config = world.nodes[0].config.clone();
    let life = world.nodes[0].life.as_mut().expect("it runs");
    assert_eq!(check_of(bounds::memory(1, life, &config)), "nothing");
    let pending = life.node.propose(b"one more").expect("there is room");
    let small = crate::Config {
        max_pending: 0,
        ..config
    };
    assert_eq!(check_of(bounds::memory(1, life, &small)), "bounded memory");
    drop(pending);
    life.committed = u64::MAX;
    assert_eq!(
        check_of(bounds::positions(1, life, Act::Apply)),
        "positions in order"
    );
}

#[test]
fn what_was_durable_and_is_gone_is_found() {
    let mut world = at_work();
    world.end(0, End::Killed).expect("it was alive");
    world.nodes[0].disk = Memory::new(1);
    let later = world.now_us + 60_000_000;
    assert!(check_of(world.run(later, u64::MAX)).starts_with("durable"));
}

#[test]
fn a_majority_that_was_wiped_elects_nobody_since_the_rest_refuses_it() {
    let mut seeds = 0;
    for seed in 0.. {
        if seeds == 12 {
            break;
        }
        let mut world = World::new(seed, None);
        world.run(2_000_000, u64::MAX).expect("a sound seed");
        let all_up = world.nodes.iter().all(|node| node.life.is_some());
        let known = (0..2).all(|at| world.is_known_to_all(at));
        if world.nodes.len() != 3 || !all_up || !known || world.office.committed() < 5 {
            continue;
        }
        seeds += 1;
        world.put_right().expect("nothing fails");
        for at in 0..2 {
            world.wipe(at, false).expect("it was alive");
        }
        world.end(2, End::Killed).expect("it was alive");
        (0..3).for_each(|at| world.nodes[at].start_us = world.now_us + 1);
        let later = world.now_us + 100_000_000;
        let outcome = world.run(later, u64::MAX);
        assert_eq!(check_of(outcome), "nothing", "seed {seed}");
        for (at, node) in world.nodes.iter().enumerate() {
            let status = node.life.as_ref().expect("it runs").node.status();
            assert_eq!(status.leader, None, "seed {seed}: {status}");
            let excluded = status.excluded.is_some();
            assert_eq!(excluded, at < 2, "seed {seed}: {status}");
        }
    }
}

#[test]
fn a_cluster_without_a_quorum_does_not_pass_for_alive() {
    let mut world = at_work();
    for at in 0..2 {
        world.end(at, End::Killed).expect("it was alive");
        world.nodes[at].retired = true;
    }
    assert_eq!(check_of(world.must_live(0)), "liveness");
}

#[test]
fn an_untrue_answer_and_a_second_one_are_found() {
    let mut world = at_work();
    let life = world.nodes[0].life.as_ref().expect("it runs");
    let (op, refused) = world.clients.ask_plainly(0, life);
    assert_eq!(refused, None);
    let untrue = crate::Reply {
        index: u64::MAX,
        bytes: 7_u64.to_le_bytes().to_vec(),
    };
    assert_eq!(
        check_of(world.clients.answered(op, Ok(untrue.clone()))),
        "answers are true"
    );
    assert_eq!(
        check_of(world.clients.answered(op, Ok(untrue))),
        "one answer each"
    );
}

#[test]
fn a_refused_operation_that_is_applied_is_found() {
    let mut world = at_work();
    let last = world.ledger.book().last();
    let applied = (1..=last).find_map(|index| {
        let entry = *world.ledger.book().entry(index)?;
        entry.did.filter(|&op| op == entry.op)
    });
    let op = applied.expect("something was applied");
    world.ledger.book().refuse(op, "for this test");
    assert_eq!(check_of(world.look_at_ledger()), "state machines agree");
}
