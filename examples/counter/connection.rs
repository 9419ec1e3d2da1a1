//! One client: what it has sent, what it waits for, what it is to be told.
//!
//! Replies leave in the order of the requests, although they become known in another: a request whose answer is still on
//! its way takes a place in `waiting`, and replies that are known earlier wait there behind it.
//!
//! A connection sees its own requests in their order too: while a read is under way no write is begun (it could be seen by
//! that read), and a read behind writes goes through the log, behind them.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;

use crate::commands::Client;
use crate::resp::Parser;

/// Requests of one connection that wait for the cluster; beyond it the connection is not read.
pub const MAX_WAITING: usize = 1024;
/// Bytes that wait to be taken by the client; beyond it it is cut off.
const MAX_OUT: usize = 64 << 20;

#[derive(Debug)]
enum Place {
    Waits { is_read: bool },
    Known(Vec<u8>),
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
    /// The number of the request at the front of `waiting`.
    front: u32,
    pub reads: usize,
    pub writes: usize,
    /// The socket may have more: nobody has seen it empty.
    pub readable: bool,
    /// The socket has said that its stream ends; and that end has been read. The client may still wait for answers.
    pub ends: bool,
    pub half_closed: bool,
    /// Nothing more is taken from it; it ends when everything has been answered and written.
    pub closing: bool,
    /// It is in the list of those to be looked at.
    pub listed: bool,
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
            front: 0,
            reads: 0,
            writes: 0,
            readable: true,
            ends: false,
            half_closed: false,
            closing: false,
            listed: false,
        }
    }

    /// Whether another request may be begun.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING && !self.closing && self.out.len() - self.written < MAX_OUT
    }

    pub fn nothing_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a place for a request that the cluster will answer; returns its number.
    pub fn wait(&mut self, is_read: bool) -> u32 {
        let number = self.next_number();
        self.waiting.push_back(Place::Waits { is_read });
        *(if is_read {
            &mut self.reads
        } else {
            &mut self.writes
        }) += 1;
        number
    }

    /// The number that [`wait`](Self::wait) gives next.
    pub fn next_number(&self) -> u32 {
        self.front.wrapping_add(self.waiting.len() as u32)
    }

    /// Where a reply that is known at once is to be written: to the client, or to its place behind those that are not.
    pub fn reply_place(&mut self) -> &mut Vec<u8> {
        if self.waiting.is_empty() {
            return &mut self.out;
        }
        self.waiting.push_back(Place::Known(Vec::new()));
        match self.waiting.back_mut() {
            Some(Place::Known(reply)) => reply,
            _ => unreachable!("it was just put there"),
        }
    }

    /// The answer to request `number` is known: `write` writes it.
    pub fn answer(&mut self, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let at = number.wrapping_sub(self.front) as usize;
        let Some(place @ Place::Waits { .. }) = self.waiting.get_mut(at) else {
            panic!(
                "request {number} is not one that waits, from {} on",
                self.front
            );
        };
        let Place::Waits { is_read } = *place else {
            unreachable!("matched above")
        };
        *(if is_read {
            &mut self.reads
        } else {
            &mut self.writes
        }) -= 1;
        if at > 0 {
            let mut reply = Vec::new();
            write(&mut reply);
            *place = Place::Known(reply);
            return;
        }
        write(&mut self.out);
        self.waiting.pop_front();
        self.front = self.front.wrapping_add(1);
        while let Some(Place::Known(reply)) = self.waiting.front() {
            self.out.extend_from_slice(reply);
            self.waiting.pop_front();
            self.front = self.front.wrapping_add(1);
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
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        if self.out.capacity() > 1 << 20 {
            self.out = Vec::new();
        }
        Ok(true)
    }
}
