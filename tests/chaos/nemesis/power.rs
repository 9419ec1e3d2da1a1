//! Power cuts: a node goes on from what had reached its disk at one instant, and nothing else.
//!
//! `kill -9` loses nothing that was written, flushed or not. Here the image under the file system is copied in an instant
//! (XFS shares the blocks), the process is killed, and the copy is what it finds when it comes back. A node must not
//! be heard after the instant of its copy: it is stopped before, or cut off from everyone.

use std::path::PathBuf;

use super::{Nemesis, victim};
use crate::dice::Dice;
use crate::disks::Ground;
use crate::trouble::{Fallible, pass};
use crate::world::{Shape, World};

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    vec![Box::new(PowerCut)]
}

struct PowerCut;

impl Nemesis for PowerCut {
    fn name(&self) -> &'static str {
        "power-cut"
    }

    fn about(&self) -> &'static str {
        "all at once, one after the other, or one alone: only what was on disk at that instant is left"
    }

    fn lacks(&self) -> Option<String> {
        Ground::Reflink.lacks()
    }

    fn shape(&self) -> Shape {
        Shape {
            nodes: 3,
            ground: Ground::Reflink,
        }
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let mut ids = world.cluster().ids();
        dice.shuffle(&mut ids);
        let mut copies: Vec<(usize, PathBuf)> = Vec::new();
        match dice.below(3) {
            // The whole room at once.
            0 => {
                for &id in &ids {
                    world.cluster().stop(id)?;
                }
                for &id in &ids {
                    copies.push((id, world.disks.freeze(id)?));
                }
            }
            // One after the other; those that are left go on as long as they can.
            1 => {
                for &id in &ids {
                    world.cluster().stop(id)?;
                    copies.push((id, world.disks.freeze(id)?));
                    world.cluster().kill(id)?;
                    pass(dice.millis(0, 400))?;
                }
            }
            _ => {
                let id = victim(world, dice);
                world.cluster().stop(id)?;
                copies.push((id, world.disks.freeze(id)?));
            }
        }
        for (id, _) in &copies {
            world.cluster().kill(*id)?;
        }
        for (id, copy) in &copies {
            world.disks.disk(*id).become_copy(copy)?;
        }
        for (id, _) in copies {
            world.cluster().start_one(id)?;
        }
        pass(dice.millis(0, 300))
    }
}
