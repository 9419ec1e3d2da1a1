//! What a node takes of its machine, computed from its configuration: descriptors and memory.

use crate::config::Config;
use crate::error::StartError;
use crate::flow::network::body::POOLED_BYTES;
use crate::flow::transfer::CHUNK_BYTES;
use crate::host::build::{ASIDE_SLOTS, RingSizes};
use crate::machine::Memory;
use crate::request::large::KEPT_BYTES;

/// Connections to the raft port that have not said who they are: as many are heard at a time, if there are descriptors for
/// them.
const MAX_STRANGERS: u64 = 64;

/// As many are heard in any case.
const MIN_STRANGERS: u64 = 4;

/// Standard input, output and error.
const STANDARD: u64 = 3;

/// Epoll, its wake-up, the listener, and a connection in reserve.
const NETWORK: u64 = 4;

impl Config {
    /// The descriptors (open files) that this node cannot do without: what its log holds and keeps in reserve, its network,
    /// and for each peer a connection and one in reserve. With a lower limit of the process it does not start. The length of
    /// the log makes no difference: closed segments are mapped and not open.
    pub fn min_descriptors(&self) -> u64 {
        storage::MIN_DESCRIPTORS as u64 + NETWORK + 2 * self.peers() + MIN_STRANGERS + STANDARD
    }

    /// The most descriptors that this node has at any time, with a snapshot on its way to each peer and strangers at its raft
    /// port. What the limit of the process (`ulimit -n`, RLIMIT_NOFILE) leaves beyond it is for the embedder: clients, and the
    /// state machine's own files.
    pub fn max_descriptors(&self) -> u64 {
        self.descriptors_of_its_own() + MAX_STRANGERS
    }

    fn descriptors_of_its_own(&self) -> u64 {
        storage::MAX_DESCRIPTORS as u64 + NETWORK + 4 * self.peers() + STANDARD
    }

    fn peers(&self) -> u64 {
        self.members.len().saturating_sub(1) as u64
    }

    /// How many strangers are heard at a time when the process may have so many descriptors.
    pub(crate) fn max_strangers(&self, limit: Option<u64>) -> usize {
        let left = limit.map_or(u64::MAX, |limit| {
            limit.saturating_sub(self.descriptors_of_its_own())
        });
        (left / 4).clamp(MIN_STRANGERS, MAX_STRANGERS) as usize
    }

    /// Refuses a limit with which the node could not live, and warns of one that leaves nothing to the embedder.
    pub(crate) fn check_descriptors(&self, limit: Option<u64>) -> Result<(), StartError> {
        let Some(limit) = limit else {
            return Ok(());
        };
        let (least, most) = (self.min_descriptors(), self.max_descriptors());
        if limit < least {
            return Err(StartError::Config(format!(
                "open files: the process may have {limit} and this node needs {least}: {} for its log, {} for its network and \
                 {} peers, {STANDARD} are the process's; raise the limit (ulimit -n, LimitNOFILE=)",
                storage::MIN_DESCRIPTORS,
                least - storage::MIN_DESCRIPTORS as u64 - STANDARD,
                self.peers()
            )));
        }
        if limit < most {
            tracing::warn!(
                node = self.id.0,
                limit,
                most,
                "the limit of open files leaves none to the embedder when this node has as many as it may: raise it (ulimit -n)"
            );
        }
        Ok(())
    }
}

/// One term of the sum.
#[derive(Clone, Copy, Debug)]
struct Term {
    /// What holds it, and the option that it follows from.
    what: &'static str,
    bytes: u64,
    /// It is allocated when the node starts; otherwise only when there is so much to hold.
    at_start: bool,
}

/// A slot of the table of requests, of the rings of reads and of what happens at an index, and of lists beside them.
const REQUEST_BYTES: u64 = 1 << 10;
/// A slot of the propose ring without its buffer.
const PROPOSAL_BYTES: u64 = 256;
/// Sizes of recent entries, rings without buffers, stacks.
const FIXED_BYTES: u64 = 8 << 20;
/// Bytes that the network holds for one connection: what it reads into, small frames, heads.
const CONNECTION_BYTES: u64 = 2 << 20;

impl Config {
    /// The most bytes of memory that this node holds for requests, entries and messages on their way: the sum of all rings,
    /// tables and buffers when each holds as much as it may. Beside it are the state machine and its replies, sessions, what
    /// clients of the embedder need, and the log's mapped files, whose pages the system takes back when it needs memory.
    ///
    /// | term | bytes | options |
    /// |---|---|---|
    /// | requests | `max_pending` x (1 KiB + 4 x `inline_bytes`), at start | `max_pending`, `inline_bytes` |
    /// | proposals | `propose_ring` x (256 + `inline_bytes`), at start | `propose_ring`, `inline_bytes` |
    /// | long commands | `max_spilled_bytes` + 28 MiB | `max_spilled_bytes` |
    /// | entry ring | `entry_ring` x 16 KiB at start; x 2 x the longest batch at the most | `entry_ring`, and those of the longest batch |
    /// | inbound ring | 64 x 16 KiB at start; x 2 x the longest batch at the most | those of the longest batch |
    /// | forwarded proposals | (512 + 3) x 2 x the longest batch, and 16 MiB, where there are peers | those of the longest batch, `forward` |
    /// | connections | 2 MiB and 4 x the longest batch for each peer | `members` |
    /// | snapshots | 3 x `snapshot_window_bytes` for each peer | `snapshot_window_bytes` |
    ///
    /// The longest batch is the largest of `max_batch_bytes`, `max_append_bytes` and `max_entry_bytes`; a buffer that grows has
    /// up to twice the length of its contents. A ring's buffers are this long only after as many long batches as it has slots;
    /// what they have over 64 KiB each is given back when none came for a second.
    pub fn max_memory_bytes(&self) -> u64 {
        sum(&self.memory(), false)
    }

    /// The part of [`Config::max_memory_bytes`] that is allocated when the node starts. With less memory it does not start.
    pub fn min_memory_bytes(&self) -> u64 {
        sum(&self.memory(), true)
    }

    fn memory(&self) -> [Term; 11] {
        let of = |count: usize, bytes: u64| (count as u64).saturating_mul(bytes);
        let (inline, peers) = (self.inline_bytes as u64, self.peers() as usize);
        let longest = self
            .max_batch_bytes
            .max(self.max_append_bytes)
            .max(self.max_entry_bytes) as u64;
        let grown = longest.saturating_mul(2);
        let at_start = |what, bytes| Term {
            what,
            bytes,
            at_start: true,
        };
        let later = |what, bytes| Term {
            what,
            bytes,
            at_start: false,
        };
        let forwards = match self.forward && peers > 0 {
            true => of(RingSizes::PRODUCT.bulk + 3, grown).saturating_add(POOLED_BYTES as u64),
            false => 0,
        };
        let first = crate::host::build::BATCH_BUFFER as u64;
        let inbound = if peers > 0 {
            RingSizes::PRODUCT.inbound_bulk
        } else {
            0
        };
        let window = (self.snapshot_window_bytes as u64)
            .saturating_mul(3)
            .saturating_add(of(ASIDE_SLOTS, CHUNK_BYTES as u64));
        [
            at_start("rings and threads", FIXED_BYTES),
            at_start(
                "requests (max_pending, inline_bytes)",
                of(
                    self.max_pending,
                    inline.saturating_mul(4).saturating_add(REQUEST_BYTES),
                ),
            ),
            at_start(
                "proposals (propose_ring, inline_bytes)",
                of(self.propose_ring, inline.saturating_add(PROPOSAL_BYTES)),
            ),
            at_start("entry ring (entry_ring)", of(self.entry_ring, first)),
            at_start(
                "batches (max_batch_bytes)",
                (self.max_batch_bytes as u64).saturating_mul(2),
            ),
            later(
                "long commands (max_spilled_bytes)",
                (self.max_spilled_bytes as u64).saturating_add(KEPT_BYTES as u64),
            ),
            later(
                "entry ring, grown (entry_ring, max_batch_bytes, max_append_bytes, max_entry_bytes)",
                of(self.entry_ring, grown),
            ),
            later(
                "inbound ring (max_batch_bytes, max_append_bytes, max_entry_bytes)",
                of(inbound, grown),
            ),
            later(
                "forwarded proposals (forward, max_batch_bytes, max_entry_bytes)",
                forwards,
            ),
            later(
                "connections (members)",
                of(
                    peers,
                    CONNECTION_BYTES.saturating_add(grown.saturating_mul(2)),
                ),
            ),
            later("snapshots (snapshot_window_bytes)", of(peers, window)),
        ]
    }

    /// Refuses a configuration that this machine cannot hold even at the start, and warns of one that it cannot hold when
    /// everything is full.
    pub(crate) fn check_memory(&self, machine: Option<Memory>) -> Result<(), StartError> {
        let Some(Memory { bytes, limit }) = machine else {
            return Ok(());
        };
        let terms = self.memory();
        let (least, most) = (sum(&terms, true), sum(&terms, false));
        if least > bytes {
            let terms: Vec<String> = terms
                .iter()
                .filter(|term| term.at_start)
                .map(|term| format!("{} for {}", mib(term.bytes), term.what))
                .collect();
            return Err(StartError::Config(format!(
                "memory: this node takes {} when it starts, and {limit} is {}: {}; lower the option of the largest",
                mib(least),
                mib(bytes),
                terms.join(", ")
            )));
        }
        if most > bytes {
            let largest = terms.iter().max_by_key(|term| term.bytes);
            tracing::warn!(
                node = self.id.0,
                "with all that it may hold this node takes {}, and {limit} is {}; the largest part is {}",
                mib(most),
                mib(bytes),
                largest.map_or("none", |term| term.what)
            );
        }
        Ok(())
    }
}

fn sum(terms: &[Term], at_start: bool) -> u64 {
    terms
        .iter()
        .filter(|term| term.at_start || !at_start)
        .fold(0, |sum, term| sum.saturating_add(term.bytes))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Member;
    use crate::machine::memory_of_machine;
    use crate::types::NodeId;

    fn of(count: u32) -> Config {
        let member = |id| Member {
            id: NodeId(id),
            addr: format!("127.0.0.1:{}", 7100 + id),
        };
        Config::new(NodeId(1), "/nowhere", (1..=count).map(member).collect())
    }

    #[test]
    fn a_limit_of_open_files_that_is_too_low_is_refused_with_the_numbers() {
        let config = of(3);
        let least = config.min_descriptors();
        assert!(least < config.max_descriptors());
        config.check_descriptors(None).expect("no limit");
        config.check_descriptors(Some(least)).expect("enough");
        let refused = config.check_descriptors(Some(least - 1));
        let text = refused.expect_err("too few").to_string();
        assert!(
            text.contains(&format!(
                "may have {} and this node needs {least}",
                least - 1
            )),
            "{text}"
        );
        assert!(text.contains("ulimit -n"), "{text}");
    }

    #[test]
    fn what_the_machine_cannot_hold_is_refused_with_the_terms() {
        let machine = |bytes| {
            Some(Memory {
                bytes,
                limit: "the memory of the machine",
            })
        };
        let small = machine(512 << 20);
        of(3)
            .check_memory(small)
            .expect("the defaults fit a small machine");
        assert!(
            of(3).min_memory_bytes() < 64 << 20,
            "{}",
            of(3).min_memory_bytes()
        );
        let refused = |change: fn(&mut Config)| {
            let mut config = of(3);
            change(&mut config);
            let refused = config.check_memory(small);
            refused.expect_err("too much").to_string()
        };
        let text = refused(|c| c.max_pending = 1 << 24);
        assert!(
            text.contains("the memory of the machine is 512 MiB"),
            "{text}"
        );
        assert!(
            text.contains("32768 MiB for requests (max_pending"),
            "{text}"
        );
        assert!(refused(|c| c.max_pending = 1 << 30).contains("max_pending"));
        assert!(refused(|c| c.propose_ring = 1 << 30).contains("propose_ring"));
        assert!(refused(|c| c.entry_ring = 1 << 20).contains("entry_ring"));
        assert!(refused(|c| c.inline_bytes = usize::MAX).contains("inline_bytes"));
        of(3).check_memory(None).expect("nothing is known");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        let Memory { bytes, .. } = memory_of_machine().expect("a machine");
        assert!(bytes > 1 << 20, "{bytes}");
    }

    #[test]
    fn strangers_get_what_is_left() {
        let config = of(3);
        assert_eq!(config.max_strangers(None), 64);
        assert_eq!(config.max_strangers(Some(1024)), 64);
        assert_eq!(config.max_strangers(Some(config.min_descriptors())), 4);
    }
}
