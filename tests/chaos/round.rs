//! One round: clients, a nemesis, the end of all troubles, the last reads, the verdict.

use std::fmt;
use std::time::{Duration, Instant};

use crate::dice::Dice;
use crate::history::{self, Record};
use crate::load::{self, Load, Seen, TOTAL};
use crate::nemesis::Nemesis;
use crate::trouble::{Fallible, Trouble, pass};
use crate::world::World;

/// What the rounds of one nemesis came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) rounds: u64,
    pub(crate) strikes: u64,
    known: u64,
    unknown: u64,
    refused: u64,
    leader_changes: u64,
    longest_gap: Duration,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rounds,
            strikes,
            known,
            unknown,
            refused,
            leader_changes,
            longest_gap,
        } = self;
        write!(
            f,
            "{rounds:>6} {strikes:>7} {known:>7} {unknown:>7} {refused:>7} {leader_changes:>7} {:>7.2} s",
            longest_gap.as_secs_f64()
        )
    }
}

/// The names of what a [`Tally`] prints.
pub(crate) const HEAD: &str = "rounds strikes      ok unknown refused leaders   no write";

/// A round that found something: what, and where its history is.
#[derive(Debug)]
pub(crate) enum Outcome {
    Linearizable,
    Failed(String),
}

/// Strikes again and again for `span`, at least once.
pub(crate) fn run(
    world: &mut World,
    nemesis: &mut dyn Nemesis,
    seed: u64,
    number: u64,
    span: Duration,
    tally: &mut Tally,
) -> Fallible<Outcome> {
    let shape = nemesis.shape();
    let end = Instant::now() + span;
    if let Err(trouble) = world.take_shape(shape) {
        return failed(world, nemesis, &[], trouble);
    }
    let mut dice = Dice::new(seed, nemesis.name(), number);
    let round = world.next_round();
    let begin = Instant::now();
    let load = Load::start(world.clients, shape.nodes, round, dice.next());
    let struck = strikes(world, nemesis, &mut dice, end, tally);
    let struck = struck.and_then(|()| world.mend());
    // A moment of peace: what the round broke for good would show now.
    let struck = struck.and_then(|()| pass(Duration::from_millis(100)));
    let struck = struck.and_then(|()| world.cluster().look_after());
    let Seen {
        mut records,
        refused,
        strange,
        leaders,
    } = load.finish();
    let known = records.iter().filter(|record| record.is_known()).count() as u64;
    tally.rounds += 1;
    tally.known += known;
    tally.unknown += records.len() as u64 - known;
    tally.refused += refused;
    tally.leader_changes += (leaders.len() as u64).saturating_sub(1);
    let gap = history::longest_gap(&records, begin, Instant::now());
    tally.longest_gap = tally.longest_gap.max(gap);
    if let Err(trouble) = struck {
        return failed(world, nemesis, &records, trouble);
    }
    match load::last_reads(shape.nodes, round) {
        Ok(last) => records.extend(last),
        Err(what) => return failed(world, nemesis, &records, Trouble::Found(what)),
    }
    let mut all = records;
    world
        .total
        .extend(all.extract_if(.., |record| record.key == TOTAL));
    all.extend(world.total.iter().cloned());
    let twice = leaders.windows(2).find(|two| two[0].0 == two[1].0);
    let verdict = match (strange.first(), twice) {
        (Some(strange), _) => Err(strange.clone()),
        (_, Some(two)) => Err(format!("two leaders of one term: {two:?}")),
        _ => history::check(&all),
    };
    match verdict {
        Ok(()) => Ok(Outcome::Linearizable),
        Err(why) => failed(
            world,
            nemesis,
            &all,
            Trouble::Found(format!("NOT LINEARIZABLE: {why}")),
        ),
    }
}

fn strikes(
    world: &mut World,
    nemesis: &mut dyn Nemesis,
    dice: &mut Dice,
    end: Instant,
    tally: &mut Tally,
) -> Fallible<()> {
    // Something to lose, first.
    pass(dice.millis(150, 500))?;
    loop {
        nemesis.strike(world, dice)?;
        tally.strikes += 1;
        if Instant::now() >= end {
            return Ok(());
        }
        world.mend()?;
        pass(dice.millis(50, 400))?;
    }
}

/// Keeps what is there to be looked at; only an interruption goes through.
fn failed(
    world: &mut World,
    nemesis: &dyn Nemesis,
    records: &[Record],
    trouble: Trouble,
) -> Fallible<Outcome> {
    if let Trouble::Interrupted = trouble {
        return Err(trouble);
    }
    let place = world.keep(nemesis.name(), &history::render(records))?;
    world.give_up_cluster()?;
    let broken = if let Trouble::Broken(_) = trouble {
        "BROKEN: "
    } else {
        ""
    };
    Ok(Outcome::Failed(format!(
        "{broken}{trouble}\n  history and logs: {}",
        place.display()
    )))
}
