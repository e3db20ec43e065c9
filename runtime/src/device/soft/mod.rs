//! The reference device: a device in host memory, whose kernels are Rust functions. Linux: `lib/test_hmm.c`.
//!
//! It runs the same page table, fault queue, replay and probe protocol as kernels compiled with `vksvm.glsl`, under the same executor.
//! It serves tests that must be deterministic, random or large; machines without a Vulkan driver; and as an example
//! to who ports the runtime: this directory is all that a port has to write. Without kernels it can be driven page by page:
//! [`Commands`](super::Commands).
//!
//! ```
//! use vksvm::Svm;
//! use vksvm::device::soft::{SoftContext, SoftOptions};
//!
//! let svm = Svm::builder().soft_device(SoftOptions::default()).heap_bytes(1 << 30).build()?;
//! let mut numbers = svm.heap().vec_from_slice(&[1u32, 2, 3])?;
//! let double = |invocation: &mut SoftContext<'_>| {
//!     let at = invocation.arguments::<u64>() + 4 * u64::from(invocation.global_id()[0]);
//!     let number: u32 = invocation.load(at);
//!     invocation.store(at, 2 * number);
//! };
//! // SAFETY: it accesses the three numbers only, each in one invocation.
//! let double = unsafe { svm.soft_kernel("double", [1, 1, 1], 8, double) }?;
//! double.launch([3, 1, 1]).write(&mut numbers[..]).run()?;
//! assert_eq!(&numbers[..], [2, 4, 6]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod context;
mod memory;
mod run;

pub use context::{SoftContext, SoftFunction};

use super::layout::{Control, LAUNCH_BYTES, LaunchBlock};
use super::{
    Device, DeviceError, DeviceInfo, Dispatch, HomeWindow, HostImport, PageCopy, SharedMemory, SharedUse, Slab,
};
use crate::kernel::{Code, KernelModule};
use memory::{Budget, Memory};
use parking_lot::Mutex;
use run::{Work, Workers, permutation};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

/// How to make a reference device.
#[derive(Clone, Debug)]
pub struct SoftOptions {
    /// Worker threads. With 1, kernels run deterministically.
    pub workers: usize,
    /// Permutes the order of workgroups, differently in every dispatch. In order if there is none.
    pub seed: Option<u64>,
    /// Bytes that frames may take.
    pub memory_bytes: u64,
    /// Whether kernels can reach home pages themselves.
    pub imports: bool,
}

impl Default for SoftOptions {
    fn default() -> Self {
        Self { workers: 1, seed: None, memory_bytes: 1 << 30, imports: true }
    }
}

/// A reference device.
pub struct SoftDevice {
    info: DeviceInfo,
    budget: Arc<Budget>,
    seed: Option<u64>,
    /// The workers, and the number of the next dispatch.
    workers: Mutex<(Workers, u64)>,
    threads: Vec<u32>,
}

impl SoftDevice {
    /// Makes a device and starts its workers.
    ///
    /// # Errors
    /// If threads cannot be started.
    pub fn new(options: &SoftOptions) -> Result<Self, DeviceError> {
        let workers = Workers::start(options.workers)?;
        Ok(Self {
            info: DeviceInfo {
                name: "vksvm reference device".into(),
                driver: format!("{} worker(s) of this process", options.workers.max(1)),
                is_cpu: true,
                host_mapped_frames: true,
                import: options.imports.then_some(HostImport { window_pages: 1 << 12, follows: true }),
                memory_bytes: options.memory_bytes,
                push_constant_bytes: 256,
                workgroup_invocations: 1024,
                workgroup_size: [1024, 1024, 64],
                dispatch: [1 << 16, 1 << 16],
            },
            budget: Budget::new(options.memory_bytes),
            seed: options.seed,
            threads: workers.ids().to_vec(),
            workers: Mutex::new((workers, 0)),
        })
    }

    fn function(kernel: &KernelModule) -> Result<&Arc<SoftFunction>, DeviceError> {
        match &kernel.code {
            Code::Soft(function) => Ok(function),
            Code::Spirv { .. } => Err(DeviceError::Pipeline {
                kernel: kernel.name.clone(),
                reason: "it is a SPIR-V module, and the reference device runs Rust functions (Svm::soft_kernel)".into(),
            }),
        }
    }
}

impl Device for SoftDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn shared_memory(&self, bytes: usize, _usage: SharedUse) -> Result<Box<dyn SharedMemory>, DeviceError> {
        Ok(Box::new(Memory::new("shared memory", bytes, None)?))
    }

    fn slab(&self, bytes: usize) -> Result<Arc<dyn Slab>, DeviceError> {
        Ok(Arc::new(Memory::new("frames", bytes, Some(self.budget.clone()))?))
    }

    unsafe fn import(&self, host: NonNull<u8>, _bytes: usize) -> Result<Arc<dyn HomeWindow>, DeviceError> {
        Ok(Arc::new(memory::Window::new(host)))
    }

    fn host_frames(&self, device: crate::addr::DeviceAddress, _bytes: usize) -> Option<NonNull<u8>> {
        NonNull::new(memory::host(device))
    }

    unsafe fn copy_in(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        for copy in copies {
            // SAFETY: the caller vouches for both sides, and nobody else uses them now.
            unsafe { memory::host(copy.device).copy_from_nonoverlapping(copy.host, copy.bytes) };
        }
        Ok(())
    }

    unsafe fn copy_out(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        for copy in copies {
            // SAFETY: as in `copy_in`.
            unsafe { copy.host.copy_from_nonoverlapping(memory::host(copy.device), copy.bytes) };
        }
        Ok(())
    }

    unsafe fn fill_zero(&self, fills: &[PageCopy]) -> Result<(), DeviceError> {
        for fill in fills {
            // SAFETY: as in `copy_in`.
            unsafe { memory::host(fill.device).write_bytes(0, fill.bytes) };
        }
        Ok(())
    }

    fn run(&self, dispatch: &Dispatch<'_>) -> Result<Duration, DeviceError> {
        let function = Self::function(dispatch.kernel)?.clone();
        let launch: LaunchBlock = bytemuck::pod_read_unaligned(&dispatch.push[..LAUNCH_BYTES]);
        // SAFETY: the launch block's control block is live, and only its counters change while a dispatch runs; those
        // are not looked at here.
        let control: Control = unsafe { memory::read(launch.control) };
        let slots = dispatch.groups[0] * dispatch.groups[1];
        let mut workers = self.workers.lock();
        let (workers, number) = &mut *workers;
        *number += 1;
        let order = self.seed.map(|seed| permutation(slots, seed ^ *number)).unwrap_or_default();
        let work = Arc::new(Work {
            function,
            launch,
            control,
            arguments: dispatch.push[LAUNCH_BYTES..].to_vec(),
            variant: dispatch.variant,
            local_size: dispatch.kernel.local_size,
            slots,
            order,
            next: AtomicU32::new(0),
            panicked: Mutex::new(None),
        });
        let start = Instant::now();
        workers.run(&work)?;
        Ok(start.elapsed())
    }

    fn prepare(&self, kernel: &KernelModule, _variant: u32) -> Result<(), DeviceError> {
        Self::function(kernel).map(drop)
    }

    fn forget(&self, _kernel: &KernelModule) {}

    fn driver_threads(&self) -> Vec<u32> {
        self.threads.clone()
    }
}
