//! Which directories a command is about.

use std::path::{Path, PathBuf};

use crate::Failed;

/// The directories of the groups in `dir`, by number; or `dir` itself when it is one.
pub(crate) fn groups(dir: &Path) -> Result<Vec<PathBuf>, Failed> {
    let refused = |error| Failed::Said(format!("cannot read directory {}: {error}", dir.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(refused)? {
        let path = entry.map_err(refused)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix("group-"));
        if let Some(number) = number.and_then(|number| number.parse::<u32>().ok())
            && path.is_dir()
        {
            found.push((number, path));
        }
    }
    found.sort();
    if !found.is_empty() {
        return Ok(found.into_iter().map(|(_, path)| path).collect());
    }
    let of_a_group = ["identity", "meta", "log"]
        .iter()
        .any(|name| dir.join(name).exists());
    if of_a_group {
        return Ok(vec![dir.to_owned()]);
    }
    Err(Failed::Said(format!(
        "{} is no data directory of a node: it has no folder `group-N`, and no log of its own",
        dir.display()
    )))
}
