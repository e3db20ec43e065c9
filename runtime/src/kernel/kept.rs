//! Rewritten modules, and modules cut down to a variant, kept between runs.
//!
//! What becomes of a module follows from its bytes, from the push constants that the device has, from the variant, and from the sources of
//! the rewriting itself, whose hash the build puts in (`build.rs`). All of these together are the key, the module in full: the [cache](crate::cache)
//! compares it byte by byte. A variant's key also has a hash of the module that it was cut from, so that the two always fit.

use super::rewrite::{Replay, RewriteStats, Run, Runs};
use super::specialise::specialise;
use crate::cache::{Cache, hash};
use crate::observe::Counters;
use std::ffi::CString;
use std::sync::Arc;

/// What entries of the cache are called.
const MODULE: &str = "module";
const VARIANT: &str = "variant";

/// Where modules are kept, and where it is counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    cache: Cache,
    counters: Arc<Counters>,
}

/// All that is made of a plain shader.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Made {
    pub(super) words: Vec<u32>,
    pub(super) entry_point: CString,
    pub(super) local_size: [u32; 3],
    pub(super) runs: Runs,
    pub(super) stats: RewriteStats,
    pub(super) sites: Vec<String>,
}

/// The start of the keys of all that is made of one module.
#[derive(Clone, Debug)]
pub(super) struct Origin(Vec<u8>);

impl Origin {
    pub(super) fn new(spirv: &[u8], push_bytes: usize) -> Self {
        let mut key = Writer::default();
        key.bytes(env!("VKSVM_REWRITER").as_bytes());
        key.number(push_bytes as u64);
        key.bytes(spirv);
        Self(key.0)
    }
}

impl Kept {
    pub(crate) fn new(cache: Cache, counters: Arc<Counters>) -> Self {
        Self { cache, counters }
    }

    /// What was made of this module before.
    pub(super) fn module(&self, origin: &Origin) -> Option<Made> {
        let made = Made::decode(&self.cache.get(MODULE, &origin.0)?)?;
        Counters::add(&self.counters.modules_kept, 1);
        Some(made)
    }

    /// Keeps what was made of a module now.
    pub(super) fn keep_module(&self, origin: &Origin, made: &Made) {
        Counters::add(&self.counters.modules_made, 1);
        self.cache.put(MODULE, &origin.0, &made.encode());
    }

    /// The module `words`, made of `origin`, with the variant's bits put in; `None` if it cannot be read, which is the driver's to say.
    pub(super) fn variant(&self, origin: &Origin, words: &[u32], bits: u32) -> Option<Vec<u32>> {
        let mut key = Writer(origin.0.clone());
        key.number(hash(&[bytemuck::cast_slice(words)]));
        key.number(u64::from(bits));
        let kept = self.cache.get(VARIANT, &key.0);
        if let Some(words) = kept.and_then(|value| Reader(&value).words()) {
            Counters::add(&self.counters.variants_kept, 1);
            return Some(words);
        }
        let cut = specialise(words, bits)?;
        Counters::add(&self.counters.variants_made, 1);
        let mut value = Writer::default();
        value.words(&cut);
        self.cache.put(VARIANT, &key.0, &value.0);
        Some(cut)
    }
}

impl Made {
    fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.words(&self.words);
        to.bytes(self.entry_point.as_bytes());
        self.local_size.iter().for_each(|&size| to.number(u64::from(size)));
        to.number(self.runs.arguments as u64);
        to.number(u64::from(self.runs.strays));
        to.number(self.runs.of.len() as u64);
        for run in &self.runs.of {
            to.number(u64::from(run.argument));
            to.number(u64::from(run.write) | u64::from(run.own) << 1);
        }
        let mut stats = self.stats;
        stats.counts().into_iter().for_each(|&mut count| to.number(u64::from(count)));
        to.number(Replay::ALL.iter().position(|&one| one == stats.replay).unwrap_or_default() as u64);
        to.number(stats.words_in as u64);
        to.number(stats.words_out as u64);
        to.number(self.sites.len() as u64);
        self.sites.iter().for_each(|site| to.bytes(site.as_bytes()));
        to.0
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let words = from.words()?;
        let entry_point = CString::new(from.bytes()?).ok()?;
        let local_size = [from.count()?, from.count()?, from.count()?];
        let (arguments, strays) = (from.number()? as usize, from.number()? != 0);
        let of = (0..from.number()?)
            .map(|_| {
                let (argument, bits) = (from.count()?, from.number()?);
                Some(Run { argument, write: bits & 1 != 0, own: bits & 2 != 0 })
            })
            .collect::<Option<_>>()?;
        let mut stats = RewriteStats::default();
        for count in stats.counts() {
            *count = from.count()?;
        }
        stats.replay = *Replay::ALL.get(from.number()? as usize)?;
        stats.words_in = from.number()? as usize;
        stats.words_out = from.number()? as usize;
        let sites =
            (0..from.number()?).map(|_| String::from_utf8(from.bytes()?.to_vec()).ok()).collect::<Option<_>>()?;
        let runs = Runs::kept(of, arguments, strays);
        from.0.is_empty().then_some(Self { words, entry_point, local_size, runs, stats, sites })
    }
}

/// Puts values into bytes, so that no two sequences of values give the same.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn words(&mut self, words: &[u32]) {
        self.number(words.len() as u64);
        self.0.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
}

/// Takes them out again; nothing where bytes end too early.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn count(&mut self) -> Option<u32> {
        self.number()?.try_into().ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?.try_into().ok()?;
        self.take(length)
    }

    fn words(&mut self) -> Option<Vec<u32>> {
        let length = usize::try_from(self.number()?).ok()?.checked_mul(4)?;
        let (words, _) = self.take(length)?.as_chunks::<4>();
        Some(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::KernelModule;
    use std::path::PathBuf;
    use std::sync::atomic::Ordering;

    const TREE: &[u8] = include_bytes!("../../../tests/shaders/plain/spv/tree.spv");
    const INCLUDED: &[u8] = include_bytes!("../../../tests/shaders/spv/saxpy.spv");

    /// A cache folder, which goes with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("vksvm-kept-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&folder);
            Self(folder)
        }

        /// What a process that has just started has.
        fn start(&self) -> Kept {
            Kept::new(Cache::at(self.0.clone()), Arc::default())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn counts(kept: &Kept) -> [u64; 4] {
        let counters = &kept.counters;
        let all = [&counters.modules_made, &counters.modules_kept, &counters.variants_made, &counters.variants_kept];
        all.map(|counter| counter.load(Ordering::Relaxed))
    }

    fn load(kept: &Kept, spirv: &[u8], push_bytes: usize) -> KernelModule {
        KernelModule::kept("kernel", spirv, push_bytes, kept.clone()).unwrap()
    }

    #[test]
    fn a_second_start_takes_what_the_first_made() {
        let folder = Folder::new("second");
        let (first, second) = (folder.start(), folder.start());
        let made = load(&first, TREE, 256);
        let cut = made.variant(1).unwrap();
        assert_eq!(counts(&first), [1, 0, 1, 0]);

        let kept = load(&second, TREE, 256);

        assert_eq!(kept.variant(1), Some(cut));
        assert_eq!(counts(&second), [0, 1, 0, 1]);
        let parts = |module: &KernelModule| {
            let module = (module.code_words().map(<[u32]>::to_vec), module.local_size, module.argument_bytes);
            (module, made.sites.clone(), made.rewritten)
        };
        assert_eq!(parts(&kept), parts(&made));
        assert_eq!((kept.runs.of.clone(), kept.push_bytes()), (made.runs.of.clone(), made.push_bytes()));
        assert!(!made.runs.of.is_empty(), "or it would show nothing");
    }

    #[test]
    fn other_modules_devices_and_variants_are_made_anew() {
        let folder = Folder::new("other");
        load(&folder.start(), TREE, 256).variant(1);

        let mut changed = TREE.to_vec();
        // The generator's number: it changes nothing that is done, only bytes.
        changed[8] ^= 1;
        for (spirv, push_bytes) in [(&changed[..], 256), (TREE, 128)] {
            let start = folder.start();
            load(&start, spirv, push_bytes).variant(1);
            assert_eq!(counts(&start), [1, 0, 1, 0]);
        }
        let start = folder.start();
        load(&start, TREE, 256).variant(2);
        assert_eq!(counts(&start), [0, 1, 1, 0]);
    }

    #[test]
    fn kernels_of_the_include_keep_their_variants() {
        let folder = Folder::new("include");
        let cut = load(&folder.start(), INCLUDED, 256).variant(1);
        let second = folder.start();

        assert_eq!(load(&second, INCLUDED, 256).variant(1), cut);
        assert_eq!(counts(&second), [0, 0, 0, 1]);
    }

    #[test]
    fn damaged_entries_are_made_anew_and_replaced() {
        let folder = Folder::new("damaged");
        let whole = load(&folder.start(), TREE, 256).variant(1);
        for damage in [
            |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2),
            |bytes: &mut Vec<u8>| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
            },
        ] {
            for file in std::fs::read_dir(&folder.0).unwrap() {
                let path = file.unwrap().path();
                let mut bytes = std::fs::read(&path).unwrap();
                damage(&mut bytes);
                std::fs::write(path, bytes).unwrap();
            }
            let (start, next) = (folder.start(), folder.start());
            assert_eq!(load(&start, TREE, 256).variant(1), whole);
            assert_eq!(counts(&start), [1, 0, 1, 0]);
            load(&next, TREE, 256).variant(1);
            assert_eq!(counts(&next), [0, 1, 0, 1]);
        }
    }

    #[test]
    fn what_is_put_into_bytes_comes_out_again_and_nothing_comes_out_of_less() {
        let folder = Folder::new("bytes");
        let start = folder.start();
        load(&start, TREE, 256);
        let made = start.module(&Origin::new(TREE, 256)).unwrap();
        let bytes = made.encode();

        assert_eq!(Made::decode(&bytes), Some(made));
        for end in 0..bytes.len() {
            assert_eq!(Made::decode(&bytes[..end]), None, "{end} bytes");
        }
    }
}
