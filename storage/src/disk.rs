//! Real files: positioned writes by system call, maps for reading, flock, fsync.
//!
//! A write goes into the page cache (about 4 µs); what makes it durable is in `flush.rs` and
//! `uring.rs`.

use std::fs::{self, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, IoSlice, Read, Write};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FlockOperation, flock};
#[cfg(target_os = "linux")]
use rustix::fs::{Mode, OFlags, fcntl_getfl};
use rustix::io::Errno;

use crate::descriptor::{Held, Reserve};
#[cfg(target_os = "linux")]
use crate::file::ALIGNED;
use crate::file::{Dir, File, FileId, FlushOptions, LockError, Map};
use crate::flush::DiskFlusher;

/// How much is written between two syncs while a new file is filled with zeros. Small enough that
/// the flush of a running log never queues behind a whole segment.
const ZERO_CHUNK: usize = 1 << 20;

/// How often a call that signals interrupt is made again at the most: more in a row are no chance, but a fault.
const MOST_INTERRUPTIONS: usize = 1000;

/// Makes a call again that a signal interrupted before it had done anything (`docs/operating.md` has the policy for all calls).
/// The standard library does so itself for those that it makes, flushes among them.
pub(crate) fn uninterrupted<T>(
    mut call: impl FnMut() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    for _ in 0..MOST_INTERRUPTIONS {
        match call() {
            Err(Errno::INTR) => {}
            outcome => return outcome,
        }
    }
    call()
}

/// Allocates the space of a new file. Where the call does not come to an end, the zeros that are written next allocate as well:
/// a timer whose signals come faster than a large allocation is done would interrupt it every time.
#[cfg(target_os = "linux")]
fn allocate(call: impl FnMut() -> rustix::io::Result<()>) -> io::Result<()> {
    match uninterrupted(call) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// A directory of a file system.
#[derive(Clone, Debug)]
pub struct Disk {
    root: Arc<Path>,
    /// For everything that is opened here, from the moment on at which the directory is locked.
    reserve: Arc<Reserve>,
    /// The name and the identity of the lock file, once it is locked.
    locked: Arc<OnceLock<(String, FileId)>>,
}

impl Disk {
    /// The directory `root`. It is made when the log is opened.
    pub fn new(root: impl Into<PathBuf>) -> Disk {
        Disk {
            root: root.into().into(),
            reserve: Arc::default(),
            locked: Arc::default(),
        }
    }

    fn open_with(&self, path: PathBuf, options: &OpenOptions) -> io::Result<DiskFile> {
        let file = self.reserve.open(|| options.open(&path))?;
        Ok(DiskFile::of(file, path, Some(self.reserve.clone())))
    }

    /// A directory, open to be flushed.
    fn open_dir(&self, path: &Path) -> io::Result<Held> {
        let dir = self.reserve.open(|| fs::File::open(path))?;
        Ok(Held::new(dir, Some(self.reserve.clone())))
    }
}

impl FileId {
    fn of(metadata: &fs::Metadata) -> FileId {
        FileId {
            device: metadata.dev(),
            number: metadata.ino(),
        }
    }
}

/// An open file.
#[derive(Clone, Debug)]
pub struct DiskFile {
    pub(crate) file: Arc<Held>,
    pub(crate) path: Arc<Path>,
    /// Once it is asked for, see [`DiskFile::direct`].
    #[cfg(target_os = "linux")]
    direct: Arc<OnceLock<Option<Held>>>,
    #[cfg(target_os = "linux")]
    reserve: Option<Arc<Reserve>>,
}

/// A lock that is held while this lives. The system lets go of it when the process ends, however.
#[derive(Debug)]
pub struct DiskLock {
    file: fs::File,
}

impl Drop for DiskLock {
    fn drop(&mut self) {
        // Closing is not enough: a child that was forked and has not called exec yet holds a copy of
        // the descriptor, and with it the lock. Should this fail, closing unlocks a moment later.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl Dir for Disk {
    type File = DiskFile;
    type Flusher = DiskFlusher;
    type Lock = DiskLock;

    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() {
            self.root.to_path_buf()
        } else {
            self.root.join(name)
        }
    }

    fn create_folder(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        if path.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&path)?;
        // The new name must survive too; deeper parents are the embedder's.
        match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => fs::File::open(".")?.sync_all(),
            Some(parent) => fs::File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    fn create(&self, name: &str, len: u64) -> io::Result<DiskFile> {
        let path = self.path(name);
        let mut open = OpenOptions::new();
        let open = open.read(true).write(true).create(true).truncate(true);
        let made = self.open_with(path, open)?;
        let file = &made.file;
        // Space for all of it first: a full disk shows here, before anything is written.
        #[cfg(target_os = "linux")]
        allocate(|| {
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&**file, flags, 0, len)
        })?;
        // Allocated but never written extents make every later flush a journal commit, so write them.
        let zeros = vec![0; ZERO_CHUNK.min(len as usize)];
        let mut at = 0;
        while at < len {
            let n = zeros.len().min((len - at) as usize);
            file.write_all_at(&zeros[..n], at)?;
            at += n as u64;
            if at < len {
                file.sync_data()?;
            }
        }
        Ok(made)
    }

    fn create_empty(&self, name: &str) -> io::Result<DiskFile> {
        let path = self.path(name);
        let mut open = OpenOptions::new();
        let open = open.read(true).write(true).create(true).truncate(true);
        self.open_with(path, open)
    }

    fn open(&self, name: &str) -> io::Result<DiskFile> {
        let path = self.path(name);
        self.open_with(path, OpenOptions::new().read(true).write(true))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let path = self.path(folder);
        let entries = match self.reserve.open(|| fs::read_dir(&path)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        self.reserve.fill();
        Ok(names)
    }

    fn sync_dir(&self, folder: &str) -> io::Result<()> {
        self.open_dir(&self.path(folder))?.sync_all()
    }

    fn lock(&self, name: &str) -> Result<DiskLock, LockError> {
        let mut open = OpenOptions::new();
        let open = open.read(true).write(true).create(true).truncate(false);
        let mut file = open.open(self.path(name)).map_err(LockError::Io)?;
        match uninterrupted(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => {}
            Err(e) if e == Errno::WOULDBLOCK => {
                let mut pid = String::new();
                // The pid is a courtesy of the message; without it the answer is the same.
                let _ = file.take(32).read_to_string(&mut pid);
                return Err(LockError::Held(pid.trim().parse().ok()));
            }
            Err(e) => return Err(LockError::Io(e.into())),
        }
        file.set_len(0).map_err(LockError::Io)?;
        writeln!(file, "{}", std::process::id()).map_err(LockError::Io)?;
        let id = FileId::of(&file.metadata().map_err(LockError::Io)?);
        let _ = self.locked.set((name.to_owned(), id));
        self.reserve.begin(&self.root);
        Ok(DiskLock { file })
    }

    fn check_place(&self) -> io::Result<()> {
        let Some((name, id)) = self.locked.get() else {
            return Ok(());
        };
        let gone = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::StaleNetworkFileHandle => Err(error),
            _ => Ok(()),
        };
        match fs::metadata(self.path(name)) {
            Ok(found) if FileId::of(&found) != *id => {
                let detail = "another directory, or another file system, has taken its place";
                return Err(io::Error::other(detail));
            }
            Ok(_) => {}
            Err(error) => return gone(error),
        }
        fs::metadata(self.path("log")).map(drop).or_else(gone)
    }

    fn flusher(&self, options: &FlushOptions) -> io::Result<DiskFlusher> {
        DiskFlusher::start(options)
    }

    fn random(&self) -> u64 {
        // The standard library takes the keys of its hasher from the system's random source.
        std::hash::RandomState::new().build_hasher().finish()
    }

    const BACKGROUND: bool = true;
}

#[cfg(all(test, target_os = "linux", feature = "io-uring"))]
impl DiskFile {
    /// Any file under any name, to see what the flushers make of it.
    pub(crate) fn for_test(file: fs::File, name: &str) -> DiskFile {
        DiskFile::new(file, Path::new(name))
    }
}

impl DiskFile {
    pub(crate) fn new(file: fs::File, path: impl Into<Arc<Path>>) -> DiskFile {
        DiskFile::of(file, path, None)
    }

    fn of(file: fs::File, path: impl Into<Arc<Path>>, reserve: Option<Arc<Reserve>>) -> DiskFile {
        DiskFile {
            file: Arc::new(Held::new(file, reserve.clone())),
            path: path.into(),
            #[cfg(target_os = "linux")]
            direct: Arc::default(),
            #[cfg(target_os = "linux")]
            reserve,
        }
    }
}

#[cfg(target_os = "linux")]
impl DiskFile {
    /// The same file, opened once more for what goes past the page cache. `None`: its file system has no such way.
    pub(crate) fn direct(&self) -> Option<&fs::File> {
        let open = || {
            let how = fcntl_getfl(&*self.file).ok()? & OFlags::RWMODE;
            // By this name it is the same file, whatever its own name is by now.
            let same = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let open = || {
                let how = how | OFlags::DIRECT | OFlags::CLOEXEC;
                let file = uninterrupted(|| rustix::fs::open(&same, how, Mode::empty()))?;
                Ok(file.into())
            };
            let file = match &self.reserve {
                Some(reserve) => reserve.open(open),
                None => open(),
            };
            Some(Held::new(file.ok()?, self.reserve.clone()))
        };
        self.direct.get_or_init(open).as_deref()
    }

    /// Moves bytes past the page cache as far as they lie in whole pages, `len` of them that begin at the address `begin`:
    /// `call` gets how many are moved already, and how many may be. Returns how many were moved in all; the rest, and
    /// everything where there is no such way, is left.
    fn past_cache(
        &self,
        offset: u64,
        (begin, len): (usize, usize),
        mut call: impl FnMut(&fs::File, usize, usize) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        let whole = len - len % ALIGNED;
        let is_aligned = begin.is_multiple_of(ALIGNED) && offset.is_multiple_of(ALIGNED as u64);
        if !is_aligned || whole == 0 {
            return Ok(0);
        }
        let Some(file) = self.direct() else {
            return Ok(0);
        };
        let mut done = 0;
        // What ends within a page is the end of the file.
        while done < whole && done.is_multiple_of(ALIGNED) {
            match call(file, done, whole) {
                // The medium wants more than pages, or the file ends here.
                Err(Errno::INVAL) | Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(done)
    }
}

impl File for DiskFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn id(&self) -> io::Result<FileId> {
        Ok(FileId::of(&self.file.metadata()?))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    #[cfg(target_os = "linux")]
    fn write_parts_at(&self, mut offset: u64, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        // Skips empty parts, so that a result of 0 means that the system takes no more.
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match rustix::io::pwritev(&*self.file, parts, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    IoSlice::advance_slices(&mut parts, n);
                    offset += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn write_parts_at(&self, mut offset: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        for part in parts {
            self.file.write_all_at(part, offset)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    #[cfg(target_os = "linux")]
    fn write_past_cache(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let place = (bytes.as_ptr().addr(), bytes.len());
        let done = self.past_cache(offset, place, |file, from, to| {
            rustix::io::pwrite(file, &bytes[from..to], offset + from as u64)
        })?;
        self.write_at(offset + done as u64, &bytes[done..])
    }

    #[cfg(target_os = "linux")]
    fn read_past_cache(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let place = (out.as_ptr().addr(), out.len());
        let mut done = self.past_cache(offset, place, |file, from, to| {
            rustix::io::pread(file, &mut out[from..to], offset + from as u64)
        })?;
        while done < out.len() {
            match self.file.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn give_back(&self, from: u64) -> io::Result<()> {
        self.file.set_len(from)?;
        // A journal passes the blocks on with its next commit: part by part, too.
        self.file.sync_data()
    }

    #[cfg(target_os = "linux")]
    fn drop_cache(&self) {
        // Advice: where it is refused, what is read next may come from memory.
        let _ = rustix::fs::fadvise(&*self.file, 0, None, rustix::fs::Advice::DontNeed);
    }

    #[cfg(target_os = "linux")]
    fn will_need(&self) {
        // Advice, too.
        let _ = rustix::fs::fadvise(&*self.file, 0, None, rustix::fs::Advice::WillNeed);
    }

    fn map(&self) -> io::Result<Map> {
        // SAFETY: the map is read-only, and the file is not cut while it is mapped: only this process
        // writes it (the directory is locked), it writes in place, and segments keep their length.
        // Which bytes may be read while others are written is the contract of `Map`; an operator who
        // cuts the file by hand breaks the promise of the lock.
        let map = unsafe { memmap2::Mmap::map(&*self.file) }?;
        Ok(Map::file(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_is_allocated_and_zero() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Disk::new(dir.path());
        let len = 3 * ZERO_CHUNK as u64 / 2;
        let file = disk.create("f", len).expect("created");
        assert_eq!(file.length().expect("length"), len);
        assert!(
            file.map()
                .expect("map")
                .slice(0..len as usize)
                .iter()
                .all(|&b| b == 0)
        );
        assert!(
            fs::metadata(dir.path().join("f"))
                .expect("metadata")
                .blocks()
                * 512
                >= len
        );
    }

    #[test]
    fn parts_land_one_behind_the_other_and_show_in_the_map() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = Disk::new(dir.path()).create("f", 8192).expect("created");
        let map = file.map().expect("map");
        let parts = &mut [
            IoSlice::new(b""),
            IoSlice::new(b"abc"),
            IoSlice::new(b"defg"),
        ];
        file.write_parts_at(4095, parts).expect("written");
        assert_eq!(map.slice(4094..4103), b"\0abcdefg\0");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn whole_pages_go_past_the_page_cache_and_the_rest_through_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = Disk::new(dir.path()).create_empty("f").expect("created");
        let Some(direct) = file.direct() else {
            eprintln!("not looked at: {} has no such way", dir.path().display());
            return;
        };
        let flags = fcntl_getfl(direct).expect("its flags");
        assert!(flags.contains(OFlags::DIRECT), "{flags:?}");
        let len = 3 * ALIGNED + 100;
        for (offset, begin, moved) in [(0, 0, 3 * ALIGNED), (1, 0, 0), (0, 1, 0)] {
            let place = (7 * ALIGNED + begin, len);
            let outcome = file.past_cache(offset, place, |_, from, to| Ok(ALIGNED.min(to - from)));
            assert_eq!(outcome.expect("nothing fails"), moved);
        }
        let cut = file.past_cache(0, (0, len), |_, from, _| Ok([ALIGNED, 10][from / ALIGNED]));
        assert_eq!(cut.expect("nothing fails"), ALIGNED + 10);
        let refused = file.past_cache(0, (0, len), |_, _, _| Err(Errno::INVAL));
        assert_eq!(refused.expect("it has another way"), 0);
        let failed = file.past_cache(0, (0, len), |_, _, _| Err(Errno::IO));
        failed.expect_err("the medium failed");
    }

    #[test]
    fn what_a_signal_interrupts_is_done_again_and_what_fails_is_not() {
        let mut calls = 0;
        let outcome = uninterrupted(|| {
            calls += 1;
            if calls < 4 {
                Err(Errno::INTR)
            } else {
                Ok(calls)
            }
        });
        assert_eq!(outcome, Ok(4));
        let mut calls = 0;
        let outcome: rustix::io::Result<()> = uninterrupted(|| {
            calls += 1;
            Err(Errno::IO)
        });
        assert_eq!((outcome, calls), (Err(Errno::IO), 1));
        let outcome: rustix::io::Result<()> = uninterrupted(|| Err(Errno::INTR));
        assert_eq!(outcome, Err(Errno::INTR), "it does not go on for ever");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_allocation_that_cannot_be_made_is_left_to_the_zeros() {
        for passing in [Errno::INTR, Errno::OPNOTSUPP, Errno::NOSYS] {
            allocate(|| Err(passing)).expect("the zeros allocate");
        }
        allocate(|| Err(Errno::NOSPC)).expect_err("there is no room");
    }

    #[test]
    fn a_second_lock_names_the_holder() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Disk::new(dir.path());
        let lock = disk.lock("LOCK").expect("free");
        match disk.lock("LOCK") {
            Err(LockError::Held(pid)) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("locked twice: {other:?}"),
        }
        drop(lock);
        disk.lock("LOCK").expect("free again");
    }
}
