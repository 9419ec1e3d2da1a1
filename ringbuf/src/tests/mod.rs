//! The longer tests: stories that need several parts of the crate.

#[cfg(loom)]
mod loom;
#[cfg(not(loom))]
mod model;
#[cfg(not(loom))]
mod panics;
#[cfg(not(loom))]
mod threads;
#[cfg(not(loom))]
mod wake;
