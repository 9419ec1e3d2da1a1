//! How many descriptors a log needs, and what becomes of it when others have taken all that there are.

use std::fs::{self, File as SystemFile};
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;
use crate::log::MOST_OPEN;
use crate::log::handle::Handle;
use crate::medium::descriptor::is_exhausted;
use crate::medium::memory::Loss;
use crate::{Disk, MAX_DESCRIPTORS};

/// Segments of the log in `dir` that are open in this process, by their names.
fn open_segments(dir: &Path) -> Vec<String> {
    let log = dir.join("log");
    let links = fs::read_dir("/proc/self/fd").expect("a list of descriptors");
    links
        // A descriptor of another test may be closed by now.
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.starts_with(&log) && *target != log)
        .map(|target| target.display().to_string())
        .collect()
}

/// The spare segment and its file before it got its name; those that were purged and wait for their next life.
const MOST_BESIDE: usize = 2 + 5;

#[test]
fn a_long_log_has_few_files_open_and_all_of_it_can_be_read_cut_and_purged() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::new(temp.path());
    let mut log = open(&disk);
    while log.segments.len() < 60 {
        log.append_some(10, 1, 500);
        log.flush();
    }
    let found = open_segments(temp.path());
    assert!(found.len() <= MOST_OPEN + MOST_BESIDE, "{found:#?}");
    let last = log.last();
    assert_eq!(log.contents(), run(1, last, 1));
    log.close().expect("closed");

    let mut log = open(&disk);
    let found = open_segments(temp.path());
    assert!(found.len() <= MOST_OPEN + MOST_BESIDE, "{found:#?}");
    assert_eq!(log.contents(), run(1, last, 1));
    // The log goes on in a segment that had been closed.
    log.truncate_after(last / 2).expect("truncated");
    log.append_some(100, 2, 500);
    log.flush();
    assert_eq!(log.contents()[..last as usize / 2], run(1, last / 2, 1));
    log.snapshot_what_is_durable().expect("a snapshot");
    let first = log.purge_before(last / 3).expect("purged");
    assert!(first > 1);
    while log.segments.back().expect("in use").view.seq < 90 {
        log.append_some(10, 2, 500);
        log.flush();
    }
    let found = open_segments(temp.path());
    assert!(found.len() <= MOST_OPEN + MOST_BESIDE, "{found:#?}");
    log.close().expect("closed");
    assert_eq!(open(&disk).first(), first);
}

#[test]
fn what_is_not_flushed_keeps_a_bounded_number_of_files_open() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let mut log = open(&Disk::new(temp.path()));
    while log.segments.len() < 40 {
        log.append_some(10, 1, 500);
    }
    let found = open_segments(temp.path());
    assert!(found.len() <= MOST_OPEN + MOST_BESIDE, "{found:#?}");
    assert_eq!(log.durable(), 0, "nothing was reported");
    log.flush();
    assert_eq!(log.contents(), run(1, log.last(), 1));

    // The same where the power fails behind the flush.
    let memory = Memory::new(3);
    let mut log = open(&memory);
    while log.segments.len() < 40 {
        log.append_some(10, 1, 500);
    }
    log.flush();
    let last = log.last();
    let left = memory.power_cut(Loss::All);
    assert_eq!(open(&left).contents(), run(1, last, 1));
}

#[test]
fn another_file_under_the_name_of_a_closed_one_is_not_taken_for_it() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::new(temp.path());
    let mut handle = Handle::Open(disk.create("f", 4096).expect("created"));
    handle.close(&disk, "f".into());
    assert!(!handle.is_open());
    handle.get().expect("the same file");
    fs::rename(temp.path().join("f"), temp.path().join("g")).expect("renamed");
    disk.create("f", 4096).expect("created");
    let error = handle.open().expect_err("another file").to_string();
    assert!(
        error.contains("another file has taken the place"),
        "{error}"
    );
}

/// Runs this test once more, alone in a process that may have `limit` descriptors. `false`: this is that process.
fn in_a_process_with(limit: u64, test: &str) -> bool {
    const CHILD: &str = "RINGRAFT_TEST_IS_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let current = Some(limit);
        setrlimit(Resource::Nofile, Rlimit { current, maximum }).expect("a limit");
        return false;
    }
    let output = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            &format!("tests::descriptors::{test}"),
            "--nocapture",
        ])
        .env(CHILD, "1")
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("1 passed"), "{out}");
    true
}

/// Takes every descriptor that there is.
fn take_all(taken: &mut Vec<SystemFile>) {
    loop {
        match SystemFile::open("/dev/null") {
            Ok(file) => taken.push(file),
            Err(error) => return assert!(is_exhausted(&error), "{error}"),
        }
    }
}

#[test]
fn a_log_goes_on_when_others_have_taken_all_descriptors() {
    if in_a_process_with(128, "a_log_goes_on_when_others_have_taken_all_descriptors") {
        return;
    }
    let temp = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::new(temp.path());
    let mut log = open(&disk);
    let mut scrub = log.scrub();
    let mut taken = Vec::new();
    let mut purged = 1;
    while log.segments.back().expect("in use").view.seq < 80 {
        // Whatever is let go of is gone.
        take_all(&mut taken);
        log.append_some(10, 1, 500);
        take_all(&mut taken);
        log.flush();
        let (durable, first) = (log.durable(), log.first());
        if durable > first + 200 {
            log.snapshot_what_is_durable().expect("a snapshot");
            take_all(&mut taken);
            purged = log.purge_before(durable - 100).expect("purged");
        }
        let progress = scrub.step(64 << 10);
        assert_eq!(progress.bad, None);
    }
    assert!(purged > 1 && log.spare_trouble().is_none());
    assert_eq!(log.contents(), run(log.first(), log.last(), 1));
    log.vote_for(2, 3);
    log.close().expect("closed");
    let own = 128 - taken.len();
    assert!(own < MAX_DESCRIPTORS + 10, "{own} were not to be had");
}

#[test]
fn without_a_descriptor_nothing_is_found_bad_and_the_error_says_what_to_do() {
    let test = "without_a_descriptor_nothing_is_found_bad_and_the_error_says_what_to_do";
    if in_a_process_with(128, test) {
        return;
    }
    let temp = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::new(temp.path());
    let mut log = open(&disk);
    while log.segments.len() < 10 {
        log.append_some(10, 1, 500);
        log.flush();
    }
    let id = log.snapshot_what_is_durable().expect("a snapshot");
    let mut taken = Vec::new();
    // The reserve serves thieves as well, when they come by the log's own way.
    let mut held = Vec::new();
    let mut empty_reserve = || held.extend(std::iter::from_fn(|| disk.open("meta").ok()));
    take_all(&mut taken);
    empty_reserve();

    let progress = log.scrub().step(1 << 20);
    assert_eq!((progress.bad, progress.finished), (None, false));
    let error = log.snapshots().verify(id).expect_err("no descriptor");
    assert!(error.is_exhausted(), "{error}");

    // What is ready is used; then it is final, and says why.
    let error = loop {
        empty_reserve();
        let (first, last) = (log.last() + 1, log.last() + 10);
        if let Err(error) = log.append(&batch(first, last, 1, 500), first, last) {
            break error.to_string();
        }
        log.start_flush().expect("begun");
        log.wait_flush().expect("flushed");
    };
    assert!(error.contains("limit of open files, 128"), "{error}");
    assert!(error.contains("ulimit -n"), "{error}");
    drop((log, taken));
    drop(held);
    open(&disk).append_some(10, 1, 500);
}
