//! After its start a node allocates nothing for an entry, and what its buffers have grown by for long ones it gives back:
//! counted over all threads of a three-node cluster.

#[path = "../../benches/three_nodes/mod.rs"]
mod three_nodes;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringraft::{Flush, Node, Threads};
use three_nodes::{Cluster, Load, Shape};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Bytes that are allocated now.
static LIVE: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory that is handed out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add(size as u64, Ordering::Relaxed);
        LIVE.fetch_sub(layout.size() as u64, Ordering::Relaxed);
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

/// As many, and of long ones as many bytes as would still take a while.
fn entries_of(payload: usize) -> u64 {
    ENTRIES.min((32 << 20) / payload as u64)
}

/// Requests under way: of very long commands no more than a node keeps buffers for.
fn requests_of(payload: usize) -> usize {
    if payload > 64 << 10 { 8 } else { 64 }
}

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
        Load::in_session(node, payload, requests_of(payload))
    } else {
        Load::new(node, payload, requests_of(payload))
    };
    let mut counts = Vec::with_capacity(ROUNDS);
    while counts.len() < ROUNDS && counts.last() != Some(&0) {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let end = load.done + entries_of(payload);
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

/// The tests count for the whole process: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn no_entry_costs_an_allocation() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let per_stage = Threads::PerStage { cores: Vec::new() };
    for (what, threads, payload, sessions) in [
        // The longest commands that travel inside their slots, and such as do not.
        ("shared", Threads::Shared, 256, false),
        ("long commands", Threads::Shared, 4096, false),
        ("apply apart", Threads::SeparateApply, 16, false),
        ("very long commands", Threads::Shared, 100 << 10, false),
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
            "{what}: allocations in each {} entries: {on_leader:?}, on a follower {on_follower:?}",
            entries_of(payload)
        );
    }
}

/// A node's rings have slots for far more than that: two of 64 batches, one of 512.
const MOST_HELD: u64 = 80 << 20;

#[test]
fn what_long_commands_took_is_given_back_when_none_come_any_more() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let shape = Shape {
        flush: Flush::Never,
        segment_bytes: 16 << 20,
        ..Shape::default()
    };
    let cluster = Cluster::start(dir.path(), &shape);
    let before = LIVE.load(Ordering::Relaxed);
    let held = || LIVE.load(Ordering::Relaxed).saturating_sub(before);
    let command = vec![0x5a; (1 << 20) - 1];
    // Whether each of them is committed is not the question: more than the rings have slots are.
    let mut done = 0;
    while done < 200 {
        let node = match done % 2 {
            0 => cluster.leader(),
            _ => follower(&cluster),
        };
        if let Ok(pending) = node.propose(&command)
            && pending.wait().is_ok()
        {
            done += 1;
        }
    }
    let most = held();
    let deadline = Instant::now() + Duration::from_secs(60);
    while held() > MOST_HELD {
        assert!(
            Instant::now() < deadline,
            "{} bytes are held by three idle nodes, {most} at first",
            held()
        );
        std::thread::yield_now();
    }
    println!("{most} bytes were held behind the load, now {}", held());
    assert!(
        most > MOST_HELD,
        "{most} bytes were too few to see anything"
    );
    cluster.shutdown();
}
