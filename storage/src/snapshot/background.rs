//! One piece of work at a time, on a thread of its own.

use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

/// Does one piece of work while its owner goes on. Dropped, it waits for what it does.
#[derive(Debug)]
pub(super) struct Background<T> {
    name: &'static str,
    work: fn(&mut T),
    /// `false`: on the owner's thread.
    has_thread: bool,
    /// From the first piece on.
    thread: Option<Thread<T>>,
    /// What was done on the owner's thread.
    done: Option<T>,
}

#[derive(Debug)]
struct Thread<T> {
    /// `None` when it is to end.
    give: Option<SyncSender<T>>,
    take: Receiver<T>,
    handle: Option<JoinHandle<()>>,
    is_busy: bool,
}

impl<T: Send + 'static> Background<T> {
    pub(super) fn new(name: &'static str, has_thread: bool, work: fn(&mut T)) -> Self {
        Self {
            name,
            work,
            has_thread,
            thread: None,
            done: None,
        }
    }

    /// Begins the next piece. The one before has been taken back.
    pub(super) fn begin(&mut self, mut piece: T) {
        assert!(!self.is_busy(), "{}: a piece at a time", self.name);
        if self.has_thread && self.thread.is_none() {
            // Without one it is slower, and as good.
            self.thread = Thread::start(self.name, self.work);
            self.has_thread = self.thread.is_some();
        }
        match &mut self.thread {
            None => {
                (self.work)(&mut piece);
                self.done = Some(piece);
            }
            Some(thread) => {
                let give = thread.give.as_ref().expect("it ends with its owner");
                let given = give.send(piece);
                given.expect("the thread waits for this, or has panicked");
                thread.is_busy = true;
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.done.is_some() || self.thread.as_ref().is_some_and(|thread| thread.is_busy)
    }

    /// Waits for the piece that was begun, if one was.
    pub(super) fn end(&mut self) -> Option<T> {
        match &mut self.thread {
            Some(thread) if thread.is_busy => {
                thread.is_busy = false;
                let piece = thread.take.recv();
                Some(piece.expect("the thread gives it back, or has panicked"))
            }
            _ => self.done.take(),
        }
    }
}

impl<T: Send + 'static> Thread<T> {
    fn start(name: &str, work: fn(&mut T)) -> Option<Self> {
        let (give, pieces) = mpsc::sync_channel::<T>(1);
        let (back, take) = mpsc::sync_channel(1);
        let handle = thread::Builder::new().name(name.into()).spawn(move || {
            while let Ok(mut piece) = pieces.recv() {
                work(&mut piece);
                if back.send(piece).is_err() {
                    break;
                }
            }
        });
        Some(Self {
            give: Some(give),
            take,
            handle: Some(handle.ok()?),
            is_busy: false,
        })
    }
}

impl<T> Drop for Thread<T> {
    fn drop(&mut self) {
        self.give = None;
        if let Some(handle) = self.handle.take() {
            // What it panicked with, its owner has heard when it asked for the piece.
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_comes_back_with_what_was_done_to_it() {
        for has_thread in [false, true] {
            let mut aside = Background::new("test", has_thread, |(number, id)| {
                *number *= 2;
                *id = thread::current().id();
            });
            assert_eq!(aside.end(), None);
            for number in 0..100 {
                aside.begin((number, thread::current().id()));
                let (number_then, id) = aside.end().expect("begun");
                assert_eq!(number_then, 2 * number);
                assert_eq!(id != thread::current().id(), has_thread);
            }
            // What was begun is done, also when nobody waits for it.
            let (tell, told) = mpsc::channel();
            let mut last = Background::new("test", has_thread, |tell: &mut mpsc::Sender<()>| {
                let _ = tell.send(());
            });
            last.begin(tell);
            drop(last);
            assert_eq!(told.try_recv(), Ok(()));
        }
    }
}
