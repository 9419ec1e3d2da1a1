//! Lines between nodes that are late, slow, in crumbs, or half closed.

use super::{Nemesis, victim};
use crate::cluster::PATIENCE;
use crate::dice::Dice;
use crate::network::{self, Fault, between};
use crate::proxy::{Lines, Manner, port};
use crate::trouble::{Fallible, Trouble, look, pass};
use crate::world::World;

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    let kinds = [
        Kind::Delay,
        Kind::Throttle,
        Kind::Crumbs,
        Kind::HalfClose,
        Kind::Late,
    ];
    let nemesis = |kind| Box::new(Line(kind)) as Box<dyn Nemesis>;
    kinds.into_iter().map(nemesis).collect()
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Delay,
    Throttle,
    Crumbs,
    HalfClose,
    Late,
}

struct Line(Kind);

impl Line {
    fn manner(&self, dice: &mut Dice) -> Manner {
        let none = Manner::default();
        match self.0 {
            Kind::Delay => Manner {
                delay_ms: [5, 20, 60, 200][dice.below(4)],
                ..none
            },
            Kind::Throttle => Manner {
                bytes_per_second: Some([5_000, 20_000, 100_000][dice.below(3)]),
                ..none
            },
            Kind::Crumbs => Manner {
                crumb: Some(1 + dice.below(3)),
                ..none
            },
            Kind::HalfClose => Manner {
                half_close_ms: Some(100 + dice.below(600) as u64),
                ..none
            },
            Kind::Late => Manner {
                delay_ms: 150 + dice.below(400) as u64,
                hang_up_ms: Some(200 + dice.below(500) as u64),
                ..none
            },
        }
    }
}

impl Nemesis for Line {
    fn name(&self) -> &'static str {
        match self.0 {
            Kind::Delay => "delay",
            Kind::Throttle => "throttle",
            Kind::Crumbs => "crumbs",
            Kind::HalfClose => "half-close",
            Kind::Late => "late",
        }
    }

    fn about(&self) -> &'static str {
        match self.0 {
            Kind::Delay => {
                "what nodes say to each other comes later, each direction and connection by its own time"
            }
            Kind::Throttle => "5 to 100 kB a second between nodes",
            Kind::Crumbs => "one to three bytes at a time between nodes",
            Kind::HalfClose => "one direction of a connection ends, the other goes on",
            Kind::Late => {
                "a connection is cut, and what was under way on it arrives after the next one is up"
            }
        }
    }

    fn lacks(&self) -> Option<String> {
        network::lacks()
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let ids = world.cluster().ids();
        let one = victim(world, dice);
        let every = dice.flip();
        let links: Vec<(usize, usize)> = ids
            .iter()
            .flat_map(|&from| ids.iter().map(move |&to| (from, to)))
            .filter(|&(from, to)| from != to && (every || from == one || to == one))
            .collect();
        let lines = Lines::open(&links, self.manner(dice), dice.next())?;
        let detour = |&(from, to): &(usize, usize)| ((from, to), Fault::Detour(port(from, to)));
        // The connections that are there have to end first: a heartbeat meets the reset.
        world.network.set(between(&ids, &ids, Fault::Reset))?;
        pass(dice.millis(120, 200))?;
        world.network.set(links.iter().map(detour))?;
        let taken = look(PATIENCE, || Ok((lines.carried() > 0).then_some(())))?;
        taken.ok_or_else(|| Trouble::Broken("nobody takes the detour".to_owned()))?;
        pass(dice.millis(700, 2500))?;
        world.network.heal()?;
        drop(lines);
        Ok(())
    }
}
