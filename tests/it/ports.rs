//! Ports for servers that are started by their number, below those that the system gives to
//! outgoing connections: a server that is killed finds its port free when it comes back.
//!
//! Invariant: a block of ports belongs to one holder on this machine at a time, who listens on its
//! first port as long as it needs the others.

use std::net::TcpListener;

const FIRST: u16 = 12_000;
const LAST: u16 = 31_000;
const BLOCK: u16 = 16;

/// A block of ports that nobody else uses.
#[derive(Debug)]
pub(crate) struct Ports {
    first: u16,
    taken: u16,
    _claim: TcpListener,
}

impl Ports {
    /// Finds a block that nobody holds.
    pub(crate) fn claim() -> Self {
        let blocks = (LAST - FIRST) / BLOCK;
        // Processes begin at different places; it is the claim that keeps them apart.
        let start = (std::process::id() as u16).wrapping_mul(31) % blocks;
        (0..blocks)
            .map(|at| FIRST + (start + at) % blocks * BLOCK)
            .find_map(|first| {
                let claim = TcpListener::bind(("127.0.0.1", first)).ok()?;
                Some(Self {
                    first,
                    taken: 0,
                    _claim: claim,
                })
            })
            .expect("a block of free ports")
    }

    /// The next port that is free at this moment.
    pub(crate) fn next(&mut self) -> u16 {
        loop {
            self.taken += 1;
            assert!(self.taken < BLOCK, "a block has no more than {BLOCK} ports");
            let port = self.first + self.taken;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return port;
            }
        }
    }
}
