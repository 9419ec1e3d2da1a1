//! The numbers that everything speaks of.

/// A place in the log; the first entry has 1.
pub type Index = u64;

/// A time of at most one leader.
pub type Term = u64;

/// Names a node for its whole life: never an address, and never given to another node. `1 ..= u32::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
