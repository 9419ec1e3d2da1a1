//! The counter and those who do not belong: garbage on its ports, a second process on its directory,
//! another list of members, a node of another cluster.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::cluster::{Cluster, Outcome, incr};
use crate::load::{Load, check};
use crate::{DEADLINE, until};

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

#[test]
fn a_client_that_has_said_all_still_hears_its_answers() {
    let cluster = Cluster::start(3);
    let leader = cluster.until_leader();
    let port = cluster.client_port(leader);
    for round in 0..20 {
        let mut stream = dial(port);
        let mut requests = b"INCR last\r\n".repeat(50);
        requests.extend(b"GET last\r\nINCR las");
        stream.write_all(&requests).expect("it is taken");
        stream.shutdown(Shutdown::Write).expect("it is connected");
        let said = until_closed(&mut stream);
        let (before, last) = (round * 50, round * 50 + 50);
        let mut expected: String = (before + 1..=last).map(|n| format!(":{n}\r\n")).collect();
        expected += &format!("${}\r\n{last}\r\n", last.to_string().len());
        assert_eq!(said, expected, "round {round}");
    }
    until("those that have ended are forgotten", || {
        send_until_closed(port, b"INFO clients\r\nQUIT\r\n").contains("connected_clients:1\r")
    });
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
fn a_node_whose_directory_was_wiped_is_not_taken_back() {
    let mut cluster = Cluster::start(3);
    let wiped = cluster.until_leader() % 3 + 1;
    let others: Vec<usize> = cluster.ids().filter(|&id| id != wiped).collect();
    assert_eq!(cluster.incr(wiped, "a"), 1);
    cluster.until_equal();
    for id in cluster.ids() {
        cluster.kill(id);
    }
    let directory = cluster.data(wiped);
    let kept = directory.with_extension("kept");
    std::fs::rename(&directory, &kept).expect("moved away");

    // Alone with the wiped one, a node that remembers who it was does not lead: that one may have voted otherwise.
    cluster.start_one(others[0]);
    cluster.start_one(wiped);
    until("the wiped node is refused", || {
        cluster.log(wiped).contains("was wiped or replaced")
    });
    let info = cluster.info(others[0]).expect("it answers");
    assert_eq!(info.number("leader"), 0);
    // The others are a majority without it.
    cluster.start_one(others[1]);
    let leader = cluster.until_leader_of(&others);
    assert_eq!(cluster.incr(leader, "a"), 2);

    // With its directory it is who it was.
    cluster.kill(wiped);
    std::fs::remove_dir_all(&directory).expect("removed");
    std::fs::rename(&kept, &directory).expect("moved back");
    cluster.start_one(wiped);
    cluster.until_leader();
    cluster.until_equal();
    assert_eq!(cluster.get(wiped, "a"), 2);
}

#[test]
fn two_nodes_whose_directories_were_wiped_do_not_elect_each_other() {
    let mut cluster = Cluster::start(3);
    assert_eq!(cluster.incr(1, "a"), 1);
    cluster.until_equal();
    for id in cluster.ids() {
        cluster.kill(id);
    }
    for id in [2, 3] {
        cluster.remove_data(id);
    }
    let is_excluded = |cluster: &Cluster, id| {
        let info = cluster.info(id)?;
        info.find("excluded").map(|why| {
            assert!(why.contains("takes no part"), "{why}");
            assert_eq!(info.number("leader"), 0, "{info}");
        })
    };
    for id in cluster.ids() {
        cluster.start_one(id);
    }
    for id in [2, 3] {
        until("a wiped node is excluded", || {
            is_excluded(&cluster, id).is_some()
        });
        cluster.until_logs(id, "mount the volume");
    }
    // They do not forget it when the one that knows is away.
    for id in cluster.ids() {
        cluster.kill(id);
    }
    for id in [2, 3] {
        cluster.start_one(id);
    }
    for id in [2, 3] {
        cluster.until_answers(id);
        assert!(is_excluded(&cluster, id).is_some(), "from the start on");
    }
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
