//! The heap over a page source of views and VMAs alone: no tracker, no device.

use super::*;
use crate::addr::{PAGE_SIZE, PageIndex, PageRange};
use crate::mm::views::{OwnedViews, RESERVATION_ALIGN};
use crate::mm::vma::{VmaAttributes, VmaMap};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::hash::{BuildHasher, Hasher, RandomState};

struct TestSpace {
    views: OwnedViews,
    vmas: Mutex<VmaMap>,
}

impl PageSource for TestSpace {
    fn map(&self, pages: u32, align: u32) -> Result<PageIndex, HeapError> {
        let mut vmas = self.vmas.lock();
        let in_use = u64::from(vmas.mapped_pages()) * PAGE_SIZE as u64;
        let range = vmas
            .insert_lowest(pages, align, VmaAttributes::default())
            .map_err(|_| HeapError::Exhausted {
                asked: u64::from(pages) * PAGE_SIZE as u64,
                in_use,
                limit: u64::from(self.views.pages()) * PAGE_SIZE as u64,
            })?
            .range;
        self.views.grow_to(range.end.0)?;
        Ok(range.start)
    }

    fn unmap(&self, pages: PageRange) {
        let mut vmas = self.vmas.lock();
        let removed = vmas.remove(pages).unwrap();
        assert_eq!(removed.len(), 1, "not a whole VMA: {pages:?}");
        assert_eq!(removed[0].range, pages);
        self.views.punch(pages).unwrap();
    }

    fn discard(&self, pages: PageRange) {
        assert!(self.vmas.lock().first_hole(pages).is_none());
        self.views.punch(pages).unwrap();
    }

    fn addr_of(&self, page: PageIndex) -> VirtAddr {
        self.views.addr_of(page)
    }

    fn page_of(&self, addr: VirtAddr) -> Option<PageIndex> {
        self.views.page_of(addr)
    }
}

fn heap_of(bytes: u64) -> (Heap, Arc<TestSpace>) {
    let views = OwnedViews::reserve(bytes).unwrap();
    let vmas = Mutex::new(VmaMap::new(views.pages()));
    let space = Arc::new(TestSpace { views, vmas });
    (Heap::new(space.clone()), space)
}

fn heap() -> (Heap, Arc<TestSpace>) {
    heap_of(1 << 40)
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

fn address(pointer: NonNull<[u8]>) -> VirtAddr {
    VirtAddr::of(pointer.as_ptr())
}

/// Frees what the test allocated and nobody uses any more.
fn free(heap: &Heap, pointer: NonNull<[u8]>, layout: Layout) -> Result<(), HeapError> {
    // SAFETY: tests hand each pointer over once, or again on purpose to see it refused.
    unsafe { heap.try_dealloc(pointer.cast(), layout) }
}

fn seed() -> u64 {
    let given = std::env::var("VKSVM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    println!("VKSVM_SEED={seed}");
    seed
}

#[test]
fn neighbours_ascend_side_by_side() {
    let (heap, _space) = heap();
    for size in [16, 48, 96, 1024, 2048] {
        let all: Vec<u64> = (0..200).map(|_| address(heap.alloc(layout(size, 8)).unwrap()).0).collect();
        for pair in all.windows(2) {
            let step = pair[1] - pair[0];
            assert!(step >= size as u64 && step < size as u64 + 128, "{size}: {step}");
        }
    }
}

#[test]
fn every_alignment_up_to_two_mebibytes_is_kept() {
    let (heap, _space) = heap();
    for size in [1, 24, 300, 5000, 40_000, 3 << 20] {
        for align in (0..=21).map(|shift| 1usize << shift) {
            let layout = layout(size, align);
            let pointer = heap.alloc(layout).unwrap();
            assert!(address(pointer).0.is_multiple_of(align as u64), "{size} {align}");
            assert!(pointer.len() >= size);
            free(&heap, pointer, layout).unwrap();
        }
    }
    assert!(matches!(heap.alloc(layout(8, 4 << 20)), Err(HeapError::Alignment { .. })));
    assert!(matches!(heap.alloc(layout(0, 8)), Err(HeapError::ZeroSize)));
    assert!(matches!(heap.alloc(layout(1 << 50, 8)), Err(HeapError::TooLarge { .. })));
    assert_eq!(heap.usage().allocations, 0);
}

#[test]
fn the_allocator_never_touches_the_memory_it_manages() {
    let (heap, space) = heap();
    let layouts: Vec<_> = (0..2000).map(|i| layout(1 + i * 37 % 60_000, 8)).collect();
    let all: Vec<_> = layouts.iter().map(|&layout| heap.alloc(layout).unwrap()).collect();
    for (&pointer, &layout) in all.iter().zip(&layouts) {
        free(&heap, pointer, layout).unwrap();
    }
    heap.vec_zeroed::<u64>(1 << 20).unwrap();
    assert_eq!(space.views.resident_bytes(), 0);
}

#[test]
fn freed_memory_is_given_back() {
    let (heap, space) = heap();
    let mut small = Vec::new();
    for _ in 0..100_000 {
        let pointer = heap.alloc(layout(200, 8)).unwrap();
        // SAFETY: just allocated, 200 bytes.
        unsafe { pointer.cast::<u8>().write_bytes(1, 200) };
        small.push(pointer);
    }
    let large = heap.vec_from_slice(&vec![7u8; 10 << 20]).unwrap();
    let full = space.views.resident_bytes();
    assert!(full >= 30_000_000);
    drop(large);
    assert!(space.views.resident_bytes() <= full - (10 << 20));
    small.shuffle(&mut SmallRng::seed_from_u64(1));
    for pointer in small {
        free(&heap, pointer, layout(200, 8)).unwrap();
    }
    assert!(space.views.resident_bytes() <= 2 * 65_536);
    assert_eq!(heap.usage().allocated, 0);
    heap.trim();
    assert_eq!(space.views.resident_bytes(), 0);
    assert_eq!(heap.usage(), HeapUsage::default());
    assert!(space.vmas.lock().is_empty());
}

#[test]
fn an_exhausted_heap_says_so_and_is_usable_after_frees() {
    let (heap, space) = heap_of(2 * RESERVATION_ALIGN);
    for size in [64, 3000, 30_000, 100_000] {
        let layout = layout(size, 8);
        let mut all = Vec::new();
        let error = loop {
            match heap.alloc(layout) {
                Ok(pointer) => all.push(pointer),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, HeapError::Exhausted { limit: 0x40_0000, .. }), "{error}");
        assert!(all.len() * size > 3 << 20, "{size}: only {}", all.len());
        assert!(matches!(heap.vec_with_capacity::<u64>(1 << 20), Err(HeapError::Exhausted { .. })));
        for pointer in all.drain(..) {
            free(&heap, pointer, layout).unwrap();
        }
    }
    // The whole heap at once: what was kept warm makes room.
    drop(heap.vec_zeroed::<u8>(4 << 20).unwrap());
    drop(heap);
    assert!(space.vmas.lock().is_empty());
}

#[test]
fn wrong_pointers_are_reported_and_nothing_is_freed() {
    let (heap, _space) = heap();
    let (small, large) = (layout(100, 8), layout(100_000, 8));
    let kept = heap.alloc(small).unwrap();
    let a = heap.alloc(small).unwrap();
    let b = heap.alloc(large).unwrap();
    let inside = |pointer: NonNull<[u8]>| {
        NonNull::slice_from_raw_parts(NonNull::new(VirtAddr(address(pointer).0 + 16).as_ptr()).unwrap(), 1)
    };
    assert!(matches!(free(&heap, a, layout(300, 8)), Err(HeapError::WrongLayout { len: 112, .. })));
    assert!(matches!(free(&heap, b, layout(200_000, 8)), Err(HeapError::WrongLayout { .. })));
    assert!(matches!(free(&heap, b, small), Err(HeapError::WrongLayout { .. })));
    assert!(matches!(free(&heap, inside(a), small), Err(HeapError::NotAllocated { .. })));
    assert!(matches!(free(&heap, inside(b), large), Err(HeapError::NotAllocated { .. })));
    let foreign = NonNull::from(&mut [0u8; 100][..]);
    assert!(matches!(free(&heap, foreign, small), Err(HeapError::Foreign { .. })));
    assert_eq!(heap.usage().allocations, 3);
    free(&heap, a, small).unwrap();
    free(&heap, b, large).unwrap();
    assert!(matches!(free(&heap, a, small), Err(HeapError::DoubleFree { len: 112, .. })));
    assert!(matches!(free(&heap, b, large), Err(HeapError::NotAllocated { .. })));
    free(&heap, kept, small).unwrap();
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "double free")]
fn a_double_free_panics_in_debug_builds() {
    let (heap, _space) = heap();
    let pointer = heap.alloc(layout(100, 8)).unwrap().cast();
    // SAFETY: the second call breaks the contract on purpose; the heap refuses it.
    unsafe {
        heap.dealloc(pointer, layout(100, 8));
        heap.dealloc(pointer, layout(100, 8));
    }
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "invariant I1")]
fn allocating_on_the_fault_path_panics_in_debug_builds() {
    let (heap, _space) = heap();
    let _guard = crate::track::FaultPathGuard::enter();
    let _ = heap.alloc(layout(100, 8));
}

#[test]
fn lookups_name_live_allocations_only() {
    let (heap, space) = heap();
    assert_eq!(heap.nearest(VirtAddr(0)), None);
    let small: Vec<_> = (0..5).map(|_| heap.alloc(layout(1000, 8)).unwrap()).collect();
    let large = heap.alloc(layout(50_000, 8)).unwrap();
    let start = address(small[1]);
    let found = Allocation { start, len: 1024 };
    assert_eq!(heap.allocation_at(start), Some(found));
    assert_eq!(heap.allocation_at(VirtAddr(start.0 + 1023)), Some(found));
    assert_eq!(heap.allocation_at(VirtAddr(address(large).0 + 50_000)).unwrap().start, address(large));
    assert_eq!(heap.allocation_at(VirtAddr(address(large).0 + 53_248)), None);

    for &index in &[2, 3] {
        free(&heap, small[index], layout(1000, 8)).unwrap();
    }
    let freed = address(small[2]);
    assert_eq!(heap.allocation_at(freed), None);
    assert_eq!(heap.nearest(freed), Some((found, 1)));
    assert_eq!(
        heap.nearest(VirtAddr(freed.0 + 2047)).unwrap(),
        (Allocation { start: address(small[4]), len: 1024 }, 1)
    );

    let lowest = Allocation { start: address(small[0]), len: 1024 };
    let highest = heap.allocation_at(address(large)).unwrap();
    assert!(highest.start > lowest.start);
    assert_eq!(heap.nearest(VirtAddr(0)), Some((lowest, lowest.start.0)));
    assert_eq!(heap.nearest(VirtAddr(u64::MAX)), Some((highest, u64::MAX - highest.end().0 + 1)));
    let far = space.views.addr_of(PageIndex(1 << 20));
    assert_eq!(heap.nearest(far).unwrap().0, highest);
    assert_eq!(heap.usage().allocations, 4);
}

#[test]
fn resizing_keeps_contents_and_the_place_where_it_can() {
    let (heap, space) = heap();
    let sizes = [10usize, 16, 17, 100, 112, 5000, 33_000, 36_000, 1 << 20, 3 << 20, 2 << 20, 40_000, 900, 1];
    let mut pointer = heap.alloc(layout(sizes[0], 8)).unwrap();
    let mut kept = sizes[0];
    // SAFETY: here and below: `pointer` is the live allocation, of the size it was just given.
    unsafe { pointer.cast::<u8>().write_bytes(0x5a, kept) };
    for pair in sizes.windows(2) {
        let before = pointer;
        // SAFETY: as above.
        pointer = unsafe { heap.resize(before.cast(), layout(pair[0], 8), layout(pair[1], 8)) }.unwrap();
        kept = kept.min(pair[1]);
        // SAFETY: as above; the first `kept` bytes are initialised.
        let bytes = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>().as_ptr(), kept) };
        assert!(bytes.iter().all(|&byte| byte == 0x5a));
        let stays =
            matches!(pair, [10, 16] | [100, 112] | [33_000, 36_000] | [0x30_0000, 0x20_0000] | [0x20_0000, 40_000]);
        assert_eq!(address(before) == address(pointer), stays, "{pair:?}");
        // SAFETY: as above.
        unsafe { pointer.cast::<u8>().write_bytes(0x5a, pair[1]) };
        kept = pair[1];
        assert_eq!(heap.usage().allocations, 1);
    }
    heap.trim();
    assert_eq!(space.views.resident_bytes(), PAGE_SIZE as u64);
}

#[test]
fn zeroed_memory_is_zero_fresh_or_reused() {
    let (heap, _space) = heap();
    for size in [24, 700, 20_000, 50_000] {
        for round in 0..3 {
            let all: Vec<_> = (0..50).map(|_| heap.alloc_zeroed(layout(size, 8)).unwrap()).collect();
            for pointer in all {
                // SAFETY: live, zeroed throughout.
                let bytes = unsafe { std::slice::from_raw_parts_mut(pointer.cast::<u8>().as_ptr(), pointer.len()) };
                assert!(bytes.iter().all(|&byte| byte == 0), "{size} in round {round}");
                bytes.fill(0xff);
                free(&heap, pointer, layout(size, 8)).unwrap();
            }
        }
    }
}

struct Node {
    value: u64,
    next: Option<SvmBox<Node>>,
}

#[test]
fn boxes_vectors_maps_and_lists_live_in_the_heap() {
    let (heap, space) = heap();
    let mut vec = heap.vec();
    let mut map = heap.map();
    let mut list = None;
    for value in 0..20_000u64 {
        vec.push(value);
        map.insert(value, heap.boxed(value.to_string()).unwrap());
        list = Some(heap.boxed(Node { value, next: list.take() }).unwrap());
    }
    assert_eq!(vec.iter().sum::<u64>(), 19_999 * 10_000);
    assert_eq!(**map.get(&777).unwrap(), "777");
    assert!(space.views.page_of(VirtAddr::of(&raw const vec[0])).is_some());
    assert!(space.views.page_of(VirtAddr::of(&raw const **map.get(&5).unwrap())).is_some());
    let mut length = 0;
    while let Some(mut node) = list {
        length += 1;
        assert_eq!(node.value, 20_000 - length);
        list = node.next.take();
    }
    assert_eq!(length, 20_000);
    assert_eq!(heap.vec_zeroed::<u32>(1000).unwrap()[..], [0; 1000]);
    let nothing = heap.boxed(()).unwrap();
    assert!(heap.vec_with_capacity::<()>(10).unwrap().is_empty());
    drop((vec, map, nothing));
    assert_eq!(heap.usage().allocations, 0);
}

#[test]
fn containers_keep_the_heap_alive() {
    let (heap, space) = heap();
    let value = heap.boxed([3u8; 5000]).unwrap();
    drop(heap);
    assert_eq!(value[4999], 3);
    drop(value);
    assert!(space.vmas.lock().is_empty());
}

/// A live allocation filled with a pattern of its own: two that overlap spoil each other's.
struct Patterned {
    pointer: NonNull<[u8]>,
    layout: Layout,
    pattern: u8,
}

// SAFETY: owned memory; whoever has the value has the bytes.
unsafe impl Send for Patterned {}

impl Patterned {
    fn new(heap: &Heap, random: &mut SmallRng) -> Self {
        let size = match random.random_range(0..100) {
            0..70 => random.random_range(1..300),
            70..97 => random.random_range(1..40_000),
            _ => random.random_range(1..300_000),
        };
        let layout = layout(size, 1 << random.random_range(0..if size < 5000 { 6 } else { 14 }));
        let pointer = heap.alloc(layout).unwrap();
        let filled = Self { pointer, layout, pattern: random.random() };
        filled.fill();
        filled
    }

    fn fill(&self) {
        // SAFETY: live and ours, at least `size` bytes.
        unsafe { self.pointer.cast::<u8>().write_bytes(self.pattern, self.layout.size()) };
    }

    fn check(&self, len: usize) {
        // SAFETY: live and ours, filled up to `len`.
        let bytes = unsafe { std::slice::from_raw_parts(self.pointer.cast::<u8>().as_ptr(), len) };
        assert!(bytes.iter().all(|&byte| byte == self.pattern), "{:?} was overwritten", self.pointer);
    }

    fn resize(&mut self, heap: &Heap, size: usize) {
        let new = layout(size, self.layout.align());
        // SAFETY: live and ours; the old pointer is replaced at once.
        self.pointer = unsafe { heap.resize(self.pointer.cast(), self.layout, new) }.unwrap();
        self.check(size.min(self.layout.size()));
        self.layout = new;
        self.fill();
    }

    fn free(self, heap: &Heap) {
        self.check(self.layout.size());
        free(heap, self.pointer, self.layout).unwrap();
    }
}

#[test]
fn random_allocations_of_many_threads_never_overlap() {
    let (heap, space) = heap();
    let seed = seed();
    let handed_over = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (heap, handed_over) = (&heap, &handed_over);
            scope.spawn(move || {
                let mut random = SmallRng::seed_from_u64(seed.wrapping_add(thread));
                let mut mine = Vec::new();
                for _ in 0..6000 {
                    match random.random_range(0..10) {
                        0..5 => mine.push(Patterned::new(heap, &mut random)),
                        5 if !mine.is_empty() => {
                            let index = random.random_range(0..mine.len());
                            mine[index].resize(heap, random.random_range(1..50_000));
                        }
                        6 => handed_over.lock().extend(mine.pop()),
                        7 => mine.extend(handed_over.lock().pop()),
                        _ if !mine.is_empty() => {
                            mine.swap_remove(random.random_range(0..mine.len())).free(heap);
                        }
                        _ => {}
                    }
                }
                mine.into_iter().for_each(|allocation| allocation.free(heap));
            });
        }
    });
    handed_over.into_inner().into_iter().for_each(|allocation| allocation.free(&heap));
    assert_eq!(heap.usage().allocations, 0);
    heap.trim();
    assert_eq!(heap.usage(), HeapUsage::default());
    assert_eq!(space.views.resident_bytes(), 0);
}
