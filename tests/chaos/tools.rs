//! Other programs: what they say when they fail is what one needs to know.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::trouble::{Fallible, Trouble};

/// Runs a command to its end; its output.
pub(crate) fn run(command: &[&str]) -> Fallible<String> {
    let mut program = Command::new(command[0]);
    program.args(&command[1..]);
    run_with(program, "")
}

/// The same with something to read.
pub(crate) fn run_with(mut command: Command, input: &str) -> Fallible<String> {
    let shown = || {
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        words.join(" ")
    };
    let shown = shown();
    let broken = |what: String| Trouble::Broken(format!("{shown}: {what}"));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| broken(error.to_string()))?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    // A program that does not read its input says why by itself.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child
        .wait_with_output()
        .map_err(|error| broken(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(broken(format!("{}: {}", output.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first of these programs that is not installed, as a reason to skip.
pub(crate) fn lacking(programs: &[&str]) -> Option<String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| std::env::split_paths(&paths).any(|dir| dir.join(name).is_file());
    programs
        .iter()
        .find(|name| !found(name))
        .map(|name| format!("{name} is not installed"))
}
