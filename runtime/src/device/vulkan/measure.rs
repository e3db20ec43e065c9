//! A start-up measurement on devices that share memory with the CPU: what kernels pay for working on home pages where they are, and what copying a page
//! costs. Some twenty milliseconds, once: what was measured is kept for the device and its driver, if the trials say the same.

use super::commands::Recorder;
use super::context::Context;
use super::import::Window;
use super::memory::Buffer;
use super::pipeline::Pipeline;
use crate::addr::{DeviceAddress, PAGE_SIZE};
use crate::cache::Cache;
use crate::device::{DeviceError, HomeWindow, HostImport, MemoryTimes};
use crate::policy::agree;
use ash::vk;
use gpu_allocator::MemoryLocation;
use rustix::mm::{MapFlags, ProtFlags};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pages worked on.
const PAGES: usize = 256;
/// Bytes imported: what is imported together where importing pins pages.
const BYTES: usize = 2 << 20;
/// Runs of each kind; the fastest counts, since a processor that does something else besides makes them slower, never faster.
const RUNS: usize = 5;
/// Times that all of it is measured. Something that goes on for longer than all runs of one may make home look fast there, but not in the others.
const TRIALS: usize = 3;
/// Invocations of a workgroup of the probe.
const GROUP: u32 = 64;
/// What entries of the cache are called.
const KIND: &str = "memory";

static PROBE: &[u8] = include_bytes!("../../../../shaders/spv/probe_memory.spv");

/// Anonymous host memory, given back on drop.
struct HostMemory(NonNull<u8>);

impl HostMemory {
    fn new() -> std::io::Result<Self> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice; windows are aligned to its length at most, which the
        // caller has checked to be page-granular.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                2 * BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )
        }?;
        NonNull::new(start.cast()).map(Self).ok_or_else(|| std::io::Error::other("mmap returned null"))
    }

    /// As many bytes, at a multiple of that.
    fn start(&self) -> NonNull<u8> {
        let skew = self.0.as_ptr().align_offset(BYTES);
        // SAFETY: the mapping is twice as long as its alignment.
        unsafe { self.0.add(skew) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size; windows over it are dropped before. Failure would leak, no more.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), 2 * BYTES) };
    }
}

/// Measures, or looks up what was measured in an earlier run.
pub(super) fn memory(
    context: &Arc<Context>,
    cache: &Cache,
    import: HostImport,
) -> Result<Vec<MemoryTimes>, DeviceError> {
    let properties = &context.physical.properties;
    let mut key = format!("{} {} {import:?}", env!("CARGO_PKG_VERSION"), context.physical.driver).into_bytes();
    key.extend(
        [properties.vendor_id, properties.device_id, properties.driver_version].map(u32::to_le_bytes).as_flattened(),
    );
    key.extend(properties.pipeline_cache_uuid);
    if let Some(trials) = cache.get(KIND, &key).and_then(|value| MemoryTimes::decode(&value)) {
        return Ok(trials);
    }
    let trials = measure(context)?;
    if agree(&trials) {
        cache.put(KIND, &key, &MemoryTimes::encode(&trials));
    }
    Ok(trials)
}

fn measure(context: &Arc<Context>) -> Result<Vec<MemoryTimes>, DeviceError> {
    let words: Vec<u32> =
        PROBE.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    let pipeline = Pipeline::new(context, "probe_memory", &words, c"main", 16, None)?;
    let host = HostMemory::new().map_err(|error| DeviceError::Call { call: "mmap", reason: error.to_string() })?;
    let frames = Buffer::new(context, "probe", BYTES, MemoryLocation::GpuOnly)?;
    // SAFETY: the memory stays mapped until `host` is dropped, after the window.
    let window = unsafe { Window::new(context, host.start(), BYTES) }?;
    let mut recorder = Recorder::new(context)?;
    let mut run = |place: DeviceAddress, stride: u32, passes: u32| -> Result<Duration, DeviceError> {
        let count = (PAGES * PAGE_SIZE / 4) as u32 / stride;
        let mut push = [0u8; 16];
        push[..8].copy_from_slice(&place.0.to_le_bytes());
        push[8..12].copy_from_slice(&stride.to_le_bytes());
        push[12..].copy_from_slice(&count.to_le_bytes());
        let again = [vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::SHADER_WRITE)
            .dst_access_mask(vk::AccessFlags::SHADER_READ | vk::AccessFlags::SHADER_WRITE)];
        let start = Instant::now();
        recorder.run(|device, commands| {
            // SAFETY: pipeline and memory live until `run` has waited; the push constants match the layout; passes are ordered.
            unsafe {
                device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, pipeline.handle);
                device.cmd_push_constants(commands, pipeline.layout, vk::ShaderStageFlags::COMPUTE, 0, &push);
                for _ in 0..passes {
                    device.cmd_dispatch(commands, count.div_ceil(GROUP), 1, 1);
                    device.cmd_pipeline_barrier(
                        commands,
                        vk::PipelineStageFlags::COMPUTE_SHADER,
                        vk::PipelineStageFlags::COMPUTE_SHADER,
                        vk::DependencyFlags::empty(),
                        &again,
                        &[],
                        &[],
                    );
                }
            }
        })?;
        Ok(start.elapsed())
    };
    let places = [(frames.device_address(), 1), (window.address(), 1), (window.address(), (PAGE_SIZE / 4) as u32)];
    let mut copied = vec![1u8; PAGES * PAGE_SIZE];
    let mut trial = || -> Result<MemoryTimes, DeviceError> {
        // In turn, so that what disturbs one disturbs the others too. The first run of each is a warm-up, in which pages get their memory.
        let mut best = [[Duration::MAX; 2]; 3];
        let mut copy = Duration::MAX;
        for round in 0..=RUNS {
            for (best, (place, stride)) in best.iter_mut().zip(places) {
                for (best, passes) in best.iter_mut().zip([1, 2]) {
                    let time = run(place, stride, passes)?;
                    if round > 0 {
                        *best = (*best).min(time);
                    }
                }
            }
            let start = Instant::now();
            // SAFETY: the host memory has as many bytes, and no dispatch is in flight.
            unsafe { host.start().as_ptr().copy_to_nonoverlapping(copied.as_mut_ptr(), copied.len()) };
            copy = copy.min(start.elapsed());
            std::hint::black_box(&copied);
        }
        let per_page = |time: Duration| (time.as_nanos() as u64 / PAGES as u64).max(1);
        // What a second pass adds, without what it costs to submit.
        let [frames, home, sparse] = best.map(|[once, twice]| per_page(twice.saturating_sub(once)));
        Ok(MemoryTimes { frames, home, sparse, copy: per_page(copy) })
    };
    (0..TRIALS).map(|_| trial()).collect()
}
