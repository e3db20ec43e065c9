//! Start-up probe for live faults where copies go through a queue of their own: do they go on while a kernel runs?

use super::commands::Recorder;
use super::context::Context;
use super::copy::Copier;
use super::memory::MappedBuffer;
use super::pipeline::Pipeline;
use super::probe::words;
use crate::addr::{DeviceAddress, PAGE_SIZE};
use crate::device::{DeviceError, PageCopy, SharedMemory};
use ash::vk;
use gpu_allocator::MemoryLocation;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Bytes of frames that it needs.
pub(super) const FRAMES: usize = 2 * PAGE_SIZE;
/// Workgroups that wait: more than devices have room for, so that copies that take what kernels leave find nothing left.
const CROWD: u32 = 4096;
/// How long a kernel may take to start: far more than it needs, whatever else the machine does.
const START: Duration = Duration::from_secs(30);
/// How long copies beside a waiting kernel may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Polls of an invocation that waits to be told how it went: longer than that, still bounded.
const POLLS: u32 = 1 << 28;
// What is in the frame before, what is copied there, and what the kernel stores: as in the shader.
const OLD: u32 = 1;
const NEW: u32 = 2;
const STORED: u32 = 3;

static COPIES: &[u8] = include_bytes!("../../../../shaders/spv/probe_copies.spv");

/// Finds out whether copies that are submitted while a kernel runs end before it does, whether it sees what they bring, and whether they
/// bring home what it stored. It is told to end after a while if they do not.
pub(super) fn copies(context: &Arc<Context>, copier: &Copier, frames: DeviceAddress) -> Result<(), String> {
    let text = |error: DeviceError| error.to_string();
    let pipeline = Pipeline::new(context, "probe_copies", &words(COPIES), c"main", 24, None).map_err(text)?;
    let memory = MappedBuffer::new(context, "probe", 64, MemoryLocation::GpuToCpu).map_err(text)?;
    let mut recorder = Recorder::new(context).map_err(text)?;
    let word = |index: usize| {
        // SAFETY: the buffer holds 16 words; both sides access them atomically.
        unsafe { memory.host().cast::<AtomicU32>().add(index).as_ref() }
    };
    let (announced, outcome, right, wrong) = (word(0), word(1), word(2), word(3));
    let copy = |page: &mut [u32], at: usize| PageCopy {
        host: page.as_mut_ptr().cast(),
        device: frames.plus((at * PAGE_SIZE) as u64),
        bytes: PAGE_SIZE,
    };
    let [mut old, mut new, mut home] = [OLD, NEW, 0].map(|word| vec![word; PAGE_SIZE / 4]);
    // SAFETY: pages and frames are the probe's own.
    unsafe { copier.copy_in(&[copy(&mut old, 0), copy(&mut old, 1)]) }.map_err(text)?;
    let mut push = [0u8; 24];
    push[..8].copy_from_slice(&memory.address().0.to_le_bytes());
    push[8..16].copy_from_slice(&frames.0.to_le_bytes());
    push[16..20].copy_from_slice(&POLLS.to_le_bytes());
    let value = recorder
        .submit(|device, commands| {
            // SAFETY: pipeline and buffers live until the submission was waited for, below.
            unsafe {
                device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, pipeline.handle);
                device.cmd_push_constants(commands, pipeline.layout, vk::ShaderStageFlags::COMPUTE, 0, &push);
                device.cmd_dispatch(commands, CROWD, 1, 1);
            }
        })
        .map_err(text)?;
    let start = Instant::now();
    while announced.load(Ordering::SeqCst) == 0 && start.elapsed() < START {
        std::thread::yield_now();
    }
    if announced.load(Ordering::SeqCst) == 0 {
        outcome.store(2, Ordering::SeqCst);
        context.wait(value).map_err(text)?;
        return Err(format!("a kernel did not start within {START:?}"));
    }
    let list = [copy(&mut new, 0), copy(&mut home, 1)];
    let (there, done) = crossbeam_channel::bounded(1);
    let (beside, result) = std::thread::scope(|scope| {
        // On a thread of its own: copies that wait for the kernel return only when that has been told to end.
        let copying = scope.spawn(move || {
            // SAFETY: pages and frames are the probe's own, and outlive the scope.
            let copied = unsafe { copier.copy_in(&list[..1]).and_then(|()| copier.copy_out(&list[1..])) };
            // Whoever waits may have lost patience.
            let _ = there.send(());
            copied
        });
        let arrived = done.recv_timeout(PATIENCE).is_ok();
        let beside = arrived && matches!(context.wait_for(value, Duration::ZERO), Ok(false));
        outcome.store(if beside { 1 } else { 2 }, Ordering::SeqCst);
        let ended = context.wait(value);
        (beside, ended.and(copying.join().expect("copying does not panic")))
    });
    result.map_err(text)?;
    if !beside {
        return Err("copies that are submitted while a kernel runs wait for its end".into());
    }
    if wrong.load(Ordering::SeqCst) != 0 || right.load(Ordering::SeqCst) == 0 {
        return Err("a kernel does not see what is copied while it runs".into());
    }
    if home[0] != STORED {
        return Err("what a kernel that runs has stored does not come home".into());
    }
    Ok(())
}
