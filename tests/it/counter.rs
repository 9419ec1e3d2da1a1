//! The counter in everyday use: any Redis client, any node, restarts in order.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use redis::{Connection, Value};

use crate::cluster::{Cluster, Outcome, incr};
use crate::{DEADLINE, until};

#[test]
fn every_port_counts_up() {
    let cluster = Cluster::start(3);
    for round in 0..5 {
        for id in cluster.ids() {
            let expected = 3 * round + id as i64;
            assert_eq!(cluster.incr(id, "a"), expected, "on server {id}");
        }
        for id in cluster.ids() {
            assert_eq!(
                cluster.get(id, "a"),
                3 * (round + 1),
                "read back on server {id}"
            );
        }
    }
    cluster.until_equal();
    let leader = cluster.until_leader();
    cluster.incr(leader, "a");
    let info = cluster.info(leader).expect("it answers");
    assert!(info.number("term") >= 1, "{info}");
    assert!(info.number("flushes") > 0, "{info}");
    assert!(info.number("commit") >= 15, "{info}");
    assert!(info.text("ring_propose").contains("depth="), "{info}");
    // And where the time of the leader's own commands went.
    assert!(info.text("hop_total").contains("p99_us="), "{info}");
    assert!(info.text("slow").starts_with("p50="), "{info}");
}

#[test]
fn the_commands_and_their_errors_are_those_of_redis() {
    let cluster = Cluster::start(3);
    let leader = cluster.until_leader();
    let follower = leader % 3 + 1;
    for id in [leader, follower] {
        let mut client = cluster.client(id);
        let key = |name: &str| format!("{name}-{id}");
        let mut ask = |words: &[&str]| ask(&mut client, words);
        assert_eq!(ask(&["PING"]), Ok(Value::SimpleString("PONG".into())));
        assert_eq!(ask(&["ECHO", "hello"]), Ok(bulk("hello")));
        assert_eq!(ask(&["SET", &key("a"), "41"]), Ok(Value::Okay));
        assert_eq!(ask(&["INCR", &key("a")]), Ok(Value::Int(42)));
        assert_eq!(ask(&["GET", &key("a")]), Ok(bulk("42")));
        assert_eq!(ask(&["DECRBY", &key("a"), "2"]), Ok(Value::Int(40)));
        assert_eq!(ask(&["GETSET", &key("a"), "7"]), Ok(bulk("40")));
        assert_eq!(ask(&["CAS", &key("a"), "6", "8"]), Ok(Value::Int(0)));
        assert_eq!(ask(&["CAS", &key("a"), "7", "8"]), Ok(Value::Int(1)));
        assert_eq!(
            ask(&["MGET", &key("a"), &key("none")]),
            Ok(Value::Array(vec![bulk("8"), Value::Nil]))
        );
        assert_eq!(ask(&["EXISTS", &key("a"), &key("none")]), Ok(Value::Int(1)));
        assert_eq!(ask(&["DEL", &key("a"), &key("none")]), Ok(Value::Int(1)));
        assert_eq!(ask(&["GET", &key("a")]), Ok(Value::Nil));

        let largest = i64::MAX.to_string();
        assert_eq!(ask(&["SET", &key("max"), &largest]), Ok(Value::Okay));
        for (words, says) in [
            (
                vec!["INCR".to_owned(), key("max")],
                "increment or decrement would overflow",
            ),
            (
                vec!["SET".into(), key("b"), "text".into()],
                "value is not an integer or out of range",
            ),
            (
                vec!["GET".into()],
                "wrong number of arguments for 'get' command",
            ),
            (vec!["FLUSHALL".into()], "unknown command 'FLUSHALL'"),
            (
                vec!["SELECT".into(), "1".into()],
                "DB index is out of range",
            ),
        ] {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let error = ask(&words).expect_err("an error");
            assert!(error.contains(says), "{words:?}: {error}");
        }
        assert_eq!(
            ask(&["GET", &key("max")]),
            Ok(bulk(&largest)),
            "errors changed nothing"
        );
    }
}

fn ask(client: &mut Connection, words: &[&str]) -> Result<Value, String> {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command
        .query::<Value>(client)
        .map_err(|error| error.to_string())
}

fn bulk(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

#[test]
fn a_pipeline_is_answered_in_its_order_on_any_node() {
    let cluster = Cluster::start(3);
    for id in cluster.ids() {
        let mut client = cluster.client(id);
        let key = format!("p{id}");
        let mut pipeline = redis::pipe();
        for _ in 0..300 {
            pipeline
                .cmd("INCR")
                .arg(&key)
                .cmd("GET")
                .arg(&key)
                .cmd("PING");
        }
        let replies: Vec<Value> = pipeline.query(&mut client).expect("it is answered");
        assert_eq!(replies.len(), 900);
        for (at, three) in replies.chunks(3).enumerate() {
            let n = at as i64 + 1;
            assert_eq!(three[0], Value::Int(n));
            assert_eq!(
                three[1],
                bulk(&n.to_string()),
                "a read sees the write before it"
            );
            assert_eq!(three[2], Value::SimpleString("PONG".into()));
        }
    }
}

#[test]
fn values_survive_kill_9_of_all_and_a_restart_in_order() {
    let mut cluster = Cluster::start(3);
    for n in 1..=20 {
        let id = n as usize % 3 + 1;
        assert_eq!(cluster.incr(id, "kept"), n);
    }
    for id in cluster.ids() {
        cluster.kill(id);
    }
    for id in cluster.ids() {
        cluster.start_one(id);
    }
    cluster.until_leader();
    for id in cluster.ids() {
        assert_eq!(
            cluster.get(id, "kept"),
            20,
            "on server {id}, after kill -9 of all"
        );
    }
    assert_eq!(cluster.incr(1, "kept"), 21);

    for id in cluster.ids() {
        let status = cluster.terminate(id);
        assert_eq!(
            status.code(),
            Some(0),
            "server {id} leaves in order: {status}"
        );
    }
    for id in cluster.ids() {
        cluster.start_one(id);
    }
    cluster.until_leader();
    for id in cluster.ids() {
        assert_eq!(
            cluster.get(id, "kept"),
            21,
            "on server {id}, after a restart in order"
        );
    }
}

#[test]
fn a_server_that_is_asked_to_leave_does_so_under_load() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.until_leader();
    let mut client = cluster.client(leader);
    let load = std::thread::spawn(move || {
        let mut acknowledged = 0;
        loop {
            match incr(&mut client, "a") {
                Outcome::Done(value) => acknowledged = value,
                Outcome::Refused => {}
                Outcome::Unknown => return acknowledged, // The connection is gone.
            }
        }
    });
    until("the load runs", || cluster.get(leader, "a") > 10);
    let status = cluster.terminate(leader);
    assert_eq!(status.code(), Some(0), "{status}");
    let acknowledged = load.join().expect("the client is content");
    let next = cluster.until_leader();
    let value = cluster.get(next, "a");
    assert!(
        (acknowledged..=acknowledged + 1).contains(&value),
        "{acknowledged} acknowledged, one in doubt at the most, and the value is {value}"
    );
}

#[test]
fn every_thread_plan_and_the_flush_thread_serve_one_cluster() {
    let mut cluster = Cluster::prepare(3);
    cluster.set_args(1, &["--threads", "per-stage"]);
    cluster.set_args(2, &["--threads", "shared", "--flush", "thread"]);
    cluster.set_args(3, &["--threads", "auto"]);
    for id in cluster.ids() {
        cluster.start_one(id);
    }
    cluster.until_leader();
    for n in 1..=30 {
        assert_eq!(cluster.incr(n as usize % 3 + 1, "a"), n);
    }
    cluster.until_equal();
}

#[test]
fn a_bad_command_line_is_refused_with_code_2() {
    let cluster = Cluster::prepare(1);
    let data = cluster.data(1);
    for (id, members) in [(1, "1=nonsense"), (2, cluster.members.as_str()), (1, "")] {
        let (code, said) = cluster.run_to_end(id, &data, members);
        assert_eq!(code, Some(2), "--id {id} --members {members:?}: {said}");
        assert!(!said.trim().is_empty());
    }
}

#[test]
fn a_numbered_command_counts_once_on_whichever_server_it_is_sent_again() {
    let mut cluster = Cluster::start(3);
    let on = |cluster: &Cluster, id, text: &str| {
        let words: Vec<&str> = text.split(' ').collect();
        ask(&mut cluster.client(id), &words)
    };
    let Ok(Value::Int(session)) = on(&cluster, 1, "SESSION OPEN") else {
        panic!("a session is opened")
    };
    let incr = format!("SESSION {session} 1 INCR a");
    for id in cluster.ids() {
        assert_eq!(on(&cluster, id, &incr), Ok(Value::Int(1)), "on server {id}");
    }
    // What others do in between changes no first answer.
    assert_eq!(on(&cluster, 2, "INCRBY a 10"), Ok(Value::Int(11)));
    let get = format!("SESSION {session} 2 1 GET a");
    assert_eq!(on(&cluster, 3, &get), Ok(bulk("11")));
    assert_eq!(on(&cluster, 3, "INCR a"), Ok(Value::Int(12)));
    assert_eq!(on(&cluster, 1, &get), Ok(bulk("11")));

    let leader = cluster.until_leader();
    cluster.kill(leader);
    for id in cluster.ids().filter(|&id| id != leader) {
        assert_eq!(
            on(&cluster, id, &incr),
            Ok(Value::Int(1)),
            "{leader} killed"
        );
    }
    for id in cluster.ids().filter(|&id| id != leader) {
        cluster.kill(id);
    }
    for id in cluster.ids() {
        cluster.start_one(id);
    }
    cluster.until_leader();
    for id in cluster.ids() {
        assert_eq!(on(&cluster, id, &incr), Ok(Value::Int(1)), "all killed");
        assert_eq!(cluster.get(id, "a"), 12);
    }

    for (text, says) in [
        (format!("SESSION {session} 2000 5 INCR a"), "TOOFAR"),
        (format!("SESSION {} 1 INCR a", session + 1), "EXPIRED"),
        (format!("SESSION {session} 1 PING"), "cannot be a command"),
    ] {
        let error = on(&cluster, 1, &text).expect_err("an error");
        assert!(error.contains(says), "{text}: {error}");
    }
    let keep = format!("SESSION KEEP {session} 3");
    assert_eq!(on(&cluster, 1, &keep), Ok(Value::Okay));
    let error = on(&cluster, 2, &incr).expect_err("its answer was not needed any more");
    assert!(error.contains("TOOOLD"), "{error}");
    let close = format!("SESSION CLOSE {session}");
    assert_eq!(on(&cluster, 1, &close), Ok(Value::Okay));
    let error = on(&cluster, 3, &incr).expect_err("there is no session");
    assert!(error.contains("EXPIRED"), "{error}");
    for id in cluster.ids() {
        assert_eq!(cluster.get(id, "a"), 12, "on server {id}");
    }
}

#[test]
fn a_server_whose_log_goes_nowhere_serves_and_leaves_in_order() {
    let (gone, closed) = std::io::pipe().expect("a pipe");
    drop(gone);
    let (_unread, mut stalled) = std::io::pipe().expect("a pipe");
    stalled
        .write_all(&[b'.'; 64 << 10])
        .expect("as much as a pipe takes");
    let full = File::options().write(true).open("/dev/full");
    let ends = [
        (
            "nobody reads it any more",
            File::from(OwnedFd::from(closed)),
        ),
        (
            "its reader stands still",
            File::from(OwnedFd::from(stalled)),
        ),
        ("its disk is full", full.expect("a device of the system")),
    ];
    for (what, end) in ends {
        let mut cluster = Cluster::prepare(1);
        cluster.set_stderr(1, end);
        cluster.start_one(1);
        cluster.until_leader();
        for count in 1..=3 {
            assert_eq!(cluster.incr(1, "a"), count, "{what}");
        }
        let left = cluster.terminate(1);
        assert!(left.success(), "{what}: {left}");
    }
}

/// All that the server sends to `bytes`, until it ends the connection.
fn raw(cluster: &Cluster, id: usize, bytes: &[u8]) -> String {
    let mut stream =
        TcpStream::connect(("127.0.0.1", cluster.client_port(id))).expect("it is there");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time");
    stream.write_all(bytes).expect("it takes them");
    let mut said = Vec::new();
    let end = stream.read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said).into_owned();
    match end {
        // Bytes that it did not read make the end an abrupt one.
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
            panic!("{error}: {said}")
        }
        _ => said,
    }
}

#[test]
fn a_web_page_executes_nothing() {
    let cluster = Cluster::start(1);
    let body = "INCR page\r\nINCR page\r\n";
    for (head, told) in [
        ("POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", ""),
        ("post / HTTP/1.1\r\n\r\n", ""),
        (
            "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            "-ERR wrong number",
        ),
        (
            "PUT / HTTP/1.1\r\nHOST: 127.0.0.1\r\n\r\n",
            "-ERR unknown command 'PUT'",
        ),
        ("*1\r\n$4\r\nPOST\r\n", ""),
        (
            "MULTI\r\nINCR page\r\nPOST / HTTP/1.1\r\n\r\nEXEC\r\n",
            "+OK\r\n+QUEUED",
        ),
    ] {
        let said = raw(&cluster, 1, format!("{head}{body}").as_bytes());
        assert!(
            said.starts_with(told) && !said.contains("\n:"),
            "{head:?}: {said:?}"
        );
        assert!(said.lines().count() <= 2, "{head:?}: {said:?}");
    }
    // What came before is done and answered.
    let said = raw(
        &cluster,
        1,
        b"INCR client\r\nPOST / HTTP/1.1\r\nINCR client\r\n",
    );
    assert_eq!(said, ":1\r\n");
    assert_eq!(cluster.get(1, "page"), 0);
    assert_eq!(cluster.get(1, "client"), 1);
    cluster.until_logs(1, "it sent HTTP");
}

/// What one connection is answered, word by word of each request.
fn told(client: &mut Connection, requests: &[&str]) -> Vec<Result<Value, String>> {
    let words = |text: &&str| ask(client, &text.split(' ').collect::<Vec<_>>());
    requests.iter().map(words).collect()
}

#[test]
fn a_transaction_is_applied_as_one_or_not_at_all() {
    let cluster = Cluster::start(3);
    let leader = cluster.until_leader();
    let follower = leader % 3 + 1;
    for id in [leader, follower] {
        let mut client = cluster.client(id);
        let key = format!("t{id}");
        let queued = || Ok(Value::SimpleString("QUEUED".into()));
        let (incr, get) = (format!("INCR {key}"), format!("GET {key}"));
        let (set, del) = (format!("SET {key} 10"), format!("DEL {key}"));

        // The way most client libraries send a pipeline.
        assert_eq!(told(&mut client, &[&set]), [Ok(Value::Okay)]);
        let at = || {
            let info = cluster.info(leader).expect("it answers");
            (info.number("term"), info.number("commit"))
        };
        let before = at();
        let (all,): (Vec<Value>,) = redis::pipe()
            .atomic()
            .cmd("INCR")
            .arg(&key)
            .cmd("MGET")
            .arg(&[&key, "none"])
            .cmd("INCRBY")
            .arg(&[&key, "2"])
            .cmd("CAS")
            .arg(&[&key, "12", "20"])
            .cmd("EXISTS")
            .arg(&[&key, "none"])
            .query(&mut client)
            .map(|all| (all,))
            .expect("it is applied");
        let pair = Value::Array(vec![bulk("11"), Value::Nil]);
        let ints = [11, 13, 0, 1].map(Value::Int);
        assert_eq!(all[0], ints[0]);
        assert_eq!(all[1], pair);
        assert_eq!(all[2..], ints[1..]);
        let after = at();
        if after.0 == before.0 {
            assert_eq!(after.1, before.1 + 1, "all of it is one entry");
        }

        // What could not be queued voids all of it.
        for bad in [
            "NONSENSE",
            "INCR",
            "INCRBY a text",
            "PING",
            "SESSION OPEN",
            "WATCH a",
        ] {
            let answers = told(&mut client, &["MULTI", &incr, bad, &incr, "EXEC", &get]);
            assert_eq!(answers[0], Ok(Value::Okay));
            assert_eq!([&answers[1], &answers[3]], [&queued(), &queued()]);
            answers[2].as_ref().expect_err("it is refused");
            let error = answers[4].as_ref().expect_err("it is void");
            assert!(error.contains("ExecAbort"), "{bad}: {error}");
            assert_eq!(answers[5], Ok(bulk("13")), "after {bad}");
        }
        // What fails in itself does not.
        let largest = format!("SET {key} {}", i64::MAX);
        let answers = told(&mut client, &["MULTI", &largest, &incr, &del, "EXEC", &get]);
        // This client makes the one error in the array that of the whole.
        let error = answers[4].as_ref().expect_err("one of them overflows");
        assert!(error.contains("would overflow"), "{error}");
        assert_eq!(answers[5], Ok(Value::Nil), "the others are applied");

        // Nothing is left of one that is dropped, whichever way.
        for end in ["DISCARD", "RESET"] {
            let answers = told(&mut client, &["MULTI", &incr, end, &get, "EXEC", "DISCARD"]);
            assert_eq!(answers[3], Ok(Value::Nil), "after {end}");
            for (answer, says) in [
                (&answers[4], "EXEC without"),
                (&answers[5], "DISCARD without"),
            ] {
                let error = answer.as_ref().expect_err("there is no MULTI");
                assert!(error.contains(says), "{error}");
            }
        }
        let mut leaves = cluster.client(id);
        told(&mut leaves, &["MULTI", &incr, "QUIT"]);
        let mut breaks = cluster.client(id);
        told(&mut breaks, &["MULTI", &incr]);
        drop(breaks);
        let answers = told(&mut client, &[&get, "MULTI", "MULTI", &incr, "EXEC"]);
        assert_eq!(
            answers[0],
            Ok(Value::Nil),
            "connections that ended before EXEC"
        );
        let nested = answers[2].as_ref().expect_err("one is open already");
        assert!(nested.contains("nested"), "{nested}");
        assert_eq!(answers[4], Ok(Value::Array(vec![Value::Int(1)])));
        assert_eq!(
            told(&mut client, &["MULTI", "EXEC"])[1],
            Ok(Value::Array(vec![]))
        );

        // Too long for an entry: refused when it becomes so, and nothing of it is applied.
        assert_eq!(told(&mut client, &["MULTI"]), [Ok(Value::Okay)]);
        let long = "k".repeat(60_000);
        let outcomes: Vec<_> = (0..18)
            .map(|_| ask(&mut client, &["INCR", &long]))
            .collect();
        assert_eq!(outcomes[16], queued());
        let error = outcomes[17].as_ref().expect_err("over a MiB");
        assert!(error.contains("limit of 1048576 bytes"), "{error}");
        let answers = told(&mut client, &["EXEC", &get]);
        let error = answers[0].as_ref().expect_err("it is void");
        assert!(error.contains("ExecAbort"), "{error}");
        assert_eq!(ask(&mut client, &["GET", &long]), Ok(Value::Nil));
    }
    cluster.until_equal();
}

#[test]
fn a_transaction_with_a_watched_key_that_has_changed_is_not_applied() {
    let cluster = Cluster::start(3);
    for id in cluster.ids() {
        let (mut client, mut other) = (cluster.client(id), cluster.client(id % 3 + 1));
        let key = format!("w{id}");
        let (watch, get) = (format!("WATCH {key} none"), format!("GET {key}"));
        let (set, incr) = (format!("SET {key} 10"), format!("INCR {key}"));
        let mut runs = |between: &dyn Fn(&mut Connection, &mut Connection)| {
            told(&mut other, &[&set]);
            assert_eq!(told(&mut client, &[&watch]), [Ok(Value::Okay)]);
            between(&mut client, &mut other);
            let answers = told(&mut client, &["MULTI", &incr, "EXEC", &get]);
            let applied = match &answers[2] {
                Ok(Value::Nil) => false,
                Ok(Value::Array(parts)) => parts[..] == [Value::Int(11)],
                other => panic!("{other:?}"),
            };
            (applied, answers[3].clone())
        };
        assert_eq!(runs(&|_, _| {}), (true, Ok(bulk("11"))));
        let reads = |client: &mut Connection, _: &mut Connection| {
            assert_eq!(told(client, &[&get]), [Ok(bulk("10"))]);
        };
        assert_eq!(runs(&reads), (true, Ok(bulk("11"))));
        let changed = |_: &mut Connection, other: &mut Connection| {
            told(other, &[&incr]);
        };
        assert_eq!(runs(&changed), (false, Ok(bulk("11"))));
        let made = |_: &mut Connection, other: &mut Connection| {
            told(other, &["SET none 1"]);
        };
        assert_eq!(runs(&made), (false, Ok(bulk("10"))));
        told(&mut cluster.client(id), &["DEL none"]);
        let itself = |client: &mut Connection, _: &mut Connection| {
            told(client, &[&incr, &set]);
        };
        assert_eq!(runs(&itself), (false, Ok(bulk("10"))));
        // It has seen what stood there in between.
        let seen = |client: &mut Connection, other: &mut Connection| {
            told(other, &[&incr]);
            assert_eq!(told(client, &[&get]), [Ok(bulk("11"))]);
            told(other, &[&set]);
        };
        assert_eq!(runs(&seen), (false, Ok(bulk("10"))));
        let unwatched = |client: &mut Connection, other: &mut Connection| {
            told(other, &[&incr, &set]);
            assert_eq!(told(client, &["UNWATCH"]), [Ok(Value::Okay)]);
        };
        assert_eq!(runs(&unwatched), (true, Ok(bulk("11"))));
    }
    cluster.until_equal();
}

#[test]
fn a_transaction_of_a_session_counts_once() {
    let cluster = Cluster::start(3);
    let Ok(Value::Int(session)) = ask(&mut cluster.client(1), &["SESSION", "OPEN"]) else {
        panic!("a session is opened")
    };
    let exec = format!("SESSION {session} 1 EXEC");
    for id in cluster.ids() {
        let answers = told(
            &mut cluster.client(id),
            &["MULTI", "INCR a", "INCRBY b 5", &exec, "GET a"],
        );
        let both = Value::Array(vec![Value::Int(1), Value::Int(5)]);
        assert_eq!(answers[3], Ok(both), "on server {id}");
        assert_eq!(answers[4], Ok(bulk("1")), "on server {id}");
    }
    let without = ask(&mut cluster.client(1), &exec.split(' ').collect::<Vec<_>>());
    let error = without.expect_err("nothing was queued");
    assert!(error.contains("EXEC without MULTI"), "{error}");
}

/// Every command, with arguments that are no numbers, too large ones, none: each is answered, and the server goes on.
#[test]
fn no_request_ends_the_server() {
    let cluster = Cluster::start(1);
    let mut client = cluster.client(1);
    let Ok(Value::Array(commands)) = ask(&mut client, &["COMMAND"]) else {
        panic!("a list of commands")
    };
    let name = |command: &Value| match command {
        Value::Array(parts) => match &parts[0] {
            Value::BulkString(name) => String::from_utf8_lossy(name).into_owned(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let names: Vec<String> = commands.iter().map(name).collect();
    assert!(names.len() > 25, "{names:?}");
    let (most, least) = (i64::MAX.to_string(), i64::MIN.to_string());
    let long = "k".repeat(70_000);
    let pool = [
        "",
        "0",
        "-1",
        "1",
        &most,
        &least,
        "18446744073709551615",
        "nil",
        "*",
        "a",
        &long,
        "\r\n\0",
        "open",
        "keep",
        "close",
        "get",
        "info",
        "id",
        "setname",
        "stale",
        "exec",
        "incr",
        "del",
        "3",
        "auth",
    ];
    let mut seed = 1u64;
    let mut pick = |of: usize| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) as usize % of
    };
    for round in 0..4000 {
        let name = names[pick(names.len())].as_str();
        // A connection that takes no more replies is another test's.
        if name == "quit" {
            continue;
        }
        let mut words = vec![name];
        for _ in 0..pick(6) {
            words.push(pool[pick(pool.len())]);
        }
        if let Err(error) = ask(&mut client, &words) {
            assert!(
                !error.contains("IoError")
                    && !error.contains("broken pipe")
                    && !error.contains("closed"),
                "request {round}, {:?}: {error}",
                words
                    .iter()
                    .map(|word| &word[..word.len().min(20)])
                    .collect::<Vec<_>>()
            );
        }
    }
    assert_eq!(
        told(&mut client, &["RESET", "SET a 5", "GET a"])[2],
        Ok(bulk("5"))
    );
}

/// Sends a request; what is answered, a line of it, or nothing when the connection ends.
fn line(stream: &mut TcpStream, request: &str) -> String {
    stream.set_read_timeout(Some(DEADLINE)).expect("a time");
    let mut said = Vec::new();
    if stream.write_all(request.as_bytes()).is_err() {
        return String::new(); // It has ended.
    }
    let mut byte = [0];
    while !said.ends_with(b"\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => said.push(byte[0]),
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{request:?}: {error}"),
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn knock(cluster: &Cluster, id: usize) -> TcpStream {
    TcpStream::connect(("127.0.0.1", cluster.client_port(id))).expect("it listens")
}

#[test]
fn clients_over_the_limit_are_told_so_and_others_take_their_places() {
    let cluster = Cluster::start_with_args(1, &["--max-clients", "10"]);
    let ping = |stream: &mut TcpStream| line(stream, "PING\r\n");
    // Connections of `Cluster` that have ended may still be counted.
    let mut there = Vec::new();
    until("ten clients are there", || {
        let mut stream = knock(&cluster, 1);
        if ping(&mut stream) == "+PONG\r\n" {
            there.push(stream);
        }
        there.len() == 10
    });
    for _ in 0..5 {
        let said = line(&mut knock(&cluster, 1), "");
        assert_eq!(said, "-ERR max number of clients reached\r\n");
    }
    there.truncate(3);
    until("those that have left make room", || {
        ping(&mut knock(&cluster, 1)) == "+PONG\r\n"
    });
    for stream in &mut there {
        assert_eq!(ping(stream), "+PONG\r\n");
    }
    let stats = cluster.section(1, "stats").expect("it answers");
    assert!(stats.number("rejected_connections") >= 5, "{stats}");
    let clients = cluster.section(1, "clients").expect("it answers");
    assert_eq!(clients.number("maxclients"), 10);
}

/// The process may have so few descriptors that clients could take all.
#[cfg(target_os = "linux")]
#[test]
fn clients_leave_the_node_its_descriptors_and_none_waits_in_vain() {
    let mut cluster = Cluster::prepare(1);
    cluster.set_args(1, &["--snapshot-every-bytes", "8388608"]);
    cluster.set_open_files(1, 64);
    cluster.start_one(1);
    cluster.until_leader();
    let clients = cluster.section(1, "clients").expect("it answers");
    assert_eq!(clients.number("maxclients"), 32);
    let mut idle: Vec<TcpStream> = (0..100).map(|_| knock(&cluster, 1)).collect();
    let answers: Vec<String> = idle
        .iter_mut()
        .map(|stream| line(stream, "PING\r\n"))
        .collect();
    let served = answers.iter().filter(|said| *said == "+PONG\r\n").count();
    assert!((20..=32).contains(&served), "{served} of 100: {answers:?}");
    // The log takes its next segments, snapshots are taken.
    let worker = answers
        .iter()
        .position(|said| said == "+PONG\r\n")
        .expect("one is served");
    let mut request = String::from("*601\r\n$3\r\nDEL\r\n");
    for n in 0..600 {
        request.push_str(&format!("$906\r\nk{n:05}{}\r\n", "y".repeat(900)));
    }
    for _ in 0..60 {
        assert_eq!(line(&mut idle[worker], &request), ":0\r\n");
    }
}

/// Whoever has taken the last descriptor: a client that waits in the listener's queue is told so, without another that knocks.
#[cfg(target_os = "linux")]
#[test]
fn without_a_descriptor_clients_are_told_so_until_there_is_one() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};

    let cluster = Cluster::start(1);
    until("the next segment is prepared", || {
        let log = cluster.data(1).join("group-0/log");
        let mut names = std::fs::read_dir(log).expect("its log").map(|file| {
            let name = file.expect("a file").file_name();
            name.to_string_lossy().into_owned()
        });
        names.all(|name| !name.ends_with(".tmp"))
    });
    let mut worker = knock(&cluster, 1);
    assert_eq!(line(&mut worker, "INCR a\r\n"), ":1\r\n");
    let pid = Pid::from_raw(cluster.pid(1) as i32);
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", cluster.pid(1)));
    let taken: Vec<u64> = descriptors
        .expect("its descriptors")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // Below this number four are free: it may have inherited some with high ones.
    let limit = (0..).filter(|number| !taken.contains(number)).nth(4);
    let few = Rlimit {
        current: limit,
        ..rustix::process::getrlimit(Resource::Nofile)
    };
    let before = prlimit(pid, Resource::Nofile, few).expect("it is our child");
    let mut many: Vec<TcpStream> = (0..40).map(|_| knock(&cluster, 1)).collect();
    let answers: Vec<String> = many.iter_mut().map(|one| line(one, "PING\r\n")).collect();
    let told = |said: &String| said.is_empty() || said.starts_with("-ERR max number of clients");
    assert!(
        answers.iter().filter(|said| told(said)).count() >= 30,
        "{answers:?}"
    );
    assert!(
        answers.iter().all(|said| told(said) || said == "+PONG\r\n"),
        "{answers:?}"
    );
    prlimit(pid, Resource::Nofile, before).expect("it is our child");
    drop(many);
    until("clients are served again", || {
        line(&mut knock(&cluster, 1), "PING\r\n") == "+PONG\r\n"
    });
    assert_eq!(line(&mut worker, "INCR a\r\n"), ":2\r\n");
}

#[test]
fn clients_whose_buffers_are_too_large_together_are_disconnected_the_largest_first() {
    let cluster = Cluster::start_with_args(1, &["--client-memory", "4194304"]);
    let buffers = || {
        let clients = cluster.section(1, "clients").expect("it answers");
        assert_eq!(clients.number("client_buffer_limit"), 4 << 20);
        clients.number("client_buffer_bytes")
    };
    let evicted = || {
        let stats = cluster.section(1, "stats").expect("it answers");
        stats.number("evicted_clients")
    };
    let mut worker = knock(&cluster, 1);
    assert_eq!(line(&mut worker, "INCR a\r\n"), ":1\r\n");
    // Large requests and replies are gone when they are done with.
    let echo = format!("*2\r\n$4\r\nECHO\r\n$500000\r\n{}\r\n", "x".repeat(500_000));
    let mut idle: Vec<TcpStream> = Vec::new();
    for _ in 0..20 {
        let mut client = knock(&cluster, 1);
        assert_eq!(line(&mut client, &echo), "$500000\r\n");
        let mut rest = vec![0; 500_002];
        client.read_exact(&mut rest).expect("the rest of the reply");
        idle.push(client);
    }
    until("twenty idle clients hold little", || buffers() < 200_000);
    assert_eq!(evicted(), 0);
    // Requests that are never complete.
    let mut halves: Vec<TcpStream> = Vec::new();
    for _ in 0..12 {
        let mut client = knock(&cluster, 1);
        client
            .write_all(&echo.as_bytes()[..400_000])
            .expect("it is read, or kept in the socket");
        halves.push(client);
    }
    until("some are disconnected", || evicted() > 0);
    until("the others fit", || buffers() < 4 << 20);
    for client in &mut idle {
        assert_eq!(line(client, "PING\r\n"), "+PONG\r\n");
    }
    assert_eq!(line(&mut worker, "INCR a\r\n"), ":2\r\n");
    assert!(evicted() < 12, "no more than necessary");
    cluster.until_logs(1, "client disconnected: its buffers");
}

/// A server that stood still finds much from many clients at once: their buffers keep within the limit all the same.
#[test]
fn the_limit_of_memory_holds_within_one_turn_over_many_clients() {
    const LIMIT: u64 = 8 << 20;
    const PIECE: usize = 400_000;
    let cluster = Cluster::start_with_args(1, &["--client-memory", &LIMIT.to_string()]);
    let mut clients: Vec<TcpStream> = (0..120)
        .map(|_| TcpStream::connect(("127.0.0.1", cluster.client_port(1))).expect("it listens"))
        .collect();
    until("all are there", || {
        let clients = cluster.section(1, "clients");
        clients.is_some_and(|clients| clients.number("connected_clients") > 120)
    });
    cluster.stall(1);
    let mut request = format!("*2\r\n$4\r\nECHO\r\n${PIECE}\r\n").into_bytes();
    request.resize(request.len() + PIECE, b'x');
    request.extend_from_slice(b"\r\n");
    let requests = request.repeat(3);
    for client in &mut clients {
        client.set_nonblocking(true).expect("a socket can be");
        let mut sent = 0;
        // As much as the system takes for a server that does not read.
        while let Ok(count @ 1..) = client.write(&requests[sent..]) {
            sent += count;
        }
        assert!(sent > PIECE, "{sent} bytes");
    }
    cluster.resume(1);
    let stats = || {
        cluster
            .section(1, "stats")
            .map_or(0, |stats| stats.number("evicted_clients"))
    };
    until("some are disconnected", || stats() > 0);
    let log = cluster.until_logs(1, "all_bytes=");
    let (_, held) = log.split_once("all_bytes=").expect("the log says so");
    let held: u64 = held
        .split(' ')
        .next()
        .and_then(|number| number.parse().ok())
        .expect("a number");
    // One client has had its turn when it is looked at.
    assert!(
        held < LIMIT + 4 * requests.len() as u64,
        "{held} bytes at once"
    );
}
