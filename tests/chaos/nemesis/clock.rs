//! Clocks that tell another time than they did, or than others do.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Nemesis, victim};
use crate::cluster::{PATIENCE, face};
use crate::dice::Dice;
use crate::disks::text;
use crate::network::{self, Fault, between};
use crate::tools::{lacking, run_with};
use crate::trouble::{Fallible, look, pass};
use crate::world::World;

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    vec![Box::new(Monotonic), Box::new(Wall), Box::new(SlowClock)]
}

/// The clock that timeouts are measured by; it jumps only between two lives of a process.
struct Monotonic;

impl Nemesis for Monotonic {
    fn name(&self) -> &'static str {
        "clock"
    }

    fn about(&self) -> &'static str {
        "a node starts again by a monotonic clock that is years ahead, or hours behind what it was"
    }

    fn lacks(&self) -> Option<String> {
        let mut try_it = Command::new("unshare");
        try_it.args([
            "--time",
            "--monotonic",
            "1000",
            "cat",
            "/proc/self/timens_offsets",
        ]);
        match run_with(try_it, "") {
            Ok(offsets) if offsets.contains("1000") => None,
            Ok(_) => Some("a process does not enter a time namespace by itself here".to_owned()),
            Err(trouble) => Some(trouble.to_string()),
        }
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let id = victim(world, dice);
        let ahead = [60, 3_600, 86_400, 100_000_000][dice.below(4)];
        let offset = (dice.below(ahead) + 1).to_string();
        let cluster = world.cluster();
        cluster.kill(id)?;
        let wrap = [
            "unshare",
            "--time",
            "--monotonic",
            &offset,
            "--boottime",
            &offset,
        ];
        cluster.set_wrap(id, &wrap);
        cluster.start_one(id)?;
        cluster.set_wrap(id, &[]);
        pass(dice.millis(100, 800))
    }
}

/// The clock that entries are stamped by; it jumps while the process runs.
struct Wall;

/// Debian's place for it, on whatever machine.
fn library() -> Option<PathBuf> {
    let dirs = std::fs::read_dir("/usr/lib").ok()?;
    let file = |dir: std::fs::DirEntry| dir.path().join("faketime/libfaketimeMT.so.1");
    dirs.flatten().map(file).find(|path| path.exists())
}

fn no_library() -> Option<String> {
    let missing = || "libfaketime is not installed".to_owned();
    lacking(&["env"]).or_else(|| library().is_none().then(missing))
}

/// Writes the time that is to be told, so that no reader finds half of it.
fn tell(path: &Path, time: &str) -> Fallible<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, time)?;
    Ok(std::fs::rename(&new, path)?)
}

impl Nemesis for Wall {
    fn name(&self) -> &'static str {
        "wall-clock"
    }

    fn about(&self) -> &'static str {
        "the time of day jumps by seconds or years, forth and back, in a running node"
    }

    fn lacks(&self) -> Option<String> {
        no_library()
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let id = victim(world, dice);
        let times = world.place().join(format!("time-{id}"));
        tell(&times, "+0")?;
        let Some(library) = library() else {
            return Ok(());
        };
        let cluster = world.cluster();
        cluster.kill(id)?;
        let wrap = [
            "env",
            &format!("LD_PRELOAD={}", text(&library)),
            &format!("FAKETIME_TIMESTAMP_FILE={}", text(&times)),
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "DONT_FAKE_MONOTONIC=1",
        ];
        cluster.set_wrap(id, &wrap);
        cluster.start_one(id)?;
        cluster.set_wrap(id, &[]);
        for _ in 0..2 + dice.below(6) {
            pass(dice.millis(50, 300))?;
            let far = [2, 60, 86_400, 300_000_000][dice.below(4)];
            let sign = if dice.flip() { '+' } else { '-' };
            tell(&times, &format!("{sign}{}", dice.below(far)))?;
        }
        pass(dice.millis(50, 300))
    }
}

/// A leader whose clock goes slowly believes long after the others have another that it still leads. What it may answer
/// then must not depend on clocks: a read that it does not confirm by a round would be stale.
struct SlowClock;

impl Nemesis for SlowClock {
    fn name(&self) -> &'static str {
        "slow-clock"
    }

    fn about(&self) -> &'static str {
        "a leader whose clocks go at a tenth to a third of their speed is cut off"
    }

    fn lacks(&self) -> Option<String> {
        no_library().or_else(network::lacks)
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let Some(library) = library() else {
            return Ok(());
        };
        let ids = world.cluster().ids();
        let slow = ids[dice.below(ids.len())];
        let rate = ["0.1", "0.2", "0.3"][dice.below(3)];
        let wrap = [
            "env",
            &format!("LD_PRELOAD={}", text(&library)),
            &format!("FAKETIME=+0 x{rate}"),
        ];
        let cluster = world.cluster();
        cluster.kill(slow)?;
        cluster.set_wrap(slow, &wrap);
        cluster.start_one(slow)?;
        cluster.set_wrap(slow, &[]);
        cluster.until_ready()?;
        if make_leader(world, slow, dice)? {
            let others: Vec<usize> = ids.iter().copied().filter(|&id| id != slow).collect();
            world.network.set(between(&[slow], &others, Fault::Cut))?;
            pass(dice.millis(1000, 2500))?;
            world.network.heal()?;
        }
        world.cluster().kill(slow)?;
        world.cluster().start_one(slow)
    }
}

/// It would stand for election last of all. So one of the others is made to miss what the other two write, and then the
/// leader goes: the slow one's log is the longest. False when it came otherwise.
fn make_leader(world: &mut World, slow: usize, dice: &mut Dice) -> Fallible<bool> {
    let ids = world.cluster().ids();
    let leader = look(PATIENCE, || Ok(world.cluster().leader()))?;
    let Some(leader) = leader.filter(|&leader| leader != slow) else {
        return Ok(leader == Some(slow));
    };
    let third: Vec<usize> = ids
        .iter()
        .copied()
        .filter(|&id| id != slow && id != leader)
        .collect();
    world.network.set(between(&third, &ids, Fault::Cut))?;
    pass(dice.millis(200, 400))?;
    world.cluster().kill(leader)?;
    world.network.heal()?;
    let next = look(PATIENCE, || Ok(world.cluster().leader()))?;
    world.cluster().start_one(leader)?;
    // It has to hear of the new office before that is cut off.
    let term = face(slow).map_or(0, |face| face.term);
    let heard = || Ok(face(leader).filter(|face| face.term >= term).map(drop));
    look(PATIENCE, heard)?;
    pass(dice.millis(100, 300))?;
    Ok(next == Some(slow))
}
