//! The Vulkan device. `ash` appears in this module and nowhere else.
//!
//! Needs Vulkan 1.2 with buffer device addresses, 64-bit integers, scalar block layout and timeline semaphores. One
//! compute queue serves dispatches, and copies too unless these must go on beside dispatches. Locks, in order: the dispatch recorder or the
//! staging buffers, then the slab map, then a queue or the allocator; none is held across a call out of this module.

mod beside;
mod choose;
mod commands;
mod context;
mod copy;
mod import;
mod line;
mod made;
mod measure;
mod memory;
mod pipeline;
mod probe;
mod probe_copies;
mod raw;
mod stall;
mod validation;

pub use raw::{RawBuffer, RawCommand, RawKernel, RawMemory, RawStream};

use super::{
    Device, DeviceError, DeviceInfo, Dispatch, HomeWindow, LiveUnit, MemoryBudget, MemoryTimes, PageCopy, SharedMemory,
    SharedUse, Slab,
};
use crate::cache::Cache;
use crate::kernel::KernelModule;
use ash::vk;
use commands::Recorder;
use context::Context;
use copy::Copier;
use gpu_allocator::MemoryLocation;
use memory::{FrameSlab, Frames, MappedBuffer};
use parking_lot::Mutex;
use pipeline::Pipelines;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How pages get into frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyPath {
    /// Straight into mapped frames where device and host share memory, through staging elsewhere.
    #[default]
    Auto,
    /// Always through staging buffers and the device's copy commands.
    Staging,
}

/// On which devices copies that go through staging get a queue of their own, so that they can go on while a kernel runs: what live mode needs
/// where frames are not mapped by the host. It is kept only where a probe shows that live mode works with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopiesBeside {
    /// On none: for replay.
    #[default]
    Never,
    /// On those that compute on the CPU.
    CpuDevices,
    /// On all.
    AllDevices,
}

/// How to open the device.
#[derive(Clone, Debug, Default)]
pub struct VulkanOptions {
    /// Index, or part of the name, of the device to use.
    pub device: Option<String>,
    /// Run under the Khronos validation layer with synchronisation validation.
    pub validation: bool,
    /// How pages get into frames.
    pub copy_path: CopyPath,
    /// Keep one processor free of the driver's threads, for live mode's service thread.
    pub leave_processor: bool,
    /// Whether copies get a queue of their own.
    pub copies_beside: CopiesBeside,
    /// How long a copy may take before it is taken to hang behind a kernel, which is then told to give up. Ten seconds by default.
    pub copy_patience: Option<Duration>,
    /// Where pipelines are kept between runs.
    pub(crate) cache: Cache,
}

/// The dispatch that was started and not waited for. Its pipeline is kept until it has ended.
struct Live {
    recorder: Recorder,
    running: Option<(u64, Arc<pipeline::Pipeline>)>,
}

/// A Vulkan device.
pub struct VulkanDevice {
    info: DeviceInfo,
    context: Arc<Context>,
    copier: Arc<Copier>,
    /// What the live probe said, if copies were to have a queue of their own.
    probed: Option<Result<LiveUnit, String>>,
    pipelines: Pipelines,
    dispatcher: Mutex<Recorder>,
    live: Mutex<Live>,
    threads: Vec<u32>,
    cache: Cache,
}

impl VulkanDevice {
    /// Opens the best device there is, or the one the options name, and probes it.
    ///
    /// A queue for copies is not trusted before live mode's probe has found that it works. If it does not, the device is opened again without:
    /// replay must not go by a way that was just found wrong, and needs no such queue.
    pub fn open(options: &VulkanOptions) -> Result<Self, DeviceError> {
        Self::open_if(options, Self::find_live)
    }

    /// As [`open`](Self::open), with another probe; for tests.
    #[doc(hidden)]
    pub fn open_if(
        options: &VulkanOptions,
        probe: impl FnOnce(&Self) -> Result<LiveUnit, String>,
    ) -> Result<Self, DeviceError> {
        let mut device = Self::open_once(options)?;
        if !device.context.copies_beside() {
            return Ok(device);
        }
        let probed = probe(&device);
        if let Err(why) = &probed {
            tracing::warn!("no queue for copies beside kernels: {why}");
            drop(device);
            device = Self::open_once(&VulkanOptions { copies_beside: CopiesBeside::Never, ..options.clone() })?;
        }
        device.probed = Some(probed);
        Ok(device)
    }

    fn open_once(options: &VulkanOptions) -> Result<Self, DeviceError> {
        let before = task_ids();
        let _fewer = options.leave_processor.then(FewerProcessors::enter);
        if options.leave_processor {
            fewer_driver_threads();
        }
        let maps = |physical: &choose::Chosen| options.copy_path == CopyPath::Auto && physical.is_unified();
        let context = Context::open(options.device.as_deref(), options.validation, &options.cache, |physical| {
            let wanted = match options.copies_beside {
                CopiesBeside::Never => false,
                CopiesBeside::CpuDevices => physical.is_cpu(),
                CopiesBeside::AllDevices => true,
            };
            wanted && !maps(physical)
        })?;
        let context = Arc::new(context);
        let physical = &context.physical;
        if physical.is_cpu() {
            probe::long_loops(&context)?;
        }
        let threads = task_ids().into_iter().filter(|task| !before.contains(task)).collect();
        let mapped = maps(physical);
        let limits = &physical.properties.limits;
        let info = DeviceInfo {
            name: physical.name(),
            driver: physical.driver.clone(),
            is_cpu: physical.is_cpu(),
            host_mapped_frames: mapped,
            import: import::offer(&context),
            memory_bytes: physical.local_bytes(),
            push_constant_bytes: limits.max_push_constants_size as usize,
            workgroup_invocations: limits.max_compute_work_group_invocations,
            workgroup_size: limits.max_compute_work_group_size,
            dispatch: [limits.max_compute_work_group_count[0], limits.max_compute_work_group_count[1]],
        };
        Ok(Self {
            info,
            copier: Arc::new(Copier::new(&context, mapped, options.copy_patience)),
            probed: None,
            pipelines: Pipelines::default(),
            dispatcher: Mutex::new(Recorder::new(&context)?),
            live: Mutex::new(Live { recorder: Recorder::new(&context)?, running: None }),
            context,
            threads,
            cache: options.cache.clone(),
        })
    }
}

impl VulkanDevice {
    /// Whether copies go on while a kernel runs, arrive, and bring home what it stored; found by trying, which takes seconds if not.
    ///
    /// # Errors
    /// Says what was found.
    pub fn try_copies_beside(&self) -> Result<(), String> {
        let slab = self.slab(probe_copies::FRAMES).map_err(|error| error.to_string())?;
        probe_copies::copies(&self.context, &self.copier, slab.address())
    }

    /// Whether copies have a queue of their own.
    pub fn copies_beside(&self) -> bool {
        self.context.copies_beside()
    }

    /// Whether live mode works, found by trying.
    fn find_live(&self) -> Result<LiveUnit, String> {
        let unit = probe::live(&self.context)?;
        if !self.info.host_mapped_frames {
            if !self.copies_beside() {
                return Err("frames are not mapped by the host, and there is no queue for copies beside kernels".into());
            }
            self.try_copies_beside()?;
        }
        Ok(unit)
    }
}

impl Drop for VulkanDevice {
    fn drop(&mut self) {
        if let Some((value, _pipeline)) = self.live.lock().running.take() {
            // A lost device ends everything too.
            let _ = self.context.wait(value);
        }
    }
}

impl Device for VulkanDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn shared_memory(&self, bytes: usize, usage: SharedUse) -> Result<Box<dyn SharedMemory>, DeviceError> {
        let location = match usage {
            SharedUse::HostWrites => MemoryLocation::CpuToGpu,
            SharedUse::HostReads => MemoryLocation::GpuToCpu,
        };
        Ok(Box::new(MappedBuffer::new(&self.context, "shared memory", bytes.max(64), location)?))
    }

    fn slab(&self, bytes: usize) -> Result<Arc<dyn Slab>, DeviceError> {
        let buffer = Arc::new(Frames::new(&self.context, bytes)?);
        if self.info.host_mapped_frames && buffer.mapped().is_none() {
            return Err(DeviceError::OutOfMemory { what: "frames mapped by the host", bytes: bytes as u64 });
        }
        self.copier.add_slab(buffer.clone());
        let copier = Arc::downgrade(&self.copier);
        let forget = Box::new(move |address| {
            if let Some(copier) = copier.upgrade() {
                copier.remove_slab(address);
            }
        });
        Ok(Arc::new(FrameSlab { buffer, forget }))
    }

    fn memory_budget(&self) -> Option<MemoryBudget> {
        self.context.memory_budget()
    }

    fn measure_memory(&self) -> Option<Result<Vec<MemoryTimes>, DeviceError>> {
        let import = self.info.import.filter(|_| self.context.physical.is_unified())?;
        Some(measure::memory(&self.context, &self.cache, import))
    }

    unsafe fn import(&self, host: NonNull<u8>, bytes: usize) -> Result<Arc<dyn HomeWindow>, DeviceError> {
        // SAFETY: the caller's contract is the same.
        Ok(Arc::new(unsafe { import::Window::new(&self.context, host, bytes) }?))
    }

    unsafe fn copy_in(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.copier.copy_in(copies) }
    }

    unsafe fn copy_out(&self, copies: &[PageCopy]) -> Result<(), DeviceError> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.copier.copy_out(copies) }
    }

    unsafe fn fill_zero(&self, fills: &[PageCopy]) -> Result<(), DeviceError> {
        // SAFETY: the caller's contract is the same.
        unsafe { self.copier.fill_zero(fills) }
    }

    fn host_frames(&self, device: crate::addr::DeviceAddress, bytes: usize) -> Option<NonNull<u8>> {
        self.copier.host_frames(device, bytes)
    }

    fn run(&self, dispatch: &Dispatch<'_>) -> Result<Duration, DeviceError> {
        let pipeline = self.pipelines.get(&self.context, dispatch.kernel, dispatch.variant)?;
        let mut dispatcher = self.dispatcher.lock();
        let start = Instant::now();
        let value = record(&mut dispatcher, &pipeline, dispatch)?;
        self.context.wait(value)?;
        Ok(start.elapsed())
    }

    fn probe_live(&self) -> Result<LiveUnit, String> {
        self.probed.clone().unwrap_or_else(|| self.find_live())
    }

    fn on_stall(&self, give_up: Box<dyn Fn() + Send + Sync>) {
        self.copier.on_stall(give_up);
    }

    fn start(&self, dispatch: &Dispatch<'_>) -> Result<(), DeviceError> {
        let pipeline = self.pipelines.get(&self.context, dispatch.kernel, dispatch.variant)?;
        let mut live = self.live.lock();
        if let Some((value, _)) = live.running.take() {
            self.context.wait(value)?;
        }
        let value = record(&mut live.recorder, &pipeline, dispatch)?;
        live.running = Some((value, pipeline));
        Ok(())
    }

    fn ended(&self, patience: Duration) -> Result<bool, DeviceError> {
        // The lock is not held while waiting: others ask whether the dispatch has ended.
        let Some(value) = self.live.lock().running.as_ref().map(|(value, _)| *value) else { return Ok(true) };
        let ended = self.context.wait_for(value, patience)?;
        if ended {
            let mut live = self.live.lock();
            if live.running.as_ref().is_some_and(|(running, _)| *running == value) {
                live.running = None;
            }
        }
        Ok(ended)
    }

    fn prepare(&self, kernel: &KernelModule, variant: u32) -> Result<(), DeviceError> {
        self.pipelines.get(&self.context, kernel, variant).map(drop)
    }

    fn forget(&self, kernel: &KernelModule) {
        self.pipelines.forget(kernel.id);
    }

    fn validation_messages(&self) -> Vec<String> {
        self.context.messenger.as_ref().map(validation::Messenger::messages).unwrap_or_default()
    }

    fn driver_threads(&self) -> Vec<u32> {
        self.threads.clone()
    }
}

/// While it lives, this thread, and the threads that are started from it, keep off one of the processors. The driver starts its
/// threads when the device is made and first used; they inherit it.
struct FewerProcessors(Option<rustix::thread::CpuSet>);

impl FewerProcessors {
    fn enter() -> Self {
        let Ok(all) = rustix::thread::sched_getaffinity(None) else { return Self(None) };
        let last = (0..rustix::thread::CpuSet::MAX_CPU).rev().find(|&cpu| all.is_set(cpu));
        let mut fewer = all;
        match last {
            Some(cpu) if all.count() > 1 => fewer.unset(cpu),
            _ => return Self(None),
        }
        Self(rustix::thread::sched_setaffinity(None, &fewer).is_ok().then_some(all))
    }
}

impl Drop for FewerProcessors {
    fn drop(&mut self) {
        if let Some(all) = &self.0 {
            // It was this thread's own set a moment ago.
            let _ = rustix::thread::sched_setaffinity(None, all);
        }
    }
}

/// Tells llvmpipe, which reads it when the device is made, to start one thread fewer than there are processors: with two waiting
/// threads on one processor, a shootdown would take scheduler ticks. What the user has set stands.
fn fewer_driver_threads() {
    const THREADS: &str = "LP_NUM_THREADS";
    if std::env::var_os(THREADS).is_some() {
        return;
    }
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // SAFETY: Rust's own accesses to the environment are serialised. C code of other threads that reads the environment at this very
    // moment could see it change; live mode's documentation asks to open the runtime before such threads are started.
    unsafe { std::env::set_var(THREADS, processors.saturating_sub(1).max(1).to_string()) };
}

/// Records and submits a dispatch; returns its timeline value. The caller keeps the pipeline until it is done.
fn record(recorder: &mut Recorder, pipeline: &pipeline::Pipeline, dispatch: &Dispatch<'_>) -> Result<u64, DeviceError> {
    recorder.submit(|device, commands| {
        // SAFETY: the caller keeps the pipeline until the submission was waited for; the push constants have the layout's size.
        unsafe {
            device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, pipeline.handle);
            device.cmd_push_constants(commands, pipeline.layout, vk::ShaderStageFlags::COMPUTE, 0, dispatch.push);
            device.cmd_dispatch(commands, dispatch.groups[0], dispatch.groups[1], 1);
        }
    })
}

/// Kernel ids of this process's threads.
fn task_ids() -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok()).collect()
}
