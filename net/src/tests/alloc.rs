//! After start nothing is allocated per frame, neither where it is sent nor where it is received.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::harness::{CLUSTER, listener};
use crate::{Config, Event, Handled, Lane, Net};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts the allocations of each thread, so that tests do not count each other's.
struct Counting;

// SAFETY: every call is handed on unchanged to the system's allocator, which keeps the promises of
// the trait; counting touches a thread-local number without a destructor and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise about the layout is the one that is asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from `alloc` above, thus from the system's allocator, with this
        // layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn frames_cost_no_allocation() {
    let node = |id| -> Net<Arc<[u8]>> {
        let mut config = Config::new(CLUSTER, id, id);
        config.socket_buffer_bytes = Some(16 << 10);
        Net::new(config, listener()).expect("well")
    };
    let (mut one, mut two) = (node(1), node(2));
    one.set_peers(&[(2, two.local_addr().expect("bound"))]);
    two.set_peers(&[(1, one.local_addr().expect("bound"))]);
    let body: Arc<[u8]> = vec![7; 60_000].into();
    let mut received = 0u64;
    let mut round = |count: u64| {
        let (began, mut sent, until) = (Instant::now(), 0, received + count);
        while received < until {
            while sent < count && one.connected(2) {
                let lane = if sent % 3 == 0 {
                    Lane::Small
                } else {
                    Lane::Bulk
                };
                let body = (sent % 3 == 1).then(|| body.clone());
                if one.send(2, lane, 1, 0, &[1; 90], body).is_err() {
                    break;
                }
                sent += 1;
            }
            one.flush();
            for net in [&mut one, &mut two] {
                net.poll(Instant::now(), Some(Duration::ZERO), &mut |event| {
                    received += u64::from(matches!(event, Event::Frame { .. }));
                    Handled::Taken
                })
                .expect("well");
            }
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{received} of {until}"
            );
        }
    };
    round(100);
    let before = ALLOCATIONS.with(Cell::get);
    round(3000);
    assert_eq!(
        ALLOCATIONS.with(Cell::get) - before,
        0,
        "allocations for 3000 frames"
    );
}
