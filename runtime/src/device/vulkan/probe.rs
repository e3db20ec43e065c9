//! Start-up probes: what a driver must prove before it is trusted with data.

use super::commands::Recorder;
use super::context::Context;
use super::memory::MappedBuffer;
use super::pipeline::Pipeline;
use crate::device::{DeviceError, SharedMemory};
use ash::vk;
use gpu_allocator::MemoryLocation;
use std::sync::Arc;

/// More than the 65,535 loop iterations after which some software drivers silently stop an invocation.
const ITERATIONS: u32 = 70_000;

static LOOP: &[u8] = include_bytes!("../../../../shaders/spv/probe_loop.spv");

/// Runs a loop of 70,000 iterations and checks its result.
pub(super) fn long_loops(context: &Arc<Context>) -> Result<(), DeviceError> {
    let words: Vec<u32> =
        LOOP.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    let pipeline = Pipeline::new(context, "probe_loop", &words, c"main", 12, None)?;
    let result = MappedBuffer::new(context, "probe", 64, MemoryLocation::GpuToCpu)?;
    let mut push = [0u8; 12];
    push[..8].copy_from_slice(&result.address().0.to_le_bytes());
    push[8..].copy_from_slice(&ITERATIONS.to_le_bytes());
    Recorder::new(context)?.run(|device, commands| {
        // SAFETY: pipeline and buffer live until `run` has waited; the push constants match the layout.
        unsafe {
            device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, pipeline.handle);
            device.cmd_push_constants(commands, pipeline.layout, vk::ShaderStageFlags::COMPUTE, 0, &push);
            device.cmd_dispatch(commands, 1, 1, 1);
        }
    })?;
    let expected = (0..ITERATIONS).fold(1u32, |x, _| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    // SAFETY: the dispatch is done; the buffer holds at least four bytes.
    let found = unsafe { result.host().cast::<u32>().read() };
    if found == expected {
        return Ok(());
    }
    Err(DeviceError::BrokenDriver {
        device: format!("{} ({})", context.physical.name(), context.physical.driver),
        reason: format!(
            "a kernel of {ITERATIONS} loop iterations gave a wrong result; builds of llvmpipe with LLVM 15 stop after 65,535, silently"
        ),
    })
}
