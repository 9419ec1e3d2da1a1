//! The simulator itself: it repeats, it passes, and its checks can fail.

use super::*;

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..8 {
        let (one, other) = (run(&Options::new(seed)), run(&Options::new(seed)));
        assert_eq!(one.trace_hash, other.trace_hash, "seed {seed}");
        assert_eq!(one.counts, other.counts, "seed {seed}");
    }
}
