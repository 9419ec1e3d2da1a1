//! Where bugs are planted: a copy of the source tree, built in a directory of its own.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fmt, thread};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::list::Catcher;

/// The name under which the tree is shown as it is.
pub const WITHOUT: &str = "without-a-bug";

/// What the simulator prints before the number of a seed that failed.
const REPLAY: &str = "--example simulate -- --seed ";
/// And when a long run was sound and did not get everywhere.
const NEVER_MET: &str = "seeds never met:";

/// What a catcher says.
pub enum Outcome {
    /// It has noticed: which check, and after how many seeds.
    Caught { by: String, seeds: Option<u64> },
    /// It has found nothing.
    Quiet,
    /// It did not come to an end.
    Endless,
    /// The tree does not compile.
    Unbuilt,
}

impl Outcome {
    pub fn seeds(&self) -> String {
        match self {
            Self::Caught {
                seeds: Some(seeds), ..
            } => seeds.to_string(),
            _ => String::new(),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Caught { by, .. } => by,
            Self::Quiet => "NOTHING",
            Self::Endless => "NOTHING: it did not end in time",
            Self::Unbuilt => "NOTHING: it does not compile",
        })
    }
}

pub struct Workshop {
    /// `target/mutants`.
    place: PathBuf,
    tree: PathBuf,
    seeds: u64,
    jobs: usize,
    limit: Duration,
}

/// Files as they were before a bug was planted in them.
pub struct Planted(Vec<(PathBuf, String)>);

impl Planted {
    pub fn take_out(self) -> Result<(), String> {
        self.0.iter().try_for_each(|(path, text)| write(path, text))
    }
}

impl Workshop {
    /// Copies the source tree: what git knows and does not ignore.
    pub fn new(root: &Path, seeds: u64, jobs: usize, limit: Duration) -> Result<Self, String> {
        let target = std::env::var_os("CARGO_TARGET_DIR");
        let place = target.map_or_else(|| root.join("target"), PathBuf::from);
        let place = root.join(place).join("mutants");
        let tree = place.join("tree");
        let known = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(root)
            .output()
            .map_err(|e| format!("git ls-files: {e}"))?;
        if !known.status.success() {
            let error = String::from_utf8_lossy(&known.stderr).into_owned();
            return Err(format!("git ls-files: {error}"));
        }
        let known = String::from_utf8_lossy(&known.stdout);
        let mut kept = Vec::new();
        for name in known.split_terminator('\0') {
            let (from, to) = (root.join(name), tree.join(name));
            // A file that was removed and is still in the index.
            let Ok(bytes) = fs::read(&from) else { continue };
            // What is the same keeps its time, so that it is not built again.
            if fs::read(&to).ok().as_ref() != Some(&bytes) {
                let folder = to.parent().expect("a file is in a folder");
                fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
                fs::write(&to, bytes).map_err(|e| format!("{}: {e}", to.display()))?;
            }
            kept.push(to);
        }
        if kept.is_empty() {
            return Err(format!("git knows no file in {}", root.display()));
        }
        remove_others(&tree, &kept).map_err(|e| format!("{}: {e}", tree.display()))?;
        fs::create_dir_all(place.join("logs")).map_err(|e| format!("{}: {e}", place.display()))?;
        Ok(Self {
            place,
            tree,
            seeds,
            jobs,
            limit,
        })
    }

    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// Writes the changed files.
    pub fn plant(&self, changed: &[(PathBuf, String)]) -> Result<Planted, String> {
        let mut before = Vec::new();
        for (path, text) in changed {
            let old = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            before.push((path.clone(), old));
            write(path, text)?;
        }
        Ok(Planted(before))
    }

    /// Builds the tree as it is and lets the catcher look at it.
    pub fn show(&self, name: &str, catcher: &Catcher) -> Result<Outcome, String> {
        let kind = catcher.to_string();
        let kind = kind.split(' ').next().unwrap_or_default();
        let logs = self.place.join("logs");
        let log = logs.join(format!("{name}.{kind}.log"));
        let build_log = logs.join(format!("{name}.{kind}.build.log"));
        let mut first = None;
        let (mut build, mut look) = match catcher {
            Catcher::Simulate => {
                let mut build = self.cargo("build", &["build", "--example", "simulate"]);
                build.args(["--features", "sim"]);
                let mut look = Command::new(self.place.join("build/debug/examples/simulate"));
                look.current_dir(&self.tree)
                    .arg("--seeds")
                    .arg(format!("0..{}", self.seeds))
                    .arg("--jobs")
                    .arg(self.jobs.to_string());
                (build, look)
            }
            Catcher::Loom => {
                let arguments = [
                    "test",
                    "--release",
                    "--package",
                    "ringraft-ringbuf",
                    "--lib",
                ];
                let cargo = || {
                    let mut cargo = self.cargo("loom", &arguments);
                    cargo.env("RUSTFLAGS", "--cfg loom");
                    cargo.env("LOOM_MAX_PREEMPTIONS", "3");
                    cargo
                };
                let mut build = cargo();
                build.arg("--no-run");
                (build, cargo())
            }
            Catcher::Test(arguments) => {
                let cargo = || self.cargo("build", &["test"]);
                let (mut build, mut look) = (cargo(), cargo());
                let (of_cargo, of_test) = match arguments.iter().position(|word| word == "--") {
                    Some(at) => arguments.split_at(at),
                    None => (&arguments[..], &[][..]),
                };
                build.arg("--no-run").args(of_cargo);
                look.args(of_cargo).args(of_test);
                // The tests of processes start this one, and cargo does not build an example for a single test.
                if of_cargo.iter().any(|word| word == "it") {
                    first = Some(self.cargo("build", &["build", "--example", "counter"]));
                }
                (build, look)
            }
        };
        // A compiler has no reason to hang.
        if let Some(mut build) = first
            && wait(&mut build, &build_log, Duration::from_secs(3600))? != Some(true)
        {
            return Ok(Outcome::Unbuilt);
        }
        if wait(&mut build, &build_log, Duration::from_secs(3600))? != Some(true) {
            return Ok(Outcome::Unbuilt);
        }
        // What was built before, with another bug in it, must not be taken for this one.
        let built = read(&build_log)?;
        if name != WITHOUT && !built.contains("Compiling ringraft") {
            return Err(format!("{name}: cargo has built nothing new"));
        }
        let quiet = wait(&mut look, &log, self.limit)?;
        let said = read(&log)?;
        Ok(match quiet {
            None => Outcome::Endless,
            Some(true) => Outcome::Quiet,
            // That some path was never met is no word about a bug.
            Some(false) if said.contains(NEVER_MET) && !said.contains(REPLAY) => Outcome::Quiet,
            Some(false) => Outcome::Caught {
                by: finding(&said, catcher),
                seeds: failing_seed(&said).map(|seed| seed + 1),
            },
        })
    }

    /// A cargo whose builds are quick to make and not slow to run.
    fn cargo(&self, target: &str, arguments: &[&str]) -> Command {
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(&self.tree)
            .args(arguments)
            .arg("--locked")
            .env("CARGO_TARGET_DIR", self.place.join(target))
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
            .env("CARGO_INCREMENTAL", "1")
            .env("RUST_BACKTRACE", "0");
        cargo
    }
}

/// Runs a command with its words in `log`: whether it ended well; `None` when it had to be ended.
fn wait(command: &mut Command, log: &Path, limit: Duration) -> Result<Option<bool>, String> {
    let shown = format!("{command:?}");
    let failed = |e: std::io::Error| format!("{shown}: {e}");
    let file = File::create(log).map_err(failed)?;
    // A group of its own, so that what it has started ends with it.
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(file.try_clone().map_err(failed)?)
        .stderr(file)
        .spawn()
        .map_err(failed)?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(Some(status.success()));
        }
        if Instant::now() >= deadline {
            if let Some(group) = Pid::from_raw(child.id() as i32) {
                kill_process_group(group, Signal::KILL).map_err(|e| failed(e.into()))?;
            }
            child.wait().map_err(failed)?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20)); // The pace of looking.
    }
}

/// The seed of the replay command that a failing simulation prints.
fn failing_seed(said: &str) -> Option<u64> {
    let (_, rest) = said.rsplit_once(REPLAY)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// One line that says what was noticed.
fn finding(said: &str, catcher: &Catcher) -> String {
    let after = |mark: &str| {
        let mut lines = said.lines().skip_while(move |line| !line.contains(mark));
        let first = lines.next()?;
        // The message of a panic stands in the line behind its place.
        Some(if first.ends_with(':') {
            lines.next().unwrap_or(first)
        } else {
            first
        })
    };
    let test = said
        .lines()
        .find_map(|line| line.strip_suffix(" ... FAILED"))
        .map(|line| line.trim_start_matches("test ").to_owned());
    let line = match catcher {
        Catcher::Simulate => said
            .lines()
            .find(|line| line.starts_with("seed ") && line.contains(" failed: "))
            .and_then(|line| line.split_once(" failed: "))
            .map(|(_, what)| what),
        Catcher::Loom | Catcher::Test(_) => test.as_deref().or_else(|| after("panicked at")),
    };
    let line = line.or_else(|| said.lines().last()).unwrap_or("no word");
    line.trim().chars().take(110).collect()
}

fn read(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Removes what an earlier copy has left.
fn remove_others(folder: &Path, kept: &[PathBuf]) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, kept)?;
        } else if !kept.contains(&path) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
