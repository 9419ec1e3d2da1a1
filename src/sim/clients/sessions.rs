//! Clients with sessions: they try each command again, on any node, until they know what became of it.
//!
//! A command is one operation under one number of its session; each try of it is a request of its own, so that the ledger can tell
//! that none is in the log twice, while the operation is done once. A client may try again before it has an answer, and when
//! it had one long ago. It may give up on a command, close its session, or find that it was evicted: then what had no
//! outcome stays unknown, and from there on nothing of that session is done any more.

use crate::request::token::Reply;
use crate::session::{Answer, Limits, Numbers, Request, Sequence};
use crate::sim::counts::Counts;
use crate::sim::invariants::{Broken, Verdict, broken};
use crate::sim::machine::ledger::Book;
use crate::sim::machine::model::{Deed, Seen};
use crate::sim::plan::SessionLoad;
use crate::sim::rng::Rng;
use crate::types::Index;

/// A request in a session, or about one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A client opens a session.
    Open(u32),
    Close(u32),
    Keep(u32),
    /// The limits are changed.
    Limit(Limits),
    /// The first try of a command of this session, which is still to be made.
    New(u32),
    /// A try of a command, with the client's mark of then.
    Try(u32, Sequence),
}

#[derive(Debug)]
struct Session {
    numbers: Numbers,
    /// The last entry that found it open, and the first that did not.
    found: Index,
    missed: Index,
    closed: bool,
    commands: Vec<u32>,
    given_up: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Tried, until it is known.
    Unknown,
    Known,
    /// Done once; its answer is gone.
    NotKept,
    /// The client does not want to know any more.
    GivenUp,
    /// Its session is gone.
    Expired,
    /// No node ever takes it.
    Refused,
}

#[derive(Debug)]
struct Command {
    session: u32,
    sequence: Sequence,
    deed: Deed,
    len: u64,
    /// The number of its first try.
    op: u64,
    /// The event at which it was called, and what was committed then.
    call: u64,
    floor: Index,
    tries: u32,
    /// Tries under way.
    open: u32,
    /// A try may have done it, for all that the client knows.
    in_doubt: bool,
    state: State,
    /// No try of it can have done it, and none will.
    never: bool,
    /// From this index on it is not done any more: the client's mark is past it.
    decided: Index,
}

#[derive(Debug)]
pub(crate) struct Retries {
    load: SessionLoad,
    /// The session of each client, and whether it asks for one.
    clients: Vec<(Option<u32>, bool)>,
    sessions: Vec<Session>,
    commands: Vec<Command>,
    /// Those in `State::Unknown`.
    unknown: Vec<u32>,
    /// Requests to open one.
    openings: u64,
    limits_changed: bool,
}

/// What an answer says about a command: its operation; the call, where this is the first word of it; what was done, and seen.
pub(crate) type Word = (u64, Option<u64>, Deed, Option<Seen>);

impl Retries {
    pub(crate) fn new(load: SessionLoad) -> Self {
        Self {
            clients: vec![(None, false); load.clients],
            load,
            sessions: Vec::new(),
            commands: Vec::new(),
            unknown: Vec::new(),
            openings: 0,
            limits_changed: false,
        }
    }

    pub(crate) fn unresolved(&self) -> usize {
        self.unknown.len()
    }

    /// A try of each command that nobody has been asked for.
    pub(crate) fn waiting(&self) -> Vec<Next> {
        let waits = |of: &&u32| self.commands[**of as usize].open == 0;
        let waiting = self.unknown.iter().filter(waits);
        waiting.map(|&of| self.try_of(of)).take(64).collect()
    }

    fn try_of(&self, command: u32) -> Next {
        let Command {
            session, sequence, ..
        } = self.commands[command as usize];
        Next::Try(command, self.mark_for(session, sequence))
    }

    /// The mark that a try of this number carries now.
    fn mark_for(&self, session: u32, sequence: Sequence) -> Sequence {
        let mut front = Vec::new();
        let numbers = &self.sessions[session as usize].numbers;
        numbers.encode(sequence, &mut front);
        match Request::decode(&front) {
            Some((Request::Numbered { mark, .. }, _)) => mark.expect("it always gives one"),
            other => unreachable!("{other:?} of numbers"),
        }
    }

    /// What some client does next; `None`: something without a session.
    pub(crate) fn choose(&mut self, rng: &mut Rng) -> Option<Next> {
        let client = rng.below(self.clients.len() as u64) as u32;
        let what = rng.below(100);
        let Some(session) = self.clients[client as usize].0 else {
            let asks = self.clients[client as usize].1;
            return (!asks).then_some(Next::Open(client));
        };
        let commands = &self.sessions[session as usize].commands;
        let recent = commands.len().saturating_sub(16);
        let any = |rng: &mut Rng| match &commands[recent..] {
            [] => None,
            some => Some(rng.pick(some)),
        };
        match what {
            0..8 => return None,
            8 => return Some(Next::Keep(session)),
            9 => {
                self.clients[client as usize].0 = None;
                self.sessions[session as usize].closed = true;
                return Some(Next::Close(session));
            }
            10 if rng.chance(200_000) => return Some(Next::Limit(self.draw_limits(rng))),
            10 => {
                let given_up = any(rng);
                if let Some(command) = given_up {
                    self.resolve(command, State::GivenUp);
                }
            }
            // Whatever it was: late, or while it is under way.
            11..20 => {
                if let Some(command) = any(rng) {
                    return Some(self.try_of(command));
                }
            }
            _ => {}
        }
        let commands = &self.sessions[session as usize].commands;
        let waits = |of: &u32| {
            let command = &self.commands[*of as usize];
            command.state == State::Unknown && command.open == 0
        };
        if rng.chance(700_000)
            && let Some(&command) = commands[recent..].iter().find(|of| waits(of))
        {
            return Some(self.try_of(command));
        }
        Some(Next::New(session))
    }

    fn draw_limits(&self, rng: &mut Rng) -> Limits {
        let founded = self.load.limits;
        Limits {
            sessions: rng.pick(&[1, 3, 16]),
            window: rng.pick(&[founded.window, 1, 4]),
            kept_bytes: rng.pick(&[founded.kept_bytes, 0, 1_000]),
            ..founded
        }
    }

    /// Begins a command of this session, `(op, call, floor)`, or tries one again where its window is full.
    pub(crate) fn begin(
        &mut self,
        session: u32,
        deed: Deed,
        len: u64,
        (op, call, floor): (u64, u64, Index),
    ) -> Next {
        let of = &mut self.sessions[session as usize];
        let Some(sequence) = of.numbers.take() else {
            let is_unknown = |at: &&u32| self.commands[**at as usize].state == State::Unknown;
            let oldest = *of.commands.iter().find(is_unknown).expect("it is full");
            return self.try_of(oldest);
        };
        let command = self.commands.len() as u32;
        of.commands.push(command);
        self.commands.push(Command {
            session,
            sequence,
            deed,
            len,
            op,
            call,
            floor,
            tries: 0,
            open: 0,
            in_doubt: false,
            state: State::Unknown,
            never: false,
            decided: Index::MAX,
        });
        self.unknown.push(command);
        self.try_of(command)
    }

    /// Writes the request. True: it is about a session.
    pub(crate) fn send(
        &mut self,
        next: Next,
        number: u64,
        out: &mut Vec<u8>,
        counts: &mut Counts,
    ) -> bool {
        let id = |session: u32| self.sessions[session as usize].numbers.session();
        match next {
            Next::Open(client) => {
                self.clients[client as usize].1 = true;
                self.openings += 1;
                Request::Open.encode(out);
            }
            Next::Close(session) => Request::Close {
                session: id(session),
            }
            .encode(out),
            Next::Keep(session) => Request::Keep {
                session: id(session),
                mark: 0,
            }
            .encode(out),
            Next::Limit(limits) => {
                self.limits_changed = true;
                Request::Limit(limits).encode(out);
            }
            Next::New(session) => unreachable!("a command of session {session} is not begun"),
            Next::Try(command, mark) => {
                let of = &mut self.commands[command as usize];
                let numbers = &self.sessions[of.session as usize].numbers;
                Request::Numbered {
                    session: numbers.session(),
                    sequence: of.sequence,
                    mark: Some(mark),
                }
                .encode(out);
                of.deed.encode(of.op, of.len, out);
                out.extend_from_slice(&number.to_le_bytes());
                counts.add(match (of.tries, of.state) {
                    (0, _) => "sessions: commands",
                    (_, State::Unknown) if of.open > 0 => "sessions: tries beside others",
                    (_, State::Unknown) => "sessions: tries again",
                    _ => "sessions: late tries",
                });
                of.tries += 1;
                of.open += 1;
                return false;
            }
        }
        true
    }

    /// A request has no answer: it is certain that it did nothing, or it is not; the same will never be taken, or it may.
    pub(crate) fn refused(&mut self, next: Next, certain: bool, never: bool) {
        match next {
            Next::Open(client) => self.clients[client as usize].1 = false,
            Next::Try(command, _) => {
                let of = &mut self.commands[command as usize];
                of.open -= 1;
                of.in_doubt |= !certain;
                if never {
                    self.resolve(command, State::Refused);
                }
            }
            _ => {}
        }
    }

    /// Its client is done with a command.
    fn resolve(&mut self, command: u32, state: State) {
        let of = &mut self.commands[command as usize];
        if of.state == State::Unknown {
            of.state = state;
            let certain = !of.in_doubt && of.open == 0;
            of.never = certain && matches!(state, State::Expired | State::Refused);
            self.unknown.retain(|&other| other != command);
            let session = &mut self.sessions[of.session as usize];
            session.numbers.done(of.sequence);
            if state == State::GivenUp {
                session.given_up.push(command);
            }
        }
    }

    /// A request was answered. What that says about a command, if it does.
    pub(crate) fn answered(
        &mut self,
        number: u64,
        next: Next,
        reply: &Reply,
        book: &Book,
        counts: &mut Counts,
    ) -> Result<Option<Word>, Broken> {
        let answer = Answer::decode(&reply.bytes);
        let wrong = |why: &str| {
            broken(
                "sessions",
                format!(
                    "request {number} ({next:?}) is answered {answer:?} at {}: {why}",
                    reply.index
                ),
            )
        };
        match (next, answer) {
            (Next::Try(command, mark), _) => {
                return self.try_answered(command, mark, answer, reply.index, book, counts, wrong);
            }
            (Next::Open(client), Answer::Opened { session, window }) => {
                if session != reply.index
                    || window != self.load.limits.window && !self.limits_changed
                {
                    wrong("not of this opening")?;
                }
                let of = &mut self.clients[client as usize];
                of.1 = false;
                counts.add("sessions: opened");
                of.0 = Some(self.sessions.len() as u32);
                self.sessions.push(Session {
                    numbers: Numbers::new(session, window),
                    found: session,
                    missed: Index::MAX,
                    closed: false,
                    commands: Vec::new(),
                    given_up: Vec::new(),
                });
            }
            (Next::Close(session), Answer::Done) => {
                self.find(session, reply.index, wrong)?;
                self.miss(session, reply.index + 1, wrong)?;
                counts.add("sessions: closed");
            }
            (Next::Keep(session), Answer::Done) => self.find(session, reply.index, wrong)?,
            (Next::Close(session) | Next::Keep(session), Answer::Expired) => {
                self.miss(session, reply.index, wrong)?;
            }
            (Next::Limit(_), Answer::Done) => counts.add("sessions: limits changed"),
            _ => wrong("that is no answer to it")?,
        }
        Ok(None)
    }

    #[allow(clippy::too_many_arguments)] // What came, and what is known of it.
    fn try_answered(
        &mut self,
        command: u32,
        mark: Sequence,
        answer: Answer<'_>,
        index: Index,
        book: &Book,
        counts: &mut Counts,
        wrong: impl Fn(&str) -> Verdict,
    ) -> Result<Option<Word>, Broken> {
        let of = &mut self.commands[command as usize];
        of.open -= 1;
        let (session, op, state) = (of.session, of.op, of.state);
        let place = book.place_of(op);
        match answer {
            Answer::Expired => self.miss(session, index, &wrong)?,
            _ => self.find(session, index, &wrong)?,
        }
        if let Answer::Applied(_) | Answer::NotKept = answer {
            self.decide(session, mark, index);
            let floor = self.commands[command as usize].floor;
            if place.is_none_or(|place| place <= floor || place > index) {
                wrong(&format!(
                    "it was done at {place:?}, and asked for after {floor}"
                ))?;
            }
        } else if place == Some(index) {
            wrong("it was done by this very try")?;
        }
        let of = &mut self.commands[command as usize];
        match answer {
            Answer::Applied(answer) => {
                if place < Some(index) {
                    counts.add("sessions: first answers given again");
                }
                let call = (state == State::Unknown).then_some(of.call);
                let word = (op, call, of.deed, of.deed.seen(answer));
                self.resolve(command, State::Known);
                return Ok(Some(word));
            }
            Answer::NotKept => {
                counts.add("sessions: answers not kept");
                self.resolve(command, State::NotKept);
            }
            Answer::Expired => {
                counts.add("sessions: evicted or closed, says a try");
                self.resolve(command, State::Expired);
            }
            // Not by this try; another may be let through later.
            Answer::TooFar if self.limits_changed => counts.add("sessions: too far"),
            Answer::TooOld if state != State::Unknown => {
                counts.add("sessions: late tries found too old")
            }
            _ => wrong("no client has caused that")?,
        }
        Ok(None)
    }

    /// An entry has found a session open.
    fn find(&mut self, session: u32, index: Index, wrong: impl Fn(&str) -> Verdict) -> Verdict {
        let of = &mut self.sessions[session as usize];
        of.found = of.found.max(index);
        if of.found >= of.missed {
            wrong(&format!("entry {} did not find that session", of.missed))?;
        }
        Ok(())
    }

    /// An entry has not found a session.
    fn miss(&mut self, session: u32, index: Index, wrong: impl Fn(&str) -> Verdict) -> Verdict {
        let of = &mut self.sessions[session as usize];
        of.missed = of.missed.min(index);
        if of.found >= of.missed {
            wrong(&format!("entry {} has found that session", of.found))?;
        }
        let limits = self.load.limits;
        let makes_room = self.openings > u64::from(limits.sessions);
        if !(of.closed || makes_room || limits.expire_after.is_some() || self.limits_changed) {
            wrong("nothing has made it go")?;
        }
        for client in &mut self.clients {
            if client.0 == Some(session) {
                client.0 = None;
            }
        }
        Ok(())
    }

    /// The session knows since `index` that its client wants nothing below `mark`: what it gave up is decided.
    fn decide(&mut self, session: u32, mark: Sequence, index: Index) {
        for &command in &self.sessions[session as usize].given_up {
            let of = &mut self.commands[command as usize];
            if of.sequence < mark {
                of.decided = of.decided.min(index);
            }
        }
    }

    /// What must not have been done was not. Returns what has no known outcome.
    pub(crate) fn look_back(
        &self,
        book: &Book,
        counts: &mut Counts,
    ) -> Result<Vec<(u64, Deed)>, Broken> {
        let mut open = Vec::new();
        for (number, of) in self.commands.iter().enumerate() {
            let place = book.place_of(of.op);
            let gone = self.sessions[of.session as usize].missed;
            let right = match place {
                Some(place) => place < gone && place < of.decided && !of.never,
                None => !matches!(of.state, State::Known | State::NotKept),
            };
            if !right {
                broken(
                    "sessions",
                    format!(
                        "command {number} was done at {place:?}, its session was gone at {gone}: {of:?}"
                    ),
                )?;
            }
            counts.add(match of.state {
                State::Known => continue,
                State::Unknown => "sessions: unknown at the end",
                State::NotKept => "sessions: done, answer not kept",
                State::GivenUp if place.is_some() => "sessions: given up, and done",
                State::GivenUp => "sessions: given up, and never done",
                State::Expired if place.is_some() => "sessions: expired, and done",
                State::Expired => "sessions: expired, and never done",
                State::Refused => "sessions: refused for good",
            });
            if !of.never {
                open.push((of.call, of.deed));
            }
        }
        Ok(open)
    }
}

#[cfg(test)]
mod tests;
