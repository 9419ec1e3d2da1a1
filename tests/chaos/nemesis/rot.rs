//! Media that lose what they have had for long, and nodes that come back when the others' logs have gone on without them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Nemesis, victim};
use crate::cluster::{PATIENCE, client_addr, section};
use crate::dice::Dice;
use crate::resp::Connection;
use crate::trouble::{Fallible, Trouble, look, pass};
use crate::world::World;

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    vec![Box::new(Rot), Box::new(Behind)]
}

/// A byte of a node that is down is another one afterwards.
struct Rot;

impl Nemesis for Rot {
    fn name(&self) -> &'static str {
        "rot"
    }

    fn about(&self) -> &'static str {
        "kill -9 of one node and another byte in one of its files: it starts, and has everything again in the end"
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let id = victim(world, dice);
        world.cluster().kill(id)?;
        let group = world.cluster().data(id).join("group-0");
        if let Some((file, offset)) = place(&group, dice)? {
            flip(&file, offset)?;
        }
        pass(dice.millis(0, 300))?;
        world.cluster().start_one(id)?;
        // One at a time: two nodes without what they had promised may be without a majority that has it.
        let healed = look(PATIENCE, || {
            world.cluster().look_after()?;
            let says = section(id, "snapshot").unwrap_or_default();
            Ok((says.get("healing").map(String::as_str) == Some("0")).then_some(()))
        })?;
        healed.ok_or_else(|| Trouble::Found(format!("node {id} does not heal in {PATIENCE:?}")))
    }
}

fn files(dir: &Path, end: &str) -> Fallible<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|is| is == end) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A byte of one of the files.
fn place(group: &Path, dice: &mut Dice) -> Fallible<Option<(PathBuf, u64)>> {
    let small = ["meta", "identity", "peers"].map(|name| group.join(name));
    let (snapshots, segments) = (
        files(&group.join("snap"), "snap")?,
        files(&group.join("log"), "seg")?,
    );
    let of = |mut files: Vec<PathBuf>, dice: &mut Dice| {
        let at = dice.below(files.len().max(1));
        (at < files.len()).then(|| files.swap_remove(at))
    };
    Ok(match dice.below(4) {
        0 => of(small.to_vec(), dice)
            .filter(|file| file.exists())
            // The first of two copies, and what is used of it.
            .map(|file| (file, dice.below(40) as u64)),
        1 => match of(snapshots, dice) {
            Some(file) => {
                let length = std::fs::metadata(&file)?.len();
                Some((file, dice.below(length as usize) as u64))
            }
            None => None,
        },
        _ => match of(segments, dice) {
            Some(file) => durable_record(&file)?.map(|begin| (file, begin + dice.below(56) as u64)),
            None => None,
        },
    })
}

/// Where a record begins that was flushed for certain: what was written last may not have been, and when it is bad the
/// start takes it for torn, since nobody was told of it.
fn durable_record(segment: &Path) -> Fallible<Option<u64>> {
    /// Far more than are written and flushed together under the load of a round.
    const LAST: usize = 256;
    let bytes = std::fs::read(segment)?;
    let (mut at, mut begins, mut last) = (4096, Vec::new(), 0);
    while let Some(head) = bytes.get(at..at + 56) {
        let number = |from: usize| u64::from_le_bytes(head[from..from + 8].try_into().expect("8"));
        let length = u32::from_le_bytes(head[4..8].try_into().expect("4")) as usize;
        let index = number(8);
        if index == 0 || head[48] == 0 || (last > 0 && index != last + 1) {
            break;
        }
        begins.push(at as u64);
        last = index;
        at += (56 + length).next_multiple_of(8);
    }
    begins.truncate(begins.len().saturating_sub(LAST));
    let middle = begins.len() / 2;
    Ok(begins.get(middle).copied())
}

fn flip(file: &Path, offset: u64) -> Fallible<()> {
    let open: File = OpenOptions::new().read(true).write(true).open(file)?;
    let mut byte = [0];
    open.read_exact_at(&mut byte, offset)?;
    open.write_all_at(&[byte[0] ^ 0x10], offset)?;
    Ok(())
}

/// A node is away until the others have let go of what it needs next; it is sent a snapshot, and sometimes the leader does not
/// live to the end of that.
struct Behind;

impl Nemesis for Behind {
    fn name(&self) -> &'static str {
        "behind"
    }

    fn about(&self) -> &'static str {
        "kill -9 of one node until the others' logs go on without it: it is sent a snapshot, sometimes by two leaders"
    }

    fn strike(&mut self, world: &mut World, dice: &mut Dice) -> Fallible<()> {
        let id = victim(world, dice);
        let last = || section(id, "raft").and_then(|says| says.get("last")?.parse::<u64>().ok());
        let Some(had) = look(PATIENCE, || Ok(last()))? else {
            return Err(Trouble::Found(format!("node {id} says nothing of its log")));
        };
        world.cluster().kill(id)?;
        let others: Vec<usize> = world
            .cluster()
            .ids()
            .into_iter()
            .filter(|&other| other != id)
            .collect();
        // Always the same few keys: the state stays small, and a megabyte long.
        let keys: Vec<String> = (0..16).map(|at| format!("{at:060000}")).collect();
        let mut turn = 0;
        let gone = look(PATIENCE, || {
            for _ in 0..16 {
                turn += 1;
                let to = client_addr(others[turn % others.len()]);
                let _ = Connection::open(to, Duration::from_millis(500))
                    .and_then(|mut writer| writer.ask(&["SET", &keys[turn % keys.len()], "1"]));
            }
            let first = |&other: &usize| {
                section(other, "snapshot")
                    .and_then(|says| says.get("log_first")?.parse::<u64>().ok())
            };
            let all_past = others.iter().all(|other| first(other) > Some(had + 1));
            Ok(all_past.then_some(()))
        })?;
        if gone.is_none() {
            let text = format!("nodes {others:?} do not let go of their logs beyond {had}");
            return Err(Trouble::Found(text));
        }
        world.cluster().start_one(id)?;
        if dice.flip() {
            pass(dice.millis(0, 150))?;
            if let Some(leader) = world.cluster().leader().filter(|&leader| leader != id) {
                world.cluster().kill(leader)?;
                pass(dice.millis(0, 300))?;
                world.cluster().start_one(leader)?;
            }
        }
        // It has it from a snapshot, and from nowhere else.
        let restored = look(PATIENCE, || {
            world.cluster().look_after()?;
            let says = section(id, "snapshot").unwrap_or_default();
            let times = says
                .get("snapshot_restored")
                .and_then(|text| text.parse::<u64>().ok());
            Ok((times > Some(0)).then_some(()))
        })?;
        restored.ok_or_else(|| {
            Trouble::Found(format!(
                "node {id} is sent no snapshot, {PATIENCE:?} after it came back"
            ))
        })
    }
}
