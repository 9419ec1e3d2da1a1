//! Snapshots are written and read here, on a thread that nobody waits for.
//!
//! 1. The apply stage captures the state (fast) and hands it over; entries are applied again at once.
//! 2. Here it is written, flushed, given its name, and read again from the disk.
//! 3. Only then the consensus stage hears how much of the log the two newest snapshots leave to be needed.
//!
//! What goes wrong here - a full disk, an error of the state machine - is shown in the status, and costs this snapshot
//! only. A state that is to be replaced comes here too, with its machine, since reading it may take long.

use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringbuf::Waker;
use storage::Dir;
use storage::scrub::Scrub;
use storage::{Extent, Reclaim, SnapshotFile, SnapshotId, SnapshotMeta, Snapshots, StorageError};

use crate::config::Config;
use crate::error::{Fault, ProposeError};
use crate::flow::background::handoff::{Job, Returned};
use crate::flow::background::pace::Pace;
use crate::flow::background::restore::{open, restore};
use crate::flow::background::scrubber::{News, Rot, Scrubber};
use crate::flow::guard::text;
use crate::flow::shared::{Shared, Stop};
use crate::flow::watermarks::advance;
use crate::request::token::Token;
use crate::state_machine::SnapshotWriter;
use crate::state_machine::StateMachine;
use crate::types::Index;

/// How often a piece of what was pruned is given back: between two the log has its turn.
const GIVE_BACK_US: u64 = 2_000;
/// How often the directory is looked for under its path.
const CHECK_DIRECTORY_US: u64 = 2_000_000;

pub(crate) struct BackgroundWorker<D: Dir> {
    snapshots: Snapshots<D>,
    shared: Arc<Shared>,
    consensus: Waker,
    /// Entries before the newest snapshot that are kept for followers, and the bytes that they may have, about.
    tail: u64,
    tail_bytes: u64,
    extent: Extent,
    pace: Pace,
    scrubber: Scrubber<D>,
    /// Snapshots that were pruned, and when the next piece of them is given back.
    gone: Reclaim<D>,
    gone_due_us: u64,
    /// What is bad in the log lies before this: a snapshot is to take its place.
    rotten: Index,
    /// What the directory held at the start has been looked at.
    begun: bool,
    /// When the directory is looked for next.
    check_due_us: u64,
}

impl<D: Dir> BackgroundWorker<D> {
    pub(crate) fn new(
        snapshots: Snapshots<D>,
        (scrub, extent): (Scrub<D>, Extent),
        shared: Arc<Shared>,
        consensus: Waker,
        config: &Config,
    ) -> Self {
        let now_us = shared.clock.now_us();
        Self {
            scrubber: Scrubber::new(scrub, snapshots.clone(), config, now_us),
            gone: Reclaim::default(),
            gone_due_us: 0,
            rotten: 0,
            snapshots,
            shared,
            consensus,
            tail: config.log_tail_entries,
            tail_bytes: match config.snapshot_every_bytes {
                0 => u64::MAX,
                every => every,
            },
            extent,
            pace: Pace::new(config.snapshot_bytes_per_second),
            begun: false,
            // A medium in memory has no place that it could leave.
            check_due_us: if D::BACKGROUND { now_us } else { u64::MAX },
        }
    }

    /// Does one job; or gives back and reads on.
    pub(crate) fn poll(&mut self, now_us: u64) -> usize {
        let begun = std::mem::replace(&mut self.begun, true);
        if !begun {
            self.settle();
        }
        match self.shared.handoff.next_job() {
            None => {
                if let Some(id) = self.shared.handoff.next_doubt() {
                    self.recheck(id);
                    return 1;
                }
                self.check_directory(now_us);
                return usize::from(!begun) + self.give_back(now_us) + self.scrub(now_us);
            }
            Some(Job::Take {
                meta,
                writer,
                caller,
            }) => {
                let index = meta.index;
                let taken = self.take(&meta, writer);
                // Who hears the answer may ask for the next one.
                self.shared.handoff.taken();
                self.tell(index, taken, caller);
            }
            Some(Job::Restore { machine, index }) => {
                let returned = self.restore(machine, index);
                self.settle();
                self.shared.handoff.give_back(returned);
            }
        }
        1
    }

    fn give_back(&mut self, now_us: u64) -> usize {
        if self.gone.is_empty() || now_us < self.gone_due_us {
            return 0;
        }
        self.gone.reclaim();
        self.gone_due_us = now_us + GIVE_BACK_US;
        1
    }

    fn scrub(&mut self, now_us: u64) -> usize {
        let is_due = now_us >= self.scrubber.due_us();
        let is_answered = self.scrubber.is_mending() && self.shared.repair_request.is_answered();
        if !is_due && !is_answered {
            return 0;
        }
        let node = self.shared.id.0;
        match self.scrubber.step(now_us, &self.shared) {
            None => {}
            Some(News::Missing(path)) => {
                let what = "it was removed under the running node";
                self.fail(&format!("segment {} is gone: {what}", path.display()));
            }
            Some(News::Found(what)) => {
                tracing::error!(node, "{what}; the peers are asked for it");
                self.shared.snapshots().rot = Some(what);
            }
            Some(News::Mended(what)) => {
                tracing::warn!(node, "mended: {what}");
                self.shared.snapshots().rot = None;
                let mut repairs = self.shared.repairs();
                repairs.mended += 1;
                repairs.last = Some(format!("mended: {what}"));
            }
            Some(News::Rot(Rot { upto, what })) => {
                tracing::error!(
                    node,
                    "{what}; a snapshot takes its place, or else: {}",
                    self.shared.advice_on_rot()
                );
                self.shared.repairs().last = Some(what.clone());
                self.shared.snapshots().rot = Some(what);
                self.rotten = self.rotten.max(upto);
                if self.snapshots.newest().is_some_and(|id| id.index >= upto) {
                    self.settle();
                } else {
                    self.shared.handoff.want();
                }
            }
        }
        1
    }

    /// A directory that is removed or unmounted under the node takes with it whatever is acknowledged from then on.
    fn check_directory(&mut self, now_us: u64) {
        if now_us < self.check_due_us {
            return;
        }
        self.check_due_us = now_us + CHECK_DIRECTORY_US;
        if let Err(error) = self.snapshots.check_directory() {
            self.fail(&error.to_string());
        }
    }

    /// What is acknowledged from now on would be lost with the process.
    fn fail(&self, what: &str) {
        self.shared.fail(Fault::Storage(
            format!(
                "{what}; what is acknowledged from now on would be lost with the process. Restore the directory, or its mount, and \
                 start the node again"
            )
            .into(),
        ));
    }

    pub(crate) fn deadline_us(&self) -> u64 {
        self.own_deadline_us().min(self.check_due_us)
    }

    fn own_deadline_us(&self) -> u64 {
        match self.gone.is_empty() {
            true => self.scrubber.due_us(),
            false => self.scrubber.due_us().min(self.gone_due_us),
        }
    }

    pub(crate) fn has_work(&self) -> bool {
        !self.begun
            || self.shared.handoff.has_jobs()
            || self.shared.handoff.has_doubts()
            || self.scrubber.is_mending() && self.shared.repair_request.is_answered()
    }

    fn take(&mut self, meta: &SnapshotMeta, writer: SnapshotWriter) -> io::Result<SnapshotId> {
        let file = self.snapshots.create(meta).map_err(io::Error::other)?;
        let mut out = Paced {
            file,
            pace: &mut self.pace,
            shared: &self.shared,
            written: 0,
        };
        catch_unwind(AssertUnwindSafe(|| writer(&mut out))).unwrap_or_else(|panic| {
            let text = text(&*panic);
            Err(io::Error::other(format!(
                "the snapshot writer panicked: {text}"
            )))
        })?;
        let Paced { file, .. } = out;
        let id = file.finish().map_err(io::Error::other)?;
        if let Err(error) = self.read_back(id) {
            self.snapshots.reject(id).map_err(io::Error::other)?;
            return Err(io::Error::other(error));
        }
        self.settle();
        Ok(id)
    }

    /// Reads a snapshot from the disk, not from what the system still has of it in memory.
    fn read_back(&mut self, id: SnapshotId) -> Result<(), StorageError> {
        let (pace, shared) = (&mut self.pace, &self.shared);
        self.snapshots.verify_at(id, |bytes| {
            // A node that stops waits for the disk only.
            if shared.stop() == Stop::No {
                pace.wait(&shared.clock, bytes);
            }
        })
    }

    /// A snapshot that is bad, or is not there, stands for nothing and can be sent to nobody: another one is taken.
    fn recheck(&mut self, id: SnapshotId) {
        let node = self.shared.id.0;
        if !self.snapshots.list().contains(&id) {
            return; // It was pruned, or set aside, since.
        }
        let read = self.read_back(id);
        if read.as_ref().is_err_and(StorageError::is_exhausted) {
            return; // It could not be looked at: that says nothing about it.
        }
        let Err(error) = read else {
            tracing::info!(node, "snapshot {id} is sound");
            return;
        };
        let what = match self.snapshots.reject(id) {
            Ok(_) => format!("snapshot {id} is set aside, another one is taken: {error}"),
            Err(failed) => format!("snapshot {id} is bad ({error}) and stays: {failed}"),
        };
        tracing::error!(node, "{what}");
        let mut repairs = self.shared.repairs();
        repairs.found += 1;
        repairs.last = Some(what.clone());
        drop(repairs);
        self.shared.snapshots().rot = Some(what);
        self.settle();
        self.shared.handoff.want();
    }

    fn tell(&self, index: Index, taken: io::Result<SnapshotId>, caller: Option<Token>) {
        let node = self.shared.id.0;
        let unix_us = self.shared.clock.unix_us();
        let answer = match taken {
            Ok(id) => {
                tracing::info!(node, "snapshot {id} is taken");
                self.shared.snapshots().finish_taking(unix_us);
                Ok(index)
            }
            Err(error) => {
                tracing::warn!(node, index, "no snapshot: {error}");
                let mut view = self.shared.snapshots();
                view.taking = None;
                view.failed(index, &error);
                Err(ProposeError::NoSnapshot)
            }
        };
        if let Some(caller) = caller {
            self.shared.table.complete(caller, answer, &[]);
        }
    }

    /// Keeps the two newest, and tells how much of the log is needed no more.
    fn settle(&mut self) {
        let marks = &self.shared.marks;
        if marks.restore.load(Ordering::Acquire) > marks.applied.load(Ordering::Acquire) {
            self.show();
            return; // One of them is about to be read.
        }
        let upto = self
            .snapshots
            .prune(&mut self.gone)
            .unwrap_or_else(|error| {
                tracing::warn!(node = self.shared.id.0, "old snapshots stay: {error}");
                0
            });
        let newest = self.show();
        let upto = if self.rotten > 0 && newest >= self.rotten {
            // Neither a follower nor the older snapshot can make use of a log with something bad in it.
            tracing::info!(
                node = self.shared.id.0,
                newest,
                "a snapshot stands for what was found bad"
            );
            self.rotten = 0;
            newest
        } else {
            let tail = newest.saturating_sub(self.tail);
            let within = self.extent.back_from(newest, self.tail_bytes);
            upto.min(tail.max(within.saturating_sub(1)))
        };
        if upto > marks.compact.load(Ordering::Relaxed) {
            advance(&marks.compact, upto);
            self.consensus.wake();
        }
    }

    /// Shows what there is in the status. Returns what the newest one stands for; 0 without one.
    fn show(&self) -> Index {
        let newest = self.snapshots.newest();
        let disk_bytes = self.snapshots.disk_bytes().unwrap_or(0);
        self.shared.snapshots().keep(newest, disk_bytes);
        newest.map_or(0, |id| id.index)
    }

    fn restore(&self, mut machine: Box<dyn StateMachine>, index: Index) -> Returned {
        let reader = open(&self.snapshots, index);
        let outcome = reader.and_then(|reader| {
            restore(reader, machine.as_mut(), |from| Interruptible {
                from,
                shared: &self.shared,
            })
        });
        Returned { machine, outcome }
    }
}

/// A snapshot that cannot be read any further once the node leaves: it does not wait for a state that nobody will use.
struct Interruptible<'a, R> {
    from: R,
    shared: &'a Shared,
}

impl<R: Read> Read for Interruptible<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.shared.stop() != Stop::No {
            return Err(io::Error::other("the node stops"));
        }
        self.from.read(out)
    }
}

/// A snapshot file that is filled at a pace, and given up when the node stops.
struct Paced<'a, D: Dir> {
    file: SnapshotFile<D>,
    pace: &'a mut Pace,
    shared: &'a Shared,
    written: u64,
}

impl<D: Dir> Write for Paced<'_, D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.shared.stop() != Stop::No {
            return Err(io::Error::other("the node stops"));
        }
        let taken = self.file.write(bytes)?;
        self.written += taken as u64;
        self.shared.snapshots().taking = Some(self.written);
        self.pace.wait(&self.shared.clock, taken as u64);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
