//! A bad line: a TCP proxy for each directed link, that passes on what it gets late, slowly, in crumbs, or only one way.
//!
//! The hosts do not know of it: `Fault::Detour` sends their connections here.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::dice::Dice;
use crate::network::{HUB, RAFT_PORT, addr};
use crate::trouble::Fallible;

/// What a line does to what it carries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// Each piece arrives so many milliseconds later, at the most; never before the one ahead of it.
    pub(crate) delay_ms: u64,
    pub(crate) bytes_per_second: Option<u64>,
    /// No piece is longer.
    pub(crate) crumb: Option<usize>,
    /// After so long a direction of a connection ends; the other one goes on.
    pub(crate) half_close_ms: Option<u64>,
    /// After so long the dialer is hung up on; what was under way is delivered all the same, by and by, while the
    /// next connection is at work already.
    pub(crate) hang_up_ms: Option<u64>,
}

/// Pieces under way in one direction of one connection; then the sender is held back.
const UNDER_WAY: usize = 1024;

/// The lines of some links. They end with it.
#[derive(Debug)]
pub(crate) struct Lines {
    stop: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

/// Where the line of a link begins, on the hub.
pub(crate) fn port(from: usize, to: usize) -> u16 {
    8000 + (from * 10 + to) as u16
}

impl Lines {
    pub(crate) fn open(links: &[(usize, usize)], manner: Manner, seed: u64) -> Fallible<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut lines = Self {
            stop,
            carried: Arc::default(),
            threads: Vec::new(),
        };
        for &(from, to) in links {
            let listener = TcpListener::bind((HUB, port(from, to)))?;
            listener.set_nonblocking(true)?;
            let (stop, carried) = (lines.stop.clone(), lines.carried.clone());
            let dice = Dice::new(seed, "line", u64::from(port(from, to)));
            let accept = move || accept(&listener, to, manner, dice, (&stop, &carried));
            lines.threads.push(std::thread::spawn(accept));
        }
        Ok(lines)
    }

    /// Connections that they carry, or carried.
    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // A line that panicked has hung up.
        }
    }
}

fn accept(
    listener: &TcpListener,
    to: usize,
    manner: Manner,
    mut dice: Dice,
    (stop, carried): (&Arc<AtomicBool>, &AtomicU64),
) {
    let mut pumps = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok((dialer, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let target = format!("{}:{RAFT_PORT}", addr(to));
        let target = target.parse().expect("an address that was made here");
        // The dialer sees a hang-up when nobody is there.
        let Ok(acceptor) = TcpStream::connect_timeout(&target, Duration::from_secs(1)) else {
            continue;
        };
        let both = dialer
            .try_clone()
            .and_then(|d| Ok((d, acceptor.try_clone()?)));
        let Ok((dialer_too, acceptor_too)) = both else {
            continue;
        };
        carried.fetch_add(1, Ordering::Relaxed);
        let one_way = dice.flip();
        for (from, to, forth) in [(dialer, acceptor, true), (acceptor_too, dialer_too, false)] {
            // A half-closed connection is closed in one of its directions.
            let half_close_ms = manner.half_close_ms.filter(|_| forth == one_way);
            let manner = Manner {
                half_close_ms,
                ..manner
            };
            pumps.extend(pump(from, to, manner, dice.next(), stop));
        }
    }
    for pump in pumps {
        let _ = pump.join(); // As above.
    }
}

type Piece = (Instant, Vec<u8>);

/// Carries one direction of a connection: one thread takes, the other gives when it is time.
fn pump(
    from: TcpStream,
    to: TcpStream,
    manner: Manner,
    seed: u64,
    stop: &Arc<AtomicBool>,
) -> [JoinHandle<()>; 2] {
    let (sender, receiver) = sync_channel(UNDER_WAY);
    let (stop, stop_too) = (stop.clone(), stop.clone());
    let dice = Dice::new(seed, "pump", 0);
    let take = move || take(&from, &sender, manner, dice, &stop);
    let give = move || give(&to, &receiver, manner, &stop_too);
    [std::thread::spawn(take), std::thread::spawn(give)]
}

fn take(
    mut from: &TcpStream,
    sender: &SyncSender<Piece>,
    manner: Manner,
    mut dice: Dice,
    stop: &AtomicBool,
) {
    let begin = Instant::now();
    let lasts =
        |limit: Option<u64>| limit.is_none_or(|ms| begin.elapsed() < Duration::from_millis(ms));
    let _ = from.set_read_timeout(Some(Duration::from_millis(20))); // Zero alone is refused.
    let mut buffer = vec![0; 16 << 10];
    let mut last = begin;
    while !stop.load(Ordering::Relaxed) {
        if !lasts(manner.half_close_ms) {
            // What was under way arrives; then the receiver reads an end, and may go on writing.
            return;
        }
        if !lasts(manner.hang_up_ms) {
            break;
        }
        let count = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => break,
        };
        let delay = dice.millis(manner.delay_ms / 4, manner.delay_ms);
        last = last.max(Instant::now() + delay);
        if sender.send((last, buffer[..count].to_vec())).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both); // It may be gone already.
}

fn give(mut to: &TcpStream, receiver: &Receiver<Piece>, manner: Manner, stop: &AtomicBool) {
    let _ = to.set_nodelay(true); // Without it crumbs would be put together again.
    let _ = to.set_write_timeout(Some(Duration::from_secs(2)));
    while let Ok((due, bytes)) = receiver.recv() {
        while Instant::now() < due && !stop.load(Ordering::Relaxed) {
            let left = due.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
        let most = manner
            .bytes_per_second
            .map_or(usize::MAX, |rate| (rate / 50).max(1) as usize);
        for piece in bytes.chunks(manner.crumb.unwrap_or(usize::MAX).min(most)) {
            if stop.load(Ordering::Relaxed) || to.write_all(piece).is_err() {
                let _ = to.shutdown(Shutdown::Both); // It may be gone already.
                return;
            }
            if let Some(rate) = manner.bytes_per_second {
                std::thread::sleep(Duration::from_secs(1) * piece.len() as u32 / rate as u32);
            }
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
