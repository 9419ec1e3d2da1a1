//! The client's side: numbers for commands, and retries until the outcome is known.
//!
//! [`Session`] does one command at a time and waits. [`Numbers`] is what it stands on, without a node or a clock: for
//! clients that have many commands in flight, or that reach the nodes over a connection of their own.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::code::{Answer, Request, Sequence};
use crate::clock::{deadline, time_left};
use crate::error::ProposeError;
use crate::node::Node;

/// A try that has no answer after this part of the time is not waited for any longer: the next node may be better off.
const TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The numbers of one session: which are in flight, and up to where the client has its answers.
#[derive(Clone, Debug)]
pub struct Numbers {
    session: u64,
    window: u32,
    /// Everything below it is done with; `done[n]` is about `mark + n`.
    mark: Sequence,
    done: VecDeque<bool>,
}

impl Numbers {
    /// Of a session that was opened: as [`Answer::Opened`] says.
    pub fn new(session: u64, window: u32) -> Self {
        Self {
            session,
            window,
            mark: 1,
            done: VecDeque::new(),
        }
    }

    /// The session's name.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// The number for a new command; `None` while the window is full.
    pub fn take(&mut self) -> Option<Sequence> {
        if self.done.len() >= self.window as usize {
            return None;
        }
        self.done.push_back(false);
        Some(self.mark + self.done.len() as u64 - 1)
    }

    /// Writes what stands in front of a command, anew for every try: it carries the mark of now.
    pub fn encode(&self, sequence: Sequence, out: &mut Vec<u8>) {
        Request::Numbered {
            session: self.session,
            sequence,
            mark: Some(self.mark.min(sequence)),
        }
        .encode(out);
    }

    /// The client has the answer to `sequence`, or does not want it any more. What is given up is decided when the mark is
    /// past it: then it is not applied any more, if it has not been.
    pub fn done(&mut self, sequence: Sequence) {
        if let Some(done) = sequence
            .checked_sub(self.mark)
            .and_then(|at| self.done.get_mut(at as usize))
        {
            *done = true;
        }
        while self.done.front() == Some(&true) {
            self.done.pop_front();
            self.mark += 1;
        }
    }
}

/// A session of a client that does one command at a time. See the [module](super).
#[derive(Debug)]
pub struct Session {
    nodes: Vec<Node>,
    /// Which of the nodes is asked first.
    at: usize,
    limit: Duration,
    numbers: Numbers,
    bytes: Vec<u8>,
}

/// Why a command of a session has no answer.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionError {
    /// There is no such session any more; this try was not applied. The client opens a new one.
    Expired {
        /// An earlier try had no known outcome: the command may have been applied, once.
        in_doubt: bool,
    },
    /// Applied, once; but its answer was long and has made room for others'.
    NotKept,
    /// The time was over before any try had a known outcome. It is not applied any more once a later command of the
    /// session has been; until then it may be.
    Unknown,
    /// Not applied: the time was over, and this is what the last try was told; or the nodes will never take it.
    Refused(ProposeError),
    /// The nodes answered what they should not: `TooOld`, `TooFar`, `Malformed`, or something else than a `Sessions` machine
    /// says. Two clients use one session, or the nodes run another state machine.
    Confused(String),
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { in_doubt: false } => {
                f.write_str("the session has expired; not applied, open a new session")
            }
            Self::Expired { in_doubt: true } => f.write_str(
                "the session has expired; an earlier try may have been applied, open a new session",
            ),
            Self::NotKept => {
                f.write_str("applied once, but its answer made room (Limits::kept_bytes)")
            }
            Self::Unknown => f.write_str("no outcome within the time: it may have been applied"),
            Self::Refused(error) => write!(f, "not applied: {error}"),
            Self::Confused(what) => write!(f, "a session cannot be answered so: {what}"),
        }
    }
}

/// The sentence: a `main` that returns it prints this.
impl fmt::Debug for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for SessionError {}

/// What a series of tries came to.
enum Tried {
    Answered { bytes: Vec<u8>, in_doubt: bool },
    Failed(SessionError),
}

impl Session {
    /// Opens a session on any of `nodes`, which run a [`Sessions`](super::Sessions) machine; they are tried in turn, for
    /// `limit` at the most (any `Duration`; with `Duration::MAX` they are tried for ever), and so is every command later.
    ///
    /// # Errors
    /// `Refused`: no session is open. `Unknown`: one may be, which nobody uses and which makes room in time.
    pub fn open(nodes: impl Into<Vec<Node>>, limit: Duration) -> Result<Self, SessionError> {
        let mut session = Self {
            nodes: nodes.into(),
            at: 0,
            limit,
            numbers: Numbers::new(0, 0),
            bytes: Vec::new(),
        };
        let answer = session.try_until(&[], |_, out| Request::Open.encode(out));
        match answer {
            Tried::Answered { bytes, .. } => match Answer::decode(&bytes) {
                Answer::Opened {
                    session: id,
                    window,
                } => {
                    session.numbers = Numbers::new(id, window);
                    Ok(session)
                }
                other => Err(SessionError::Confused(format!("{other:?} to an opening"))),
            },
            Tried::Failed(error) => Err(error),
        }
    }

    /// The session's name: the log index at which it was opened.
    pub fn id(&self) -> u64 {
        self.numbers.session
    }

    /// The nodes that are tried, to be changed when others run.
    pub fn nodes(&mut self) -> &mut Vec<Node> {
        &mut self.nodes
    }

    /// Changes how long an opening, a command or a closing is tried.
    pub fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// The session's numbers, for a client that goes on by itself, with many commands in flight.
    pub fn into_numbers(self) -> Numbers {
        self.numbers
    }

    /// Applies a command once, and returns the wrapped machine's answer. Tried again, on the nodes in turn, until the
    /// outcome is known or the time is over.
    ///
    /// # Errors
    /// [`SessionError`]: whether it was applied.
    pub fn propose(&mut self, command: &[u8]) -> Result<Vec<u8>, SessionError> {
        let Some(sequence) = self.numbers.take() else {
            return Err(SessionError::Confused("a window of 0".into()));
        };
        let tried = self.try_until(command, |numbers, out| numbers.encode(sequence, out));
        self.numbers.done(sequence);
        let (mut bytes, in_doubt) = match tried {
            Tried::Answered { bytes, in_doubt } => (bytes, in_doubt),
            Tried::Failed(error) => return Err(error),
        };
        match Answer::decode(&bytes) {
            Answer::Applied(answer) => {
                bytes.truncate(answer.len());
                Ok(bytes)
            }
            Answer::NotKept => Err(SessionError::NotKept),
            Answer::Expired => Err(SessionError::Expired { in_doubt }),
            other => Err(SessionError::Confused(format!(
                "{other:?} to number {sequence} of session {}",
                self.id()
            ))),
        }
    }

    /// Ends the session, so that it takes no room any more.
    ///
    /// # Errors
    /// As [`propose`](Self::propose); it makes room in time then.
    pub fn close(mut self) -> Result<(), SessionError> {
        let session = self.id();
        match self.try_until(&[], |_, out| Request::Close { session }.encode(out)) {
            // An earlier try may have closed it.
            Tried::Answered { bytes, .. } => match Answer::decode(&bytes) {
                Answer::Done | Answer::Expired => Ok(()),
                other => Err(SessionError::Confused(format!("{other:?} to a closing"))),
            },
            Tried::Failed(error) => Err(error),
        }
    }

    fn try_until(&mut self, command: &[u8], front: impl Fn(&Numbers, &mut Vec<u8>)) -> Tried {
        let deadline = deadline(self.limit);
        let mut pause = FIRST_PAUSE;
        let mut in_doubt = false;
        if self.nodes.iter().any(Node::is_own_thread) {
            return Tried::Failed(SessionError::Refused(ProposeError::WouldDeadlock));
        }
        self.bytes.clear();
        front(&self.numbers, &mut self.bytes);
        self.bytes.extend_from_slice(command);
        loop {
            let left = time_left(deadline);
            let refused = match self.nodes.get(self.at) {
                None => ProposeError::Stopped, // There is no node at all.
                Some(node) => match node.propose(&self.bytes) {
                    Err(refused) => refused,
                    Ok(pending) => match pending.wait_timeout((self.limit / TRIES).min(left)) {
                        Ok(Ok(reply)) => {
                            return Tried::Answered {
                                bytes: reply.bytes,
                                in_doubt,
                            };
                        }
                        Ok(Err(error)) => error,
                        Err(_) => ProposeError::Unknown,
                    },
                },
            };
            in_doubt |= !refused.definitely_not_applied();
            let left = time_left(deadline);
            if left.is_zero() || matches!(refused, ProposeError::TooLarge { .. }) {
                return Tried::Failed(match in_doubt {
                    true => SessionError::Unknown,
                    false => SessionError::Refused(refused),
                });
            }
            self.at = (self.at + 1) % self.nodes.len().max(1);
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round_the_window_and_the_mark_follows_the_answers() {
        let mut numbers = Numbers::new(7, 3);
        let mark = |numbers: &Numbers, of: Sequence| {
            let mut bytes = Vec::new();
            numbers.encode(of, &mut bytes);
            match Request::decode(&bytes) {
                Some((Request::Numbered { mark, .. }, [])) => mark.expect("it gives one"),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            [numbers.take(), numbers.take(), numbers.take()],
            [Some(1), Some(2), Some(3)]
        );
        assert_eq!(numbers.take(), None, "the window is full");
        numbers.done(2);
        assert_eq!(mark(&numbers, 3), 1, "1 has no answer yet");
        assert_eq!(numbers.take(), None);
        numbers.done(1);
        assert_eq!(mark(&numbers, 3), 3);
        assert_eq!([numbers.take(), numbers.take()], [Some(4), Some(5)]);
        numbers.done(1);
        numbers.done(99);
        assert_eq!(
            mark(&numbers, 3),
            3,
            "what is not in flight changes nothing"
        );
    }
}
