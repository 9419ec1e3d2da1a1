//! The counter when its log gives way to snapshots: nodes that were away longer than the log reaches, starts from a
//! snapshot, and what it all takes on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use redis::{RedisResult, Value};

use crate::cluster::Cluster;
use crate::load::{Load, check};
use crate::{until, until_some};

const MIB: u64 = 1 << 20;
/// Snapshots come often, and the log is let go of as far as its segments of four megabytes allow.
pub(crate) const OFTEN: [&str; 4] = [
    "--snapshot-every-bytes",
    "2097152",
    "--log-tail-entries",
    "16",
];

/// A key of 60,000 bytes: so much of the log each time it is set, and of every snapshot.
pub(crate) fn long_key(n: usize) -> String {
    format!("{n:060000}")
}

/// Sets `keys` long keys, `count` times in all.
pub(crate) fn fill(cluster: &Cluster, id: usize, keys: usize, count: usize) {
    for n in 0..count {
        let () = cluster.ask(id, &["SET", &long_key(n % keys), &n.to_string()]);
    }
}

pub(crate) fn snapshot_number(cluster: &Cluster, id: usize, field: &str) -> u64 {
    let section = || cluster.section(id, "snapshot");
    until_some(format_args!("server {id} says its {field}"), section).number(field)
}

/// Waits until a node's log begins after entry `had`. What is let go of when depends on when snapshots were taken, so the
/// first long key is set for as long as it takes; the entries of a load are too small to fill segments in time.
fn until_compacted(cluster: &Cluster, id: usize, had: u64) -> u64 {
    let what = format_args!("server {id} has no log back to {had}");
    until_some(what, || {
        let () = cluster.ask(id, &["SET", &long_key(0), "7"]);
        let first = snapshot_number(cluster, id, "log_first");
        (first > had + 1).then_some(first)
    })
}

fn snapshots(data: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(data.join("group-0/snap")).into_iter();
    let files = files.flatten().map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|end| end == "snap"))
        .collect();
    files.sort();
    files
}

/// All nodes hold the same, to the byte: the snapshots that they take of it are the same files.
pub(crate) fn assert_same_state(cluster: &Cluster) {
    cluster.until_equal();
    let indexes: BTreeMap<usize, u64> = until_some("all have a snapshot of the same", || {
        let mut indexes = BTreeMap::new();
        for id in cluster.running() {
            let applied = cluster.info(id)?.number("applied");
            let index = snapshot_number(cluster, id, "snapshot_index");
            if index != applied {
                let _: Value = redis::cmd("BGSAVE")
                    .query(&mut cluster.connect(id).ok()?)
                    .ok()?;
                return None;
            }
            indexes.insert(id, index);
        }
        let mut all = indexes.values();
        let first = all.next()?;
        all.all(|index| index == first).then_some(indexes)
    });
    let file = |id: usize| {
        let files = snapshots(&cluster.data(id));
        let newest = files.last().expect("it has a snapshot");
        std::fs::read(newest).expect("a snapshot can be read")
    };
    let mut ids = indexes.into_keys();
    let first = ids.next().expect("there is a node");
    let expected = file(first);
    for id in ids {
        assert!(
            file(id) == expected,
            "servers {first} and {id} hold different states"
        );
    }
}

fn assert_values(cluster: &Cluster, expected: i64) {
    for id in cluster.ids() {
        assert_eq!(cluster.get(id, "a"), expected, "on server {id}");
    }
}

fn finish(cluster: &Cluster, load: Load) {
    let tally = load.finish();
    let value = cluster.get(1, "a");
    check(&tally, value);
    assert_values(cluster, value);
    assert_same_state(cluster);
}

#[test]
fn bgsave_and_lastsave_are_as_in_redis() {
    let mut cluster = Cluster::prepare(1);
    // Half a megabyte a second: one that is being taken is seen.
    cluster.set_args(1, &["--snapshot-bytes-per-second", "524288"]);
    cluster.start_one(1);
    cluster.until_leader();
    let ask = |line: &str| -> RedisResult<Value> {
        let words: Vec<&str> = line.split(' ').collect();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query(&mut cluster.client(1))
    };
    assert_eq!(ask("LASTSAVE"), Ok(Value::Int(0)), "none by this process");
    fill(&cluster, 1, 10, 10);
    let started = Ok(Value::SimpleString("Background saving started".into()));
    assert_eq!(ask("BGSAVE"), started);
    let error = ask("BGSAVE").expect_err("one is under way");
    assert!(
        error
            .to_string()
            .contains("Background save already in progress"),
        "{error}"
    );
    assert!(ask("BGSAVE NOW").is_err());
    let section = cluster
        .section(1, "persistence")
        .expect("while it is taken, the server answers");
    assert_eq!(section.text("rdb_bgsave_in_progress"), "1");
    // It goes on with its commands meanwhile.
    assert_eq!(cluster.incr(1, "a"), 1);
    let saved = until_some("it is finished", || match ask("LASTSAVE") {
        Ok(Value::Int(0)) => None,
        Ok(Value::Int(seconds)) => Some(seconds),
        other => panic!("{other:?}"),
    });
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs() as i64;
    assert!(
        (now - 60..=now).contains(&saved),
        "{saved}, and it is {now}"
    );
    until("it says so", || {
        let section = cluster.section(1, "persistence").expect("it answers");
        section.text("rdb_bgsave_in_progress") == "0"
    });
    let index = snapshot_number(&cluster, 1, "snapshot_index");
    assert!(index >= 10, "{index}");
    assert_eq!(snapshot_number(&cluster, 1, "snapshot_taken"), 1);
    let bytes = snapshot_number(&cluster, 1, "snapshot_bytes");
    assert!(bytes > 600_000, "ten long keys are in it: {bytes}");
}

/// A follower is stopped, and the others' logs go on without the entries that it would need next. Returns it.
fn leave_one_behind(cluster: &mut Cluster) -> usize {
    let leader = cluster.until_leader();
    let away = leader % 3 + 1;
    // It has begun, and is not new when it comes back.
    fill(cluster, leader, 4, 4);
    until("it has applied some", || {
        cluster
            .info(away)
            .is_some_and(|info| info.number("applied") > 4)
    });
    let had = cluster.info(away).expect("it answers").number("last");
    cluster.kill(away);
    fill(cluster, leader, 40, 260);
    for id in cluster.running() {
        until_compacted(cluster, id, had);
    }
    away
}

#[test]
fn a_follower_that_was_away_too_long_is_sent_a_snapshot_under_load() {
    let mut cluster = Cluster::start_with_args(3, &OFTEN);
    let load = Load::start(&cluster, "a", 4);
    let away = leave_one_behind(&mut cluster);
    load.until_more(50);
    cluster.start_one(away);
    until("it has restored a snapshot", || {
        snapshot_number(&cluster, away, "snapshot_restored") > 0
    });
    load.until_more(100);
    finish(&cluster, load);
    assert_eq!(cluster.get(away, &long_key(39)), 239);
}

/// Nothing is written meanwhile: no other snapshot is due, and the next scrub is an hour away.
fn gets_through_although_the_snapshots_are(damage: fn(&Path)) {
    let mut args = OFTEN.to_vec();
    args[3] = "0"; // Only a snapshot helps.
    let mut cluster = Cluster::start_with_args(3, &args);
    let away = leave_one_behind(&mut cluster);
    for id in cluster.running() {
        let files = snapshots(&cluster.data(id));
        assert!(!files.is_empty());
        files.iter().for_each(|file| damage(file));
    }
    cluster.start_one(away);
    until("it has restored a snapshot", || {
        snapshot_number(&cluster, away, "snapshot_restored") > 0
    });
    cluster.until_equal();
    assert_eq!(cluster.get(away, &long_key(39)), 239);
    assert_same_state(&cluster);
}

#[test]
fn a_leader_whose_snapshots_were_removed_takes_another_for_its_follower() {
    gets_through_although_the_snapshots_are(|file| {
        std::fs::remove_file(file).expect("it is there");
    });
}

#[test]
fn a_leader_whose_snapshots_are_rotten_takes_another_for_its_follower() {
    gets_through_although_the_snapshots_are(|file| {
        let mut bytes = std::fs::read(file).expect("it is there");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(file, bytes).expect("it is written");
    });
}

#[test]
fn the_leader_is_killed_half_way_through_sending_a_snapshot() {
    // The state is about 2.4 MB.
    let mut args = OFTEN.to_vec();
    args.extend(["--snapshot-bytes-per-second", "1048576"]);
    let mut cluster = Cluster::start_with_args(3, &args);
    let load = Load::start(&cluster, "a", 4);
    let away = leave_one_behind(&mut cluster);
    cluster.start_one(away);
    cluster.until_answers(away);
    let from = until_some("it has a part of a snapshot", || {
        let section = cluster.section(away, "snapshot")?;
        let fields: BTreeMap<&str, u64> = section
            .text("snapshot_receiving")
            .split(',')
            .filter_map(|field| field.split_once('='))
            .map(|(name, value)| (name, value.parse().expect("a number")))
            .collect();
        let (bytes, of) = (*fields.get("bytes")?, fields["of_bytes"]);
        (0 < bytes && bytes < of).then_some(fields["peer"] as usize)
    });
    assert_eq!(snapshot_number(&cluster, away, "snapshot_restored"), 0);
    cluster.kill(from);
    let rest: Vec<usize> = cluster.running();
    until("it has restored the snapshot of another leader", || {
        snapshot_number(&cluster, away, "snapshot_restored") > 0
    });
    cluster.until_leader_of(&rest);
    load.until_more(50);
    cluster.start_one(from);
    cluster.until_leader();
    load.until_more(50);
    finish(&cluster, load);
    assert_eq!(cluster.get(away, &long_key(39)), 239);
}

#[test]
fn all_start_from_their_snapshots_with_what_was_acknowledged() {
    let mut cluster = Cluster::start_with_args(3, &OFTEN);
    let load = Load::start(&cluster, "a", 3);
    for _ in 0..2 {
        fill(&cluster, 1, 20, 200);
        for id in cluster.ids() {
            until_compacted(&cluster, id, 0);
            assert!(snapshot_number(&cluster, id, "snapshot_index") > 0);
        }
        load.until_more(20);
        for id in cluster.ids() {
            cluster.kill(id);
        }
        for id in cluster.ids() {
            cluster.start_one(id);
        }
        cluster.until_leader();
        load.until_more(20);
    }
    finish(&cluster, load);
    assert_eq!(cluster.get(2, &long_key(19)), 199);
}

/// LESSONS 52.
#[test]
fn a_node_alone_reads_before_it_writes_after_a_start_from_a_snapshot() {
    let mut cluster = Cluster::start_with_args(1, &OFTEN);
    fill(&cluster, 1, 20, 200);
    let first = until_compacted(&cluster, 1, 0);
    for n in 1..=5 {
        assert_eq!(cluster.incr(1, "a"), n);
    }
    for round in 1..=2 {
        cluster.kill(1);
        cluster.start_one(1);
        assert_eq!(cluster.get(1, "a"), 5, "round {round}");
        assert_eq!(cluster.get(1, &long_key(19)), 199, "round {round}");
        assert!(snapshot_number(&cluster, 1, "log_first") >= first);
    }
    assert_eq!(cluster.incr(1, "a"), 6);
}

fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0; // It, or what was in it, has gone since it was listed.
    };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// A day of counting, scaled down by size: sixty times the interval between two snapshots goes through the log, and at
/// each step a directory holds no more than is promised. `RINGRAFT_IT_INTERVALS` makes it as long as wanted.
#[test]
fn disk_use_is_bounded() {
    let intervals = std::env::var("RINGRAFT_IT_INTERVALS")
        .map_or(60, |count| count.parse().expect("a number of intervals"));
    let (interval, segment) = (2 * MIB, 4 * MIB);
    let mut cluster = Cluster::start_with_args(3, &OFTEN);
    let (mut most, mut written) = (0, 0);
    let mut n = 0;
    while written < intervals * interval {
        // All counters have their place in the state; no more come.
        for _ in 0..8 {
            let at = 1 + n % 3;
            let () = cluster.ask(at, &["SET", &long_key(n % 20), &n.to_string()]);
            written += 60_000;
            n += 1;
        }
        for id in cluster.ids() {
            let snapshot = snapshot_number(&cluster, id, "snapshot_bytes");
            // Two snapshots and the one that is being taken; what they leave of the log, which begins within a
            // segment and ends within one; the spare, and four segments that wait for their next life; the small files.
            let bound = 3 * snapshot.max(20 * 60_100) + 3 * interval + 7 * segment + 64 * 1024;
            // What is written while a snapshot is being taken waits for the next one, so it may be over the bound by as much
            // as that takes; but not for long, and never without end.
            let bytes = bytes_below(&cluster.data(id));
            assert!(
                bytes <= 2 * bound,
                "server {id}: {bytes} bytes after {written}, far over the bound of {bound}"
            );
            until("a directory is within its bound again", || {
                bytes_below(&cluster.data(id)) <= bound
            });
            most = most.max(bytes);
        }
    }
    println!("{written} bytes written, {most} on disk at the most");
    let first = until_compacted(&cluster, 1, 0);
    assert!(
        first > 1000,
        "the log was let go of again and again: {first}"
    );
    let last = n - 1;
    cluster.kill(2);
    cluster.start_one(2);
    assert_eq!(cluster.get(2, &long_key(last % 20)), last as i64);
    assert_same_state(&cluster);
}
