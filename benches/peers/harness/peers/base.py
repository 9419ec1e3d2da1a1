"""What the harness knows of a peer, and the cases that peers are compared in."""

import json
from dataclasses import dataclass

from harness import tools
from harness.processes import Failed, tail


@dataclass(frozen=True)
class Case:
    """One comparison: a block of the table, in which every peer that takes part has one line."""

    key: str
    title: str
    # What an operation is, for the head of the column.
    unit: str = "ops/s"
    payload: int = 16
    inflight: int = 1
    # Operations that a client sends at once, or entries of a batch.
    batch: int = 1


def _replicated(payload, inflight):
    size = f"{payload} B" if payload < 1024 else f"{payload >> 10} KiB"
    return Case(
        f"replicated-{payload}-{inflight}",
        f"Replicated, three nodes: {size}, {inflight} in flight",
        payload=payload,
        inflight=inflight,
    )


def _server(inflight, batch):
    pipeline = f" -P {batch}" if batch > 1 else ""
    return Case(
        f"incr-{inflight}-{batch}",
        f"A server for Redis clients: redis-benchmark -t incr -c {inflight}{pipeline}",
        inflight=inflight,
        batch=batch,
    )


REPLICATED = [_replicated(*shape) for shape in [(16, 1), (16, 64), (16, 1024), (16, 4096), (4096, 64)]]
SERVER = [_server(*shape) for shape in [(1, 1), (64, 1), (64, 16), (5000, 1)]]
RINGS = [
    Case(f"ring-{burst}", f"Ring of 1024 slots of 8 B, one writer, one reader, both spin: bursts of {burst}", "slots/s", 8, batch=burst)
    for burst in (1, 16)
]
LOGS = [
    Case(f"log-{batch}", f"Log, one thread, each batch durable: {batch} entries of 16 B", "entries/s", 16, batch=batch)
    for batch in (1, 64)
]
CASES = REPLICATED + SERVER + RINGS + LOGS


class Peer:
    """A system or library that is measured."""

    # What `--only` knows it by.
    key = ""
    name = ""
    # The cases that it takes part in.
    cases = []
    # What stands beside its figures; `{version}` comes from its driver.
    conditions = ""
    ours = False

    def tool_missing(self):
        """Why it can't run on this machine and how to get it; nothing when its tools are there."""
        return None

    def is_built(self):
        """Whether its driver is there."""
        return True

    def install(self):
        """Fetches and builds its driver; may fail with `NotBuilt`."""

    def measure(self, case, seconds, processes):
        """Runs one case in `processes.directory` and gives the figures."""
        raise NotImplementedError

    def inflight(self, case):
        """Conditions that depend on the case."""
        return ""


class RustPeer(Peer):
    """A peer whose driver is a package of the Rust workspace here, in a directory of it."""

    package = ""

    @property
    def directory(self):
        """The package's directory."""
        return self.package.removesuffix("-driver")

    def tool_missing(self):
        return "no cargo: install Rust" if tools.missing("cargo") else None

    def is_built(self):
        return tools.is_built("rust", self.directory)

    def install(self):
        tools.build_rust(self.directory, self.package)


class GoPeer(Peer):
    """A peer whose driver is a program in Go."""

    program = ""

    def tool_missing(self):
        return "no go: install Go 1.23 or newer" if tools.missing("go") else None

    def is_built(self):
        return tools.is_built("go", self.program)

    def install(self):
        tools.build_go(self.program)


class JavaPeer(Peer):
    """A peer whose driver is a Maven module."""

    module = ""

    def tool_missing(self):
        absent = tools.missing("java", "mvn")
        return f"no {absent}: install a JDK (11 or newer) and Maven" if absent else None

    def is_built(self):
        return tools.is_built("java", self.module)

    def install(self):
        tools.build_java(self.module)

    def java(self, main, *args, flags=()):
        """A command line that runs a class of the module."""
        return ["java", *flags, "-cp", tools.java_path(self.module), f"peers.{main}", *args]


def shape(case, seconds):
    """The options that every driver of replicated systems takes."""
    return ["--inflight", case.inflight, "--payload", case.payload, "--seconds", seconds]


def last_json(text):
    """The report: the last object that a driver printed. Its libraries may have printed lines of their own."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if not lines:
        raise Failed(f"its driver printed no report: {tail(text)}")
    return json.loads(lines[-1])
