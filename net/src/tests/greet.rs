//! Who connects to whom, who is refused, who replaces whom.

use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::harness::{Raw, Seen, World, frame, hello, hello_frame, listener};
use crate::hello::{HELLO, Hello, REFUSE};
use crate::{Lane, Reason, Refusal};

#[test]
fn two_nodes_meet_and_talk() {
    let mut world = World::of(2, |_| {});
    assert!(!world.node(1).net.connected(2));
    world.until("both are up", |w| {
        w.node(1).ups(2) == 1 && w.node(2).ups(1) == 1
    });
    let one = &mut world.node(1).net;
    one.send(2, Lane::Small, 3, 9, b"head", None).expect("up");
    one.send(2, Lane::Bulk, 4, 8, b"", Some(b"own checksums".to_vec()))
        .expect("up");
    one.send_covered(2, Lane::Bulk, 5, 7, b"covered", b"by the frame".to_vec())
        .expect("up");
    world
        .node(2)
        .net
        .send(1, Lane::Small, 6, 0, b"", None)
        .expect("up");
    world.until("all has arrived", |w| {
        w.node(2).frames().count() == 3 && w.node(1).frames().count() == 1
    });
    let sent = |kind, group, head: &[u8], body: &[u8]| Seen::Frame {
        from: 1,
        kind,
        group,
        head: head.to_vec(),
        body: body.to_vec(),
    };
    let expected = [
        Seen::Up(1),
        sent(3, 9, b"head", b""),
        sent(4, 8, b"", b"own checksums"),
        sent(5, 7, b"covered", b"by the frame"),
    ];
    assert_eq!(world.node(2).seen, expected);
    let (out, back) = (
        world.node(1).net.stats(2).expect("a peer"),
        world.node(2).net.stats(1).expect("a peer"),
    );
    assert_eq!(
        (
            out.frames_out,
            back.frames_in,
            out.frames_in,
            out.queued_bytes
        ),
        (3, 3, 1, 0)
    );
    assert_eq!(
        (out.bytes_out, out.bytes_in),
        (back.bytes_in, back.bytes_out)
    );
    assert_eq!(
        (out.connects, out.drops, out.up, out.incarnation),
        (1, 0, true, Some(200))
    );
}

#[test]
fn a_pair_has_one_connection_and_an_impostor_does_not_touch_it() {
    let mut world = World::connected(3, |_| {});
    for (id, peers) in [(1, 2), (2, 2), (3, 2)] {
        assert_eq!(
            world.node(id).net.conns.len(),
            peers,
            "one connection for each pair"
        );
    }
    let mut raw = Raw::connect(world.node(2).addr);
    let impostor = Hello {
        incarnation: 1,
        ..hello(3, 2)
    };
    raw.write(&hello_frame(impostor));
    let (kind, head) = raw.until_next(&mut world);
    let refusal = Refusal::Incarnation {
        ours: 300,
        theirs: 1,
    };
    assert_eq!((kind, &head[..]), (REFUSE.kind, &refusal.encode()[..]));
    raw.until_ended(&mut world);
    assert!(
        world.node(2).net.connected(3),
        "the real node 3 is not touched by it"
    );
}

#[test]
fn a_node_that_restarts_with_its_directory_is_welcome() {
    let mut world = World::connected(3, |_| {});
    for restarted in [1, 3] {
        let addr = world.stop(restarted);
        world.until("its peers notice", |w| {
            w.nodes.iter().all(|node| !node.net.connected(restarted))
        });
        let listener = TcpListener::bind(addr).expect("the port is free again");
        world.start(restarted, listener, restarted * 100);
        let list = world.addresses();
        world.node(restarted).net.set_peers(&list);
        world.until("it is back", |w| {
            w.nodes
                .iter()
                .all(|node| node.id == restarted || node.net.connected(restarted))
        });
    }
    assert_eq!((world.node(2).ups(1), world.node(2).ups(3)), (2, 2));
    assert_eq!(world.node(2).downs(1).len(), 1);
}

#[test]
fn a_node_that_restarts_with_another_directory_is_refused_and_told_why() {
    // Once as the side that dials, once as the side that accepts.
    for (wiped, other) in [(1, 2), (2, 1)] {
        let mut world = World::connected(2, |_| {});
        let addr = world.stop(wiped);
        let listener = TcpListener::bind(addr).expect("the port is free again");
        world.start(wiped, listener, 9999);
        let list = world.addresses();
        world.node(wiped).net.set_peers(&list);
        // As the dialer it needs one attempt only, and no time.
        world.frozen = wiped == 1;
        world.until("both sides know", |w| {
            !w.node(wiped).refusals(other).is_empty() && !w.node(other).refusals(wiped).is_empty()
        });
        if wiped == 1 {
            let net = &world.node(1).net;
            let pause = net.peers[0].dial_at.expect("node 1 dials") - net.now;
            assert!(
                pause >= net.config.backoff_max / 2,
                "no reason to hurry: {pause:?}"
            );
        }
        let refusal = Refusal::Incarnation {
            ours: wiped * 100,
            theirs: 9999,
        };
        assert_eq!(world.node(wiped).refusals(other)[0], (true, refusal));
        assert_eq!(world.node(other).refusals(wiped)[0], (false, refusal));
        assert_eq!(
            world
                .node(other)
                .net
                .stats(wiped)
                .expect("a peer")
                .last_reason,
            Some(Reason::Refused(refusal))
        );
        assert!(!world.node(other).net.connected(wiped));
        world.until("the wiped one is not up either", |w| {
            !w.node(wiped).net.connected(other)
        });
    }
}

#[test]
fn a_peer_that_comes_up_and_is_lost_all_the_time_does_not_fill_the_log() {
    let mut world = World::of(2, |_| {});
    // Node 2 takes node 1 in, which refuses it then: up and down with each attempt.
    world.node(1).net.incarnations.insert(2, 9999);
    world.until("it is refused", |w| w.node(2).downs(1).len() >= 2);
    world.pass(Duration::from_secs(60));
    let ups = world.node(2).ups(1);
    let lines = world.node(2).net.peers[0].quiet_ups.passed;
    assert!(ups > 60, "it came up {ups} times");
    assert!((1..=14).contains(&lines), "{lines} lines in a minute");
}

#[test]
fn a_node_that_says_that_it_has_lost_its_directory_takes_the_place_of_the_old_one() {
    for (wiped, other) in [(1, 2), (2, 1)] {
        let mut world = World::connected(2, |_| {});
        // As often as it happens.
        for incarnation in [9998, 9999] {
            let addr = world.stop(wiped);
            let listener = TcpListener::bind(addr).expect("the port is free again");
            let net = &mut world.start(wiped, listener, incarnation).net;
            net.config.replaces.store(true, Ordering::Release);
            let list = world.addresses();
            world.node(wiped).net.set_peers(&list);
            world.until("both are up", |w| {
                w.node(wiped).net.connected(other) && w.node(other).net.connected(wiped)
            });
            let known = world.node(other).net.stats(wiped).expect("a peer");
            assert_eq!(known.incarnation, Some(incarnation));
        }
        // The old one, or one that has stopped saying so, is no more its.
        let addr = world.stop(wiped);
        let listener = TcpListener::bind(addr).expect("the port is free again");
        world.start(wiped, listener, wiped * 100);
        let list = world.addresses();
        world.node(wiped).net.set_peers(&list);
        world.until("it is refused", |w| {
            !w.node(wiped).refusals(other).is_empty()
        });
        let refusal = Refusal::Incarnation {
            ours: 9999,
            theirs: wiped * 100,
        };
        assert_eq!(world.node(wiped).refusals(other)[0], (true, refusal));
    }
}

#[test]
fn an_incarnation_can_be_known_from_before() {
    let mut world = World::of(2, |config| config.known_incarnations = vec![(2, 31)]);
    world.until("it is refused", |w| !w.node(1).refusals(2).is_empty());
    assert_eq!(
        world.node(1).refusals(2)[0],
        (
            false,
            Refusal::Incarnation {
                ours: 31,
                theirs: 200
            }
        )
    );
    world.until("it is told", |w| !w.node(2).refusals(1).is_empty());
}

#[test]
fn a_second_connection_of_a_peer_replaces_the_first() {
    let mut world = World::of(1, |_| {});
    world
        .start(2, listener(), 200)
        .net
        .set_peers(&[(1, ([127, 0, 0, 1], 1).into())]);
    world.stop(1);
    let addr = world.node(2).addr;
    // Node 1 by hand: the first connection is left half-open, as after a power cut.
    let mut first = Raw::connect(addr);
    first.write(&hello_frame(hello(1, 2)));
    assert_eq!(first.until_next(&mut world).0, HELLO.kind);
    first.write(&frame(1, b"from the first", &[]));
    world.until("it is up and its frame there", |w| {
        w.node(2).kinds_from(1) == [1]
    });
    let mut second = Raw::connect(addr);
    second.write(&hello_frame(hello(1, 2)));
    second.write(&frame(2, b"from the second", &[]));
    first.until_ended(&mut world);
    world.until("the second is heard", |w| w.node(2).kinds_from(1) == [1, 2]);
    assert!(world.node(2).net.connected(1));
    let order: Vec<Seen> = world
        .node(2)
        .seen
        .iter()
        .filter(|seen| !matches!(seen, Seen::Frame { .. }))
        .cloned()
        .collect();
    assert_eq!(
        order,
        [Seen::Up(1), Seen::Down(1, Reason::Replaced), Seen::Up(1)]
    );
}

#[test]
fn an_address_that_leads_to_another_node_is_noticed_on_both_sides() {
    let mut world = World::of(3, |_| {});
    let (two, three) = (world.node(2).addr, world.node(3).addr);
    world.node(1).net.set_peers(&[(2, three), (3, three)]);
    world.until("node 1 is told", |w| {
        !w.node(1).refusals(2).is_empty() && w.node(1).net.connected(3)
    });
    assert_eq!(
        world.node(1).refusals(2)[0],
        (true, Refusal::WrongNode { ours: 3, theirs: 2 })
    );
    // The mistake is corrected while it runs.
    world.node(1).net.set_peers(&[(2, two), (3, three)]);
    world.until("node 2 is reached", |w| w.node(1).net.connected(2));
    assert_eq!(
        world.node(1).downs(3),
        [],
        "the right connection has stayed"
    );
}

#[test]
fn the_dialer_checks_who_answers() {
    let mut world = World::of(1, |_| {});
    let others = listener();
    world
        .node(1)
        .net
        .set_peers(&[(2, others.local_addr().expect("bound"))]);
    let mut raw = Raw::accept(&others, &mut world);
    let (kind, head) = raw.until_next(&mut world);
    assert_eq!((kind, &head[..]), (HELLO.kind, &hello(1, 2).encode()[..]));
    raw.write(&hello_frame(Hello {
        node: 3,
        ..hello(2, 1)
    }));
    let (kind, head) = raw.until_next(&mut world);
    assert_eq!(
        (kind, &head[..]),
        (
            REFUSE.kind,
            &Refusal::WrongNode { ours: 2, theirs: 3 }.encode()[..]
        )
    );
    assert_eq!(world.node(1).ups(2), 0);
}

#[test]
fn peers_come_and_go_while_it_runs() {
    let mut world = World::connected(3, |_| {});
    let all = world.addresses();
    world.node(1).net.set_peers(&all[..2]);
    assert!(!world.node(1).net.connected(3) && world.node(1).net.stats(3).is_none());
    world.until("both sides are told", |w| {
        w.node(1).downs(3) == [Reason::Removed] && !w.node(3).downs(1).is_empty()
    });
    // Node 1 dials 3 no more; 3 would refuse nothing. The other way round, 3 no longer knows 1:
    world.node(3).net.set_peers(&all[1..]);
    world.node(1).net.set_peers(&all);
    world.until("3 refuses 1", |w| !w.node(1).refusals(3).is_empty());
    assert_eq!(
        world.node(1).refusals(3)[0],
        (true, Refusal::UnknownNode { ours: 3, theirs: 1 })
    );
    world.node(3).net.set_peers(&all);
    world.pass(Duration::from_millis(600));
    world.until("3 takes 1 back", |w| {
        w.node(1).net.connected(3) && w.node(3).net.connected(1)
    });
    assert_eq!(
        (world.node(1).downs(2), world.node(3).downs(2)),
        (vec![], vec![]),
        "2 has seen nothing of it"
    );
}

#[test]
fn an_address_that_leads_back_home_is_refused() {
    let mut world = World::of(1, |_| {});
    let own = world.node(1).addr;
    world.node(1).net.set_peers(&[(2, own)]);
    world.until("it notices", |w| !w.node(1).refusals(2).is_empty());
    assert_eq!(
        world.node(1).refusals(2)[0],
        (true, Refusal::OwnId { node: 1 })
    );
}
