//! The small files beside the log, each written as a whole, with copies or a checksum of its own.
//!
//! | file | module | what |
//! |---|---|---|
//! | `identity` | `identity` | whose directory it is |
//! | `meta` | `meta` | term, vote, a truncation or reset under way |
//! | `peers` | `known_peers` | which directory each peer has |
//! | `heal` | `heal` | what was lost, until the peers have given it back |
//! | `excluded` | `exclusion` | a peer has refused this directory |

pub(crate) mod exclusion;
pub(crate) mod heal;
pub(crate) mod identity;
pub(crate) mod known_peers;
pub(crate) mod meta;
