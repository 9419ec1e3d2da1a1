//! Snapshot files: what was finished is there whole, whatever fails; what is bad is found and named.

use super::*;
use crate::Disk;
use crate::Snapshots;
use crate::medium::memory::{Fault, Loss};

/// A log whose first 30 records are durable, and its snapshots.
fn with_log<D: Dir>(dir: &D) -> (Log<D>, Snapshots<D>) {
    let mut log = open(dir);
    log.append_some(30, 1, 100);
    log.flush();
    let snapshots = log.snapshots();
    (log, snapshots)
}

/// Sends a snapshot in pieces of this size, from where the other has it.
fn send<D: Dir, E: Dir>(
    from: &Snapshots<D>,
    to: &Snapshots<E>,
    id: SnapshotId,
    piece: usize,
) -> Result<SnapshotMeta, StorageError> {
    let mut source = from.source(id).expect("it is there");
    let mut incoming = to.receive(id)?;
    let mut bytes = vec![0; piece];
    while incoming.offset() < source.len() {
        let offset = incoming.offset();
        let read = source.read_at(offset, &mut bytes).expect("read");
        incoming.write(offset, &bytes[..read])?;
    }
    incoming.finish()
}

#[test]
fn a_snapshot_is_read_back_and_survives() {
    let memory = Memory::new(1);
    let (_log, snapshots) = with_log(&memory);
    assert_eq!((snapshots.newest(), snapshots.list()), (None, vec![]));
    // None at all, one byte, chunks that come out even and not.
    let lengths = [0, 1, 511, 512, 513, 1024, 5000];
    for (index, len) in (10..).zip(lengths) {
        let id = take(&snapshots, index, 1, len).expect("taken");
        assert_eq!(snapshots.newest(), Some(id));
        look_into(&snapshots, id).expect("sound");
        snapshots.verify(id).expect("sound");
        let left = memory.power_cut(Loss::All);
        let (log, found) = try_open(&left).expect("it opens");
        assert_eq!(found.snapshot, Some((id, snapshot_meta(index, 1))));
        assert_eq!(log.contents(), run(1, 30, 1));
        look_into(&log.snapshots(), id).expect("sound");
    }
    assert_eq!(snapshots.list().len(), lengths.len());
}

#[test]
fn the_same_state_makes_the_same_bytes_on_every_node() {
    let ids = [1, 2, 3].map(|node| {
        let memory = Memory::new(node);
        let (log, _) = Log::open(memory, small(), CLUSTER, GROUP, node).expect("opened");
        let id = take(&log.snapshots(), 20, 3, 2000).expect("taken");
        let mut source = log.snapshots().source(id).expect("it is there");
        let mut bytes = vec![0; source.len() as usize];
        assert_eq!(source.read_at(0, &mut bytes).expect("read"), bytes.len());
        (id, bytes)
    });
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[0], ids[2]);
}

#[test]
fn a_snapshot_is_sent_and_received() {
    let (here, there) = (Memory::new(1), Memory::new(2));
    let (_log, from) = with_log(&here);
    let (_other, to) = with_log(&there);
    for (index, piece) in [(5, 1), (10, 7), (15, 512), (20, 520), (25, 100_000)] {
        let id = take(&from, index, 1, 3000).expect("taken");
        let meta = send(&from, &to, id, piece).expect("received");
        assert_eq!(meta, snapshot_meta(index, 1));
        assert_eq!(to.newest(), Some(id));
        look_into(&to, id).expect("sound");
        // Once more: it is there.
        let again = to.receive(id).expect("nothing to do");
        assert_eq!(again.offset(), id.bytes);
        assert_eq!(again.finish().expect("it is there"), meta);
        let found = try_open(&there.power_cut(Loss::All)).expect("opens").1;
        assert_eq!(found.snapshot, Some((id, meta)));
    }
}

#[test]
fn a_flipped_byte_anywhere_is_found_and_named() {
    let memory = Memory::new(1);
    let (log, snapshots) = with_log(&memory);
    let id = take(&snapshots, 20, 1, 1500).expect("taken");
    let name = format!("snap/{:016}-1-{}-{:08x}.snap", 20, id.bytes, id.digest);
    drop((log, snapshots));
    for byte in 0..id.bytes {
        let left = memory.power_cut(Loss::All);
        left.damage(&name, |bytes| bytes[byte as usize] ^= 0x20)
            .expect("damaged");
        let (log, found) = try_open(&left).expect("the log reaches back to 1");
        assert_eq!((found.snapshot, log.contents()), (None, run(1, 30, 1)));
        assert_eq!(log.snapshots().newest(), None);
        let said = found.decisions.iter().map(ToString::to_string);
        let said = said
            .filter(|line| line.starts_with(&name))
            .collect::<String>();
        assert!(said.ends_with(": set aside"), "byte {byte}: {said}");
    }
    // And by whoever reads it while the log is open.
    let log = open(&memory);
    let snapshots = log.snapshots();
    for byte in 0..id.bytes {
        let flip = |bytes: &mut [u8]| bytes[byte as usize] ^= 0x20;
        memory.damage(&name, flip).expect("damaged");
        let error = snapshots.verify(id).expect_err("it is damaged");
        let StorageError::Snapshot {
            path,
            bytes: Some(bytes),
            ..
        } = &error
        else {
            panic!("byte {byte}: {error}")
        };
        assert!(path.ends_with(&name) && bytes.contains(&byte), "{error}");
        assert!(bytes.end - bytes.start <= 520, "{error}");
        look_into(&snapshots, id).expect_err("it is damaged");
        memory.damage(&name, flip).expect("as it was");
    }
    snapshots.verify(id).expect("as it was");
}

#[test]
fn real_files_hold_snapshots() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
    let disks = [Disk::new(dirs[0].path()), Disk::new(dirs[1].path())];
    let (log, from) = with_log(&disks[0]);
    let (other, to) = with_log(&disks[1]);
    let id = take(&from, 20, 1, 100_000).expect("taken");
    send(&from, &to, id, 4096).expect("received");
    for (log, snapshots, disk) in [(log, from, &disks[0]), (other, to, &disks[1])] {
        snapshots.verify(id).expect("sound");
        look_into(&snapshots, id).expect("sound");
        assert_eq!(snapshots.disk_bytes().expect("read"), id.bytes);
        log.close().expect("closed");
        drop(snapshots);
        let (_, found) = try_open(disk).expect("it opens");
        assert_eq!(found.snapshot, Some((id, snapshot_meta(20, 1))));
    }
    // The same file on both.
    let name = format!("snap/{:016}-1-{}-{:08x}.snap", 20, id.bytes, id.digest);
    let read = |dir: &tempfile::TempDir| std::fs::read(dir.path().join(&name)).expect("there");
    assert_eq!(read(&dirs[0]), read(&dirs[1]));
    let path = dirs[0].path().join(&name);
    let mut bytes = read(&dirs[0]);
    bytes[2000] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let log = open(&disks[0]);
    assert_eq!(log.snapshots().newest(), None);
    assert!(path.with_extension("bad").exists());
}

const FAULTS: [Fault; 3] = [Fault::Io, Fault::Full, Fault::PowerOff];

/// Some power cuts.
fn losses() -> impl Iterator<Item = Loss> {
    [Loss::All, Loss::Nothing]
        .into_iter()
        .chain((0..3).map(Loss::Random))
}

/// Opens what is left; the log is whole, what the folder lists is sound, and nothing unfinished is left. Gives the ids.
fn found_in(left: &Memory, story: &str) -> Vec<SnapshotId> {
    let (log, found) = try_open(left).unwrap_or_else(|e| panic!("{story}: {e}"));
    assert_eq!(log.contents(), run(1, 30, 1), "{story}");
    let ids = log.snapshots().list();
    for id in &ids {
        look_into(&log.snapshots(), *id).unwrap_or_else(|e| panic!("{story}: {e}"));
    }
    let newest = found.snapshot.map(|(id, _)| id);
    assert_eq!(newest, ids.last().copied(), "{story}");
    let names = left.list("snap").expect("listed");
    assert!(names.iter().all(|name| !name.ends_with("tmp")), "{names:?}");
    assert!(names.iter().all(|name| !name.ends_with("bad")), "{names:?}");
    ids
}

/// Whatever failed, the log goes on.
fn goes_on(log: &mut Log<Memory>) {
    assert!(log.failed().is_none());
    log.append_some(1, 1, 10);
    log.flush();
}

#[test]
fn any_step_of_taking_one_may_fail() {
    let (memory, log, first) = {
        let memory = Memory::new(1);
        let (log, snapshots) = with_log(&memory);
        let first = take(&snapshots, 10, 1, 900).expect("taken");
        (memory, log, first)
    };
    drop(log);
    for fault in FAULTS {
        let mut step = 0;
        loop {
            let memory = memory.power_cut(Loss::All);
            let mut log = open(&memory);
            let snapshots = log.snapshots();
            let begun = memory.steps();
            memory.fail_at(begun + step, fault);
            let taken = take(&snapshots, 20, 1, 46_000);
            let story = format!("{fault:?} at step {step}");
            let newest = *taken.as_ref().unwrap_or(&first);
            assert_eq!(snapshots.newest(), Some(newest), "{story}");
            for loss in losses() {
                let ids = found_in(&memory.power_cut(loss), &story);
                assert!(ids.contains(&first) && ids.contains(&newest), "{story}");
                assert!(ids.len() <= 2, "{story}");
            }
            if taken.is_ok() && memory.steps() <= begun + step {
                break;
            }
            if fault != Fault::PowerOff {
                let names = memory.list("snap").expect("listed");
                assert_eq!(names.len(), 1 + usize::from(taken.is_ok()), "{names:?}");
                goes_on(&mut log);
                let again = take(&snapshots, 20, 1, 46_000).expect("the medium is well again");
                assert_eq!(snapshots.list(), [first, again]);
                assert!(taken.is_err() || again == newest);
            }
            step += 1;
        }
        // Header, chunks, the wait for the first of them, footer, flush, rename, folder.
        assert!(step > 70, "only {step} steps");
    }
}

#[test]
fn a_full_disk_costs_the_snapshot_only() {
    let memory = Memory::new(1);
    let (mut log, snapshots) = with_log(&memory);
    let id = take(&snapshots, 10, 1, 900).expect("taken");
    let used = snapshots.disk_bytes().expect("read");
    assert_eq!(used, id.bytes);
    let files: u64 = ["", "log"]
        .iter()
        .flat_map(|folder| {
            let names = memory.list(folder).expect("listed");
            names.into_iter().map(move |name| match *folder {
                "" => name,
                folder => format!("{folder}/{name}"),
            })
        })
        .map(|name| {
            let file = memory.open(&name).expect("there");
            crate::medium::File::length(&file).expect("its length")
        })
        .sum();
    memory.set_capacity(Some(files + used + 3000));
    let error = take(&snapshots, 20, 1, 6000).expect_err("no room");
    assert!(error.to_string().contains("free some space"), "{error}");
    // Its bytes are free again.
    assert_eq!(snapshots.disk_bytes().expect("read"), used);
    take(&snapshots, 20, 1, 1500).expect("this one has room");
    goes_on(&mut log);
    // By `io::Write` it is the same error, and stays.
    let mut file = snapshots.create(&snapshot_meta(25, 1)).expect("begun");
    let error = file.write_all(&[7; 6000]).expect_err("no room");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    memory.set_capacity(None);
    file.write_all(&[7; 6000]).expect_err("it failed before");
    file.finish().expect_err("it failed before");
    assert_eq!(snapshots.newest().map(|id| id.index), Some(20));
}

#[test]
fn one_that_is_dropped_unfinished_leaves_nothing() {
    let memory = Memory::new(1);
    let (_log, snapshots) = with_log(&memory);
    let mut file = snapshots.create(&snapshot_meta(5, 1)).expect("begun");
    let other = snapshots.create(&snapshot_meta(5, 1)).expect("begun");
    file.write_all(&[1; 5000]).expect("written");
    assert!(snapshots.disk_bytes().expect("read") > 4096);
    drop(file);
    other.finish().expect("an empty state");
    assert_eq!(memory.list("snap").expect("listed").len(), 1);
    // The members have a limit.
    let meta = SnapshotMeta {
        members: vec![1; (64 << 10) + 1],
        ..snapshot_meta(6, 1)
    };
    let error = snapshots.create(&meta).expect_err("too long").to_string();
    assert!(error.contains("at most 65536"), "{error}");
    let meta = SnapshotMeta {
        members: vec![1; 64 << 10],
        ..meta
    };
    let id = snapshots.create(&meta).expect("begun").finish();
    let id = id.expect("finished");
    assert_eq!(*snapshots.open(id).expect("sound").meta(), meta);
}

#[test]
fn any_step_of_receiving_one_may_fail_and_it_goes_on() {
    let sender = Memory::new(9);
    let (_sender, from) = with_log(&sender);
    let id = take(&from, 20, 1, 46_000).expect("taken");
    let receiver = Memory::new(1);
    let (log, snapshots) = with_log(&receiver);
    let first = take(&snapshots, 10, 1, 900).expect("taken");
    drop((log, snapshots));
    for fault in FAULTS {
        let mut step = 0;
        loop {
            let memory = receiver.power_cut(Loss::All);
            let mut log = open(&memory);
            let to = log.snapshots();
            let begun = memory.steps();
            memory.fail_at(begun + step, fault);
            let received = send(&from, &to, id, 300);
            let story = format!("{fault:?} at step {step}");
            let newest = if received.is_ok() { id } else { first };
            assert_eq!(to.newest(), Some(newest), "{story}");
            for loss in losses() {
                let left = memory.power_cut(loss);
                let ids = found_in(&left, &story);
                assert!(ids.contains(&first) && ids.contains(&newest), "{story}");
                // Another leader that has it goes on from where it was left.
                let log = open(&left);
                let meta = send(&from, &log.snapshots(), id, 700);
                assert_eq!(meta.expect("received"), snapshot_meta(20, 1));
                look_into(&log.snapshots(), id).expect("sound");
                drop(log);
                let ids = found_in(&left.power_cut(Loss::All), &story);
                assert_eq!(ids, [first, id], "{story}");
            }
            if received.is_ok() && memory.steps() <= begun + step {
                break;
            }
            if fault != Fault::PowerOff {
                goes_on(&mut log);
                send(&from, &to, id, 100).expect("the medium is well again");
                // What a flush that failed has lost was sent once more.
                let (left, _) = try_open(&memory.power_cut(Loss::All)).expect("opens");
                look_into(&left.snapshots(), id).expect("sound");
                assert_eq!(left.snapshots().list(), [first, id], "{story}");
            }
            step += 1;
        }
        assert!(step > 70, "only {step} steps");
    }
}

#[test]
fn what_was_received_is_not_sent_again() {
    let sender = Memory::new(9);
    let (_sender, from) = with_log(&sender);
    let id = take(&from, 20, 1, 1_500_000).expect("taken");
    let mut source = from.source(id).expect("it is there");
    let mut bytes = vec![0; source.len() as usize];
    source.read_at(0, &mut bytes).expect("read");

    let mut memory = Memory::new(1);
    let (mut log, _) = with_log(&memory);
    let (mut restarts, mut before) = (0, 0);
    loop {
        let mut incoming = log.snapshots().receive(id).expect("begun");
        let from = incoming.offset();
        // Flushed every 512 chunks, and in whole pieces: that and two pieces may be lost.
        assert!(from + 514 * 520 >= before, "{from} of {before}");
        let to = (from + 300_000).min(id.bytes);
        let piece = &bytes[from as usize..to as usize];
        incoming.write(from, piece).expect("written");
        assert_eq!(incoming.offset(), to);
        before = to;
        if to == id.bytes {
            incoming.finish().expect("all of it");
            break;
        }
        drop(incoming);
        drop(log);
        memory = memory.power_cut(match restarts {
            0 => Loss::All,
            _ => Loss::Random(restarts),
        });
        log = open(&memory);
        restarts += 1;
        assert!(restarts < 20);
    }
    assert!(restarts >= 4);
    look_into(&log.snapshots(), id).expect("sound");
}

#[test]
fn a_bad_piece_is_refused_and_comes_again() {
    let sender = Memory::new(9);
    let (_sender, from) = with_log(&sender);
    let id = take(&from, 20, 1, 2000).expect("taken");
    let mut source = from.source(id).expect("it is there");
    let mut bytes = vec![0; source.len() as usize];
    source.read_at(0, &mut bytes).expect("read");
    let memory = Memory::new(1);
    let (mut log, to) = with_log(&memory);
    for byte in 0..id.bytes {
        let mut incoming = to.receive(id).expect("begun");
        let mut flipped = bytes.clone();
        flipped[byte as usize] ^= 0x40;
        let error = incoming.write(0, &flipped).expect_err("it is damaged");
        let StorageError::Snapshot { bytes: bad, .. } = &error else {
            panic!("byte {byte}: {error}")
        };
        let bad = bad.clone().expect("a place");
        assert!(bad.contains(&byte), "byte {byte}: {error}");
        let offset = incoming.offset();
        assert!(offset <= byte && byte - offset < 520, "{offset} of {byte}");
        let rest = &bytes[offset as usize..];
        // Byte by byte now and then, so that a piece comes in parts.
        if byte % 50 == 0 {
            for (at, byte) in (offset..).zip(rest) {
                incoming.write(at, &[*byte]).expect("sound");
            }
        } else {
            incoming.write(offset, rest).expect("sound");
        }
        if byte % 2 == 0 {
            incoming.discard().expect("removed");
        } else {
            drop(incoming);
            let whole = to.receive(id).expect("it was left whole");
            assert_eq!(whole.offset(), id.bytes);
            whole.discard().expect("removed");
        }
    }
    goes_on(&mut log);
    assert_eq!(memory.list("snap").expect("listed"), Vec::<String>::new());
}

#[test]
fn what_does_not_belong_is_refused() {
    let sender = Memory::new(9);
    let (_sender, from) = with_log(&sender);
    let id = take(&from, 20, 1, 2000).expect("taken");
    let mut source = from.source(id).expect("it is there");
    let mut bytes = vec![0; source.len() as usize];
    source.read_at(0, &mut bytes).expect("read");
    let memory = Memory::new(1);
    let (_log, to) = with_log(&memory);

    let mut incoming = to.receive(id).expect("begun");
    let error = to.receive(id).expect_err("by somebody else").to_string();
    assert!(error.contains("being received already"), "{error}");
    incoming.write(0, &bytes[..700]).expect("sound");
    for (offset, len) in [
        (0, 10),
        (701, 10),
        (699, 10),
        (u64::MAX, 10),
        (700, 1 << 20),
    ] {
        let error = incoming.write(offset, &vec![0; len]).expect_err("no");
        assert!(error.to_string().contains("but 700 of"), "{error}");
    }
    assert_eq!(incoming.offset(), 700);
    let error = incoming.finish().expect_err("not whole").to_string();
    assert!(
        error.contains(&format!("700 of {} bytes", id.bytes)),
        "{error}"
    );

    // Sound in all its pieces, and not what was announced: nothing of it is kept.
    let other = SnapshotId { digest: 1, ..id };
    let mut incoming = to.receive(other).expect("begun");
    let error = incoming.write(0, &bytes).expect_err("another").to_string();
    assert!(error.contains("00000001 in its name"), "{error}");
    assert_eq!(incoming.offset(), 0);
    incoming.discard().expect("removed");
    for other in [
        SnapshotId { index: 21, ..id },
        SnapshotId { term: 2, ..id },
        SnapshotId {
            bytes: id.bytes + 1,
            ..id
        },
        SnapshotId {
            bytes: id.bytes - 1,
            ..id
        },
        SnapshotId { bytes: 600, ..id },
        SnapshotId { bytes: 100, ..id },
        SnapshotId {
            bytes: u64::MAX,
            ..id
        },
    ] {
        let mut incoming = to.receive(other).expect("begun");
        let len = bytes.len().min(other.bytes as usize);
        // Where it would be longer, the last chunk is still awaited.
        if other.bytes <= id.bytes {
            let error = incoming.write(0, &bytes[..len]).expect_err("another");
            assert!(matches!(error, StorageError::Snapshot { .. }), "{error}");
        }
        let error = incoming.finish().expect_err("not whole").to_string();
        assert!(error.contains("bytes are here"), "{error}");
    }
    let error = to.receive(SnapshotId { bytes: 95, ..id });
    let error = error.expect_err("too short").to_string();
    assert!(error.contains("as short as 95 bytes"), "{error}");

    // Of another cluster.
    let stranger = Memory::new(5);
    let (log, _) = Log::open(stranger, small(), CLUSTER + 1, GROUP, NODE).expect("opened");
    let mut incoming = log.snapshots().receive(id).expect("begun");
    let error = incoming.write(0, &bytes).expect_err("a stranger");
    assert!(
        matches!(
            error,
            StorageError::Foreign {
                what: "cluster",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn two_are_kept_and_a_source_can_be_read_to_its_end() {
    let memory = Memory::new(1);
    let (_log, snapshots) = with_log(&memory);
    assert_eq!(
        snapshots.prune(&mut Reclaim::default()).expect("nothing"),
        0
    );
    let mut ids = Vec::new();
    for index in 1..=4 {
        ids.push(take(&snapshots, index, 1, 900).expect("taken"));
        if index == 1 {
            assert_eq!(
                snapshots.prune(&mut Reclaim::default()).expect("nothing"),
                0
            );
        }
    }
    // Parts of older ones, one of them in use, and of a newer one.
    let part = |index| SnapshotId {
        index,
        term: 1,
        bytes: 4000,
        digest: 7,
    };
    drop(snapshots.receive(part(2)).expect("begun"));
    drop(snapshots.receive(part(9)).expect("begun"));
    let in_use = snapshots.receive(part(3)).expect("begun");
    let mut source = snapshots.source(ids[0]).expect("it is there");
    let mut reader = snapshots.open(ids[1]).expect("it is there");
    assert_eq!(snapshots.prune(&mut Reclaim::default()).expect("pruned"), 3);
    assert_eq!(snapshots.list(), ids[2..]);
    let names = memory.list("snap").expect("listed");
    assert_eq!(names.iter().filter(|n| n.ends_with("part")).count(), 2);
    drop(in_use);
    assert_eq!(snapshots.prune(&mut Reclaim::default()).expect("pruned"), 3);
    assert_eq!(memory.list("snap").expect("listed").len(), 3);

    let mut bytes = vec![0; 10_000];
    assert_eq!(
        source.read_at(0, &mut bytes).expect("read") as u64,
        source.len()
    );
    assert_eq!(source.read_at(source.len(), &mut bytes).expect("read"), 0);
    assert_eq!(source.read_at(u64::MAX, &mut bytes).expect("read"), 0);
    let mut state = Vec::new();
    reader.read_to_end(&mut state).expect("read");
    assert_eq!(state, payload(2, 1, 900));
    let error = snapshots.source(ids[0]).expect_err("pruned").to_string();
    assert!(error.contains("not there (any more)"), "{error}");
    for _ in 0..2 {
        let left = found_in(&memory.power_cut(Loss::All), "pruned");
        assert_eq!(left, ids[2..]);
    }
}

/// Long files are given back in pieces, but not one that is read still.
#[test]
fn a_long_file_in_use_is_whole_when_it_is_pruned() {
    const LONG: usize = 9 << 20;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (log, _) = Log::open(Disk::new(dir.path()), small(), CLUSTER, GROUP, NODE).expect("opened");
    let snapshots = log.snapshots();
    let oldest = take(&snapshots, 1, 1, LONG).expect("taken");
    let mut source = snapshots.source(oldest).expect("it is there");
    let mut reader = snapshots.open(oldest).expect("it is there");
    for index in 2..=3 {
        take(&snapshots, index, 1, 100).expect("taken");
    }
    let mut gone = Reclaim::default();
    assert_eq!(snapshots.prune(&mut gone).expect("pruned"), 2);
    while !gone.is_empty() {
        gone.reclaim();
    }
    assert_eq!(
        snapshots.disk_bytes().expect("read"),
        snapshots.list().iter().map(|id| id.bytes).sum()
    );
    let mut end = [0; 1000];
    let read = source.read_at(source.len() - 1000, &mut end).expect("read");
    assert_eq!(read, end.len());
    let mut state = Vec::new();
    reader.read_to_end(&mut state).expect("sound to its end");
    assert_eq!(state.len(), LONG);
}

#[test]
fn any_step_of_pruning_and_putting_aside_may_fail() {
    let memory = Memory::new(1);
    let (log, snapshots) = with_log(&memory);
    let ids: Vec<_> = (1..=5)
        .map(|index| take(&snapshots, index, 1, 900).expect("taken"))
        .collect();
    drop((log, snapshots));
    for fault in FAULTS {
        let mut step = 0;
        loop {
            let memory = memory.power_cut(Loss::All);
            let mut log = open(&memory);
            let snapshots = log.snapshots();
            let begun = memory.steps();
            memory.fail_at(begun + step, fault);
            let outcome = snapshots.prune(&mut Reclaim::default()).and_then(|floor| {
                assert_eq!(floor, 4);
                // The newest is found bad, and then the one before.
                assert_eq!(snapshots.reject(ids[4])?, Some(ids[3]));
                assert_eq!(snapshots.reject(ids[4])?, Some(ids[3]));
                assert_eq!(snapshots.reject(ids[3])?, None);
                snapshots.prune(&mut Reclaim::default())
            });
            let story = format!("{fault:?} at step {step}");
            for loss in losses() {
                let left = memory.power_cut(loss);
                let (log, found) = try_open(&left).unwrap_or_else(|e| panic!("{story}: {e}"));
                assert_eq!(log.contents(), run(1, 30, 1), "{story}");
                let left = log.snapshots().list();
                assert!(left.iter().all(|id| ids.contains(id)), "{story}");
                assert_eq!(found.snapshot.map(|(id, _)| id), left.last().copied());
                assert!(outcome.is_err() || left.is_empty(), "{story}: {left:?}");
            }
            if outcome.is_ok() && memory.steps() <= begun + step {
                let names = memory.list("snap").expect("listed");
                assert_eq!(names.len(), 1, "{names:?}");
                assert!(names[0].ends_with(".bad"));
                assert!(names[0].starts_with("0000000000000004-"), "{names:?}");
                break;
            }
            if fault != Fault::PowerOff {
                goes_on(&mut log);
                snapshots
                    .prune(&mut Reclaim::default())
                    .expect("the medium is well again");
                let kept = snapshots.list();
                assert!(kept.len() <= 2);
                for id in kept {
                    look_into(&snapshots, id).expect("sound");
                    snapshots.reject(id).expect("the medium is well again");
                }
                assert_eq!(snapshots.newest(), None);
            }
            step += 1;
        }
        assert!(step >= 8, "only {step} steps");
    }
}

/// A life with everything: what is promised, and how far it may be let go.
fn live(log: &mut Log<Memory>, promised: &mut u64) -> Result<(), StorageError> {
    let snapshots = log.snapshots();
    for round in 1..=7_u64 {
        let (first, last) = (log.last() + 1, log.last() + 9);
        log.append(&batch(first, last, round, 700), first, last)?;
        log.start_flush()?;
        log.wait_flush()?;
        *promised = log.durable();
        // Applied is less than what is durable here.
        let index = last - round % 3;
        take(&snapshots, index, round, 700 + round as usize * 100)?;
        let floor = snapshots.prune(&mut Reclaim::default())?;
        log.purge_before(floor + 1)?;
    }
    Ok(())
}

#[test]
fn no_stop_leaves_a_gap_between_snapshot_and_log() {
    let mut step = 0;
    let mut first_indexes = std::collections::BTreeSet::new();
    loop {
        let memory = Memory::new(1);
        let mut log = open(&memory);
        memory.fail_at(memory.steps() + step, Fault::PowerOff);
        let mut promised = 0;
        let outcome = live(&mut log, &mut promised);
        for seed in 0..4 {
            let left = memory.power_cut(Loss::Random(seed));
            let (log, found) = try_open(&left).unwrap_or_else(|e| panic!("step {step}: {e}"));
            assert!(found.last_index >= promised, "step {step}");
            assert_eq!(log.contents().len() as u64, log.last() + 1 - log.first());
            first_indexes.insert(found.first_index);
            let Some((newest, _)) = found.snapshot else {
                assert_eq!(found.first_index, 1);
                continue;
            };
            assert!(found.first_index <= newest.index + 1, "step {step}");
            drop(log);
            // Should it go bad, the one before and the log make up for it.
            let name = newest.file("snap");
            left.damage(&name, |bytes| bytes[seed as usize * 150] ^= 1)
                .expect("damaged");
            let (log, fallen_back) = try_open(&left).unwrap_or_else(|e| panic!("{step}: {e}"));
            assert_eq!(fallen_back.last_index, found.last_index, "step {step}");
            assert_eq!(log.contents().len() as u64, log.last() + 1 - log.first());
            let older = fallen_back.snapshot.map_or(0, |(id, _)| id.index);
            assert!(older < newest.index && log.first() <= older + 1, "{step}");
        }
        if outcome.is_ok() {
            break;
        }
        step += 1;
    }
    assert!(step > 100, "only {step} steps");
    assert!(first_indexes.len() >= 3, "{first_indexes:?}");
}

#[test]
fn a_stranger_s_snapshot_and_one_of_another_version_stop_the_start() {
    let memory = Memory::new(1);
    let (log, snapshots) = with_log(&memory);
    let id = take(&snapshots, 20, 1, 900).expect("taken");
    drop((log, snapshots));
    type Change = fn(&mut [u8]);
    let changes: [(Change, &str); 2] = [
        (|header| header[12] = 9, "format version 9"),
        (|header| header[16] ^= 1, "belongs to cluster"),
    ];
    for (change, expected) in changes {
        let left = memory.power_cut(Loss::All);
        left.damage(&id.file("snap"), |bytes| {
            change(bytes);
            let crc = crc32c::crc32c(&bytes[12..512]);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        })
        .expect("changed");
        let error = try_open(&left)
            .map(|_| ())
            .expect_err("refused")
            .to_string();
        assert!(error.contains(expected), "{error}");
        let names = left.list("snap").expect("listed");
        assert_eq!(names, [id.file("snap").replace("snap/", "")]);
    }
    // A file that is not ours is left alone; one that is shorter than its name says is none.
    let left = memory.power_cut(Loss::All);
    left.create("snap/notes", 10).expect("created");
    let short = SnapshotId { index: 25, ..id };
    left.create(&short.file("snap"), 700).expect("created");
    let (log, found) = try_open(&left).expect("it opens");
    assert_eq!(found.snapshot.map(|(id, _)| id), Some(id));
    let lines: Vec<_> = found.decisions.iter().map(ToString::to_string).collect();
    assert!(
        lines.contains(&"snap/notes: not a file of the log: kept".into()),
        "{lines:?}"
    );
    assert!(
        lines.iter().any(|l| l.contains("the file has 700 bytes")),
        "{lines:?}"
    );
    drop(log);
    // Without the identity it is somebody's all the same.
    memory.remove("identity").expect("removed");
    for name in memory.list("log").expect("listed") {
        memory.remove(&format!("log/{name}")).expect("removed");
    }
    let error = try_open(&memory).map(|_| ()).expect_err("an orphan");
    assert!(
        error.to_string().contains("`snap` holds snapshots"),
        "{error}"
    );
}

#[test]
fn the_directory_stays_locked_while_a_snapshot_is_taken() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::new(dir.path());
    let (log, snapshots) = with_log(&disk);
    let file = snapshots.create(&snapshot_meta(5, 1)).expect("begun");
    log.close().expect("closed");
    drop(snapshots);
    let error = try_open(&disk).map(|_| ()).expect_err("locked");
    assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    drop(file);
    assert_eq!(open(&disk).snapshots().newest(), None);
}

#[test]
fn real_files_are_received_in_part_and_go_on() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
    let disks = [Disk::new(dirs[0].path()), Disk::new(dirs[1].path())];
    let (_log, from) = with_log(&disks[0]);
    let (log, to) = with_log(&disks[1]);
    let id = take(&from, 20, 1, 50_000).expect("taken");
    let mut source = from.source(id).expect("it is there");
    let mut bytes = vec![0; source.len() as usize];
    source.read_at(0, &mut bytes).expect("read");
    let mut incoming = to.receive(id).expect("begun");
    incoming.write(0, &bytes[..30_000]).expect("sound");
    drop((incoming, to, log));
    // One of its bytes goes bad meanwhile.
    let part = dirs[1].path().join(id.file("part"));
    let mut there = std::fs::read(&part).expect("it was left");
    assert!(there.len() > 29_000 && there.len() <= 30_000);
    there[20_000] ^= 1;
    std::fs::write(&part, there).expect("written");
    let log = open(&disks[1]);
    let mut incoming = log.snapshots().receive(id).expect("it goes on");
    let offset = incoming.offset();
    assert!(offset <= 20_000 && offset > 19_000, "{offset}");
    incoming
        .write(offset, &bytes[offset as usize..])
        .expect("sound");
    assert_eq!(incoming.finish().expect("whole"), snapshot_meta(20, 1));
    log.snapshots().verify(id).expect("sound");
    assert_eq!(
        std::fs::read(dirs[1].path().join(id.file("snap"))).expect("there"),
        bytes
    );
}

#[test]
fn a_chunk_in_the_place_of_another_is_not_handed_out() {
    let memory = Memory::new(1);
    let (_log, snapshots) = with_log(&memory);
    let id = take(&snapshots, 20, 1, 2000).expect("taken");
    let other = take(&snapshots, 20, 1, 1990).expect("taken");
    let mut chunk = vec![0; 520];
    let mut source = snapshots.source(other).expect("it is there");
    source.read_at(512, &mut chunk).expect("read");
    // Two of one file change places; one comes from another file, where it was the same: it is the same here as well.
    let swap: fn(&mut [u8], &[u8]) = |bytes, _| {
        let (first, second) = bytes[512..].split_at_mut(520);
        first.swap_with_slice(&mut second[..520]);
    };
    let replace: fn(&mut [u8], &[u8]) = |bytes, chunk| bytes[512..][..520].copy_from_slice(chunk);
    let mut sound = vec![0; id.bytes as usize];
    let mut source = snapshots.source(id).expect("it is there");
    source.read_at(0, &mut sound).expect("read");
    for (change, bad) in [(swap, true), (replace, false)] {
        memory
            .damage(&id.file("snap"), |bytes| change(bytes, &chunk))
            .expect("changed");
        let mut reader = snapshots.open(id).expect("the header is sound");
        let read = reader.read(&mut [0; 1]);
        assert_eq!(read.is_err(), bad, "{read:?}");
        memory
            .damage(&id.file("snap"), |bytes| bytes.copy_from_slice(&sound))
            .expect("as it was");
    }
    // With another header, what it holds is no part of this one.
    let stranger = take(&snapshots, 21, 1, 2000).expect("taken");
    let mut source = snapshots.source(stranger).expect("it is there");
    source.read_at(512, &mut chunk).expect("read");
    memory
        .damage(&id.file("snap"), |bytes| replace(bytes, &chunk))
        .expect("changed");
    let mut reader = snapshots.open(id).expect("the header is sound");
    let error = reader.read(&mut [0; 1]).expect_err("of another file");
    assert!(error.to_string().contains("checksum of chunk 0"), "{error}");
}

#[test]
fn a_tool_sees_what_is_there() {
    let memory = Memory::new(1);
    let (log, snapshots) = with_log(&memory);
    let whole = take(&snapshots, 20, 1, 2000).expect("taken");
    let bad = take(&snapshots, 25, 1, 2000).expect("taken");
    let aside = take(&snapshots, 26, 1, 2000).expect("taken");
    snapshots.reject(aside).expect("renamed");
    let sender = Memory::new(2);
    let (_sender, from) = with_log(&sender);
    let coming = take(&from, 30, 1, 2000).expect("taken");
    let mut bytes = vec![0; 1600];
    let mut source = from.source(coming).expect("it is there");
    source.read_at(0, &mut bytes).expect("read");
    let mut incoming = snapshots.receive(coming).expect("begun");
    incoming.write(0, &bytes).expect("sound");
    drop(incoming);
    let _taking = snapshots.create(&snapshot_meta(30, 1)).expect("begun");
    memory
        .damage(&bad.file("snap"), |bytes| bytes[1100] ^= 1)
        .expect("damaged");
    memory.create("snap/notes", 10).expect("created");

    let before = memory.steps();
    let found = crate::snapshot::examine(&memory, Some((CLUSTER, GROUP))).expect("listed");
    assert_eq!(memory.steps(), before);
    drop(log);
    let lines: Vec<_> = found
        .iter()
        .map(|one| {
            let found = one.found.as_ref().map_or("?".into(), ToString::to_string);
            let index = one.meta.as_ref().map_or(0, |meta| meta.index);
            let end = one.file.rsplit('.').next().expect("a name");
            format!("{end} {index} {}/{} {found}", one.sound_bytes, one.bytes)
        })
        .collect();
    let (all, broken) = (whole.bytes, "snapshot, damaged: snapshot memory:/");
    let expected = [
        format!("snap 20 {all}/{all} snapshot, sound"),
        format!(
            "snap 25 1032/{all} {broken}{}, bytes 1032..1552: the checksum of chunk 1 does not match",
            bad.file("snap")
        ),
        format!("bad 26 {all}/{all} snapshot that was found damaged earlier"),
        "part 30 1552/1552 snapshot, received in part".into(),
        "snap/notes 0 0/10 ?".into(),
        "tmp 0 0/512 snapshot that was not finished".into(),
    ];
    assert_eq!(lines, expected);
    let strangers = crate::snapshot::examine(&memory, Some((CLUSTER, GROUP + 1)));
    for one in strangers.expect("listed") {
        let foreign = matches!(one.damage, Some(StorageError::Foreign { .. }));
        assert_eq!(foreign, one.id.is_some(), "{one:?}");
    }
}

#[test]
fn a_start_relies_on_no_name_that_may_get_lost() {
    // The process ends between the rename and the flush of the folder, and the next one sees the name.
    let memory = Memory::new(1);
    let mut log = open(&memory);
    log.append_some(30, 1, 1000);
    log.flush();
    let steps = {
        let other = memory.power_cut(Loss::All);
        let log = open(&other);
        let before = other.steps();
        take(&log.snapshots(), 25, 1, 100).expect("taken");
        other.steps() - before
    };
    // The flush of the folder fails, and so does the way back.
    for step in [steps - 1, steps] {
        memory.fail_at(memory.steps() + step, Fault::Io);
    }
    take(&log.snapshots(), 25, 1, 100).expect_err("the folder was not flushed");
    assert_eq!(log.snapshots().newest(), None);
    drop(log);
    let (mut log, found) = try_open(&memory).expect("it opens");
    assert_eq!(found.snapshot.map(|(id, _)| id.index), Some(25));
    // Nothing else flushes that folder before the log lets go of what the snapshot holds.
    assert!(log.purge_before(26).expect("purged") > 1);
    assert_eq!(found_index(&memory.power_cut(Loss::All)), Some(25));
}

fn found_index(left: &Memory) -> Option<u64> {
    let (_, found) = try_open(left).expect("it opens");
    found.snapshot.map(|(id, _)| id.index)
}

/// Not a test of speed: it prints what a snapshot costs here, for whoever asks (`--ignored --nocapture`).
#[test]
#[ignore = "writes half a GiB"]
fn what_a_snapshot_costs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::new(dir.path());
    let (log, _) = Log::open(disk, Options::default(), CLUSTER, GROUP, NODE).expect("opened");
    let snapshots = log.snapshots();
    let part = payload(1, 1, 1 << 20);
    let started = std::time::Instant::now();
    let mut file = snapshots.create(&snapshot_meta(5, 1)).expect("begun");
    for _ in 0..512 {
        file.write_all(&part).expect("written");
    }
    let id = file.finish().expect("finished");
    println!("taken in {:?}", started.elapsed());
    for what in ["verified", "once more"] {
        let started = std::time::Instant::now();
        snapshots.verify(id).expect("sound");
        println!("{what} in {:?}", started.elapsed());
    }
}

#[test]
fn snapshots_that_somebody_has_removed_stand_for_nothing_and_hold_up_nothing() {
    let memory = Memory::new(1);
    let (_log, snapshots) = with_log(&memory);
    let take = |index| take(&snapshots, index, 1, 900).expect("taken");
    let ids: Vec<_> = (1..=3).map(take).collect();
    for id in [ids[0], ids[2]] {
        memory.remove(&id.file("snap")).expect("it was there");
    }
    // The oldest is to go, and is gone.
    assert_eq!(snapshots.prune(&mut Reclaim::default()).expect("pruned"), 2);
    let error = snapshots.verify(ids[2]).expect_err("it is gone");
    assert!(matches!(error, StorageError::Snapshot { .. }), "{error}");
    assert_eq!(snapshots.reject(ids[2]).expect("set aside"), Some(ids[1]));
    assert_eq!(snapshots.list(), [ids[1]]);
    take(3);
    assert_eq!(snapshots.list(), [ids[1], ids[2]]);
}
