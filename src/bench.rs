//! A way into the pure core for `benches/core.rs`; not part of the interface.

use std::collections::VecDeque;

use crate::raft::{Core, Membership, Message, Output, Restored, Settings, Sizes};

struct Fixed;

impl Sizes for Fixed {
    fn fit(&self, first: u64, last: u64, max_bytes: u64) -> (u64, u64) {
        const BYTES: u64 = 72;
        let fits = (max_bytes / BYTES).max(1).min(last - first + 1);
        (first + fits - 1, fits * BYTES)
    }
}

/// Three cores whose messages are delivered at once and whose writes are durable at once.
#[derive(Debug)]
pub struct Trio {
    cores: [Core; 3],
    leader: usize,
    now_us: u64,
    committed: u64,
    messages: VecDeque<(usize, u64, Message)>,
}

impl Trio {
    /// The first of them leads.
    pub fn with_leader() -> Self {
        let core = |id| {
            let settings = Settings {
                id,
                election_timeout_us: 1_000_000,
                heartbeat_us: 100_000,
                seed: id,
                max_append_bytes: 256 << 10,
                max_inflight_messages: 256,
                max_inflight_bytes: 8 << 20,
                disk_stall_us: u64::MAX,
                founding_wait_us: 0,
                lease_us: None,
            };
            let restored = Restored {
                term: 0,
                vote: None,
                base_index: 0,
                base_term: 0,
                term_runs: Vec::new(),
                last_index: 0,
                committed: 0,
                heal: None,
                excluded: false,
                membership: Membership::of_voters(vec![1, 2, 3]),
            };
            Core::new(settings, restored, 0)
        };
        let mut trio = Self {
            cores: [1, 2, 3].map(core),
            leader: 0,
            now_us: 0,
            committed: 0,
            messages: VecDeque::new(),
        };
        trio.now_us = trio.cores[0].next_deadline();
        trio.cores[0].tick(trio.now_us, &Fixed);
        trio.settle();
        assert!(trio.cores[0].is_leader(), "nobody stands against the first");
        trio
    }

    /// Proposes a batch on the leader and carries everything out. Returns the batch's last index.
    pub fn propose(&mut self, count: u64) -> u64 {
        let proposed = self.cores[self.leader]
            .propose(self.now_us, count, count * 72, &Fixed)
            .expect("it leads");
        self.disk(self.leader, proposed.write);
        self.settle();
        proposed.last
    }

    /// The leader's commit index.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    fn disk(&mut self, at: usize, write: u64) {
        self.cores[at].persisted(self.now_us, write, &Fixed);
    }

    fn settle(&mut self) {
        loop {
            for at in 0..self.cores.len() {
                while let Some(output) = self.cores[at].pop_output() {
                    match output {
                        Output::SaveVote { write, .. }
                        | Output::Truncate { write, .. }
                        | Output::AppendReceived { write, .. }
                        | Output::AppendTermStart { write, .. } => self.disk(at, write),
                        Output::Send { to, message } => {
                            self.messages.push_back((at, to, message));
                        }
                        Output::Commit { index } if at == self.leader => self.committed = index,
                        _ => {}
                    }
                }
            }
            let Some((from, to, message)) = self.messages.pop_front() else {
                return;
            };
            self.cores[to as usize - 1].receive(self.now_us, from as u64 + 1, &message, &Fixed);
        }
    }
}
