"""Processes that a measurement starts; whatever happens, they are gone when it ends.

Each is the leader of a session of its own, so that its children go with it, and the kernel kills it
when this program dies before it could.
"""

import ctypes
import os
import signal
import socket
import subprocess
import time

PR_SET_PDEATHSIG = 1
TICKS = os.sysconf("SC_CLK_TCK")
# Loaded here: nothing may be imported between fork and exec.
_LIBC = ctypes.CDLL(None)


class Failed(Exception):
    """A process did not do its part; the last lines that it wrote are in the message."""


def _die_with_parent():
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def tail(text, lines=5):
    """The last lines of a text, on one line."""
    return " | ".join(line.strip() for line in text.strip().splitlines()[-lines:]) or "it wrote nothing"


class Processes:
    """A measurement's processes, as a context manager."""

    def __init__(self, directory):
        self.directory = directory
        self.running = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.running:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + 5
        for process in self.running:
            try:
                process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
            # Also when it has gone by itself: a child of it may be left.
            _signal(process, signal.SIGKILL)
            process.wait()

    def start(self, name, argv, env=None):
        """Starts a server; its output goes to `name.log` in the directory."""
        with open(self._log(name), "wb") as log:
            process = subprocess.Popen(
                [str(arg) for arg in argv],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        process.name = name
        self.running.append(process)
        return process

    def check(self):
        """Fails when a server has ended."""
        for process in self.running:
            if process.poll() is not None:
                with open(self._log(process.name), encoding="utf-8", errors="replace") as log:
                    raise Failed(f"{process.name} ended with {process.returncode}: {tail(log.read())}")

    def wait_for(self, what, condition, seconds=30):
        """Waits until `condition` gives something true, and gives that."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            found = condition()
            if found:
                return found
            time.sleep(0.05)
        raise Failed(f"no {what} within {seconds} s")

    def run(self, argv, seconds, env=None):
        """Runs a program to its end, which comes within so many seconds, and gives what it printed."""
        process = subprocess.Popen(
            [str(arg) for arg in argv],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{os.path.basename(str(argv[0]))} did not end within {seconds:.0f} s") from None
        finally:
            if process.poll() is None:
                _signal(process, signal.SIGKILL)
                process.communicate()
        if process.returncode != 0:
            both = (out + err).decode(errors="replace")
            raise Failed(f"{os.path.basename(str(argv[0]))} ended with {process.returncode}: {tail(both)}")
        return out.decode(errors="replace")

    def cpu_seconds(self):
        """CPU time of the servers, user and system."""
        total = 0.0
        for process in self.running:
            with open(f"/proc/{process.pid}/stat", encoding="utf-8") as stat:
                fields = stat.read().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / TICKS
        return total

    def pids(self):
        """The servers' ids, as the drivers' `--cpu-of` takes them."""
        return ",".join(str(process.pid) for process in self.running)

    def _log(self, name):
        return os.path.join(self.directory, f"{name}.log")


def _signal(process, number):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def free_ports(count):
    """Ports of loopback that are free now. Another program may take one before it is used: then a start fails and says so."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def ask(port, request, seconds=1.0):
    """What a server on loopback answers to a line of text; nothing when it is not there yet."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
            connection.sendall(request)
            return connection.recv(65536).decode(errors="replace")
    except OSError:
        return ""
