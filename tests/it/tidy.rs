//! What holds for the whole repository: who names which library, heads of files, paths in documents.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `dir` whose name ends in `.extension`.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("a directory of the repository") {
            let path = entry.expect("an entry of it").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|is| is == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// `(section, library)` of each dependency that a manifest names.
fn dependencies(manifest: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join(manifest)).expect("a manifest of the workspace");
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            // `[dependencies.name]` is a dependency by itself.
            if let Some((of, name)) = section.rsplit_once('.')
                && of.ends_with("dependencies")
            {
                found.push((of.to_owned(), name.to_owned()));
            }
        } else if section.ends_with("dependencies")
            && let Some((key, value)) = line.split_once('=')
            && !line.starts_with('#')
        {
            let key = key.trim().split('.').next().unwrap_or_default();
            found.push((section.clone(), key.trim_matches('"').to_owned()));
            if let Some((_, renamed)) = value.split_once("package") {
                let name = renamed.trim_start_matches([' ', '=', '"']);
                let name = name.split('"').next().unwrap_or_default();
                found.push((section.clone(), name.to_owned()));
            }
        }
    }
    found
}

const MANIFESTS: [&str; 5] = [
    "Cargo.toml",
    "ringbuf/Cargo.toml",
    "storage/Cargo.toml",
    "net/Cargo.toml",
    "cli/Cargo.toml",
];

/// A library has its place: elsewhere the code knows only ours.
#[test]
fn libraries_are_named_where_they_belong() {
    let allowed = |library: &str, manifest: &str, section: &str| match library {
        "disruptor" => manifest == "ringbuf/Cargo.toml",
        "io-uring" | "memmap2" => manifest == "storage/Cargo.toml",
        // The root names it for the example server only.
        "mio" => {
            manifest == "net/Cargo.toml"
                || (manifest == "Cargo.toml" && section == "dev-dependencies")
        }
        _ => true,
    };
    for manifest in MANIFESTS {
        for (section, library) in dependencies(manifest) {
            assert!(
                allowed(&library, manifest, &section),
                "{manifest} names {library} in [{section}]; that library belongs to another crate"
            );
        }
    }
    // The test would pass with a parser that finds nothing.
    let owners = [
        ("disruptor", "ringbuf"),
        ("io-uring", "storage"),
        ("memmap2", "storage"),
        ("mio", "net"),
    ];
    for (library, owner) in owners {
        let named = dependencies(&format!("{owner}/Cargo.toml"));
        assert!(
            named.iter().any(|(_, name)| name == library),
            "{owner} names {library}"
        );
    }
}

#[test]
fn every_source_file_says_what_it_is() {
    let mut seen = 0;
    for dir in ["src", "ringbuf/src", "storage/src", "net/src", "cli/src"] {
        for file in files(&root().join(dir), "rs") {
            let text = fs::read_to_string(&file).expect("a source file");
            assert!(
                text.starts_with("//!"),
                "{} does not begin with a `//!` head: what it is, what holds",
                file.display()
            );
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} files were found");
}

#[test]
fn every_dependency_says_why_it_is_there() {
    for manifest in MANIFESTS {
        let text = fs::read_to_string(root().join(manifest)).expect("a manifest of the workspace");
        let (mut section, mut previous) = ("", "");
        for line in text.lines() {
            if line.starts_with('[') {
                section = line.trim_matches(['[', ']']);
            } else if section.ends_with("dependencies")
                && section != "workspace.dependencies"
                && line.starts_with(|first: char| first.is_ascii_alphabetic())
                && !line.contains(".workspace")
            {
                assert!(
                    previous.starts_with('#'),
                    "{manifest}: no comment above `{line}`"
                );
            }
            previous = line;
        }
    }
}

/// The paths that a document names: targets of links, and what stands in backticks and looks like a
/// path of the repository.
fn paths_in(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_fence = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_fence = !in_fence;
            continue;
        }
        if in_fence {
            continue;
        }
        for target in line.split("](").skip(1) {
            let target = target.split([')', '#', ' ']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains(':') {
                found.push(target.to_owned());
            }
        }
        for quoted in line.split('`').skip(1).step_by(2) {
            let plain = quoted
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
            let top = quoted.split('/').next().unwrap_or_default();
            let is_path = quoted.contains('/') && plain && root().join(top).exists();
            let is_file = !quoted.contains('/')
                && plain
                && [".md", ".toml"]
                    .iter()
                    .any(|end| quoted.len() > end.len() && quoted.ends_with(end));
            if !top.is_empty() && (is_path || is_file) {
                found.push(quoted.to_owned());
            }
        }
    }
    found
}

#[test]
fn paths_in_documents_exist() {
    let mut documents = files(&root().join("docs"), "md");
    documents.extend(["README.md", "ARCHITECTURE.md"].map(|name| root().join(name)));
    let mut seen = 0;
    for document in documents {
        let text = fs::read_to_string(&document)
            .unwrap_or_else(|error| panic!("reading {}: {error}", document.display()));
        let beside = document.parent().expect("a document stands in a directory");
        for path in paths_in(&text) {
            seen += 1;
            assert!(
                beside.join(&path).exists() || root().join(&path).exists(),
                "{} names {path}, which does not exist",
                document.display()
            );
        }
    }
    assert!(seen > 0, "the documents name no path at all");
}
