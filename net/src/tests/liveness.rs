//! Peers that are dead, silent or stuck cost the others nothing, and are noticed; what wakes the
//! poll.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::harness::{Raw, Seen, World, frame, hello, hello_frame, listener};
use crate::hello::{HELLO, PING};
use crate::{Config, Handled, Reason, SendError};

fn tiny_buffers(config: &mut Config) {
    config.socket_buffer_bytes = Some(4096);
}

/// Nodes 1 and 2, and in the place of node 3 a raw socket that has said hello.
fn with_a_raw_third(change: fn(&mut Config)) -> (World, Raw, std::net::TcpListener) {
    let mut world = World::of(2, change);
    let third = listener();
    let mut list = world.addresses();
    list.push((3, third.local_addr().expect("bound")));
    world.node(1).net.set_peers(&list);
    let mut raw = Raw::accept(&third, &mut world);
    assert_eq!(raw.until_next(&mut world).0, HELLO.kind);
    raw.write(&hello_frame(hello(3, 1)));
    world.until("all are up", |w| {
        w.node(1).net.connected(3) && w.node(1).net.connected(2)
    });
    (world, raw, third)
}

#[test]
fn a_peer_that_never_reads_is_given_up_and_the_others_go_on() {
    let (mut world, mut raw, _third) = with_a_raw_third(tiny_buffers);
    world.until("the lane to it is full", |w| {
        w.node(1).bulk(3, 1, 1 << 20) == Err(SendError::Full)
    });
    // It is not silent: it sends, it just takes nothing.
    for _ in 0..100 {
        raw.write(&frame(PING.kind, &[], &[]));
        world.pass(Duration::from_millis(50));
        if !world.node(1).net.connected(3) {
            break;
        }
        world
            .node(1)
            .small(2, 1)
            .expect("node 2 is not touched by it");
    }
    assert!(matches!(
        world.node(1).downs(3)[..],
        [Reason::Stalled {
            queued_bytes: 8_000_000..
        }]
    ));
    world.until("node 2 has all its frames", |w| {
        w.node(2).kinds_from(1).len() as u64 == w.node(1).net.stats(2).expect("a peer").frames_out
    });
    assert_eq!(
        (world.node(1).downs(2), world.node(2).downs(1)),
        (vec![], vec![])
    );
}

#[test]
fn a_peer_that_falls_silent_is_given_up() {
    let (mut world, mut raw, _third) = with_a_raw_third(|_| {});
    world.pass(Duration::from_millis(2800));
    assert!(world.node(1).net.connected(3), "not yet");
    raw.write(&frame(PING.kind, &[], &[]));
    world.pass(Duration::from_millis(2800));
    assert!(
        world.node(1).net.connected(3),
        "it has been heard in between"
    );
    world.pass(Duration::from_millis(300));
    assert_eq!(world.node(1).downs(3), [Reason::Silent]);
    assert_eq!(world.node(1).downs(2), []);
    let mut pings = 0;
    while let Some((kind, _)) = raw.next() {
        assert_eq!(kind, PING.kind);
        pings += 1;
    }
    assert!((9..=12).contains(&pings), "{pings} pings in 5.9 s");
}

#[test]
fn idle_nodes_stay_connected_by_pings_alone() {
    let mut world = World::connected(3, |_| {});
    world.pass(Duration::from_secs(20));
    for node in &world.nodes {
        assert!(
            node.seen.iter().all(|seen| matches!(seen, Seen::Up(_))),
            "{:?}",
            node.seen
        );
    }
}

#[test]
fn a_connection_on_hold_is_not_taken_for_silent() {
    let mut world = World::connected(2, |_| {});
    world.node(2).hold = vec![1];
    world.node(1).small(2, 1).expect("up");
    world.until("it is on hold", |w| {
        w.node(2).net.stats(1).expect("a peer").holds == 1
    });
    world.pass(Duration::from_secs(10));
    world.node(2).hold.clear();
    world.until("it is taken", |w| w.node(2).kinds_from(1) == [1]);
    world.pass(Duration::from_secs(5));
    assert_eq!(
        (world.node(1).downs(2), world.node(2).downs(1)),
        (vec![], vec![])
    );
}

#[test]
fn a_dead_peer_is_dialed_less_and_less_and_costs_the_others_nothing() {
    let mut world = World::connected(2, |_| {});
    let nobody = listener().local_addr().expect("bound");
    let mut list = world.addresses();
    list.push((3, nobody));
    world.node(1).net.set_peers(&list);
    world.pass(Duration::from_secs(10));
    let stats = world.node(1).net.stats(3).expect("a peer");
    assert!(
        matches!(
            stats.last_reason,
            Some(Reason::Io {
                doing: "connect",
                ..
            })
        ),
        "{stats:?}"
    );
    // Pauses of 5 to 10 ms, doubling to 250 to 500 ms: between 20 and 50 attempts in ten seconds.
    assert!((15..=50).contains(&stats.drops), "{stats:?}");
    let timer = world
        .node(1)
        .net
        .next_timer()
        .expect("it will be dialed again");
    assert!(timer <= world.now() + Duration::from_millis(500));
    // Another address is tried at once, and the pauses begin anew.
    list[2].1 = listener().local_addr().expect("bound");
    world.node(1).net.set_peers(&list);
    let drops = stats.drops;
    world.frozen = true;
    world.until("that one is dead as well", |w| {
        w.node(1).net.stats(3).expect("a peer").drops > drops
    });
    world.frozen = false;
    let pause = world.node(1).net.peers[1].dial_at.expect("again") - world.node(1).net.now;
    assert!(pause <= Duration::from_millis(10), "{pause:?}");
    list[2].1 = nobody;
    world.node(1).net.set_peers(&list);
    world.node(1).small(2, 1).expect("up");
    world.until("node 2 hears", |w| w.node(2).kinds_from(1) == [1]);
    assert_eq!(world.node(1).downs(2), []);
    // And when it lives, it is found.
    world.start(
        3,
        std::net::TcpListener::bind(nobody).expect("still free"),
        300,
    );
    let list = world.addresses();
    world.node(3).net.set_peers(&list);
    world.pass(Duration::from_millis(500));
    world.until("it is up", |w| w.node(1).net.connected(3));
}

#[test]
fn an_address_that_does_not_answer_is_given_up_in_time() {
    // A listener whose backlog is full drops what comes, as a machine that is switched off would.
    let full =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    full.bind(
        &"127.0.0.1:0"
            .parse::<std::net::SocketAddr>()
            .expect("an address")
            .into(),
    )
    .expect("free");
    full.listen(0).expect("bound");
    let addr = full
        .local_addr()
        .expect("bound")
        .as_socket()
        .expect("an inet address");
    let fillers: Vec<_> = (0..4)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                .expect("a socket");
            socket.set_nonblocking(true).expect("a socket");
            let _ = socket.connect(&addr.into());
            socket
        })
        .collect();
    let mut world = World::connected(2, |_| {});
    let mut list = world.addresses();
    list.push((3, addr));
    world.node(1).net.set_peers(&list);
    world.pass(Duration::from_millis(2500));
    assert_eq!(
        world.node(1).net.stats(3).expect("a peer").last_reason,
        Some(Reason::NoHello)
    );
    assert_eq!(world.node(1).downs(2), []);
    drop(fillers);
}

#[test]
fn a_reset_in_the_middle_of_a_frame_is_a_down_and_a_new_beginning() {
    let (mut world, mut raw, third) = with_a_raw_third(|_| {});
    raw.write(&frame(1, b"whole", b"body"));
    raw.write(&frame(2, b"torn", &[2; 1000])[..500]);
    world.until("the whole one is there", |w| w.node(1).kinds_from(3) == [1]);
    socket2::SockRef::from(&raw.stream)
        .set_linger(Some(Duration::ZERO))
        .expect("a socket");
    drop(raw);
    world.until("it is down", |w| w.node(1).downs(3).len() == 1);
    let reason = world.node(1).downs(3)[0].to_string();
    assert!(reason.contains("reset"), "{reason}");
    let mut raw = Raw::accept(&third, &mut world);
    raw.write(&hello_frame(hello(3, 1)));
    raw.write(&frame(3, b"again", &[]));
    world.until("it is back", |w| w.node(1).kinds_from(3) == [1, 3]);
    assert_eq!(world.node(1).downs(2), []);
}

#[test]
fn frames_before_the_end_of_a_connection_are_delivered() {
    let (mut world, mut raw, _third) = with_a_raw_third(|_| {});
    for kind in 0..50 {
        raw.write(&frame(kind, b"last words", &[kind; 100]));
    }
    drop(raw);
    world.until("it is down", |w| w.node(1).downs(3).len() == 1);
    assert_eq!(world.node(1).kinds_from(3), (0..50).collect::<Vec<u8>>());
}

#[test]
fn after_short_lives_the_pauses_grow_and_after_a_long_one_they_begin_anew() {
    let (mut world, mut raw, third) = with_a_raw_third(|_| {});
    let pause_after = |world: &mut World, raw: Raw, downs: usize| {
        drop(raw);
        world.frozen = true;
        world.until("it is down", |w| w.node(1).downs(3).len() == downs);
        world.frozen = false;
        let net = &world.node(1).net;
        net.peers[1].dial_at.expect("node 1 dials") - net.now
    };
    for downs in 1..=6 {
        let pause = pause_after(&mut world, raw, downs);
        let doubled = Duration::from_millis(10) * (1 << (downs - 1));
        assert!(
            doubled / 2 <= pause && pause <= doubled,
            "{pause:?} after {downs}"
        );
        world.pass(pause);
        raw = Raw::accept(&third, &mut world);
        raw.write(&hello_frame(hello(3, 1)));
        world.until("it is up", |w| w.node(1).net.connected(3));
    }
    world.pass(Duration::from_millis(600));
    let pause = pause_after(&mut world, raw, 7);
    assert!(
        pause <= Duration::from_millis(10),
        "{pause:?} after a long life"
    );
}

#[test]
fn a_flush_that_fails_is_a_down_at_the_next_poll() {
    let (mut world, raw, _third) = with_a_raw_third(|_| {});
    socket2::SockRef::from(&raw.stream)
        .set_linger(Some(Duration::ZERO))
        .expect("a socket");
    drop(raw);
    let node = world.node(1);
    node.small(3, 1).expect("it is not known yet");
    node.net.flush();
    assert!(
        node.seen.iter().all(|seen| matches!(seen, Seen::Up(_))),
        "only polls tell"
    );
    node.poll(Instant::now(), Duration::from_secs(60));
    assert_eq!(node.downs(3).len(), 1);
    assert_eq!(node.small(3, 1), Err(SendError::Down));
}

#[test]
fn a_buffer_that_grew_for_long_frames_shrinks_when_none_come_any_more() {
    let mut world = World::connected(2, |config| config.read_buffer_bytes = 4096);
    let capacity = |world: &mut World| {
        let (_, conn) = world.node(2).net.conns.at(0).expect("the connection");
        conn.inbox.capacity()
    };
    assert_eq!(capacity(&mut world), 4096);
    for count in 1..=4 {
        world.node(1).bulk(2, 1, 100_000).expect("room");
        world.until("it is there", |w| w.node(2).frames().count() == count);
        world.pass(Duration::from_secs(6));
        assert!(capacity(&mut world) >= 100_000, "still of use");
    }
    world.pass(Duration::from_secs(5));
    assert_eq!(capacity(&mut world), 4096);
}

#[test]
fn an_end_that_comes_with_the_last_bytes_is_seen() {
    let (mut world, mut raw, _third) = with_a_raw_third(|_| {});
    world.frozen = true;
    raw.write(&frame(1, b"last words", &[]));
    raw.stream
        .shutdown(std::net::Shutdown::Write)
        .expect("a socket");
    world.until("it is down", |w| w.node(1).downs(3) == [Reason::Closed]);
    assert_eq!(world.node(1).kinds_from(3), [1]);
}

#[test]
fn a_peer_that_takes_a_little_now_and_then_is_not_given_up() {
    let (mut world, mut raw, _third) = with_a_raw_third(tiny_buffers);
    for seconds in 0..10 {
        world.until("the lane to it is full", |w| {
            w.node(1).bulk(3, 1, 1 << 20) == Err(SendError::Full)
        });
        world.pass(Duration::from_secs(1));
        raw.write(&frame(PING.kind, &[], &[]));
        let before = world.node(1).net.stats(3).expect("a peer").bytes_out;
        world.frozen = true;
        world.until("a little is taken", |w| {
            let mut bytes = [0; 4096];
            let _ = raw.stream.read(&mut bytes);
            w.node(1).net.stats(3).expect("a peer").bytes_out > before
        });
        world.frozen = false;
        assert!(world.node(1).net.connected(3), "after {seconds} s");
    }
}

#[test]
fn who_sends_needs_no_pings() {
    let (mut world, mut raw, _third) = with_a_raw_third(|_| {});
    for _ in 0..20 {
        world.node(1).small(3, 1).expect("up");
        world.pass(Duration::from_millis(100));
    }
    let mut kinds = Vec::new();
    world.until("all is there", |_| {
        kinds.extend(std::iter::from_fn(|| raw.next()).map(|(kind, _)| kind));
        kinds.len() >= 20
    });
    assert_eq!(kinds, [1; 20]);
}

#[test]
fn after_a_hold_a_peer_has_time_to_be_heard_again() {
    let (mut world, mut raw, _third) = with_a_raw_third(|_| {});
    world.node(1).hold = vec![1];
    raw.write(&frame(1, b"held", &[]));
    world.until("it is on hold", |w| {
        w.node(1).net.stats(3).expect("a peer").holds == 1
    });
    world.pass(Duration::from_secs(10));
    world.node(1).hold.clear();
    world.pass(Duration::from_secs(2));
    assert_eq!(world.node(1).kinds_from(3), [1]);
    assert!(world.node(1).net.connected(3));
    world.pass(Duration::from_millis(1100));
    assert_eq!(world.node(1).downs(3), [Reason::Silent]);
}

#[test]
fn a_waker_ends_the_sleep_before_and_during_it() {
    let mut world = World::of(1, |_| {});
    let waker = world.node(1).net.waker();
    let net = &mut world.node(1).net;
    net.poll(Instant::now(), Some(Duration::ZERO), &mut |_| {
        Handled::Taken
    })
    .expect("well");
    assert_eq!(
        net.next_timer(),
        None,
        "nothing but the waker can end this sleep"
    );
    waker.wake();
    assert_eq!(
        net.poll(Instant::now(), None, &mut |_| Handled::Taken)
            .expect("well"),
        0
    );
    std::thread::scope(|scope| {
        scope.spawn(|| waker.clone().wake());
        net.poll(Instant::now(), None, &mut |_| Handled::Taken)
            .expect("well");
    });
}

#[test]
fn a_watched_descriptor_ends_the_sleep_each_time_it_is_written() {
    let mut world = World::of(1, |_| {});
    let (mut writer, reader) = UnixStream::pair().expect("a pair");
    let net = &mut world.node(1).net;
    net.watch(reader.as_raw_fd()).expect("it can be waited for");
    net.poll(Instant::now(), Some(Duration::ZERO), &mut |_| {
        Handled::Taken
    })
    .expect("well");
    for _ in 0..3 {
        writer.write_all(&[1]).expect("room");
        assert_eq!(
            net.poll(Instant::now(), None, &mut |_| Handled::Taken)
                .expect("well"),
            0
        );
    }
    assert!(net.watch(-1).is_err());
}
