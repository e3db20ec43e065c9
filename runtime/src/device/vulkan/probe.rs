//! Start-up probes: what a driver must prove before it is trusted with data.

use super::commands::Recorder;
use super::context::Context;
use super::memory::MappedBuffer;
use super::pipeline::Pipeline;
use crate::device::{DeviceError, LiveUnit, SharedMemory};
use ash::vk;
use gpu_allocator::MemoryLocation;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// More than the 65,535 loop iterations after which some software drivers silently stop an invocation.
const ITERATIONS: u32 = 70_000;

static LOOP: &[u8] = include_bytes!("../../../../shaders/spv/probe_loop.spv");

/// A module's words.
pub(super) fn words(module: &[u8]) -> Vec<u32> {
    module.as_chunks::<4>().0.iter().copied().map(u32::from_le_bytes).collect()
}

/// Runs a loop of 70,000 iterations and checks its result.
pub(super) fn long_loops(context: &Arc<Context>) -> Result<(), DeviceError> {
    let words = words(LOOP);
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

/// Polls of an invocation that waits for another: milliseconds.
const NEIGHBOUR_POLLS: u32 = 1 << 15;
/// Polls of an invocation that waits for the host: far more than it needs, still bounded.
const HOST_POLLS: u32 = 1 << 22;
/// Invocations of the probe's workgroup.
const INVOCATIONS: u32 = 128;

static LIVE: &[u8] = include_bytes!("../../../../shaders/spv/probe_live.spv");

/// Finds out whether a kernel can wait for the host, and who runs while it waits. Every wait is bounded.
pub(super) fn live(context: &Arc<Context>) -> Result<LiveUnit, String> {
    let words = words(LIVE);
    let text = |error: DeviceError| error.to_string();
    let pipeline = Pipeline::new(context, "probe_live", &words, c"main", 24, None).map_err(text)?;
    let memory = MappedBuffer::new(context, "probe", 64, MemoryLocation::GpuToCpu).map_err(text)?;
    let mut recorder = Recorder::new(context).map_err(text)?;
    let word = |index: usize| {
        // SAFETY: the buffer holds 16 words; both sides access them atomically.
        unsafe { memory.host().cast::<AtomicU32>().add(index).as_ref() }
    };
    let mut test = |test: u32, polls: u32, waiter: u32, setter: u32| -> Result<bool, String> {
        (0..3).for_each(|index| word(index).store(0, Ordering::SeqCst));
        let mut push = [0u8; 24];
        push[..8].copy_from_slice(&memory.address().0.to_le_bytes());
        for (at, value) in [test, polls, waiter, setter].into_iter().enumerate() {
            push[8 + 4 * at..12 + 4 * at].copy_from_slice(&value.to_le_bytes());
        }
        let value = recorder
            .submit(|device, commands| {
                // SAFETY: pipeline and buffer live until the submission was waited for, below.
                unsafe {
                    device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, pipeline.handle);
                    device.cmd_push_constants(commands, pipeline.layout, vk::ShaderStageFlags::COMPUTE, 0, &push);
                    device.cmd_dispatch(commands, 1, 1, 1);
                }
            })
            .map_err(text)?;
        while !context.wait_for(value, Duration::ZERO).map_err(text)? {
            if test == 0 && word(0).load(Ordering::SeqCst) != 0 {
                word(1).store(1, Ordering::SeqCst);
            }
            std::hint::spin_loop();
        }
        Ok(word(2).load(Ordering::SeqCst) == 1)
    };
    unit_of(|who| match who {
        WaitsFor::Host => test(0, HOST_POLLS, 0, 0),
        WaitsFor::Neighbour { waiter, setter } => test(1, NEIGHBOUR_POLLS, waiter, setter),
        // First and last invocation, which are in different subgroups.
        WaitsFor::OtherSubgroup => test(1, NEIGHBOUR_POLLS, 0, INVOCATIONS - 1),
    })
}

/// What an invocation of the probe waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitsFor {
    Host,
    /// Invocations of one subgroup.
    Neighbour {
        waiter: u32,
        setter: u32,
    },
    OtherSubgroup,
}

/// Who moves over together, by what `test` finds: whether the wait ended.
///
/// Where invocations of a subgroup wait for each other in vain, but subgroups run on their own, the unit would be the subgroup. That is refused: all its
/// invocations would have to meet again behind each wait, as those of a workgroup on one thread do, and Vulkan promises that to kernels only with
/// `VK_KHR_shader_maximal_reconvergence`; without it a store may go through a translation that a neighbour's wait has voided. No
/// device of that kind has been at hand to try it on.
fn unit_of(mut test: impl FnMut(WaitsFor) -> Result<bool, String>) -> Result<LiveUnit, String> {
    if !test(WaitsFor::Host)? {
        return Err("a kernel that waits does not see what the host writes".into());
    }
    // Both ways: which of two invocations runs first is the device's choice.
    if test(WaitsFor::Neighbour { waiter: 0, setter: 1 })? && test(WaitsFor::Neighbour { waiter: 1, setter: 0 })? {
        return Ok(LiveUnit::Invocation);
    }
    if !test(WaitsFor::OtherSubgroup)? {
        return Ok(LiveUnit::Workgroup);
    }
    Err("invocations of a subgroup run in lockstep while subgroups run on their own; translations that are taken away by \
         subgroup are not supported, as Vulkan does not promise that its invocations meet again after one has waited"
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(host: bool, first: bool, second: bool, far: bool) -> Result<LiveUnit, String> {
        unit_of(|who| {
            Ok(match who {
                WaitsFor::Host => host,
                WaitsFor::Neighbour { waiter: 0, .. } => first,
                WaitsFor::Neighbour { .. } => second,
                WaitsFor::OtherSubgroup => far,
            })
        })
    }

    #[test]
    fn who_runs_while_another_waits_is_counted_on_its_own() {
        assert_eq!(found(true, true, true, true), Ok(LiveUnit::Invocation));
        assert_eq!(found(true, true, true, false), Ok(LiveUnit::Invocation));
        // In lockstep one of the two is served first, by chance.
        assert_eq!(found(true, true, false, false), Ok(LiveUnit::Workgroup));
        assert_eq!(found(true, false, false, false), Ok(LiveUnit::Workgroup));
    }

    #[test]
    fn subgroups_in_lockstep_that_run_on_their_own_are_refused_and_so_is_a_deaf_kernel() {
        for (first, second) in [(false, false), (true, false), (false, true)] {
            let why = found(true, first, second, true).unwrap_err();
            assert!(why.contains("subgroup are not supported"), "{why}");
        }
        assert!(found(false, true, true, true).unwrap_err().contains("does not see"));
    }

    #[test]
    fn a_test_that_fails_ends_the_probe() {
        assert_eq!(unit_of(|_| Err("lost".into())), Err("lost".into()));
    }
}
