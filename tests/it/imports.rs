//! Which file imports which: no circles, and each folder only what it may.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of a crate, each with those that it imports. `mod` and `pub use` of a module's own children are no imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// What each room of `storage/src` may import: a folder, or a file beside the folders. The further down, the more it knows.
const STORAGE: [(&str, &[&str]); 12] = [
    ("record", &[]),
    ("damage", &[]),
    ("decision", &[]),
    ("medium", &[]),
    ("error", &["medium"]),
    // It checks its values against what the formats allow.
    ("options", &["error", "log", "medium", "record", "snapshot"]),
    ("files", &["damage", "error", "medium", "record"]),
    (
        "snapshot",
        &["decision", "error", "files", "medium", "options", "record"],
    ),
    (
        "log",
        &[
            "decision", "error", "files", "medium", "options", "record", "snapshot",
        ],
    ),
    (
        "recovery",
        &[
            "damage", "decision", "error", "files", "log", "medium", "options", "record",
            "snapshot",
        ],
    ),
    (
        "scrub",
        &[
            "damage", "error", "files", "log", "medium", "record", "recovery",
        ],
    ),
    (
        "inspect",
        &[
            "damage", "decision", "error", "files", "log", "medium", "options", "record",
            "recovery", "snapshot",
        ],
    ),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn source_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory of the repository") {
        let path = entry.expect("an entry of it").path();
        let is_tests = path
            .file_stem()
            .is_some_and(|name| name == "tests" || name == "lib");
        if path.is_dir() && !is_tests {
            source_files(&path, found);
        } else if path.extension().is_some_and(|is| is == "rs") && !is_tests {
            found.push(path);
        }
    }
}

/// The text without comments and without the tests at its end.
fn code(text: &str) -> String {
    let text = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d` and `a::c::e`.
fn unfold(path: &str, found: &mut Vec<String>) {
    let path = path.split_whitespace().collect::<Vec<_>>().join(" ");
    let Some((head, rest)) = path.split_once('{') else {
        let path = path.split(" as ").next().unwrap_or_default();
        found.push(path.to_owned());
        return;
    };
    let (mut depth, mut begin) = (0, 0);
    let inside = rest.trim_end().strip_suffix('}').expect("a closing brace");
    for (at, c) in inside.char_indices().chain([(inside.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = inside[begin..at].trim();
                if !part.is_empty() {
                    unfold(&format!("{head}{part}"), found);
                }
                begin = at + 1;
            }
            _ => {}
        }
    }
}

/// The paths that a file names: those that it uses, and those that it spells out from `crate` on.
fn named(code: &str, hands_on: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = String::new();
    for statement in code.split_inclusive(';') {
        // At the beginning of a line, but for how far it is to be seen.
        let used = statement.rfind("use ").filter(|&at| {
            let line = statement[..at].rsplit('\n').next().unwrap_or_default();
            let before = line.trim();
            before.is_empty() || before.starts_with("pub") && !before.contains(['"', '{'])
        });
        match used {
            Some(at) if statement.ends_with(';') => {
                let path = statement[at + 4..].trim_end_matches(';');
                let is_own = !path.trim_start().starts_with("crate");
                let is_public = statement[..at].trim_end().ends_with("pub");
                if !(hands_on && is_public && is_own) {
                    unfold(path, &mut found);
                }
            }
            _ => rest.push_str(statement),
        }
    }
    for spelled in rest.split("crate::").skip(1) {
        let end = spelled.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
        found.push(format!(
            "crate::{}",
            &spelled[..end.unwrap_or(spelled.len())]
        ));
    }
    found
}

/// The imports within the crate whose sources are in this folder.
fn imports(folder: &str) -> Imports {
    let source = root().join(folder);
    let mut files = Vec::new();
    source_files(&source, &mut files);
    let module = |file: &Path| {
        let inside = file.strip_prefix(&source).expect("below its folder");
        let name = inside
            .with_extension("")
            .to_string_lossy()
            .replace('/', "::");
        name.strip_suffix("::mod").unwrap_or(&name).to_owned()
    };
    let modules: BTreeMap<String, PathBuf> = files
        .iter()
        .map(|file| (module(file), file.clone()))
        .collect();
    let mut imports = Imports::new();
    for (name, file) in &modules {
        let text = fs::read_to_string(file).expect("a source file");
        let hands_on = file.ends_with("mod.rs") || file.with_extension("").is_dir();
        let mut targets = BTreeSet::new();
        for path in named(&code(&text), hands_on) {
            let mut parts: Vec<&str> = path.split("::").collect();
            let mut from: Vec<&str> = match parts[0] {
                "crate" => Vec::new(),
                "self" | "super" => name.split("::").collect(),
                _ => continue,
            };
            while matches!(parts.first(), Some(&"crate" | &"self" | &"super")) {
                if parts.remove(0) == "super" {
                    from.pop();
                }
            }
            from.extend(parts);
            while !from.is_empty() && !modules.contains_key(&from.join("::")) {
                from.pop();
            }
            let target = from.join("::");
            // A file that adds methods to its parent's type imports that: one room in several files.
            let is_parent = name == &target || name.starts_with(&format!("{target}::"));
            if !from.is_empty() && !is_parent {
                targets.insert(target);
            }
        }
        imports.insert(name.clone(), targets);
    }
    imports
}

/// Modules that import each other in a loop, if there are any.
fn circle(imports: &Imports) -> Option<Vec<String>> {
    let mut left: BTreeSet<&str> = imports.keys().map(String::as_str).collect();
    // What imports nothing that is left, or is imported by nothing that is left, is in no circle.
    loop {
        let imports_left = |of: &str| imports[of].iter().any(|to| left.contains(to.as_str()));
        let imported = |of: &str| left.iter().any(|from| imports[*from].contains(of));
        let free: Vec<&str> = left
            .iter()
            .copied()
            .filter(|of| !imports_left(of) || !imported(of))
            .collect();
        if free.is_empty() {
            break;
        }
        for of in free {
            left.remove(of);
        }
    }
    (!left.is_empty()).then(|| left.iter().map(|&name| name.to_owned()).collect())
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for (folder, least) in [
        ("ringbuf/src", 5),
        ("storage/src", 50),
        ("net/src", 15),
        ("cli/src", 5),
        ("src", 100),
    ] {
        let imports = imports(folder);
        let count: usize = imports.values().map(BTreeSet::len).sum();
        assert!(imports.len() >= least, "{folder}: {} files", imports.len());
        assert!(count >= imports.len() / 2, "{folder}: only {count} imports");
        assert_eq!(
            circle(&imports),
            None,
            "{folder}: these import each other in a circle"
        );
    }
}

#[test]
fn a_folder_imports_only_what_it_may() {
    let room = |module: &str| module.split("::").next().unwrap_or_default().to_owned();
    for (from, targets) in imports("storage/src") {
        let own = room(&from);
        let (_, may) = STORAGE
            .iter()
            .find(|(name, _)| *name == own)
            .unwrap_or_else(|| panic!("storage/src/{own} is not in the table"));
        for to in targets.iter().map(|to| room(to)).filter(|to| *to != own) {
            assert!(
                may.contains(&to.as_str()),
                "storage/src: {from} imports from {to}, which {own} may not"
            );
        }
    }
}

#[test]
fn a_circle_is_found() {
    let imports = |pairs: &[(&str, &[&str])]| -> Imports {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        pairs
            .iter()
            .map(|(from, to)| ((*from).to_owned(), owned(to)))
            .collect()
    };
    let line = imports(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])]);
    assert_eq!(circle(&line), None);
    let loops = imports(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &["a"])]);
    assert_eq!(circle(&loops), Some(vec!["b".to_owned(), "c".to_owned()]));
    let code = "use crate::a::{b, c::{d, self}};\npub use self::e::F;\nlet x = crate::g::h();";
    assert_eq!(
        named(code, true),
        [
            "crate::a::b",
            "crate::a::c::d",
            "crate::a::c::self",
            "crate::g::h"
        ]
    );
}
