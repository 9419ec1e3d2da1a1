//! A directory in memory that behaves like a disk: it forgets what was not flushed.
//!
//! Each file has a live image (what reads, writes and maps see) and a durable one (what a power cut
//! leaves). Between the two, every 512-byte sector that was written and not flushed may survive or
//! not, in any combination; so may the last names that no `sync_dir` covered, as a journal keeps
//! them: a prefix. A file that grew and was not flushed has some length between the two, and zeros
//! where a sector of its growth was lost.
//!
//! [`Memory::power_cut`] takes a picture of what may be left and changes nothing, so that one run
//! can be cut at many points. [`Memory::fail_at`] makes the n-th operation fail.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::medium::shared_bytes::SharedBytes;
use crate::medium::{Dir, File, FileId, FlushError, FlushOptions, Flusher, LockError, Map, PAGE};

/// What a disk writes as a whole or not at all, in bytes.
const SECTOR: usize = 512;

/// A directory in memory. Clones are the same directory.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Mutex<World>>);

/// How an operation fails, see [`Memory::fail_at`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device answers EIO. A failed flush loses what it should have written, as on Linux.
    Io,
    /// No space left: ENOSPC.
    Full,
    /// The power fails: this operation and every later one fails and changes nothing.
    PowerOff,
}

/// What a power cut does to that which was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it is lost.
    All,
    /// None of it: as when only the process dies.
    Nothing,
    /// Sector by sector and name by name, by chance from this seed.
    Random(u64),
}

/// Operations so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Write calls, whatever their number of parts.
    pub writes: u64,
    /// Flushes started, whatever their number of files.
    pub flushes: u64,
    /// Waiting syncs of files and directories.
    pub syncs: u64,
}

#[derive(Debug, Default)]
struct World {
    live: BTreeMap<String, Arc<Mutex<Node>>>,
    durable: BTreeMap<String, Arc<Mutex<Node>>>,
    /// Changes of `live` which `durable` has not seen, oldest first.
    unsynced: Vec<NameOp>,
    locks: BTreeSet<String>,
    faults: BTreeMap<u64, Fault>,
    power_off: bool,
    /// Operations so far.
    step: u64,
    counts: Counts,
    hold_flushes: bool,
    fail_reads: bool,
    /// The most bytes all files may have together.
    capacity: Option<u64>,
    random: u64,
}

#[derive(Clone, Debug)]
enum NameOp {
    Set(String, Arc<Mutex<Node>>),
    Rename(String, String),
    Remove(String),
}

impl NameOp {
    fn name(&self) -> &str {
        match self {
            NameOp::Set(name, _) | NameOp::Rename(_, name) | NameOp::Remove(name) => name,
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, Arc<Mutex<Node>>>) {
        match self {
            NameOp::Set(name, node) => drop(names.insert(name.clone(), node.clone())),
            NameOp::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
            NameOp::Remove(name) => drop(names.remove(name)),
        }
    }
}

#[derive(Debug)]
struct Node {
    /// Has room behind the file's end when the file grows.
    live: Arc<SharedBytes>,
    /// Length of the file, in bytes.
    len: usize,
    /// A write behind the end makes it longer; otherwise it is a bug.
    grows: bool,
    durable: Vec<u8>,
    /// Sectors which differ, or may, since the last flush began.
    dirty: BTreeSet<usize>,
    /// Sectors of a running flush, as they were when it began, and the length then.
    flying: BTreeMap<usize, Vec<u8>>,
    flying_len: usize,
    /// Pages that the medium does not give back, until they are written.
    unreadable: BTreeSet<u64>,
}

impl Node {
    fn new(image: Vec<u8>, grows: bool) -> Node {
        let live = Arc::new(SharedBytes::new(image.len()));
        live.write(0, &image);
        Node {
            live,
            len: image.len(),
            grows,
            durable: image,
            dirty: BTreeSet::new(),
            flying: BTreeMap::new(),
            flying_len: 0,
            unreadable: BTreeSet::new(),
        }
    }

    /// Whether one of these bytes is in a page that cannot be read.
    fn has_hole(&self, bytes: Range<u64>) -> bool {
        let pages = bytes.start / PAGE..bytes.end.div_ceil(PAGE);
        !bytes.is_empty() && self.unreadable.range(pages).next().is_some()
    }

    /// Writes pages: one that is written in part has to be read first, as the page cache does it.
    fn cover(&mut self, bytes: Range<u64>) -> io::Result<()> {
        let len = self.len as u64;
        let first = bytes.start / PAGE * PAGE..bytes.start;
        let last = bytes.end..bytes.end.next_multiple_of(PAGE).min(len.max(bytes.end));
        for edge in [first, last].into_iter().filter(|edge| !edge.is_empty()) {
            if self.has_hole(edge) {
                return Err(io::Error::from_raw_os_error(5)); // EIO
            }
        }
        let pages = bytes.start / PAGE..bytes.end.div_ceil(PAGE);
        self.unreadable.retain(|page| !pages.contains(page));
        Ok(())
    }

    fn live_sector(&self, sector: usize) -> &[u8] {
        self.live
            .slice(sector * SECTOR..self.len.min((sector + 1) * SECTOR))
    }

    /// Makes the file `len` bytes long, with zeros.
    fn grow(&mut self, len: usize) {
        if len > self.live.len() {
            let longer = SharedBytes::new(len.max(2 * self.live.len()));
            longer.write(0, self.live.slice(0..self.len));
            self.live = Arc::new(longer);
        }
        self.len = len;
    }

    fn take_off(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            let bytes = self.live_sector(sector).to_vec();
            self.flying.insert(sector, bytes);
        }
        self.flying_len = self.len;
    }

    fn land(&mut self) {
        let len = self.durable.len().max(self.flying_len);
        self.durable.resize(len, 0);
        for (sector, bytes) in std::mem::take(&mut self.flying) {
            put(&mut self.durable, sector, &bytes);
        }
    }

    /// What the medium may hold after a power cut now.
    fn survivor(&self, loss: Loss, random: &mut u64) -> Node {
        let mut image = self.durable.clone();
        let grown = self.len - image.len();
        if grown > 0 {
            let kept = match loss {
                Loss::All => 0,
                Loss::Nothing => grown,
                Loss::Random(_) if coin(random) => grown,
                Loss::Random(_) => next(random) as usize % (grown + 1),
            };
            image.resize(self.durable.len() + kept, 0);
        }
        for (&sector, bytes) in &self.flying {
            if loss == Loss::Nothing || (loss != Loss::All && coin(random)) {
                put(&mut image, sector, bytes);
            }
        }
        for &sector in &self.dirty {
            if loss == Loss::Nothing || (loss != Loss::All && coin(random)) {
                put(&mut image, sector, self.live_sector(sector));
            }
        }
        let mut left = Node::new(image, self.grows);
        left.unreadable = self.unreadable.clone();
        left
    }

    /// What was not flushed because a flush failed is gone: reads show what the medium has.
    fn drop_cache(&mut self) {
        for sector in 0..self.len.div_ceil(SECTOR) {
            if self.dirty.contains(&sector) || self.flying.contains_key(&sector) {
                continue;
            }
            let range = sector * SECTOR..self.len.min((sector + 1) * SECTOR);
            let mut bytes = vec![0; range.len()];
            let there = self.durable.len().clamp(range.start, range.end) - range.start;
            bytes[..there].copy_from_slice(&self.durable[range.start..range.start + there]);
            self.live.write(range.start, &bytes);
        }
    }
}

/// Writes what of these bytes lies inside of the image.
fn put_bytes(image: &mut [u8], from: usize, bytes: &[u8]) {
    let from = image.len().min(from);
    let there = bytes.len().min(image.len() - from);
    image[from..from + there].copy_from_slice(&bytes[..there]);
}

/// Writes what of this sector lies inside of the image.
fn put(image: &mut [u8], sector: usize, bytes: &[u8]) {
    put_bytes(image, sector * SECTOR, bytes);
}

/// splitmix64: the next of a sequence of numbers which the seed decides.
fn next(random: &mut u64) -> u64 {
    *random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*random ^ (*random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn coin(random: &mut u64) -> bool {
    next(random) & 1 == 1
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// Counts an operation, and fails it when its turn has come.
    fn step(&mut self) -> io::Result<()> {
        let fault = self.faults.remove(&self.step);
        self.step += 1;
        self.power_off |= fault == Some(Fault::PowerOff);
        match fault {
            _ if self.power_off => Err(io::Error::other("the power is off")),
            Some(Fault::Full) => Err(io::ErrorKind::StorageFull.into()),
            Some(_) => Err(io::Error::from_raw_os_error(5)),
            None => Ok(()),
        }
    }

    fn name_op(&mut self, op: NameOp) {
        op.apply(&mut self.live);
        self.unsynced.push(op);
    }

    fn node(&self, name: &str) -> io::Result<Arc<Mutex<Node>>> {
        self.live
            .get(name)
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Refuses what the disk has no space for. No node may be locked.
    fn take_space(&self, bytes: u64) -> io::Result<()> {
        let Some(most) = self.capacity else {
            return Ok(());
        };
        let used: u64 = self.live.values().map(|node| locked(node).len as u64).sum();
        if used + bytes > most {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn set(&mut self, name: &str, grows: bool, len: usize) -> Arc<Mutex<Node>> {
        let node = Arc::new(Mutex::new(Node::new(vec![0; len], grows)));
        self.name_op(NameOp::Set(name.into(), node.clone()));
        node
    }
}

impl Memory {
    /// An empty directory; `seed` decides what [`Dir::random`] gives.
    pub fn new(seed: u64) -> Memory {
        Memory(Arc::new(Mutex::new(World {
            random: seed,
            ..World::default()
        })))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        locked(&self.0)
    }

    /// What a power cut now would leave: another directory, in which nothing is open or locked.
    /// This one goes on as if nothing had happened.
    pub fn power_cut(&self, loss: Loss) -> Memory {
        let mut world = self.world();
        let mut random = match loss {
            Loss::Random(seed) => seed,
            _ => 0,
        };
        let mut names = world.durable.clone();
        let kept = match loss {
            Loss::All => 0,
            Loss::Nothing => world.unsynced.len(),
            Loss::Random(_) => next(&mut random) as usize % (world.unsynced.len() + 1),
        };
        world.unsynced[..kept]
            .iter()
            .for_each(|op| op.apply(&mut names));
        for node in names.values_mut() {
            let survivor = locked(node).survivor(loss, &mut random);
            *node = Arc::new(Mutex::new(survivor));
        }
        Memory(Arc::new(Mutex::new(World {
            live: names.clone(),
            durable: names,
            capacity: world.capacity,
            random: next(&mut world.random),
            ..World::default()
        })))
    }

    /// Lets the operation `step` fail: they are numbered as in [`Memory::steps`], and one that changes
    /// or flushes something counts.
    pub fn fail_at(&self, step: u64, fault: Fault) {
        self.world().faults.insert(step, fault);
    }

    /// Operations so far: the number of the next one.
    pub fn steps(&self) -> u64 {
        self.world().step
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.world().counts
    }

    /// While `fail`, every read of a file answers EIO. Maps can be read all the same.
    pub fn fail_reads(&self, fail: bool) {
        self.world().fail_reads = fail;
    }

    /// The page of `name` with the byte `at` answers EIO from now on, to reads and to writes of a part of it, until it is
    /// written as a whole; a power cut does not change that. Maps show zeros there, where a disk would end the process.
    ///
    /// # Errors
    /// There is no such file, or it is shorter.
    pub fn make_unreadable(&self, name: &str, at: u64) -> io::Result<()> {
        let node = self.world().node(name)?;
        let mut node = locked(&node);
        if at >= node.len as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let page = at / PAGE;
        node.unreadable.insert(page);
        let from = (page * PAGE) as usize;
        let zeros = vec![0; node.len.min(from + PAGE as usize) - from];
        node.live.write(from, &zeros);
        put_bytes(&mut node.durable, from, &zeros);
        Ok(())
    }

    /// While `hold`, flushes do not end unless somebody waits for them.
    pub fn hold_flushes(&self, hold: bool) {
        self.world().hold_flushes = hold;
    }

    /// Limits the bytes of all files together; creating or growing more fails with ENOSPC.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world().capacity = bytes;
    }

    /// Changes the bytes of a file behind everybody's back, live and durable: bit rot.
    ///
    /// # Errors
    /// There is no such file.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let node = self.world().node(name)?;
        let mut node = locked(&node);
        let mut bytes = node.live.slice(0..node.len).to_vec();
        change(&mut bytes);
        node.live.write(0, &bytes);
        node.durable = bytes;
        Ok(())
    }
}

impl Dir for Memory {
    type File = MemoryFile;
    type Flusher = MemoryFlusher;
    type Lock = MemoryLock;

    fn path(&self, name: &str) -> PathBuf {
        Path::new("memory:").join(name)
    }

    fn create_folder(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, name: &str, len: u64) -> io::Result<MemoryFile> {
        let mut world = self.world();
        world.step()?;
        world.take_space(len)?;
        let node = world.set(name, false, len as usize);
        Ok(MemoryFile {
            world: self.0.clone(),
            node,
            path: self.path(name).into(),
        })
    }

    fn create_empty(&self, name: &str) -> io::Result<MemoryFile> {
        let mut world = self.world();
        world.step()?;
        let node = world.set(name, true, 0);
        Ok(MemoryFile {
            world: self.0.clone(),
            node,
            path: self.path(name).into(),
        })
    }

    fn open(&self, name: &str) -> io::Result<MemoryFile> {
        let node = self.world().node(name)?;
        Ok(MemoryFile {
            world: self.0.clone(),
            node,
            path: self.path(name).into(),
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.world();
        world.step()?;
        world.node(from)?;
        world.name_op(NameOp::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        world.step()?;
        world.node(name)?;
        world.name_op(NameOp::Remove(name.into()));
        Ok(())
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let world = self.world();
        let names = world.live.keys().map(|name| split(name));
        Ok(names
            .filter(|(of, _)| *of == folder)
            .map(|(_, name)| name.into())
            .collect())
    }

    fn sync_dir(&self, folder: &str) -> io::Result<()> {
        let mut world = self.world();
        world.step()?;
        world.counts.syncs += 1;
        let ops = std::mem::take(&mut world.unsynced);
        for op in ops {
            if split(op.name()).0 == folder {
                op.apply(&mut world.durable);
            } else {
                world.unsynced.push(op);
            }
        }
        Ok(())
    }

    fn lock(&self, name: &str) -> Result<MemoryLock, LockError> {
        if !self.world().locks.insert(name.into()) {
            return Err(LockError::Held(None));
        }
        Ok(MemoryLock {
            dir: self.clone(),
            name: name.into(),
        })
    }

    fn flusher(&self, options: &FlushOptions) -> io::Result<MemoryFlusher> {
        Ok(MemoryFlusher {
            world: self.0.clone(),
            files: Vec::new(),
            sync: options.sync,
            running: false,
            failed: None,
        })
    }

    fn random(&self) -> u64 {
        next(&mut self.world().random)
    }

    const BACKGROUND: bool = false;
}

fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

/// A lock of a [`Memory`], held while it lives.
#[derive(Debug)]
pub struct MemoryLock {
    dir: Memory,
    name: String,
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.dir.world().locks.remove(&self.name);
    }
}

/// An open file of a [`Memory`].
#[derive(Clone, Debug)]
pub struct MemoryFile {
    world: Arc<Mutex<World>>,
    node: Arc<Mutex<Node>>,
    path: Arc<Path>,
}

impl File for MemoryFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn id(&self) -> io::Result<FileId> {
        let number = Arc::as_ptr(&self.node).addr() as u64;
        Ok(FileId { device: 0, number })
    }

    fn length(&self) -> io::Result<u64> {
        Ok(locked(&self.node).len as u64)
    }

    fn write_parts_at(&self, offset: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut world = locked(&self.world);
        world.step()?;
        world.counts.writes += 1;
        let mut at = offset as usize;
        let end = at + parts.iter().map(|part| part.len()).sum::<usize>();
        let (len, grows) = {
            let node = locked(&self.node);
            (node.len, node.grows)
        };
        assert!(
            end <= len || (grows && at <= len),
            "a write of {at}..{end}, the file ends at {len}"
        );
        if end > len {
            world.take_space((end - len) as u64)?;
        }
        let mut node = locked(&self.node);
        node.cover(offset..end as u64)?;
        if end > len {
            node.grow(end);
        }
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let end = at + part.len();
            node.live.write(at, part);
            node.dirty.extend(at / SECTOR..=(end - 1) / SECTOR);
            at = end;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if locked(&self.world).fail_reads {
            return Err(io::Error::from_raw_os_error(5)); // EIO
        }
        let (node, at) = (locked(&self.node), offset as usize);
        if at + out.len() > node.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if node.has_hole(offset..offset + out.len() as u64) {
            return Err(io::Error::from_raw_os_error(5)); // EIO
        }
        out.copy_from_slice(node.live.slice(at..at + out.len()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = locked(&self.world);
        let outcome = world.step();
        world.counts.syncs += 1;
        let mut node = locked(&self.node);
        if outcome.is_ok() {
            node.take_off();
            node.land();
        } else if !world.power_off {
            node.dirty.clear();
        }
        outcome
    }

    fn drop_cache(&self) {
        let mut node = locked(&self.node);
        // Files of fixed length may be mapped, and nobody asks it of them.
        if node.grows {
            node.drop_cache();
        }
    }

    fn map(&self) -> io::Result<Map> {
        let node = locked(&self.node);
        assert!(
            !node.grows,
            "a map of a file that grows would not grow with it"
        );
        Ok(Map::memory(node.live.clone()))
    }
}

/// Flushes of a [`Memory`]: over at the next poll, or when told so.
#[derive(Debug)]
pub struct MemoryFlusher {
    world: Arc<Mutex<World>>,
    files: Vec<MemoryFile>,
    sync: bool,
    running: bool,
    failed: Option<FlushError>,
}

impl Flusher for MemoryFlusher {
    type File = MemoryFile;

    fn start(&mut self, files: &mut Vec<MemoryFile>) -> io::Result<()> {
        assert!(!self.running, "a flush was started while one runs");
        self.running = true;
        std::mem::swap(&mut self.files, files);
        if !self.sync {
            self.files.clear();
            return Ok(());
        }
        let mut world = locked(&self.world);
        world.counts.flushes += 1;
        for file in &self.files {
            let mut node = locked(&file.node);
            match world.step() {
                Ok(()) => node.take_off(),
                Err(source) => {
                    if !world.power_off {
                        node.dirty.clear();
                    }
                    self.failed = Some(FlushError {
                        path: file.path.to_path_buf(),
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    fn poll(&mut self, wait: bool) -> Option<Result<(), FlushError>> {
        let world = locked(&self.world);
        if !self.running || (world.hold_flushes && !wait) {
            return None;
        }
        self.running = false;
        for file in self.files.drain(..) {
            if !world.power_off {
                locked(&file.node).land();
            }
        }
        Some(match self.failed.take() {
            Some(failed) => Err(failed),
            None if world.power_off && self.sync => Err(FlushError {
                path: PathBuf::from("memory:"),
                source: io::Error::other("the power is off"),
            }),
            None => Ok(()),
        })
    }

    fn way(&self) -> &'static str {
        if self.sync { "memory" } else { "none" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(memory: &Memory, name: &str) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1024];
        memory
            .open(name)
            .ok()?
            .read_at(0, &mut bytes)
            .expect("1024 bytes are there");
        Some(bytes)
    }

    #[test]
    fn what_was_not_flushed_is_lost_sector_by_sector() {
        let memory = Memory::new(1);
        let file = memory.create("f", 1024).expect("created");
        memory.sync_dir("").expect("synced");
        file.write_at(0, &[1; 1024]).expect("written");
        file.sync().expect("synced");
        file.write_at(0, &[2; 1024]).expect("written");
        let mut seen = BTreeSet::new();
        for seed in 0..64 {
            let left = content(&memory.power_cut(Loss::Random(seed)), "f").expect("it is there");
            assert!(
                left.chunks(SECTOR)
                    .all(|sector| sector.iter().all(|b| b == &sector[0]))
            );
            seen.insert((left[0], left[SECTOR]));
        }
        assert_eq!(Vec::from_iter(seen), [(1, 1), (1, 2), (2, 1), (2, 2)]);
        assert_eq!(
            content(&memory.power_cut(Loss::All), "f"),
            Some(vec![1; 1024])
        );
        assert_eq!(
            content(&memory.power_cut(Loss::Nothing), "f"),
            Some(vec![2; 1024])
        );
    }

    #[test]
    fn a_name_is_durable_after_the_sync_of_its_folder() {
        let memory = Memory::new(1);
        memory
            .create("a/f", 1024)
            .expect("created")
            .sync()
            .expect("synced");
        assert_eq!(content(&memory.power_cut(Loss::All), "a/f"), None);
        memory.sync_dir("b").expect("synced");
        assert_eq!(content(&memory.power_cut(Loss::All), "a/f"), None);
        memory.sync_dir("a").expect("synced");
        assert!(content(&memory.power_cut(Loss::All), "a/f").is_some());
        memory.rename("a/f", "a/g").expect("renamed");
        assert!(content(&memory.power_cut(Loss::All), "a/f").is_some());
        assert!(content(&memory.power_cut(Loss::Nothing), "a/g").is_some());
    }

    #[test]
    fn a_failed_flush_loses_the_data_and_the_next_one_does_not_notice() {
        let memory = Memory::new(1);
        let file = memory.create("f", 1024).expect("created");
        memory.sync_dir("").expect("synced");
        file.write_at(0, &[1; 1024]).expect("written");
        memory.fail_at(memory.steps(), Fault::Io);
        assert!(file.sync().is_err());
        file.sync().expect("nothing is dirty any more");
        assert_eq!(
            content(&memory.power_cut(Loss::Nothing), "f"),
            Some(vec![0; 1024])
        );
    }

    #[test]
    fn a_held_flush_covers_what_was_written_before_it() {
        let memory = Memory::new(1);
        let file = memory.create("f", 1024).expect("created");
        memory.sync_dir("").expect("synced");
        let options = FlushOptions {
            sync: true,
            ..FlushOptions::default()
        };
        let mut flusher = memory.flusher(&options).expect("a flusher");
        memory.hold_flushes(true);
        file.write_at(0, &[1; 512]).expect("written");
        flusher.start(&mut vec![file.clone()]).expect("started");
        file.write_at(512, &[2; 512]).expect("written");
        assert!(flusher.poll(false).is_none());
        assert_eq!(
            content(&memory.power_cut(Loss::All), "f"),
            Some(vec![0; 1024])
        );
        memory.hold_flushes(false);
        flusher.poll(false).expect("over").expect("flushed");
        let left = content(&memory.power_cut(Loss::All), "f").expect("it is there");
        assert_eq!((left[0], left[512]), (1, 0));
    }

    #[test]
    fn a_growth_that_was_not_flushed_is_lost_or_there_in_part() {
        let memory = Memory::new(1);
        let file = memory.create_empty("f").expect("created");
        memory.sync_dir("").expect("synced");
        file.write_at(0, &[1; 700]).expect("written");
        file.sync().expect("synced");
        file.write_at(700, &[2; 1300]).expect("it grows");
        assert_eq!(file.length().expect("its length"), 2000);
        let mut lengths = BTreeSet::new();
        for seed in 0..64 {
            let left = memory.power_cut(Loss::Random(seed));
            let left = left.open("f").expect("it is there");
            let len = left.length().expect("its length") as usize;
            let mut bytes = vec![9; len];
            left.read_at(0, &mut bytes).expect("read");
            assert_eq!(bytes[..700], [1; 700]);
            for (sector, bytes) in bytes.chunks(SECTOR).enumerate().skip(1) {
                let new = &bytes[if sector == 1 { 700 - SECTOR } else { 0 }..];
                assert!(new.iter().all(|b| *b == 2) || new.iter().all(|b| *b == 0));
            }
            lengths.insert(len);
        }
        assert!(lengths.contains(&2000) && lengths.len() > 10, "{lengths:?}");
        let shortest = memory.power_cut(Loss::All).open("f").expect("it is there");
        assert_eq!(shortest.length().expect("its length"), 700);
        let whole = memory.power_cut(Loss::Nothing).open("f").expect("there");
        assert_eq!(whole.length().expect("its length"), 2000);
    }

    #[test]
    fn after_a_failed_flush_memory_shows_what_the_medium_lacks_until_it_lets_go() {
        let memory = Memory::new(1);
        let file = memory.create_empty("f").expect("created");
        file.write_at(0, &[1; 600]).expect("written");
        file.sync().expect("synced");
        file.write_at(600, &[2; 600]).expect("written");
        memory.fail_at(memory.steps(), Fault::Io);
        file.sync().expect_err("the device answers EIO");
        file.write_at(1200, &[3; 300]).expect("written");
        let mut bytes = [0; 1500];
        file.read_at(0, &mut bytes).expect("read");
        assert_eq!(bytes[600..1200], [2; 600]);
        file.sync().expect("nothing is wrong any more");
        file.drop_cache();
        file.read_at(0, &mut bytes).expect("read");
        assert_eq!((bytes[..600].to_vec(), bytes[600]), (vec![1; 600], 0));
        assert_eq!(bytes[1200..], [3; 300]);
    }

    #[test]
    fn a_full_disk_refuses_new_files_and_growth() {
        let memory = Memory::new(1);
        memory.set_capacity(Some(2048));
        let file = memory.create("f", 2048).expect("it fits");
        let full = memory.create("g", 1).expect_err("full");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        file.write_at(0, &[1; 2048])
            .expect("what was allocated can be written");
        let grows = memory.create_empty("h").expect("it takes nothing");
        let full = grows.write_at(0, &[1; 10]).expect_err("full");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(grows.length().expect("its length"), 0);
    }
}
