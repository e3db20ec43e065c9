//! What is kept between runs, in files: rewritten modules, their variants, what drivers made of them, measurements.
//!
//! An entry is a file that holds what it was made from (its *key*), a value, and a checksum over both. It is used only if its key is
//! the one asked for, byte by byte, so a name that two keys share costs a miss, never a wrong value. Files are written under another
//! name and renamed, so that no process sees half of one; whatever is damaged all the same counts as absent. The cache never fails: what cannot be
//! read or written is made again next time.
//!
//! Processes share a folder without a lock. Who reads opens a whole file, which stays readable if it is replaced or removed meanwhile; of two that put the same key, the
//! last one's entry stays; two that trim at once remove what both find oldest, at worst more than they had to.
//!
//! **Gotchas.** Values are trusted like the program itself: the folder is made readable and writable by its owner only, and one that belongs to another
//! user, or that others may write to, is not used. What is found in it is read only if it is a plain file, and no further than the limit.

use rustix::fs::OFlags;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Starts every entry; changes with the format.
const MAGIC: &[u8; 8] = b"vksvm\0c2";
/// The magic, the lengths of key and value, the checksum.
const HEADER: usize = 32;
/// Bytes that entries may take together; then those that were not used for longest go, until half of it is left.
const MAX_BYTES: u64 = 256 << 20;
/// What a file takes at least, and a multiple of it.
const BLOCK: u64 = 4096;
/// The folder is looked through when this part of the limit was written since.
const TRIM_PART: u64 = 16;
/// After this long, a file that was never renamed is what a process left that died.
const STALE: Duration = Duration::from_secs(3600);
/// How entries' names end.
const ENDING: &str = ".vksvm";

/// A folder of entries, or nothing.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    folder: Option<PathBuf>,
    /// Bytes that entries may take together.
    limit: u64,
    /// Bytes written since the folder was looked through; at first as if it were time to.
    written: Arc<AtomicU64>,
}

impl Default for Cache {
    fn default() -> Self {
        Self { folder: None, limit: MAX_BYTES, written: Arc::new(AtomicU64::new(u64::MAX / 2)) }
    }
}

/// A hash that is the same in every run, unlike std's. No change of one word alone leaves it as it was.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut mix = |word: u64| {
        hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
    };
    for part in parts {
        mix(part.len() as u64);
        let (words, rest) = part.as_chunks::<8>();
        words.iter().for_each(|word| mix(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        mix(u64::from_le_bytes(last));
    }
    hash
}

impl Cache {
    /// A cache in this folder, which is made when it is first written to.
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self { folder: Some(folder), ..Self::default() }
    }

    /// A cache that keeps nothing.
    pub(crate) fn off() -> Self {
        Self::default()
    }

    /// The cache that `VKSVM_CACHE` names (a folder, or `0` for none), else in the user's cache folder.
    pub(crate) fn from_environment() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        match variable("VKSVM_CACHE") {
            Some(value) if value == "0" => return Self::off(),
            Some(folder) => return Self::at(folder.into()),
            None => {}
        }
        // As the XDG base directory specification says: relative paths do not count.
        let xdg = variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let folder = xdg.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")));
        Self { folder: folder.map(|folder| folder.join("vksvm").join("kernels")), ..Self::default() }
    }

    fn path(&self, kind: &str, key: &[u8]) -> Option<PathBuf> {
        let name = format!("{kind}-{:016x}{ENDING}", hash(&[kind.as_bytes(), key]));
        Some(self.folder.as_ref()?.join(name))
    }

    /// The value that was put under this key.
    pub(crate) fn get(&self, kind: &str, key: &[u8]) -> Option<Vec<u8>> {
        let path = self.path(kind, key)?;
        if !is_private(self.folder.as_ref()?) {
            return None;
        }
        // Without waiting for whoever would write to a pipe, and not by way of a link to somewhere else.
        let plain = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
        let file = fs::OpenOptions::new().read(true).custom_flags(plain).open(&path).ok()?;
        let data = file.metadata().ok()?;
        let mut bytes = Vec::new();
        if data.is_file() && data.len() <= self.limit {
            // It may have grown since.
            (&file).take(self.limit + 1).read_to_end(&mut bytes).ok()?;
        }
        let value = match decode(&bytes, key) {
            Ok(value) => value.to_vec(),
            Err(reason) => {
                tracing::debug!(path = %path.display(), reason, "ignored an entry of the cache");
                return None;
            }
        };
        // What is used is not the oldest.
        let _ = file.set_modified(SystemTime::now());
        Some(value)
    }

    /// Puts a value under a key.
    pub(crate) fn put(&self, kind: &str, key: &[u8], value: &[u8]) {
        let (Some(folder), Some(path)) = (&self.folder, self.path(kind, key)) else { return };
        let bytes = encode(key, value);
        if bytes.len() as u64 > self.limit {
            return;
        }
        if let Err(error) = write(folder, &path, &bytes) {
            tracing::debug!(path = %path.display(), %error, "could not keep an entry of the cache");
        }
        let more = (bytes.len() as u64).next_multiple_of(BLOCK);
        if self.written.fetch_add(more, Ordering::Relaxed).saturating_add(more) > self.limit / TRIM_PART {
            self.written.store(0, Ordering::Relaxed);
            trim(folder, self.limit);
        }
    }
}

fn encode(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + key.len() + value.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(key.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&hash(&[key, value]).to_le_bytes());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value);
    bytes
}

/// The value, if these are the bytes of a whole entry with this key; else what is wrong with them.
fn decode<'a>(bytes: &'a [u8], key: &[u8]) -> Result<&'a [u8], &'static str> {
    let cut = "it is cut short";
    let (header, rest) = bytes.split_at_checked(HEADER).ok_or(cut)?;
    let number = |at: usize| header[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    if &header[..8] != MAGIC {
        return Err("it is not of this version");
    }
    if rest.len() as u64 != number(8).wrapping_add(number(16)) {
        return Err(cut);
    }
    let (found, value) = rest.split_at_checked(number(8) as usize).ok_or(cut)?;
    if number(24) != hash(&[found, value]) {
        return Err("it is damaged");
    }
    if found == key { Ok(value) } else { Err("it is another key's") }
}

/// Whether nobody but this process's user, and root, can have put entries into the folder.
fn is_private(folder: &Path) -> bool {
    let Ok(data) = fs::metadata(folder) else { return false };
    let private = data.is_dir() && data.uid() == rustix::process::geteuid().as_raw() && data.mode() & 0o022 == 0;
    if !private {
        tracing::debug!(folder = %folder.display(), "not used as a cache: another user's, or others may write to it");
    }
    private
}

fn write(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    if !is_private(folder) {
        return Err(io::Error::other("the folder is another user's, or others may write to it"));
    }
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{}-{count}.new", std::process::id()));
    let written = fs::File::create_new(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Removes the entries that were not used for longest while all take more than `limit`, and what dead processes left.
fn trim(folder: &Path, limit: u64) {
    let Ok(files) = fs::read_dir(folder) else { return };
    let now = SystemTime::now();
    let mut entries = Vec::new();
    for file in files.flatten() {
        let Ok(data) = file.metadata() else { continue };
        let modified = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(ENDING) {
            entries.push((modified, data.len().next_multiple_of(BLOCK), file.path()));
        } else if name.ends_with(".new") && now.duration_since(modified).is_ok_and(|age| age > STALE) {
            let _ = fs::remove_file(file.path());
        }
    }
    let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
    if total <= limit {
        return;
    }
    entries.sort();
    for (_, bytes, path) in entries {
        if total <= limit / 2 {
            return;
        }
        if fs::remove_file(path).is_ok() {
            total -= bytes;
        }
    }
}

#[cfg(test)]
mod tests;
