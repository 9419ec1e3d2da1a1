//! What the disk itself costs: the ways to make an append durable, one beside the other.
//!
//! Numbers of a log mean little without the number of the disk below it. [`flush_floor`] measures the
//! way the log goes; [`Probe`] does one durable append by any [`Way`], for benchmarks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use crate::medium::descriptor::Held;
use crate::medium::disk::Disk;
use crate::medium::disk_file::DiskFile;
use crate::medium::flush::DiskFlusher;
use crate::medium::{Dir, FlushBackend, FlushOptions, Flusher};

/// Length of the file that is written round and round, in bytes.
const LEN: u64 = 4 << 20;

/// What direct I/O wants offsets, lengths and buffers to be multiples of, in bytes.
const ALIGN: usize = 4096;

/// A way to make an append durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Way {
    /// Store through a shared mapping, msync.
    MapMsync,
    /// Store through a shared mapping, fdatasync.
    MapFdatasync,
    /// Buffered write, fdatasync on the same thread.
    WriteFdatasync,
    /// Buffered write, fsync by io_uring, wait for it: what the log does.
    WriteUring,
    /// Buffered write, fdatasync by another thread, wait for it: what the log does without io_uring.
    WriteThread,
    /// One buffered write that flushes: `pwritev2` with `RWF_DSYNC` (Linux).
    WriteDsync,
    /// One direct write to a file opened with `O_DIRECT | O_DSYNC` (Linux), in multiples of 4 KiB.
    DirectDsync,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 7] = [
        Way::MapMsync,
        Way::MapFdatasync,
        Way::WriteFdatasync,
        Way::WriteUring,
        Way::WriteThread,
        Way::WriteDsync,
        Way::DirectDsync,
    ];

    /// A short name.
    pub fn name(self) -> &'static str {
        match self {
            Way::MapMsync => "map+msync",
            Way::MapFdatasync => "map+fdatasync",
            Way::WriteFdatasync => "write+fdatasync",
            Way::WriteUring => "write+uring-fsync",
            Way::WriteThread => "write+thread-fsync",
            Way::WriteDsync => "pwritev2-dsync",
            Way::DirectDsync => "direct-dsync",
        }
    }
}

/// A file of its own in a directory, to append to by one [`Way`]. Removed when dropped.
#[derive(Debug)]
pub struct Probe {
    _removal: RemovedWhenDropped,
    file: Arc<Held>,
    by: By,
    /// What is written: a mapping of its own, since direct I/O wants aligned memory.
    bytes: MmapMut,
    at: u64,
}

#[derive(Debug)]
enum By {
    Map {
        map: MmapMut,
        msync: bool,
    },
    Fdatasync,
    Flusher {
        flusher: DiskFlusher,
        files: Vec<DiskFile>,
        file: DiskFile,
    },
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    Dsync,
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    Direct,
}

impl Probe {
    /// Makes the file in `dir`, allocated and written with zeros, for appends of `append_bytes`
    /// (1 to 1 MiB; rounded up to 4 KiB for [`Way::DirectDsync`]).
    ///
    /// # Errors
    /// The system does not offer this way here (`Unsupported`), or anything else it answers.
    pub fn open(dir: &Path, way: Way, append_bytes: usize) -> io::Result<Probe> {
        assert!(
            (1..=1 << 20).contains(&append_bytes),
            "appends of {append_bytes} bytes"
        );
        let disk = Disk::new(dir);
        // One name for each probe of each process, so that they do not meet.
        let name = format!("probe-{}-{:016x}", std::process::id(), disk.random());
        let removed = RemovedWhenDropped(disk.path(&name));
        let disk_file = disk.create(&name, LEN)?;
        disk_file.file.sync_all()?;
        let mut file = disk_file.file.clone();
        let by = match way {
            Way::MapMsync | Way::MapFdatasync => {
                // SAFETY: the file was made for this probe under a random name, keeps its length, and
                // nobody else writes it.
                let map = unsafe { MmapMut::map_mut(&*file) }?;
                By::Map {
                    map,
                    msync: way == Way::MapMsync,
                }
            }
            Way::WriteFdatasync => By::Fdatasync,
            Way::WriteUring | Way::WriteThread => {
                let way = if way == Way::WriteUring {
                    FlushBackend::Uring
                } else {
                    FlushBackend::Thread
                };
                let options = FlushOptions {
                    way,
                    sync: true,
                    on_complete: None,
                };
                let flusher = disk.flusher(&options)?;
                By::Flusher {
                    flusher,
                    files: Vec::with_capacity(1),
                    file: disk_file,
                }
            }
            Way::WriteDsync => {
                if !cfg!(target_os = "linux") {
                    return Err(io::ErrorKind::Unsupported.into());
                }
                By::Dsync
            }
            Way::DirectDsync => {
                file = Arc::new(Held::new(open_direct(&removed.0)?, None));
                By::Direct
            }
        };
        let len = match way {
            Way::DirectDsync => append_bytes.next_multiple_of(ALIGN),
            _ => append_bytes,
        };
        let mut bytes = MmapMut::map_anon(len)?;
        bytes.fill(0x5A);
        Ok(Probe {
            _removal: removed,
            file,
            by,
            bytes,
            at: 0,
        })
    }

    /// One append, durable when it returns.
    ///
    /// # Errors
    /// The system's answer.
    pub fn append(&mut self) -> io::Result<()> {
        let (len, at) = (self.bytes.len() as u64, self.at);
        let bytes = &self.bytes[..];
        match &mut self.by {
            By::Map { map, msync } => {
                let (at, end) = (at as usize, (at + len) as usize);
                map[at..end].copy_from_slice(bytes);
                if *msync {
                    map.flush_range(at, end - at)
                } else {
                    self.file.sync_data()
                }?;
            }
            By::Fdatasync => {
                self.file.write_all_at(bytes, at)?;
                self.file.sync_data()?;
            }
            By::Flusher {
                flusher,
                files,
                file,
            } => {
                self.file.write_all_at(bytes, at)?;
                files.push(file.clone());
                flusher.start(files)?;
                flusher
                    .poll(true)
                    .expect("it was started")
                    .map_err(|failed| failed.source)?;
            }
            By::Dsync => write_dsync(&self.file, bytes, at)?,
            By::Direct => self.file.write_all_at(bytes, at)?,
        }
        let next = at + len;
        self.at = if next + len <= LEN { next } else { 0 };
        Ok(())
    }
}

#[derive(Debug)]
struct RemovedWhenDropped(PathBuf);

impl Drop for RemovedWhenDropped {
    fn drop(&mut self) {
        // A file that stays behind harms nobody.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC;
    OpenOptions::new()
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(path: &Path) -> io::Result<File> {
    let _ = OpenOptions::new().write(true).open(path)?;
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn write_dsync(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let parts = [io::IoSlice::new(bytes)];
    let written = rustix::io::pwritev2(file, &parts, at, rustix::io::ReadWriteFlags::DSYNC)?;
    if written == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

#[cfg(not(target_os = "linux"))]
fn write_dsync(_: &File, _: &[u8], _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The median time of `count` appends of 4 KiB in `dir`, each durable by write and fdatasync: what no
/// log on this disk that waits for its flush can beat by much.
///
/// # Errors
/// The system's answer.
pub fn flush_floor(dir: impl AsRef<Path>, count: usize) -> io::Result<Duration> {
    let mut probe = Probe::open(dir.as_ref(), Way::WriteFdatasync, 4096)?;
    let mut times = Vec::with_capacity(count.max(1));
    for _ in 0..count.max(1) {
        let start = Instant::now();
        probe.append()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_appends_round_and_round_or_says_that_it_is_not_offered() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for way in Way::ALL {
            let mut probe = match Probe::open(dir.path(), way, (1 << 20) - 5) {
                Ok(probe) => probe,
                // A file system without direct I/O, a kernel without io_uring, another system.
                Err(_) if !matches!(way, Way::MapMsync | Way::WriteFdatasync) => continue,
                Err(e) => panic!("{}: {e}", way.name()),
            };
            for _ in 0..6 {
                probe
                    .append()
                    .unwrap_or_else(|e| panic!("{}: {e}", way.name()));
            }
            let file = std::fs::read_dir(dir.path())
                .expect("listed")
                .next()
                .expect("the file");
            let written = std::fs::read(file.expect("its name").path()).expect("it is there");
            assert_eq!(
                (written.len() as u64, written[0]),
                (LEN, 0x5A),
                "{}",
                way.name()
            );
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
    }

    #[test]
    fn the_floor_is_a_time() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(flush_floor(dir.path(), 5).expect("measured") > Duration::ZERO);
    }
}
