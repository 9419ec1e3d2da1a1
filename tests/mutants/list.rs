//! A planted bug: a text in a source file and what it is replaced by. One file each, in `list`.
//!
//! ```text
//! What the bug is, in words.
//!
//! lesson: which known bug of others it is
//! catcher: simulate
//!
//! --- product src/raft/follower.rs
//!         the text, which occurs once in that file
//! --- mutant
//!         what stands there instead
//! ```
//!
//! There may be more than one pair. The catcher says who must notice:
//!
//! | catcher | means |
//! |---|---|
//! | `simulate` | `examples/simulate.rs`, within the seeds of the run |
//! | `loom` | the wake-ups of `ringbuf` under loom |
//! | `test …` | `cargo test …`, for what no simulated run can show; the words say why |

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs};

/// Who must notice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Catcher {
    Simulate,
    Loom,
    Test(Vec<String>),
}

impl fmt::Display for Catcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Simulate => f.write_str("simulate"),
            Self::Loom => f.write_str("loom"),
            Self::Test(arguments) => write!(f, "test {}", arguments.join(" ")),
        }
    }
}

impl FromStr for Catcher {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        match words.next() {
            Some("simulate") => Ok(Self::Simulate),
            Some("loom") => Ok(Self::Loom),
            Some("test") => Ok(Self::Test(words.map(str::to_owned).collect())),
            _ => Err(format!("`{text}` is no catcher")),
        }
    }
}

/// A replacement.
#[derive(Clone, Debug)]
pub struct Edit {
    pub file: PathBuf,
    pub product: String,
    pub mutant: String,
}

/// A planted bug.
#[derive(Clone, Debug)]
pub struct Mutant {
    pub name: String,
    pub why: String,
    pub lesson: String,
    pub catcher: Catcher,
    pub edits: Vec<Edit>,
}

/// All of them, by name.
pub fn read(root: &Path) -> Result<Vec<Mutant>, String> {
    let folder = root.join("tests/mutants/list");
    let shown = folder.display();
    let entries = fs::read_dir(&folder).map_err(|e| format!("{shown}: {e}"))?;
    let mut mutants = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| format!("{shown}: {e}"))?.path();
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let mutant = parse(&name, &text).map_err(|e| format!("{}: {e}", path.display()))?;
        mutants.push(mutant);
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

fn parse(name: &str, text: &str) -> Result<Mutant, String> {
    let mut parts = text.split("\n--- product ");
    let head = parts.next().unwrap_or_default();
    let field = |key: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(key));
        let value = line.map(|value| value.trim().to_owned());
        value.ok_or_else(|| format!("there is no line `{key} …`"))
    };
    let catcher = field("catcher:")?.parse()?;
    let why = head.split("\n\n").next().unwrap_or_default();
    let mut edits = Vec::new();
    for part in parts {
        let (file, rest) = part.split_once('\n').ok_or("a product part is empty")?;
        let (product, mutant) = rest
            .split_once("\n--- mutant\n")
            .ok_or("a product part has no mutant part")?;
        edits.push(Edit {
            file: PathBuf::from(file.trim()),
            product: product.to_owned(),
            mutant: mutant.trim_end_matches('\n').to_owned(),
        });
    }
    if edits.is_empty() || why.is_empty() {
        return Err("it changes nothing, or does not say why".to_owned());
    }
    Ok(Mutant {
        name: name.to_owned(),
        why: why.replace('\n', " "),
        lesson: field("lesson:")?,
        catcher,
        edits,
    })
}

impl Mutant {
    /// The changed files: where, and what they hold.
    pub fn apply(&self, root: &Path) -> Result<Vec<(PathBuf, String)>, String> {
        let mut changed: Vec<(PathBuf, String)> = Vec::new();
        for edit in &self.edits {
            let path = root.join(&edit.file);
            let at = match changed.iter().position(|(of, _)| *of == path) {
                Some(at) => at,
                None => {
                    let text = fs::read_to_string(&path);
                    let text = text.map_err(|e| format!("{}: {e}", edit.file.display()))?;
                    changed.push((path, text));
                    changed.len() - 1
                }
            };
            let text = &mut changed[at].1;
            match text.matches(&edit.product).count() {
                1 => *text = text.replacen(&edit.product, &edit.mutant, 1),
                count => {
                    let (name, file) = (&self.name, edit.file.display());
                    return Err(format!(
                        "{name}: its text is {count} times in {file}, not once: the product has changed, \
                         and the mutant must follow"
                    ));
                }
            }
            if edit.product == edit.mutant {
                return Err(format!("{}: it changes nothing", self.name));
            }
        }
        Ok(changed)
    }
}
