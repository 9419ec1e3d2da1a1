"""This project: its cluster in one process, its server for Redis clients, its ring, its log."""

from harness import tools
from harness.peers import base
from harness.peers.redis import benchmark
from harness.processes import ask, free_ports

# Beyond the measured window: warming up, starting, stopping.
SPARE_SECONDS = 60


class Cluster(base.Peer):
    """Three durable nodes and the load in one process."""

    key = "ringraft"
    name = "ringraft"
    cases = base.REPLICATED
    conditions = "three nodes and the load in one process, flush on ({flush_backend}), default options, 20 s warm-up"
    ours = True

    def tool_missing(self):
        return "no cargo: install Rust" if tools.missing("cargo") else None

    def measure(self, case, seconds, processes):
        # Long enough for the second snapshot: from then on its segments are used again.
        argv = [tools.own_example("load"), "--json", "--warm-up", "20", "--data", processes.directory]
        argv += base.shape(case, seconds)
        return base.last_json(processes.run(argv, seconds + SPARE_SECONDS))


class CounterServer(base.Peer):
    """Three counter servers; the benchmark talks to the one that leads."""

    key = "ringraft"
    name = "ringraft counter server"
    cases = base.SERVER
    conditions = "replicated: three processes on this machine, the leader is asked; flush on; default options"
    ours = True

    def tool_missing(self):
        if tools.missing("cargo"):
            return "no cargo: install Rust"
        return "no redis-benchmark: Debian's redis-tools" if tools.missing("redis-benchmark") else None

    def measure(self, case, seconds, processes):
        ports = free_ports(6)
        rafts, clients = ports[:3], ports[3:]
        members = ",".join(
            f"{id}=127.0.0.1:{raft}/127.0.0.1:{client}" for id, (raft, client) in enumerate(zip(rafts, clients), 1)
        )
        for id in (1, 2, 3):
            data = f"{processes.directory}/node-{id}"
            processes.start(
                f"counter-{id}",
                [tools.own_example("counter"), "serve", "--id", id, "--data", data, "--members", members],
            )

        def leader():
            return next((port for port in clients if "\nrole:master" in ask(port, b"INFO replication\r\n")), None)

        return benchmark(processes, processes.wait_for("leader", leader), case, seconds)


class Ring(base.RustPeer):
    """The ring between the stages."""

    key = "ringraft"
    name = "ringraft-ringbuf"
    package = "rings"
    cases = base.RINGS
    conditions = "this tree; a slot at a time, whatever the burst; reads in batches"
    ours = True

    def measure(self, case, seconds, processes):
        argv = [tools.rust_driver("rings"), "--ring", "ringbuf", "--burst", case.batch, "--seconds", seconds]
        return base.last_json(processes.run(argv, seconds + SPARE_SECONDS))


class Log(base.RustPeer):
    """The log on disk, alone."""

    key = "ringraft"
    name = "ringraft-storage"
    package = "logs"
    cases = base.LOGS
    conditions = "this tree; flush on ({flush_backend}); encoding counted"
    ours = True

    def measure(self, case, seconds, processes):
        argv = [tools.rust_driver("logs"), "--log", "storage", "--data", processes.directory]
        argv += ["--batch", case.batch, "--payload", case.payload, "--seconds", seconds]
        return base.last_json(processes.run(argv, seconds + SPARE_SECONDS))
