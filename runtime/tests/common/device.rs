//! A device around the reference device that watches its memory: it counts what slabs take, refuses allocations when told to, and says
//! what budget a test wants it to have.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vksvm::addr::DeviceAddress;
use vksvm::device::soft::{SoftDevice, SoftOptions};
use vksvm::device::{
    Device, DeviceError, DeviceInfo, Dispatch, HomeWindow, MemoryBudget, MemoryTimes, PageCopy, SharedMemory,
    SharedUse, Slab,
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

pub(crate) struct WatchedDevice {
    inner: SoftDevice,
    watch: Arc<Watch>,
}

impl WatchedDevice {
    pub(crate) fn new() -> (Arc<Self>, Arc<Watch>) {
        let watch = Arc::new(Watch {
            taken: AtomicU64::new(0),
            allowed: AtomicU64::new(u64::MAX),
            allocations: AtomicU64::new(0),
            refused: AtomicU64::new(u64::MAX),
            told: AtomicU64::new(0),
        });
        let inner = SoftDevice::new(&SoftOptions::default()).unwrap();
        (Arc::new(Self { inner, watch: watch.clone() }), watch)
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

impl Device for WatchedDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
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
        // SAFETY: the caller's promise.
        unsafe { self.inner.import(host, bytes) }
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

/// The reference device, with what is to be measured of its memory.
pub(crate) struct Measured {
    inner: SoftDevice,
    times: MemoryTimes,
}

impl Measured {
    /// Nanoseconds a page: all of it in frames, at home, a word of it at home, copying it.
    pub(crate) fn new([frames, home, sparse, copy]: [u64; 4]) -> Self {
        let inner = SoftDevice::new(&SoftOptions::default()).unwrap();
        Self { inner, times: MemoryTimes { frames, home, sparse, copy } }
    }
}

impl Device for Measured {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn measure_memory(&self) -> Option<Result<Vec<MemoryTimes>, DeviceError>> {
        Some(Ok(vec![self.times; 3]))
    }
    fn shared_memory(&self, bytes: usize, usage: SharedUse) -> Result<Box<dyn SharedMemory>, DeviceError> {
        self.inner.shared_memory(bytes, usage)
    }
    fn slab(&self, bytes: usize) -> Result<Arc<dyn Slab>, DeviceError> {
        self.inner.slab(bytes)
    }
    unsafe fn import(&self, host: NonNull<u8>, bytes: usize) -> Result<Arc<dyn HomeWindow>, DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.import(host, bytes) }
    }
    unsafe fn copy_in(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy_in(copies) }
    }
    unsafe fn copy_out(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy_out(copies) }
    }
    unsafe fn fill_zero(&self, fills: &[PageCopy]) -> Result<(), DeviceError> {
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
}
