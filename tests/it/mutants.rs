//! The planted bugs of `tests/mutants` can still be planted. Whether they are caught takes minutes:
//! `cargo run --release --example mutants`.

#[path = "../mutants/list.rs"]
mod list;

use std::path::Path;

#[test]
fn every_mutant_still_fits_the_product() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mutants = list::read(root).unwrap_or_else(|error| panic!("{error}"));
    assert!(mutants.len() >= 20, "only {} mutants", mutants.len());
    for mutant in &mutants {
        let changed = mutant.apply(root).unwrap_or_else(|error| panic!("{error}"));
        assert!(!changed.is_empty());
        // Most are for the simulator: what only a test can see says so.
        let simulated = mutant.catcher == list::Catcher::Simulate;
        assert!(
            simulated || mutant.why.len() > 80,
            "{}: {}",
            mutant.name,
            mutant.catcher
        );
        assert!(!mutant.lesson.is_empty());
    }
}
