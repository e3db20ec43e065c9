//! Porting to a new device: what has to be written, and how to see that it works before there is a kernel.
//!
//! A port is an implementation of [`Device`]: memory that both sides see, slabs of frames, copies, and dispatches. Everything else (page
//! table, fault service, coherence) is the same for all devices. This one keeps its memory in ordinary vectors; where it says "hardware",
//! a real port calls its driver. It runs no kernels: the commands (`vksvm::device::Commands`) drive it page by page.
//!
//! `cargo run -p vksvm --example port_a_device`

use std::error::Error;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;
use vksvm::addr::{DeviceAddress, PAGE_SIZE, VirtAddr};
use vksvm::device::soft::SoftOptions;
use vksvm::device::{Commands, Device, DeviceError, DeviceInfo, Dispatch, PageCopy, SharedMemory, SharedUse, Slab};
use vksvm::kernel::KernelModule;
use vksvm::mm::ops::Span;
use vksvm::{Permission, Svm};

/// Where the device's addresses begin: unlike the host's, so that mixing them up shows at once.
const BASE: u64 = 1 << 56;

/// Memory of the device, which the host sees as well. Hardware: a mapped, coherent buffer.
struct Memory {
    words: Box<[std::cell::UnsafeCell<[u64; PAGE_SIZE / 8]>]>,
    bytes: usize,
}

// SAFETY: plain memory; who may access which part when is what `Device` says.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(bytes: usize) -> Self {
        let pages = bytes.div_ceil(PAGE_SIZE) + 1;
        Self { words: (0..pages).map(|_| std::cell::UnsafeCell::new([0; PAGE_SIZE / 8])).collect(), bytes }
    }

    /// Page-aligned, as frames have to be.
    fn start(&self) -> NonNull<u8> {
        let start = self.words.as_ptr().cast_mut().cast::<u8>();
        let skip = start.align_offset(PAGE_SIZE);
        NonNull::new(start.wrapping_add(skip)).expect("an allocation is not at null")
    }
}

impl SharedMemory for Memory {
    fn host(&self) -> NonNull<u8> {
        self.start()
    }
    fn address(&self) -> DeviceAddress {
        DeviceAddress(BASE + self.start().as_ptr().expose_provenance() as u64)
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

/// Where a device address is on the host. Hardware has a copy engine instead.
fn host(address: DeviceAddress) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut((address.0 - BASE) as usize)
}

struct NewDevice(DeviceInfo);

impl Device for NewDevice {
    fn info(&self) -> &DeviceInfo {
        &self.0
    }

    fn shared_memory(&self, bytes: usize, _usage: SharedUse) -> Result<Box<dyn SharedMemory>, DeviceError> {
        Ok(Box::new(Memory::new(bytes)))
    }

    fn slab(&self, bytes: usize) -> Result<Arc<dyn Slab>, DeviceError> {
        Ok(Arc::new(Memory::new(bytes)))
    }

    unsafe fn copy_in(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        for copy in copies {
            // SAFETY: the caller's promise: both sides live and are nobody else's now.
            unsafe { host(copy.device).copy_from_nonoverlapping(copy.host, copy.bytes) };
        }
        Ok(())
    }

    unsafe fn copy_out(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        for copy in copies {
            // SAFETY: as above.
            unsafe { copy.host.copy_from_nonoverlapping(host(copy.device), copy.bytes) };
        }
        Ok(())
    }

    unsafe fn fill_zero(&self, fills: &[PageCopy]) -> Result<(), DeviceError> {
        for fill in fills {
            // SAFETY: as above.
            unsafe { host(fill.device).write_bytes(0, fill.bytes) };
        }
        Ok(())
    }

    fn run(&self, dispatch: &Dispatch<'_>) -> Result<Duration, DeviceError> {
        // Hardware: submit, wait. Kernels walk the page table that `dispatch.push` points to; `device/soft` shows every step.
        self.prepare(dispatch.kernel, dispatch.variant).map(|()| Duration::ZERO)
    }

    fn prepare(&self, kernel: &KernelModule, _variant: u32) -> Result<(), DeviceError> {
        Err(DeviceError::Pipeline { kernel: kernel.name.clone(), reason: "this port runs no kernels yet".into() })
    }

    fn forget(&self, _kernel: &KernelModule) {}
}

fn new_device() -> NewDevice {
    NewDevice(DeviceInfo {
        name: "new device".into(),
        driver: "an example".into(),
        is_cpu: false,
        host_mapped_frames: false,
        import: None,
        memory_bytes: 64 << 20,
        push_constant_bytes: 128,
        workgroup_invocations: 256,
        workgroup_size: [256, 256, 64],
        dispatch: [65_535, 65_535],
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    // The heap is opened with the reference device; the new one joins it. Two devices and the CPU, one memory.
    let svm = Svm::builder().soft_device(SoftOptions::default()).heap_bytes(1 << 30).build()?;
    let reference = Commands::soft(&svm, SoftOptions::default(), 256)?;
    let device = Commands::open(&svm, Arc::new(new_device()), 256)?;

    let mut mapping = svm.map(4 * PAGE_SIZE, Permission::ReadWrite)?;
    mapping.as_mut_slice()?[..5].copy_from_slice(b"hello");
    let (at, span) = (mapping.start(), Span { start: mapping.start(), bytes: 4 * PAGE_SIZE as u64 });
    let show = |step: &str| -> Result<(), Box<dyn Error>> {
        println!("{step:32} {:?}", device.snapshot(span)?);
        Ok(())
    };
    show("the CPU wrote one page")?;

    let mut word = [0; 5];
    device.read(at, &mut word)?;
    assert_eq!(&word, b"hello");
    show("the device read it")?;

    device.write(VirtAddr(at.0 + PAGE_SIZE as u64), b"from the device")?;
    show("the device wrote the second")?;

    assert_eq!(&mapping.as_slice()[PAGE_SIZE..][..15], b"from the device");
    show("the CPU read that")?;

    device.migrate_to_device(span)?;
    show("all migrated to the device")?;

    reference.write(at, b"HELLO")?;
    show("another device wrote the first")?;

    device.make_exclusive(span)?;
    assert!(device.check_exclusive(span)?.iter().all(|&exclusive| exclusive));
    assert_eq!(mapping.as_slice()[0], b'H');
    println!("{:32} {:?}", "exclusive, until the CPU looked", device.check_exclusive(span)?);

    device.migrate_back(span)?;
    show("migrated back")?;
    device.release();
    assert_eq!(&mapping.as_slice()[..5], b"HELLO");
    Ok(())
}
