//! A disk that lies: it says that it has synced, and has not.

use std::io;

use dibs_log::{Entry, File, Lock, MemoryStorage, Storage};

/// A [`MemoryStorage`] whose log files never become durable on request. The others do, or a start would trip
/// over them before it comes to what was lost.
pub struct Unsynced(pub MemoryStorage);

struct UnsyncedFile(Box<dyn File>);

impl Storage for Unsynced {
    fn open(&self, path: &str, create: bool) -> io::Result<Box<dyn File>> {
        let file = self.0.open(path, create)?;
        Ok(if path.ends_with(".log") { Box::new(UnsyncedFile(file)) } else { file })
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        self.0.list(dir)
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.0.create_dir(path)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.0.remove(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.0.sync_dir(dir)
    }

    fn try_lock(&self, path: &str) -> io::Result<Option<Lock>> {
        self.0.try_lock(path)
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}

impl File for UnsyncedFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        self.0.read_at(buf, position)
    }

    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.0.write_at(bytes, position)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}
