//! A file that is open only while something is written to it or flushed.
//!
//! A closed segment stays mapped, so reading it takes no descriptor; whatever has to change its file opens it again by its
//! name, and sees that it is the same file. So the number of open segment files has a bound whatever the length of the log.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Doing, StorageError};
use crate::medium::{Dir, File, FileId};

/// The file of a segment, open or closed.
pub(crate) enum Handle<F> {
    Open(F),
    Closed {
        /// For messages.
        path: PathBuf,
        id: FileId,
        /// By its name in the directory of the log.
        open: Box<dyn Fn() -> io::Result<F> + Send + Sync>,
    },
}

impl<F> std::fmt::Debug for Handle<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Handle::Open(_) => "Open",
            Handle::Closed { .. } => "Closed",
        })
    }
}

impl<F: File> Handle<F> {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Handle::Open(file) => file.path(),
            Handle::Closed { path, .. } => path,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Handle::Open(_))
    }

    /// The file of a segment that is written to: it is open.
    pub(crate) fn file(&self) -> &F {
        match self {
            Handle::Open(file) => file,
            Handle::Closed { path, .. } => panic!("{} is written to and not open", path.display()),
        }
    }

    /// Closes the file, of which all is flushed or being flushed, and which has this name in `dir`.
    pub(crate) fn close<D: Dir<File = F>>(&mut self, dir: &D, name: String) {
        if let Handle::Open(file) = self
            // Without its identity it stays open: nobody could tell it from another one later on.
            && let Ok(id) = file.id()
        {
            let (path, dir) = (file.path().into(), dir.clone());
            let open = Box::new(move || dir.open(&name));
            *self = Handle::Closed { path, id, open };
        }
    }

    /// The file for a while: it stays as open or closed as it is.
    pub(crate) fn get(&self) -> Result<F, StorageError> {
        let (path, id, open) = match self {
            Handle::Open(file) => return Ok(file.clone()),
            Handle::Closed { path, id, open } => (path, id, open),
        };
        let file = open().doing("open", path)?;
        if file.id().doing("look at", path)? != *id {
            let detail = "another file has taken the place of the one that the log has written";
            return Err(StorageError::corrupt(path, 0, detail));
        }
        Ok(file)
    }

    /// Opens the file again, to be written to.
    pub(crate) fn open(&mut self) -> Result<&F, StorageError> {
        if !self.is_open() {
            *self = Handle::Open(self.get()?);
        }
        Ok(self.file())
    }
}
