"""What a part of this project is beside: rings, and logs on disk."""

from harness import tools
from harness.peers import base

# Beyond the measured window: starting, warming up, stopping.
SPARE_SECONDS = 60


class RustRing(base.RustPeer):
    """A ring that the driver in Rust knows by name."""

    package = "rings"
    cases = base.RINGS

    def __init__(self, key, name, conditions):
        self.key, self.name, self.conditions = key, name, conditions

    def measure(self, case, seconds, processes):
        argv = [tools.rust_driver("rings"), "--ring", self.key, "--burst", case.batch, "--seconds", seconds]
        return base.last_json(processes.run(argv, seconds + SPARE_SECONDS))


RUST_RINGS = [
    RustRing("disruptor", "disruptor (Rust)", "{version}; a burst is one publish; BusySpin"),
    RustRing("crossbeam", "crossbeam-channel", "{version}; bounded; a slot at a time"),
    RustRing("rtrb", "rtrb", "{version}; a burst is one chunk; reads in chunks"),
]


class LmaxRing(base.JavaPeer):
    """LMAX's disruptor."""

    key = "lmax"
    name = "LMAX Disruptor (Java)"
    module = "disruptor"
    cases = base.RINGS
    conditions = "4.0.0; a burst is one claim; BusySpinWaitStrategy; 3 s warm-up"

    def measure(self, case, seconds, processes):
        return base.last_json(processes.run(self.java("Ring", case.batch, seconds), seconds + SPARE_SECONDS))


class RaftEngine(base.RustPeer):
    """TiKV's log engine."""

    key = "raft-engine"
    name = "raft-engine"
    package = "logs"
    cases = base.LOGS
    conditions = "{version}; write with sync; default options (LZ4 from 8 KiB)"

    def measure(self, case, seconds, processes):
        argv = [tools.rust_driver("logs"), "--log", "raft-engine", "--data", processes.directory]
        argv += ["--batch", case.batch, "--payload", case.payload, "--seconds", seconds]
        return base.last_json(processes.run(argv, seconds + SPARE_SECONDS))


class RocksDb(base.JavaPeer):
    """RocksDB's write-ahead log, through its own Java binding."""

    key = "rocksdb"
    name = "RocksDB WAL"
    module = "rocksdb"
    cases = base.LOGS
    conditions = "{version} by JNI; WriteBatch, sync on; default options; memtable included; 20 s warm-up"

    def measure(self, case, seconds, processes):
        argv = self.java("RocksDbWal", "--data", f"{processes.directory}/db", "--batch", case.batch)
        argv += ["--payload", case.payload, "--seconds", seconds]
        report = base.last_json(processes.run(argv, seconds + SPARE_SECONDS))
        # Its operations are batches.
        report["ops_per_s"] *= case.batch
        report["cpu_s_per_1k_ops"] /= case.batch
        return report
