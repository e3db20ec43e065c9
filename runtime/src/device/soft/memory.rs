//! The reference device's memory, and how its kernels reach it.
//!
//! A device address is the host address plus [`SKEW`], so that neither can pass for the other: a kernel that uses a heap
//! address without translating it, or a host that follows a device address, is found out at once.
//!
//! Kernels may race with each other, as on any device. So their accesses are relaxed atomics of at most eight bytes: a race
//! gives some mixture of old and new bytes, never undefined behaviour. The host accesses the memory plainly only while no
//! dispatch runs.

use crate::addr::{DeviceAddress, PAGE_SIZE};
use crate::device::{DeviceError, HomeWindow, SharedMemory, Slab};
use bytemuck::Pod;
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Device address minus host address.
const SKEW: u64 = 1 << 60;

/// Bytes that slabs take, and the most they may take.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicU64,
    limit: u64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), limit })
    }
}

/// Page-aligned memory, zeroed when made.
pub(super) struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    budget: Option<Arc<Budget>>,
}

// SAFETY: the memory is owned; who accesses it when is the contract of `SharedMemory` and `Slab`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(super) fn new(what: &'static str, bytes: usize, budget: Option<Arc<Budget>>) -> Result<Self, DeviceError> {
        let refused = || DeviceError::OutOfMemory { what, bytes: bytes as u64 };
        let bytes = bytes.max(1).next_multiple_of(PAGE_SIZE);
        if let Some(budget) = &budget {
            let fits = |used: u64| used.checked_add(bytes as u64).filter(|&used| used <= budget.limit);
            budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| refused())?;
        }
        // From here on dropping it gives the budget back; an empty allocation is never freed.
        let mut memory = Self { start: NonNull::dangling(), bytes: 0, budget: None };
        let layout = Layout::from_size_align(bytes, PAGE_SIZE).map_err(|_| refused())?;
        // SAFETY: the layout has at least a page.
        let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) });
        let Some(start) = start else {
            if let Some(budget) = &budget {
                budget.used.fetch_sub(bytes as u64, Ordering::Relaxed);
            }
            return Err(refused());
        };
        // Kernels come back to the memory through its address.
        start.as_ptr().expose_provenance();
        memory.start = start;
        memory.bytes = bytes;
        memory.budget = budget;
        Ok(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        if let Some(budget) = &self.budget {
            budget.used.fetch_sub(self.bytes as u64, Ordering::Relaxed);
        }
        let layout = Layout::from_size_align(self.bytes, PAGE_SIZE).expect("it was made with this layout");
        // SAFETY: allocated in `new` with this layout, freed once.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), layout) };
    }
}

impl SharedMemory for Memory {
    fn host(&self) -> NonNull<u8> {
        self.start
    }

    fn address(&self) -> DeviceAddress {
        DeviceAddress(self.start.as_ptr() as u64 + SKEW)
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Slab for Memory {
    fn address(&self) -> DeviceAddress {
        SharedMemory::address(self)
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Memory of the host's, reached where it is.
pub(super) struct Window(DeviceAddress);

impl Window {
    pub(super) fn new(start: NonNull<u8>) -> Self {
        // Kernels come back to the memory through its address.
        Self(DeviceAddress(start.as_ptr().expose_provenance() as u64 + SKEW))
    }
}

impl HomeWindow for Window {
    fn address(&self) -> DeviceAddress {
        self.0
    }
}

/// Where a device address is on the host.
pub(super) fn host(address: DeviceAddress) -> *mut u8 {
    debug_assert!(
        address.0 >= SKEW,
        "{address:?} is no address of this device: a heap address that was not translated?"
    );
    std::ptr::with_exposed_provenance_mut((address.0 - SKEW) as usize)
}

/// Copies `into.len()` bytes from the device, in relaxed atomic pieces.
///
/// # Safety
/// The bytes lie in live memory of a device, accessed by others at the same time only through this module.
pub(super) unsafe fn load(from: DeviceAddress, into: &mut [u8]) {
    let start = host(from);
    let mut at = 0;
    while at < into.len() {
        let here = start.wrapping_add(at);
        let step = piece(here as usize, into.len() - at);
        // SAFETY: the piece lies in the bytes that the caller vouches for and is aligned to its size.
        let bytes = unsafe {
            match step {
                8 => (*here.cast::<AtomicU64>()).load(Ordering::Relaxed).to_ne_bytes(),
                4 => widen((*here.cast::<AtomicU32>()).load(Ordering::Relaxed).to_ne_bytes()),
                _ => widen([(*here.cast::<AtomicU8>()).load(Ordering::Relaxed)]),
            }
        };
        into[at..at + step].copy_from_slice(&bytes[..step]);
        at += step;
    }
}

/// Copies bytes to the device, in relaxed atomic pieces.
///
/// # Safety
/// As for [`load`].
pub(super) unsafe fn store(to: DeviceAddress, from: &[u8]) {
    let start = host(to);
    let mut at = 0;
    while at < from.len() {
        let here = start.wrapping_add(at);
        let step = piece(here as usize, from.len() - at);
        let mut bytes = [0; 8];
        bytes[..step].copy_from_slice(&from[at..at + step]);
        // SAFETY: as in `load`.
        unsafe {
            match step {
                8 => (*here.cast::<AtomicU64>()).store(u64::from_ne_bytes(bytes), Ordering::Relaxed),
                4 => {
                    let word = [bytes[0], bytes[1], bytes[2], bytes[3]];
                    (*here.cast::<AtomicU32>()).store(u32::from_ne_bytes(word), Ordering::Relaxed);
                }
                _ => (*here.cast::<AtomicU8>()).store(bytes[0], Ordering::Relaxed),
            }
        }
        at += step;
    }
}

/// A value of plain bytes on the device.
///
/// # Safety
/// As for [`load`].
pub(super) unsafe fn read<T: Pod>(from: DeviceAddress) -> T {
    let mut value = T::zeroed();
    // SAFETY: the caller's promise.
    unsafe { load(from, bytemuck::bytes_of_mut(&mut value)) };
    value
}

/// A 32-bit word on the device.
///
/// # Safety
/// As for [`load`]; the address is aligned to 4 bytes, and the memory outlives `'a`.
pub(super) unsafe fn word<'a>(at: DeviceAddress) -> &'a AtomicU32 {
    debug_assert_eq!(at.0 % 4, 0, "an atomic at an unaligned address");
    // SAFETY: the caller's promise.
    unsafe { &*host(at).cast() }
}

/// A 64-bit word on the device.
///
/// # Safety
/// As for [`word`], aligned to 8 bytes.
pub(super) unsafe fn double_word<'a>(at: DeviceAddress) -> &'a AtomicU64 {
    debug_assert_eq!(at.0 % 8, 0, "an atomic at an unaligned address");
    // SAFETY: the caller's promise.
    unsafe { &*host(at).cast() }
}

/// Largest piece that starts at `address` and has at most `left` bytes.
fn piece(address: usize, left: usize) -> usize {
    if left >= 8 && address.is_multiple_of(8) {
        8
    } else if left >= 4 && address.is_multiple_of(4) {
        4
    } else {
        1
    }
}

fn widen<const N: usize>(bytes: [u8; N]) -> [u8; 8] {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes);
    wide
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_from_every_alignment() {
        let memory = Memory::new("test", 100, None).unwrap();
        for offset in 0..16u64 {
            for length in 0..24usize {
                let data: Vec<u8> = (0..length as u8).map(|byte| byte ^ 0x5a).collect();
                let at = SharedMemory::address(&memory).plus(offset);
                let mut back = vec![0; length];
                // SAFETY: inside the memory, which nobody else uses.
                unsafe {
                    store(at, &data);
                    load(at, &mut back);
                }
                assert_eq!(back, data);
            }
        }
    }

    #[test]
    fn the_budget_refuses_and_is_given_back() {
        let budget = Budget::new(2 * PAGE_SIZE as u64);
        let first = Memory::new("frames", PAGE_SIZE, Some(budget.clone())).unwrap();
        assert!(Memory::new("frames", 2 * PAGE_SIZE, Some(budget.clone())).is_err());
        drop(first);
        assert!(Memory::new("frames", 2 * PAGE_SIZE, Some(budget)).is_ok());
    }
}
