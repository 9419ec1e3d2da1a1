//! One client: what it has sent, what it waits for, what it is to be told.
//!
//! Replies leave in the order of the requests, although they become known in another: a request whose answer is still on
//! its way takes a place in `waiting`, and replies that are known earlier wait there behind it.
//!
//! A connection sees its own requests in their order too: while a read is under way no write is begun (it could be seen by
//! that read), and a read behind writes goes through the log, behind them.
//!
//! A request that the cluster refused (its leader was lost, mostly) was not applied and is handed in again, so that a
//! client hears nothing of most elections. That must not change the order either: nothing new is begun meanwhile, and
//! when a later request of the same connection has been done already, the refusal is what the client is told.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use mio::net::TcpStream;
use ringraft::session::{self, Request};
use ringraft::{Consistency, ProposeError};

use crate::commands::Client;
use crate::machine::Answer;
use crate::resp::Parser;

/// Requests of one connection that wait for the cluster; beyond it the connection is not read.
pub const MAX_WAITING: usize = 1024;
/// So many bits of a request's number come back with its answer.
pub const NUMBER_BITS: u32 = 12;
// Requests that wait have consecutive numbers: their last bits tell them apart.
const _: () = assert!(MAX_WAITING <= 1 << NUMBER_BITS);
/// Bytes of replies that wait to be taken by the client; with as many no further request is begun, and beyond it the client is
/// cut off: answers to what it had asked before go on coming.
const MAX_OUT: usize = 64 << 20;
/// Bytes of commands that wait for the cluster; with as many no further one is begun.
const MAX_SENT: usize = 4 << 20;
/// What each buffer of a connection keeps when nothing is under way: more than one short request needs.
const KEEP_BYTES: usize = 1 << 10;
const KEEP_WAITING: usize = 16;
/// Replies that have been written are dropped from the front of the buffer when there are so many bytes of them, and they are
/// half of it: no byte is moved more than once on average.
const COMPACT_BYTES: usize = 64 << 10;

/// Commands that wait with a connection, encoded, from the first one's place on: dropped when so many bytes are done with.
const SENT_SLACK: u64 = 64 << 10;

/// A request that the cluster is to answer: where its encoded command is, counted from the connection's first one.
#[derive(Clone, Copy, Debug)]
struct Asked {
    is_read: bool,
    /// Its answer makes its keys watched ones.
    is_watch: bool,
    /// For a read: how the connection wanted it then.
    how: Consistency,
    at: u64,
    len: u32,
}

#[derive(Debug)]
enum Place {
    /// Handed in.
    Waits(Asked),
    /// Handed in and not done, for this reason.
    Refused(Asked, ProposeError),
    /// `done`: it is an answer of the cluster.
    Known { reply: Vec<u8>, done: bool },
}

#[derive(Debug)]
pub struct Connection {
    pub stream: TcpStream,
    pub from: SocketAddr,
    pub client: Client,
    pub parser: Parser,
    /// Bytes received, and where in them the next request begins.
    pub input: Vec<u8>,
    pub begin: usize,
    /// Replies to be written, and how far they have been.
    pub out: Vec<u8>,
    written: usize,
    waiting: VecDeque<Place>,
    /// Bytes of the replies in it.
    known_bytes: usize,
    /// The number of the request at the front of `waiting`.
    front: u32,
    /// The encoded commands of `waiting`, and how many bytes have been dropped before them.
    sent: Vec<u8>,
    sent_from: u64,
    pub reads: usize,
    pub writes: usize,
    /// Of those in `waiting`: how many the cluster has, and how many it has refused.
    handed_in: usize,
    refused: usize,
    /// Since when requests are refused and none is done.
    pub refused_since: Option<Instant>,
    /// The socket may have more: nobody has seen it empty.
    pub readable: bool,
    /// The socket has said that its stream ends; and that end has been read. The client may still wait for answers.
    pub ends: bool,
    pub half_closed: bool,
    /// Nothing more is taken from it; it ends when everything has been answered and written.
    pub closing: bool,
    /// It is in the list of those to be looked at.
    pub listed: bool,
    /// What the server has counted for it of its [`memory`](Self::memory).
    pub accounted: usize,
}

impl Connection {
    pub fn new(stream: TcpStream, from: SocketAddr, id: u64) -> Self {
        Self {
            stream,
            from,
            client: Client {
                id,
                ..Client::default()
            },
            parser: Parser::default(),
            input: Vec::new(),
            begin: 0,
            out: Vec::new(),
            written: 0,
            waiting: VecDeque::new(),
            known_bytes: 0,
            front: 0,
            sent: Vec::new(),
            sent_from: 0,
            reads: 0,
            writes: 0,
            handed_in: 0,
            refused: 0,
            refused_since: None,
            readable: true,
            ends: false,
            half_closed: false,
            closing: false,
            listed: false,
            accounted: 0,
        }
    }

    /// Whether another request may be begun.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING
            && self.refused == 0
            && !self.closing
            && self.out.len() - self.written + self.known_bytes < MAX_OUT
            && self.sent.len() < MAX_SENT
    }

    /// Bytes that it holds.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + self.input.capacity()
            + self.out.capacity()
            + self.known_bytes
            + self.sent.capacity()
            + self.waiting.capacity() * size_of::<Place>()
            + self.parser.memory()
            + self.client.memory()
    }

    /// Gives back what large requests and replies have needed, once little or nothing of them is left.
    pub fn shrink(&mut self) {
        if self.begin * 2 > self.input.len() {
            self.input.drain(..self.begin);
            self.begin = 0;
        }
        for buffer in [&mut self.input, &mut self.out, &mut self.sent] {
            if buffer.is_empty() && buffer.capacity() > KEEP_BYTES {
                *buffer = Vec::new();
            } else if buffer.capacity() > 4 * buffer.len().max(KEEP_BYTES) {
                // One that grows has at most twice what it needs: it is not made smaller while it does.
                buffer.shrink_to(buffer.len().max(KEEP_BYTES));
            }
        }
        if self.waiting.is_empty() && self.waiting.capacity() > KEEP_WAITING {
            self.waiting = VecDeque::new();
        }
    }

    pub fn nothing_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a place for a request that the cluster has got and will answer.
    pub fn wait(&mut self, is_read: bool, is_watch: bool, command: &[u8]) {
        self.client.watches.pending |= is_watch;
        let asked = Asked {
            is_read,
            is_watch,
            how: self.client.reads,
            at: self.sent_from + self.sent.len() as u64,
            len: command.len() as u32,
        };
        self.sent.extend_from_slice(command);
        self.waiting.push_back(Place::Waits(asked));
        self.handed_in += 1;
        *self.pending(is_read) += 1;
    }

    fn pending(&mut self, is_read: bool) -> &mut usize {
        if is_read {
            &mut self.reads
        } else {
            &mut self.writes
        }
    }

    /// The number that [`wait`](Self::wait) gives next.
    pub fn next_number(&self) -> u32 {
        self.front.wrapping_add(self.waiting.len() as u32)
    }

    /// Writes a reply that is known at once: to the client, or to its place behind those that are not.
    pub fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.waiting.is_empty() {
            return write(&mut self.out);
        }
        let (mut reply, done) = (Vec::new(), false);
        write(&mut reply);
        self.known_bytes += reply.len();
        self.waiting.push_back(Place::Known { reply, done });
    }

    /// Where in `waiting` a request is; of its number the last bits are enough.
    fn place_of(&self, number: u32) -> usize {
        (number.wrapping_sub(self.front) % (1 << NUMBER_BITS)) as usize
    }

    /// The answer to request `number` is known: `write` writes it.
    pub fn answer(&mut self, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let at = self.place_of(number);
        let Some(&Place::Waits(asked)) = self.waiting.get(at) else {
            panic!(
                "request {number} is not one that waits, from {} on",
                self.front
            );
        };
        self.handed_in -= 1;
        self.refused_since = None;
        self.settle(at, asked, true, write);
    }

    /// What the answer to request `number` says of watched keys; `answer` is none when it is an error. True when their values
    /// are known now: the client is told so, and not the values.
    pub fn watch(&mut self, number: u32, answer: Option<&[u8]>) -> bool {
        let Some(&Place::Waits(asked)) = self.waiting.get(self.place_of(number)) else {
            return false;
        };
        if !self.client.watches.any() {
            return false;
        }
        let at = (asked.at - self.sent_from) as usize;
        let sent = &self.sent[at..at + asked.len as usize];
        let Some((Request::Plain, query)) = Request::decode(sent) else {
            return false;
        };
        let answer = answer.and_then(|answer| match session::Answer::decode(answer) {
            session::Answer::Applied(answer) => Some(Answer::decode(answer)),
            _ => None,
        });
        if asked.is_watch {
            return self.client.watches.watched(query, answer);
        }
        if let Some(answer) = answer {
            self.client.watches.observe(query, answer);
        }
        false
    }

    /// The cluster did not do request `number`.
    pub fn refuse(&mut self, number: u32, error: ProposeError) {
        let at = self.place_of(number);
        let Some(&Place::Waits(asked)) = self.waiting.get(at) else {
            panic!(
                "request {number} is not one that waits, from {} on",
                self.front
            );
        };
        self.waiting[at] = Place::Refused(asked, error);
        self.handed_in -= 1;
        self.refused += 1;
        self.refused_since.get_or_insert_with(Instant::now);
    }

    /// When refused requests may be handed in again: the number of the first one.
    pub fn again_from(&self) -> Option<u32> {
        if self.refused == 0 || self.handed_in > 0 {
            return None; // What is under way may be done yet, behind one that was refused.
        }
        let first = self
            .waiting
            .iter()
            .rposition(|place| matches!(place, Place::Known { done: true, .. }))
            .map_or(0, |at| at + 1);
        Some(self.front.wrapping_add(first as u32))
    }

    /// A refused request and its command, to be handed in again; `None` for what is not one.
    pub fn refused(&self, number: u32) -> Option<(Option<Consistency>, &[u8])> {
        match self.waiting.get(self.place_of(number)) {
            Some(Place::Refused(asked, _)) => {
                let at = (asked.at - self.sent_from) as usize;
                let how = asked.is_read.then_some(asked.how);
                Some((how, &self.sent[at..at + asked.len as usize]))
            }
            _ => None,
        }
    }

    /// The cluster has taken request `number` this time.
    pub fn wait_again(&mut self, number: u32) {
        let at = self.place_of(number);
        if let Place::Refused(asked, _) = self.waiting[at] {
            self.waiting[at] = Place::Waits(asked);
            self.refused -= 1;
            self.handed_in += 1;
        }
    }

    /// Tells the client of refusals: of those in front of request `number`, which are not handed in again.
    pub fn give_up(&mut self, number: u32, write: impl Fn(ProposeError, &mut Vec<u8>)) {
        let mut left = number.wrapping_sub(self.front);
        while left > 0 && self.refused > 0 {
            left -= 1;
            let at = left as usize;
            if let Some(Place::Refused(asked, error)) = self.waiting.get(at) {
                let (asked, error) = (*asked, error.clone());
                self.refused -= 1;
                if asked.is_watch {
                    let watches = &mut self.client.watches;
                    (watches.pending, watches.failed) = (false, true);
                }
                self.settle(at, asked, false, |out| write(error, out));
            }
        }
    }

    /// What the client is told about the request in place `at` is known now.
    fn settle(&mut self, at: usize, asked: Asked, done: bool, write: impl FnOnce(&mut Vec<u8>)) {
        *self.pending(asked.is_read) -= 1;
        if at > 0 {
            let mut reply = Vec::new();
            write(&mut reply);
            self.known_bytes += reply.len();
            self.waiting[at] = Place::Known { reply, done };
            return;
        }
        write(&mut self.out);
        self.leave_front(asked.at + u64::from(asked.len));
        while let Some(Place::Known { reply, .. }) = self.waiting.front() {
            self.known_bytes -= reply.len();
            self.out.extend_from_slice(reply);
            self.leave_front(self.sent_from);
        }
        if self.waiting.is_empty() {
            self.sent_from += self.sent.len() as u64;
            self.sent.clear();
        }
    }

    /// The request in front has been answered; commands before `sent` are done with.
    fn leave_front(&mut self, sent: u64) {
        self.waiting.pop_front();
        self.front = self.front.wrapping_add(1);
        if sent - self.sent_from > SENT_SLACK {
            self.sent.drain(..(sent - self.sent_from) as usize);
            self.sent_from = sent;
        }
    }

    /// Reads what there is, a piece of the length of `buffer` at the most.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        if self.begin > 0 {
            self.input.drain(..self.begin);
            self.begin = 0;
        }
        loop {
            match self.stream.read(buffer) {
                Ok(0) => (self.readable, self.half_closed) = (false, true),
                Ok(count) => {
                    self.input.extend_from_slice(&buffer[..count]);
                    // A short piece is the last for now, unless the end of the stream is behind it: no event tells of
                    // that one again.
                    self.readable = count == buffer.len() || self.ends;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) => return Err(error),
            }
            return Ok(());
        }
    }

    /// Writes what the client takes. True when nothing is left.
    pub fn write(&mut self) -> io::Result<bool> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.out.len() - self.written > MAX_OUT {
                        return Err(io::Error::other("it does not take its replies"));
                    }
                    self.compact();
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(true)
    }

    /// A client that always lags a little never has everything: what it has taken must go all the same.
    fn compact(&mut self) {
        if self.written >= COMPACT_BYTES && self.written * 2 >= self.out.len() {
            self.out.drain(..self.written);
            self.written = 0;
            if self.out.capacity() > 4 * self.out.len().max(COMPACT_BYTES) {
                self.out.shrink_to(2 * self.out.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection, and its client's end.
    fn pair() -> (Connection, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("it has one");
        let client = std::net::TcpStream::connect(addr).expect("it listens");
        let (stream, from) = listener.accept().expect("one has come");
        stream.set_nonblocking(true).expect("a socket can be");
        (
            Connection::new(TcpStream::from_std(stream), from, 1),
            client,
        )
    }

    /// Its client takes everything, but is never done: what it has taken is not kept.
    #[test]
    fn a_client_that_lags_costs_what_it_lags() {
        const REPLY: usize = 200_000;
        const LAG: usize = 40;
        const ROUNDS: usize = 400;
        let (mut connection, mut client) = pair();
        client.set_nonblocking(true).expect("a socket can be");
        let (mut taken, mut most, mut at) = (vec![0; REPLY], 0, 0);
        for round in 0..ROUNDS + LAG {
            if round < ROUNDS {
                connection.reply(|out| out.resize(out.len() + REPLY, round as u8));
            }
            while round >= LAG && at < REPLY {
                connection.write().expect("it takes some");
                most = most.max(connection.memory());
                match client.read(&mut taken[at..]) {
                    Ok(count) => at += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => panic!("{error}"),
                }
            }
            if round >= LAG {
                assert_eq!([taken[0], taken[REPLY - 1]], [(round - LAG) as u8; 2]);
            }
            at = 0;
        }
        // A buffer that grows has twice what it needs, and half of it may have been written.
        assert!(most > LAG * REPLY / 2, "{most} bytes");
        assert!(
            most < 5 * LAG * REPLY,
            "{most} bytes for a lag of {}",
            LAG * REPLY
        );
        assert!(connection.write().expect("all was taken"));
        connection.shrink();
        assert!(connection.memory() < 4096, "{} bytes", connection.memory());
    }

    #[test]
    fn nothing_large_is_kept_once_it_is_done_with() {
        let (mut connection, mut client) = pair();
        let start = connection.memory();
        let mut request = b"*20001\r\n$4\r\nMGET\r\n".to_vec();
        request.extend(b"$5\r\nkey:1\r\n".repeat(20_000));
        client.write_all(&request).expect("the socket takes it");
        let mut piece = vec![0; 64 << 10];
        let used = loop {
            connection.read(&mut piece).expect("there is something");
            let found = connection.parser.parse(&connection.input);
            if let Some(used) = found.expect("well formed") {
                break used;
            }
        };
        assert_eq!(used, request.len());
        for _ in 0..100 {
            connection.wait(false, false, &request[..30_000]);
        }
        connection.reply(|out| out.extend_from_slice(b"+PONG\r\n"));
        let large = connection.memory();
        assert!(large > 3_000_000 && connection.has_room(), "{large}");
        for _ in 0..100 {
            connection.wait(false, false, &request[..30_000]);
        }
        assert!(!connection.has_room(), "commands of 6 MB wait");

        connection.parser.next();
        connection.input.clear();
        for number in 0..201 {
            if number != 100 {
                connection.answer(number, |out| out.extend_from_slice(b":1\r\n"));
            }
        }
        assert!(connection.nothing_waits() && connection.has_room());
        assert!(connection.write().expect("it takes all"));
        connection.shrink();
        let end = connection.memory();
        assert!(end < start + 4096, "{start} bytes first, {end} at the end");
        assert_eq!(connection.known_bytes, 0);
    }

    #[test]
    fn the_beginning_of_a_short_request_keeps_no_large_buffer() {
        let (mut connection, _client) = pair();
        let mut request = b"*2\r\n$4\r\nECHO\r\n$500000\r\n".to_vec();
        request.resize(request.len() + 500_000, b'x');
        request.extend_from_slice(b"\r\n");
        for byte in request.chunks(64 << 10) {
            connection.input.extend_from_slice(byte);
            let capacity = connection.input.capacity();
            connection.shrink();
            assert_eq!(connection.input.capacity(), capacity, "it grows");
        }
        connection.input.extend_from_slice(b"*1\r\n$4\r\nPI");
        let used = connection.parser.parse(&connection.input);
        connection.begin = used.expect("well formed").expect("it is complete");
        connection.parser.next();
        connection.shrink();
        assert!(connection.memory() < 4096, "{} bytes", connection.memory());
        connection.input.extend_from_slice(b"NG\r\n");
        let used = connection
            .parser
            .parse(&connection.input[connection.begin..]);
        assert_eq!(used, Ok(Some(14)), "nothing of it is lost");
    }

    /// Replies that are known at once wait behind one that is not, and count.
    #[test]
    fn replies_that_wait_for_an_earlier_one_are_bounded() {
        let (mut connection, _client) = pair();
        connection.wait(false, false, b"command");
        let mut count = 0;
        while connection.has_room() {
            connection.reply(|out| out.extend_from_slice(&[0; 500_000]));
            count += 1;
        }
        assert!((100..200).contains(&count), "{count} of half a megabyte");
        assert!(connection.memory() >= MAX_OUT);
    }
}
