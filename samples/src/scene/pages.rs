//! Sets of pages, to say which a change touched.

use std::collections::BTreeSet;

/// A set of 4 KiB pages, each known by its first address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSet(BTreeSet<usize>);

/// Bytes of a page.
const PAGE: usize = 4096;

impl PageSet {
    /// Adds the pages of `count` values at `first`.
    pub fn insert<T>(&mut self, first: *const T, count: usize) {
        let bytes = count * size_of::<T>();
        if bytes > 0 {
            let last = first.addr() + bytes - 1;
            self.0.extend((first.addr() / PAGE..=last / PAGE).map(|page| page * PAGE));
        }
    }

    /// Adds all pages of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// Keeps the pages for which `keep` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(*const u8) -> bool) {
        self.0.retain(|&page| keep(std::ptr::with_exposed_provenance(page)));
    }

    /// Number of pages.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_once() {
        let mut pages = PageSet::default();
        pages.insert(std::ptr::without_provenance::<u64>(4088), 1);
        pages.insert(std::ptr::without_provenance::<u64>(4092), 1);
        pages.insert(std::ptr::without_provenance::<u64>(8), 0);
        assert_eq!(pages.len(), 2);
    }
}
