//! A data folder in memory that fails like a disk: on demand, and the same way for the same seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Entry, File, Lock, Storage};

/// What a disk writes as one: a power cut keeps a sector, loses it, or tears it.
const SECTOR: usize = 512;
/// Input/output error.
const EIO: i32 = 5;
/// Stale file handle.
const ESTALE: i32 = 116;
/// No space left on device.
const ENOSPC: i32 = 28;

/// The kinds of calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Storage::open`].
    Open,
    /// [`Storage::list`].
    List,
    /// [`Storage::create_dir`].
    CreateDir,
    /// [`Storage::remove`].
    Remove,
    /// [`Storage::rename`].
    Rename,
    /// [`Storage::sync_dir`].
    SyncDir,
    /// [`File::read_at`].
    Read,
    /// [`File::write_at`].
    Write,
    /// [`File::set_len`].
    SetLen,
    /// [`File::allocate`].
    Allocate,
    /// [`File::sync_data`].
    Sync,
}

/// A data folder in memory. Clones are handles to the same folder.
///
/// It remembers apart what is durable and what is only written, and [`MemoryStorage::crash`] takes away the
/// difference, or parts of it, as a power cut would: every 512-byte sector written since the last
/// [`File::sync_data`] is by itself kept, lost or torn, and every name changed since the last
/// [`Storage::sync_dir`] by itself kept or lost. A failed sync leaves the bytes readable but forgets that they
/// are not durable, as Linux does.
#[derive(Clone)]
pub struct MemoryStorage {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    /// Index is the inode number; 0 is the data folder.
    nodes: Vec<Node>,
    locks: BTreeSet<String>,
    /// Counts crashes. A handle from before a crash is stale.
    life: u64,
    random: Random,
    faults: Vec<Fault>,
    capacity: Option<u64>,
    /// Calls that change something, left until the power goes.
    power: Option<u64>,
    changes: u64,
}

enum Node {
    Dir { now: BTreeMap<String, usize>, durable: BTreeMap<String, usize> },
    File { now: Vec<u8>, durable: Vec<u8>, dirty: BTreeSet<usize>, len_dirty: bool },
}

struct Fault {
    call: Call,
    /// How many calls of the kind still succeed.
    skip: u64,
    /// How many then fail.
    times: u64,
    errno: i32,
}

impl MemoryStorage {
    /// An empty folder. The seed decides what a crash takes.
    pub fn new(seed: u64) -> Self {
        let root = Node::Dir { now: BTreeMap::new(), durable: BTreeMap::new() };
        let inner = Inner {
            nodes: vec![root],
            locks: BTreeSet::new(),
            life: 0,
            random: Random(seed),
            faults: Vec::new(),
            capacity: None,
            power: None,
            changes: 0,
        };
        MemoryStorage { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Cuts the power and turns it on again: unsynced writes and names are kept, lost or torn; every handle and
    /// lock from before is void; planned faults are forgotten.
    pub fn crash(&self) {
        let mut inner = self.inner();
        let Inner { nodes, random, .. } = &mut *inner;
        for node in nodes {
            node.crash(random);
        }
        inner.life += 1;
        inner.locks.clear();
        inner.faults.clear();
        inner.power = None;
    }

    /// Makes calls of a kind fail with an operating system's error number (28 is ENOSPC, 5 is EIO): the `nth`
    /// from now (1 is the next one), and the following ones until `times` have failed. A failed write writes
    /// some of its bytes all the same.
    pub fn fail(&self, call: Call, nth: u64, times: u64, errno: i32) {
        self.inner().faults.push(Fault { call, skip: nth.saturating_sub(1), times, errno });
    }

    /// Lets every call from the `nth` one that changes something (1 is the next one) fail with EIO until
    /// [`MemoryStorage::crash`]. A write at which the power goes is written, but not synced.
    pub fn cut_power_at(&self, nth: u64) {
        self.inner().power = Some(nth.max(1));
    }

    /// How many calls that change something were made so far: a range for [`MemoryStorage::cut_power_at`].
    pub fn changes(&self) -> u64 {
        self.inner().changes
    }

    /// Forgets planned faults.
    pub fn heal(&self) {
        let mut inner = self.inner();
        inner.faults.clear();
        inner.power = None;
    }

    /// Bounds the bytes of all files together. A write beyond it is cut short and fails with ENOSPC.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.inner().capacity = bytes;
    }

    /// Bytes of all files that have a name.
    pub fn used(&self) -> u64 {
        self.inner().used()
    }

    /// Turns one bit over, durably, behind everybody's back. Panics if there is no such file or bit.
    pub fn flip_bit(&self, path: &str, position: u64, bit: u8) {
        let mut inner = self.inner();
        let node = inner.find(path).expect("the file exists");
        let Node::File { now, durable, .. } = &mut inner.nodes[node] else { panic!("{path} is a folder") };
        now[position as usize] ^= 1 << bit;
        if let Some(byte) = durable.get_mut(position as usize) {
            *byte ^= 1 << bit;
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    fn crash(&mut self, random: &mut Random) {
        match self {
            Node::Dir { now, durable } => {
                let names: BTreeSet<String> = now.keys().chain(durable.keys()).cloned().collect();
                for name in names {
                    let (new, old) = (now.get(&name).copied(), durable.get(&name).copied());
                    if new != old {
                        match if random.below(2) == 0 { new } else { old } {
                            Some(node) => durable.insert(name, node),
                            None => durable.remove(&name),
                        };
                    }
                }
                *now = durable.clone();
            }
            Node::File { now, durable, dirty, len_dirty } => {
                if *len_dirty {
                    let (low, high) = (now.len().min(durable.len()), now.len().max(durable.len()));
                    let len = match random.below(3) {
                        0 => now.len(),
                        1 => durable.len(),
                        _ => low + random.below((high - low) as u64 + 1) as usize,
                    };
                    durable.resize(len, 0);
                }
                for sector in std::mem::take(dirty) {
                    let from = sector * SECTOR;
                    let end = (from + SECTOR).min(now.len()).min(durable.len());
                    if from >= end {
                        continue;
                    }
                    let kept = match random.below(3) {
                        0 => end - from,
                        1 => 0,
                        _ => random.below((end - from) as u64 + 1) as usize,
                    };
                    durable[from..from + kept].copy_from_slice(&now[from..from + kept]);
                }
                *len_dirty = false;
                *now = durable.clone();
            }
        }
    }

    fn resize(&mut self, new: usize) {
        let Node::File { now, dirty, len_dirty, .. } = self else { return };
        let old = now.len();
        if old != new {
            *len_dirty = true;
            now.resize(new, 0);
            // Bytes that come back as zeros differ from what the disk holds there.
            dirty.extend(old.min(new) / SECTOR..old.max(new).div_ceil(SECTOR));
        }
    }

    fn sync(&mut self) {
        if let Node::File { now, durable, dirty, len_dirty } = self {
            durable.resize(now.len(), 0);
            for sector in std::mem::take(dirty) {
                let from = sector * SECTOR;
                let end = (from + SECTOR).min(now.len());
                if from < end {
                    durable[from..end].copy_from_slice(&now[from..end]);
                }
            }
            *len_dirty = false;
        }
    }
}

impl Inner {
    /// Counts the call, and fails it if that is planned. `changes` tells calls that need power.
    fn enter(&mut self, call: Call, changes: bool) -> io::Result<()> {
        if self.power == Some(0) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if changes {
            self.changes += 1;
        }
        for fault in &mut self.faults {
            if fault.call == call && fault.times > 0 {
                if fault.skip > 0 {
                    fault.skip -= 1;
                } else {
                    fault.times -= 1;
                    return Err(io::Error::from_raw_os_error(fault.errno));
                }
            }
        }
        Ok(())
    }

    /// Says whether the power goes with this very call.
    fn goes_dark(&mut self) -> bool {
        if let Some(left) = &mut self.power {
            if *left > 0 {
                *left -= 1;
            }
            return *left == 0;
        }
        false
    }

    fn find(&self, path: &str) -> io::Result<usize> {
        let mut at = 0;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            at = *self.dir(at)?.get(name).ok_or_else(not_found)?;
        }
        Ok(at)
    }

    fn dir(&self, node: usize) -> io::Result<&BTreeMap<String, usize>> {
        match &self.nodes[node] {
            Node::Dir { now, .. } => Ok(now),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// The names of a path's folder, and the path's own name in it.
    fn place<'p>(&mut self, path: &'p str) -> io::Result<(&mut BTreeMap<String, usize>, &'p str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let at = self.find(dir)?;
        match &mut self.nodes[at] {
            Node::Dir { now, .. } => Ok((now, name)),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn make(&mut self, path: &str, node: Node) -> io::Result<usize> {
        let new = self.nodes.len();
        let (names, name) = self.place(path)?;
        names.insert(name.to_owned(), new);
        self.nodes.push(node);
        Ok(new)
    }

    fn used(&self) -> u64 {
        let mut used = 0;
        let mut folders = vec![0];
        while let Some(folder) = folders.pop() {
            let Node::Dir { now, .. } = &self.nodes[folder] else { continue };
            for &node in now.values() {
                match &self.nodes[node] {
                    Node::Dir { .. } => folders.push(node),
                    Node::File { now, .. } => used += now.len() as u64,
                }
            }
        }
        used
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Storage for MemoryStorage {
    fn open(&self, path: &str, create: bool) -> io::Result<Box<dyn File>> {
        let mut inner = self.inner();
        inner.enter(Call::Open, false)?;
        let node = match inner.find(path) {
            Ok(node) if matches!(inner.nodes[node], Node::Dir { .. }) => {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            Ok(node) => node,
            Err(e) if create && e.kind() == io::ErrorKind::NotFound => {
                inner.changes += 1;
                let file = Node::File {
                    now: Vec::new(),
                    durable: Vec::new(),
                    dirty: BTreeSet::new(),
                    len_dirty: false,
                };
                let node = inner.make(path, file)?;
                if inner.goes_dark() {
                    return Err(io::Error::from_raw_os_error(EIO));
                }
                node
            }
            Err(e) => return Err(e),
        };
        Ok(Box::new(MemoryFile { storage: self.clone(), node, life: inner.life }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let mut inner = self.inner();
        inner.enter(Call::List, false)?;
        let node = inner.find(dir)?;
        let entry = |(name, node): (&String, &usize)| Entry {
            name: name.clone(),
            is_dir: matches!(inner.nodes[*node], Node::Dir { .. }),
        };
        Ok(inner.dir(node)?.iter().map(entry).collect())
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.enter(Call::CreateDir, true)?;
        if inner.find(path).is_err() {
            inner.make(path, Node::Dir { now: BTreeMap::new(), durable: BTreeMap::new() })?;
        }
        if inner.goes_dark() { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.enter(Call::Remove, true)?;
        let (names, name) = inner.place(path)?;
        names.remove(name).ok_or_else(not_found)?;
        if inner.goes_dark() { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.enter(Call::Rename, true)?;
        let (names, name) = inner.place(from)?;
        let node = names.remove(name).ok_or_else(not_found)?;
        let (names, name) = inner.place(to)?;
        names.insert(name.to_owned(), node);
        if inner.goes_dark() { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.enter(Call::SyncDir, true)?;
        if inner.goes_dark() {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let node = inner.find(dir)?;
        match &mut inner.nodes[node] {
            Node::Dir { now, durable } => durable.clone_from(now),
            Node::File { .. } => return Err(io::ErrorKind::NotADirectory.into()),
        }
        Ok(())
    }

    fn try_lock(&self, path: &str) -> io::Result<Option<Lock>> {
        let mut inner = self.inner();
        let life = inner.life;
        let free = inner.locks.insert(path.to_owned());
        Ok(free.then(|| Lock::new(Held { storage: self.clone(), path: path.to_owned(), life })))
    }

    fn describe(&self) -> String {
        "(memory)".to_owned()
    }
}

/// Frees a lock when dropped, unless a crash has done so.
struct Held {
    storage: MemoryStorage,
    path: String,
    life: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.storage.inner();
        if inner.life == self.life {
            inner.locks.remove(&self.path);
        }
    }
}

struct MemoryFile {
    storage: MemoryStorage,
    node: usize,
    life: u64,
}

impl MemoryFile {
    /// Runs a call on the file's bytes, or fails it: stale handle, planned fault, no power.
    fn call<T>(&self, call: Call, run: impl FnOnce(&mut Node) -> T) -> io::Result<T> {
        let mut inner = self.storage.inner();
        if inner.life != self.life {
            return Err(io::Error::from_raw_os_error(ESTALE));
        }
        let changes = call != Call::Read;
        if inner.power == Some(0) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if let Err(e) = inner.enter(call, changes) {
            // A failed sync: the system drops what it could not write from its list of things to write.
            if let (Call::Sync, Node::File { dirty, len_dirty, .. }) = (call, &mut inner.nodes[self.node]) {
                dirty.clear();
                *len_dirty = false;
            }
            return Err(e);
        }
        let dark = changes && inner.goes_dark();
        if dark && call == Call::Sync {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let result = run(&mut inner.nodes[self.node]);
        if dark { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(result) }
    }
}

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        self.call(Call::Read, |node| match node {
            Node::File { now, .. } => now.len() as u64,
            Node::Dir { .. } => 0,
        })
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        self.call(Call::Read, |node| {
            let Node::File { now, .. } = node else { return 0 };
            let from = (position as usize).min(now.len());
            let n = buf.len().min(now.len() - from);
            buf[..n].copy_from_slice(&now[from..from + n]);
            n
        })
    }

    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        let (room, torn) = {
            let mut inner = self.storage.inner();
            let torn = inner.random.below(bytes.len() as u64 + 1) as usize;
            (inner.capacity.map(|c| c.saturating_sub(inner.used())), torn)
        };
        let write = |node: &mut Node, bytes: &[u8]| {
            let Node::File { now, dirty, len_dirty, .. } = node else { return true };
            let from = position as usize;
            let room = room.map_or(usize::MAX, |room| now.len().saturating_add(room as usize));
            let end = (from + bytes.len()).min(room.max(now.len()));
            if end > from {
                if end > now.len() {
                    *len_dirty = true;
                    now.resize(end, 0);
                }
                now[from..end].copy_from_slice(&bytes[..end - from]);
                dirty.extend(from / SECTOR..end.div_ceil(SECTOR));
            }
            end == from + bytes.len()
        };
        let whole = self.call(Call::Write, |node| write(node, bytes)).inspect_err(|_| {
            // A write that fails may have written something.
            let mut inner = self.storage.inner();
            if inner.life == self.life && inner.power != Some(0) {
                write(&mut inner.nodes[self.node], &bytes[..torn]);
            }
        })?;
        if whole { Ok(()) } else { Err(io::Error::from_raw_os_error(ENOSPC)) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call(Call::SetLen, |node| node.resize(len as usize))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let more = len.saturating_sub(self.len()?);
        let inner = self.storage.inner();
        let fits = inner.capacity.is_none_or(|c| inner.used() + more <= c);
        drop(inner);
        if fits {
            self.call(Call::Allocate, |node| node.resize(len as usize))
        } else {
            Err(io::Error::from_raw_os_error(ENOSPC))
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.call(Call::Sync, Node::sync)
    }
}

/// SplitMix64: enough to choose what a crash takes.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}
