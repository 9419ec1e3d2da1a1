//! Reads in every mode, on every node.

use ringraft::Lease;

use super::*;

const MODES: [Consistency; 4] = [
    Consistency::Linearizable,
    Consistency::Lease,
    Consistency::Log,
    Consistency::AtMost {
        age: Duration::ZERO,
        entries: 0,
    },
];

#[test]
fn every_mode_that_promises_so_sees_what_any_node_acknowledged() {
    for (threads, lease) in PLANS.into_iter().zip([Some(Lease::default()), None]) {
        let three = Three::start(|config| {
            config.threads = threads.clone();
            config.lease = lease;
        });
        for n in 1..=60 {
            commit(&three.nodes[n % 3], b"+");
            for (at, how) in MODES.into_iter().enumerate() {
                let node = &three.nodes[(n / 3 + at) % 3];
                let seen = read(node, how);
                assert_eq!(seen, n as u64, "{how:?}: all that was acknowledged before");
            }
        }
    }
}

#[test]
fn a_read_through_the_log_stands_behind_the_own_proposals() {
    let three = Three::start(|_| ());
    for node in &three.nodes {
        let before = read(node, Consistency::Linearizable);
        let proposed: Vec<Pending> = (0..100)
            .map(|_| node.propose(b"+").expect("there is room"))
            .collect();
        let seen = answer(node.read(b"", Consistency::Log).expect("there is room"));
        let seen = seen.expect("an undisturbed cluster answers");
        let last = proposed.into_iter().map(answer).last();
        let last = last.expect("there were some").expect("they are done");
        assert_eq!(number(&seen), before + 100);
        assert!(seen.index > last.index, "{} {}", seen.index, last.index);
    }
}

#[test]
fn a_wait_for_an_index_ends_when_it_is_applied() {
    let three = Three::start(|_| ());
    for n in 1..=30 {
        let reply = commit(&three.nodes[n % 3], b"+");
        for node in &three.nodes {
            let waited = answer(node.wait_applied(reply.index).expect("there is room"));
            let waited = waited.expect("it gets there");
            assert!(reply.index <= waited.index);
            assert_eq!(waited.bytes, b"");
            assert_eq!(read(node, Consistency::Stale), n as u64, "the own write");
        }
    }
    // One that is not there yet.
    let next = three.nodes[0].status().last + 1;
    let waits: Vec<Pending> = three
        .nodes
        .iter()
        .map(|node| node.wait_applied(next).expect("there is room"))
        .collect();
    let index = commit(&three.nodes[0], b"+").index;
    assert_eq!(index, next);
    for wait in waits {
        assert!(next <= answer(wait).expect("it is applied").index);
    }
}

#[test]
fn who_waits_long_holds_up_nobody() {
    let three = Three::start(hasty);
    commit(&three.nodes[0], b"+");
    for node in &three.nodes {
        let far = node.wait_applied(1_000_000).expect("there is room");
        // Each behind the wait, which lasts far longer than they do.
        for how in MODES {
            assert_eq!(read(node, how), 1, "{how:?}");
        }
        let far = far
            .wait_timeout(Duration::ZERO)
            .expect_err("it still waits");
        assert_eq!(
            answer(far),
            Err(ProposeError::Unknown),
            "nobody waits for ever"
        );
    }
}

#[test]
fn a_bounded_read_is_answered_from_the_past_until_that_is_too_old() {
    let three = Three::start(hasty);
    let old = |age| Consistency::AtMost { age, entries: 0 };
    let hour = old(Duration::from_secs(3600));
    commit(&three.nodes[0], b"+");
    let left = three.until_leader(&[0, 1, 2]);
    let node = &three.nodes[left];
    assert_eq!(read(node, hour), 1);
    for at in (0..3).filter(|&at| at != left) {
        three.nodes[at].shutdown_now();
    }
    until("it knows that nobody leads", || {
        node.status().leader.is_none()
    });
    assert_eq!(read(node, hour), 1, "it knows enough for that");
    for how in [old(Duration::ZERO), Consistency::Lease, Consistency::Log] {
        let outcome = node.read(b"", how).map(answer);
        let expected = Err(ProposeError::NotLeader { leader: None });
        assert_eq!(outcome, Ok(expected), "{how:?}");
    }
}
