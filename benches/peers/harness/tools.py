"""Where things are, which programs are there, and how each driver is built.

What is built or fetched goes to `.cache` here and to the languages' own user caches; nothing is
installed on the system.
"""

import glob
import os
import shutil
import subprocess

from harness.processes import tail

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(os.path.dirname(HERE))
CACHE = os.path.join(HERE, ".cache")
# A first build of a driver compiles what it depends on.
BUILD_SECONDS = 1800


class NotBuilt(Exception):
    """A build did not succeed; says the end of what it printed."""


def missing(*programs):
    """The first of these programs that is not on the path."""
    return next((program for program in programs if shutil.which(program) is None), None)


def build(argv, directory, env=None):
    """Runs a build to its end."""
    try:
        done = subprocess.run(
            argv,
            cwd=directory,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuilt(str(error)) from None
    if done.returncode != 0:
        text = (done.stdout + done.stderr).decode(errors="replace")
        errors = "\n".join(line for line in text.splitlines() if "error" in line.lower())
        raise NotBuilt(f"{' '.join(argv)}: {tail(errors or text, 2)}")


def own_target():
    """Where the project's own programs are built: Cargo's directory, as for every other build of it."""
    return os.path.join(os.path.abspath(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))), "release")


def own_example(name):
    """The path of one of the project's examples."""
    return os.path.join(own_target(), "examples", name)


def build_own():
    """Builds the programs that stand for this project: always, as an old one would give old figures."""
    build(["cargo", "build", "--release", "--example", "load", "--example", "counter"], ROOT)


def rust_driver(name):
    """The path of a driver of the Rust workspace here."""
    return os.path.join(CACHE, "target", "release", name)


def build_rust(name):
    """Builds a driver of the Rust workspace here."""
    build(
        ["cargo", "build", "--release", "--locked", "--package", name],
        os.path.join(HERE, "rust"),
        {"CARGO_TARGET_DIR": os.path.join(CACHE, "target")},
    )


def go_driver(name):
    """The path of a driver in Go."""
    return os.path.join(CACHE, "bin", name)


def build_go(name):
    """Builds a driver in Go."""
    build(["go", "build", "-o", go_driver(name), "."], os.path.join(HERE, "go", name))


def java_path(name):
    """The class path of a driver in Java; nothing when it has not been built."""
    target = os.path.join(HERE, "java", name, "target")
    if not glob.glob(os.path.join(target, "*.jar")) or not os.path.isdir(os.path.join(target, "lib")):
        return None
    return f"{target}/*:{target}/lib/*"


def build_java(name):
    """Builds a driver in Java, and what it shares with the others."""
    build(["mvn", "-q", "-B", "package", "-pl", name, "-am"], os.path.join(HERE, "java"))
