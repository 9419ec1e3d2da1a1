//! A byte that changed on the disk of a node that is down: in each kind of file, the tool names the place before the
//! start, the others serve on, the node starts, reports it, and has everything again in the end.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use redis::Value;

use crate::cluster::{Cluster, ringraft};
use crate::load::{Load, check};
use crate::snapshots::{assert_same_state, fill, snapshot_number};
use crate::until;

/// Snapshots when asked for only, and all of the log is kept: every kind of file is there.
const KEEP: [&str; 4] = [
    "--snapshot-every-bytes",
    "0",
    "--log-tail-entries",
    "1000000",
];

/// What happens to a node.
struct Damage {
    file: PathBuf,
    offset: u64,
}

impl Damage {
    fn at(file: PathBuf, offset: u64) -> Self {
        Self { file, offset }
    }

    fn happen(&self) {
        let file = OpenOptions::new().read(true).write(true).open(&self.file);
        let file = file.unwrap_or_else(|error| panic!("{}: {error}", self.file.display()));
        let mut byte = [0];
        let flip = file
            .read_exact_at(&mut byte, self.offset)
            .and_then(|()| file.write_all_at(&[byte[0] ^ 0x10], self.offset));
        flip.unwrap_or_else(|error| panic!("{} at {}: {error}", self.file.display(), self.offset));
    }

    /// As the tool and the node name it.
    fn name(&self) -> String {
        let name = self.file.file_name().expect("a file has a name");
        name.to_string_lossy().into_owned()
    }
}

/// How the node takes it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    /// It lacks something that it had promised, until its peers have sent it.
    Heals,
    /// It has what it needs beside it.
    Mends,
    /// It is not needed by the start; the scrub finds it, while the node runs.
    Scrubbed,
}

fn sorted(dir: PathBuf, end: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|is| is == end))
        .collect();
    paths.sort();
    paths
}

/// The segments that hold records.
fn segments(group: &Path) -> Vec<PathBuf> {
    let begins = |path: &PathBuf| {
        let mut word = [0; 8];
        let file = File::open(path).expect("a segment can be read");
        file.read_exact_at(&mut word, 4096).is_ok() && word != [0; 8]
    };
    let mut segments = sorted(group.join("log"), "seg");
    segments.retain(begins);
    assert!(segments.len() >= 5, "{segments:?}");
    segments
}

fn snapshots(group: &Path) -> Vec<PathBuf> {
    let snapshots = sorted(group.join("snap"), "snap");
    assert_eq!(snapshots.len(), 2, "{snapshots:?}");
    snapshots
}

/// What `ringraft WHAT verify DIR` says, and whether it calls it sound.
fn verify(what: &str, data: &Path) -> (bool, String) {
    let mut tool = Command::new(ringraft());
    let done = tool.args([what, "verify"]).arg(data).output();
    let done = done.expect("the tool runs");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let code = done.status.code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}: {said}");
    (code == Some(0), said)
}

/// Both of them.
fn assert_sound(data: &Path) {
    for what in ["log", "snapshot"] {
        let (sound, said) = verify(what, data);
        assert!(sound, "{said}");
    }
}

fn save(cluster: &Cluster, id: usize) {
    let before = snapshot_number(cluster, id, "snapshot_index");
    let _: Value = cluster.ask(id, &["BGSAVE"]);
    until(format_args!("server {id} has taken a snapshot"), || {
        snapshot_number(cluster, id, "snapshot_index") > before
    });
}

fn story(tool: &str, course: Course, find: impl FnOnce(&Path) -> Damage) {
    let mut cluster = Cluster::start_with_args(3, &KEEP);
    let leader = cluster.until_leader();
    let hurt = leader % 3 + 1;
    // Of five segments the newest snapshot stands for two and a part of the third.
    for _ in 0..2 {
        fill(&cluster, leader, 10, 90);
        cluster.until_equal();
        save(&cluster, hurt);
    }
    fill(&cluster, leader, 10, 150);
    let load = Load::start(&cluster, "a", 3);
    load.until_more(100);
    cluster.terminate(hurt);
    let data = cluster.data(hurt);
    assert_sound(&data);
    let damage = find(&data.join("group-0"));
    damage.happen();
    let (sound, said) = verify(tool, &data);
    assert!(!sound && said.contains(&damage.name()), "{said}");
    load.until_more(50);

    let before = cluster.log(hurt).len();
    let others = cluster.running();
    if course == Course::Heals {
        // It cannot heal as long as nobody speaks to it, and says so.
        others.iter().for_each(|&id| cluster.stall(id));
        cluster.start_one(hurt);
        until("it says that it heals", || {
            let section = cluster.section(hurt, "snapshot");
            section.is_some_and(|section| section.text("healing") == "1")
        });
        others.iter().for_each(|&id| cluster.resume(id));
    } else {
        let scrub = [&KEEP[..], &["--scrub-every", "1s"]].concat();
        let is_scrubbed = course == Course::Scrubbed;
        cluster.set_args(hurt, if is_scrubbed { &scrub } else { &KEEP });
        cluster.start_one(hurt);
    }
    cluster.until_answers(hurt);
    until("it heals", || {
        snapshot_number(&cluster, hurt, "healing") == 0
    });
    if course == Course::Scrubbed {
        until("it says what it has found", || {
            let section = cluster.section(hurt, "snapshot");
            section.is_some_and(|section| section.text("rot").contains(&damage.name()))
        });
    }
    if course != Course::Scrubbed {
        let count = |field: &str| snapshot_number(&cluster, hurt, field);
        let told = count("start_mended") + count("start_set_aside") + count("start_healed");
        let section = cluster.section(hurt, "snapshot").expect("it answers");
        let last = section.text("repair_last");
        assert!(told > 0 && last.contains(&damage.name()), "{told}: {last}");
    }
    load.until_more(50);
    let log = cluster.log(hurt);
    let said = &log[before..];
    let says_bad = |line: &str| line.contains("damaged") || line.contains("ERROR");
    let names_it = |line: &str| line.contains(&damage.name()) && says_bad(line);
    assert!(
        said.lines().any(names_it),
        "the log of its start does not name {}: {said}",
        damage.name()
    );

    // It counts again: with it and one other there is a majority.
    cluster.until_leader();
    cluster.kill(others[0]);
    cluster.until_leader();
    load.until_more(20);
    cluster.start_one(others[0]);
    cluster.until_leader();
    let tally = load.finish();
    let value = cluster.get(hurt, "a");
    check(&tally, value);
    for id in cluster.ids() {
        assert_eq!(cluster.get(id, "a"), value, "on server {id}");
    }
    assert_same_state(&cluster);
    cluster.terminate(hurt);
    // A bad snapshot was set aside for the operator. It is no damage any more, and he is told of it until it is gone.
    for aside in sorted(data.join("group-0/snap"), "bad") {
        for what in ["log", "snapshot"] {
            let (sound, said) = verify(what, &data);
            assert!(sound && said.contains(".bad"), "{said}");
        }
        fs::remove_file(aside).expect("it can be removed");
    }
    assert_sound(&data);
}

/// Damage under a node that runs: it finds the place, asks the others, and is whole again without a restart.
fn story_in_use(find: impl FnOnce(&Path) -> Damage) {
    let args = [&KEEP[..], &["--scrub-every", "500ms"]].concat();
    let mut cluster = Cluster::start_with_args(3, &args);
    let leader = cluster.until_leader();
    let hurt = leader % 3 + 1;
    fill(&cluster, leader, 10, 330);
    cluster.until_equal();
    let load = Load::start(&cluster, "a", 3);
    load.until_more(50);
    let data = cluster.data(hurt);
    let damage = find(&data.join("group-0"));
    let before = fs::read(&damage.file).expect("it can be read");
    damage.happen();
    until("it is found and mended", || {
        snapshot_number(&cluster, hurt, "rot_mended") == 1
    });
    assert_eq!(snapshot_number(&cluster, hurt, "rot_found"), 1);
    assert_eq!(snapshot_number(&cluster, hurt, "healing"), 0);
    let section = cluster.section(hurt, "snapshot").expect("it answers");
    let last = section.text("repair_last").to_owned();
    assert!(
        last.starts_with("mended:") && last.contains(&damage.name()),
        "{last}"
    );
    cluster.until_logs(hurt, "mended: ");
    assert_eq!(
        fs::read(&damage.file).expect("it can be read"),
        before,
        "to the byte"
    );
    load.until_more(50);
    let tally = load.finish();
    check(&tally, cluster.get(hurt, "a"));
    cluster.terminate(hurt);
    assert_sound(&data);
    cluster.start_one(hurt);
    cluster.until_answers(hurt);
    assert_eq!(snapshot_number(&cluster, hurt, "start_healed"), 0);
    assert_same_state(&cluster);
}

#[test]
fn in_a_record_under_a_running_node() {
    story_in_use(|group| Damage::at(segments(group)[1].clone(), 1 << 20));
}

#[test]
fn in_the_header_of_a_segment_under_a_running_node() {
    story_in_use(|group| Damage::at(segments(group)[1].clone(), 20));
}

#[test]
fn in_a_segment_in_the_middle() {
    story("log", Course::Heals, |group| {
        Damage::at(segments(group)[3].clone(), 1 << 20)
    });
}

#[test]
fn in_a_segment_for_which_a_snapshot_stands() {
    story("log", Course::Mends, |group| {
        Damage::at(segments(group)[1].clone(), 1 << 20)
    });
}

#[test]
fn in_the_last_segment() {
    story("log", Course::Heals, |group| {
        let last = segments(group).pop().expect("there are segments");
        Damage::at(last, 4096 + 60)
    });
}

#[test]
fn in_the_header_of_a_segment() {
    story("log", Course::Heals, |group| {
        Damage::at(segments(group)[3].clone(), 20)
    });
}

#[test]
fn in_term_and_vote() {
    story("log", Course::Mends, |group| {
        Damage::at(group.join("meta"), 20)
    });
}

#[test]
fn in_the_identity() {
    story("log", Course::Mends, |group| {
        Damage::at(group.join("identity"), 20)
    });
}

#[test]
fn in_the_list_of_peers() {
    story("log", Course::Mends, |group| {
        Damage::at(group.join("peers"), 4096 + 20)
    });
}

#[test]
fn in_the_newest_snapshot() {
    story("snapshot", Course::Mends, |group| {
        Damage::at(snapshots(group)[1].clone(), 300_000)
    });
}

#[test]
fn in_the_older_snapshot() {
    story("snapshot", Course::Scrubbed, |group| {
        Damage::at(snapshots(group)[0].clone(), 300_000)
    });
}
