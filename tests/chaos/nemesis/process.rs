//! Processes that die, and processes that get no time.

use super::{Nemesis, victims};
use crate::dice::Dice;
use crate::trouble::{Fallible, pass};
use crate::world::World;

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    vec![Box::new(Kill), Box::new(Pause)]
}

struct Kill;

impl Nemesis for Kill {
    fn name(&self) -> &'static str {
        "kill"
    }

    fn about(&self) -> &'static str {
        "kill -9 of one node, two or all, and a start from what they left"
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let victims = victims(world, dice);
        for &id in &victims {
            world.cluster().kill(id)?;
            pass(dice.millis(0, 30))?;
        }
        pass(dice.millis(0, 700))?;
        for &id in &victims {
            world.cluster().start_one(id)?;
        }
        // The next strike may come while they still read their logs.
        pass(dice.millis(0, 500))
    }
}

/// What wakes up believes that no time has passed, and may believe that it leads.
struct Pause;

impl Nemesis for Pause {
    fn name(&self) -> &'static str {
        "pause"
    }

    fn about(&self) -> &'static str {
        "SIGSTOP of one node, two or all, for less and more than an election takes; SIGCONT"
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let mut victims = victims(world, dice);
        for &id in &victims {
            world.cluster().stop(id)?;
            pass(dice.millis(0, 20))?;
        }
        pass(dice.millis(50, 1500))?;
        dice.shuffle(&mut victims);
        for &id in &victims {
            world.cluster().go_on(id)?;
            pass(dice.millis(0, 100))?;
        }
        Ok(())
    }
}
