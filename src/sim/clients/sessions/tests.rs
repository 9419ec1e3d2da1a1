//! What a session may not answer is found: small stories of a client, and a log that is written by hand.

use super::*;
use crate::sim::machine::ledger::Applied;

/// A client with an open session, and what the log holds.
struct Story {
    retries: Retries,
    book: Book,
    counts: Counts,
    requests: u64,
    last: Index,
}

impl Story {
    fn of(sessions: u32) -> Self {
        let limits = Limits {
            sessions,
            window: 4,
            ..Limits::default()
        };
        let mut story = Self {
            retries: Retries::new(SessionLoad { limits, clients: 2 }),
            book: Book::default(),
            counts: Counts::default(),
            requests: 0,
            last: 0,
        };
        for client in 0..2 {
            let session = story.last + 1;
            let found = story.request(Next::Open(client), |_| {
                let window = 4;
                Answer::Opened { session, window }
            });
            assert_eq!(found, "nothing");
        }
        story
    }

    /// A request gets into the log, and this is what its client is told. What is found wrong with that.
    fn request<'a>(
        &mut self,
        next: Next,
        answer: impl FnOnce(Index) -> Answer<'a>,
    ) -> &'static str {
        self.send(next);
        self.last += 1;
        self.tell(next, answer(self.last), self.last)
    }

    fn send(&mut self, next: Next) {
        let mut bytes = Vec::new();
        self.requests += 1;
        let number = self.requests;
        self.retries
            .send(next, number, &mut bytes, &mut self.counts);
        assert!(Request::decode(&bytes).is_some());
    }

    fn tell(&mut self, next: Next, answer: Answer<'_>, index: Index) -> &'static str {
        let mut bytes = Vec::new();
        match answer {
            Answer::Applied(answer) => {
                bytes.extend_from_slice(answer);
                bytes.push(0);
            }
            Answer::Opened { session, window } => {
                bytes.extend_from_slice(&session.to_le_bytes());
                bytes.extend_from_slice(&window.to_le_bytes());
                bytes.push(1);
            }
            Answer::Done => bytes.push(2),
            Answer::TooOld => bytes.push(3),
            Answer::NotKept => bytes.push(4),
            Answer::TooFar => bytes.push(5),
            Answer::Expired => bytes.push(6),
            Answer::Malformed => bytes.push(7),
        }
        assert_eq!(Answer::decode(&bytes), answer);
        let reply = Reply { index, bytes };
        let Self {
            retries,
            book,
            counts,
            ..
        } = self;
        let told = retries.answered(self.requests, next, &reply, book, counts);
        told.err().map_or("nothing", |broken| broken.check)
    }

    fn command(&mut self, session: u32) -> Next {
        let op = self.book.begin();
        self.retries.begin(session, Deed::Increment, 8, (op, op, 0))
    }

    /// An entry does the command with this number.
    fn does(&mut self, op: u64, index: Index) {
        while self.book.last() < index {
            let at = self.book.last() + 1;
            let entry = Applied {
                term: 1,
                time_us: 0,
                op: crate::sim::machine::ledger::NO_OP,
                digest: 0,
                did: (at == index).then_some(op),
                wrote: None,
                value: 1,
                answer: 0,
            };
            self.book.apply(1, at, entry);
        }
    }

    fn look_back(&mut self) -> (&'static str, usize) {
        match self.retries.look_back(&self.book, &mut self.counts) {
            Ok(open) => ("nothing", open.len()),
            Err(broken) => (broken.check, 0),
        }
    }
}

const ONE: Answer<'_> = Answer::Applied(&1_u64.to_le_bytes());

#[test]
fn a_retry_is_answered_as_the_first_try_was_and_only_if_that_was_done() {
    let mut story = Story::of(8);
    let first = story.command(0);
    story.send(first);
    story.retries.refused(first, false, false);
    assert_eq!(story.retries.waiting(), [first]);
    story.does(0, 3);
    story.last = 3;
    assert_eq!(story.request(first, |_| ONE), "nothing");
    assert_eq!(story.counts.of("sessions: first answers given again"), 1);
    assert_eq!(story.retries.unresolved(), 0);
    assert_eq!(story.look_back(), ("nothing", 0));
    let second = story.command(0);
    assert_eq!(
        second,
        Next::Try(1, 2),
        "its client has the answer to the first"
    );
    let never = story.request(second, |_| ONE);
    assert_eq!(never, "sessions", "nobody has done it");
}

#[test]
fn what_a_session_may_not_answer_is_found() {
    for wrong in [
        Answer::TooOld,
        Answer::TooFar,
        Answer::Malformed,
        Answer::Done,
    ] {
        let mut story = Story::of(8);
        let command = story.command(0);
        assert_eq!(story.request(command, |_| wrong), "sessions", "{wrong:?}");
    }
    let mut story = Story::of(8);
    let command = story.command(0);
    let evicted = story.request(command, |_| Answer::Expired);
    assert_eq!(evicted, "sessions", "there is room for eight");
}

#[test]
fn an_evicted_session_stays_away_and_leaves_in_doubt_what_was_tried() {
    let mut story = Story::of(1);
    let (lost, fresh) = (story.command(0), story.command(0));
    story.send(lost);
    story.retries.refused(lost, false, false);
    assert_eq!(story.request(fresh, |_| Answer::Expired), "nothing");
    assert_eq!(story.request(lost, |_| Answer::Expired), "nothing");
    assert_eq!(
        story.look_back(),
        ("nothing", 1),
        "the other was never done"
    );
    let keep = Next::Keep(0);
    assert_eq!(story.request(keep, |_| Answer::Done), "sessions", "again");
    story.does(0, 9);
    assert_eq!(story.look_back().0, "sessions", "done after all");
}

#[test]
fn what_a_client_has_given_up_is_decided_by_its_mark() {
    for (done_at, found) in [(3, "nothing"), (5, "sessions")] {
        let mut story = Story::of(8);
        let given_up = story.command(0);
        story.send(given_up);
        story.retries.resolve(0, State::GivenUp);
        let later = story.command(0);
        assert_eq!(later, Next::Try(1, 2));
        story.send(later);
        if done_at == 3 {
            story.does(0, 3);
        }
        story.does(1, 4);
        assert_eq!(story.tell(later, ONE, 4), "nothing");
        if done_at == 5 {
            story.does(0, 5);
        }
        assert_eq!(story.look_back().0, found, "done at {done_at}");
    }
}
