//! Disks that are full, that fail, that are slow. A node whose disk fails it makes no more promises, says why and ends;
//! its directory is good for the next start.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::{Nemesis, victim};
use crate::cluster::{PATIENCE, client_addr, section};
use crate::dice::Dice;
use crate::disks::{Ground, text};
use crate::faulty::Failing;
use crate::resp::Connection;
use crate::tools::run;
use crate::trouble::{Fallible, Trouble, look, pass};
use crate::world::{Shape, World};

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    vec![
        Box::new(Full),
        Box::new(FullForSnapshot),
        Box::new(Failure {
            name: "write-error",
            failing: Failing::Write,
        }),
        Box::new(Failure {
            name: "flush-error",
            failing: Failing::Flush,
        }),
        Box::new(Failure {
            name: "dead-disk",
            failing: Failing::AllWrites,
        }),
        Box::new(Slow::default()),
    ]
}

/// A node whose disk failed it ends in order: not by a signal, and with the reason.
fn has_given_up(
    world: &mut World,
    id: usize,
    status: ExitStatus,
    because: &[&str],
) -> Fallible<()> {
    let log = world.cluster().last_words(id);
    let says_why =
        |line: &str| line.contains("storage") && because.iter().any(|word| line.contains(word));
    if status.code() == Some(1) && log.lines().any(says_why) {
        return Ok(());
    }
    let last = log.lines().last().unwrap_or("nothing");
    Err(Trouble::Found(format!(
        "node {id}, whose disk failed it, ended with {status} and said: {last}"
    )))
}

struct Full;

impl Nemesis for Full {
    fn name(&self) -> &'static str {
        "disk-full"
    }

    fn about(&self) -> &'static str {
        "no room for the next segment on one disk or all: the node says so and ends; with room it starts again"
    }

    fn lacks(&self) -> Option<String> {
        Ground::Ext4.lacks()
    }

    fn shape(&self) -> Shape {
        Shape {
            nodes: 3,
            ground: Ground::Ext4,
        }
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let victims = if dice.below(3) == 0 {
            world.cluster().ids()
        } else {
            vec![victim(world, dice)]
        };
        let filled = fill_segments(world, &victims);
        for &id in &victims {
            std::fs::remove_file(ballast(world, id))?;
        }
        filled?;
        for &id in &victims {
            world.cluster().start_one(id)?;
        }
        Ok(())
    }
}

fn ballast(world: &mut World, id: usize) -> PathBuf {
    world.disks.disk(id).at().join("ballast")
}

/// Leaves no room on a node's file system.
fn fill(world: &mut World, id: usize) -> Fallible<()> {
    let path = ballast(world, id);
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let mut piece = vec![0; 1 << 20];
    while piece.len() >= 4096 {
        if file.write_all(&piece).is_err() {
            piece.truncate(piece.len() / 2);
        }
    }
    // The last blocks are given out when they are written.
    let _ = file.sync_all();
    Ok(())
}

/// Writes until each of these nodes needs a segment that it cannot have, and has ended for it.
fn fill_segments(world: &mut World, victims: &[usize]) -> Fallible<()> {
    let mut left = victims.to_vec();
    // A value is eight bytes; it is the key that fills a segment. Always the same: the state stays small.
    let key = "k".repeat(60_000);
    let nodes = world.cluster().ids().len();
    let mut at = 0;
    let mut connection = None;
    let done = look(PATIENCE, || {
        // A snapshot that was finished at the last moment may have let go of a segment.
        for &id in &left {
            fill(world, id)?;
        }
        for _ in 0..8 {
            at += 1;
            let patience = Duration::from_millis(500);
            let mut writer = match connection.take() {
                Some(writer) => writer,
                None => match Connection::open(client_addr(at % nodes + 1), patience) {
                    Ok(writer) => writer,
                    Err(_) => continue,
                },
            };
            if writer.ask(&["SET", &key, "1"]).is_ok() {
                connection = Some(writer);
            }
        }
        let mut still = Vec::new();
        for &id in &left {
            match world.cluster().ended(id)? {
                Some(status) => has_given_up(world, id, status, &["No space left"])?,
                None => still.push(id),
            }
        }
        left = still;
        // With the majority gone nothing can be filled: the others end when they are written to.
        let running = world
            .cluster()
            .ids()
            .into_iter()
            .filter(|&id| world.cluster().runs(id));
        let running = running.count();
        Ok((left.is_empty() || running <= nodes / 2).then_some(()))
    })?;
    if done.is_none() {
        let text = format!("nodes {left:?} go on, {PATIENCE:?} after their disks were full");
        return Err(Trouble::Found(text));
    }
    for id in left {
        // It has lost its majority, not its disk's last room.
        world.cluster().kill(id)?;
    }
    Ok(())
}

/// The log has its next segment already; a snapshot needs room at once.
struct FullForSnapshot;

impl Nemesis for FullForSnapshot {
    fn name(&self) -> &'static str {
        "snapshot-full"
    }

    fn about(&self) -> &'static str {
        "no room for a snapshot on one disk: the node says so and goes on; with room the next one succeeds"
    }

    fn lacks(&self) -> Option<String> {
        Ground::Ext4.lacks()
    }

    fn shape(&self) -> Shape {
        Shape {
            nodes: 3,
            ground: Ground::Ext4,
        }
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let id = victim(world, dice);
        fill(world, id)?;
        let refused = look(PATIENCE, || {
            fill(world, id)?;
            if let Some(status) = world.cluster().ended(id)? {
                // It needed a segment just then.
                has_given_up(world, id, status, &["No space left"])?;
                return Ok(Some(()));
            }
            save(id);
            let says = section(id, "snapshot").unwrap_or_default();
            let trouble = says.get("snapshot_trouble").map_or("", String::as_str);
            Ok(trouble.contains("No space left").then_some(()))
        })?;
        pass(dice.millis(0, 300))?;
        std::fs::remove_file(ballast(world, id))?;
        if refused.is_none() {
            let text = format!("node {id} has a full disk and no trouble with its snapshots");
            return Err(Trouble::Found(text));
        }
        if let Some(status) = world.cluster().ended(id)? {
            has_given_up(world, id, status, &["No space left"])?;
        }
        if !world.cluster().runs(id) {
            world.cluster().start_one(id)?;
        }
        let taken = look(PATIENCE, || {
            save(id);
            let says = section(id, "snapshot").unwrap_or_default();
            let number = |name: &str| says.get(name).and_then(|text| text.parse::<u64>().ok());
            let is_well = number("snapshot_taken") > Some(0);
            Ok((is_well && !says.contains_key("snapshot_trouble")).then_some(()))
        })?;
        taken.ok_or_else(|| {
            Trouble::Found(format!(
                "node {id} takes no snapshot, {PATIENCE:?} after its disk had room again"
            ))
        })
    }
}

/// Asks for a snapshot. One that is being taken already is as good.
fn save(id: usize) {
    let _ = Connection::open(client_addr(id), Duration::from_millis(500))
        .and_then(|mut connection| connection.ask(&["BGSAVE"]));
}

/// A device that fails a request, or all.
struct Failure {
    name: &'static str,
    failing: Failing,
}

impl Nemesis for Failure {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        match self.failing {
            Failing::Write => {
                "EIO once for a write, then success with the bytes gone: the node must not try again"
            }
            Failing::Flush => "EIO once for a flush, then success: the node must not try again",
            Failing::AllWrites => "EIO for every write from now on",
        }
    }

    fn lacks(&self) -> Option<String> {
        Ground::Faulty.lacks()
    }

    fn shape(&self) -> Shape {
        Shape {
            nodes: 3,
            ground: Ground::Faulty,
        }
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let id = victim(world, dice);
        // The daemon is given its orders while nothing is under way: it may mix up requests that come meanwhile.
        world.cluster().stop(id)?;
        let disk = world.disks.disk(id);
        run(&["sync", "-f", text(disk.at())])?;
        disk.faulty().fail(self.failing)?;
        world.cluster().go_on(id)?;
        let status = world.cluster().until_ended(id)?;
        // The file system may have seen the error first, and have closed itself.
        has_given_up(
            world,
            id,
            status,
            &["Input/output error", "Read-only file system"],
        )?;
        pass(dice.millis(0, 300))?;
        let disk = world.disks.disk(id);
        if let Failing::AllWrites = self.failing {
            disk.faulty().be_well()?;
        }
        disk.repair()?;
        world.cluster().start_one(id)
    }
}

/// Disks that take a few writes a second. What it sets at the kernel is taken back also when the strike is interrupted;
/// after a `kill -9` of this program it stays until the device is used for something else by another run.
#[derive(Default)]
struct Slow {
    throttled: Vec<String>,
}

const THROTTLE: &str = "/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device";

impl Slow {
    fn let_go(&mut self) {
        for number in self.throttled.drain(..) {
            let _ = std::fs::write(THROTTLE, format!("{number} 0")); // The device may be gone.
        }
    }
}

impl Nemesis for Slow {
    fn name(&self) -> &'static str {
        "slow-disk"
    }

    fn about(&self) -> &'static str {
        "one disk or all take 5 to 40 writes a second"
    }

    fn lacks(&self) -> Option<String> {
        let there = Path::new(THROTTLE).exists();
        let reason = || Some("the kernel has no blkio throttle (cgroup v1)".to_owned());
        Ground::Ext4
            .lacks()
            .or_else(|| if there { None } else { reason() })
    }

    fn shape(&self) -> Shape {
        Shape {
            nodes: 3,
            ground: Ground::Ext4,
        }
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let victims = if dice.below(3) == 0 {
            world.cluster().ids()
        } else {
            vec![victim(world, dice)]
        };
        for &id in &victims {
            let number = world.disks.disk(id).number()?;
            std::fs::write(THROTTLE, format!("{number} {}", 5 + dice.below(36)))?;
            self.throttled.push(number);
        }
        let passed = pass(dice.millis(500, 2500));
        self.let_go();
        // What waits is written now.
        for &id in &victims {
            run(&["sync", "-f", text(world.disks.disk(id).at())])?;
        }
        passed
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.let_go();
    }
}
