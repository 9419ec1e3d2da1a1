//! After its start a node allocates nothing for an entry: counted over all threads of a durable three-node cluster.

#[path = "../../benches/three_nodes/mod.rs"]
mod three_nodes;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use ringraft::{Node, Threads};
use three_nodes::{Cluster, Load, Shape};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory that is handed out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise; `pointer` came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Entries that go through without a single allocation, in any thread.
const ENTRIES: u64 = 5_000;
/// Slots and connections keep their buffers, which grow to the largest batch they have met: it takes some rounds until
/// all have met one.
const ROUNDS: usize = 200;

/// How many allocations each round took, up to the first one without any.
fn allocations(
    threads: &Threads,
    payload: usize,
    sessions: bool,
    choose: impl Fn(&Cluster) -> &Node,
) -> Result<usize, Vec<u64>> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let shape = Shape {
        threads: threads.clone(),
        sessions,
        ..Shape::default()
    };
    let cluster = Cluster::start(dir.path(), &shape);
    let node = choose(&cluster);
    let mut load = if sessions {
        Load::in_session(node, payload, 64)
    } else {
        Load::new(node, payload, 64)
    };
    let mut counts = Vec::with_capacity(ROUNDS);
    while counts.len() < ROUNDS && counts.last() != Some(&0) {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let end = load.done + ENTRIES;
        while load.done < end {
            load.turn();
        }
        counts.push(ALLOCATIONS.load(Ordering::Relaxed) - before);
    }
    load.finish();
    cluster.shutdown();
    if counts.last() == Some(&0) {
        Ok(counts.len())
    } else {
        Err(counts)
    }
}

fn follower(cluster: &Cluster) -> &Node {
    let leader = cluster.leader().status().id;
    let other = cluster.nodes.iter().find(|node| node.status().id != leader);
    other.expect("three nodes")
}

#[test]
fn no_entry_costs_an_allocation() {
    let per_stage = Threads::PerStage { cores: Vec::new() };
    for (what, threads, payload, sessions) in [
        // The longest commands that travel inside their slots, and such as do not.
        ("shared", Threads::Shared, 256, false),
        ("long commands", Threads::Shared, 4096, false),
        ("apply apart", Threads::SeparateApply, 16, false),
        ("a thread per stage", per_stage, 16, false),
        // Short answers lie in the table of sessions itself.
        ("in a session", Threads::Shared, 16, true),
    ] {
        let on_leader = allocations(&threads, payload, sessions, Cluster::leader);
        let on_follower = allocations(&threads, payload, sessions, follower);
        println!(
            "{what}: without an allocation in round {on_leader:?}, and {on_follower:?} on a follower"
        );
        assert!(
            on_leader.is_ok() && on_follower.is_ok(),
            "{what}: allocations in each {ENTRIES} entries: {on_leader:?}, on a follower {on_follower:?}"
        );
    }
}
