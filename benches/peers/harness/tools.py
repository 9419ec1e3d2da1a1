"""Where things are, which programs are there, and how each driver is built.

What is built or fetched goes to `.cache` here and to the languages' own user caches; nothing is
installed on the system.
"""

import hashlib
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


def build_rust(name, package):
    """Builds a driver of the Rust workspace here."""
    build(
        ["cargo", "build", "--release", "--locked", "--package", package],
        os.path.join(HERE, "rust"),
        {"CARGO_TARGET_DIR": os.path.join(CACHE, "target")},
    )
    _stamp("rust", name)


def go_driver(name):
    """The path of a driver in Go."""
    return os.path.join(CACHE, "bin", name)


def build_go(name):
    """Builds a driver in Go."""
    build(["go", "build", "-o", go_driver(name), "."], os.path.join(HERE, "go", name))
    _stamp("go", name)


def java_path(name):
    """The class path of a driver in Java."""
    target = os.path.join(HERE, "java", name, "target")
    return f"{target}/*:{target}/lib/*"


def build_java(name):
    """Builds a driver in Java anew, as old libraries would stay beside new ones; and what it shares with the others."""
    build(["mvn", "-q", "-B", "clean", "package", "-pl", name, "-am"], os.path.join(HERE, "java"))
    _stamp("java", name)


def is_built(language, name):
    """Whether the driver was built from the sources that are there now."""
    try:
        with open(_stamp_file(language, name), encoding="utf-8") as file:
            return file.read() == _fingerprint(language, name)
    except FileNotFoundError:
        return False


def _stamp(language, name):
    os.makedirs(os.path.join(CACHE, "built"), exist_ok=True)
    with open(_stamp_file(language, name), "w", encoding="utf-8") as file:
        file.write(_fingerprint(language, name))


def _stamp_file(language, name):
    return os.path.join(CACHE, "built", f"{language}-{name}")


def _fingerprint(language, name):
    """A hash of the driver's sources and manifests, and of those that it shares with others."""
    top = os.path.join(HERE, language)
    files = [entry.path for entry in os.scandir(top) if entry.is_file()]
    for part in (name, "load"):
        for directory, inside, names in os.walk(os.path.join(top, part)):
            inside[:] = [each for each in inside if each != "target"]
            files += [os.path.join(directory, each) for each in names]
    hasher = hashlib.sha256()
    for path in sorted(files):
        with open(path, "rb") as file:
            content = file.read()
        hasher.update(f"{os.path.relpath(path, top)} {len(content)}\n".encode() + content)
    return hasher.hexdigest()
