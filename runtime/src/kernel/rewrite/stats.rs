//! What rewriting did.

use super::replay::Replay;
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
    /// Accesses on the page of one before them, which was translated on every way there.
    pub covered: u32,
    /// Loads whose page is looked up ahead of the loop they are in.
    pub hoisted: u32,
    /// Loops that end when the invocation is poisoned.
    pub guarded_loops: u32,
    /// Loops that end by themselves, because their bounds do not depend on memory.
    pub counted_loops: u32,
    /// Workgroup barriers, after which poison is workgroup-wide.
    pub barriers: u32,
    /// Whether its workgroups can run again without a probe.
    pub replay: Replay,
    /// Words of the module before.
    pub words_in: usize,
    /// Words of the module after.
    pub words_out: usize,
}

impl RewriteStats {
    /// Whether a workgroup can run again over its own stores without a probe first.
    pub fn replayable(&self) -> bool {
        self.replay != Replay::AfterProbe
    }

    /// All that is counted one by one, in an order of their own.
    pub(in crate::kernel) fn counts(&mut self) -> [&mut u32; 11] {
        let Self {
            loads,
            stores,
            atomics,
            translations,
            runs,
            merged,
            covered,
            hoisted,
            guarded_loops,
            counted_loops,
            barriers,
            replay: _,
            words_in: _,
            words_out: _,
        } = self;
        [loads, stores, atomics, translations, runs, merged, covered, hoisted, guarded_loops, counted_loops, barriers]
    }
}

impl fmt::Display for RewriteStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "accesses      {} loads, {} stores, {} atomics", self.loads, self.stores, self.atomics)?;
        writeln!(f, "translations  {}; {} loads share that of a neighbour", self.translations, self.merged)?;
        writeln!(f, "covered       {} accesses by a translation before them", self.covered)?;
        writeln!(f, "hoisted       {} loads are looked up ahead of their loops", self.hoisted)?;
        writeln!(f, "runs          {} translations look at an argument's place first", self.runs)?;
        writeln!(f, "loops         {} guarded, {} that end by themselves", self.guarded_loops, self.counted_loops)?;
        writeln!(f, "barriers      {}", self.barriers)?;
        writeln!(f, "replayable    {}", self.replay)?;
        write!(f, "size          {} bytes, was {}", 4 * self.words_out, 4 * self.words_in)
    }
}
