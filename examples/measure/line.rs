//! A slow line to one node: what goes through arrives late, and no faster than so many bytes a second, both ways.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pieces under way in one direction; then who sends is held back, as by any line.
const UNDER_WAY: usize = 32;
const PIECE: usize = 16 << 10;

#[derive(Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) delay: Duration,
    pub(crate) bytes_per_second: u64,
}

/// Ends with all its connections when it is dropped.
pub(crate) struct Line {
    addr: String,
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Line {
    /// Leads to `to`.
    pub(crate) fn open(to: String, manner: Manner) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?.to_string();
        let (stop, streams) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (its_stop, its_streams) = (stop.clone(), Arc::clone(&streams));
        let thread = std::thread::spawn(move || {
            while !its_stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Who cannot be put through dials again.
                    Ok((near, _)) => drop(put_through(&near, &to, manner, &its_streams)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Err(_) => return,
                }
            }
        });
        Ok(Self {
            addr,
            stop,
            streams,
            thread: Some(thread),
        })
    }

    pub(crate) fn addr(&self) -> &str {
        &self.addr
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // One that panicked puts nobody through any more.
        }
        for stream in lock(&self.streams).drain(..) {
            let _ = stream.shutdown(Shutdown::Both); // It may have ended already.
        }
    }
}

fn lock(streams: &Mutex<Vec<TcpStream>>) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

fn put_through(
    near: &TcpStream,
    to: &str,
    manner: Manner,
    streams: &Mutex<Vec<TcpStream>>,
) -> io::Result<()> {
    near.set_nonblocking(false)?;
    let far = TcpStream::connect(to)?;
    for stream in [near, &far] {
        stream.set_nodelay(true)?;
        lock(streams).push(stream.try_clone()?);
    }
    for (from, into) in [(near, &far), (&far, near)] {
        let (from, into) = (from.try_clone()?, into.try_clone()?);
        let (send, receive) = sync_channel(UNDER_WAY);
        std::thread::spawn(move || take_in(from, &send, manner.delay));
        std::thread::spawn(move || give_out(into, &receive, manner.bytes_per_second));
    }
    Ok(())
}

fn take_in(mut from: TcpStream, send: &SyncSender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        let late = (Instant::now() + delay, piece[..count].to_vec());
        if send.send(late).is_err() {
            break;
        }
    }
}

fn give_out(mut into: TcpStream, receive: &Receiver<(Instant, Vec<u8>)>, per_second: u64) {
    let mut free = Instant::now();
    while let Ok((due, piece)) = receive.recv() {
        free = free.max(due) + Duration::from_secs_f64(piece.len() as f64 / per_second as f64);
        std::thread::sleep(free.saturating_duration_since(Instant::now()));
        if into.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Both); // The other end may have done so.
}
