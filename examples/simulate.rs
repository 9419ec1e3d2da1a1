//! Runs simulated clusters from seeds.

fn main() {}
