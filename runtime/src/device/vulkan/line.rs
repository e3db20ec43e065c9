//! A queue with a timeline of its own: submissions are numbered, and waited for by number.

use super::context::{failed, out_of};
use crate::device::DeviceError;
use crate::scarce::ask;
use ash::vk;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::time::Duration;

/// A queue of a logical device. The timeline is destroyed on drop, before the device must be.
pub(super) struct Line {
    pub(super) device: ash::Device,
    pub(super) family: u32,
    timeline: vk::Semaphore,
    submissions: Mutex<Submissions>,
}

/// The queue, which is used by one thread at a time, and the value that its next submission signals.
struct Submissions {
    queue: vk::Queue,
    next: u64,
}

/// A point of a timeline that has been reached.
#[derive(Clone, Copy)]
pub(super) struct Reached {
    timeline: vk::Semaphore,
    value: u64,
}

impl Line {
    /// Queue `index` of `family`, which the device was made with.
    pub(super) fn new(device: &ash::Device, family: u32, index: u32) -> Result<Self, DeviceError> {
        let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
        out_of(ask("vkCreateSemaphore", Errno::NOMEM)).map_err(failed("vkCreateSemaphore"))?;
        // SAFETY: the device is live and the create info well formed.
        let timeline =
            unsafe { device.create_semaphore(&vk::SemaphoreCreateInfo::default().push_next(&mut kind), None) }
                .map_err(failed("vkCreateSemaphore"))?;
        // SAFETY: the caller says that the device has this queue.
        let queue = unsafe { device.get_device_queue(family, index) };
        let submissions = Mutex::new(Submissions { queue, next: 1 });
        Ok(Self { device: device.clone(), family, timeline, submissions })
    }

    /// Submits a recorded command buffer behind `after`; returns the timeline value that says it is done.
    pub(super) fn submit(&self, commands: vk::CommandBuffer, after: Option<Reached>) -> Result<u64, DeviceError> {
        let mut submissions = self.submissions.lock();
        let value = submissions.next;
        let (values, commands, signals) = ([value], [commands], [self.timeline]);
        let (waits, until): (Vec<_>, Vec<_>) = after.iter().map(|after| (after.timeline, after.value)).unzip();
        let stages = [vk::PipelineStageFlags::ALL_COMMANDS];
        let mut timeline =
            vk::TimelineSemaphoreSubmitInfo::default().wait_semaphore_values(&until).signal_semaphore_values(&values);
        let submit = vk::SubmitInfo::default()
            .wait_semaphores(&waits)
            .wait_dst_stage_mask(&stages[..waits.len()])
            .command_buffers(&commands)
            .signal_semaphores(&signals)
            .push_next(&mut timeline);
        // SAFETY: the command buffer is recorded and not in flight (callers own it); the queue is externally
        // synchronised by the lock.
        unsafe { self.device.queue_submit(submissions.queue, &[submit], vk::Fence::null()) }
            .map_err(failed("vkQueueSubmit"))?;
        submissions.next += 1;
        Ok(value)
    }

    /// How far the timeline has come. Another queue of the device that waits for it, which costs nothing, sees what was done up to there.
    pub(super) fn reached(&self) -> Result<Reached, DeviceError> {
        // SAFETY: the semaphore is a live timeline semaphore.
        let value = unsafe { self.device.get_semaphore_counter_value(self.timeline) };
        Ok(Reached { timeline: self.timeline, value: value.map_err(failed("vkGetSemaphoreCounterValue"))? })
    }

    /// Waits up to `patience` for the submission with `value`; true once it is done.
    pub(super) fn wait_for(&self, value: u64, patience: Duration) -> Result<bool, DeviceError> {
        if patience.is_zero() {
            // Only a look: drivers sleep for tens of microseconds in a wait, however short.
            return Ok(self.reached()?.value >= value);
        }
        self.wait_nanos(value, u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Waits until the submission with `value` is done.
    pub(super) fn wait(&self, value: u64) -> Result<(), DeviceError> {
        self.wait_nanos(value, u64::MAX).map(drop)
    }

    fn wait_nanos(&self, value: u64, nanos: u64) -> Result<bool, DeviceError> {
        let (semaphores, values) = ([self.timeline], [value]);
        let info = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
        // SAFETY: the semaphore is a live timeline semaphore.
        match unsafe { self.device.wait_semaphores(&info, nanos) } {
            Ok(()) => Ok(true),
            Err(vk::Result::TIMEOUT) => Ok(false),
            Err(error) => Err(failed("vkWaitSemaphores")(error)),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // SAFETY: who made submissions has waited for them; a lost device runs none.
        unsafe {
            let _ = self.device.device_wait_idle();
            self.device.destroy_semaphore(self.timeline, None);
        }
    }
}
