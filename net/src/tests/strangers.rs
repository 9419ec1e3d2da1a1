//! Those who have no business here are turned away, and nobody else notices.

use std::time::Duration;

use super::harness::{CLUSTER, Raw, World, frame, hello, hello_frame};
use crate::hello::{HELLO, Hello, REFUSE};
use crate::{Config, Refusal};

/// Two nodes that talk; after `story` they still do, over the same connection.
fn while_two_nodes_talk(change: fn(&mut Config), story: impl FnOnce(&mut World)) {
    let mut world = World::connected(2, change);
    world.node(1).small(2, 1).expect("up");
    story(&mut world);
    world.node(1).small(2, 2).expect("still up");
    world.until("the frames are there", |w| {
        w.node(2).kinds_from(1) == [1, 2]
    });
    assert_eq!(
        (world.node(1).downs(2), world.node(2).downs(1)),
        (vec![], vec![])
    );
}

/// Sends `bytes` to node 2, and expects to be cut off without a word.
fn is_cut_off(bytes: &[u8]) {
    while_two_nodes_talk(
        |_| {},
        |world| {
            let mut raw = Raw::connect(world.node(2).addr);
            raw.write(bytes);
            raw.until_ended(world);
            assert_eq!(raw.next(), None, "strangers are told nothing");
        },
    );
}

/// Sends a hello to node 2, and expects to be refused for this reason.
fn is_refused(hello: Hello, refusal: Refusal) {
    while_two_nodes_talk(
        |_| {},
        |world| {
            let mut raw = Raw::connect(world.node(2).addr);
            raw.write(&hello_frame(hello));
            // More than a hello, so that a careless close would reset the connection under the
            // refusal.
            raw.write(&frame(1, b"unread", &[7; 2000]));
            world.frozen = true;
            let (kind, head) = raw.until_next(world);
            assert_eq!((kind, &head[..]), (REFUSE.kind, &refusal.encode()[..]));
            raw.until_ended(world);
            world.frozen = false;
        },
    );
}

#[test]
fn a_browser() {
    is_cut_off(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
}

#[test]
fn garbage() {
    is_cut_off(&[0; 64]);
    is_cut_off(&[0xFF; 64]);
}

#[test]
fn a_length_that_no_hello_has() {
    is_cut_off(&frame(HELLO.kind, &hello(1, 2).encode(), &[0; 1 << 20])[..16]);
}

#[test]
fn a_hello_with_a_flipped_bit() {
    let mut bytes = hello_frame(hello(1, 2));
    bytes[30] ^= 1;
    is_cut_off(&bytes);
}

#[test]
fn a_frame_before_the_hello() {
    is_cut_off(&frame(1, b"let me in", &[]));
}

#[test]
fn another_magic() {
    let mut head = hello(1, 2).encode();
    head[0] ^= 1;
    is_cut_off(&frame(HELLO.kind, &head, &[]));
}

#[test]
fn another_cluster() {
    is_refused(
        Hello {
            cluster: 0xC2,
            ..hello(1, 2)
        },
        Refusal::Cluster {
            ours: CLUSTER,
            theirs: 0xC2,
        },
    );
}

#[test]
fn another_protocol() {
    is_refused(
        Hello {
            version: 7,
            oldest: 5,
            ..hello(1, 2)
        },
        Refusal::Version { ours: 1, theirs: 7 },
    );
}

#[test]
fn an_unknown_node() {
    let refusal = Refusal::UnknownNode {
        ours: 2,
        theirs: 77,
    };
    is_refused(hello(77, 2), refusal);
}

#[test]
fn a_twin() {
    is_refused(hello(2, 2), Refusal::OwnId { node: 2 });
}

#[test]
fn one_who_wants_somebody_else() {
    is_refused(hello(1, 3), Refusal::WrongNode { ours: 2, theirs: 3 });
}

#[test]
fn one_with_another_directory() {
    is_refused(
        Hello {
            incarnation: 5,
            ..hello(1, 2)
        },
        Refusal::Incarnation {
            ours: 100,
            theirs: 5,
        },
    );
}

#[test]
fn one_who_never_says_hello() {
    while_two_nodes_talk(
        |_| {},
        |world| {
            let mut raw = Raw::connect(world.node(2).addr);
            raw.write(&hello_frame(hello(1, 2))[..20]);
            world.until("it is accepted", |w| w.node(2).net.conns.len() == 2);
            world.pass(Duration::from_millis(1900));
            raw.read();
            assert!(!raw.ended, "it has two seconds");
            world.pass(Duration::from_millis(200));
            raw.until_ended(world);
        },
    );
}

#[test]
fn one_who_stays_after_it_was_refused() {
    while_two_nodes_talk(
        |_| {},
        |world| {
            let mut raw = Raw::connect(world.node(2).addr);
            raw.write(&hello_frame(hello(77, 2)));
            assert_eq!(raw.until_next(world).0, REFUSE.kind);
            let is_there = |world: &mut World| world.node(2).net.conns.at(1).is_some();
            assert!(is_there(world), "it is read until it closes");
            world.pass(Duration::from_millis(2100));
            assert!(!is_there(world), "but not for ever");
        },
    );
}

#[test]
fn too_many_of_them() {
    while_two_nodes_talk(
        |config| config.max_strangers = 4,
        |world| {
            let addr = world.node(2).addr;
            let mut silent: Vec<Raw> = (0..10).map(|_| Raw::connect(addr)).collect();
            world.until("the first ones had to go", |_| {
                silent.iter_mut().for_each(Raw::read);
                silent.iter().filter(|raw| raw.ended).count() == 6
            });
            assert!(
                silent[..6].iter().all(|raw| raw.ended),
                "the oldest go first"
            );
            // The real node 1 gets through although the strangers stay.
            let mut raw = Raw::connect(addr);
            raw.write(&hello_frame(hello(1, 3)));
            assert_eq!(raw.until_next(world).0, REFUSE.kind, "it is heard");
        },
    );
}

#[test]
fn a_peer_that_sends_garbage_loses_its_connection_and_may_come_back() {
    let mut world = World::of(1, |_| {});
    let two = super::harness::listener();
    world
        .start(2, two, 200)
        .net
        .set_peers(&[(1, ([127, 0, 0, 1], 1).into())]);
    world.stop(1);
    let too_long = frame(1, b"", &vec![0; 5 << 20]);
    let mut damaged = frame(1, b"some head", &[]);
    damaged[18] ^= 4;
    let second_hello = hello_frame(hello(1, 2));
    for (count, wrong) in [&too_long[..16], &damaged, &second_hello]
        .into_iter()
        .enumerate()
    {
        let mut raw = Raw::connect(world.node(2).addr);
        raw.write(&hello_frame(hello(1, 2)));
        raw.write(&frame(5, b"well formed", &[]));
        raw.write(wrong);
        raw.until_ended(&mut world);
        world.until("the good frame is there, the peer down", |w| {
            w.node(2).kinds_from(1).len() == count + 1 && w.node(2).downs(1).len() == count + 1
        });
    }
    let reasons: Vec<String> = world
        .node(2)
        .downs(1)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        reasons[0].contains("over the limit of 4259840"),
        "{reasons:?}"
    );
    assert!(reasons[1].contains("checksum"), "{reasons:?}");
    assert!(reasons[2].contains("kind 0xf0"), "{reasons:?}");
}
