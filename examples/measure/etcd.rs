//! Three etcd processes with their defaults, and a client for their linearizable gets.
//!
//! The client speaks as much of HTTP/2 and gRPC as one unary call needs. It costs far less CPU than etcd's own, which
//! would share the two cores with the servers: what it measures is rather too good for etcd than too bad.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Connections; each carries its part of the clients as streams.
const CONNECTIONS: usize = 4;
const READY_WITHIN: Duration = Duration::from_secs(30);
const STALLED_AFTER: Duration = Duration::from_secs(10);

// HTTP/2 (RFC 9113).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_LEN: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

pub(crate) struct Etcd {
    servers: Vec<Child>,
    clients: Vec<u16>,
}

pub(crate) struct Gets {
    pub(crate) per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Etcd {
    /// Starts three; why there are none, else.
    pub(crate) fn start(dir: &Path) -> Result<Self, String> {
        if Command::new("etcd").arg("--version").output().is_err() {
            return Err("etcd: not installed (Debian: etcd-server), so not beside it".into());
        }
        // Taken together, so that they differ; free again for the servers.
        let taken: io::Result<Vec<TcpListener>> =
            (0..6).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
        let ports: io::Result<Vec<u16>> = taken.and_then(|taken| {
            taken
                .iter()
                .map(|one| Ok(one.local_addr()?.port()))
                .collect()
        });
        let ports = ports.map_err(|error| format!("etcd: no ports: {error}"))?;
        let peer = |at: usize| format!("http://127.0.0.1:{}", ports[3 + at]);
        let members: Vec<String> = (0..3).map(|at| format!("e{at}={}", peer(at))).collect();
        let mut etcd = Self {
            servers: Vec::new(),
            clients: ports[..3].to_vec(),
        };
        for (at, port) in ports[..3].iter().enumerate() {
            let client = format!("http://127.0.0.1:{port}");
            let server = Command::new("etcd")
                .args(["--name", &format!("e{at}"), "--data-dir"])
                .arg(dir.join(format!("etcd-{at}")))
                .args([
                    "--listen-client-urls",
                    &client,
                    "--advertise-client-urls",
                    &client,
                ])
                .args([
                    "--listen-peer-urls",
                    &peer(at),
                    "--initial-advertise-peer-urls",
                    &peer(at),
                ])
                .args([
                    "--initial-cluster",
                    &members.join(","),
                    "--initial-cluster-state",
                    "new",
                ])
                .args(["--log-level", "error"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .map_err(|error| format!("etcd: {error}"))?;
            etcd.servers.push(server);
        }
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match etcd.try_gets(1, Duration::from_millis(50)) {
                Ok(_) => return Ok(etcd),
                Err(error) if Instant::now() >= deadline => {
                    return Err(format!("etcd: not ready within {READY_WITHIN:?}: {error}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// So many clients get a key that is not there, on the first of the servers that leads or asks the leader.
    pub(crate) fn linearizable_gets(&self, clients: usize, time: Duration) -> Result<Gets, String> {
        self.try_gets(clients, time)
            .map_err(|error| format!("etcd: {error}"))
    }

    /// On each server in turn, and the best of them: that is the one which leads.
    fn try_gets(&self, clients: usize, time: Duration) -> io::Result<Gets> {
        let mut best: Option<Gets> = None;
        for port in &self.clients {
            let gets = gets(*port, clients, time / 3)?;
            if best.as_ref().is_none_or(|best| best.per_s < gets.per_s) {
                best = Some(gets);
            }
        }
        Ok(best.expect("there are three servers"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // It may have ended already; its data go with the directory.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn gets(port: u16, clients: usize, time: Duration) -> io::Result<Gets> {
    let connections = CONNECTIONS.min(clients);
    let begin = Instant::now();
    let end = begin + time;
    let threads: Vec<_> = (0..connections)
        .map(|at| {
            let streams = clients / connections + usize::from(at < clients % connections);
            std::thread::spawn(move || Connection::open(port)?.run(streams, end))
        })
        .collect();
    let bounds = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3);
    let mut all = bounds.expect("sound bounds");
    for thread in threads {
        let one = thread
            .join()
            .map_err(|_| io::Error::other("the client panicked"))??;
        all.add(&one).expect("of the same bounds");
    }
    let us = |quantile| all.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Gets {
        per_s: all.len() as f64 / begin.elapsed().as_secs_f64(),
        p50_us: us(0.5),
        p99_us: us(0.99),
    })
}

struct Connection {
    socket: TcpStream,
    out: Vec<u8>,
    /// What came, and how far it was looked at.
    inbox: Vec<u8>,
    /// The block of headers of every request.
    headers: Vec<u8>,
    next_stream: u32,
}

impl Connection {
    fn open(port: u16) -> io::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(STALLED_AFTER))?;
        let mut headers = Vec::new();
        let authority = format!("127.0.0.1:{port}");
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/etcdserverpb.KV/Range"),
            (":authority", authority.as_str()),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            // HPACK: a literal field that is not to be remembered, with a literal name; all are short.
            headers.push(0);
            for text in [name, value] {
                headers.push(text.len() as u8);
                headers.extend_from_slice(text.as_bytes());
            }
        }
        let mut connection = Self {
            socket,
            out: PREFACE.to_vec(),
            inbox: Vec::new(),
            headers,
            next_stream: 1,
        };
        connection.frame(SETTINGS, 0, 0, &[]);
        // Answers are small; the connection's window is to be the least worry.
        connection.frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
        Ok(connection)
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.out
            .extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        self.out.extend_from_slice(&[kind, flags]);
        self.out.extend_from_slice(&stream.to_be_bytes());
        self.out.extend_from_slice(payload);
    }

    /// A get of the key `k`. Linearizable is the default.
    fn ask(&mut self) -> u32 {
        const RANGE: &[u8] = b"\x00\x00\x00\x00\x03\x0a\x01k";
        let stream = self.next_stream;
        self.next_stream += 2;
        let headers = std::mem::take(&mut self.headers);
        self.frame(HEADERS, END_HEADERS, stream, &headers);
        self.headers = headers;
        self.frame(DATA, END_STREAM, stream, RANGE);
        stream
    }

    /// Keeps `streams` gets under way until `end`; how long each took, in nanoseconds.
    fn run(mut self, streams: usize, end: Instant) -> io::Result<Histogram<u64>> {
        let bounds = Histogram::new_with_bounds(1, 60_000_000_000, 3);
        let mut latency = bounds.expect("sound bounds");
        let mut under_way: Vec<(u32, Instant)> = Vec::with_capacity(streams);
        for _ in 0..streams {
            let stream = self.ask();
            under_way.push((stream, Instant::now()));
        }
        let (mut chunk, mut data_bytes) = (vec![0; 64 << 10], 0_u32);
        while Instant::now() < end {
            self.socket.write_all(&self.out)?;
            self.out.clear();
            let count = self.socket.read(&mut chunk)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.inbox.extend_from_slice(&chunk[..count]);
            let inbox = std::mem::take(&mut self.inbox);
            let mut at = 0;
            while let Some((head, rest)) = inbox[at..].split_first_chunk::<HEAD_LEN>() {
                let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let Some(payload) = rest.get(..len) else {
                    break;
                };
                at += HEAD_LEN + len;
                let (kind, flags) = (head[3], head[4]);
                let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                match kind {
                    SETTINGS if flags & ACK == 0 => self.frame(SETTINGS, ACK, 0, &[]),
                    PING if flags & ACK == 0 => self.frame(PING, ACK, 0, payload),
                    DATA => data_bytes += len as u32,
                    GOAWAY | RST_STREAM => return Err(io::Error::other("the server hung up")),
                    HEADERS if flags & END_STREAM != 0 => {
                        // Trailers come after an answer; without one the call failed.
                        if data_bytes == 0 {
                            return Err(io::Error::other("a get was refused"));
                        }
                        let of = under_way.iter_mut().find(|(asked, _)| *asked == stream);
                        let Some(of) = of else { continue };
                        latency.saturating_record(of.1.elapsed().as_nanos() as u64);
                        *of = (self.ask(), Instant::now());
                    }
                    _ => {}
                }
            }
            self.inbox = inbox;
            self.inbox.drain(..at);
            if data_bytes > 1 << 20 {
                self.frame(WINDOW_UPDATE, 0, 0, &data_bytes.to_be_bytes());
                data_bytes = 1;
            }
        }
        Ok(latency)
    }
}
