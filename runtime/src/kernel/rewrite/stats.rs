//! What rewriting did.

use std::fmt;

/// What rewriting found and did in a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RewriteStats {
    /// Loads through pointers to physical memory.
    pub loads: u32,
    /// Stores.
    pub stores: u32,
    /// Atomic operations.
    pub atomics: u32,
    /// Translations that were put in.
    pub translations: u32,
    /// Of these, those that look at an argument's run first.
    pub runs: u32,
    /// Loads that share the translation of a neighbour.
    pub merged: u32,
    /// Loops that end when the invocation is poisoned.
    pub guarded_loops: u32,
    /// Loops that end by themselves, because their bounds do not depend on memory.
    pub counted_loops: u32,
    /// Workgroup barriers, after which poison is workgroup-wide.
    pub barriers: u32,
    /// Words of the module before.
    pub words_in: usize,
    /// Words of the module after.
    pub words_out: usize,
}

impl RewriteStats {
    /// Whether a workgroup can run again over its own stores without a probe first. Proven only for kernels that store and
    /// load nothing, or load and store nothing: what they store then follows from their arguments and place alone. A kernel
    /// that does both might load what it, or a neighbour in its workgroup, stored before the miss.
    pub fn replayable(&self) -> bool {
        self.atomics == 0 && (self.loads == 0 || self.stores == 0)
    }
}

impl fmt::Display for RewriteStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "accesses      {} loads, {} stores, {} atomics", self.loads, self.stores, self.atomics)?;
        writeln!(f, "translations  {}; {} loads share that of a neighbour", self.translations, self.merged)?;
        writeln!(f, "runs          {} translations look at an argument's place first", self.runs)?;
        writeln!(f, "loops         {} guarded, {} that end by themselves", self.guarded_loops, self.counted_loops)?;
        writeln!(f, "barriers      {}", self.barriers)?;
        writeln!(f, "replayable    {}", if self.replayable() { "without a probe" } else { "after a probe" })?;
        write!(f, "size          {} bytes, was {}", 4 * self.words_out, 4 * self.words_in)
    }
}
