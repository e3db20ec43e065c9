//! `shaders/spv.lock`: for each kernel a hash of what it was compiled from and one of the result, so that
//! stale SPIR-V is noticed where the compiler that wrote it is not at hand.

use std::collections::BTreeMap;

/// Recorded hashes by the kernel's path.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lock {
    entries: BTreeMap<String, Entry>,
}

/// One kernel's hashes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Over the kernel and its includes.
    pub source: u64,
    /// Over the SPIR-V.
    pub spv: u64,
}

impl Lock {
    /// Reads the file's text; lines that are no entry count as absent, so that their kernels are reported.
    pub(super) fn parse(text: &str) -> Lock {
        let entry = |line: &str| {
            let mut words = line.split_whitespace();
            let mut hash = || u64::from_str_radix(words.next()?, 16).ok();
            let entry = Entry { source: hash()?, spv: hash()? };
            Some((words.next()?.to_owned(), entry))
        };
        Lock { entries: text.lines().filter_map(entry).collect() }
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = "# Written by `cargo xtask shaders`: hash of sources, hash of SPIR-V, kernel.\n".to_owned();
        for (path, Entry { source, spv }) in &self.entries {
            text += &format!("{source:016x} {spv:016x} {path}\n");
        }
        text
    }

    pub(super) fn insert(&mut self, path: &str, source: u64, spv: u64) {
        self.entries.insert(path.to_owned(), Entry { source, spv });
    }

    pub(super) fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

/// FNV-1a, 64 bits: the same everywhere, and good enough against accidents.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut lock = Lock::default();
        lock.insert("samples/shaders/a.comp", 1, u64::MAX);
        lock.insert("shaders/b.comp", 0xabc, 0);

        assert_eq!(Lock::parse(&lock.to_text()), lock);
    }

    #[test]
    fn damaged_lines_count_as_absent() {
        let lock = Lock::parse("<<<<<<< ours\n0000000000000001 00000002 a.comp\nzz 1 b.comp\n");

        assert_eq!(lock.paths().collect::<Vec<_>>(), ["a.comp"]);
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
