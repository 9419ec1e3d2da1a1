//! Sessions against a slow model, and one story a promise.
//!
//! The wrapped machine writes down what it is given, so that "applied once" is seen and not inferred; its answers say how
//! many commands came before, so that a second application could not answer as the first did.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::time::Duration;

use super::code::Sequence;
use super::{Answer, Limits, MAX_WINDOW, Request, Sessions};
use crate::state_machine::Lend;
use crate::state_machine::{Batch, Entry, SnapshotWriter, StateMachine};
use crate::types::{Index, NodeId};

/// Entries for a state machine, without a log, and what it answers.
struct Script {
    entries: Vec<(Index, u64, Vec<u8>)>,
    next: usize,
    reply: Vec<u8>,
    replies: Vec<Vec<u8>>,
}

impl Lend for Script {
    fn advance(&mut self) -> bool {
        if self.next > 0 {
            self.replies.push(std::mem::take(&mut self.reply));
        }
        self.next += 1;
        self.next <= self.entries.len()
    }

    fn current(&mut self) -> (Entry<'_>, &mut Vec<u8>) {
        let (index, time_us, command) = &self.entries[self.next - 1];
        let entry = Entry {
            index: *index,
            term: 1,
            time_us: *time_us,
            origin: NodeId(1),
            local: false,
            command,
        };
        (entry, &mut self.reply)
    }

    fn snapshot_here(&mut self) {}
}

fn apply(machine: &mut impl StateMachine, entries: Vec<(Index, u64, Vec<u8>)>) -> Vec<Vec<u8>> {
    let mut script = Script {
        entries,
        next: 0,
        reply: Vec::new(),
        replies: Vec::new(),
    };
    machine
        .apply(&mut Batch::lent(&mut script))
        .expect("it applies");
    assert!(script.next > script.entries.len(), "it takes all");
    script.replies
}

/// Answers with the number of commands and the command; beyond the first byte's length in dots.
#[derive(Debug, Default)]
struct Diary {
    applied: Vec<Vec<u8>>,
}

fn diary_answer(count: usize, command: &[u8]) -> Vec<u8> {
    let dots = command.first().map_or(0, |&first| first as usize);
    let mut answer = count.to_le_bytes().to_vec();
    answer.resize(8 + dots, b'.');
    answer
}

impl StateMachine for Diary {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while let Some((entry, reply)) = batch.next() {
            self.applied.push(entry.command.to_vec());
            // A machine may do so, and only write where somebody waits.
            reply.clear();
            if entry.local {
                reply.extend_from_slice(&diary_answer(self.applied.len(), entry.command));
            }
        }
        Ok(())
    }

    fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(query);
        reply.extend_from_slice(&self.applied.len().to_le_bytes());
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let applied = self.applied.clone();
        Ok(Box::new(move |to| {
            for command in &applied {
                to.write_all(&(command.len() as u32).to_le_bytes())?;
                to.write_all(command)?;
            }
            Ok(())
        }))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let mut all = Vec::new();
        from.read_to_end(&mut all)?;
        self.applied.clear();
        let mut rest = &all[..];
        while let Some((len, more)) = rest.split_first_chunk() {
            let (command, more) = more.split_at(u32::from_le_bytes(*len) as usize);
            self.applied.push(command.to_vec());
            rest = more;
        }
        Ok(())
    }
}

fn snapshot(machine: &mut Sessions<Diary>) -> Vec<u8> {
    let mut bytes = Vec::new();
    machine.snapshot().expect("it captures")(&mut bytes).expect("memory takes it");
    bytes
}

fn restored(bytes: &[u8]) -> Sessions<Diary> {
    // Whatever limits it was made with: those of the snapshot are in force.
    let mut machine = Sessions::new(Diary::default(), Limits::DEFAULT);
    machine.restore(&mut &bytes[..]).expect("it restores");
    machine
}

/// A machine, and entries for it one after the other.
struct Group {
    machine: Sessions<Diary>,
    index: Index,
    time_us: u64,
}

impl Group {
    fn new(limits: Limits) -> Self {
        let machine = Sessions::new(Diary::default(), limits);
        Self {
            machine,
            index: 0,
            time_us: 1_000_000,
        }
    }

    fn commit(&mut self, request: Request, command: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        bytes.extend_from_slice(command);
        self.index += 1;
        let entry = (self.index, self.time_us, bytes);
        apply(&mut self.machine, vec![entry]).remove(0)
    }

    fn open(&mut self) -> u64 {
        match Answer::decode(&self.commit(Request::Open, b"")) {
            Answer::Opened { session, .. } => session,
            other => panic!("{other:?}"),
        }
    }

    /// One command, with everything below `mark` answered.
    fn send(&mut self, session: u64, sequence: Sequence, mark: Sequence, text: &[u8]) -> Vec<u8> {
        let mark = Some(mark);
        self.commit(
            Request::Numbered {
                session,
                sequence,
                mark,
            },
            text,
        )
    }

    fn applied(&self) -> usize {
        self.machine.machine().applied.len()
    }
}

const SMALL: Limits = Limits {
    sessions: 3,
    window: 4,
    kept_bytes: 200,
    expire_after: None,
};

#[test]
fn a_retry_gets_the_first_answer_and_changes_nothing() {
    let mut group = Group::new(SMALL);
    let session = group.open();
    let first = group.send(session, 1, 1, b"\x01a");
    assert_eq!(
        Answer::decode(&first),
        Answer::Applied(&diary_answer(1, b"\x01a"))
    );
    group.send(session, 2, 1, b"\x01b");
    for _ in 0..3 {
        assert_eq!(group.send(session, 1, 1, b"\x01a"), first);
    }
    assert_eq!(group.applied(), 2);
    assert_eq!(group.machine.watch().status().repeated, 3);
}

#[test]
fn a_window_takes_what_comes_in_another_order_and_refuses_what_is_outside() {
    let mut group = Group::new(SMALL);
    let session = group.open();
    for sequence in [4, 2, 3, 1] {
        let answer = group.send(session, sequence, 1, b"\x01");
        assert!(matches!(Answer::decode(&answer), Answer::Applied(_)));
    }
    let answer = group.send(session, 5, 1, b"\x01");
    assert_eq!(Answer::decode(&answer), Answer::TooFar);
    let answer = group.send(session, 5, 3, b"\x01");
    assert!(matches!(Answer::decode(&answer), Answer::Applied(_)));
    let answer = group.send(session, 2, 1, b"\x01");
    assert_eq!(Answer::decode(&answer), Answer::TooOld);
    assert_eq!(group.applied(), 5);
}

#[test]
fn what_a_client_gave_up_is_not_applied_behind_its_mark() {
    let mut group = Group::new(SMALL);
    let session = group.open();
    // Number 1 is on its way and has no outcome; the client goes on without it.
    group.send(session, 2, 2, b"\x01b");
    let late = group.send(session, 1, 1, b"\x01a");
    assert_eq!(Answer::decode(&late), Answer::TooOld);
    assert_eq!(group.machine.machine().applied, [b"\x01b"]);
}

#[test]
fn without_a_mark_the_last_window_is_kept() {
    let mut group = Group::new(SMALL);
    let session = group.open();
    let mut send = |sequence| {
        let request = Request::Numbered {
            session,
            sequence,
            mark: None,
        };
        group.commit(request, b"\x01")
    };
    let answers: Vec<_> = (1..=6).map(&mut send).collect();
    for sequence in 3..=6 {
        assert_eq!(send(sequence), answers[sequence as usize - 1]);
    }
    assert_eq!(Answer::decode(&send(2)), Answer::TooOld);
}

#[test]
fn a_session_that_made_room_is_told_and_never_counted_anew() {
    let mut group = Group::new(SMALL);
    let [a, b, c] = [group.open(), group.open(), group.open()];
    group.send(b, 1, 1, b"\x01b");
    group.send(a, 1, 1, b"\x01a");
    let d = group.open(); // c is the one whose last use is longest ago, then b.
    let answer = group.send(c, 1, 1, b"\x01c");
    assert_eq!(Answer::decode(&answer), Answer::Expired);
    group.open();
    for retry in [1, 2] {
        let answer = group.send(b, retry, 1, b"\x01b");
        assert_eq!(Answer::decode(&answer), Answer::Expired);
    }
    let answer = group.send(a, 1, 1, b"\x01a");
    assert!(matches!(Answer::decode(&answer), Answer::Applied(_)));
    let close = group.commit(Request::Close { session: d }, b"");
    assert_eq!(Answer::decode(&close), Answer::Done);
    assert_eq!(group.applied(), 2);
    let status = group.machine.watch().status();
    assert_eq!(
        (status.sessions, status.opened, status.evicted),
        (2, 5, 2),
        "{status:?}"
    );
}

#[test]
fn time_evicts_by_the_stamps_of_the_leaders() {
    let mut group = Group::new(Limits {
        expire_after: Some(Duration::from_secs(10)),
        ..SMALL
    });
    let [a, b] = [group.open(), group.open()];
    group.time_us += 10_000_000;
    let mark = 1;
    assert_eq!(
        Answer::decode(&group.commit(Request::Keep { session: a, mark }, b"")),
        Answer::Done
    );
    group.time_us += 1;
    let answer = group.send(b, 1, 1, b"\x01b");
    assert_eq!(Answer::decode(&answer), Answer::Expired);
    let answer = group.send(a, 1, 1, b"\x01a");
    assert!(matches!(Answer::decode(&answer), Answer::Applied(_)));
}

#[test]
fn long_answers_make_room_oldest_first_and_are_still_known_as_applied() {
    let mut group = Group::new(SMALL); // 200 bytes of long answers: two of 88.
    let session = group.open();
    let first = group.send(session, 1, 1, &[80]);
    group.send(session, 2, 1, &[80]);
    assert_eq!(group.send(session, 1, 1, &[80]), first);
    group.send(session, 3, 1, &[80]);
    let answer = group.send(session, 1, 1, &[80]);
    assert_eq!(Answer::decode(&answer), Answer::NotKept);
    let answer = group.send(session, 4, 1, &[250]);
    assert!(matches!(Answer::decode(&answer), Answer::Applied(_)));
    let answer = group.send(session, 4, 1, &[250]);
    assert_eq!(
        Answer::decode(&answer),
        Answer::NotKept,
        "longer than all that may be kept"
    );
    assert_eq!(group.applied(), 4);
    // The client has them all: nothing is kept.
    group.send(session, 5, 5, b"\x01");
    assert_eq!(group.machine.watch().status().long_bytes, 0);
}

#[test]
fn plain_commands_and_queries_pass_through() {
    let mut group = Group::new(SMALL);
    for count in 1..=2 {
        let answer = group.commit(Request::Plain, b"\x01same");
        // Nobody waits for it here, and the wrapped machine knows: it writes nothing.
        assert_eq!(Answer::decode(&answer), Answer::Applied(b""));
        assert_eq!(group.applied(), count);
    }
    let (mut query, mut reply) = (Vec::new(), Vec::new());
    Request::Plain.encode(&mut query);
    query.push(b'?');
    group.machine.query(&query, &mut reply);
    let mut expected = b"?".to_vec();
    expected.extend_from_slice(&2usize.to_le_bytes());
    assert_eq!(Answer::decode(&reply), Answer::Applied(&expected));
    for bad in [&b""[..], &[3, 0], &[200]] {
        reply.clear();
        group.machine.query(bad, &mut reply);
        assert_eq!(Answer::decode(&reply), Answer::Malformed);
    }
}

#[test]
fn limits_that_shrink_make_room_at_once_and_forget_nothing_applied() {
    let mut group = Group::new(SMALL);
    let [a, b] = [group.open(), group.open()];
    let first = group.send(b, 4, 1, b"\x01");
    let answer = group.commit(
        Request::Limit(Limits {
            sessions: 1,
            window: 2,
            ..SMALL
        }),
        b"",
    );
    assert_eq!(Answer::decode(&answer), Answer::Done);
    let answer = group.send(a, 1, 1, b"\x01");
    assert_eq!(Answer::decode(&answer), Answer::Expired);
    assert_eq!(
        group.send(b, 4, 1, b"\x01"),
        first,
        "applied, and outside of the window by now"
    );
    let answer = group.send(b, 3, 1, b"\x01");
    assert_eq!(Answer::decode(&answer), Answer::TooFar);
}

#[test]
fn a_machine_with_a_disk_of_its_own_is_refused() {
    struct OnDisk;
    impl StateMachine for OnDisk {
        fn apply(&mut self, _: &mut Batch<'_>) -> io::Result<()> {
            Ok(())
        }
        fn query(&self, _: &[u8], _: &mut Vec<u8>) {}
        fn open(&mut self) -> io::Result<Index> {
            Ok(5)
        }
    }
    let error = Sessions::new(OnDisk, SMALL).open().expect_err("refused");
    assert!(error.to_string().contains("opens at index 5"), "{error}");
}

/// What must come of it, by definitions that are looked up and never maintained.
struct Model {
    limits: Limits,
    sessions: Vec<Known>,
    applied: usize,
}

struct Known {
    id: u64,
    used_at: Index,
    used_us: u64,
    low: Sequence,
    /// `(applied at, answer)`; without an answer it made room.
    answers: BTreeMap<Sequence, (Index, Option<Vec<u8>>)>,
}

impl Model {
    fn commit(&mut self, index: Index, time_us: u64, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.judge(index, time_us, bytes, &mut out);
        out
    }

    fn judge(&mut self, index: Index, time_us: u64, bytes: &[u8], out: &mut Vec<u8>) {
        let Some((request, command)) = Request::decode(bytes) else {
            return Answer::Malformed.encode(out);
        };
        if request == Request::Plain {
            self.applied += 1;
            return Answer::Applied(b"").encode(out);
        }
        if let Request::Limit(limits) = request {
            self.limits = limits;
        }
        if let Some(after) = self.limits.expire_after {
            self.sessions
                .retain(|of| time_us - of.used_us <= after.as_micros() as u64);
        }
        let named = match request {
            Request::Numbered { session, .. }
            | Request::Keep { session, .. }
            | Request::Close { session } => {
                let found = self.sessions.iter_mut().find(|of| of.id == session);
                let Some(found) = found else {
                    return Answer::Expired.encode(out);
                };
                (found.used_at, found.used_us) = (index, time_us);
                Some(found)
            }
            _ => None,
        };
        match request {
            Request::Plain => unreachable!("it is above"),
            Request::Limit(_) => {
                self.evict_to(self.limits.sessions as usize);
                self.make_room();
                Answer::Done.encode(out);
            }
            Request::Open => {
                self.evict_to(self.limits.sessions as usize - 1);
                self.sessions.push(Known {
                    id: index,
                    used_at: index,
                    used_us: time_us,
                    low: 0,
                    answers: BTreeMap::new(),
                });
                let window = self.limits.window;
                Answer::Opened {
                    session: index,
                    window,
                }
                .encode(out);
            }
            Request::Close { session } => {
                self.sessions.retain(|of| of.id != session);
                Answer::Done.encode(out);
            }
            Request::Keep { mark, .. } => {
                let of = named.expect("it names one");
                of.low = of.low.max(mark);
                of.answers.retain(|&sequence, _| sequence >= mark);
                Answer::Done.encode(out);
            }
            Request::Numbered { sequence, mark, .. } => {
                let of = named.expect("it names one");
                let window = u64::from(self.limits.window);
                let mark = mark.unwrap_or((sequence + 1).saturating_sub(window));
                if sequence < of.low {
                    return Answer::TooOld.encode(out);
                }
                if !of.answers.contains_key(&sequence) && sequence >= of.low.max(mark) + window {
                    return Answer::TooFar.encode(out);
                }
                of.low = of.low.max(mark);
                of.answers.retain(|&sequence, _| sequence >= mark);
                match of.answers.get(&sequence) {
                    Some((_, Some(answer))) => Answer::Applied(answer).encode(out),
                    Some((_, None)) => Answer::NotKept.encode(out),
                    None => {
                        self.applied += 1;
                        let answer = diary_answer(self.applied, command);
                        Answer::Applied(&answer).encode(out);
                        of.answers.insert(sequence, (index, Some(answer)));
                        self.make_room();
                    }
                }
            }
        }
    }

    fn evict_to(&mut self, count: usize) {
        self.sessions.sort_by_key(|of| of.used_at);
        while self.sessions.len() > count {
            self.sessions.remove(0);
        }
    }

    fn make_room(&mut self) {
        loop {
            let mut long: Vec<_> = self
                .sessions
                .iter_mut()
                .flat_map(|of| of.answers.values_mut())
                .filter(|(_, answer)| answer.as_ref().is_some_and(|a| a.len() > 22))
                .collect();
            let bytes: usize = long.iter().flat_map(|(_, a)| a).map(Vec::len).sum();
            if bytes as u64 <= self.limits.kept_bytes {
                return;
            }
            long.sort_by_key(|(at, _)| *at);
            long[0].1 = None;
        }
    }
}

struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn limits(&mut self) -> Limits {
        Limits {
            sessions: 1 + self.below(6) as u32,
            window: 1 + self.below(9) as u32,
            kept_bytes: self.below(400),
            expire_after: self
                .one_in(3)
                .then(|| Duration::from_micros(50 + self.below(300))),
        }
    }

    /// What clients that are lost, late, doubled and mistaken would send.
    fn request(&mut self, model: &Model, at: &mut BTreeMap<u64, Sequence>) -> Vec<u8> {
        let open = &model.sessions;
        let session = match open.len() as u64 {
            count @ 1.. if !self.one_in(12) => open[self.below(count) as usize].id,
            _ => 1 + self.below(400), // One that was, or will be, or never is.
        };
        let near = at.entry(session).or_default();
        let request = match self.below(40) {
            0..2 => Request::Open,
            4 => Request::Close { session },
            5 => Request::Keep {
                session,
                mark: (*near).saturating_sub(self.below(4)),
            },
            6 if self.one_in(4) => Request::Limit(self.limits()),
            7..9 => Request::Plain,
            9 => return (0..self.below(25)).map(|_| self.next() as u8).collect(),
            _ => {
                let sequence = match self.below(8) {
                    0 => *near + self.below(12),
                    1..4 => {
                        *near += 1;
                        *near
                    }
                    _ => (*near).saturating_sub(self.below(6)),
                };
                let behind = self.below(6).min(sequence);
                let mark = (!self.one_in(6)).then_some(sequence - behind);
                Request::Numbered {
                    session,
                    sequence,
                    mark,
                }
            }
        };
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        match request {
            Request::Plain => bytes.push(0),
            // The command follows from its number: a retry is the same command.
            Request::Numbered {
                session, sequence, ..
            } => {
                let dots = (session * 7 + sequence * 13) % 5 * 20;
                bytes.push(dots as u8);
                bytes.extend_from_slice(&session.to_le_bytes());
                bytes.extend_from_slice(&sequence.to_le_bytes());
            }
            _ => {}
        }
        bytes
    }
}

#[test]
fn sessions_do_what_the_slow_model_says_whatever_comes_and_wherever_they_are_restored() {
    let mut seen = [0; 8];
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let limits = dice.limits();
        let mut model = Model {
            limits,
            sessions: Vec::new(),
            applied: 0,
        };
        let mut steady = Sessions::new(Diary::default(), limits);
        let mut moved = Sessions::new(Diary::default(), limits);
        let (mut index, mut time_us) = (0, 1);
        let mut near = BTreeMap::new();
        let mut sent: Vec<Vec<u8>> = Vec::new();
        for _ in 0..60 {
            let (mut entries, mut expected) = (Vec::new(), Vec::new());
            for _ in 0..1 + dice.below(8) {
                // Some entries are not for the state machine.
                index += 1 + u64::from(dice.one_in(10));
                time_us += dice.below(20);
                let bytes = match sent.len() as u64 {
                    count @ 1.. if dice.one_in(4) => {
                        sent[(count - 1 - dice.below(count.min(30))) as usize].clone()
                    }
                    _ => dice.request(&model, &mut near),
                };
                let answer = model.commit(index, time_us, &bytes);
                seen[*answer.last().expect("a verdict") as usize] += 1;
                expected.push(answer);
                sent.push(bytes.clone());
                entries.push((index, time_us, bytes));
            }
            let (one, two) = entries.split_at(dice.below(entries.len() as u64) as usize);
            let mut answers = apply(&mut moved, one.to_vec());
            if dice.one_in(5) {
                moved = restored(&snapshot(&mut moved));
            }
            answers.extend(apply(&mut moved, two.to_vec()));
            assert_eq!(answers, expected, "seed {seed}, index {index}, restored");
            let answers = apply(&mut steady, entries);
            assert_eq!(answers, expected, "seed {seed}, index {index}");
        }
        assert_eq!(
            snapshot(&mut steady),
            snapshot(&mut moved),
            "seed {seed}: the same bytes"
        );
        let numbered = |command: &&Vec<u8>| command.len() == 17;
        let applied: Vec<_> = steady.machine().applied.iter().filter(numbered).collect();
        let distinct: HashSet<_> = applied.iter().collect();
        assert_eq!(
            distinct.len(),
            applied.len(),
            "seed {seed}: something was applied twice"
        );
    }
    assert!(
        seen.iter().all(|&count| count > 400),
        "every verdict was met: {seen:?}"
    );
}

#[test]
fn a_snapshot_that_is_cut_or_changed_is_an_error_or_another_table_and_never_a_panic() {
    let mut group = Group::new(SMALL);
    let [a, b] = [group.open(), group.open()];
    group.send(a, 1, 1, &[80]);
    group.send(b, 3, 1, &[80]);
    group.send(a, 2, 1, &[3]);
    group.send(b, 2, 1, &[80]);
    group.machine.machine.applied.clear();
    let bytes = snapshot(&mut group.machine);
    let read = |bytes: &[u8]| {
        let mut machine = Sessions::new(Diary::default(), Limits::DEFAULT);
        machine.restore(&mut &bytes[..]).map(|()| machine)
    };
    for cut in 0..bytes.len() {
        let error = read(&bytes[..cut]).expect_err("half a table");
        assert!(error.to_string().contains("ends at byte"), "{cut}: {error}");
    }
    let mut refused = 0;
    for at in 0..bytes.len() {
        for change in [1, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= change;
            match read(&bytes) {
                // What is in a table that was read can be used.
                Ok(mut machine) => {
                    for session in [a, b] {
                        let entry = |sequence, mark: u64| {
                            let mut bytes = Vec::new();
                            let mark = Some(mark);
                            Request::Numbered {
                                session,
                                sequence,
                                mark,
                            }
                            .encode(&mut bytes);
                            (1 << 60, u64::MAX, bytes)
                        };
                        let next = (1..6).map(|sequence| entry(sequence, 1)).collect();
                        apply(&mut machine, next);
                        apply(&mut machine, vec![entry(u64::MAX, u64::MAX)]);
                    }
                    snapshot(&mut machine);
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > bytes.len(), "{refused}");
    let error = read(b"a snapshot of the machine before it had sessions").expect_err("no table");
    assert!(error.to_string().contains("without `Sessions`"), "{error}");
}

#[test]
fn the_largest_numbers_do_no_harm() {
    let mut group = Group::new(Limits {
        window: MAX_WINDOW,
        ..SMALL
    });
    let session = group.open();
    let answer = group.send(session, u64::MAX - 3, u64::MAX - 3, b"\x01");
    assert!(matches!(Answer::decode(&answer), Answer::Applied(_)));
    let last = group.send(session, u64::MAX, u64::MAX - 3, b"\x01");
    assert!(matches!(Answer::decode(&last), Answer::Applied(_)));
    assert_eq!(group.send(session, u64::MAX, u64::MAX, b"\x01"), last);
    let bytes = snapshot(&mut group.machine);
    assert_eq!(snapshot(&mut restored(&bytes)), bytes);
    let mark = u64::MAX;
    group.commit(Request::Keep { session, mark }, b"");
    assert_eq!(group.send(session, u64::MAX, u64::MAX, b"\x01"), last);
}

/// The same entries over and over, as the log would lend them.
struct Endless {
    command: Vec<u8>,
    numbered: bool,
    left: u64,
    index: Index,
    reply: Vec<u8>,
}

impl Lend for Endless {
    fn advance(&mut self) -> bool {
        self.reply.clear();
        self.index += 1;
        if self.numbered {
            self.command[9..17].copy_from_slice(&self.index.to_le_bytes());
        }
        self.left -= 1;
        self.left > 0
    }

    fn current(&mut self) -> (Entry<'_>, &mut Vec<u8>) {
        let entry = Entry {
            index: self.index,
            term: 1,
            time_us: self.index,
            origin: NodeId(1),
            local: true,
            command: &self.command,
        };
        (entry, &mut self.reply)
    }

    fn snapshot_here(&mut self) {}
}

/// `cargo test --release --lib -- --ignored --nocapture what_sessions_cost`
#[test]
#[ignore = "a measurement"]
fn what_sessions_cost() {
    struct Sum(u64);
    impl StateMachine for Sum {
        fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
            while let Some((entry, reply)) = batch.next() {
                self.0 += entry.command.len() as u64;
                reply.extend_from_slice(&self.0.to_le_bytes());
            }
            Ok(())
        }
        fn query(&self, _: &[u8], _: &mut Vec<u8>) {}
    }
    const ENTRIES: u64 = 10_000_000;
    let measure = |what: &str, machine: &mut dyn StateMachine, request: Option<Request>| {
        let mut command = Vec::new();
        if let Some(request) = request {
            request.encode(&mut command);
        }
        command.extend_from_slice(&[7; 16]);
        let mut entries = Endless {
            command,
            numbered: matches!(request, Some(Request::Numbered { .. })),
            left: ENTRIES,
            index: 1,
            reply: Vec::new(),
        };
        let start = std::time::Instant::now();
        machine
            .apply(&mut Batch::lent(&mut entries))
            .expect("it applies");
        let ns = start.elapsed().as_nanos() as f64 / ENTRIES as f64;
        println!("{what:24} {ns:5.1} ns an entry");
    };
    for _ in 0..3 {
        measure("alone", &mut Sum(0), None);
        let mut sessions = Sessions::new(Sum(0), Limits::DEFAULT);
        measure("plain", &mut sessions, Some(Request::Plain));
        sessions.table.add(1, 1, 1, 0);
        let numbered = Request::Numbered {
            session: 1,
            sequence: 1,
            mark: Some(1),
        };
        measure("numbered", &mut sessions, Some(numbered));
    }
    let mut group = Group::new(Limits::DEFAULT);
    for _ in 0..10_000 {
        let session = group.open();
        for sequence in 1..=8 {
            group.send(session, sequence, 1, b"\x01");
        }
    }
    group.machine.machine.applied.clear();
    for _ in 0..3 {
        let start = std::time::Instant::now();
        let write = group.machine.snapshot().expect("it captures");
        let captured = start.elapsed();
        let mut bytes = Vec::new();
        write(&mut bytes).expect("memory takes it");
        println!(
            "10 000 sessions of 8 answers: captured in {captured:?}, {} bytes",
            bytes.len()
        );
    }
}
