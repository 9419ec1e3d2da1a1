"""Redis on one node, `appendfsync always`: the floor of a durable server, without replication."""

import re
import resource

from harness import tools
from harness.peers import base
from harness.processes import Failed, ask, free_ports


class Redis(base.Peer):
    """One redis-server, each write flushed before it is answered."""

    key = "redis"
    name = "Redis"
    cases = base.SERVER
    conditions = "{version}; NOT replicated: one node; appendfsync always, no rewrites, no snapshots"

    def tool_missing(self):
        absent = tools.missing("redis-server", "redis-benchmark")
        return f"no {absent}: Debian's redis-server and redis-tools, by hand" if absent else None

    def measure(self, case, seconds, processes):
        (port,) = free_ports(1)
        options = {
            "port": port,
            "bind": "127.0.0.1",
            "dir": processes.directory,
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "auto-aof-rewrite-percentage": 0,
        }
        argv = ["redis-server"]
        for option, value in options.items():
            argv += [f"--{option}", value]
        processes.start("redis", argv)
        info = processes.wait_for("answer", lambda: ask(port, b"INFO server\r\n"))
        version = re.search(r"redis_version:(\S+)", info).group(1)
        return {**benchmark(processes, port, case, seconds), "version": version}


def benchmark(processes, port, case, seconds):
    """`redis-benchmark -t incr` for about so many seconds; CPU time is that of the servers and its own.

    It takes a number of requests, not a time; a short run before tells how many. The servers are warm
    after that one.
    """
    first = _whole(case, min(case.inflight * case.batch * 200, 300_000))
    rate = _incr(processes, port, case, first, 60)["ops_per_s"]
    requests = _whole(case, rate * seconds)
    servers, own = processes.cpu_seconds(), _children_seconds()
    report = _incr(processes, port, case, requests, seconds * 10 + 60)
    cpu = processes.cpu_seconds() - servers + _children_seconds() - own
    return {**report, "cpu_s_per_1k_ops": cpu / requests * 1e3}


def _whole(case, requests):
    """As many requests, rounded up so that every client has the same number of whole pipelines."""
    step = case.inflight * case.batch
    return max(1, -(-int(requests) // step)) * step


def _incr(processes, port, case, requests, seconds):
    argv = ["redis-benchmark", "-h", "127.0.0.1", "-p", port, "-t", "incr"]
    argv += ["-c", case.inflight, "-P", case.batch, "-n", requests]
    # It overwrites its line of progress: each of these is a line of its own.
    text = processes.run(argv, seconds).replace("\r", "\n")
    rate = re.search(r"throughput summary: ([\d.]+) requests per second", text)
    if not rate:
        raise Failed("redis-benchmark printed no throughput summary")
    report = {"ops_per_s": float(rate.group(1))}
    percentiles = re.findall(r"^([\d.]+)% <= ([\d.]+) milliseconds \(cumulative", text, re.MULTILINE)
    for name, wanted in [("p50_us", 50), ("p99_us", 99), ("p999_us", 99.9)]:
        reached = [float(ms) for percent, ms in percentiles if float(percent) >= wanted]
        if reached:
            report[name] = min(reached) * 1e3
    return report


def _children_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
