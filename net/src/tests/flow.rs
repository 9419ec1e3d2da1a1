//! Bytes on their way: partial writes, lanes, holds, limits.

use std::time::Duration;

use super::harness::{Raw, World, assert_same, frame, hello, hello_frame, listener};
use crate::{Config, Handled, Lane, SendError};

fn tiny_buffers(config: &mut Config) {
    // Less than this makes the kernel wait for its own timers: a loopback segment has up to 64 KiB.
    config.socket_buffer_bytes = Some(16 << 10);
    config.read_buffer_bytes = 4096;
    config.unsent_bytes = 4096;
}

#[test]
fn big_bodies_cross_tiny_buffers_both_ways() {
    let mut world = World::connected(2, tiny_buffers);
    let body = |kind: u8| -> Vec<u8> {
        (0..100_000 + 1000 * usize::from(kind))
            .map(|i| (i % 251) as u8 ^ kind)
            .collect()
    };
    for kind in 0..10 {
        for (from, to) in [(1, 2), (2, 1)] {
            let net = &mut world.node(from).net;
            if kind % 2 == 0 {
                net.send(to, Lane::Bulk, kind, 0, &[kind; 200], Some(body(kind)))
                    .expect("room");
            } else {
                net.send_covered(to, Lane::Bulk, kind, 0, &[], body(kind))
                    .expect("room");
            }
        }
    }
    world.until("all is there", |w| {
        w.nodes.iter().all(|node| node.frames().count() == 10)
    });
    for node in &world.nodes {
        for (at, (_, kind, got)) in node.frames().enumerate() {
            assert_eq!(usize::from(kind), at, "in order");
            assert_same(got, &body(kind), "body");
        }
    }
}

#[test]
fn the_longest_frame_crosses_and_one_byte_more_is_refused_at_once() {
    let mut world = World::connected(2, |config| config.max_frame_bytes = 1 << 20);
    let longest = (1 << 20) - 16;
    let net = &mut world.node(1).net;
    assert_eq!(
        net.send(2, Lane::Bulk, 1, 0, b"", Some(vec![1; longest + 1])),
        Err(SendError::TooLarge)
    );
    assert_eq!(
        net.send(2, Lane::Bulk, 1, 0, &[0; 65_536], None),
        Err(SendError::TooLarge)
    );
    assert_eq!(
        net.send(2, Lane::Small, 1, 0, &[0; 65_521], None),
        Err(SendError::TooLarge)
    );
    assert_eq!(
        net.send(3, Lane::Small, 1, 0, b"", None),
        Err(SendError::Down),
        "no such peer"
    );
    net.send(2, Lane::Bulk, 1, 0, b"", Some(vec![1; longest]))
        .expect("just fits");
    net.send(2, Lane::Small, 2, 0, &[2; 65_520], None)
        .expect("just fits");
    world.until("both are there", |w| w.node(2).kinds_from(1) == [2, 1]);
}

#[test]
fn a_small_frame_overtakes_queued_bulk() {
    let mut world = World::connected(2, tiny_buffers);
    world.node(1).net.flush();
    for _ in 0..100 {
        world.node(1).bulk(2, 100, 50_000).expect("room");
    }
    // The kernel has taken its part of the bulk, and the receiver has not read any of it.
    world.node(1).net.flush();
    let begun = world.node(1).net.stats(2).expect("a peer").bytes_out as usize / 50_000;
    world.node(1).small(2, 1).expect("room");
    world.until("all is there", |w| w.node(2).frames().count() == 101);
    let at = world
        .node(2)
        .kinds_from(1)
        .iter()
        .position(|kind| *kind == 1)
        .expect("it is there");
    assert!(
        at <= begun + 1,
        "the small frame came after {at} bulk frames, {begun} were in the kernel"
    );
    assert!(at < 50, "{at}");
}

#[test]
fn a_lane_without_room_says_so_and_has_room_again() {
    let mut world = World::connected(2, |config| {
        tiny_buffers(config);
        config.max_frame_bytes = 100 << 10;
        config.bulk_queue_bytes = 1 << 20;
        config.small_queue_bytes = 2048;
    });
    let node = world.node(1);
    assert_eq!(node.net.room(2), 1 << 20);
    let taken = (0..100)
        .take_while(|_| node.bulk(2, 1, 100_000).is_ok())
        .count();
    assert_eq!(taken, (1 << 20) / 100_020);
    assert_eq!(node.net.room(2), (1 << 20) - taken * 100_020);
    assert_eq!(node.bulk(2, 1, 100_000), Err(SendError::Full));
    let small = (0..1000).take_while(|_| node.small(2, 2).is_ok()).count();
    assert_eq!(small, 2048 / 21, "the small lane has room of its own");
    let stats = node.net.stats(2).expect("a peer");
    assert_eq!(
        (stats.full, stats.queued_bytes),
        (3, taken * 100_020 + small * 21)
    );
    world.until("all is there", |w| {
        w.node(2).frames().count() == taken + small
    });
    assert_eq!(world.node(1).net.room(2), 1 << 20);
    world.node(1).bulk(2, 1, 100_000).expect("room again");
}

#[test]
fn a_frame_on_hold_stops_its_connection_and_no_other() {
    let mut world = World::connected(3, |config| {
        tiny_buffers(config);
        config.bulk_queue_bytes = config.max_frame_bytes;
    });
    world.node(3).hold = vec![2];
    for kind in [1, 2, 3] {
        world.node(1).bulk(3, kind, 100).expect("room");
    }
    world.until("the second is on hold", |w| {
        w.node(3).net.stats(1).expect("a peer").holds == 1
    });
    // Node 1 sends on until TCP pushes back; node 2 is not touched by it.
    world.until("the queue of node 1 is full", |w| {
        w.node(1).bulk(3, 4, 50_000) == Err(SendError::Full)
    });
    world.node(2).small(3, 9).expect("room");
    world.until("node 2 is heard", |w| w.node(3).kinds_from(2) == [9]);
    assert_eq!(world.node(3).kinds_from(1), [1]);
    assert!(world.node(1).net.stats(3).expect("a peer").queued_bytes > 1 << 20);
    world
        .node(3)
        .small(1, 8)
        .expect("the other direction is open");
    world.until("node 1 hears node 3", |w| w.node(1).kinds_from(3) == [8]);
    // Room again: in order, nothing lost, nothing twice.
    world.node(3).hold.clear();
    world.until("all is there", |w| {
        w.node(1).net.stats(3).expect("a peer").queued_bytes == 0
    });
    let sent = world.node(1).net.stats(3).expect("a peer").frames_out as usize;
    world.until("the last is there", |w| {
        w.node(3).kinds_from(1).len() == sent
    });
    assert_eq!(world.node(3).kinds_from(1)[..3], [1, 2, 3]);
    assert!(
        world.node(3).kinds_from(1)[3..]
            .iter()
            .all(|kind| *kind == 4)
    );
    assert_eq!(
        world.node(3).net.stats(1).expect("a peer").holds,
        1,
        "offered again and again is one hold"
    );
}

#[test]
fn a_held_frame_is_offered_at_the_next_poll_before_it_sleeps() {
    let mut world = World::connected(2, |_| {});
    world.node(2).hold = vec![1];
    world.node(1).small(2, 1).expect("up");
    world.until("it is on hold", |w| {
        w.node(2).net.stats(1).expect("a peer").holds == 1
    });
    world.node(2).hold.clear();
    let now = world.now();
    // No limit on the sleep: only the offered frame can end it before the keepalive timer.
    let mut taken = 0;
    let told = world
        .node(2)
        .net
        .poll(now, Some(Duration::from_secs(60)), &mut |_| {
            taken += 1;
            Handled::Taken
        });
    assert_eq!((told.expect("well"), taken), (1, 1));
}

#[test]
fn a_held_frame_is_offered_again_after_the_sleep() {
    let mut world = World::connected(2, |_| {});
    world.node(2).hold = vec![1];
    world.node(1).small(2, 1).expect("up");
    world.until("it is on hold", |w| {
        w.node(2).net.stats(1).expect("a peer").holds == 1
    });
    let now = world.now();
    let net = &mut world.node(2).net;
    // Another thread makes room while this one sleeps, and wakes it.
    net.waker().wake();
    let mut offers = 0;
    let told = net.poll(now, Some(Duration::from_secs(60)), &mut |_| {
        offers += 1;
        if offers == 1 {
            Handled::Hold
        } else {
            Handled::Taken
        }
    });
    assert_eq!((told.expect("well"), offers), (1, 2));
}

#[test]
fn little_bulk_is_given_to_the_kernel() {
    if cfg!(target_os = "linux") {
        let world = World::connected(2, |config| config.unsent_bytes = 54_321);
        for node in &world.nodes {
            let (_, conn) = node.net.conns.at(0).expect("the connection");
            let socket = socket2::SockRef::from(&conn.stream);
            assert_eq!(socket.tcp_notsent_lowat().expect("linux has it"), 54_321);
            assert!(socket.tcp_nodelay().expect("everyone has it"));
        }
    }
}

#[test]
fn a_frame_is_the_same_however_it_is_cut() {
    let mut world = World::of(1, |_| {});
    world
        .start(2, listener(), 200)
        .net
        .set_peers(&[(1, ([127, 0, 0, 1], 1).into())]);
    world.stop(1);
    let bytes = [
        hello_frame(hello(1, 2)),
        frame(1, b"first", b"body"),
        frame(2, b"second", &[]),
    ]
    .concat();
    for cut in 1..bytes.len() {
        let mut raw = Raw::connect(world.node(2).addr);
        world.node(2).seen.clear();
        let (before, after) = bytes.split_at(cut);
        raw.write(before);
        // The first part is read on its own, before the second is written.
        let taken = world.node(2).net.stats(1).expect("a peer").bytes_in as usize;
        world.until("the first part is read", |w| {
            let net = &w.node(2).net;
            let now = net.stats(1).expect("a peer").bytes_in as usize;
            let conns = (0..net.conns.len()).filter_map(|index| net.conns.at(index));
            let kept: usize = conns.map(|(_, conn)| conn.inbox.kept()).sum();
            now - taken + kept == cut
        });
        raw.write(after);
        world.until("both are there", |w| w.node(2).kinds_from(1) == [1, 2]);
    }
}

#[test]
fn long_heads_travel_on_both_lanes() {
    let mut world = World::connected(2, |_| {});
    let head: Vec<u8> = (0..60_000u32).map(|i| i as u8).collect();
    for lane in [Lane::Small, Lane::Bulk] {
        world
            .node(1)
            .net
            .send(2, lane, 1, 0, &head, Some(b"body".to_vec()))
            .expect("room");
    }
    world.until("both are there", |w| w.node(2).frames().count() == 2);
    for seen in &world.node(2).seen[1..] {
        let super::harness::Seen::Frame {
            head: got, body, ..
        } = seen
        else {
            panic!("{seen:?}")
        };
        assert_same(got, &head, "head");
        assert_eq!(body, b"body");
    }
}

#[test]
fn what_was_queued_is_dropped_with_the_connection() {
    let mut world = World::connected(2, tiny_buffers);
    let kept = std::sync::Arc::new(());
    struct Counted(Vec<u8>, #[allow(dead_code)] std::sync::Arc<()>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    // A node of another body type dials node 2 in the place of node 1.
    let two = world.node(2).addr;
    world.stop(1);
    let mut config = Config::new(super::harness::CLUSTER, 1, 100);
    tiny_buffers(&mut config);
    let mut one: crate::Net<Counted> = crate::Net::new(config, listener()).expect("well");
    one.set_peers(&[(2, two)]);
    world.until("it is up", |w| {
        one.poll(w.now(), Some(Duration::ZERO), &mut |_| Handled::Taken)
            .expect("well");
        one.connected(2)
    });
    for _ in 0..10 {
        one.send(
            2,
            Lane::Bulk,
            1,
            0,
            b"",
            Some(Counted(vec![0; 100_000], kept.clone())),
        )
        .expect("room");
    }
    one.flush();
    assert!(std::sync::Arc::strong_count(&kept) > 5, "they wait");
    world.stop(2);
    let mut told = Vec::new();
    world.until("it is down", |w| {
        one.poll(w.now(), Some(Duration::ZERO), &mut |event| {
            told.push(format!("{event:?}"));
            Handled::Taken
        })
        .expect("well");
        !one.connected(2)
    });
    assert_eq!(std::sync::Arc::strong_count(&kept), 1, "they are dropped");
    assert!(
        told.len() == 1 && told[0].starts_with("Down { peer: 2,"),
        "{told:?}"
    );
}
