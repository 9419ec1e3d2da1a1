//! Who is there: the first frame each way, its checks, and the answer to one who may not stay.
//!
//! ```text
//! hello   0 magic "RINGRAFT" | 8 version u16 | 10 oldest u16 | 12 flags u32 | 16 cluster u64
//!         | 24 node u64 | 32 incarnation u64 | 40 target u64 | 48 kind u64 | 56
//! refuse  0 code u8 | 1 the refusing side's value u64 | 9 the refused side's value u64 | 17
//! ```
//!
//! The dialer speaks first; the accepting side answers only to a hello it agrees with, so a
//! stranger learns nothing. Bytes after these layouts are ignored: a later version may add to them.
//!
//! An incarnation names a data directory. A node that comes back with another one has lost its log
//! and its vote, so what it promised no longer holds: it is refused (wiping a disk and rejoining
//! under the same id is how quorums are split). Only one that knows this of itself, and says so with
//! the flag 1, is taken in with its new incarnation; from then on the old one is refused.

use std::fmt;

use crate::frame::{Frame, Label, u32_at, u64_at};

/// The protocol that this crate speaks: frames, hello, and what ringraft puts into them.
pub const PROTOCOL_VERSION: u16 = 1;
/// The oldest protocol that it still speaks.
pub const OLDEST_PROTOCOL_VERSION: u16 = 1;

pub(crate) const HELLO: Label = Label {
    group: 0,
    kind: 0xF0,
};
pub(crate) const REFUSE: Label = Label {
    group: 0,
    kind: 0xF1,
};
pub(crate) const PING: Label = Label {
    group: 0,
    kind: 0xF2,
};

/// A flag of a hello: the directory takes the place of one that is gone.
const REPLACES: u32 = 1;
const MAGIC: &[u8; 8] = b"RINGRAFT";
pub(crate) const HELLO_BYTES: usize = 56;
/// Older nodes do not name their kind.
const OLDER_HELLO_BYTES: usize = 48;
const REFUSE_BYTES: usize = 17;
/// Hellos of later versions may be longer than ours; a stranger gets no more room than this before
/// it is known.
pub(crate) const MAX_GREETING_BYTES: usize = 256;

/// How a node presents itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The newest and the oldest protocol it speaks.
    pub(crate) version: u16,
    pub(crate) oldest: u16,
    pub(crate) cluster: u64,
    pub(crate) node: u64,
    pub(crate) incarnation: u64,
    /// Its directory takes the place of one that is gone.
    pub(crate) replaces: bool,
    /// Whom it believes to be talking to.
    pub(crate) target: u64,
    /// What sort of content it shares; 0: not known.
    pub(crate) kind: u64,
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.oldest.to_le_bytes());
        let flags = if self.replaces { REPLACES } else { 0 };
        bytes[12..16].copy_from_slice(&flags.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.cluster.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.node.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.target.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.kind.to_le_bytes());
        bytes
    }

    /// `None`: this is no hello of ours.
    pub(crate) fn decode(frame: &Frame<'_>) -> Option<Self> {
        let head = frame.head;
        if frame.label != HELLO || head.len() < OLDER_HELLO_BYTES || &head[..8] != MAGIC {
            return None;
        }
        let versions = u32_at(head, 8);
        Some(Self {
            version: versions as u16,
            oldest: (versions >> 16) as u16,
            cluster: u64_at(head, 16),
            node: u64_at(head, 24),
            incarnation: u64_at(head, 32),
            replaces: u32_at(head, 12) & REPLACES != 0,
            target: u64_at(head, 40),
            kind: match head.len() < HELLO_BYTES {
                true => 0,
                false => u64_at(head, 48),
            },
        })
    }
}

/// Why one side would not talk to the other. `ours` is the value of the side that refuses, `theirs`
/// that of the refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The two sides have no protocol version in common.
    Version {
        /// The newest version the refusing side speaks.
        ours: u64,
        /// The newest version the refused side speaks.
        theirs: u64,
    },
    /// Two clusters that reach each other.
    Cluster {
        /// The refusing side's cluster id.
        ours: u64,
        /// The refused side's cluster id.
        theirs: u64,
    },
    /// Two processes run under one node id, or an address leads back to the node itself.
    OwnId {
        /// The node id of both.
        node: u64,
    },
    /// The address leads to another node than the one it is configured for.
    WrongNode {
        /// Who is there (when the dialed side refuses) or was expected (when the dialer does).
        ours: u64,
        /// Who was expected (when the dialed side refuses) or is there (when the dialer does).
        theirs: u64,
    },
    /// The refusing side has no such peer.
    UnknownNode {
        /// The refusing node.
        ours: u64,
        /// The node that is no peer of it.
        theirs: u64,
    },
    /// Both have dialed at once: the connection stays that the smaller id has made. (A node that lets only the smaller one dial
    /// says the same.)
    Direction {
        /// The refusing node.
        ours: u64,
        /// The refused node.
        theirs: u64,
    },
    /// The node has another data directory than before.
    Incarnation {
        /// The incarnation that the refusing side knows for the refused node.
        ours: u64,
        /// The one it came with.
        theirs: u64,
    },
    /// The nodes share content of different kinds.
    Kind {
        /// The refusing side's kind.
        ours: u64,
        /// The refused side's kind.
        theirs: u64,
    },
    /// A reason of a later version.
    Other {
        /// Its code.
        code: u8,
    },
}

impl Refusal {
    pub(crate) fn encode(&self) -> [u8; REFUSE_BYTES] {
        let (code, ours, theirs) = match *self {
            Self::Version { ours, theirs } => (1, ours, theirs),
            Self::Cluster { ours, theirs } => (2, ours, theirs),
            Self::OwnId { node } => (3, node, node),
            Self::WrongNode { ours, theirs } => (4, ours, theirs),
            Self::UnknownNode { ours, theirs } => (5, ours, theirs),
            Self::Direction { ours, theirs } => (6, ours, theirs),
            Self::Incarnation { ours, theirs } => (7, ours, theirs),
            Self::Kind { ours, theirs } => (8, ours, theirs),
            Self::Other { code } => (code, 0, 0),
        };
        let mut bytes = [0; REFUSE_BYTES];
        bytes[0] = code;
        bytes[1..9].copy_from_slice(&ours.to_le_bytes());
        bytes[9..17].copy_from_slice(&theirs.to_le_bytes());
        bytes
    }

    /// `None`: this is no refusal.
    pub(crate) fn decode(frame: &Frame<'_>) -> Option<Self> {
        if frame.label != REFUSE || frame.head.len() < REFUSE_BYTES {
            return None;
        }
        let (ours, theirs) = (u64_at(frame.head, 1), u64_at(frame.head, 9));
        Some(match frame.head[0] {
            1 => Self::Version { ours, theirs },
            2 => Self::Cluster { ours, theirs },
            3 => Self::OwnId { node: theirs },
            4 => Self::WrongNode { ours, theirs },
            5 => Self::UnknownNode { ours, theirs },
            6 => Self::Direction { ours, theirs },
            7 => Self::Incarnation { ours, theirs },
            8 => Self::Kind { ours, theirs },
            code => Self::Other { code },
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { ours, theirs } => write!(
                f,
                "protocol {theirs} and protocol {ours} have no version in common: upgrade the \
                 older node, one version at a time"
            ),
            Self::Cluster { ours, theirs } => write!(
                f,
                "cluster {theirs:#x} is not cluster {ours:#x}: check the addresses, or the \
                 cluster ids in the configurations"
            ),
            Self::OwnId { node } => write!(
                f,
                "both sides are node {node}: two processes run under one id, or an address leads \
                 a node back to itself"
            ),
            Self::WrongNode { ours, theirs } => write!(
                f,
                "node {ours} and node {theirs} are mixed up: the address configured for the one \
                 leads to the other"
            ),
            Self::UnknownNode { ours, theirs } => write!(
                f,
                "node {theirs} is no peer of node {ours}: it has been removed, or its addition \
                 has not arrived there yet"
            ),
            Self::Direction { ours, theirs } => {
                write!(
                    f,
                    "node {theirs} and node {ours} have dialed each other: the connection of the smaller id stays"
                )
            }
            Self::Incarnation { ours, theirs } => write!(
                f,
                "the node comes with incarnation {theirs:#x} but was known with {ours:#x}: its \
                 directory was wiped or replaced, and what it voted and acknowledged is lost. \
                 Restore the directory. If it is certainly gone for good, and no process runs on a \
                 copy of it: start the node once with an empty directory and its consent to that \
                 (Config::rejoin_with_nothing, serve --rejoin), while all other voters are there"
            ),
            Self::Kind { ours, theirs } => write!(
                f,
                "the nodes run state machines of different kinds, {theirs} and {ours} (1: not wrapped, 2: wrapped in Sessions): \
                 run the same one on every node"
            ),
            Self::Other { code } => write!(f, "a reason this version does not know, code {code}"),
        }
    }
}

/// What this node knows when a hello arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expect {
    pub(crate) cluster: u64,
    pub(crate) node: u64,
    /// The peer we have dialed; `None` on the accepting side.
    pub(crate) dialed: Option<u64>,
    /// The node of the hello is among our peers.
    pub(crate) is_peer: bool,
    /// The incarnation it had before.
    pub(crate) incarnation: Option<u64>,
    /// What sort of content this node shares; 0: not known.
    pub(crate) kind: u64,
    /// On the accepting side: the node may have sent it before it took a connection of ours.
    pub(crate) crosses: bool,
}

/// Whether the one who says this may stay. The order matters: a later check trusts what the earlier
/// ones have shown.
pub(crate) fn check(hello: &Hello, expect: &Expect) -> Result<(), Refusal> {
    let (ours, theirs) = (expect.node, hello.node);
    if hello.version.min(PROTOCOL_VERSION) < hello.oldest.max(OLDEST_PROTOCOL_VERSION) {
        return Err(Refusal::Version {
            ours: PROTOCOL_VERSION.into(),
            theirs: hello.version.into(),
        });
    }
    if hello.cluster != expect.cluster {
        return Err(Refusal::Cluster {
            ours: expect.cluster,
            theirs: hello.cluster,
        });
    }
    if theirs == ours {
        return Err(Refusal::OwnId { node: ours });
    }
    if hello.target != ours {
        return Err(Refusal::WrongNode {
            ours,
            theirs: hello.target,
        });
    }
    if let Some(dialed) = expect.dialed
        && dialed != theirs
    {
        return Err(Refusal::WrongNode {
            ours: dialed,
            theirs,
        });
    }
    if !expect.is_peer {
        return Err(Refusal::UnknownNode { ours, theirs });
    }
    if let Some(known) = expect.incarnation
        && known != hello.incarnation
        && !hello.replaces
    {
        return Err(Refusal::Incarnation {
            ours: known,
            theirs: hello.incarnation,
        });
    }
    if ![expect.kind, 0].contains(&hello.kind) && expect.kind != 0 {
        return Err(Refusal::Kind {
            ours: expect.kind,
            theirs: hello.kind,
        });
    }
    // See `Net::come_up`.
    if expect.crosses && theirs > ours {
        return Err(Refusal::Direction { ours, theirs });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: Expect = Expect {
        cluster: 0xC1,
        node: 5,
        dialed: None,
        is_peer: true,
        incarnation: Some(77),
        kind: 1,
        crosses: false,
    };

    fn node_3() -> Hello {
        Hello {
            version: 1,
            oldest: 1,
            cluster: 0xC1,
            node: 3,
            incarnation: 77,
            replaces: false,
            target: 5,
            kind: 1,
        }
    }

    #[test]
    fn each_check_has_its_own_answer() {
        assert_eq!(check(&node_3(), &HERE), Ok(()));
        assert_eq!(
            check(
                &node_3(),
                &Expect {
                    incarnation: None,
                    ..HERE
                }
            ),
            Ok(())
        );
        assert_eq!(
            check(
                &Hello {
                    incarnation: 78,
                    replaces: true,
                    ..node_3()
                },
                &HERE
            ),
            Ok(()),
            "it knows that it has lost what it had"
        );
        let table: &[(Hello, Expect, Refusal)] = &[
            (
                Hello {
                    version: 9,
                    oldest: 2,
                    ..node_3()
                },
                HERE,
                Refusal::Version { ours: 1, theirs: 9 },
            ),
            (
                Hello {
                    version: 0,
                    oldest: 0,
                    ..node_3()
                },
                HERE,
                Refusal::Version { ours: 1, theirs: 0 },
            ),
            (
                Hello {
                    cluster: 1,
                    ..node_3()
                },
                HERE,
                Refusal::Cluster {
                    ours: 0xC1,
                    theirs: 1,
                },
            ),
            (
                Hello {
                    node: 5,
                    ..node_3()
                },
                HERE,
                Refusal::OwnId { node: 5 },
            ),
            (
                Hello {
                    target: 4,
                    ..node_3()
                },
                HERE,
                Refusal::WrongNode { ours: 5, theirs: 4 },
            ),
            (
                node_3(),
                Expect {
                    dialed: Some(7),
                    ..HERE
                },
                Refusal::WrongNode { ours: 7, theirs: 3 },
            ),
            (
                node_3(),
                Expect {
                    is_peer: false,
                    ..HERE
                },
                Refusal::UnknownNode { ours: 5, theirs: 3 },
            ),
            (
                Hello {
                    node: 8,
                    ..node_3()
                },
                Expect {
                    crosses: true,
                    ..HERE
                },
                Refusal::Direction { ours: 5, theirs: 8 },
            ),
            (
                Hello {
                    incarnation: 78,
                    ..node_3()
                },
                HERE,
                Refusal::Incarnation {
                    ours: 77,
                    theirs: 78,
                },
            ),
        ];
        for (hello, expect, refusal) in table {
            assert_eq!(check(hello, expect), Err(*refusal), "{hello:?}");
        }
    }

    #[test]
    fn either_side_may_dial_and_the_smaller_id_wins_when_both_do() {
        let crossing = Expect {
            crosses: true,
            ..HERE
        };
        let node_8 = Hello {
            node: 8,
            ..node_3()
        };
        assert_eq!(check(&node_8, &HERE), Ok(()));
        assert_eq!(check(&node_3(), &crossing), Ok(()), "ours gives way");
        assert_eq!(
            check(&node_8, &crossing),
            Err(Refusal::Direction { ours: 5, theirs: 8 })
        );
    }

    #[test]
    fn a_node_of_another_kind_is_refused_where_both_are_known() {
        let of = |kind| Hello { kind, ..node_3() };
        let (ours, theirs) = (1, 2);
        assert_eq!(check(&of(2), &HERE), Err(Refusal::Kind { ours, theirs }));
        assert_eq!(check(&of(0), &HERE), Ok(()));
        assert_eq!(check(&of(2), &Expect { kind: 0, ..HERE }), Ok(()));
        let head = &of(2).encode()[..OLDER_HELLO_BYTES];
        let frame = Frame {
            label: HELLO,
            head,
            body: &[],
        };
        assert_eq!(Hello::decode(&frame), Some(of(0)), "an older node's hello");
    }

    #[test]
    fn a_newer_node_that_still_speaks_ours_may_stay() {
        assert_eq!(
            check(
                &Hello {
                    version: 4,
                    oldest: 1,
                    ..node_3()
                },
                &HERE
            ),
            Ok(())
        );
    }

    #[test]
    fn refusals_cross_the_wire_and_say_what_to_do() {
        for code in 0..=20 {
            let mut head = [0; REFUSE_BYTES];
            head[0] = code;
            head[1] = 4;
            head[9] = if code == 3 { 4 } else { 6 };
            let frame = Frame {
                label: REFUSE,
                head: &head,
                body: &[],
            };
            let refusal = Refusal::decode(&frame).expect("long enough");
            let known = (1..=8).contains(&code);
            assert_eq!(matches!(refusal, Refusal::Other { .. }), !known, "{code}");
            if known {
                assert_eq!(refusal.encode(), head, "{refusal}");
            }
        }
        let wiped = Refusal::Incarnation { ours: 1, theirs: 2 }.to_string();
        assert!(wiped.contains("rejoin_with_nothing"), "{wiped}");
    }

    proptest! {
        #[test]
        fn hellos_cross_the_wire(
            version: u16, oldest: u16, cluster: u64, node: u64, incarnation: u64, target: u64,
            replaces: bool, kind: u64,
        ) {
            let hello = Hello { version, oldest, cluster, node, incarnation, replaces, target, kind };
            let head = [&hello.encode()[..], b"added later"].concat();
            let frame = Frame { label: HELLO, head: &head, body: &[] };
            prop_assert_eq!(Hello::decode(&frame), Some(hello));
        }

        #[test]
        fn any_head_decodes_without_a_panic(head: Vec<u8>, kind: u8) {
            let frame = Frame { label: Label { group: 0, kind }, head: &head, body: &[] };
            let _ = (Hello::decode(&frame), Refusal::decode(&frame));
        }
    }
}
