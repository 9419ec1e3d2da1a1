//! The room in which everything happens: namespaces of its own for network, mounts and processes.
//!
//! Invariant: what is made in there does not outlive the program, however it ends. Network namespaces, links and rules
//! belong to the room's network namespace, file systems to its mount namespace, loop devices to what is mounted from
//! them, and every process dies with the room's first one, which dies with the one that opened the room.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::tools;

/// Tells the program that it is inside, and which server to start.
const INSIDE: &str = "RINGRAFT_CHAOS_SERVER";

const ROOM: [&str; 7] = [
    "--net",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--mount-proc",
];

pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// The server to be started.
pub(crate) fn server() -> PathBuf {
    PathBuf::from(std::env::var_os(INSIDE).unwrap_or_default())
}

/// Becomes the same program, inside. Returns only when that cannot be.
pub(crate) fn go_inside(server: Option<&Path>) -> ExitCode {
    let needed = ["unshare", "nsenter", "ip"];
    let allowed = || {
        let mut try_it = Command::new("unshare");
        try_it
            .args(ROOM)
            .args(["ip", "link", "add", "br0", "type", "bridge"]);
        tools::run_with(try_it, "")
            .err()
            .map(|trouble| trouble.to_string())
    };
    if let Some(reason) = tools::lacking(&needed).or_else(allowed) {
        println!("skipped: no namespaces can be made here: {reason}");
        return ExitCode::SUCCESS;
    }
    let server = match server.map_or_else(build, |path| Ok(path.to_path_buf())) {
        Ok(server) => server,
        Err(reason) => {
            eprintln!("{reason}");
            return ExitCode::FAILURE;
        }
    };
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => {
            eprintln!("where this program is: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut inside = Command::new("unshare");
    inside
        .args(ROOM)
        .arg("--")
        .arg(own)
        .args(std::env::args_os().skip(1));
    let error = inside.env(INSIDE, server).exec();
    eprintln!("unshare: {error}");
    ExitCode::FAILURE
}

/// Builds the counter example as its users do: without the features that a test has.
fn build() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let profile = own.parent().and_then(Path::parent);
    let profile = profile.ok_or("this program is not in target/<profile>/deps")?;
    let target = profile.parent().ok_or("there is no target directory")?;
    let path = profile.join("examples/counter");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--example", "counter"]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.env("CARGO_TARGET_DIR", target);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    match cargo.status() {
        Ok(status) if status.success() && path.exists() => Ok(path),
        Ok(status) => Err(format!("building the counter example: {status}")),
        Err(error) => Err(format!("cargo, to build the counter example: {error}")),
    }
}
