//! What the scheduler may poll, and what each poll may wake.

/// What a poll is of. The order is that of the shared thread plan; the simulator takes them in any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Receive,
    Finish,
    Consensus,
    Write,
    Apply,
    Reply,
    Send,
    Flush,
    Save,
    Transfer,
    Limits,
}

pub(crate) const ACTS: [Act; 11] = [
    Act::Receive,
    Act::Finish,
    Act::Consensus,
    Act::Write,
    Act::Apply,
    Act::Reply,
    Act::Send,
    Act::Flush,
    Act::Save,
    Act::Transfer,
    Act::Limits,
];

impl Act {
    pub(crate) const fn bit(self) -> u16 {
        1 << self as u16
    }

    /// Who may find something to do when a poll of this has done something. What is missing here is found when the
    /// node is asked whether it has work, before it sleeps.
    pub(crate) const fn feeds(self) -> u16 {
        let consensus = Self::Consensus.bit();
        match self {
            Self::Receive => self.bit() | consensus | Self::Transfer.bit(),
            Self::Finish => consensus | Self::Flush.bit(),
            Self::Consensus => {
                let out = Self::Write.bit() | Self::Send.bit() | Self::Apply.bit();
                let more = Self::Receive.bit() | Self::Reply.bit() | Self::Transfer.bit();
                self.bit() | out | more | CLIENT
            }
            Self::Write => {
                let out = Self::Flush.bit() | Self::Send.bit() | Self::Apply.bit();
                self.bit() | out | consensus
            }
            Self::Apply => {
                let out = Self::Reply.bit() | Self::Save.bit();
                self.bit() | out | consensus | CLIENT
            }
            Self::Reply => self.bit() | CLIENT,
            Self::Send => self.bit() | consensus,
            Self::Flush => Self::Finish.bit() | consensus,
            Self::Save => self.bit() | Self::Apply.bit() | consensus | Self::Reply.bit(),
            Self::Transfer => self.bit() | Self::Send.bit() | consensus,
            Self::Limits => Self::Reply.bit() | Self::Apply.bit() | CLIENT,
        }
    }
}

/// A bit for each act, and one for the clients that take the node's answers.
pub(crate) const CLIENT: u16 = 1 << ACTS.len();

pub(crate) const EVERYTHING: u16 = (CLIENT << 1) - 1;
