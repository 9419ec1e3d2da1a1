//! Clients under whose hands servers fail, and the account of what they were told.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crate::cluster::{Cluster, Outcome, connect, incr};
use crate::until;

/// Clients that increment one counter, each moving on to the next server when its own is gone.
pub(crate) struct Load {
    clients: Vec<JoinHandle<Tally>>,
    acknowledged: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    values: Vec<i64>,
    unknown: usize,
}

impl Load {
    pub(crate) fn start(cluster: &Cluster, key: &'static str, clients: usize) -> Self {
        let ports: Vec<u16> = cluster.ids().map(|id| cluster.client_port(id)).collect();
        let (acknowledged, stop) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let clients = (0..clients)
            .map(|first| {
                let (ports, acknowledged, stop) =
                    (ports.clone(), acknowledged.clone(), stop.clone());
                std::thread::spawn(move || {
                    let mut tally = Tally::default();
                    for at in first.. {
                        let Ok(mut connection) = connect(ports[at % ports.len()]) else {
                            if stop.load(Ordering::Relaxed) {
                                break;
                            }
                            std::thread::yield_now();
                            continue;
                        };
                        loop {
                            if stop.load(Ordering::Relaxed) {
                                return tally;
                            }
                            match incr(&mut connection, key) {
                                Outcome::Done(value) => {
                                    tally.values.push(value);
                                    acknowledged.fetch_add(1, Ordering::Relaxed);
                                }
                                Outcome::Refused => std::thread::yield_now(),
                                Outcome::Unknown => {
                                    tally.unknown += 1;
                                    break; // On to the next server.
                                }
                            }
                        }
                    }
                    tally
                })
            })
            .collect();
        Self {
            clients,
            acknowledged,
            stop,
        }
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub(crate) fn until_more(&self, count: usize) {
        let enough = self.acknowledged() + count;
        until(format_args!("{count} more increments"), || {
            self.acknowledged() >= enough
        });
    }

    pub(crate) fn finish(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for client in self.clients.drain(..) {
            let tally = client.join().expect("a client is content");
            all.values.extend(tally.values);
            all.unknown += tally.unknown;
        }
        all
    }
}

impl Drop for Load {
    /// Clients of a test that failed would count in the next cluster that has these ports.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join(); // Something else has failed already.
        }
    }
}

/// Nothing that was acknowledged is lost, nothing is counted twice, and no two clients got one value.
pub(crate) fn check(tally: &Tally, final_value: i64) {
    let acknowledged = tally.values.len();
    let distinct: HashSet<i64> = tally.values.iter().copied().collect();
    assert_eq!(
        distinct.len(),
        acknowledged,
        "each acknowledged increment has a value of its own"
    );
    let largest = distinct.iter().max().copied().unwrap_or(0);
    assert!(
        largest <= final_value,
        "{largest} was acknowledged and the value is {final_value}"
    );
    assert!(
        (acknowledged as i64..=(acknowledged + tally.unknown) as i64).contains(&final_value),
        "{acknowledged} acknowledged, {} in doubt, and the value is {final_value}",
        tally.unknown
    );
}
