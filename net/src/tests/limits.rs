//! When the process has no descriptor left: nobody spins, connections go on, and new ones are taken
//! when there is room.

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::harness::{Raw, World, hello, hello_frame};
use crate::hello::REFUSE;

#[test]
fn without_descriptors_connections_go_on_and_new_ones_wait() {
    in_its_own_process("out_of_descriptors");
}

#[test]
fn when_others_have_taken_all_descriptors_silent_strangers_give_way() {
    in_its_own_process("strangers_and_others_have_taken_all");
}

fn in_its_own_process(test: &str) {
    let tests = std::env::current_exe().expect("this process has a file");
    let output = Command::new(tests)
        .args(["--exact", &format!("tests::limits::{test}"), "--ignored"])
        .output()
        .expect("it can be run again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
#[ignore = "takes all descriptors of its process; run by the test above in a process of its own"]
fn out_of_descriptors() {
    let mut world = World::connected(2, |_| {});
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(100),
            maximum: limit.maximum,
        },
    )
    .expect("it may be lowered");
    world.node(2).net.spare.clear();
    let mut raw = Raw::connect(world.node(2).addr);
    raw.write(&hello_frame(hello(1, 3)));
    let fillers: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    world.until("it cannot accept", |w| w.node(2).net.accept_after.is_some());
    world.frozen = true;
    let again = world.node(2).net.accept_after;
    let net = &world.node(2).net;
    assert!(!net.acceptable, "it does not try again and again");
    let pause = net.next_timer().expect("it tries again") - net.now;
    assert!(pause <= Duration::from_millis(100), "{pause:?}");
    world.node(1).small(2, 1).expect("up");
    world.until("frames still arrive", |w| w.node(2).kinds_from(1) == [1]);
    assert_eq!(
        world.node(2).net.accept_after,
        again,
        "it has not tried again"
    );
    world.pass(Duration::from_millis(300));
    assert_ne!(world.node(2).net.accept_after, again, "it has tried again");
    assert_eq!(raw.next(), None, "in vain");
    drop(fillers);
    world.pass(Duration::from_millis(150));
    assert_eq!(raw.until_next(&mut world).0, REFUSE.kind, "it is heard");
}

#[test]
#[ignore = "takes all descriptors of its process; run by the test above in a process of its own"]
fn strangers_and_others_have_taken_all() {
    let mut world = World::connected(2, |config| config.hello_timeout = Duration::from_secs(3600));
    let limit = getrlimit(Resource::Nofile);
    let lowered = Rlimit {
        current: Some(100),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, lowered).expect("it may be lowered");
    let spare = world.node(2).net.spare.len();
    assert_eq!(spare, 2, "one for its peer, one for a stranger");
    let addr = world.node(2).addr;
    let mut silent = [Raw::connect(addr), Raw::connect(addr)];
    let mut raw = Raw::connect(addr);
    raw.write(&hello_frame(hello(1, 3)));
    let fillers: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    world.frozen = true;
    world.until("both are accepted", |w| {
        w.node(2).net.accept_after.is_some()
    });
    // The one that has been silent for longest gives way to who comes next.
    silent[0].until_ended(&mut world);
    assert_eq!(
        raw.next(),
        None,
        "not at once: who was accepted may yet say who it is"
    );
    // A connection that ends makes room, whatever the time.
    drop(silent);
    assert_eq!(raw.until_next(&mut world).0, REFUSE.kind, "it is heard");
    assert_eq!(world.node(2).downs(1), [], "its peer has noticed nothing");
    drop(fillers);
}
