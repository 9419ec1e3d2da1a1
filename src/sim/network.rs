//! The network between simulated nodes: connections that come and go, frames that take their time.
//!
//! It keeps the contract of the product's network: a node hears `Up`, then frames, then `Down` of each peer, and a
//! frame of an earlier connection is never heard in a later one. Within that there are two kinds of weather. In a
//! *fair* one a connection is a TCP stream: nothing is lost, doubled or reordered on a lane but by the connection's
//! end. In a *foul* one single frames are lost, doubled and overtaken, which the core must bear too. (Forwarded
//! proposals are never doubled: no stream does that, and they are not made to be repeated.)

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::raft::Message;
use crate::sim::counts::Counts;
use crate::sim::rng::Rng;
use crate::wire;

/// What the network is like in a run.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    /// A frame's way takes at least this long, and up to `spread_us` longer.
    pub(crate) delay_us: u64,
    pub(crate) spread_us: u64,
    /// How often a frame takes `spike_us` more.
    pub(crate) spike_ppm: u64,
    pub(crate) spike_us: u64,
    /// Foul: how often a single frame is lost, doubled, overtaken.
    pub(crate) loss_ppm: u64,
    pub(crate) double_ppm: u64,
    pub(crate) overtake_ppm: u64,
    /// A connection through which nothing comes for so long is given up.
    pub(crate) stall_us: u64,
    /// Frames that wait for a blocked way; the next is refused as `Full`.
    pub(crate) queue_frames: usize,
}

#[derive(Debug)]
pub(crate) enum What {
    /// There is a connection to the peer, whose directory is this.
    Up {
        incarnation: u64,
        replaces: bool,
    },
    Down,
    /// The peer knows this node with the directory `known`, and refuses the one it has.
    Refused {
        known: u64,
        incarnation: u64,
    },
    Frame {
        kind: u8,
        head: Vec<u8>,
        body: Vec<u8>,
    },
}

#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) peer: usize,
    pub(crate) epoch: u64,
    pub(crate) what: What,
}

impl Item {
    /// The same again; of what may not be doubled there is none.
    fn copy(&self) -> Option<Self> {
        match &self.what {
            What::Frame { kind, head, body } if *kind != wire::FORWARD => Some(Self {
                what: What::Frame {
                    kind: *kind,
                    head: head.clone(),
                    body: body.clone(),
                },
                ..*self
            }),
            _ => None,
        }
    }
}

/// What a node said that must rest on its disk, for the checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    pub(crate) by: usize,
    pub(crate) to: usize,
    pub(crate) message: Message,
}

#[derive(Clone, Debug, Default)]
struct Pair {
    epoch: u64,
    up: bool,
    /// When the next attempt to connect is made.
    connect_us: u64,
    /// Since when nothing comes through in one direction at least.
    blocked_us: Option<u64>,
}

/// What is on its way to a node from a peer.
#[derive(Debug, Default)]
pub(crate) struct Way {
    /// Arrived and not taken.
    pub(crate) ready: VecDeque<Item>,
    /// The first of `ready` was put on hold by the node.
    pub(crate) held: bool,
    /// The connection whose `Up` the node has heard, and not yet its `Down`.
    pub(crate) seen: Option<u64>,
    /// Frames that a cut keeps back.
    stuck: VecDeque<Item>,
    cut: bool,
    /// When the last news of the connection arrives, and the last frame of each lane.
    news_due_us: u64,
    lane_due_us: [u64; 2],
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) now_us: u64,
    pub(crate) weather: Weather,
    pub(crate) nodes: usize,
    pub(crate) said: Vec<Said>,
    /// Connections that nodes have heard of since somebody looked: `(node, peer, connection, whether it is up)`.
    pub(crate) news: Vec<(usize, usize, u64, bool)>,
    pub(crate) counts: Counts,
    /// By node: the directories that its peers are known with.
    known: Vec<BTreeMap<usize, u64>>,
    /// By node: which directory it has.
    incarnations: Vec<u64>,
    /// By node: whether it says that it takes the place of another.
    replaces: Vec<Arc<AtomicBool>>,
    rng: Rng,
    alive: Vec<bool>,
    deaf: Vec<bool>,
    pairs: Vec<Pair>,
    ways: Vec<Way>,
    /// By node: what arrives when.
    coming: Vec<BTreeMap<(u64, u64), Item>>,
    seq: u64,
}

/// The network. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Fabric(Arc<Mutex<State>>);

impl Fabric {
    pub(crate) fn new(nodes: usize, weather: Weather, rng: Rng) -> Self {
        Self(Arc::new(Mutex::new(State {
            now_us: 0,
            weather,
            nodes,
            said: Vec::new(),
            news: Vec::new(),
            counts: Counts::default(),
            known: vec![BTreeMap::new(); nodes],
            incarnations: vec![0; nodes],
            replaces: (0..nodes).map(|_| Arc::default()).collect(),
            rng,
            alive: vec![false; nodes],
            deaf: vec![false; nodes],
            pairs: vec![Pair::default(); nodes * nodes],
            ways: (0..nodes * nodes).map(|_| Way::default()).collect(),
            coming: (0..nodes).map(|_| BTreeMap::new()).collect(),
            seq: 0,
        })))
    }

    /// Never waited for: everything runs in one thread.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The way to `to` from `from`.
    pub(crate) fn way(&mut self, to: usize, from: usize) -> &mut Way {
        &mut self.ways[to * self.nodes + from]
    }

    fn pair(&mut self, a: usize, b: usize) -> &mut Pair {
        &mut self.pairs[a.min(b) * self.nodes + a.max(b)]
    }

    fn delay(&mut self) -> u64 {
        let Weather {
            delay_us,
            spread_us,
            spike_ppm,
            spike_us,
            ..
        } = self.weather;
        let mut delay = delay_us + self.rng.below(spread_us + 1);
        if self.rng.chance(spike_ppm) {
            delay += self.rng.below(spike_us + 1);
            self.counts.add("network: delayed");
        }
        delay
    }

    fn put(&mut self, to: usize, due_us: u64, item: Item) {
        self.seq += 1;
        self.coming[to].insert((due_us, self.seq), item);
    }

    /// Tells `to` what has become of its connection with `peer`.
    fn news(&mut self, to: usize, peer: usize, epoch: u64, what: What, in_us: u64) {
        let due = self.now_us + in_us;
        let way = self.way(to, peer);
        way.news_due_us = way.news_due_us.max(due);
        let due = way.news_due_us;
        self.put(to, due, Item { peer, epoch, what });
    }

    /// Sends a frame; `bulk` is its lane. False: the queue is full.
    pub(crate) fn send(&mut self, from: usize, to: usize, bulk: bool, frame: What) -> bool {
        let epoch = self.way(from, to).seen.expect("asked before");
        let most = self.weather.queue_frames;
        let way = self.way(to, from);
        if way.stuck.len() + way.ready.len() >= most {
            self.counts.add("network: queue full");
            return false;
        }
        let foul = self.weather.loss_ppm > 0;
        let cut = self.way(to, from).cut;
        let item = Item {
            peer: from,
            epoch,
            what: frame,
        };
        let pair = self.pair(from, to);
        if !pair.up || pair.epoch != epoch {
            return true; // The other end has gone; this one does not know yet.
        }
        if cut && !foul {
            self.way(to, from).stuck.push_back(item);
            return true;
        }
        if cut || (foul && self.rng.chance(self.weather.loss_ppm)) {
            self.counts.add("network: lost");
            return true;
        }
        if foul
            && self.rng.chance(self.weather.double_ppm)
            && let Some(copy) = item.copy()
        {
            let due = self.now_us + self.delay() + self.delay();
            let due = due.max(self.way(to, from).news_due_us);
            self.counts.add("network: doubled");
            self.put(to, due, copy);
        }
        self.carry(to, from, bulk, item);
        true
    }

    fn carry(&mut self, to: usize, from: usize, bulk: bool, item: Item) {
        let due = self.now_us + self.delay();
        let overtakes = self.weather.loss_ppm > 0 && self.rng.chance(self.weather.overtake_ppm);
        let way = self.way(to, from);
        let mut due = due.max(way.news_due_us);
        if overtakes {
            self.counts.add("network: overtaken");
        } else {
            let lane = &mut way.lane_due_us[usize::from(bulk)];
            due = due.max(*lane);
            *lane = due;
        }
        self.put(to, due, item);
    }

    /// Does what is due: connections are made and given up, what has arrived becomes ready.
    pub(crate) fn tick(&mut self, now_us: u64) {
        self.now_us = now_us;
        for a in 0..self.nodes {
            for b in a + 1..self.nodes {
                self.tick_pair(a, b);
            }
            self.arrive(a);
        }
    }

    fn blocked(&mut self, a: usize, b: usize) -> bool {
        self.way(a, b).cut || self.way(b, a).cut || self.deaf[a] || self.deaf[b]
    }

    fn tick_pair(&mut self, a: usize, b: usize) {
        let now_us = self.now_us;
        let blocked = self.blocked(a, b);
        let stall_us = self.weather.stall_us;
        let alive = self.alive[a] && self.alive[b];
        let pair = self.pair(a, b);
        if !blocked {
            pair.blocked_us = None;
        }
        if pair.up {
            if blocked && now_us >= *pair.blocked_us.get_or_insert(now_us) + stall_us {
                self.counts.add("mark: a connection was given up");
                self.disconnect(a, b);
            }
        } else if alive && !blocked && now_us >= pair.connect_us {
            if !self.greet(a, b) {
                return;
            }
            let pair = self.pair(a, b);
            pair.up = true;
            pair.epoch += 1;
            let epoch = pair.epoch;
            for (to, peer) in [(a, b), (b, a)] {
                let in_us = self.delay();
                let incarnation = self.incarnations[peer];
                let replaces = self.replaces[peer].load(Ordering::Acquire);
                // Should it not have heard yet that the one before is gone: the new one tells, and nothing of the
                // old one comes any more.
                self.coming[to].retain(|_, item| item.peer != peer);
                self.way(to, peer).news_due_us = self.now_us;
                self.news(to, peer, epoch - 1, What::Down, in_us);
                self.news(
                    to,
                    peer,
                    epoch,
                    What::Up {
                        incarnation,
                        replaces,
                    },
                    in_us,
                );
            }
        }
    }

    /// Whether both ends take the other's directory for the one that they know; the product's `net` refuses it otherwise.
    fn greet(&mut self, a: usize, b: usize) -> bool {
        let mut refused = false;
        for (by, node) in [(a, b), (b, a)] {
            let incarnation = self.incarnations[node];
            if self.replaces[node].load(Ordering::Acquire) {
                self.known[by].insert(node, incarnation);
            }
            let known = *self.known[by].entry(node).or_insert(incarnation);
            if known != incarnation {
                refused = true;
                self.counts.add("network: refused for the directory");
                let epoch = self.pair(a, b).epoch;
                let in_us = self.delay();
                self.news(node, by, epoch, What::Refused { known, incarnation }, in_us);
            }
        }
        if refused {
            let again = self.now_us + self.rng.between(10_000, 500_000);
            self.pair(a, b).connect_us = again;
        }
        !refused
    }

    fn arrive(&mut self, to: usize) {
        while let Some(first) = self.coming[to].first_entry() {
            if first.key().0 > self.now_us {
                break;
            }
            let item = first.remove();
            let way = self.way(to, item.peer);
            if matches!(item.what, What::Down) {
                // What was received and not taken goes with the connection.
                let epoch = item.epoch;
                way.ready.retain(|item| {
                    item.epoch > epoch
                        || matches!(item.what, What::Up { .. } | What::Refused { .. })
                });
                way.held = false;
            }
            way.ready.push_back(item);
        }
    }

    /// The connection of the two ends; each side hears of it in its own time.
    pub(crate) fn disconnect(&mut self, a: usize, b: usize) {
        let pair = self.pair(a, b);
        if !std::mem::take(&mut pair.up) {
            return;
        }
        pair.blocked_us = None;
        let epoch = pair.epoch;
        let again = self.now_us + self.rng.between(1_000, 100_000);
        self.pair(a, b).connect_us = again;
        for (to, peer) in [(a, b), (b, a)] {
            self.way(to, peer).stuck.clear();
            let in_us = self.delay();
            self.news(to, peer, epoch, What::Down, in_us);
        }
    }

    /// Lets nothing more pass to `to` from `from`, or lets it pass again.
    pub(crate) fn cut(&mut self, to: usize, from: usize, cut: bool) {
        let way = self.way(to, from);
        way.cut = cut;
        if cut {
            return;
        }
        let stuck = std::mem::take(&mut way.stuck);
        for item in stuck {
            // Which lane each was on no longer matters: they come in the order in which they were sent.
            self.carry(to, from, true, item);
        }
    }

    /// A node that is paused takes nothing; its peers give it up in the end.
    pub(crate) fn set_deaf(&mut self, node: usize, deaf: bool) {
        self.deaf[node] = deaf;
    }

    /// `known`: the directories that the node's peers are known with, by their ids.
    pub(crate) fn born(
        &mut self,
        node: usize,
        incarnation: u64,
        replaces: Arc<AtomicBool>,
        known: &[(u64, u64)],
    ) {
        let place = |&(id, incarnation): &(u64, u64)| (id as usize - 1, incarnation);
        self.known[node] = known.iter().map(place).collect();
        self.incarnations[node] = incarnation;
        self.replaces[node] = replaces;
        self.alive[node] = true;
        self.deaf[node] = false;
    }

    /// The node is gone: at once, as its peers see it when the system closes its sockets, or silently.
    pub(crate) fn died(&mut self, node: usize, silently: bool) {
        self.alive[node] = false;
        self.coming[node].clear();
        for peer in (0..self.nodes).filter(|&peer| peer != node) {
            let cut = self.way(node, peer).cut;
            *self.way(node, peer) = Way {
                cut,
                ..Way::default()
            };
            let again_us = self.now_us + self.rng.between(1_000, 50_000);
            let pair = self.pair(node, peer);
            let (was_up, epoch) = (std::mem::take(&mut pair.up), pair.epoch);
            pair.blocked_us = None;
            pair.connect_us = again_us;
            self.way(peer, node).stuck.clear();
            if was_up {
                let in_us = if silently {
                    self.weather.stall_us
                } else {
                    self.delay()
                };
                self.news(peer, node, epoch, What::Down, in_us);
            }
        }
    }

    /// Whether a poll of the node's link would find something that it has not refused already.
    pub(crate) fn has_news(&mut self, node: usize) -> bool {
        let now_us = self.now_us;
        if self.coming[node]
            .first_key_value()
            .is_some_and(|(key, _)| key.0 <= now_us)
        {
            return true;
        }
        (0..self.nodes).any(|peer| {
            let way = self.way(node, peer);
            !way.ready.is_empty() && !way.held
        })
    }

    /// When something happens in here next by itself.
    pub(crate) fn next_us(&mut self) -> u64 {
        let mut next = u64::MAX;
        for a in 0..self.nodes {
            if !self.deaf[a] && self.alive[a] {
                next = next.min(
                    self.coming[a]
                        .first_key_value()
                        .map_or(u64::MAX, |(key, _)| key.0),
                );
            }
            for b in a + 1..self.nodes {
                let blocked = self.blocked(a, b);
                let alive = self.alive[a] && self.alive[b];
                let (now_us, stall_us) = (self.now_us, self.weather.stall_us);
                let pair = self.pair(a, b);
                if pair.up && blocked {
                    next = next.min(pair.blocked_us.unwrap_or(now_us) + stall_us);
                } else if !pair.up && alive && !blocked {
                    next = next.min(pair.connect_us);
                }
            }
        }
        next
    }

    pub(crate) fn shuffled_peers(&mut self, node: usize) -> ([usize; 8], usize) {
        let mut peers = [0; 8];
        let mut count = 0;
        for peer in (0..self.nodes).filter(|&peer| peer != node) {
            peers[count] = peer;
            count += 1;
        }
        for at in (1..count).rev() {
            peers.swap(at, self.rng.below(at as u64 + 1) as usize);
        }
        (peers, count)
    }

    pub(crate) fn frames_a_poll(&mut self) -> u64 {
        self.rng.between(1, 32)
    }
}
