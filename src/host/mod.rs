//! A node as a whole: how it is built, which threads run it, how it ends.

pub(crate) mod agent;
pub(crate) mod build;
pub(crate) mod driver;
pub(crate) mod ending;
pub(crate) mod layout;
pub(crate) mod restore;
pub(crate) mod runner;
pub(crate) mod sleepers;
pub(crate) mod stages;
pub(crate) mod threads;
