//! What is done to the cluster.
//!
//! A nemesis strikes once at a time. It may leave troubles behind that [`World::mend`] knows to end: faults between
//! hosts, nodes that are stopped, nodes that it killed. All else it puts right itself.

mod clock;
mod disk;
mod line;
mod partition;
mod power;
mod process;
mod rot;
mod stranger;

use crate::dice::Dice;
use crate::disks::Ground;
use crate::trouble::Fallible;
use crate::world::{Shape, World};

pub(crate) trait Nemesis {
    fn name(&self) -> &'static str;

    /// What it does, in a line.
    fn about(&self) -> &'static str;

    /// What it needs and this machine has not.
    fn lacks(&self) -> Option<String> {
        None
    }

    fn shape(&self) -> Shape {
        Shape {
            nodes: 3,
            ground: Ground::Plain,
        }
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()>;
}

/// In the order in which they have their turns.
fn all() -> Vec<Box<dyn Nemesis>> {
    let groups = [
        process::all(),
        partition::all(),
        line::all(),
        clock::all(),
        stranger::all(),
        disk::all(),
        power::all(),
        rot::all(),
    ];
    groups.into_iter().flatten().collect()
}

/// Those with these names, in the order of the table; the name that there is none of.
pub(crate) fn choose(names: &[String]) -> Result<Vec<Box<dyn Nemesis>>, String> {
    let known = all();
    let is = |name: &str| name == "all" || known.iter().any(|nemesis| nemesis.name() == name);
    if let Some(unknown) = names.iter().find(|name| !is(name)) {
        return Err(unknown.clone());
    }
    let wanted = |name: &str| names.iter().any(|wanted| wanted == "all" || wanted == name);
    Ok(known
        .into_iter()
        .filter(|nemesis| wanted(nemesis.name()))
        .collect())
}

/// One node: the leader, half of the time.
fn victim(world: &mut World, dice: &mut Dice) -> usize {
    let cluster = world.cluster();
    let ids = cluster.ids();
    match cluster.leader() {
        Some(leader) if dice.flip() => leader,
        _ => ids[dice.below(ids.len())],
    }
}

/// Some nodes: often one, sometimes more, now and then all.
fn victims(world: &mut World, dice: &mut Dice) -> Vec<usize> {
    let mut ids = world.cluster().ids();
    match dice.below(4) {
        0 => {
            dice.shuffle(&mut ids);
            ids.truncate(2);
            ids
        }
        1 => ids,
        _ => vec![victim(world, dice)],
    }
}
