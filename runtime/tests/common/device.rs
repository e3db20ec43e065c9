//! A device around the reference device that watches its memory: it counts what slabs take, refuses allocations when told to, says what budget and what
//! speed a test wants it to have, and imports as most devices do, pinning the memory of the moment.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use vksvm::addr::DeviceAddress;
use vksvm::device::soft::{SoftDevice, SoftOptions};
use vksvm::device::{
    Device, DeviceError, DeviceInfo, Dispatch, HomeWindow, HostImport, MemoryBudget, MemoryTimes, PageCopy,
    SharedMemory, SharedUse, Slab,
};
use vksvm::kernel::KernelModule;

/// What the tests look at and set.
pub(crate) struct Watch {
    /// Bytes of slabs at present, and the most that a test allows.
    pub(crate) taken: AtomicU64,
    pub(crate) allowed: AtomicU64,
    /// Allocations so far, and the one to refuse.
    pub(crate) allocations: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Bytes that the device says there are; 0 for not saying anything.
    pub(crate) told: AtomicU64,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            taken: AtomicU64::new(0),
            allowed: AtomicU64::new(u64::MAX),
            allocations: AtomicU64::new(0),
            refused: AtomicU64::new(u64::MAX),
            told: AtomicU64::new(0),
        }
    }
}

pub(crate) struct WatchedDevice {
    inner: SoftDevice,
    info: DeviceInfo,
    watch: Arc<Watch>,
    times: Option<MemoryTimes>,
    windows: Mutex<Vec<Weak<PinnedWindow>>>,
}

impl WatchedDevice {
    pub(crate) fn new() -> (Arc<Self>, Arc<Watch>) {
        let watch = Arc::new(Watch::default());
        (Arc::new(Self::around(watch.clone())), watch)
    }

    fn around(watch: Arc<Watch>) -> Self {
        let inner = SoftDevice::new(&SoftOptions::default()).unwrap();
        Self { info: inner.info().clone(), inner, watch, times: None, windows: Mutex::default() }
    }

    /// A device that takes so many nanoseconds a page: all of it in frames, at home, a word of it at home, copying it.
    pub(crate) fn measured([frames, home, sparse, copy]: [u64; 4]) -> Arc<Self> {
        Arc::new(Self { times: Some(MemoryTimes { frames, home, sparse, copy }), ..Self::around(Arc::default()) })
    }

    /// A device that imports 2 MiB at a time and pins them: memory made anew under a window is none of its.
    pub(crate) fn pinning() -> Arc<Self> {
        let mut device = Self::around(Arc::default());
        device.info.import = Some(HostImport { window_pages: 512, follows: false });
        Arc::new(device)
    }

    /// How many windows were pinned so far.
    pub(crate) fn windows(&self) -> usize {
        self.windows.lock().unwrap().len()
    }

    /// How many of them there still are.
    pub(crate) fn live_windows(&self) -> usize {
        self.windows.lock().unwrap().iter().filter(|window| window.strong_count() > 0).count()
    }

    /// Memory of `bytes` bytes from `host` on, of the runtime's own mapping, was given back: windows that were made before keep what they
    /// pinned, which is garbage to everybody else.
    pub(crate) fn given_back(&self, host: *mut u8, bytes: usize) {
        for window in self.windows.lock().unwrap().iter().filter_map(Weak::upgrade) {
            window.part_from(host, bytes);
        }
    }

    /// Counts an allocation, and refuses it if it is the one.
    fn allocate(&self, what: &'static str, bytes: usize) -> Result<(), DeviceError> {
        let number = self.watch.allocations.fetch_add(1, Ordering::SeqCst);
        if number == self.watch.refused.load(Ordering::SeqCst) {
            return Err(DeviceError::OutOfMemory { what, bytes: bytes as u64 });
        }
        Ok(())
    }
}

struct WatchedSlab {
    inner: Arc<dyn Slab>,
    watch: Arc<Watch>,
}

impl Slab for WatchedSlab {
    fn address(&self) -> DeviceAddress {
        self.inner.address()
    }
    fn bytes(&self) -> usize {
        self.inner.bytes()
    }
}

impl Drop for WatchedSlab {
    fn drop(&mut self) {
        self.watch.taken.fetch_sub(self.inner.bytes() as u64, Ordering::SeqCst);
    }
}

/// Imported memory that does not follow the host's mapping: a mapping of its own, whose pages are replaced when the host's are given back.
struct PinnedWindow {
    inner: Arc<dyn HomeWindow>,
    own: *mut u8,
    host: usize,
    bytes: usize,
}

// SAFETY: the mapping is only named here; who uses it is ordered by the device's users.
unsafe impl Send for PinnedWindow {}
// SAFETY: as above.
unsafe impl Sync for PinnedWindow {}

impl PinnedWindow {
    fn part_from(&self, host: *mut u8, bytes: usize) {
        let start = host.addr().max(self.host);
        let end = (host.addr() + bytes).min(self.host + self.bytes);
        if start < end {
            let (at, length) = (self.own.wrapping_add(start - self.host), end - start);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            // SAFETY: a part of the window's own mapping.
            let made = unsafe { libc::mmap(at.cast(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
            assert_eq!(made.cast(), at);
            // SAFETY: just mapped.
            unsafe { at.write_bytes(0xdb, length) };
        }
    }
}

impl HomeWindow for PinnedWindow {
    fn address(&self) -> DeviceAddress {
        self.inner.address()
    }
}

impl Drop for PinnedWindow {
    fn drop(&mut self) {
        // SAFETY: its own mapping, which no entry leads into any more: that is what is tested.
        unsafe { libc::munmap(self.own.cast(), self.bytes) };
    }
}

impl Device for WatchedDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn measure_memory(&self) -> Option<Result<Vec<MemoryTimes>, DeviceError>> {
        self.times.map(|times| Ok(vec![times; 3]))
    }
    fn shared_memory(&self, bytes: usize, usage: SharedUse) -> Result<Box<dyn SharedMemory>, DeviceError> {
        self.allocate("shared memory", bytes)?;
        self.inner.shared_memory(bytes, usage)
    }
    fn slab(&self, bytes: usize) -> Result<Arc<dyn Slab>, DeviceError> {
        self.allocate("frames", bytes)?;
        let taken = self.watch.taken.fetch_add(bytes as u64, Ordering::SeqCst) + bytes as u64;
        let slab = WatchedSlab { inner: self.inner.slab(bytes)?, watch: self.watch.clone() };
        let allowed = self.watch.allowed.load(Ordering::SeqCst);
        assert!(taken <= allowed, "{taken} bytes of frames are taken, {allowed} are allowed");
        Ok(Arc::new(slab))
    }
    fn memory_budget(&self) -> Option<MemoryBudget> {
        let bytes = self.watch.told.load(Ordering::SeqCst);
        (bytes > 0).then(|| MemoryBudget { bytes, used: self.watch.taken.load(Ordering::SeqCst) })
    }
    unsafe fn import(&self, host: NonNull<u8>, bytes: usize) -> Result<Arc<dyn HomeWindow>, DeviceError> {
        self.allocate("a window", bytes)?;
        if self.info.import.is_none_or(|import| import.follows) {
            // SAFETY: the caller's promise.
            return unsafe { self.inner.import(host, bytes) };
        }
        // SAFETY: of a shared mapping, a length of zero makes another one of the same memory (mremap(2)).
        let own = unsafe { libc::mremap(host.as_ptr().cast(), 0, bytes, libc::MREMAP_MAYMOVE) };
        assert_ne!(own, libc::MAP_FAILED);
        let own = NonNull::new(own.cast::<u8>()).unwrap();
        // SAFETY: mapped as long as the window.
        let inner = unsafe { self.inner.import(own, bytes) }?;
        let window = Arc::new(PinnedWindow { inner, own: own.as_ptr(), host: host.addr().get(), bytes });
        self.windows.lock().unwrap().push(Arc::downgrade(&window));
        Ok(window)
    }
    unsafe fn copy_in(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        if !copies.is_empty() {
            self.allocate("staging", 0)?;
        }
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy_in(copies) }
    }
    unsafe fn copy_out(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy_out(copies) }
    }
    unsafe fn fill_zero(&self, fills: &[PageCopy]) -> Result<(), DeviceError> {
        if !fills.is_empty() {
            self.allocate("staging", 0)?;
        }
        // SAFETY: the caller's promise.
        unsafe { self.inner.fill_zero(fills) }
    }
    fn run(&self, dispatch: &Dispatch<'_>) -> Result<Duration, DeviceError> {
        self.inner.run(dispatch)
    }
    fn prepare(&self, kernel: &KernelModule, variant: u32) -> Result<(), DeviceError> {
        self.inner.prepare(kernel, variant)
    }
    fn forget(&self, kernel: &KernelModule) {
        self.inner.forget(kernel);
    }
    fn driver_threads(&self) -> Vec<u32> {
        self.inner.driver_threads()
    }
}
