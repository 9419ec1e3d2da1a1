//! The core in a group: files of commands whose output is read like code (`golden`), random runs
//! from a seed (`chaos`, and `random` with a model of its own), what one append does to one
//! follower (`exact`), who gets a vote (`votes`), what comes after a loss (`heal`), and messages that no sound peer sends
//! (`hostile`). `cluster` is what `golden` and `chaos` share: disks that lose what was not flushed,
//! a network that loses, doubles and reorders, and the checks that hold at every step.

mod chaos;
mod cluster;
mod exact;
mod exclusion;
mod golden;
mod heal;
mod hostile;
mod random;
mod votes;
