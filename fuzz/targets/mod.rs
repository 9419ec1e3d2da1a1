//! The fuzz targets: each is a plain function of bytes that panics when something does not hold.
//!
//! They are used twice: by the libFuzzer binaries of `fuzz/fuzz_targets`, and by `tests/it/corpus.rs`,
//! which replays the committed inputs of `fuzz/corpus` with every `cargo test`.

mod core;
mod frames;
mod input;
mod metadata;
mod recovery;
mod resp;
mod rings;
mod wire;

/// A target.
pub struct Target {
    /// The name of its binary and of its corpus.
    pub name: &'static str,
    /// The check.
    pub check: fn(&[u8]),
    /// Inputs to begin with, made of real frames, requests and logs.
    #[allow(dead_code, reason = "the replay writes them, the binaries do not")]
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "core",
        check: core::check,
        seeds: core::seeds,
    },
    Target {
        name: "frames",
        check: frames::check,
        seeds: frames::seeds,
    },
    Target {
        name: "metadata",
        check: metadata::check,
        seeds: metadata::seeds,
    },
    Target {
        name: "recovery",
        check: recovery::check,
        seeds: recovery::seeds,
    },
    Target {
        name: "resp",
        check: resp::check,
        seeds: resp::seeds,
    },
    Target {
        name: "rings",
        check: rings::check,
        seeds: rings::seeds,
    },
    Target {
        name: "wire",
        check: wire::check,
        seeds: wire::seeds,
    },
];

/// The check of the target with this name.
#[allow(dead_code, reason = "the binaries ask by name, the replay takes all")]
pub fn check(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this list").check)(data);
}
