//! What a snapshot is called: its id, its names in the folder, what it says of itself.

use std::fmt;

/// The folder, in the log's directory.
pub(crate) const FOLDER: &str = "snap";

/// Endings of the names in the folder.
pub(crate) const WHOLE: &str = "snap";

pub(crate) const PARTIAL: &str = "part";

pub(crate) const BAD: &str = "bad";

pub(crate) const UNFINISHED: &str = "tmp";

/// What a snapshot says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry in it.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Its time: the leader's clock, µs since the Unix epoch.
    pub time_us: u64,
    /// Who the members were as of that entry; opaque here, at most 64 KiB.
    pub members: Vec<u8>,
}

/// Names the bytes of a snapshot: two with the same id are the same. A later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId {
    /// The last entry in it.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Over the checksums of header and chunks.
    pub digest: u32,
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SnapshotId {
            index,
            term,
            bytes,
            digest,
        } = self;
        write!(f, "{index} of term {term}, {bytes} bytes, {digest:08x}")
    }
}

impl SnapshotId {
    /// The file's name without folder and ending.
    fn stem(&self) -> String {
        let SnapshotId {
            index,
            term,
            bytes,
            digest,
        } = self;
        format!("{index:016}-{term}-{bytes}-{digest:08x}")
    }

    /// The path of its file with this ending, in the directory of the log.
    pub(crate) fn file(&self, ending: &str) -> String {
        format!("{FOLDER}/{}.{ending}", self.stem())
    }

    /// The id in a file's name with this ending, if it is such a name.
    pub(crate) fn of_file(name: &str, ending: &str) -> Option<SnapshotId> {
        let stem = name.strip_suffix(ending)?.strip_suffix('.')?;
        let mut parts = stem.split('-');
        let mut number = || parts.next()?.parse().ok();
        let (index, term, bytes) = (number()?, number()?, number()?);
        let digest = u32::from_str_radix(parts.next()?, 16).ok()?;
        let id = SnapshotId {
            index,
            term,
            bytes,
            digest,
        };
        (id.stem() == stem).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_says_what_is_in_it() {
        let id = SnapshotId {
            index: 4711,
            term: 3,
            bytes: 123_456,
            digest: 0xAB,
        };
        assert_eq!(
            id.file(WHOLE),
            "snap/0000000000004711-3-123456-000000ab.snap"
        );
        let name = "0000000000004711-3-123456-000000ab.snap";
        assert_eq!(SnapshotId::of_file(name, WHOLE), Some(id));
        assert_eq!(id.to_string(), "4711 of term 3, 123456 bytes, 000000ab");
        for other in [
            "4711-3-123456-000000ab.snap",
            "0000000000004711-3-123456-ab.snap",
            "0000000000004711-3-123456-000000ab.part",
            "0000000000004711-3-123456-000000ab-1.snap",
            "0000000000004711-3-123456.snap",
            ".snap",
            "snap",
            "",
        ] {
            assert_eq!(SnapshotId::of_file(other, WHOLE), None, "{other}");
        }
        let large = SnapshotId {
            index: u64::MAX,
            term: u64::MAX,
            bytes: u64::MAX,
            digest: u32::MAX,
        };
        let name = format!("{}.part", large.stem());
        assert_eq!(SnapshotId::of_file(&name, PARTIAL), Some(large));
    }
}
