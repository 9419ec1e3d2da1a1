//! An open file on a disk: positioned writes by system call, reads and writes past the page cache, maps for reading.

use std::fs;
use std::io::{self, IoSlice};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
#[cfg(target_os = "linux")]
use std::sync::OnceLock;

#[cfg(target_os = "linux")]
use rustix::fs::{Mode, OFlags, fcntl_getfl};
use rustix::io::Errno;

#[cfg(target_os = "linux")]
use crate::medium::ALIGNED;
use crate::medium::descriptor::{Held, Reserve};
use crate::medium::{File, FileId, Map};

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

impl FileId {
    pub(crate) fn of(metadata: &fs::Metadata) -> FileId {
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

    pub(crate) fn of(
        file: fs::File,
        path: impl Into<Arc<Path>>,
        reserve: Option<Arc<Reserve>>,
    ) -> DiskFile {
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

    fn reclaim(&self, from: u64) -> io::Result<()> {
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
    use crate::medium::Dir;
    use crate::medium::disk::Disk;

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
}
