//! Snapshot files: what was finished is there whole, whatever fails; what is bad is found and named.

use super::*;
use crate::Disk;
use crate::Snapshots;
use crate::memory::Loss;

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
    let source = from.source(id).expect("it is there");
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
        let source = log.snapshots().source(id).expect("it is there");
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
