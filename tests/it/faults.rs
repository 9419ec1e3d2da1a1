//! The counter while things go wrong: killed, stalled, starved of disk, left without a quorum.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::cluster::{Cluster, Outcome, incr};
use crate::load::{Load, check};
use crate::{DEADLINE, until};

fn others(cluster: &Cluster, but: usize) -> Vec<usize> {
    cluster.ids().filter(|&id| id != but).collect()
}

#[test]
fn kill_9_of_the_leader_under_load_loses_nothing() {
    let mut cluster = Cluster::start(3);
    let load = Load::start(&cluster, "a", 6);
    for _ in 0..2 {
        load.until_more(200);
        let leader = cluster.until_leader();
        cluster.kill(leader);
        cluster.until_leader();
        load.until_more(200);
        cluster.start_one(leader);
        cluster.until_leader();
    }
    load.until_more(100);
    let tally = load.finish();
    let final_value = cluster.get(1, "a");
    check(&tally, final_value);
    for id in cluster.ids() {
        assert_eq!(cluster.get(id, "a"), final_value, "on server {id}");
    }
    cluster.until_equal();
}

#[test]
fn a_client_of_a_follower_does_not_notice_that_the_leader_is_killed() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.until_leader();
    let mut stream =
        TcpStream::connect(("127.0.0.1", cluster.client_port(leader % 3 + 1))).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a limit");
    let mut answers = BufReader::new(stream.try_clone().expect("a second handle"));
    let (mut line, mut count) = (String::new(), 0);
    // Sixteen in flight, each with its place in the order.
    let mut pipeline = |rounds: usize| {
        for _ in 0..rounds {
            stream
                .write_all(&b"INCR steady\r\n".repeat(16))
                .expect("it is taken");
            for _ in 0..16 {
                line.clear();
                answers.read_line(&mut line).expect("an answer in time");
                count += 1;
                assert_eq!(line, format!(":{count}\r\n"));
            }
        }
        count
    };
    pipeline(20);
    let killer = std::thread::spawn(move || {
        cluster.kill(leader);
        cluster
    });
    let mut count = 0;
    while !killer.is_finished() {
        count = pipeline(1);
    }
    count = pipeline(20).max(count);
    let cluster = killer.join().expect("the leader was killed");
    assert_eq!(cluster.get(leader % 3 + 1, "steady"), count);
}

#[test]
fn kill_9_of_all_under_load_loses_nothing() {
    let mut cluster = Cluster::start(3);
    let load = Load::start(&cluster, "a", 4);
    load.until_more(200);
    for id in cluster.ids() {
        cluster.kill(id);
    }
    for id in cluster.ids() {
        cluster.start_one(id);
    }
    cluster.until_leader();
    load.until_more(100);
    let tally = load.finish();
    let final_value = cluster.get(1, "a");
    check(&tally, final_value);
    for id in cluster.ids() {
        assert_eq!(cluster.get(id, "a"), final_value, "on server {id}");
    }
}

/// Writes `count` counters with keys of 60,000 bytes: each fills as much of the log.
fn write_long_keys(cluster: &Cluster, id: usize, from: usize, count: usize) {
    for n in from..from + count {
        let key = long_key(n);
        let () = cluster.ask(id, &["SET", &key, &n.to_string()]);
    }
}

fn long_key(n: usize) -> String {
    format!("{n:060000}")
}

#[test]
fn a_follower_that_was_away_catches_up() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.until_leader();
    let away = leader % 3 + 1;
    assert_eq!(cluster.incr(away, "a"), 1);
    cluster.kill(away);
    // Ten megabytes: more than two segments of four, in messages of a quarter.
    write_long_keys(&cluster, leader, 0, 170);
    for n in 2..=300 {
        assert_eq!(cluster.incr(leader, "a"), n);
    }
    cluster.start_one(away);
    cluster.until_answers(away);
    until("it has applied what the leader has", || {
        let applied = |id| cluster.info(id).map(|info| info.number("applied"));
        applied(away).is_some() && applied(away) >= applied(leader)
    });
    assert_eq!(cluster.get(away, "a"), 300);
    assert_eq!(cluster.get(away, &long_key(169)), 169);
    cluster.until_equal();
}

#[test]
fn a_stalled_leader_is_replaced_and_follows_when_it_wakes() {
    let cluster = Cluster::start(3);
    let stalled = cluster.until_leader();
    assert_eq!(cluster.incr(stalled, "a"), 1);
    let term = cluster.info(stalled).expect("it answers").number("term");

    let mut waiting = cluster.client(stalled);
    cluster.stall(stalled);
    // A client of the stalled leader: its write is in doubt until the server runs again.
    let waiting = std::thread::spawn(move || incr(&mut waiting, "doubt"));
    let others = others(&cluster, stalled);
    let next = cluster.until_leader_of(&others);
    assert!(cluster.info(next).expect("it answers").number("term") > term);
    for n in 2..=20 {
        assert_eq!(cluster.incr(others[n as usize % 2], "a"), n);
    }
    cluster.resume(stalled);
    // Not one stale answer, from the first moment on.
    assert_eq!(
        cluster.get(stalled, "a"),
        20,
        "a leader of the past must not answer from its past"
    );
    cluster.until_leader();
    assert_eq!(cluster.incr(stalled, "a"), 21);
    let doubt = waiting.join().expect("the client is content");
    let value = cluster.get(next, "doubt");
    match doubt {
        Outcome::Done(1) => assert_eq!(value, 1),
        Outcome::Refused => assert_eq!(value, 0, "refused is never applied"),
        Outcome::Unknown => assert!((0..=1).contains(&value), "{value}"),
        Outcome::Done(more) => panic!("counted from 0 to {more} with one increment"),
    }
    cluster.until_equal();
}

/// A file system in memory of a few megabytes.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// `None`, and the reason on the output, when this process may not mount.
    fn mount(mib: usize) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(done) if done.status.success() => Some(Self { dir }),
            Ok(done) => {
                let said = String::from_utf8_lossy(&done.stderr);
                println!(
                    "skipped: no small disk to fill, mount says: {}",
                    said.trim()
                );
                None
            }
            Err(error) => {
                println!("skipped: no small disk to fill, mount does not run: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn grow(&self, mib: usize) {
        let done = Command::new("mount")
            .args(["-o", &format!("remount,size={mib}m")])
            .arg(self.path())
            .status()
            .expect("mount runs");
        assert!(done.success(), "growing the disk: {done}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .status();
    }
}

#[test]
fn a_node_does_not_start_on_a_full_disk_and_says_which_file() {
    let Some(disk) = SmallDisk::mount(2) else {
        return;
    };
    let cluster = Cluster::prepare(1);
    let data = disk.path().join("data");
    let (code, said) = cluster.run_to_end(1, &data, &cluster.members);
    assert_eq!(code, Some(1), "{said}");
    let place = data.display().to_string();
    assert!(
        said.contains(&place) && said.contains("No space left"),
        "{said}"
    );
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_node_whose_disk_fills_up_stops_in_order_and_the_others_go_on() {
    let Some(disk) = SmallDisk::mount(11) else {
        return;
    };
    let mut cluster = Cluster::prepare(3);
    cluster.set_data(1, disk.path().join("data"));
    for id in cluster.ids() {
        cluster.start_one(id);
    }
    cluster.until_leader();
    assert_eq!(cluster.incr(2, "a"), 1);

    // Two segments of four megabytes fit, the third does not.
    write_long_keys(&cluster, 2, 0, 220);
    let status = cluster.until_exit(1);
    let said = cluster.log(1);
    assert_eq!(status.code(), Some(1), "{status}: {said}");
    let place = disk.path().display().to_string();
    let names_it = |line: &str| line.contains(&place) && line.contains("No space left");
    assert!(
        said.lines().any(names_it),
        "no line names the file and the reason"
    );
    assert!(!said.contains("panicked"), "it is an error, not a panic");

    cluster.until_leader();
    assert_eq!(cluster.incr(3, "a"), 2);
    assert_eq!(cluster.get(2, &long_key(219)), 219);

    // With more room it comes back and catches up.
    disk.grow(64);
    cluster.start_one(1);
    cluster.until_answers(1);
    until("it has caught up", || {
        let applied = |id| cluster.info(id).map(|info| info.number("applied"));
        applied(1).is_some() && applied(1) >= applied(2)
    });
    assert_eq!(cluster.get(1, "a"), 2);
    assert_eq!(cluster.incr(1, "a"), 3);
}

#[test]
fn clients_without_a_quorum_are_told_to_try_again() {
    let mut cluster = Cluster::start(3);
    assert_eq!(cluster.incr(1, "a"), 1);
    let leader = cluster.until_leader();
    let mut doubtful = cluster.client(leader);
    for id in others(&cluster, leader) {
        cluster.kill(id);
    }
    // Handed to a leader that does not know yet: what becomes of it is open until there is a next one.
    let doubt = std::thread::spawn(move || incr(&mut doubtful, "a"));
    until("the leader knows that it is none", || {
        let info = cluster.info(leader).expect("it answers");
        info.text("role") != "leader" && info.text("leader") == "0"
    });
    let mut client = cluster.client(leader);
    assert_eq!(
        incr(&mut client, "a"),
        Outcome::Refused,
        "nothing was appended"
    );

    for id in others(&cluster, leader) {
        cluster.start_one(id);
    }
    cluster.until_leader();
    // If it was not committed, the server has handed it in again by now, or it has lost its patience.
    let outcome = doubt.join().expect("the client is content");
    let value = cluster.get(leader, "a");
    match outcome {
        Outcome::Done(of) => assert_eq!((of, value), (2, 2)),
        Outcome::Refused => assert_eq!(value, 1, "refused is never applied"),
        Outcome::Unknown => assert!((1..=2).contains(&value), "{value}"),
    }
    assert_eq!(cluster.incr(leader, "a"), value + 1);
}

#[test]
fn a_cluster_of_five_bears_two_dead() {
    let mut cluster = Cluster::start(5);
    let load = Load::start(&cluster, "a", 3);
    load.until_more(50);
    for _ in 0..2 {
        let leader = cluster.until_leader();
        cluster.kill(leader);
        cluster.until_leader();
        load.until_more(50);
    }
    let tally = load.finish();
    let alive = cluster.running()[0];
    check(&tally, cluster.get(alive, "a"));
}

#[test]
fn a_node_whose_directory_disappears_stops_and_says_so() {
    let mut cluster = Cluster::start(3);
    assert_eq!(cluster.incr(1, "a"), 1);
    cluster.until_equal();
    // Removed, and moved away with another one in its place.
    let (removed, replaced) = (1, 2);
    std::fs::remove_dir_all(cluster.data(removed)).expect("removed");
    let aside = cluster.path().join("aside");
    std::fs::rename(cluster.data(replaced), &aside).expect("moved away");
    std::fs::create_dir_all(cluster.data(replaced).join("group-0/log")).expect("made");
    for id in [removed, replaced] {
        let status = cluster.until_exit(id);
        assert!(!status.success(), "{status}");
        let log = cluster.log(id);
        assert!(
            log.contains("would be lost with the process") && log.contains("group-0"),
            "{log}"
        );
    }
    // With its directory it goes on, and the two have what was acknowledged.
    std::fs::remove_dir_all(cluster.data(replaced)).expect("removed");
    std::fs::rename(&aside, cluster.data(replaced)).expect("moved back");
    cluster.start_one(replaced);
    cluster.until_leader_of(&[replaced, 3]);
    assert_eq!(cluster.get(3, "a"), 1);
}

#[test]
fn a_node_whose_segment_disappears_stops_when_its_scrub_finds_out() {
    let mut cluster = Cluster::prepare(1);
    cluster.set_args(1, &["--scrub-every", "1s"]);
    cluster.start_one(1);
    cluster.until_leader();
    assert_eq!(cluster.incr(1, "a"), 1);
    let log = cluster.data(1).join("group-0/log");
    std::fs::remove_file(log.join("0000000000000001.seg")).expect("it is in use");
    let status = cluster.until_exit(1);
    assert!(!status.success(), "{status}");
    let said = cluster.log(1);
    assert!(said.contains("0000000000000001.seg is gone"), "{said}");
}
