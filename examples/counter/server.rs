//! The clients' side: one thread, one mio loop, thousands of connections.
//!
//! A turn takes the answers that have come out of the node's outbox, then what the sockets have, hands the requests to
//! the node, and writes once to each connection that has something to hear. When the node is busy or has no leader,
//! requests wait where they are: their connection is not read further, and TCP holds the client back.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use ringraft::session::Watch;
use ringraft::{Consistency, Index, Node, Outbox, ProposeError};

use crate::commands::{Action, Context, dispatch, write_reply};
use crate::connection::{Connection, NUMBER_BITS};
use crate::limits::{ClientStats, Limits, LogRate, MAX_CLIENTS};
use crate::resp::Writer;
use crate::saves::Saves;

const LISTENER: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX);
/// The parts of a tag: a place, how often it was given away, a request.
const PLACE_BITS: u32 = 16;
const _: () = assert!(MAX_CLIENTS <= 1 << PLACE_BITS);
const GENERATION_BITS: u32 = 64 - PLACE_BITS - NUMBER_BITS;
/// After work the loop looks again for so long before it sleeps: waking a sleeping core costs tens of microseconds.
const GRACE: Duration = Duration::from_micros(50);
const LOOK_ROUND: Duration = Duration::from_millis(100);
/// What a busy node refused is tried again after so long at the latest.
const RETRY: Duration = Duration::from_millis(1);
/// Clients that are taken before others are looked after again.
const ACCEPTS_IN_A_TURN: usize = 256;
/// What is read from a client at once.
const READ_BYTES: usize = 64 << 10;

/// Why the server ended.
#[derive(Debug)]
pub enum End {
    /// It was asked to.
    Asked,
    /// The node can no longer keep its promises.
    Fault(String),
}

/// A connection's place, and how often it was given to another: an answer to an earlier one is nobody's.
#[derive(Debug, Default)]
struct Place {
    connection: Option<Box<Connection>>,
    /// Of 36 bits. An answer comes within `Config::proposal_timeout` of its request, and while the machine stands still not
    /// later than that runs on. By then this one place would have to be given away 68,719,476,736 times, which takes 19 hours
    /// at a million connections a second, all in one place, and eight days at what one thread can accept.
    generation: u64,
}

pub struct Server {
    node: Node,
    sessions: Watch,
    saves: Saves,
    outbox: Outbox,
    poll: Poll,
    listener: TcpListener,
    port: u16,
    places: Vec<Place>,
    free: Vec<usize>,
    /// Connections that have something to write, or to be read or parsed.
    todo: Vec<usize>,
    /// Connections whose next request the node was too busy for.
    refused: Vec<usize>,
    read_buffer: Box<[u8]>,
    encoded: Vec<u8>,
    busy_since: Option<Instant>,
    /// How long a request waits for a node that is busy or knows no leader, before its client is told.
    patience: Duration,
    limits: Limits,
    /// Clients may wait in the listener's queue: its event has been taken, and the queue was not empty since. No other event
    /// comes for those that are in it.
    knocking: bool,
    /// Taking clients has failed; it is tried again when a connection has ended, and after a while.
    accept_failed: bool,
    /// Given up for a moment when all descriptors are taken, to tell a client so.
    spare: Option<File>,
    stats: ClientStats,
    commands: u64,
    http_log: LogRate,
    accept_log: LogRate,
    reject_log: LogRate,
    evict_log: LogRate,
}

impl Server {
    pub fn bind(
        node: Node,
        sessions: Watch,
        addr: SocketAddr,
        patience: Duration,
        limits: Limits,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(addr)?;
        let port = listener.local_addr()?.port();
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = mio::Waker::new(poll.registry(), WAKER)?;
        let outbox = node
            .outbox(move || {
                let _ = waker.wake(); // It fails only when the poll is gone, and with it the sleeper.
            })
            .ok_or_else(|| io::Error::other("the node has no outbox left"))?;
        Ok(Self {
            node,
            sessions,
            saves: Saves::default(),
            outbox,
            poll,
            listener,
            port,
            places: Vec::new(),
            free: Vec::new(),
            todo: Vec::new(),
            refused: Vec::new(),
            read_buffer: vec![0; READ_BYTES].into(),
            encoded: Vec::new(),
            busy_since: None,
            patience,
            limits,
            knocking: false,
            accept_failed: false,
            spare: spare(),
            stats: ClientStats::default(),
            commands: 0,
            http_log: LogRate::default(),
            accept_log: LogRate::default(),
            reject_log: LogRate::default(),
            evict_log: LogRate::default(),
        })
    }

    /// Serves until `stop` is set or the node fails.
    pub fn run(&mut self, stop: &AtomicBool) -> io::Result<End> {
        let mut events = Events::with_capacity(1024);
        let (mut worked, mut looked_round) = (Instant::now(), Instant::now());
        loop {
            let mut work = self.take_answers();
            self.look(&mut events, work > 0 || worked.elapsed() < GRACE)?;
            work += self.take_events(&events);
            if self.knocking && !self.accept_failed {
                work += self.accept();
            }
            work += self.serve();
            if work > 0 {
                worked = Instant::now();
            } else {
                std::thread::yield_now();
            }
            if looked_round.elapsed() >= LOOK_ROUND {
                looked_round = Instant::now();
                self.accept_failed = false;
                if let Some(fault) = self.node.status().error {
                    return Ok(End::Fault(fault.to_string()));
                }
                if stop.load(Ordering::Relaxed) {
                    return Ok(End::Asked);
                }
            }
        }
    }

    /// Hears the answers that the node gives in leaving, and writes what can be written.
    pub fn finish(mut self) {
        while self.take_answers() > 0 {}
        for at in 0..self.places.len() {
            if let Some(connection) = &mut self.places[at].connection {
                let _ = connection.write(); // A client that takes nothing now is not waited for.
            }
        }
    }

    fn look(&mut self, events: &mut Events, awake: bool) -> io::Result<()> {
        let poll = &mut self.poll;
        let mut looked = Ok(());
        if awake || !self.todo.is_empty() || (self.knocking && !self.accept_failed) {
            looked = poll.poll(events, Some(Duration::ZERO));
        } else {
            // Something that waits for a busy node is tried again soon.
            let timeout = if self.refused.is_empty() {
                LOOK_ROUND
            } else {
                RETRY
            };
            events.clear();
            self.outbox
                .sleep(|| looked = poll.poll(events, Some(timeout)));
        }
        match looked {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            other => other,
        }
    }

    fn take_answers(&mut self) -> usize {
        let Self {
            outbox,
            places,
            todo,
            ..
        } = self;
        outbox.drain(8192, |tag, outcome, reply| {
            let (at, generation, number) = untag(tag);
            let place = &mut places[at];
            let Some(connection) = place
                .connection
                .as_mut()
                .filter(|_| place.generation == generation)
            else {
                return; // The client has left.
            };
            let resp3 = connection.client.resp3;
            match outcome {
                Err(
                    error @ (ProposeError::NotLeader { .. }
                    | ProposeError::Replaced
                    | ProposeError::Unconfirmed),
                ) => connection.refuse(number, error),
                _ if connection.watch(number, outcome.is_ok().then_some(reply)) => {
                    connection.answer(number, |out| Writer { out, resp3 }.simple("OK"));
                }
                _ => connection.answer(number, |out| write_outcome(outcome, reply, out, resp3)),
            }
            list(connection, at, todo);
        })
    }

    fn take_events(&mut self, events: &Events) -> usize {
        let mut count = 0;
        for event in events {
            count += 1;
            match event.token() {
                LISTENER => self.knocking = true,
                WAKER => {}
                Token(at) => {
                    if let Some(connection) = self
                        .places
                        .get_mut(at)
                        .and_then(|place| place.connection.as_mut())
                    {
                        connection.ends |= event.is_read_closed();
                        connection.readable |= event.is_readable() || event.is_error();
                        list(connection, at, &mut self.todo);
                    }
                }
            }
        }
        count
    }

    fn connected(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Takes clients that wait, so many in a turn. How many there were.
    fn accept(&mut self) -> usize {
        for count in 0..ACCEPTS_IN_A_TURN {
            match self.listener.accept() {
                Ok((stream, from)) if self.connected() >= self.limits.max_clients => {
                    self.reject(stream, from);
                }
                Ok((stream, from)) => {
                    if let Err(error) = self.admit(stream, from) {
                        tracing::debug!("client {from}: {error}");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.knocking = false;
                    return count;
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    if let Some(suppressed) = self.accept_log.due() {
                        tracing::warn!(suppressed, "client not accepted: {error}");
                    }
                    if !(is_out_of_descriptors(&error) && self.reject_one()) {
                        self.accept_failed = true;
                        return count;
                    }
                }
            }
        }
        ACCEPTS_IN_A_TURN
    }

    /// There is no descriptor left: the spare one is given up to take a client, who is told so. False when that failed too.
    fn reject_one(&mut self) -> bool {
        if self.spare.take().is_none() {
            self.spare = spare();
            return false;
        }
        let taken = self.listener.accept();
        let is_one = taken.is_ok();
        if let Ok((stream, from)) = taken {
            self.reject(stream, from);
        }
        self.spare = spare();
        is_one
    }

    /// Tells a client that there is no room for it, and leaves it.
    fn reject(&mut self, mut stream: TcpStream, from: SocketAddr) {
        self.stats.rejected += 1;
        if let Some(suppressed) = self.reject_log.due() {
            tracing::warn!(
                client = %from,
                connected = self.connected(),
                suppressed,
                "client rejected: no more than {} are taken (--max-clients, and what the limit of open files leaves)",
                self.limits.max_clients
            );
        }
        let _ = stream.write(b"-ERR max number of clients reached\r\n"); // Whether it hears it is its own matter.
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read(&mut self.read_buffer); // With unread bytes the reply would be cut off.
    }

    fn admit(&mut self, mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() - 1
        });
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self
            .poll
            .registry()
            .register(&mut stream, Token(at), interest)
        {
            self.free.push(at);
            return Err(error);
        }
        self.stats.accepted += 1;
        let mut connection = Box::new(Connection::new(stream, from, self.stats.accepted));
        list(&mut connection, at, &mut self.todo);
        self.places[at].connection = Some(connection);
        Ok(())
    }

    /// Looks after every connection on the list: requests are taken, replies written. What was refused is tried again,
    /// which alone is no work: while there is no leader the loop sleeps between.
    fn serve(&mut self) -> usize {
        let mut list = std::mem::take(&mut self.todo);
        let count = list.len();
        list.append(&mut self.refused);
        for at in list.drain(..) {
            let Some(mut connection) = self.places[at].connection.take() else {
                continue;
            };
            connection.listed = false;
            match self.attend(&mut connection, at) {
                Ok(true) => {
                    let bytes = connection.memory();
                    self.stats.buffer_bytes += bytes;
                    self.stats.buffer_bytes -= std::mem::replace(&mut connection.accounted, bytes);
                    self.places[at].connection = Some(connection);
                }
                Ok(false) => self.close(connection, at),
                Err(error) => {
                    tracing::debug!("client {}: {error}", connection.from);
                    self.close(connection, at);
                }
            }
            // Not once a turn: in one turn each connection may take as much as its socket holds.
            while self.stats.buffer_bytes > self.limits.client_memory && self.evict_largest() {}
        }
        if self.todo.is_empty() {
            self.todo = list; // Keeps its memory.
        }
        count
    }

    /// Ends the connection whose buffers hold the most. False when there is none.
    fn evict_largest(&mut self) -> bool {
        let bytes = |place: &Place| place.connection.as_ref().map_or(0, |of| of.accounted);
        let largest = self.places.iter().enumerate();
        let Some((at, _)) = largest.max_by_key(|(_, place)| bytes(place)) else {
            return false;
        };
        let Some(connection) = self.places[at].connection.take() else {
            return false;
        };
        self.stats.evicted += 1;
        if let Some(suppressed) = self.evict_log.due() {
            tracing::warn!(
                client = %connection.from,
                bytes = connection.accounted,
                all_bytes = self.stats.buffer_bytes,
                suppressed,
                "client disconnected: its buffers hold the most, and those of all clients more than {} bytes (--client-memory)",
                self.limits.client_memory
            );
        }
        self.close(connection, at);
        true
    }

    fn close(&mut self, mut connection: Box<Connection>, at: usize) {
        let _ = self.poll.registry().deregister(&mut connection.stream);
        let place = &mut self.places[at];
        place.generation = next_generation(place.generation);
        self.free.push(at);
        self.stats.buffer_bytes -= connection.accounted;
        self.accept_failed = false; // A descriptor has come back.
    }

    /// False when the connection has ended.
    fn attend(&mut self, connection: &mut Connection, at: usize) -> io::Result<bool> {
        self.hand_in_again(connection, at);
        let held = loop {
            let held = !self.take_requests(connection, at);
            if held || !connection.readable || !connection.has_room() {
                break held;
            }
            connection.read(&mut self.read_buffer)?;
        };
        let was_full = !connection.has_room();
        let all_written = connection.write()?;
        // No event comes for what was left in the socket, or here, while there was no room.
        let has_more = connection.readable || connection.begin < connection.input.len();
        if was_full && has_more && connection.has_room() {
            list(connection, at, &mut self.todo);
        }
        connection.shrink();
        let last = connection.closing || (connection.half_closed && !held);
        Ok(!(last && connection.nothing_waits() && all_written))
    }

    /// Takes the requests that are complete. False when one has to wait: it stays where it is.
    fn take_requests(&mut self, connection: &mut Connection, at: usize) -> bool {
        while connection.begin < connection.input.len() {
            if !connection.has_room() {
                return false;
            }
            let used = match connection
                .parser
                .parse(&connection.input[connection.begin..])
            {
                Ok(Some(used)) => used,
                Ok(None) => return true,
                Err(error) => {
                    tracing::debug!("client {}: {error}", connection.from);
                    let resp3 = connection.client.resp3;
                    connection.reply(|out| {
                        Writer { out, resp3 }.error(&format!("ERR Protocol error: {error}"));
                    });
                    connection.closing = true;
                    return true;
                }
            };
            if !self.request(connection, at) {
                return false;
            }
            connection.parser.next();
            connection.begin += used;
            self.commands += 1;
            if connection.closing {
                return true;
            }
        }
        connection.input.clear();
        connection.begin = 0;
        true
    }

    /// Acts on the request that the parser has found. False when it has to wait.
    fn request(&mut self, connection: &mut Connection, at: usize) -> bool {
        if connection.client.watches.any() && !connection.nothing_waits() {
            return false; // What becomes of it may depend on the answer.
        }
        let request = &connection.input[connection.begin..];
        // Most requests have few arguments: those need no memory.
        let mut few = [&[][..]; 8];
        let many: Vec<&[u8]>;
        let ranges = connection.parser.args();
        let args: &[&[u8]] = match few.get_mut(..ranges.len()) {
            Some(few) => {
                for (arg, range) in few.iter_mut().zip(ranges) {
                    *arg = &request[range.clone()];
                }
                few
            }
            None => {
                many = ranges.iter().map(|range| &request[range.clone()]).collect();
                &many
            }
        };
        let context = Context {
            node: &self.node,
            sessions: &self.sessions,
            saves: &self.saves,
            clients: ClientStats {
                connected: self.connected(),
                ..self.stats
            },
            commands: self.commands,
            port: self.port,
            limits: &self.limits,
        };
        let mut local = Vec::new();
        let action = dispatch(
            args,
            &mut connection.client,
            &context,
            &mut self.encoded,
            &mut local,
        );
        match action {
            Action::Replied | Action::Close => {
                connection.reply(|out| out.extend_from_slice(&local));
                connection.closing |= matches!(action, Action::Close);
                true
            }
            Action::Http => {
                connection.closing = true;
                if let Some(suppressed) = self.http_log.due() {
                    tracing::warn!(
                        client = %connection.from,
                        suppressed,
                        "client disconnected: it sent HTTP (POST or Host:) to the port for commands, as a web page does; nothing \
                         of it was executed"
                    );
                }
                true
            }
            Action::Write | Action::Exec if connection.reads > 0 => false,
            Action::Write => self.hand_in(connection, at, false, false),
            Action::Exec => {
                let taken = self.hand_in(connection, at, false, false);
                if taken {
                    connection.client.end_transaction();
                }
                taken
            }
            // Behind the connection's own writes a read goes through the log, to see them.
            Action::Read if connection.writes > 0 => self.hand_in(connection, at, false, false),
            Action::Read => self.hand_in(connection, at, true, false),
            Action::Watch if !connection.nothing_waits() => false,
            Action::Watch => self.hand_in(connection, at, true, true),
        }
    }

    /// Gives a request to the cluster. False when it has to wait.
    fn hand_in(
        &mut self,
        connection: &mut Connection,
        at: usize,
        is_read: bool,
        is_watch: bool,
    ) -> bool {
        let how = is_read.then_some(connection.client.reads);
        let handed = self.offer(at, connection.next_number(), how, &self.encoded);
        match handed {
            Ok(()) => {
                self.busy_since = None;
                connection.wait(is_read, is_watch, &self.encoded);
                true
            }
            Err(ProposeError::Busy | ProposeError::NotLeader { .. })
                if self.busy_since.get_or_insert_with(Instant::now).elapsed() < self.patience =>
            {
                self.later(connection, at);
                false
            }
            Err(error) => {
                let resp3 = connection.client.resp3;
                connection.client.watches.failed |= is_watch;
                connection.reply(|out| write_outcome(Err(error), &[], out, resp3));
                true
            }
        }
    }

    /// Gives refused requests to the cluster once more, unless that would change their order or has lasted too long.
    fn hand_in_again(&mut self, connection: &mut Connection, at: usize) {
        let Some(first) = connection.again_from() else {
            return;
        };
        let lasts = connection.refused_since.map(|since| since.elapsed());
        let end = connection.next_number();
        let first = if lasts > Some(self.patience) {
            end
        } else {
            first
        };
        let resp3 = connection.client.resp3;
        connection.give_up(first, |error, out| {
            write_outcome(Err(error), &[], out, resp3);
        });
        for number in (0..end.wrapping_sub(first)).map(|step| first.wrapping_add(step)) {
            let Some((how, command)) = connection.refused(number) else {
                continue;
            };
            if self.offer(at, number, how, command).is_err() {
                self.later(connection, at);
                return;
            }
            connection.wait_again(number);
        }
    }

    fn offer(
        &self,
        at: usize,
        number: u32,
        how: Option<Consistency>,
        command: &[u8],
    ) -> Result<(), ProposeError> {
        let needs_leader = !matches!(how, Some(Consistency::Stale | Consistency::AtMost { .. }));
        if needs_leader && self.node.leader().is_none() {
            return Err(ProposeError::NotLeader { leader: None });
        }
        let (id, tag) = (
            self.outbox.id(),
            tag(at, self.places[at].generation, number),
        );
        match how {
            Some(how) => self.node.read_to(id, tag, command, how),
            None => self.node.propose_to(id, tag, command),
        }
    }

    fn later(&mut self, connection: &mut Connection, at: usize) {
        if !connection.listed {
            connection.listed = true;
            self.refused.push(at);
        }
    }
}

/// Holds a descriptor.
fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn list(connection: &mut Connection, at: usize, todo: &mut Vec<usize>) {
    if !connection.listed {
        connection.listed = true;
        todo.push(at);
    }
}

/// `place: 16 bits │ generation: 36 bits │ number: 12 bits`.
fn tag(at: usize, generation: u64, number: u32) -> u64 {
    assert!(at < MAX_CLIENTS, "place {at} does not fit into a tag");
    let number = number % (1 << NUMBER_BITS);
    (at as u64) << (64 - PLACE_BITS) | generation << NUMBER_BITS | u64::from(number)
}

/// The place, its generation, and the last bits of the number.
fn untag(tag: u64) -> (usize, u64, u32) {
    let number = tag as u32 % (1 << NUMBER_BITS);
    let generation = tag >> NUMBER_BITS & ((1 << GENERATION_BITS) - 1);
    ((tag >> (64 - PLACE_BITS)) as usize, generation, number)
}

fn next_generation(generation: u64) -> u64 {
    (generation + 1) & ((1 << GENERATION_BITS) - 1)
}

fn write_outcome(
    outcome: Result<Index, ProposeError>,
    reply: &[u8],
    out: &mut Vec<u8>,
    resp3: bool,
) {
    match outcome {
        Ok(_) => write_reply(reply, out, resp3),
        Err(error @ ProposeError::Unknown) => {
            Writer { out, resp3 }.error(&format!("UNKNOWN {error}"))
        }
        Err(error @ ProposeError::TooLarge { .. }) => {
            Writer { out, resp3 }.error(&format!("ERR {error}"))
        }
        Err(error) => Writer { out, resp3 }.error(&format!("TRYAGAIN {error}")),
    }
}

/// What ends a server from outside: set by a signal.
pub fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer to an earlier connection in the same place must not be taken for one to the present.
    #[test]
    fn a_place_that_was_given_away_often_is_told_from_its_earlier_lives() {
        let mut generation = 0;
        let first = tag(7, generation, 1);
        for life in 1..=1_000_000 {
            generation = next_generation(generation);
            let (at, was, number) = untag(first);
            assert_eq!((at, number), (7, 1));
            assert_ne!(was, generation, "after {life} connections");
        }
        assert_eq!(next_generation((1 << 36) - 1), 0, "it fits into a tag");
    }

    #[test]
    fn a_tag_is_read_as_it_was_made() {
        let last = (1 << GENERATION_BITS) - 1;
        for (at, generation, number) in [
            (0, 0, 0),
            (MAX_CLIENTS - 1, last, (1 << NUMBER_BITS) - 1),
            (1, 0, 0),
            (0, 1, 0),
            (0, 0, 1),
        ] {
            assert_eq!(untag(tag(at, generation, number)), (at, generation, number));
        }
        let (_, _, number) = untag(tag(0, 0, u32::MAX));
        assert_eq!(
            number,
            (1 << NUMBER_BITS) - 1,
            "numbers lose their upper bits"
        );
    }
}
