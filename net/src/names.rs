//! Where a peer is: the addresses that its name stands for, looked up off the thread that polls.
//!
//! The name service may take minutes and may hang: each lookup has a thread of its own, which only it can hold up. A name has at
//! most one lookup under way, so there are never more of them than peers, and the thread ends with the answer. The addresses
//! that were found last are used until there are others.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::waker::Waker;

/// A name is not looked up again sooner, however often its node is dialed.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

type Found = io::Result<Vec<SocketAddr>>;

/// Looks a `host:port` up. It may block; a panic of it is a failed lookup.
#[derive(Clone)]
pub struct Resolver(Arc<dyn Fn(&str) -> Found + Send + Sync>);

impl Resolver {
    /// One that asks `look_up`, on a thread of its own for each lookup.
    pub fn new(look_up: impl Fn(&str) -> Found + Send + Sync + 'static) -> Self {
        Self(Arc::new(look_up))
    }
}

impl Default for Resolver {
    /// The system's.
    fn default() -> Self {
        Self::new(|host_and_port| host_and_port.to_socket_addrs().map(Iterator::collect))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// What became of a lookup.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// None has ended.
    Nothing,
    /// It stands for other addresses than before.
    Changed,
    /// It stands for what it did.
    Same,
    /// It failed; what was known is still used.
    Failed,
}

/// The addresses of one peer.
#[derive(Debug)]
pub(crate) struct Place {
    /// `host:port`, as configured.
    pub(crate) name: String,
    /// It is an address by itself: there is nothing to look up.
    is_literal: bool,
    addrs: Vec<SocketAddr>,
    /// Counts the dials: each takes the next address.
    turn: usize,
    under_way: Option<Receiver<Found>>,
    /// When the last lookup began.
    looked: Option<Instant>,
    /// Why the last lookup failed.
    trouble: Option<String>,
}

impl Place {
    pub(crate) fn new(name: &str) -> Self {
        let literal = name.parse();
        Self {
            name: name.to_owned(),
            is_literal: literal.is_ok(),
            addrs: literal.into_iter().collect(),
            turn: 0,
            under_way: None,
            looked: None,
            trouble: None,
        }
    }

    pub(crate) fn is_looked_up(&self) -> bool {
        self.under_way.is_some()
    }

    /// When the next lookup may begin, if not at once.
    pub(crate) fn pause_ends(&self, now: Instant) -> Option<Instant> {
        let ends = self.looked? + LOOK_EVERY;
        (now < ends).then_some(ends)
    }

    /// Begins a lookup, unless there is one or was one a moment ago.
    pub(crate) fn look_up(&mut self, resolver: &Resolver, waker: Waker, now: Instant) {
        if self.is_literal || self.is_looked_up() || self.pause_ends(now).is_some() {
            return;
        }
        self.looked = Some(now);
        let (answer, answered) = sync_channel(1);
        let (resolver, name) = (resolver.0.clone(), self.name.clone());
        let looks = move || {
            let found = catch_unwind(AssertUnwindSafe(|| resolver(&name)))
                .unwrap_or_else(|_| Err(io::Error::other("the resolver panicked")));
            // The peer may have been taken off the list.
            let _ = answer.send(found);
            waker.wake();
        };
        let name = "ringraft-name".to_owned();
        match thread::Builder::new().name(name).spawn(looks) {
            Ok(_) => self.under_way = Some(answered),
            Err(error) => self.trouble = Some(format!("no thread to look it up: {error}")),
        }
    }

    /// Takes the answer of a lookup that has ended.
    pub(crate) fn learn(&mut self) -> Lookup {
        let Some(answered) = &self.under_way else {
            return Lookup::Nothing;
        };
        let found = match answered.try_recv() {
            Err(TryRecvError::Empty) => return Lookup::Nothing,
            Err(TryRecvError::Disconnected) => Err(io::Error::other("the lookup was lost")),
            Ok(found) => found,
        };
        self.under_way = None;
        match found {
            Ok(addrs) if !addrs.is_empty() => {
                self.trouble = None;
                let is_same = addrs.len() == self.addrs.len()
                    && addrs.iter().all(|addr| self.addrs.contains(addr));
                if is_same {
                    return Lookup::Same; // A name service may turn the order at each question.
                }
                (self.addrs, self.turn) = (addrs, 0);
                Lookup::Changed
            }
            other => {
                self.trouble = Some(other.map_or_else(
                    |error| error.to_string(),
                    |_| "the name has no address".to_owned(),
                ));
                Lookup::Failed
            }
        }
    }

    pub(crate) fn knows(&self, addr: SocketAddr) -> bool {
        self.addrs.contains(&addr)
    }

    /// The address to dial now: each in turn. `None`: none is known.
    pub(crate) fn next(&mut self) -> Option<SocketAddr> {
        let addr = *self.addrs.get(self.turn.checked_rem(self.addrs.len())?)?;
        self.turn = self.turn.wrapping_add(1);
        Some(addr)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if !self.is_literal {
            let addrs: Vec<String> = self.addrs.iter().map(ToString::to_string).collect();
            match addrs.is_empty() {
                true => f.write_str(" (no address is known)")?,
                false => write!(f, " ({})", addrs.join(", "))?,
            }
            if let Some(trouble) = &self.trouble {
                write!(f, " (looked up: {trouble})")?;
            }
        }
        Ok(())
    }
}
