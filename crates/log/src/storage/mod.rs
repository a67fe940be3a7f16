//! The smallest seam below the log: a folder of files that can be read, written and made durable.
//!
//! Paths are relative to the data folder, with `/` between a folder and a file; `""` is the data folder itself.

use std::{any::Any, io};

mod disk;
mod memory;

pub use disk::DiskStorage;
pub use memory::{Call, MemoryStorage};

/// A data folder. Nothing that a method here does is durable before [`Storage::sync_dir`] (names) or
/// [`File::sync_data`] (contents) has returned.
pub trait Storage: Send + Sync + 'static {
    /// Opens a file to read and write; `create` makes an empty one if there is none, and keeps one that is.
    fn open(&self, path: &str, create: bool) -> io::Result<Box<dyn File>>;
    /// What stands in a folder, sorted by name.
    fn list(&self, dir: &str) -> io::Result<Vec<Entry>>;
    /// Makes a folder; one that exists already is no error.
    fn create_dir(&self, path: &str) -> io::Result<()>;
    /// Removes a file, or a folder with all it holds.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Gives a file or folder another name, in one step; a file under the new name is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes the names in a folder durable: what was created, renamed and removed there.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Locks a file against other processes until the [`Lock`] is dropped. `None` if somebody holds it.
    fn try_lock(&self, path: &str) -> io::Result<Option<Lock>>;
    /// The folder's name for people, in errors.
    fn describe(&self) -> String;
}

/// An open file. Any number of threads may read while one writes.
pub trait File: Send + Sync {
    /// Length, in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads at a position until `buf` is full or the file ends; says how many bytes that were.
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize>;
    /// Appends up to `len` bytes from a position on to `out`, fewer if the file ends before; says how many.
    fn read_into(&self, out: &mut Vec<u8>, len: usize, position: u64) -> io::Result<usize> {
        let start = out.len();
        out.resize(start + len, 0);
        let done = self.read_at(&mut out[start..], position);
        out.truncate(start + done.as_ref().map_or(0, |n| *n));
        done
    }
    /// The open file itself, to send from it without a copy; `None` if there is none.
    #[cfg(unix)]
    fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
    /// Writes all bytes at a position, growing the file if needed. After an error some may be written.
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()>;
    /// Cuts the file, or lengthens it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Lengthens the file with zeros for which there is room on the disk, so that writing over them need not look for
    /// any. A system that cannot do it says so.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Makes contents and length durable. After an error nothing is known about what was written since the
    /// last success, and a later success does not say otherwise.
    fn sync_data(&self) -> io::Result<()>;
}

/// One name in a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name alone, without its folder.
    pub name: String,
    /// Whether it is a folder.
    pub is_dir: bool,
}

/// Holds a lock until dropped.
pub struct Lock {
    _guard: Box<dyn Any + Send + Sync>,
}

impl Lock {
    /// A lock that lasts as long as `guard`.
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        Lock { _guard: Box::new(guard) }
    }
}

/// Reads a whole small file; `None` if there is none.
pub(crate) fn read_file(storage: &dyn Storage, path: &str) -> io::Result<Option<Vec<u8>>> {
    let file = match storage.open(path, false) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = vec![0; file.len()? as usize];
    let n = file.read_at(&mut bytes, 0)?;
    bytes.truncate(n);
    Ok(Some(bytes))
}

/// Replaces a small file in the data folder as one step: after a crash it holds the old bytes or the new.
pub(crate) fn replace_file(storage: &dyn Storage, path: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{path}.tmp");
    write_file(storage, &temporary, bytes)?;
    storage.rename(&temporary, path)?;
    storage.sync_dir("")
}

/// Writes a whole small file, durably but for its name.
pub(crate) fn write_file(storage: &dyn Storage, path: &str, bytes: &[u8]) -> io::Result<()> {
    let file = storage.open(path, true)?;
    file.set_len(0)?;
    file.write_at(bytes, 0)?;
    file.sync_data()
}
