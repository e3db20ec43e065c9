//! Snapshot and fault: what stands in a mapping, page by page, read under a range.
//!
//! [`Range::snapshot`] and [`Range::fault`] take the meaning of Linux's `hmm_range_fault` (without and with requests),
//! [`PageEntry`] that of one `hmm_pfns[]` element with its `HMM_PFN_*` flags, [`Request`] that of `default_flags` and
//! `pfn_flags_mask`. What is read is behind two small traits, so that this file knows neither memory nor devices:
//! [`PageWalk`] says what is there, [`PageFaultIn`] also makes it be there. The address space implements both
//! ([`HomeWalk`](crate::mm::walk::HomeWalk)), a device's mirror the first.
//!
//! The way to use it is Linux's:
//!
//! ```text
//! loop {                                          // through CollisionRetry, which bounds it
//!     range.wait_until_valid(deadline)?;
//!     let seq = range.begin();
//!     let vmas = space.vmas().read();             // Linux: mmap_read_lock
//!     match range.fault(seq, &HomeWalk::new(&space, &vmas), request, &mut entries) {
//!         Err(error) if error.is_stale() => continue,   // -EBUSY
//!         done => done?,
//!     }
//!     drop(vmas);
//!     let update = mirror_update.lock();
//!     if range.retry(seq) { continue; }
//!     … write PTEs from `entries` …
//!     break;
//! }
//! ```
//!
//! # Where it differs from Linux
//!
//! - Accessed and dirty are reported; Linux has no flags for them, since there the CPU's bits are not the device's business.
//! - The error of a page says which it was; Linux has one `HMM_PFN_ERROR` and tells them apart by the call's result.
//! - Orders are those of leaves that devices have: 64 KiB and 2 MiB.

use super::{Range, Seq};
use crate::addr::{Access, PageIndex, PageRange};

/// Log2 of the pages of the leaves there are beside single pages, largest first: 2 MiB, 64 KiB.
/// Linux: what `hmm_pfn_to_map_order` can answer.
pub const LEAF_ORDERS: [u8; 2] = [9, 4];

/// What stands in a mapping for one page. Linux: an element of `hmm_range::hmm_pfns`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageEntry {
    /// It is mapped. Linux: `HMM_PFN_VALID`.
    pub valid: bool,
    /// It may be written as it stands. Linux: `HMM_PFN_WRITE`.
    pub write: bool,
    /// It was used since that was last reset.
    pub accessed: bool,
    /// It was written since that was last reset.
    pub dirty: bool,
    /// Log2 of the pages of the naturally aligned block around it that could be one leaf: valid throughout, alike in
    /// permission, contiguous. As in Linux, the block may begin before the range or end after it. 0 if not valid.
    /// Linux: `hmm_pfn_to_map_order`.
    pub order: u8,
    /// Why it is not there and cannot be made to. Linux: `HMM_PFN_ERROR`.
    pub error: Option<PageError>,
}

/// What is wrong with a page, or with a whole attempt.
/// Linux: the error codes of `hmm_range_fault`, and `HMM_PFN_ERROR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// No VMA covers it. Linux: `-EFAULT`.
    #[error("nothing is mapped there")]
    Unmapped,
    /// Its VMA does not allow what was requested. Linux: `-EPERM`.
    #[error("its mapping does not allow that access")]
    NoPermission,
    /// The range was invalidated since the sequence number was taken: start over. Linux: `-EBUSY`.
    #[error("the range was invalidated meanwhile: begin again")]
    Stale,
    /// There is no memory for it. Linux: `-ENOMEM`.
    #[error("there is no memory for it")]
    NoMemory,
}

/// A snapshot or fault that did not succeed, with the first page in its way. Linux: the result of `hmm_range_fault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{page} of {pages:?}: {error}")]
pub struct RangeError {
    /// The range.
    pub pages: PageRange,
    /// The page.
    pub page: PageIndex,
    /// What is wrong.
    pub error: PageError,
}

impl RangeError {
    /// Whether beginning again may help.
    pub fn is_stale(&self) -> bool {
        self.error == PageError::Stale
    }
}

/// What a page is wanted for, weakest first. Linux: none, `HMM_PFN_REQ_FAULT`, and with `HMM_PFN_REQ_WRITE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// Nothing: say what is there.
    #[default]
    Nothing,
    /// Reading.
    Read,
    /// Writing.
    Write,
}

impl Want {
    /// The access that has to be faulted in for `entry` to do; none if it does.
    fn missing(self, entry: &PageEntry) -> Option<Access> {
        match self {
            Self::Read if !entry.valid => Some(Access::Read),
            Self::Write if !entry.valid || !entry.write => Some(Access::Write),
            _ => None,
        }
    }
}

/// What is wanted of a range. Of two wishes for a page the stronger counts.
/// Linux: the request part of `struct hmm_range`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// Of every page. Linux: `default_flags`.
    pub default: Want,
    /// Of each page, from the range's first on; pages past its end are wanted by default only.
    /// Linux: the flags in `hmm_pfns` under `pfn_flags_mask`.
    pub each: &'a [Want],
}

impl Request<'_> {
    /// The same of every page.
    pub fn all(default: Want) -> Self {
        Self { default, each: &[] }
    }

    fn of(&self, index: usize) -> Want {
        self.each.get(index).copied().unwrap_or_default().max(self.default)
    }
}

/// What a walk finds for a page: its entry, whose `order` is left 0, and where it leads.
/// Linux: what `hmm_vma_walk_pmd` finds for an entry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walked {
    /// What is there.
    pub entry: PageEntry,
    /// The number of the page of memory behind it: neighbours in one leaf have neighbouring numbers.
    pub place: u64,
    /// Pages of different groups are never in one leaf: a VMA's id, or nothing.
    pub group: u64,
}

/// A mapping that can be looked at.
/// Linux: `walk_page_range` with `hmm_walk_ops`.
pub trait PageWalk {
    /// The pages that it is about: leaves are looked for inside.
    fn extent(&self) -> PageRange;

    /// Calls `each` for every page of `pages`, which lie in the extent, ascending. Changes nothing and waits for nothing
    /// but short locks.
    fn walk(&self, pages: PageRange, each: &mut dyn FnMut(Walked));
}

/// A mapping whose pages can be made to be there.
/// Linux: `hmm_vma_fault`, which calls `handle_mm_fault`.
pub trait PageFaultIn: PageWalk {
    /// Makes `page` accessible as wanted, as a touch would. May invalidate. Linux: `handle_mm_fault`.
    ///
    /// # Errors
    /// Why that is impossible.
    fn fault_in(&self, page: PageIndex, access: Access) -> Result<(), PageError>;
}

impl Range<'_> {
    /// Writes what stands in `mapping` for each page of the range into `entries`; faults nothing in. The caller holds what
    /// keeps `mapping` from changing shape. Linux: `hmm_range_fault` without requests.
    ///
    /// # Errors
    /// [`PageError::Stale`] if the range was invalidated since `seq`. Pages where nothing is mapped are not an
    /// error of the range; their entries say so.
    pub fn snapshot(&self, seq: Seq, mapping: &dyn PageWalk, entries: &mut Vec<PageEntry>) -> Result<(), RangeError> {
        read(mapping, self.pages(), entries);
        self.still_valid(seq, entries)
    }

    /// As [`snapshot`](Self::snapshot), and makes pages be there as `request` wants them. Linux: `hmm_range_fault`.
    ///
    /// Faulting a page in may itself invalidate the range (its data comes home from a device): then this says
    /// [`PageError::Stale`], and the next attempt finds the page. So it ends, unless others keep taking pages away.
    ///
    /// # Errors
    /// The first page that cannot be had, or [`PageError::Stale`]. `entries` then hold what was found so far, with the
    /// error in that page's entry.
    pub fn fault(
        &self,
        seq: Seq,
        mapping: &dyn PageFaultIn,
        request: Request<'_>,
        entries: &mut Vec<PageEntry>,
    ) -> Result<(), RangeError> {
        let pages = self.pages();
        read(mapping, pages, entries);
        let mut faulted = false;
        for (index, page) in pages.iter().enumerate() {
            let Some(access) = request.of(index).missing(&entries[index]) else { continue };
            self.still_valid(seq, entries)?;
            let outcome = entries[index].error.map_or_else(|| mapping.fault_in(page, access), Err);
            if let Err(error) = outcome {
                entries[index].error = Some(error);
                return Err(RangeError { pages, page, error });
            }
            faulted = true;
        }
        if faulted {
            self.still_valid(seq, entries)?;
            read(mapping, pages, entries);
            // What was faulted in may have been taken away again, by somebody whom the range would have seen.
            let lost = |(index, entry): (usize, &PageEntry)| request.of(index).missing(entry).map(|_| index);
            if let Some(index) = entries.iter().enumerate().find_map(lost) {
                entries[index].error = Some(PageError::Stale);
                return Err(RangeError { pages, page: pages.start.plus(index as u32), error: PageError::Stale });
            }
        }
        self.still_valid(seq, entries)
    }

    fn still_valid(&self, seq: Seq, entries: &mut [PageEntry]) -> Result<(), RangeError> {
        if self.check(seq) {
            return Ok(());
        }
        let pages = self.pages();
        entries
            .iter_mut()
            .for_each(|entry| *entry = PageEntry { error: Some(PageError::Stale), ..PageEntry::default() });
        Err(RangeError { pages, page: pages.start, error: PageError::Stale })
    }
}

/// Reads a mapping without a range: true of some moment for each page, of none for all of them together.
pub fn read(mapping: &dyn PageWalk, pages: PageRange, entries: &mut Vec<PageEntry>) {
    entries.clear();
    let extent = mapping.extent();
    let inside = pages.intersect(extent);
    let unmapped = PageEntry { error: Some(PageError::Unmapped), ..PageEntry::default() };
    if inside.is_empty() {
        entries.resize(pages.len() as usize, unmapped);
        return;
    }
    // A leaf around the first page may begin before it, one around the last may end after it.
    let window = widened(inside).intersect(extent);
    let mut walked = Vec::with_capacity(window.len() as usize);
    mapping.walk(window, &mut |page| walked.push(page));
    debug_assert_eq!(walked.len(), window.len() as usize, "a walk reports every page once");
    set_orders(window, &mut walked);
    entries.resize((inside.start.0 - pages.start.0) as usize, unmapped);
    let skip = (inside.start.0 - window.start.0) as usize;
    entries.extend(walked[skip..skip + inside.len() as usize].iter().map(|page| page.entry));
    entries.resize(pages.len() as usize, unmapped);
}

/// `pages` up to the borders of the largest leaves around its ends.
fn widened(pages: PageRange) -> PageRange {
    let largest = 1u32 << LEAF_ORDERS[0];
    let end = pages.end.0.checked_next_multiple_of(largest).unwrap_or(u32::MAX);
    PageRange::new(PageIndex(pages.start.0 / largest * largest), PageIndex(end))
}

/// Sets the order of every valid page: the largest whose block lies in one run of pages that belong together.
fn set_orders(window: PageRange, walked: &mut [Walked]) {
    let joins = |a: &Walked, b: &Walked| {
        b.entry.valid && a.entry.write == b.entry.write && a.group == b.group && a.place.wrapping_add(1) == b.place
    };
    let mut start = 0;
    while start < walked.len() {
        if !walked[start].entry.valid {
            start += 1;
            continue;
        }
        let run = 1 + walked[start..].windows(2).take_while(|pair| joins(&pair[0], &pair[1])).count();
        let pages = PageRange::of_len(window.start.plus(start as u32), run as u32);
        for (index, page) in pages.iter().enumerate() {
            let fits = |order: &&u8| {
                let block = PageIndex(page.0 >> **order << **order);
                block >= pages.start && pages.end.0 - block.0 >= 1 << **order
            };
            walked[start + index].entry.order = LEAF_ORDERS.iter().find(fits).copied().unwrap_or(0);
        }
        start += run;
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
