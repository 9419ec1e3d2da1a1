//! Peers that are known by a name, and either side that dials.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::harness::{Seen, World, listener};
use crate::{Lane, Resolver};

/// A name service: what each name stands for.
#[derive(Clone, Default)]
struct Names(Arc<Inside>);

#[derive(Default)]
struct Inside {
    addrs: Mutex<HashMap<String, Vec<SocketAddr>>>,
    asked: Mutex<HashMap<String, usize>>,
    /// Names whose lookup does not return.
    stuck: Mutex<Vec<String>>,
    released: Condvar,
}

impl Names {
    fn set(&self, name: &str, addrs: &[SocketAddr]) {
        let mut all = self.0.addrs.lock().expect("nobody panics with it");
        all.insert(name.to_owned(), addrs.to_vec());
    }

    fn asked(&self, name: &str) -> usize {
        let asked = self.0.asked.lock().expect("nobody panics with it");
        asked.get(name).copied().unwrap_or(0)
    }

    fn stick(&self, name: &str) {
        let mut stuck = self.0.stuck.lock().expect("nobody panics with it");
        stuck.push(name.to_owned());
    }

    fn release(&self) {
        self.0.stuck.lock().expect("nobody panics with it").clear();
        self.0.released.notify_all();
    }

    fn look_up(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let mut asked = self.0.asked.lock().expect("nobody panics with it");
        *asked.entry(name.to_owned()).or_default() += 1;
        drop(asked);
        let stuck = self.0.stuck.lock().expect("nobody panics with it");
        let is_stuck = |stuck: &mut Vec<String>| stuck.iter().any(|other| other == name);
        drop(self.0.released.wait_while(stuck, is_stuck));
        let addrs = self.0.addrs.lock().expect("nobody panics with it");
        let found = addrs.get(name).cloned();
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such name"))
    }

    fn resolver(&self) -> Resolver {
        let names = self.clone();
        Resolver::new(move |name| names.look_up(name))
    }
}

fn dead() -> SocketAddr {
    // Nobody listens there once the listener is gone.
    listener().local_addr().expect("bound")
}

/// Nodes 1 to `count` that know each other as `node-1`, `node-2` and so on.
fn named(count: u64, names: &Names) -> World {
    let mut world = World::of(count, |_| {});
    let list: Vec<_> = (1..=count).map(|id| (id, format!("node-{id}"))).collect();
    for node in &mut world.nodes {
        node.net.config.resolver = names.resolver();
        node.net.set_named_peers(&list);
    }
    world
}

fn all_up(world: &mut World) -> bool {
    let ids: Vec<u64> = world.nodes.iter().map(|node| node.id).collect();
    let is_up = |node: &super::harness::Node| {
        ids.iter()
            .all(|id| *id == node.id || node.net.connected(*id))
    };
    world.nodes.iter().all(is_up)
}

#[test]
fn a_name_that_is_not_known_is_a_node_that_is_not_reached_until_it_is() {
    let names = Names::default();
    let mut world = named(3, &names);
    for id in 1..=2 {
        names.set(&format!("node-{id}"), &[world.node(id).addr]);
    }
    // Node 3 is known to nobody, and dials nobody.
    world.node(3).net.set_named_peers(&[]);
    world.until("the others talk", |w| {
        w.node(1).net.connected(2) && names.asked("node-3") >= 2
    });
    assert!(!world.node(1).net.connected(3));
    let list: Vec<_> = (1..=3).map(|id| (id, format!("node-{id}"))).collect();
    names.set("node-3", &[world.node(3).addr]);
    world.node(3).net.set_named_peers(&list);
    world.until("it is reached", all_up);
}

#[test]
fn a_name_that_stands_for_another_address_is_looked_up_again() {
    // Once for the side that dials first, once for the other.
    for moved in [1, 2] {
        let names = Names::default();
        let mut world = named(2, &names);
        for id in 1..=2 {
            names.set(&format!("node-{id}"), &[world.node(id).addr]);
        }
        world.until("they talk", all_up);
        world.stop(moved);
        let other = 3 - moved;
        world.until("it is missed", |w| !w.node(other).net.connected(moved));
        // It knows nobody: it is the other one that has to find it.
        let addr = world.start(moved, listener(), moved * 100).addr;
        let as_before = format!("node-{other}");
        let net = &mut world.node(moved).net;
        net.config.resolver = Names::default().resolver();
        net.set_named_peers(&[(other, as_before)]);
        names.set(&format!("node-{moved}"), &[addr]);
        world.until("it is found at its new address", all_up);
    }
}

#[test]
fn an_attempt_at_an_old_address_gives_way_to_the_new_one() {
    let names = Names::default();
    let mut world = named(2, &names);
    world.node(2).net.set_named_peers(&[(1, "nowhere".into())]);
    names.set("node-2", &[dead()]);
    world.until("it was tried", |w| {
        w.node(1).net.stats(2).expect("a peer").drops >= 3
    });
    names.set("node-2", &[world.node(2).addr]);
    world.until("they talk", all_up);
    assert!(names.asked("node-2") >= 2);
}

#[test]
fn every_address_of_a_name_is_tried() {
    let names = Names::default();
    let mut world = named(2, &names);
    world.node(2).net.set_named_peers(&[(1, "nowhere".into())]);
    names.set("node-2", &[dead(), dead(), world.node(2).addr]);
    world.until("the right one is found", |w| w.node(1).net.connected(2));
}

#[test]
fn a_lookup_that_does_not_return_holds_up_its_own_name_only() {
    let names = Names::default();
    names.stick("node-3");
    let mut world = named(3, &names);
    for id in 1..=3 {
        names.set(&format!("node-{id}"), &[world.node(id).addr]);
    }
    world.node(3).net.set_named_peers(&[]);
    world.until("the others talk", |w| w.node(1).net.connected(2));
    for round in 1..=20 {
        world.node(1).small(2, round).expect("it is up");
        world.until("it arrives", |w| w.node(2).frames().count() >= round.into());
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(
        names.asked("node-3"),
        2,
        "each of the two others asks once and waits"
    );
    names.release();
    let list: Vec<_> = (1..=3).map(|id| (id, format!("node-{id}"))).collect();
    world.node(3).net.set_named_peers(&list);
    world.until("all talk", all_up);
}

#[test]
fn a_name_service_that_panics_is_one_that_does_not_know() {
    let mut world = World::of(2, |_| {});
    let addr = world.node(2).addr;
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let net = &mut world.node(1).net;
    net.config.resolver = Resolver::new(move |_| {
        let mut asked = count.lock().expect("not held in the panic");
        *asked += 1;
        let first = *asked == 1;
        drop(asked);
        assert!(!first, "the resolver of this test panics once");
        Ok(vec![addr])
    });
    net.set_named_peers(&[(2, "two".into())]);
    world.node(2).net.set_peers(&[(1, dead())]);
    world.until("it is asked again", |w| w.node(1).net.connected(2));
    assert!(*asked.lock().expect("nobody panics with it") >= 2);
}

#[test]
fn the_larger_id_dials_one_who_cannot_reach_it() {
    let mut world = World::of(2, |_| {});
    let one = world.node(1).addr;
    world.node(1).net.set_peers(&[(2, dead())]);
    world.node(2).net.set_peers(&[(1, one)]);
    world.until("they talk", all_up);
    world
        .node(1)
        .net
        .send(2, Lane::Small, 1, 0, b"", None)
        .expect("up");
    world.until("it arrives", |w| w.node(2).frames().count() == 1);
    // And again, when the connection is lost.
    world.stop(2);
    world.until("it is missed", |w| !w.node(1).net.connected(2));
    world.start(2, listener(), 200).net.set_peers(&[(1, one)]);
    world.until("they talk again", all_up);
}

#[test]
fn when_both_dial_at_once_one_connection_stays_on_both_sides() {
    // Each order of six turns, among them those in which both have said hello before either hears it.
    for round in 0..64 {
        let mut world = World::of(2, |_| {});
        world.frozen = true; // No timer helps.
        let now = world.node(2).net.now;
        world.node(2).net.peers[0].dial_at = Some(now);
        world.node(2).net.wake_by(now);
        for turn in 0..6 {
            let id = 1 + (round >> turn & 1);
            world.node(id).poll(now, Duration::ZERO);
        }
        world.until("both are up on one connection", |w| {
            let ports = |node: &super::harness::Node| {
                let peer = &node.net.peers[0];
                let (_, conn) = node.net.conns.at(peer.conn?.index)?;
                let local = conn.stream.local_addr().ok()?.port();
                let remote = conn.remote.port();
                peer.up.then_some((local.min(remote), local.max(remote)))
            };
            let (one, two) = (ports(w.node(1)), ports(w.node(2)));
            one.is_some() && one == two
        });
        let (one, two) = (world.node(1).addr.port(), world.node(2).addr.port());
        assert_ne!(one, two);
        world.node(1).small(2, 7).expect("it is up");
        world.node(2).small(1, 8).expect("it is up");
        world.until("frames pass both ways", |w| {
            w.node(2).kinds_from(1) == [7] && w.node(1).kinds_from(2) == [8]
        });
        world.pass(Duration::from_secs(3));
        for (id, other) in [(1, 2), (2, 1)] {
            let is_refusal = |seen: &Seen| matches!(seen, Seen::Refused { .. });
            assert!(
                !world.node(id).seen.iter().any(is_refusal),
                "that is no refusal"
            );
            assert!(world.node(id).net.connected(other), "round {round}");
        }
    }
}
