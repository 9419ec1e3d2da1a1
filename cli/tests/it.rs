//! The tool on real directories: sound ones, each kind of damage, and that looking changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use serde_json::Value;
use storage::record::{self, Header};
use storage::{Disk, Log, Options, Recovered, SnapshotMeta, StorageError, Vote};

const RECORDS: u64 = 60;

/// The data directory of a node with one group of three segments, 60 records of terms 1 and 2.
struct Node {
    data: tempfile::TempDir,
}

fn options() -> Options {
    let mut options = Options::default();
    options.segment_bytes = 16 << 10;
    options.max_record_bytes = 4 << 10;
    options
}

impl Node {
    fn new() -> Node {
        let node = Node {
            data: tempfile::tempdir().expect("a temporary directory"),
        };
        let (mut log, _) = node.open(options()).expect("a new log");
        let mut peers = log.known_peers();
        assert!(peers.meet(1, 0x11).expect("written"));
        assert!(peers.meet(3, 0x33).expect("written"));
        for index in 1..=RECORDS {
            let term = if index <= 10 { 1 } else { 2 };
            let header = Header {
                index,
                term,
                time_us: 7,
                origin: 2,
                token: index,
                kind: 1,
            };
            let mut batch = Vec::new();
            record::encode_into(
                &mut batch,
                &header,
                format!("entry {index}\n{}", "x".repeat(500)).as_bytes(),
            );
            log.append(&batch, index, index).expect("appended");
            log.start_flush().expect("begun");
            log.wait_flush().expect("flushed");
        }
        log.save_vote(Vote {
            term: 2,
            voted_for: Some(3),
        })
        .expect("saved");
        log.close().expect("closed");
        node
    }

    fn group(&self) -> PathBuf {
        self.data.path().join("group-0")
    }

    fn open(&self, options: Options) -> Result<(Log<Disk>, Recovered), StorageError> {
        Log::open(Disk::new(self.group()), options, 0xC1, 0, 2)
    }

    fn flip(&self, file: &str, at: usize) {
        let path = self.group().join(file);
        let mut bytes = fs::read(&path).expect("read");
        bytes[at] ^= 0x10;
        fs::write(&path, bytes).expect("written");
    }

    /// Where record `index` begins, as the tool says.
    fn place(&self, index: u64) -> (String, usize) {
        let at = index.to_string();
        let done = self.run(&["log", "dump", "--json", "--from", &at, "--to", &at]);
        let line: Value = serde_json::from_slice(&done.stdout).expect("an object");
        let (file, offset) = (line["file"].as_str(), line["offset"].as_u64());
        (
            file.expect("a file").to_owned(),
            offset.expect("an offset") as usize,
        )
    }

    fn run(&self, args: &[&str]) -> Output {
        run(self.data.path(), args)
    }

    fn json(&self, args: &[&str], code: i32) -> Value {
        let done = self.run(&[args, &["--json"]].concat());
        assert_eq!(done.status.code(), Some(code), "{}", text(&done));
        serde_json::from_slice(&done.stdout).expect("JSON")
    }

    fn text(&self, args: &[&str], code: i32) -> String {
        let done = self.run(args);
        assert_eq!(done.status.code(), Some(code), "{}", text(&done));
        text(&done)
    }

    /// All files with contents and times.
    fn picture(&self) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.data.path().to_owned()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).expect("listed") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    open.push(path);
                    continue;
                }
                let time = path
                    .metadata()
                    .and_then(|of| of.modified())
                    .expect("a time");
                found.insert(path.clone(), (fs::read(&path).expect("read"), time));
            }
        }
        found
    }
}

fn run(dir: &Path, args: &[&str]) -> Output {
    let (command, rest) = args.split_at(args.len().min(if args[0] == "repair" { 1 } else { 2 }));
    Command::new(env!("CARGO_BIN_EXE_ringraft"))
        .args(command)
        .arg(dir)
        .args(rest)
        .output()
        .expect("it runs")
}

fn text(done: &Output) -> String {
    let [out, err] = [&done.stdout, &done.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{out}{err}")
}

#[test]
fn a_sound_directory() {
    let node = Node::new();
    let before = node.picture();
    let said = node.text(&["log", "info"], 0);
    assert!(said.contains("cluster 0xc1, group 0, node 2"), "{said}");
    assert!(
        said.contains("term 2, vote for node 3") && said.contains("1 (0x11), 3 (0x33)"),
        "{said}"
    );
    assert!(said.contains("SOUND: records 1..=60"), "{said}");
    let segments: Vec<_> = said
        .lines()
        .filter(|line| line.contains("in use"))
        .collect();
    assert_eq!(segments.len(), 3, "{said}");
    assert!(
        segments[0].contains("1..=") && segments[0].contains("terms 1..=2"),
        "{said}"
    );
    assert!(
        segments[0].contains("sealed") && segments[0].ends_with("start: kept"),
        "{said}"
    );
    assert!(segments[2].contains("the end; flushed to 60"), "{said}");
    assert!(node.text(&["log", "verify"], 0).contains("SOUND"));

    let info = &node.json(&["log", "info"], 0)["directories"][0];
    assert_eq!(
        (&info["sound"], &info["term"], &info["voted_for"]),
        (&true.into(), &2.into(), &3.into())
    );
    assert_eq!(
        (&info["alone"]["first"], &info["alone"]["last"]),
        (&1.into(), &60.into())
    );
    assert_eq!(info["segments"][0]["state"], "in use");
    assert_eq!(info["segments"][0]["marker"]["kind"], "seal");
    assert_eq!(
        node.json(&["log", "verify"], 0)["directories"][0]["sound"],
        true
    );
    assert!(node.picture() == before, "a file was changed");
}

#[test]
fn records_are_dumped() {
    let node = Node::new();
    let lines = node.text(
        &["log", "dump", "--from", "9", "--to", "12", "--limit", "9"],
        0,
    );
    let indexes: Vec<_> = lines
        .lines()
        .map(|line| line.split_whitespace().next().expect("an index"))
        .collect();
    assert_eq!(indexes, ["9", "10", "11", "12"]);
    assert!(
        lines.contains(r"entry 10\n…") && lines.contains("term 2"),
        "{lines}"
    );
    let lines = node.text(
        &[
            "log",
            "dump",
            "--to",
            "1",
            "--limit",
            "5",
            "--payload",
            "hex",
        ],
        0,
    );
    assert!(lines.contains("656e747279…"), "{lines}");
    let done = node.run(&["log", "dump", "--json", "--payload", "none"]);
    let lines: Vec<Value> = done
        .stdout
        .split(|&b| b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("an object"))
        .collect();
    assert_eq!(lines.len() as u64, RECORDS);
    assert_eq!(
        (&lines[59]["index"], &lines[59]["token"]),
        (&60.into(), &"0x3c".into())
    );
    let said = node.text(&["log", "dump", "--from", "9", "--to", "8"], 2);
    assert!(said.contains("--from 9"), "{said}");
}

#[test]
fn each_kind_of_damage_is_named_with_its_place() {
    let bad_record = |node: &Node| {
        let (file, at) = node.place(5);
        node.flip(&file, at + 60);
        format!("{file} is damaged at offset {at}, index 5").replace("log/", "")
    };
    type Damage<'a> = (&'a str, &'a dyn Fn(&Node) -> String);
    let kinds: [Damage<'_>; 7] = [
        ("a record", &bad_record),
        ("a header", &|node| {
            node.flip("log/0000000000000002.seg", 20);
            "0000000000000002.seg is damaged at offset 8".into()
        }),
        ("a missing segment", &|node| {
            fs::remove_file(node.group().join("log/0000000000000002.seg")).expect("removed");
            "the next segment begins with".into()
        }),
        ("a shorter file", &|node| {
            let path = node.group().join("log/0000000000000001.seg");
            let file = fs::OpenOptions::new()
                .write(true)
                .open(path)
                .expect("opened");
            file.set_len(5000).expect("cut");
            "the file has 5000 bytes".into()
        }),
        ("both copies of the vote", &|node| {
            node.flip("meta", 30);
            node.flip("meta", 4096 + 30);
            "meta: both copies".into()
        }),
        ("one copy of the identity", &|node| {
            node.flip("identity", 4096 + 20);
            "identity: one of its two copies is damaged".into()
        }),
        ("both copies of the peers", &|node| {
            node.flip("peers", 20);
            node.flip("peers", 4096 + 20);
            "peers: damaged".into()
        }),
    ];
    for (what, damage) in kinds {
        let node = Node::new();
        let expected = damage(&node);
        let before = node.picture();
        for command in ["info", "verify"] {
            let said = node.text(&["log", command], 1);
            assert!(
                said.contains("DAMAGED") && said.contains(&expected),
                "{what}: {said}"
            );
            let said = node.json(&["log", command], 1);
            let damage = said["directories"][0]["damage"].to_string();
            assert!(damage.contains(&expected), "{what}: {damage}");
        }
        node.run(&["log", "dump"]);
        assert!(node.picture() == before, "{what}: a file was changed");
    }
}

#[test]
fn a_directory_that_may_only_be_read() {
    let node = Node::new();
    let (file, at) = node.place(30);
    node.flip(&file, at);
    let before = node.picture();
    let modes = |file: u32, folder: u32| {
        let mut paths: Vec<_> = before.keys().map(|path| (path.clone(), file)).collect();
        paths.push((node.group().join("log"), folder));
        paths.push((node.group(), folder));
        paths.push((node.data.path().to_owned(), folder));
        for (path, mode) in paths {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
        }
    };
    modes(0o444, 0o555);
    let said = node.text(&["log", "info"], 1);
    assert!(said.contains("index 30"), "{said}");
    let lines = node.text(&["log", "dump", "--payload", "none"], 1);
    assert_eq!(
        lines.lines().count() as u64,
        RECORDS,
        "one of them is the bad place"
    );
    modes(0o644, 0o755);
    assert!(node.picture() == before, "a file was changed");
}

#[test]
fn a_shorter_log_is_accepted_when_somebody_says_so() {
    let node = Node::new();
    assert!(
        node.text(&["repair", "--unsafe-accept-shorter-log"], 0)
            .contains("it starts as it is")
    );
    let (file, at) = node.place(40);
    node.flip(&file, at);
    assert!(node.open(options()).is_err());
    let before = node.picture();
    let said = node.text(&["repair", "--unsafe-accept-shorter-log"], 2);
    assert!(
        said.contains("records 40..=60 are LOST") && said.contains("say --yes"),
        "{said}"
    );
    let after = node.picture();
    let changed = before
        .iter()
        .filter(|(path, was)| !path.ends_with("LOCK") && after.get(*path) != Some(was));
    assert_eq!(changed.count(), 0, "nothing but the lock is touched");

    // Not below a node that runs.
    let running = Disk::new(node.group());
    let held = storage::Dir::lock(&running, "LOCK").expect("free");
    let said = node.text(&["repair", "--unsafe-accept-shorter-log", "--yes"], 2);
    assert!(said.contains("the node runs (pid"), "{said}");
    drop(held);

    let said = node.json(&["repair", "--unsafe-accept-shorter-log", "--yes"], 0);
    assert_eq!(said["done"], true);
    assert!(said["files"].to_string().contains("record 40"), "{said}");
    assert!(
        node.text(&["log", "info"], 0)
            .contains("SOUND: records 1..=39")
    );
    let (log, found) = node.open(options()).expect("it opens");
    assert_eq!((log.last(), found.data_loss), (39, None));
}

#[test]
fn healing_is_shown_and_forgotten_when_somebody_says_so() {
    let node = Node::new();
    let (file, at) = node.place(40);
    node.flip(&file, at);
    let mut healing = options();
    healing.heal = true;
    let (log, found) = node.open(healing).expect("it heals");
    assert_eq!(found.data_loss.expect("it heals").upto, 60);
    log.close().expect("closed");
    let said = node.text(&["log", "verify"], 1);
    assert!(said.contains("may lack records up to 60"), "{said}");
    assert_eq!(
        node.json(&["log", "info"], 1)["directories"][0]["heal"]["upto"],
        60
    );
    let said = node.text(&["repair", "--unsafe-forget-heal"], 2);
    assert!(said.contains("may LACK records up to 60"), "{said}");
    node.text(&["repair", "--unsafe-forget-heal", "--yes"], 0);
    assert_eq!(node.open(options()).expect("it opens").1.data_loss, None);
    assert!(
        node.text(&["repair", "--unsafe-forget-heal"], 0)
            .contains("vouches for its log already")
    );
}

#[test]
fn peers_are_forgotten_when_somebody_says_so() {
    let node = Node::new();
    node.flip("peers", 20);
    node.flip("peers", 4096 + 20);
    assert!(node.open(options()).is_err());
    node.text(&["repair", "--unsafe-forget-peers"], 2);
    node.text(&["repair", "--unsafe-forget-peers", "--yes"], 0);
    let (log, _) = node.open(options()).expect("it opens");
    assert_eq!(log.known_peers().list(), []);
}

#[test]
fn the_command_line_is_checked() {
    let empty = tempfile::tempdir().expect("a temporary directory");
    let said = run(empty.path(), &["log", "info"]);
    assert_eq!(said.status.code(), Some(2));
    assert!(
        text(&said).contains("no data directory of a node"),
        "{}",
        text(&said)
    );
    let said = run(&empty.path().join("nowhere"), &["log", "verify"]);
    assert_eq!(said.status.code(), Some(2));
    assert!(text(&said).contains("nowhere"), "{}", text(&said));
    let node = Node::new();
    for args in [
        &["repair"][..],
        &["repair", "--unsafe-forget-heal", "--unsafe-forget-peers"],
    ] {
        assert_eq!(node.run(args).status.code(), Some(2));
    }
    // The directory of a group is one too; with two groups, one has to be named for a repair.
    assert_eq!(
        run(&node.group(), &["log", "verify"]).status.code(),
        Some(0)
    );
    let second = node.data.path().join("group-1");
    Log::open(Disk::new(&second), options(), 0xC1, 1, 2)
        .expect("a new log")
        .0
        .close()
        .expect("closed");
    let said = node.text(&["repair", "--unsafe-forget-heal"], 2);
    assert!(said.contains("one group at a time"), "{said}");
    let said = node.json(&["log", "verify"], 0);
    assert_eq!(said["directories"].as_array().map(Vec::len), Some(2));
}

#[test]
fn snapshots_are_read_to_their_end() {
    let node = Node::new();
    assert!(
        node.text(&["snapshot", "verify"], 0)
            .contains("no snapshot")
    );
    let (log, _) = node.open(options()).expect("it opens");
    let snapshots = log.snapshots();
    let mut names = Vec::new();
    for index in [20, 40] {
        let meta = SnapshotMeta {
            index,
            term: 2,
            time_us: 7,
            members: b"1,2,3".to_vec(),
        };
        let mut file = snapshots.create(&meta).expect("begun");
        file.write_all(&[7; 5000]).expect("written");
        let id = file.finish().expect("finished");
        names.push(format!(
            "snap/{index:016}-2-{}-{:08x}.snap",
            id.bytes, id.digest
        ));
    }
    drop(snapshots);
    log.close().expect("closed");
    let before = node.picture();
    let said = node.text(&["snapshot", "info"], 0);
    assert!(names.iter().all(|name| said.contains(name)), "{said}");
    assert!(
        said.contains("index 40, term 2") && said.contains("SOUND: 2 of 2"),
        "{said}"
    );
    assert!(node.picture() == before, "a file was changed");

    node.flip(&names[1], 700);
    let said = node.text(&["snapshot", "verify"], 1);
    assert!(
        said.contains(&names[1]) && said.contains("DAMAGED: 1 of 2"),
        "{said}"
    );
    let said = node.json(&["snapshot", "info"], 1);
    assert_eq!(said["directories"][0]["snapshots"][0]["sound"], true);
    assert_eq!(said["directories"][0]["snapshots"][1]["sound"], false);
    // Each by itself; and the log says it too.
    let one = |name: &String| {
        run(&node.group().join(name), &["snapshot", "verify"])
            .status
            .code()
    };
    assert_eq!((one(&names[0]), one(&names[1])), (Some(0), Some(1)));
    assert!(
        node.text(&["log", "verify"], 1)
            .contains("snapshot, damaged")
    );
}
