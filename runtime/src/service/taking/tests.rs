//! Pages are taken from a kernel that runs, whose one unit the test plays: it is counted in an epoch, uses what it translated, and moves over
//! when the test says so.

use super::*;
use crate::addr::{Access, DeviceAddress, PAGE_SIZE};
use crate::device::layout::Control;
use crate::device::soft::{SoftDevice, SoftOptions};
use crate::device::{
    Device, DeviceError, DeviceInfo, Dispatch, HomeWindow, HostImport, PageCopy, SharedMemory, SharedUse, Slab,
};
use crate::hmm::{Blocking, Event, InvalidateInfo, MirrorOps};
use crate::kernel::KernelModule;
use crate::mm::pages::{DeviceNumber, PageRecords};
use crate::mm::space::Home;
use crate::mm::views::OwnedViews;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const LATE: u64 = pte::ACCESSED | pte::DIRTY;
const PAGES: u32 = 3;
/// Far more than anything here takes.
const HANG: Duration = Duration::from_secs(60);

/// The reference device, with a kernel on it that does not end. Its imports pin.
struct Running(SoftDevice, DeviceInfo);

impl Device for Running {
    fn info(&self) -> &DeviceInfo {
        &self.1
    }
    unsafe fn import(&self, host: NonNull<u8>, bytes: usize) -> Result<Arc<dyn HomeWindow>, DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.import(host, bytes) }
    }
    fn shared_memory(&self, bytes: usize, usage: SharedUse) -> Result<Box<dyn SharedMemory>, DeviceError> {
        self.0.shared_memory(bytes, usage)
    }
    fn slab(&self, bytes: usize) -> Result<Arc<dyn Slab>, DeviceError> {
        self.0.slab(bytes)
    }
    unsafe fn copy_in(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.copy_in(copies) }
    }
    unsafe fn copy_out(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.copy_out(copies) }
    }
    unsafe fn fill_zero(&self, fills: &[PageCopy]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.0.fill_zero(fills) }
    }
    fn host_frames(&self, device: DeviceAddress, bytes: usize) -> Option<NonNull<u8>> {
        self.0.host_frames(device, bytes)
    }
    fn run(&self, dispatch: &Dispatch<'_>) -> Result<Duration, DeviceError> {
        self.0.run(dispatch)
    }
    fn ended(&self, patience: Duration) -> Result<bool, DeviceError> {
        std::thread::sleep(patience);
        Ok(false)
    }
    fn prepare(&self, kernel: &KernelModule, variant: u32) -> Result<(), DeviceError> {
        self.0.prepare(kernel, variant)
    }
    fn forget(&self, kernel: &KernelModule) {
        self.0.forget(kernel);
    }
}

/// A device with pages in frames, writable and not used yet, and a live dispatch.
fn machine() -> DeviceMirror {
    let device = SoftDevice::new(&SoftOptions::default()).unwrap();
    let info = DeviceInfo { import: Some(HostImport { window_pages: 512, follows: false }), ..device.info().clone() };
    let device = Arc::new(Running(device, info));
    let views = OwnedViews::reserve(2 << 20).unwrap();
    let pages = PageRecords::new(views.pages()).unwrap();
    let home = Arc::new(Home { views, pages });
    let number = DeviceNumber(0);
    let mirror = DeviceMirror::new(device, home, Arc::new(Counters::default()), number, 64).unwrap();
    let all = PageRange::of_len(PageIndex(0), PAGES);
    {
        let _pages = mirror.home.pages.lock(all);
        let mut state = mirror.lock();
        for page in all.iter() {
            let frame = state.frames.place(mirror.device.as_ref(), all, page).unwrap().unwrap();
            state.table.store(page, state.frames.address(frame), pte::VALID | pte::WRITABLE);
            mirror.home.pages.set_state(page, PageState::Device(number));
        }
    }
    mirror.begin_live();
    mirror
}

/// The kernel's unit, as `vksvm_join_` and `vksvm_leave_` count it; it ends when this is dropped.
struct Unit<'m> {
    mirror: &'m DeviceMirror,
    epoch: u32,
}

impl<'m> Unit<'m> {
    fn join(mirror: &'m DeviceMirror) -> Self {
        let epoch = word(mirror, offset_of!(Control, epoch)).load(Ordering::SeqCst);
        count(mirror, epoch).fetch_add(1, Ordering::SeqCst);
        Self { mirror, epoch }
    }

    /// A safe point.
    fn move_over(&mut self) {
        loop {
            let now = word(self.mirror, offset_of!(Control, epoch)).load(Ordering::SeqCst);
            if now == self.epoch {
                return;
            }
            count(self.mirror, now).fetch_add(1, Ordering::SeqCst);
            let left = std::mem::replace(&mut self.epoch, now);
            count(self.mirror, left).fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Stores through a translation that it made before, in which it marks the page as used.
    fn store_late(&self, page: PageIndex, value: u8) {
        let state = self.mirror.lock();
        state.table.set_flags(page, LATE);
        let frame = frame_of(state.table.load(page));
        let host = self.mirror.device.host_frames(frame, PAGE_SIZE).unwrap();
        // SAFETY: the frame is the page's until this unit moves over.
        unsafe { host.write(value) };
    }
}

impl Drop for Unit<'_> {
    fn drop(&mut self) {
        count(self.mirror, self.epoch).fetch_sub(1, Ordering::SeqCst);
    }
}

fn word(mirror: &DeviceMirror, offset: usize) -> &AtomicU32 {
    mirror.epochs.word(offset)
}

fn count(mirror: &DeviceMirror, epoch: u32) -> &AtomicU32 {
    word(mirror, offset_of!(Control, counts) + 4 * (epoch & 1) as usize)
}

fn at_home(mirror: &DeviceMirror, page: PageIndex) -> u8 {
    // SAFETY: a page of the alias; whoever copied to it is done.
    unsafe { mirror.home.views.alias_ptr(page).read() }
}

fn invalidate(mirror: &DeviceMirror, page: PageIndex, event: Event) {
    let pages = PageRange::single(page);
    mirror.invalidate(&InvalidateInfo { pages, event, owner: None, blocking: Blocking::Yes }).unwrap();
}

fn evict(mirror: &DeviceMirror, page: PageIndex) {
    let _page = mirror.home.pages.try_lock(page).unwrap();
    let locks = Locks { state: mirror.lock(), _gate: None };
    assert!(mirror.can_evict(&locks.state, page));
    mirror.take_home(locks, std::iter::once(page));
}

/// Waits until kernels do not find `page` for `access` any more.
fn wait_until_taken(mirror: &DeviceMirror, page: PageIndex, access: Access) {
    let begun = Instant::now();
    while mirror.missing(PageRange::single(page), access).next().is_none() {
        assert!(begun.elapsed() < HANG, "{page} is not taken while others wait for the kernel");
        std::thread::yield_now();
    }
}

/// Takes a page from a unit that stores to it after its entry was taken; what is at home then. Checks that the page's record has the marks.
fn taken_late(taker: impl FnOnce(&DeviceMirror, PageIndex) + Send) -> u8 {
    let mirror = &machine();
    let page = PageIndex(1);
    std::thread::scope(|scope| {
        let mut unit = Unit::join(mirror);
        let taking = scope.spawn(move || taker(mirror, page));
        wait_until_taken(mirror, page, Access::Write);
        unit.store_late(page, 7);
        while !taking.is_finished() {
            unit.move_over();
        }
        taking.join().unwrap();
    });
    let info = mirror.home.pages.info(page);
    assert_eq!((info.accessed, info.dirty), (true, true), "marks that were set late are not on the page's record");
    let entry = mirror.entries(PageRange::single(page))[0];
    assert_eq!(entry & LATE, 0, "marks are left for whoever is mapped next");
    at_home(mirror, page)
}

#[test]
fn what_is_stored_after_an_entry_was_taken_comes_home_with_its_marks() {
    assert_eq!(taken_late(|mirror, page| invalidate(mirror, page, Event::Migrate)), 7);
    assert_eq!(taken_late(|mirror, page| invalidate(mirror, page, Event::ProtectionVma)), 7, "made read-only");
    assert_eq!(taken_late(evict), 7, "evicted");
}

#[test]
fn what_is_stored_late_to_memory_that_is_given_back_stays_away_and_leaves_its_marks() {
    assert_eq!(taken_late(|mirror, page| invalidate(mirror, page, Event::Clear)), 0);
}

#[test]
fn evictions_and_invalidations_wait_together_and_share_grace_periods() {
    let begun = Instant::now();
    loop {
        let mirror = &machine();
        let [first, second, third] = [0, 1, 2].map(PageIndex);
        std::thread::scope(|scope| {
            let mut unit = Unit::join(mirror);
            let mut takers = vec![scope.spawn(move || evict(mirror, first))];
            wait_until_taken(mirror, first, Access::Read);
            takers.push(scope.spawn(move || invalidate(mirror, second, Event::Migrate)));
            takers.push(scope.spawn(move || evict(mirror, third)));
            // The first waits still: nobody has moved over.
            wait_until_taken(mirror, second, Access::Read);
            wait_until_taken(mirror, third, Access::Read);
            assert!(!takers[0].is_finished(), "who evicts does not wait for the kernel");
            while !takers.iter().all(|taker| taker.is_finished()) {
                unit.move_over();
            }
        });
        let stats = mirror.counters.snapshot();
        assert_eq!(stats.shootdowns, 3);
        if stats.epochs < 3 {
            return;
        }
        // Between taking an entry and asking for a grace period one may have been preempted.
        assert!(begun.elapsed() < HANG, "none was ever shared");
    }
}

#[test]
fn eviction_passes_over_what_an_invalidation_from_outside_has_not_brought_home_yet() {
    let mirror = &machine();
    let page = PageIndex(0);
    std::thread::scope(|scope| {
        let mut unit = Unit::join(mirror);
        let taking = scope.spawn(move || invalidate(mirror, page, Event::ProtectionVma));
        wait_until_taken(mirror, page, Access::Write);
        assert_eq!(mirror.missing(PageRange::single(page), Access::Read).count(), 0, "it is mapped for reading still");
        assert!(!mirror.can_evict(&mirror.lock(), page));
        while !taking.is_finished() {
            unit.move_over();
        }
    });
    assert!(mirror.can_evict(&mirror.lock(), page));
}

#[test]
fn who_takes_a_page_that_is_being_evicted_waits_until_it_is_home() {
    let mirror = &machine();
    let page = PageIndex(2);
    std::thread::scope(|scope| {
        let mut unit = Unit::join(mirror);
        let evicting = scope.spawn(move || evict(mirror, page));
        wait_until_taken(mirror, page, Access::Read);
        unit.store_late(page, 9);
        let taking = scope.spawn(move || {
            invalidate(mirror, page, Event::Migrate);
            at_home(mirror, page)
        });
        // Whatever it does, it must not be done before the unit has moved over.
        std::thread::sleep(Duration::from_millis(20));
        assert!(!taking.is_finished(), "taken for home while its newest contents are in a frame");
        while !evicting.is_finished() {
            unit.move_over();
        }
        assert_eq!(taking.join().unwrap(), 9);
    });
}

#[test]
fn a_page_that_is_dirty_and_not_writable_comes_home_when_it_is_made_read_only() {
    let mirror = &machine();
    let page = PageIndex(1);
    Unit::join(mirror).store_late(page, 5);
    mirror.lock().table.clear_flags(page, pte::WRITABLE);
    invalidate(mirror, page, Event::ProtectionVma);
    assert_eq!(at_home(mirror, page), 5);
}

#[test]
fn a_window_stays_while_a_kernel_may_use_what_was_taken_from_it_before() {
    let mirror = &machine();
    let [used, other] = [0, 1].map(PageIndex);
    {
        let mut state = mirror.lock();
        let address = mirror.home_address(&mut state, used).unwrap();
        state.table.store(used, address, pte::VALID | pte::WRITABLE | pte::HOME);
    }
    invalidate(mirror, other, Event::Migrate);
    let windows = || mirror.lock().windows.made();
    std::thread::scope(|scope| {
        let mut unit = Unit::join(mirror);
        let taking = scope.spawn(move || invalidate(mirror, used, Event::Migrate));
        wait_until_taken(mirror, used, Access::Write);
        let giving_back = scope.spawn(move || invalidate(mirror, other, Event::Clear));
        // It must not be over before the unit has moved over; while it waits it holds the lock that the window is looked up under.
        std::thread::sleep(Duration::from_millis(20));
        assert!(!giving_back.is_finished(), "the window is gone, and the kernel may store through it");
        while !(taking.is_finished() && giving_back.is_finished()) {
            unit.move_over();
        }
    });
    assert_eq!(windows(), 0);
}
