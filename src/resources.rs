//! What a node takes of its machine, computed from its configuration: descriptors.

use crate::{Config, StartError};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Member, NodeId};

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
    fn strangers_get_what_is_left() {
        let config = of(3);
        assert_eq!(config.max_strangers(None), 64);
        assert_eq!(config.max_strangers(Some(1024)), 64);
        assert_eq!(config.max_strangers(Some(config.min_descriptors())), 4);
    }
}
