//! How connections of the counter server read, and what a stopped process makes of its lease.

use redis::{Connection, Value};

use crate::cluster::{Cluster, Outcome, incr};
use crate::until_some;

const MODES: [&str; 6] = ["index", "lease", "log", "stale 0", "stale 60000", "stale"];

fn ask(client: &mut Connection, line: &str) -> Result<Value, String> {
    let words: Vec<&str> = line.split(' ').collect();
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
fn a_connection_reads_as_it_says() {
    let mut cluster = Cluster::prepare(3);
    for id in cluster.ids() {
        cluster.set_args(id, &["--lease"]);
        cluster.start_one(id);
    }
    let leader = cluster.until_leader();
    for id in cluster.ids() {
        let mut client = cluster.client(id);
        assert_eq!(ask(&mut client, "READMODE"), Ok(bulk("index")));
        for mode in MODES {
            assert_eq!(
                ask(&mut client, &format!("READMODE {mode}")),
                Ok(Value::Okay)
            );
            assert_eq!(ask(&mut client, "READMODE"), Ok(bulk(mode)));
            let key = mode.replace(' ', "-");
            let value = cluster.incr(leader, &key);
            let right = |value: i64| Ok(bulk(&value.to_string()));
            if mode.starts_with("stale") && mode != "stale 0" {
                until_some("a stale read gets there in the end", || {
                    (ask(&mut client, &format!("GET {key}")) == right(value)).then_some(())
                });
            } else {
                // An error: the leader has changed, as it may on a slow machine.
                let seen = until_some("it is answered", || {
                    ask(&mut client, &format!("GET {key}")).ok()
                });
                assert_eq!(Ok(seen), right(value), "READMODE {mode} on server {id}");
            }
        }
        for wrong in ["READMODE fast", "READMODE lease 5", "READMODE stale x"] {
            assert!(ask(&mut client, wrong).is_err(), "{wrong}");
        }
        assert_eq!(ask(&mut client, "READMODE"), Ok(bulk("stale")), "as it was");
    }
}

/// LESSONS 55. While the leader is stopped, another is elected and counts on. The client asks the stopped
/// one after that was acknowledged; going on, it must not answer by its lease.
#[test]
fn a_lease_does_not_outlast_a_pause() {
    let mut cluster = Cluster::prepare(3);
    for id in cluster.ids() {
        let threads = ["per-stage", "shared", "auto"][id - 1];
        cluster.set_args(id, &["--lease", "--threads", threads]);
        cluster.start_one(id);
    }
    for round in 0..4 {
        let old = cluster.until_leader();
        let mut client = cluster.client(old);
        assert_eq!(ask(&mut client, "READMODE lease"), Ok(Value::Okay));
        let before = cluster.incr(old, "a");
        assert_eq!(ask(&mut client, "GET a"), Ok(bulk(&before.to_string())));

        cluster.stall(old);
        let others: Vec<usize> = cluster.ids().filter(|&id| id != old).collect();
        let new = cluster.until_leader_of(&others);
        let mut at_new = cluster.client(new);
        let after = until_some("the others count on", || match incr(&mut at_new, "a") {
            Outcome::Done(value) => Some(value),
            _ => None,
        });
        client
            .send_packed_command(&redis::cmd("GET").arg("a").get_packed_command())
            .expect("its socket takes it");
        cluster.resume(old);
        let seen = client.recv_response();
        let right = |seen: &Value| matches!(seen, Value::BulkString(text) if text == after.to_string().as_bytes());
        match seen {
            Ok(seen) => assert!(right(&seen), "round {round}: {seen:?} after {after}"),
            Err(error) => assert!(error.to_string().contains("TRYAGAIN"), "{error}"),
        }
    }
}
