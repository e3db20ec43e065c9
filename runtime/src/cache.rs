//! What is kept between runs, in files: so far, what drivers made of kernels.
//!
//! An entry is a file that holds what it was made from (its *key*), a value, and a checksum over both. It is used only if its key is
//! the one asked for, byte by byte, so a name that two keys share costs a miss, never a wrong value. Files are written under another
//! name and renamed, so that no process sees half of one; whatever is damaged all the same counts as absent. The cache never fails: what cannot be
//! read or written is made again next time.
//!
//! **Gotchas.** Values are trusted like the program itself: the folder is made readable and writable by its owner only.

use std::fs;
use std::hash::Hasher;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

/// Starts every entry; changes with the format.
const MAGIC: &[u8; 8] = b"vksvm\0c1";
/// The magic, the lengths of key and value, the checksum.
const HEADER: usize = 32;
/// Bytes that entries may take together; then the oldest go, until half of it is left.
const MAX_BYTES: u64 = 256 << 20;
/// After this long, a file that was never renamed is what a process left that died.
const STALE: Duration = Duration::from_secs(3600);
/// How entries' names end.
const ENDING: &str = ".vksvm";

/// A folder of entries, or nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    folder: Option<PathBuf>,
}

/// Hashes as FNV-1a does: the same in every run, unlike std's.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn hash(parts: &[&[u8]]) -> u64 {
    let mut fnv = Fnv(0xcbf2_9ce4_8422_2325);
    parts.iter().for_each(|part| fnv.write(part));
    fnv.finish()
}

impl Cache {
    /// A cache in this folder, which is made when it is first written to.
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self { folder: Some(folder) }
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
        Self { folder: folder.map(|folder| folder.join("vksvm").join("kernels")) }
    }

    fn path(&self, kind: &str, key: &[u8]) -> Option<PathBuf> {
        let name = format!("{kind}-{:016x}{ENDING}", hash(&[kind.as_bytes(), key]));
        Some(self.folder.as_ref()?.join(name))
    }

    /// The value that was put under this key.
    pub(crate) fn get(&self, kind: &str, key: &[u8]) -> Option<Vec<u8>> {
        let path = self.path(kind, key)?;
        let file = fs::File::open(&path).ok()?;
        let length = file.metadata().ok()?.len();
        if length > MAX_BYTES || length < (HEADER + key.len()) as u64 {
            return None;
        }
        let bytes = fs::read(&path).ok()?;
        let value = decode(&bytes, key)?.to_vec();
        // What is used is not the oldest.
        let _ = file.set_modified(SystemTime::now());
        Some(value)
    }

    /// Puts a value under a key.
    pub(crate) fn put(&self, kind: &str, key: &[u8], value: &[u8]) {
        let (Some(folder), Some(path)) = (&self.folder, self.path(kind, key)) else { return };
        if let Err(error) = write(folder, &path, key, value) {
            tracing::debug!(path = %path.display(), %error, "could not keep an entry of the cache");
        }
        trim(folder, MAX_BYTES);
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

/// The value, if these are the bytes of a whole entry with this key.
fn decode<'a>(bytes: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let number = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    if &header[..8] != MAGIC || number(8)? != key.len() as u64 {
        return None;
    }
    let (found, value) = rest.split_at_checked(key.len())?;
    (found == key && number(16)? == value.len() as u64 && number(24)? == hash(&[key, value])).then_some(value)
}

fn write(folder: &Path, path: &Path, key: &[u8], value: &[u8]) -> io::Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{}-{count}.new", std::process::id()));
    let written = fs::File::create_new(&temporary)
        .and_then(|mut file| file.write_all(&encode(key, value)))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Removes the oldest entries while all take more than `limit`, and what dead processes left.
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
            entries.push((modified, data.len(), file.path()));
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
mod tests {
    use super::*;

    /// A cache in a folder of its own, which goes with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("vksvm-cache-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            Self(folder)
        }

        fn cache(&self) -> Cache {
            Cache::at(self.0.clone())
        }

        fn only_file(&self) -> PathBuf {
            let files: Vec<_> = fs::read_dir(&self.0).unwrap().map(|file| file.unwrap().path()).collect();
            assert_eq!(files.len(), 1, "{files:?}");
            files[0].clone()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_was_put_is_found_by_a_later_cache_and_only_under_its_key() {
        let folder = Folder::new("found");
        folder.cache().put("kind", b"key", b"value");

        assert_eq!(folder.cache().get("kind", b"key").as_deref(), Some(&b"value"[..]));
        assert_eq!(folder.cache().get("kind", b"other"), None);
        assert_eq!(folder.cache().get("other", b"key"), None);
    }

    #[test]
    fn an_entry_cut_short_or_changed_anywhere_counts_as_absent() {
        let folder = Folder::new("damaged");
        folder.cache().put("kind", b"key", b"a value");
        let path = folder.only_file();
        let whole = fs::read(&path).unwrap();

        for end in 0..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            assert_eq!(folder.cache().get("kind", b"key"), None, "cut to {end} bytes");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(folder.cache().get("kind", b"key"), None, "byte {at} changed");
        }
        fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
        assert_eq!(folder.cache().get("kind", b"key"), None);
        fs::write(&path, &whole).unwrap();
        assert!(folder.cache().get("kind", b"key").is_some());
    }

    #[test]
    fn another_keys_entry_under_the_same_name_counts_as_absent() {
        let folder = Folder::new("foreign");
        folder.cache().put("kind", b"key", b"value");
        fs::write(folder.only_file(), encode(b"yek", b"value")).unwrap();

        assert_eq!(folder.cache().get("kind", b"key"), None);
    }

    #[test]
    fn the_oldest_entries_go_when_there_are_too_many() {
        let folder = Folder::new("trim");
        for at in 0..8u64 {
            folder.cache().put("kind", &[at as u8], &[0; 1000]);
            let path = folder.cache().path("kind", &[at as u8]).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
            fs::File::open(path).unwrap().set_modified(time).unwrap();
        }

        trim(&folder.0, 6000);

        let left: Vec<bool> = (0..8).map(|at| folder.cache().get("kind", &[at]).is_some()).collect();
        assert_eq!(left, [false, false, false, false, false, false, true, true]);
    }

    #[test]
    fn a_folder_that_cannot_be_written_and_no_folder_at_all_keep_nothing() {
        let cache = Cache::at("/proc/vksvm".into());
        cache.put("kind", b"key", b"value");
        assert_eq!(cache.get("kind", b"key"), None);
        Cache::off().put("kind", b"key", b"value");
        assert_eq!(Cache::off().get("kind", b"key"), None);
    }
}
