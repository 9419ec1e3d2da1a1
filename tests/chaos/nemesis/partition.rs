//! Packets that do not arrive: between whom, in which direction, always or now and then.

use super::{Nemesis, victim};
use crate::dice::Dice;
use crate::disks::Ground;
use crate::network::{self, Fault, between};
use crate::trouble::{Fallible, pass};
use crate::world::{Shape, World};

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    let kinds = [
        Kind::Halves,
        Kind::Ring,
        Kind::Bridge,
        Kind::OneWay,
        Kind::Loss,
        Kind::Reset,
    ];
    kinds
        .into_iter()
        .map(|kind| Box::new(Partition(kind)) as Box<dyn Nemesis>)
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Halves,
    Ring,
    Bridge,
    OneWay,
    Loss,
    Reset,
}

struct Partition(Kind);

impl Nemesis for Partition {
    fn name(&self) -> &'static str {
        match self.0 {
            Kind::Halves => "halves",
            Kind::Ring => "ring",
            Kind::Bridge => "bridge",
            Kind::OneWay => "one-way",
            Kind::Loss => "loss",
            Kind::Reset => "reset",
        }
    }

    fn about(&self) -> &'static str {
        match self.0 {
            Kind::Halves => "a minority, often with the leader in it, hears nothing of the rest",
            Kind::Ring => "five nodes, each of which sees another majority",
            Kind::Bridge => "two nodes see each other only through the third",
            Kind::OneWay => "packets arrive in one direction, between two nodes or around the ring",
            Kind::Loss => "a part of the packets is lost, on all links or some",
            Kind::Reset => "connections between nodes are reset, again and again",
        }
    }

    fn lacks(&self) -> Option<String> {
        network::lacks()
    }

    fn shape(&self) -> Shape {
        let nodes = if self.0 == Kind::Ring { 5 } else { 3 };
        Shape {
            nodes,
            ground: Ground::Plain,
        }
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let mut ids = world.cluster().ids();
        let one = victim(world, dice);
        let others: Vec<usize> = ids.iter().copied().filter(|&id| id != one).collect();
        dice.shuffle(&mut ids);
        let span = dice.millis(300, 2000);
        match self.0 {
            Kind::Halves => world.network.set(between(&[one], &others, Fault::Cut))?,
            Kind::Ring => {
                // Each sees its two neighbours: with itself a majority of five.
                let apart = (0..ids.len()).flat_map(|at| {
                    let across = ids[(at + 2) % ids.len()];
                    between(&[ids[at]], &[across], Fault::Cut)
                });
                world.network.set(apart.collect::<Vec<_>>())?;
            }
            Kind::Bridge => {
                // `one`, often the leader, loses one of the two.
                let other = others[dice.below(others.len())];
                world.network.set(between(&[one], &[other], Fault::Cut))?;
            }
            Kind::OneWay => {
                let links = match dice.below(4) {
                    0 => (0..3).map(|at| (ids[at], ids[(at + 1) % 3])).collect(),
                    1 => others.iter().map(|&other| (one, other)).collect(),
                    2 => others.iter().map(|&other| (other, one)).collect(),
                    _ => vec![(one, others[dice.below(others.len())])],
                };
                let links: Vec<(usize, usize)> = links;
                world
                    .network
                    .set(links.into_iter().map(|link| (link, Fault::Cut)))?;
            }
            Kind::Loss => {
                let percent = [2, 5, 10, 25, 50][dice.below(5)];
                let fault = Fault::Lose(percent);
                let some = if dice.flip() { ids.clone() } else { vec![one] };
                world.network.set(between(&some, &ids, fault))?;
            }
            Kind::Reset => {
                for _ in 0..1 + dice.below(5) {
                    let some = if dice.flip() { ids.clone() } else { vec![one] };
                    world.network.set(between(&some, &ids, Fault::Reset))?;
                    pass(dice.millis(5, 250))?;
                    world.network.heal()?;
                    pass(dice.millis(5, 250))?;
                }
                return Ok(());
            }
        }
        pass(span)
    }
}
