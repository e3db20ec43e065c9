//! Which home pages have contents at all: the others are mapped to zeros without a copy.
//!
//! The kernel answers "where does this data end" by walking to its end, however far that is: a span of one page inside a
//! gigabyte of data would pay for all of it. So short spans are asked for page by page, and the end of a run that was found once
//! is remembered.
//!
//! What was found stays in the page's record until the page is unmapped or discarded, so that a page is asked for once: contents do not
//! vanish while the page is locked. A run that is remembered from an earlier batch may since have lost pages (they were discarded): these read as
//! zeros, as they should, and nothing is noted of them. Holes are never remembered, since they may have been written since.

use super::batch::Part;
use crate::addr::{PageIndex, PageRange};
use crate::mm::pages::PageRecords;
use crate::mm::space::Home;
use crate::mm::views::OwnedViews;

/// Spans up to this length are asked for page by page.
const SHORT: u32 = 16;

/// What is remembered while a batch of faults is serviced.
#[derive(Debug, Default)]
pub(super) struct Contents {
    known: PageRange,
    /// Whether it was found with the locks held of the pages that are looked at.
    current: bool,
    runs: Vec<PageRange>,
}

impl Contents {
    /// Forgets what is remembered: a new batch starts.
    pub(super) fn forget(&mut self) {
        self.known = PageRange::default();
    }

    /// Finds out which pages of `parts`, whose locks are held, have contents, as far as their records do not say. What has none may gain some
    /// as long as the CPU may store to it.
    pub(super) fn look(&mut self, home: &Home, parts: &[Part]) {
        self.runs.clear();
        self.current = false;
        for part in parts {
            let pages = part.span.pages;
            if !pages.iter().all(|page| home.pages.is_filled(page)) {
                self.look_at(&home.views, &home.pages, pages);
            }
        }
    }

    fn look_at(&mut self, views: &OwnedViews, records: &PageRecords, span: PageRange) {
        let last = PageIndex(views.pages());
        let mut at = span.start;
        while at < span.end {
            if self.known.contains(at) {
                let run = PageRange::new(at, self.known.end.min(span.end));
                if self.current {
                    run.iter().for_each(|page| records.set_filled(page));
                }
                self.add(run);
                at = self.known.end;
                continue;
            }
            let data = views.next_data(at, span.end);
            if data >= span.end {
                break;
            }
            if self.known.contains(data) {
                at = data;
            } else if span.end.0 - data.0 <= SHORT {
                records.set_filled(data);
                self.add(PageRange::single(data));
                at = data.plus(1);
            } else {
                let hole = views.next_hole(data, last).max(data.plus(1));
                self.known = PageRange::new(data, hole);
                self.current = true;
                at = data;
            }
        }
    }

    fn add(&mut self, run: PageRange) {
        match self.runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => self.runs.push(run),
        }
    }

    /// Whether a page of the parts that were looked at has contents.
    pub(super) fn has(&self, records: &PageRecords, page: PageIndex) -> bool {
        if records.is_filled(page) {
            return true;
        }
        let behind = self.runs.partition_point(|run| run.end <= page);
        self.runs.get(behind).is_some_and(|run| run.contains(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(views: &OwnedViews, pages: std::ops::Range<u32>) {
        for page in pages {
            // SAFETY: a page of the alias, which this test alone uses.
            unsafe { views.alias_ptr(PageIndex(page)).write(1) };
        }
    }

    fn found(contents: &mut Contents, views: &OwnedViews, from: u32, to: u32) -> Vec<u32> {
        let span = PageRange::new(PageIndex(from), PageIndex(to));
        contents.runs.clear();
        let records = PageRecords::new(views.pages()).unwrap();
        contents.look_at(views, &records, span);
        span.iter().filter(|&page| contents.has(&records, page)).map(|page| page.0).collect()
    }

    #[test]
    fn data_and_holes_are_told_apart_in_short_and_long_spans() {
        let views = OwnedViews::reserve(2 << 20).unwrap();
        write(&views, 10..14);
        write(&views, 100..300);
        let mut contents = Contents::default();
        assert_eq!(found(&mut contents, &views, 8, 16), [10, 11, 12, 13]);
        assert_eq!(found(&mut contents, &views, 0, 12), [10, 11]);
        let all: Vec<u32> = (10..14).chain(100..300).collect();
        assert_eq!(found(&mut contents, &views, 0, 512), all);
        assert_eq!(found(&mut contents, &views, 290, 310), (290..300).collect::<Vec<_>>());
        assert_eq!(found(&mut contents, &views, 400, 401), [] as [u32; 0]);
    }

    #[test]
    fn what_is_found_is_noted_and_what_is_remembered_from_before_is_not() {
        let views = OwnedViews::reserve(2 << 20).unwrap();
        write(&views, 0..128);
        let records = PageRecords::new(views.pages()).unwrap();
        let mut contents = Contents::default();
        let span = |from, to| PageRange::new(PageIndex(from), PageIndex(to));
        contents.look_at(&views, &records, span(0, 64));
        assert!(span(0, 64).iter().all(|page| records.is_filled(page)));
        assert!(!records.is_filled(PageIndex(64)), "not asked for: its lock is not held");
        // A later batch, before which a remembered page was discarded.
        views.punch(span(70, 71)).unwrap();
        contents.current = false;
        contents.runs.clear();
        contents.look_at(&views, &records, span(64, 128));
        assert!(!records.is_filled(PageIndex(70)));
        assert!(contents.has(&records, PageIndex(100)));
        contents.forget();
        contents.runs.clear();
        contents.look_at(&views, &records, span(70, 71));
        assert!(!contents.has(&records, PageIndex(70)));
    }

    #[test]
    fn pages_written_after_a_run_was_remembered_are_seen() {
        let views = OwnedViews::reserve(2 << 20).unwrap();
        write(&views, 0..64);
        let mut contents = Contents::default();
        assert_eq!(found(&mut contents, &views, 0, 128).len(), 64);
        write(&views, 64..66);
        assert_eq!(found(&mut contents, &views, 0, 128).len(), 66);
    }
}
