//! A folder on a real disk.

use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{Entry, File, Lock, Storage};

/// A folder of the operating system.
#[derive(Clone, Debug)]
pub struct DiskStorage {
    folder: PathBuf,
}

impl DiskStorage {
    /// Takes a folder, and makes it (with its parents, durably) if there is none.
    pub fn new(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let folder = folder.into();
        let mut missing: Vec<&Path> = folder.ancestors().take_while(|p| !p.exists()).collect();
        fs::create_dir_all(&folder)?;
        while let Some(made) = missing.pop() {
            if let Some(parent) = made.parent() {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                fs::File::open(parent)?.sync_all()?;
            }
        }
        Ok(DiskStorage { folder })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.folder.clone() } else { self.folder.join(path) }
    }
}

impl Storage for DiskStorage {
    fn open(&self, path: &str, create: bool) -> io::Result<Box<dyn File>> {
        let options = fs::OpenOptions::new().read(true).write(true).create(create).truncate(false).to_owned();
        Ok(Box::new(DiskFile(options.open(self.at(path))?)))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.at(dir))? {
            let entry = entry?;
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(Entry { name, is_dir: entry.file_type()?.is_dir() });
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        match fs::create_dir(self.at(path)) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let path = self.at(path);
        if fs::symlink_metadata(&path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.at(from), self.at(to))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        fs::File::open(self.at(dir))?.sync_all()
    }

    fn try_lock(&self, path: &str) -> io::Result<Option<Lock>> {
        let options = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).to_owned();
        let file = options.open(self.at(path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock::new(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }

    fn describe(&self) -> String {
        self.folder.display().to_string()
    }
}

struct DiskFile(fs::File);

impl File for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.0.read_at(&mut buf[done..], position + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn read_into(&self, out: &mut Vec<u8>, len: usize, position: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < len {
            match uninit::read(&self.0, out, len - done, position + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(done)
    }

    fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        Some(std::os::fd::AsFd::as_fd(&self.0))
    }

    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, position)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    #[cfg(target_os = "linux")]
    fn allocate(&self, len: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let old = self.len()?;
        Ok(fallocate(&self.0, FallocateFlags::empty(), old, len.saturating_sub(old))?)
    }

    #[cfg(not(target_os = "linux"))]
    fn allocate(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Reading without filling the buffer with zeros first, which std does not offer for a position in a file: 3 to
/// 4 % of what a reader of the log costs.
#[allow(unsafe_code)]
mod uninit {
    use std::fs::File;

    use rustix::io::{Errno, pread};

    /// Appends up to `len` bytes of the file, by one call.
    pub(super) fn read(file: &File, out: &mut Vec<u8>, len: usize, position: u64) -> Result<usize, Errno> {
        out.reserve(len);
        let (read, _) = pread(file, &mut out.spare_capacity_mut()[..len], position)?;
        let n = read.len();
        let new_len = out.len() + n;
        // SAFETY: `pread` has initialised `read`, the first `n` bytes of the spare capacity.
        unsafe { out.set_len(new_len) };
        Ok(n)
    }
}
