//! Segments made ready before they are needed.
//!
//! A new segment is a file's worth of allocation and zeros, tens of milliseconds of work: a thread
//! does it while the log fills the segment before, so that the log finds the next one ready. What
//! was purged from the front of the log becomes the next segment again, unless a reader still looks
//! at it.
//!
//! Invariants: a file gets its final name only after its spare header is durable; segments leave the
//! front of the log one by one, each durably before the next, so that a crash leaves no hole.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::error::{Doing, StorageError};
use crate::log::handle::Handle;
use crate::log::segment::{SegmentHeader, SparseIndex, State, View, segment_name};
use crate::medium::low_priority::at_low_priority;
use crate::medium::{Dir, File, Map};

/// Purged segments kept for their next life; more are removed. As many as a snapshot lets go of by default: a log that
/// goes on as it did makes no more files.
const MOST_IDLE: usize = 4;

/// Purges that may wait for the thread; with more, the log keeps its segments a little longer.
const MOST_JOBS: usize = 64;

/// A segment of the log.
#[derive(Debug)]
pub(crate) struct Segment<F> {
    pub(crate) view: Arc<View>,
    /// Open as long as something is written to it or flushed.
    pub(crate) file: Handle<F>,
    /// Written since the last flush began.
    pub(crate) dirty: bool,
}

/// A segment in waiting: its header, with state spare and this number, is durable.
#[derive(Debug)]
pub(crate) struct Spare<F> {
    pub(crate) seq: u64,
    pub(crate) file: F,
    pub(crate) map: Map,
    pub(crate) index: SparseIndex,
}

impl<F> Spare<F> {
    /// Puts it to use from index `base` on, behind a record of `prev_term`.
    pub(crate) fn into_segment(self, base: u64, prev_term: u64) -> Segment<F> {
        let Spare {
            seq, map, index, ..
        } = self;
        let view = View {
            seq,
            base,
            prev_term,
            map,
            index,
            lease: Arc::default(),
        };
        Segment {
            view: Arc::new(view),
            file: Handle::Open(self.file),
            dirty: false,
        }
    }
}

/// Makes and retires segment files; on the log's thread or on its own.
#[derive(Debug)]
pub(crate) struct SegmentFactory<D: Dir> {
    pub(crate) dir: D,
    pub(crate) cluster_id: u64,
    pub(crate) group_id: u32,
    pub(crate) segment_bytes: u64,
    pub(crate) sync: bool,
    /// Number of the next segment; grows for ever.
    pub(crate) next_seq: u64,
    pub(crate) idle: VecDeque<Segment<D::File>>,
    /// Purged, and there was no descriptor to open their files with: they leave the log before anything else is done.
    pub(crate) leaving: VecDeque<Segment<D::File>>,
    /// A purge failed. No later one may be carried out (it would leave a hole), and the log hears of
    /// it when it needs a segment.
    pub(crate) failed: Option<StorageError>,
}

impl<D: Dir> SegmentFactory<D> {
    fn spare_header(&self, seq: u64) -> [u8; crate::log::segment::SEGMENT_HEADER_LEN] {
        SegmentHeader {
            state: State::Spare,
            cluster_id: self.cluster_id,
            group_id: self.group_id,
            seq,
            base: 0,
            prev_term: 0,
            len: self.segment_bytes,
        }
        .encode()
    }

    fn write_header(&self, file: &D::File, seq: u64) -> Result<(), StorageError> {
        file.write_at(0, &self.spare_header(seq))
            .doing_at("write", file.path(), 0)?;
        if self.sync {
            file.sync().doing("flush", file.path())?;
        }
        Ok(())
    }

    /// Makes the names in `log/` durable.
    pub(crate) fn sync_names(&self) -> Result<(), StorageError> {
        if self.sync {
            self.dir
                .sync_dir("log")
                .doing("flush the directory", &self.dir.path("log"))?;
        }
        Ok(())
    }

    /// Makes the next segment: a purged one when there is one that nobody reads, else a new file.
    pub(crate) fn preallocate(&mut self) -> Prepared<D::File> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        self.retire_leaving();
        let seq = self.next_seq;
        self.next_seq += 1;
        let name = segment_name(seq);
        let (was_named, map) = match self.unread() {
            Some(Segment { view, file, .. }) => {
                let view = Arc::into_inner(view).expect("`unread` saw that nobody else holds it");
                let file = file.get()?;
                self.write_header(&file, seq)?;
                // What was let go of in memory meanwhile is read here, and not by an append.
                file.will_need();
                (segment_name(view.seq), view.map)
            }
            None => {
                let temporary = format!("log/{seq:016}.tmp");
                let path = self.dir.path(&temporary);
                let created = self.dir.create(&temporary, self.segment_bytes);
                let file = match created {
                    Ok(file) => file,
                    Err(e) => {
                        // What was allocated of it would only keep the disk full. The file means
                        // nothing, so if this fails too, the next start removes it.
                        let _ = self.dir.remove(&temporary);
                        return Err(StorageError::io("allocate segment", &path, e));
                    }
                };
                self.write_header(&file, seq)?;
                let map = file.map().doing("map", &path)?;
                (temporary, map)
            }
        };
        let path = self.dir.path(&name);
        self.dir
            .rename(&was_named, &name)
            .doing("rename a prepared segment to", &path)?;
        self.sync_names()?;
        let file = self.dir.open(&name).doing("open", &path)?;
        Ok(Spare {
            seq,
            file,
            map,
            index: SparseIndex::new(self.segment_bytes),
        })
    }

    /// An idle segment which neither a reader nor a slice holds.
    fn unread(&mut self) -> Option<Segment<D::File>> {
        // Only this list can hand out new references to these views, so what is unread stays so.
        let at = self.idle.iter().position(|s| !s.view.is_read())?;
        self.idle.remove(at)
    }

    /// Takes a segment out of the front of the log, durably.
    fn retire(&mut self, segment: Segment<D::File>) {
        self.leaving.push_back(segment);
        self.retire_leaving();
    }

    /// One by one, in their order.
    fn retire_leaving(&mut self) {
        while self.failed.is_none()
            && let Some(mut segment) = self.leaving.pop_front()
        {
            match segment.file.open() {
                Err(error) if error.is_exhausted() => {
                    self.leaving.push_front(segment);
                    return;
                }
                Err(error) => self.failed = Some(error),
                Ok(_) => self.failed = self.try_retire(segment).err(),
            }
        }
    }

    fn try_retire(&mut self, segment: Segment<D::File>) -> Result<(), StorageError> {
        segment.view.lease.leave();
        if segment.view.map.len() as u64 != self.segment_bytes {
            return self.remove(&segment);
        }
        self.write_header(segment.file.file(), segment.view.seq)?;
        self.idle.push_back(segment);
        if self.idle.len() > MOST_IDLE {
            // Rather one that somebody still reads: it could not be used again soon.
            let read = self.idle.iter().position(|s| s.view.is_read());
            let segment = self
                .idle
                .remove(read.unwrap_or(0))
                .expect("it was found there");
            self.remove(&segment)?;
        }
        Ok(())
    }

    fn remove(&self, segment: &Segment<D::File>) -> Result<(), StorageError> {
        self.remove_name(segment)?;
        self.sync_names()
    }

    fn remove_name(&self, segment: &Segment<D::File>) -> Result<(), StorageError> {
        let name = segment_name(segment.view.seq);
        self.dir
            .remove(&name)
            .doing("remove", &self.dir.path(&name))
    }

    /// Removes what was the log; all of it is gone, durably, when this returns. They are not used again: records above
    /// the index that the log begins with now may be in them, and one of those could come to life behind a new one.
    fn clear(&self, segments: &VecDeque<Segment<D::File>>) -> Result<(), StorageError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        for segment in segments.iter().rev() {
            self.remove_name(segment)?;
        }
        self.sync_names()
    }
}

enum Job<F> {
    Preallocate,
    Retire(Segment<F>),
    /// With the place for the outcome.
    Clear(VecDeque<Segment<F>>, SyncSender<Result<(), StorageError>>),
    Unload(Map),
}

type Prepared<F> = Result<Spare<F>, StorageError>;

/// Keeps the next segment ready.
pub(crate) struct Preallocator<D: Dir> {
    site: Site<D>,
    /// What has come ready and was not taken yet.
    ready: Option<Prepared<D::File>>,
}

enum Site<D: Dir> {
    Here(SegmentFactory<D>),
    Thread {
        /// `None` only while it is being dropped.
        jobs: Option<SyncSender<Job<D::File>>>,
        results: Receiver<Prepared<D::File>>,
        thread: Option<JoinHandle<()>>,
    },
}

impl<D: Dir> Preallocator<D> {
    /// Starts, and begins with the first segment.
    pub(crate) fn start(
        mut segment_factory: SegmentFactory<D>,
    ) -> Result<Preallocator<D>, StorageError> {
        if !D::BACKGROUND {
            let ready = Some(segment_factory.preallocate());
            return Ok(Preallocator {
                site: Site::Here(segment_factory),
                ready,
            });
        }
        // Log -> thread: purges (refused when full) and at most one open request.
        let (jobs, to_do) = sync_channel::<Job<D::File>>(MOST_JOBS);
        // Thread -> log: the answer to that request.
        let (done, results) = sync_channel(1);
        let path = segment_factory.dir.path("log");
        let thread = std::thread::Builder::new()
            .name("ringraft-preallocate".into())
            .spawn(move || {
                at_low_priority();
                for job in to_do {
                    match job {
                        // Nobody listens when the log was dropped; then the jobs end as well.
                        Job::Preallocate => drop(done.send(segment_factory.preallocate())),
                        Job::Retire(segment) => segment_factory.retire(segment),
                        // It waits for the answer.
                        Job::Clear(segments, answer) => {
                            let _ = answer.send(segment_factory.clear(&segments));
                        }
                        Job::Unload(map) => map.unload(),
                    }
                }
            })
            .doing("start a thread for", &path)?;
        let site = Site::Thread {
            jobs: Some(jobs),
            results,
            thread: Some(thread),
        };
        let mut preallocator = Preallocator { site, ready: None };
        preallocator.ask();
        Ok(preallocator)
    }

    /// Begins to make the next segment.
    fn ask(&mut self) {
        match &mut self.site {
            Site::Here(segment_factory) => self.ready = Some(segment_factory.preallocate()),
            Site::Thread { jobs, .. } => {
                let jobs = jobs.as_ref().expect("taken only by drop");
                // When the thread is gone, `receive` says so.
                let _ = jobs.send(Job::Preallocate);
            }
        }
    }

    /// The next segment; waits for it when it is not ready, and begins with the one after.
    ///
    /// A preparation that failed while there was no need is tried again now: nothing was promised on
    /// that file, and the disk may have space by now. A second failure is the answer.
    pub(crate) fn take(&mut self) -> Prepared<D::File> {
        let first = self.receive();
        let spare = match first {
            Ok(spare) => spare,
            Err(_) => {
                self.ask();
                self.receive().inspect_err(|e| {
                    // For whoever asks once more: that is a new attempt.
                    self.ready = Some(Err(e.clone()));
                })?
            }
        };
        self.ask();
        Ok(spare)
    }

    fn receive(&mut self) -> Prepared<D::File> {
        if let Some(ready) = self.ready.take() {
            return ready;
        }
        match &self.site {
            Site::Here(_) => unreachable!("made in `ask`, taken once"),
            Site::Thread { results, .. } => match results.recv() {
                Ok(prepared) => prepared,
                Err(_) => panic!("the thread that prepares segments panicked"),
            },
        }
    }

    /// Why the next segment is not coming, when that is known already.
    pub(crate) fn trouble(&mut self) -> Option<&StorageError> {
        if self.ready.is_none()
            && let Site::Thread { results, .. } = &self.site
        {
            self.ready = results.try_recv().ok();
        }
        match &self.ready {
            Some(Err(e)) => Some(e),
            _ => None,
        }
    }

    /// Gives back the memory that reading a segment has taken; done at low priority.
    pub(crate) fn unload(&self, map: Map) {
        match &self.site {
            Site::Here(_) => map.unload(),
            Site::Thread { jobs, .. } => {
                let jobs = jobs.as_ref().expect("taken only by drop");
                // With a full queue the system finds the pages itself when it needs memory.
                let _ = jobs.try_send(Job::Unload(map));
            }
        }
    }

    /// Takes purged segments out of the directory; gives the segment back when too many wait already.
    pub(crate) fn retire(&mut self, segment: Segment<D::File>) -> Result<(), Segment<D::File>> {
        match &mut self.site {
            Site::Here(segment_factory) => segment_factory.retire(segment),
            Site::Thread { jobs, .. } => {
                let jobs = jobs.as_ref().expect("taken only by drop");
                if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) =
                    jobs.try_send(Job::Retire(segment))
                {
                    let Job::Retire(segment) = job else {
                        unreachable!("the job sent comes back")
                    };
                    return Err(segment);
                }
            }
        }
        Ok(())
    }
}

impl<D: Dir> Preallocator<D> {
    /// Removes what was the log, and waits until it is gone: these segments, and before them all that is on its way out
    /// ([`Preallocator::retire`]).
    pub(crate) fn clear(
        &mut self,
        segments: VecDeque<Segment<D::File>>,
    ) -> Result<(), StorageError> {
        match &mut self.site {
            Site::Here(segment_factory) => segment_factory.clear(&segments),
            Site::Thread { jobs, .. } => {
                let jobs = jobs.as_ref().expect("taken only by drop");
                let (answer, outcome) = sync_channel(1);
                let _ = jobs.send(Job::Clear(segments, answer));
                match outcome.recv() {
                    Ok(outcome) => outcome,
                    Err(_) => panic!("the thread that prepares segments panicked"),
                }
            }
        }
    }
}

impl<D: Dir> std::fmt::Debug for Preallocator<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Preallocator")
            .field("background", &D::BACKGROUND)
            .finish_non_exhaustive()
    }
}

impl<D: Dir> Drop for Preallocator<D> {
    fn drop(&mut self) {
        if let Site::Thread { jobs, thread, .. } = &mut self.site {
            *jobs = None;
            if let Some(thread) = thread.take() {
                // A panic there has been reported where it happened.
                let _ = thread.join();
            }
        }
    }
}
