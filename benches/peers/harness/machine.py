"""What is true of this machine, printed above every table: figures mean nothing without it."""

import os
import platform
import statistics
import time


class Unsuitable(Exception):
    """This place or machine cannot give figures; says why and what to do."""


def file_system(path):
    """`(type, device)` of the file system that `path` is on."""
    path = os.path.realpath(path)
    best = ("", "", "")
    with open("/proc/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            device, mount, kind = line.split()[:3]
            inside = path == mount or path.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best[0]):
                best = (mount, kind, device)
    return best[1], best[2]


def require_disk(path):
    """Refuses a directory in memory: there, a flush costs nothing and every durable figure is a fiction."""
    kind, _ = file_system(path)
    if kind in ("tmpfs", "ramfs"):
        raise Unsuitable(f"{path} is in memory ({kind}): give --data a directory on a disk")


def flush_p50_us(path, count=500):
    """Median time of a 4 KiB write plus `fdatasync` over a file that is already written, in microseconds."""
    name = os.path.join(path, "flush-probe")
    block = os.urandom(4096)
    blocks = 256
    file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, block * blocks)
        os.fsync(file)
        times = []
        for i in range(count):
            start = time.perf_counter_ns()
            os.pwrite(file, block, i % blocks * 4096)
            os.fdatasync(file)
            times.append((time.perf_counter_ns() - start) / 1e3)
    finally:
        os.close(file)
        os.unlink(name)
    return statistics.median(times)


def facts(data):
    """The machine in a dictionary of plain values."""
    model = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    kind, device = file_system(data)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "kernel": platform.release(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "file_system": kind,
        "device": device,
        "flush_p50_us": round(flush_p50_us(data)),
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
    }
