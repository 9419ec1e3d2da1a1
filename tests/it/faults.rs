//! The counter while things go wrong: killed, stalled, starved of disk, lied to.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tempfile::TempDir;

use crate::cluster::{Cluster, Outcome, incr};
use crate::{DEADLINE, until};

/// Clients that increment one counter, each moving on to the next server when its own is gone.
struct Load {
    clients: Vec<JoinHandle<Tally>>,
    acknowledged: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Tally {
    values: Vec<i64>,
    unknown: usize,
}

impl Load {
    fn start(cluster: &Cluster, key: &'static str, clients: usize) -> Self {
        let ports: Vec<u16> = cluster.ids().map(|id| cluster.client_port(id)).collect();
        let (acknowledged, stop) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let clients = (0..clients)
            .map(|first| {
                let (ports, acknowledged, stop) =
                    (ports.clone(), acknowledged.clone(), stop.clone());
                std::thread::spawn(move || {
                    let mut tally = Tally::default();
                    for at in first.. {
                        let Ok(mut connection) = crate::cluster::connect(ports[at % ports.len()])
                        else {
                            if stop.load(Ordering::Relaxed) {
                                break;
                            }
                            std::thread::yield_now();
                            continue;
                        };
                        loop {
                            if stop.load(Ordering::Relaxed) {
                                return tally;
                            }
                            match incr(&mut connection, key) {
                                Outcome::Done(value) => {
                                    tally.values.push(value);
                                    acknowledged.fetch_add(1, Ordering::Relaxed);
                                }
                                Outcome::Refused => std::thread::yield_now(),
                                Outcome::Unknown => {
                                    tally.unknown += 1;
                                    break; // On to the next server.
                                }
                            }
                        }
                    }
                    tally
                })
            })
            .collect();
        Self {
            clients,
            acknowledged,
            stop,
        }
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn until_more(&self, count: usize) {
        let enough = self.acknowledged() + count;
        until(format_args!("{count} more increments"), || {
            self.acknowledged() >= enough
        });
    }

    fn finish(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for client in self.clients {
            let tally = client.join().expect("a client is content");
            all.values.extend(tally.values);
            all.unknown += tally.unknown;
        }
        all
    }
}

/// Nothing that was acknowledged is lost, nothing is counted twice, and no two clients got one value.
fn check(tally: &Tally, final_value: i64) {
    let acknowledged = tally.values.len();
    let distinct: HashSet<i64> = tally.values.iter().copied().collect();
    assert_eq!(
        distinct.len(),
        acknowledged,
        "each acknowledged increment has a value of its own"
    );
    let largest = distinct.iter().max().copied().unwrap_or(0);
    assert!(
        largest <= final_value,
        "{largest} was acknowledged and the value is {final_value}"
    );
    assert!(
        (acknowledged as i64..=(acknowledged + tally.unknown) as i64).contains(&final_value),
        "{acknowledged} acknowledged, {} in doubt, and the value is {final_value}",
        tally.unknown
    );
}

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

/// Bytes without meaning, the same in each run.
fn garbage(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect()
}

fn dial(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("a limit on reading");
    stream
        .set_write_timeout(Some(DEADLINE))
        .expect("a limit on writing");
    stream
}

/// Sends, and reads until the server ends the connection: what it said.
fn send_until_closed(port: u16, bytes: &[u8]) -> String {
    let mut stream = dial(port);
    // A server that has heard enough may close before it has taken all.
    let _ = stream.write_all(bytes);
    until_closed(&mut stream)
}

fn until_closed(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server neither answers nor closes: {error}"),
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn malformed_commands_end_their_own_connection_and_nothing_else() {
    let cluster = Cluster::start(3);
    let leader = cluster.until_leader();
    let port = cluster.client_port(leader);
    let load = Load::start(&cluster, "a", 2);
    load.until_more(20);

    for bytes in [
        &b"*2\r\n$3\r\nGET\r\n$999999999\r\n"[..],
        b"*1000000000\r\n",
        b"*2\r\n$3\r\nGET\r\n$-5\r\n",
        b"*2\r\n$3\r\nGET\r\n:5\r\n",
        b"*99999999999999999999999\r\n",
        b"*1\r\n$4\r\nPINGxx",
        &[
            &b"*2\r\n$4\r\nINCR\r\n$1048577000\r\n"[..],
            &[b'x'; 200_000],
        ]
        .concat(),
        &[b'x'; 300_000],
    ] {
        let said = send_until_closed(port, bytes);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        assert!(
            said.is_empty() || said.starts_with("-ERR Protocol error"),
            "{shown:?}: {said:?}"
        );
    }

    // A key that is longer than a counter's name may be is an error, and the connection goes on.
    let mut stream = dial(port);
    let key = "k".repeat(70_000);
    write!(stream, "*2\r\n$4\r\nINCR\r\n$70000\r\n{key}\r\nPING\r\n").expect("it is taken");
    let said = until_line(&mut stream, "+PONG\r\n");
    assert!(said.starts_with("-ERR"), "{said:?}");

    // Half a command waits for its other half, however long others take.
    let mut half = dial(port);
    half.write_all(b"*2\r\n$4\r\nINCR\r\n$4\r\nha")
        .expect("it is taken");
    // Bytes that mean nothing may happen to be commands nobody knows: answered or closed.
    let mut noise = dial(port);
    let _ = noise.write_all(&garbage(50_000));
    let _ = noise.shutdown(Shutdown::Write);
    load.until_more(50);
    half.write_all(b"lf\r\n").expect("it is taken");
    assert_eq!(until_line(&mut half, "\r\n"), ":1\r\n");

    // Clients that come, say half a thing, and go; and many that say nothing.
    let silent: Vec<TcpStream> = (0..200).map(|_| dial(port)).collect();
    for cut in 1..20 {
        let mut stream = dial(port);
        stream
            .write_all(&b"*2\r\n$4\r\nINCR\r\n$4\r\ncut!\r\n"[..cut])
            .expect("it is taken");
    }
    load.until_more(50);
    drop(silent);

    let tally = load.finish();
    check(&tally, cluster.get(leader, "a"));
    assert_eq!(
        cluster.get(leader, "cut!"),
        0,
        "half a command is no command"
    );
    undisturbed(&cluster);
}

/// Reads until what came ends in `end`.
fn until_line(stream: &mut TcpStream, end: &str) -> String {
    let mut said = Vec::new();
    let mut byte = [0];
    while !said.ends_with(end.as_bytes()) {
        stream.read_exact(&mut byte).unwrap_or_else(|error| {
            panic!("{error} after {:?}", String::from_utf8_lossy(&said));
        });
        said.push(byte[0]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Every process of the cluster runs, and none has panicked.
fn undisturbed(cluster: &Cluster) {
    cluster.until_leader();
    for id in cluster.ids() {
        let info = cluster.info(id).expect("it answers");
        assert_eq!(info.text("error"), "", "server {id}");
        assert!(
            !cluster.log(id).contains("panicked"),
            "server {id} panicked"
        );
    }
}

#[test]
fn garbage_on_the_raft_port_disturbs_nobody() {
    let cluster = Cluster::start(3);
    let load = Load::start(&cluster, "a", 2);
    load.until_more(20);
    let noise = garbage(100_000);
    let mut nonsense: Vec<&[u8]> = [1, 7, 8, 64, 4096, noise.len()]
        .map(|len| &noise[..len])
        .to_vec();
    nonsense.extend([
        &[0xff; 4096][..],
        &[0; 4096],
        b"GET / HTTP/1.1\r\nHost: raft\r\n\r\n",
    ]);
    let mut talking = Vec::new();
    for id in cluster.ids() {
        for bytes in &nonsense {
            let mut stream = dial(cluster.raft_port(id));
            let _ = stream.write_all(bytes); // It may be closed before it has taken all.
            talking.push(stream);
        }
    }
    // Strangers who connect and say nothing do not keep the peers out.
    let silent: Vec<TcpStream> = cluster
        .ids()
        .flat_map(|id| (0..50).map(move |_| id))
        .map(|id| dial(cluster.raft_port(id)))
        .collect();
    load.until_more(50);
    for mut stream in talking {
        until_closed(&mut stream);
    }
    load.until_more(50);
    let tally = load.finish();
    check(&tally, cluster.get(1, "a"));
    drop(silent);
    undisturbed(&cluster);
}

#[test]
fn two_processes_on_one_directory_are_told_apart() {
    let cluster = Cluster::start(3);
    let data = cluster.data(1);
    let place = data.display().to_string();
    // Under other addresses, so that nothing but the directory is in the way.
    let other = Cluster::prepare(3);
    let (code, said) = cluster.run_to_end(1, &data, &other.members);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&place) && said.contains("in use by another process"),
        "{said}"
    );
    // The same command line twice: the directory is what it is about, not the ports.
    let (code, said) = cluster.run_to_end(1, &data, &cluster.members);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&place), "{said}");
    assert!(said.contains("in use by another process"), "{said}");
    assert_eq!(cluster.incr(1, "a"), 1, "the first is not disturbed");
}

#[test]
fn a_restart_with_another_list_of_members_is_refused() {
    let mut cluster = Cluster::start(3);
    assert_eq!(cluster.incr(1, "a"), 1);
    cluster.kill(1);
    let data = cluster.data(1);
    let shorter = cluster
        .members
        .rsplit_once(',')
        .expect("three members")
        .0
        .to_owned();
    let (code, said) = cluster.run_to_end(1, &data, &shorter);
    assert_eq!(code, Some(1), "{said}");
    let place = data.display().to_string();
    assert!(said.contains(&place) && said.contains("cluster"), "{said}");
    // As somebody else.
    let (code, said) = cluster.run_to_end(3, &data, &cluster.members);
    assert_eq!(code, Some(1), "{said}");
    // Nothing was changed by the attempts; the order of the list says nothing.
    let mut turned: Vec<&str> = cluster.members.split(',').collect();
    turned.reverse();
    let turned = turned.join(",");
    cluster.start_with(1, &turned);
    cluster.until_leader();
    assert_eq!(cluster.incr(1, "a"), 2);
}

#[test]
fn a_node_of_another_cluster_is_refused_by_its_peers() {
    let cluster = Cluster::start(3);
    assert_eq!(cluster.incr(1, "a"), 1);
    // It believes that it founds a cluster of two, together with this one's node 2.
    let mut stranger = Cluster::prepare(1);
    let second = cluster.members.split(',').nth(1).expect("three members");
    let members = format!("{},{second}", stranger.members);
    stranger.start_with(1, &members);
    for (log_of, id) in [(&stranger, 1), (&cluster, 2)] {
        until(
            format_args!("the log of server {id} says why they part"),
            || {
                log_of
                    .log(id)
                    .lines()
                    .any(|line| line.contains("is not cluster 0x"))
            },
        );
    }
    let mut client = stranger.client(1);
    assert_eq!(
        incr(&mut client, "a"),
        Outcome::Refused,
        "it has no leader and no quorum"
    );
    for n in 2..=10 {
        assert_eq!(cluster.incr(n as usize % 3 + 1, "a"), n);
    }
    assert_eq!(stranger.info(1).expect("it answers").text("leader"), "0");
    undisturbed(&cluster);
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
    let value = cluster.get(leader, "a");
    match doubt.join().expect("the client is content") {
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
