//! A server whose directory is gone comes back under its own id: when its operator says so, and not otherwise.

use crate::cluster::Cluster;
use crate::load::{Load, check};
use crate::until;

fn until_it_has_everything(cluster: &Cluster, id: usize) {
    let leader = cluster.until_leader();
    let other = if leader == id { id % 3 + 1 } else { leader };
    until("it has what the others have", || {
        let applied = |id| cluster.info(id).map(|info| info.number("applied"));
        applied(id).is_some() && applied(id) >= applied(other)
    });
}

fn until_said(cluster: &Cluster, id: usize, what: &str) {
    until(format_args!("server {id} says {what:?}"), || {
        cluster.log(id).contains(what)
    });
}

/// It votes like any other again.
fn until_healed(cluster: &Cluster, id: usize) {
    until_said(cluster, id, "what was lost is here again");
}

#[test]
fn a_server_whose_directory_is_gone_gets_everything_again_under_load() {
    for of_the_leader in [true, false] {
        let mut cluster = Cluster::start(3);
        let load = Load::start(&cluster, "a", 6);
        load.until_more(200);
        let leader = cluster.until_leader();
        let lost = if of_the_leader {
            leader
        } else {
            leader % 3 + 1
        };
        cluster.kill(lost);
        cluster.remove_data(lost);
        cluster.until_leader();
        load.until_more(100);
        cluster.start_with_more(lost, &["--rejoin"]);
        cluster.until_answers(lost);
        load.until_more(100);
        until_healed(&cluster, lost);
        load.until_more(100);

        // It counts: with another one gone the two that are left go on.
        let leader = cluster.until_leader();
        let gone = if leader == lost { lost % 3 + 1 } else { leader };
        cluster.kill(gone);
        cluster.until_leader();
        load.until_more(100);
        cluster.start_one(gone);
        cluster.until_leader();

        let tally = load.finish();
        let value = cluster.get(lost, "a");
        check(&tally, value);
        for id in cluster.ids() {
            assert_eq!(cluster.get(id, "a"), value, "on server {id}");
        }
        cluster.until_equal();
    }
}

#[test]
fn without_the_word_of_its_operator_it_is_refused_and_says_what_to_do() {
    let mut cluster = Cluster::start(3);
    for n in 1..=20 {
        assert_eq!(cluster.incr(1, "a"), n);
    }
    for lost in [1, 3] {
        cluster.kill(lost);
        cluster.remove_data(lost);
        cluster.start_one(lost);
        until_said(
            &cluster,
            lost,
            "peer refuses this node: the node comes with",
        );
        let log = cluster.log(lost);
        let line = log
            .lines()
            .find(|line| line.contains("peer refuses this node: the node comes with"));
        let line = line.expect("seen above");
        assert!(line.contains("--rejoin"), "{line}");
        let others: Vec<usize> = cluster.ids().filter(|id| *id != lost).collect();
        cluster.until_leader_of(&others);
        assert_eq!(cluster.get(others[0], "a"), 20);
        assert_eq!(cluster.info(lost).expect("it runs").number("last"), 0);

        // The operator reads that, and does it: with an empty directory.
        cluster.kill(lost);
        cluster.remove_data(lost);
        cluster.start_with_more(lost, &["--rejoin"]);
        cluster.until_answers(lost);
        until_healed(&cluster, lost);
        assert_eq!(cluster.get(lost, "a"), 20);
    }
    cluster.until_equal();
}

#[test]
fn the_old_directory_is_refused_when_it_comes_back_after_all() {
    let mut cluster = Cluster::start(3);
    assert_eq!(cluster.incr(2, "a"), 1);
    let old = cluster.path().join("old");
    cluster.kill(2);
    cluster.swap_data(2, &old);
    cluster.start_with_more(2, &["--rejoin"]);
    cluster.until_answers(2);
    until_healed(&cluster, 2);
    assert_eq!(cluster.incr(2, "a"), 2);

    cluster.kill(2);
    cluster.swap_data(2, &old);
    assert!(
        !cluster
            .log(2)
            .contains("rejoin_with_nothing does nothing here")
    );
    cluster.start_one(2); // The flag is still there, and says nothing about a directory that is not empty.
    until_said(&cluster, 2, "rejoin_with_nothing does nothing here");
    until_said(&cluster, 2, "peer refuses this node: the node comes with");
    assert_eq!(cluster.incr(1, "a"), 3);

    cluster.kill(2);
    cluster.swap_data(2, &old);
    cluster.start_with_more(2, &[]);
    until_it_has_everything(&cluster, 2);
    assert_eq!(cluster.get(2, "a"), 3);
    cluster.until_equal();
}

#[test]
fn it_waits_until_all_others_have_been_there() {
    let mut cluster = Cluster::start(3);
    assert_eq!(cluster.incr(1, "a"), 1);
    cluster.kill(2);
    cluster.kill(3);
    cluster.remove_data(3);
    cluster.start_with_more(3, &["--rejoin"]);
    until_said(&cluster, 1, "the peer has lost its directory for good");
    assert!(!cluster.log(3).contains("what was lost is here again"));
    assert_eq!(
        cluster.info(3).expect("it answers").number("term"),
        0,
        "it takes no part"
    );
    // It forgets nothing of that when it is started again, without its operator's word.
    cluster.kill(3);
    cluster.start_with_more(3, &[]);
    cluster.start_one(2);
    until_healed(&cluster, 3);
    assert_eq!(cluster.get(3, "a"), 1);
    cluster.until_equal();
}

#[test]
fn a_group_of_two_is_told_that_it_cannot() {
    let mut cluster = Cluster::prepare(2);
    cluster.start_with_more(1, &["--rejoin"]);
    let status = cluster.until_exit(1);
    assert!(!status.success(), "{status}");
    let log = cluster.log(1);
    assert!(log.contains("in a group of 2"), "{log}");
}
