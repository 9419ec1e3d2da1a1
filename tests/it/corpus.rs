//! The fuzz targets on their committed inputs: what fuzzing has found stays found.
//!
//! `fuzz/corpus/<target>` holds real frames, requests and logs, and inputs that reach parts which
//! those do not. `UPDATE=1 cargo test --test it corpus` writes the targets' seeds there anew;
//! `fuzz/run` fuzzes and says how to add to it.

#[path = "../../fuzz/targets/mod.rs"]
mod targets;

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::{env, fs};

use targets::{TARGETS, Target};

fn corpus_of(target: &Target) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("fuzz/corpus").join(target.name)
}

#[test]
fn corpus_inputs_and_seeds_hold() {
    for target in TARGETS {
        let folder = corpus_of(target);
        if env::var_os("UPDATE").is_some() {
            fs::create_dir_all(&folder).expect("the corpus can be written");
            for (number, seed) in (target.seeds)().iter().enumerate() {
                let file = folder.join(format!("seed-{number:02}"));
                fs::write(file, seed).expect("the corpus can be written");
            }
        }
        let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut files: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
        files.sort();
        assert!(files.len() >= 4, "{} has no corpus", target.name);
        for file in files {
            let data = fs::read(&file).expect("an input");
            catch_unwind(|| (target.check)(&data))
                .unwrap_or_else(|_| panic!("replayed from {}", file.display()));
        }
    }
}

/// Each target is a binary for the fuzzer, too.
#[test]
fn corpus_targets_have_their_binaries() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).expect("the fuzz manifest");
    for target in TARGETS {
        let path = format!("fuzz_targets/{}.rs", target.name);
        assert!(manifest.contains(&path), "fuzz/Cargo.toml has no {path}");
        let text = fs::read_to_string(fuzz.join(&path)).expect("the binary's source");
        assert!(text.contains(&format!("\"{}\"", target.name)), "{path}");
    }
}
