//! Faults that wait: their pages are somebody else's for a while longer (`policy/thrash.rs`).
//!
//! The executor keeps their entries and serves them when their time has come; whoever reported them waits in the kernel (live) or for
//! the next round (replay). Nothing is held meanwhile: no gate, no lock, no page.

use super::error::LaunchError;
use super::execute::{Executor, Job};
use crate::addr::{PageIndex, VirtAddr};
use crate::device::layout::FaultEntry;
use std::time::Duration;

impl Executor {
    /// Puts those of `entries` aside whose pages are to wait. `held` is sorted by page.
    pub(super) fn hold(&mut self, entries: &[FaultEntry], held: &[(PageIndex, Duration)]) {
        if held.is_empty() {
            return;
        }
        let now = self.space.thrash().now();
        for entry in entries {
            let Some(page) = self.space.home().views.page_of(VirtAddr(entry.address)) else { continue };
            if let Ok(at) = held.binary_search_by_key(&page, |&(page, _)| page) {
                self.held.push((now + held[at].1, *entry));
            }
        }
    }

    /// Moves faults whose time has come to `self.entries`; returns how many.
    pub(super) fn take_due(&mut self) -> usize {
        if self.held.is_empty() {
            return 0;
        }
        let now = self.space.thrash().now();
        let before = self.entries.len();
        let entries = &mut self.entries;
        self.held.retain(|(due, entry)| {
            let waits = *due > now;
            if !waits {
                entries.push(*entry);
            }
            waits
        });
        self.entries.len() - before
    }

    /// Waits for all held faults and serves them; no kernel runs. True if frames were short. The policy bounds how long each
    /// waits.
    pub(super) fn serve_held(&mut self, job: &Job) -> Result<bool, LaunchError> {
        let mut short = false;
        while let Some(due) = self.held.iter().map(|&(due, _)| due).min() {
            std::thread::sleep(self.space.thrash().nap(due));
            if self.take_due() > 0 {
                short |= self.serve(job, None)?;
            }
        }
        Ok(short)
    }

    /// Moves all held faults to `self.entries`: the dispatch that reported them has ended.
    pub(super) fn take_held(&mut self) {
        self.entries.extend(self.held.drain(..).map(|(_, entry)| entry));
    }

    /// Forgets held faults: the launch has ended. Their pages can be reported again.
    pub(super) fn abandon_held(&mut self) {
        let held: Vec<FaultEntry> = self.held.drain(..).map(|(_, entry)| entry).collect();
        self.abandon(&held);
    }
}
