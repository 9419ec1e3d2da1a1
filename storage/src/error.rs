//! What can go wrong with a log on disk, with the facts an operator needs.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

/// An error of the storage. It is `Clone`, because a log that failed once gives the same answer to
/// every later call.
#[derive(Clone)]
#[non_exhaustive]
pub enum StorageError {
    /// The system refused or failed an operation. A failed write or flush is final for this process:
    /// what the file holds is not known until it is opened again.
    Io {
        /// What was being done.
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Where in the file, in bytes, when it has a place.
        offset: Option<u64>,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// Another process (or another log in this one) has the directory open.
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process id which the lock file names, when it could be read.
        holder: Option<u32>,
    },
    /// The files belong to another cluster, group or node.
    Foreign {
        /// The file that says so.
        path: PathBuf,
        /// Which name differs.
        what: &'static str,
        /// What the file says.
        found: u64,
        /// What was asked for.
        expected: u64,
    },
    /// A file of a format version which this build does not read.
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version this build reads.
        supported: u32,
    },
    /// Something that had been made durable is damaged or missing. Nothing was changed; a node with
    /// peers can be repaired from them, one without needs a backup.
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// The first index which is bad, when it is about a record.
        index: Option<u64>,
        /// What was found.
        detail: String,
    },
    /// Something is wrong with one snapshot. The log is not touched by it, and neither are other snapshots.
    Snapshot {
        /// Its file.
        path: PathBuf,
        /// Which bytes of the file, when it is about some: the first range that is bad.
        bytes: Option<Range<u64>>,
        /// What was found.
        detail: String,
    },
    /// Options which do not fit together.
    Config(String),
}

impl StorageError {
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> StorageError {
        StorageError::Io {
            op,
            path: path.into(),
            offset: None,
            source: Arc::new(source),
        }
    }

    pub(crate) fn snapshot(
        path: &Path,
        bytes: impl Into<Option<Range<u64>>>,
        detail: impl Into<String>,
    ) -> StorageError {
        StorageError::Snapshot {
            path: path.into(),
            bytes: bytes.into(),
            detail: detail.into(),
        }
    }

    /// There was no descriptor for it: the process or the system has used up its limit of open files. That says nothing
    /// about the file, and may pass.
    pub fn is_exhausted(&self) -> bool {
        matches!(self, StorageError::Io { source, .. } if crate::medium::descriptor::is_exhausted(source))
    }

    /// The same for whoever reads and writes by the traits of `std::io`.
    pub(crate) fn into_io(self) -> io::Error {
        let kind = match &self {
            StorageError::Io { source, .. } => source.kind(),
            StorageError::Snapshot { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }

    pub(crate) fn corrupt(path: &Path, offset: u64, detail: impl Into<String>) -> StorageError {
        StorageError::Corrupt {
            path: path.into(),
            offset,
            index: None,
            detail: detail.into(),
        }
    }
}

/// Says what was being done when an operation of the system failed.
pub(crate) trait Doing<T> {
    /// `op` on the file or directory `path`.
    fn doing(self, op: &'static str, path: &Path) -> Result<T, StorageError>;
    /// `op` at `offset` of the file `path`.
    fn doing_at(self, op: &'static str, path: &Path, offset: u64) -> Result<T, StorageError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, op: &'static str, path: &Path) -> Result<T, StorageError> {
        self.map_err(|e| StorageError::io(op, path, e))
    }

    fn doing_at(self, op: &'static str, path: &Path, at: u64) -> Result<T, StorageError> {
        self.map_err(|e| StorageError::Io {
            op,
            path: path.into(),
            offset: Some(at),
            source: Arc::new(e),
        })
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageError::Io {
                op,
                path,
                offset,
                source,
            } => {
                write!(f, "cannot {op} {}", path.display())?;
                if let Some(offset) = offset {
                    write!(f, " at offset {offset}")?;
                }
                write!(f, ": {source}")?;
                if source.kind() == io::ErrorKind::StorageFull {
                    write!(f, " (free some space and start again)")?;
                }
                if let Some(advice) = crate::medium::descriptor::advice(source) {
                    write!(f, " ({advice})")?;
                }
                if *op == "map" && source.kind() == io::ErrorKind::OutOfMemory {
                    let why = "each segment is one mapping: raise vm.max_map_count or the size of segments";
                    write!(f, " ({why})")?;
                }
                Ok(())
            }
            StorageError::Locked { path, holder } => {
                let path = path.display();
                match holder {
                    // A process in another container may have the same number.
                    Some(pid) if *pid == std::process::id() => write!(
                        f,
                        "directory {path} is in use by this process already (pid {pid}, or one of that number in \
                         another container): a node of it has not been shut down"
                    ),
                    Some(pid) => {
                        write!(
                            f,
                            "directory {path} is in use by another process (pid {pid})"
                        )
                    }
                    None => write!(f, "directory {path} is in use by another process"),
                }
            }
            StorageError::Foreign {
                path,
                what,
                found,
                expected,
            } => {
                // Clusters are named in hexadecimal everywhere, groups and nodes in decimal.
                let of = |id: &u64| match *what {
                    "cluster" => format!("{id:#x}"),
                    _ => id.to_string(),
                };
                write!(
                    f,
                    "{} belongs to {what} {}, this node was started for {what} {}; is the directory the right one?",
                    path.display(),
                    of(found),
                    of(expected)
                )
            }
            StorageError::Version {
                path,
                found,
                supported,
            } => write!(
                f,
                "{} has format version {found}, this build reads version {supported}",
                path.display()
            ),
            StorageError::Corrupt {
                path,
                offset,
                index,
                detail,
            } => {
                write!(f, "{} is damaged at offset {offset}", path.display())?;
                if let Some(index) = index {
                    write!(f, ", index {index}")?;
                }
                write!(f, ": {detail}; nothing was changed")
            }
            StorageError::Snapshot {
                path,
                bytes,
                detail,
            } => {
                write!(f, "snapshot {}", path.display())?;
                if let Some(bytes) = bytes {
                    write!(f, ", bytes {}..{}", bytes.start, bytes.end)?;
                }
                write!(f, ": {detail}")
            }
            StorageError::Config(detail) => write!(f, "storage options: {detail}"),
        }
    }
}

/// The sentence: a `main` that returns it prints this.
impl fmt::Debug for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for StorageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StorageError::Io { source, .. } => Some(&**source),
            _ => None,
        }
    }
}
