//! A command buffer that is recorded, submitted and waited for by one caller at a time.

use super::context::{Context, Lane, failed, out_of};
use crate::device::DeviceError;
use crate::scarce::ask;
use ash::vk;
use rustix::io::Errno;
use std::sync::Arc;

/// One command pool with one buffer. Whoever uses it holds it exclusively until the submission is done.
pub(super) struct Recorder {
    context: Arc<Context>,
    lane: Lane,
    pool: vk::CommandPool,
    buffer: vk::CommandBuffer,
}

impl Recorder {
    /// For the compute queue.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        Self::on(context, Lane::Compute)
    }

    /// For either queue.
    pub(super) fn on(context: &Arc<Context>, lane: Lane) -> Result<Self, DeviceError> {
        let line = context.line(lane);
        let info = vk::CommandPoolCreateInfo::default()
            .queue_family_index(line.family)
            .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER | vk::CommandPoolCreateFlags::TRANSIENT);
        out_of(ask("vkCreateCommandPool", Errno::NOMEM)).map_err(failed("vkCreateCommandPool"))?;
        // SAFETY: the family exists; the pool is destroyed by Drop.
        let pool = unsafe { line.device.create_command_pool(&info, None) }.map_err(failed("vkCreateCommandPool"))?;
        let mut recorder = Self { context: context.clone(), lane, pool, buffer: vk::CommandBuffer::null() };
        let info = vk::CommandBufferAllocateInfo::default()
            .command_pool(pool)
            .level(vk::CommandBufferLevel::PRIMARY)
            .command_buffer_count(1);
        out_of(ask("vkAllocateCommandBuffers", Errno::NOMEM)).map_err(failed("vkAllocateCommandBuffers"))?;
        // SAFETY: the pool was just made and is used by this thread alone.
        recorder.buffer =
            unsafe { line.device.allocate_command_buffers(&info) }.map_err(failed("vkAllocateCommandBuffers"))?[0];
        Ok(recorder)
    }

    /// Records with `record`, between barriers that order it after all earlier device work and make its results
    /// available to host and later work, submits and returns the timeline value.
    pub(super) fn submit(&mut self, record: impl FnOnce(&ash::Device, vk::CommandBuffer)) -> Result<u64, DeviceError> {
        let device = &self.context.line(self.lane).device;
        let begin = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        let before = [vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::MEMORY_WRITE)
            .dst_access_mask(vk::AccessFlags::MEMORY_READ | vk::AccessFlags::MEMORY_WRITE)];
        let after = [vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::MEMORY_WRITE)
            .dst_access_mask(vk::AccessFlags::HOST_READ | vk::AccessFlags::HOST_WRITE)];
        // SAFETY: `&mut self` says that the buffer is not being recorded, and the previous submission was waited
        // for before this call by every user; barriers carry no pointers beyond the call.
        unsafe {
            device.begin_command_buffer(self.buffer, &begin).map_err(failed("vkBeginCommandBuffer"))?;
            device.cmd_pipeline_barrier(
                self.buffer,
                vk::PipelineStageFlags::ALL_COMMANDS,
                vk::PipelineStageFlags::ALL_COMMANDS,
                vk::DependencyFlags::empty(),
                &before,
                &[],
                &[],
            );
            record(device, self.buffer);
            device.cmd_pipeline_barrier(
                self.buffer,
                vk::PipelineStageFlags::ALL_COMMANDS,
                vk::PipelineStageFlags::HOST,
                vk::DependencyFlags::empty(),
                &after,
                &[],
                &[],
            );
            device.end_command_buffer(self.buffer).map_err(failed("vkEndCommandBuffer"))?;
        }
        self.context.submit(self.lane, self.buffer)
    }

    /// Submits and waits.
    pub(super) fn run(&mut self, record: impl FnOnce(&ash::Device, vk::CommandBuffer)) -> Result<(), DeviceError> {
        let value = self.submit(record)?;
        self.context.line(self.lane).wait(value)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // SAFETY: no submission of the buffer is in flight: users wait before they let go.
        unsafe { self.context.line(self.lane).device.destroy_command_pool(self.pool, None) };
    }
}
