//! Snapshot and fault on a mapping that is a list.

use super::super::tests::{Probe, clear, mirror_with, pages};
use super::super::{Mirror, Notifiers};
use super::*;
use crate::hmm::{Blocking, Event};
use proptest::prelude::*;
use std::cell::RefCell;
use std::sync::Arc;

type Fault = dyn Fn(&mut Walked, Access) -> Result<(), PageError>;

/// A mapping of pages from `first` on; faults are carried out by `fault`.
struct List {
    first: u32,
    pages: RefCell<Vec<Walked>>,
    fault: Box<Fault>,
}

impl List {
    fn new(first: u32, pages: Vec<Walked>) -> Self {
        let fault = |page: &mut Walked, access| {
            page.entry.valid = true;
            page.entry.write = access == Access::Write;
            Ok(())
        };
        Self { first, pages: RefCell::new(pages), fault: Box::new(fault) }
    }
}

impl PageWalk for List {
    fn extent(&self) -> PageRange {
        PageRange::of_len(PageIndex(self.first), self.pages.borrow().len() as u32)
    }

    fn walk(&self, pages: PageRange, each: &mut dyn FnMut(Walked)) {
        pages.iter().for_each(|page| each(self.pages.borrow()[(page.0 - self.first) as usize]));
    }
}

impl PageFaultIn for List {
    fn fault_in(&self, page: PageIndex, access: Access) -> Result<(), PageError> {
        (self.fault)(&mut self.pages.borrow_mut()[(page.0 - self.first) as usize], access)
    }
}

fn valid(place: u64) -> Walked {
    let entry = PageEntry { valid: true, write: true, ..PageEntry::default() };
    Walked { entry, place, group: 1 }
}

fn mirror() -> (Arc<Notifiers>, Mirror) {
    let notifiers = Notifiers::new();
    let mirror = mirror_with(&notifiers, &Probe::new());
    (notifiers, mirror)
}

fn orders(list: &List, span: PageRange) -> Vec<u8> {
    let mut entries = Vec::new();
    read(list, span, &mut entries);
    entries.iter().map(|entry| entry.order).collect()
}

#[test]
fn leaves_are_found_wherever_the_range_starts_and_ends() {
    // Two 2 MiB leaves and a bit, contiguous.
    let list = List::new(0, (0..1100).map(valid).collect());
    for (start, end, expected) in
        [(0, 1024, 9), (511, 513, 9), (700, 701, 9), (1, 2, 9), (1024, 1088, 4), (1087, 1088, 4), (1088, 1100, 0)]
    {
        assert!(orders(&list, pages(start, end)).iter().all(|&order| order == expected), "{start}..{end}");
    }
}

#[test]
fn a_break_of_any_kind_breaks_the_leaf_around_it_and_no_other() {
    let breaks: [fn(&mut Walked); 4] = [
        |page| page.place += 1 << 20,
        |page| page.entry.write = false,
        |page| page.group = 2,
        |page| page.entry.valid = false,
    ];
    for break_it in breaks {
        let mut list: Vec<Walked> = (0..1024).map(valid).collect();
        break_it(&mut list[37]);
        let orders = orders(&List::new(0, list), pages(0, 1024));
        assert_eq!(orders[..32], [4; 32]);
        assert_eq!(orders[32..48], [0; 16]);
        assert_eq!(orders[48..512], [4; 464]);
        assert_eq!(orders[512..], [9; 512]);
    }
}

#[test]
fn a_leaf_that_the_mapping_does_not_wholly_hold_is_none() {
    // The block 0..512 begins before the mapping does.
    let list = List::new(3, (3..1030).map(valid).collect());
    assert_eq!(orders(&list, pages(3, 20)), [vec![0; 13], vec![4; 4]].concat());
    assert_eq!(orders(&list, pages(511, 513)), [4, 9]);
}

#[test]
fn pages_outside_are_unmapped_and_no_error_of_a_snapshot() {
    let (_notifiers, mirror) = mirror();
    let list = List::new(10, vec![valid(0); 2]);
    let range = mirror.range(pages(8, 14)).unwrap();
    let mut entries = Vec::new();
    range.snapshot(range.begin(), &list, &mut entries).unwrap();
    let errors: Vec<_> = entries.iter().map(|entry| entry.error).collect();
    let gone = Some(PageError::Unmapped);
    assert_eq!(errors, [gone, gone, None, None, gone, gone]);
    assert!(entries[2].valid && entries[3].valid && !entries[0].valid);
    let error = range.fault(range.begin(), &list, Request::all(Want::Read), &mut entries).unwrap_err();
    assert_eq!((error.page, error.error), (PageIndex(8), PageError::Unmapped));
}

#[test]
fn only_what_is_wanted_and_missing_is_faulted_and_the_stronger_wish_counts() {
    let (_notifiers, mirror) = mirror();
    let mut list = List::new(0, vec![Walked::default(); 6]);
    list.pages.borrow_mut()[1] = valid(1);
    list.pages.borrow_mut()[2].entry.valid = true;
    let asked = std::rc::Rc::new(RefCell::new(Vec::new()));
    let log = asked.clone();
    list.fault = Box::new(move |page, access| {
        log.borrow_mut().push(access);
        page.entry.valid = true;
        page.entry.write = access == Access::Write;
        Ok(())
    });
    let range = mirror.range(pages(0, 6)).unwrap();
    let mut entries = Vec::new();
    // Page 0: nothing. 1: write, has it. 2: write, has reading only. 3: read. 4, 5: by default, nothing.
    let each = [Want::Nothing, Want::Write, Want::Write, Want::Read];
    range.fault(range.begin(), &list, Request { default: Want::Nothing, each: &each }, &mut entries).unwrap();
    assert_eq!(*asked.borrow(), [Access::Write, Access::Read]);
    assert_eq!(entries.iter().map(|entry| entry.valid).collect::<Vec<_>>(), [false, true, true, true, false, false]);
    asked.borrow_mut().clear();
    range.fault(range.begin(), &list, Request { default: Want::Read, each: &each }, &mut entries).unwrap();
    assert_eq!(*asked.borrow(), [Access::Read; 3], "pages 0, 4 and 5 by default");
    range.fault(range.begin(), &list, Request::all(Want::Write), &mut entries).unwrap();
    assert!(entries.iter().all(|entry| entry.valid && entry.write && entry.error.is_none()));
}

#[test]
fn the_first_page_that_cannot_be_had_is_the_ranges_error_and_in_its_entry() {
    let (_notifiers, mirror) = mirror();
    let mut list = List::new(0, vec![Walked::default(); 4]);
    list.fault = Box::new(|_, access| if access == Access::Write { Err(PageError::NoPermission) } else { Ok(()) });
    let range = mirror.range(pages(0, 4)).unwrap();
    let mut entries = Vec::new();
    let each = [Want::Nothing, Want::Nothing, Want::Write];
    let error = range.fault(range.begin(), &list, Request { default: Want::Nothing, each: &each }, &mut entries);
    assert_eq!(error, Err(RangeError { pages: pages(0, 4), page: PageIndex(2), error: PageError::NoPermission }));
    assert_eq!(entries[2].error, Some(PageError::NoPermission));
    assert_eq!(entries[1].error, None);
}

#[test]
fn a_range_that_was_invalidated_is_stale_and_every_entry_says_so() {
    let (notifiers, mirror) = mirror();
    let list = List::new(0, vec![valid(0); 4]);
    let range = mirror.range(pages(0, 4)).unwrap();
    let seq = range.begin();
    drop(clear(&notifiers, pages(3, 9)));
    let mut entries = Vec::new();
    assert!(range.snapshot(seq, &list, &mut entries).unwrap_err().is_stale());
    assert!(entries.iter().all(|entry| entry.error == Some(PageError::Stale) && !entry.valid));
    range.snapshot(range.begin(), &list, &mut entries).unwrap();
}

#[test]
fn a_fault_that_invalidates_the_range_is_stale_once_and_finds_the_page_the_next_time() {
    let (notifiers, mirror) = mirror();
    let mut list = List::new(0, vec![Walked::default(); 4]);
    let inner = notifiers.clone();
    list.fault = Box::new(move |page, _| {
        // Its data comes home from a device.
        drop(inner.invalidate(pages(2, 3), Event::ProtectionPage, None, Blocking::Yes).unwrap());
        page.entry.valid = true;
        Ok(())
    });
    let range = mirror.range(pages(0, 4)).unwrap();
    let mut entries = Vec::new();
    let mut attempts = 0;
    while let Err(error) = range.fault(range.begin(), &list, Request::all(Want::Read), &mut entries) {
        assert!(error.is_stale());
        attempts += 1;
    }
    assert_eq!(attempts, 4, "one for each page");
    assert!(entries.iter().all(|entry| entry.valid));
}

proptest! {
    #[test]
    fn an_order_is_the_largest_leaf_whose_pages_all_belong_together(
        first in 0u32..600,
        gaps in prop::collection::vec((1usize..700, 0..4u8), 1..6),
        start in 0u32..2600,
        length in 1u32..1200,
    ) {
        let mut walked: Vec<Walked> = Vec::new();
        for (run, (length, kind)) in gaps.into_iter().enumerate() {
            let base = walked.len() as u64 + if kind == 0 { run as u64 * 10_000 } else { 0 };
            walked.extend((0..length as u64).map(|n| {
                let mut page = valid(base + n);
                page.group = if kind == 1 { run as u64 } else { 99 };
                page.entry.write = kind != 2;
                page.entry.valid = kind != 3;
                page
            }));
        }
        let list = List::new(first, walked.clone());
        let span = pages(start, start + length);
        for (page, order) in span.iter().zip(orders(&list, span)) {
            let at = |page: u32| page.checked_sub(first).and_then(|index| walked.get(index as usize));
            let leaf = |order: u8| {
                let block = page.0 >> order << order;
                (block..block + (1 << order)).all(|other| {
                    let (Some(here), Some(there)) = (at(page.0), at(other)) else { return false };
                    there.entry.valid
                        && there.group == here.group
                        && there.entry.write == here.entry.write
                        && here.place.wrapping_add(u64::from(other)) == there.place.wrapping_add(u64::from(page.0))
                })
            };
            prop_assert_eq!(order, [9u8, 4].into_iter().find(|&order| leaf(order)).unwrap_or(0));
        }
    }
}
