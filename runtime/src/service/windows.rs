//! Windows: home memory imported into the device, so that kernels reach home pages themselves.
//!
//! Made on demand, a whole window at a time, at multiples of its size. Where importing pins the memory of the moment
//! ([`HostImport::follows`](crate::device::HostImport) is false), a window does not survive that memory under it is given back: then
//! every entry that leads into it is taken away and it is made anew when it is next asked for. Guarded by the mirror's update lock.
//!
//! Devices are told before memory is given back, so a neighbour's fault may have the window made once more in between, over memory that is about to go. So
//! each remembers how often memory had been given back when it was made; who asks later, with the lock of a page that was given back, finds
//! the number changed and gets a new window. The old one serves the entries that lead into it, none of which is of such a page, until memory is next given
//! back: only then is it certain that no dispatch uses it.

use super::mirror::{DeviceMirror, MirrorState};
use crate::addr::{DeviceAddress, PAGE_SIZE, PageIndex, PageRange};
use crate::device::HomeWindow;
use crate::device::layout::pte;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ptr::NonNull;
use std::sync::Arc;

/// A device's windows, by their first page.
#[derive(Default)]
pub(super) struct Windows {
    made: BTreeMap<u32, Made>,
    closed: bool,
}

/// What came of making a window.
struct Made {
    window: Option<Arc<dyn HomeWindow>>,
    pages: PageRange,
    /// How often memory under it had been given back before.
    given_back: u32,
    /// Those before it, into which entries may lead.
    stale: Vec<Arc<dyn HomeWindow>>,
}

impl Windows {
    /// How many there are.
    #[cfg(test)]
    pub(super) fn made(&self) -> usize {
        self.made.len()
    }

    /// No window is made any more, and those that were are given back. No entry leads into one.
    pub(super) fn close(&mut self) {
        self.made.clear();
        self.closed = true;
    }
}

impl DeviceMirror {
    /// Where the device finds the home page of `page`; nothing if it cannot reach it.
    pub(super) fn home_address(&self, state: &mut MirrorState, page: PageIndex) -> Option<DeviceAddress> {
        let import = self.device.info().import?;
        if state.windows.closed {
            return None;
        }
        let length = import.window_pages;
        let start = page.0 / length * length;
        let end = start.saturating_add(length).min(self.home.views.pages());
        let pages = PageRange::new(PageIndex(start), PageIndex(end));
        // Before the import: what is given back meanwhile counts as later.
        let given_back = if import.follows { 0 } else { self.home.views.times_given_back(pages) };
        let make = || {
            let host = NonNull::new(self.home.views.alias_ptr(pages.start));
            // SAFETY: the alias is mapped read-write as long as the views live, which `home` keeps; windows are given back before, in
            // `release`.
            let made = host.map(|host| unsafe { self.device.import(host, pages.bytes()) });
            if let Some(Err(error)) = &made {
                tracing::warn!(?pages, "home pages are copied, since they cannot be imported: {error}");
            }
            made.and_then(Result::ok)
        };
        let made = match state.windows.made.entry(start) {
            Entry::Vacant(place) => place.insert(Made { window: make(), pages, given_back, stale: Vec::new() }),
            Entry::Occupied(place) => {
                let made = place.into_mut();
                if made.given_back != given_back {
                    made.given_back = given_back;
                    made.stale.extend(std::mem::replace(&mut made.window, make()));
                }
                made
            }
        };
        let offset = u64::from(page.0 - made.pages.start.0) * PAGE_SIZE as u64;
        Some(made.window.as_ref()?.address().plus(offset))
    }

    /// Memory of `pages`, whose entries are gone, is about to be given back.
    pub(super) fn forget_home(&self, state: &mut MirrorState, pages: PageRange) {
        if self.device.info().import.is_none_or(|import| import.follows) {
            return;
        }
        let starts: Vec<u32> = state
            .windows
            .made
            .values()
            .filter(|made| made.pages.overlaps(pages))
            .map(|made| made.pages.start.0)
            .collect();
        for start in starts {
            if let Some(made) = state.windows.made.remove(&start) {
                self.take_home_entries(state, made.pages);
            }
        }
    }

    /// Takes the entries of `pages` that lead to home pages; no kernel uses these pages' window when this returns. Needs no page locks: `Remote` pages
    /// without an entry are as good.
    fn take_home_entries(&self, state: &mut MirrorState, pages: PageRange) {
        let leads_home = |entry: u64| entry & (pte::VALID | pte::HOME) == pte::VALID | pte::HOME;
        let taken: Vec<_> = (state.table.clip(pages).iter())
            .filter(|&page| leads_home(state.table.load(page)))
            .map(|page| (page, state.table.take(page)))
            .collect();
        // Also where none was left: what an invalidation took before, kernels may use until its own wait is over.
        self.outwait_kernels();
        for (page, entry) in taken {
            let late = state.table.clear_flags(page, pte::ACCESSED | pte::DIRTY) & (pte::ACCESSED | pte::DIRTY);
            self.collect(page, entry | late);
        }
    }
}
