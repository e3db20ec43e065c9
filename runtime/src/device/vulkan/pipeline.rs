//! Pipelines: one for each kernel and variant, made when first needed.

use super::context::{Context, failed, out_of};
use crate::device::DeviceError;
use crate::device::layout::variant;
use crate::kernel::{Code, KernelModule};
use crate::scarce::ask;
use ash::vk;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Arc;

/// A compute pipeline without descriptors. Destroyed on drop.
pub(super) struct Pipeline {
    context: Arc<Context>,
    pub(super) handle: vk::Pipeline,
    pub(super) layout: vk::PipelineLayout,
}

impl Pipeline {
    pub(super) fn new(
        context: &Arc<Context>,
        name: &str,
        words: &[u32],
        entry_point: &CStr,
        push_bytes: usize,
        variant_bits: Option<u32>,
    ) -> Result<Self, DeviceError> {
        let device = &context.device;
        let refused = |result: vk::Result| DeviceError::Pipeline { kernel: name.into(), reason: result.to_string() };
        let ranges = [vk::PushConstantRange {
            stage_flags: vk::ShaderStageFlags::COMPUTE,
            offset: 0,
            size: push_bytes.next_multiple_of(4) as u32,
        }];
        out_of(ask("vkCreatePipelineLayout", Errno::NOMEM)).map_err(failed("vkCreatePipelineLayout"))?;
        // SAFETY: the create info is well formed; the layout is destroyed by Drop.
        let layout = unsafe {
            device.create_pipeline_layout(&vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&ranges), None)
        }
        .map_err(failed("vkCreatePipelineLayout"))?;
        let mut pipeline = Self { context: context.clone(), handle: vk::Pipeline::null(), layout };
        out_of(ask("vkCreateShaderModule", Errno::NOMEM)).map_err(failed("vkCreateShaderModule"))?;
        // SAFETY: the words are a SPIR-V module; whether a valid one is the promise made to `Svm::kernel`.
        let module = unsafe { device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(words), None) }
            .map_err(refused)?;
        let entries = [vk::SpecializationMapEntry { constant_id: variant::CONSTANT_ID, offset: 0, size: 4 }];
        let data = variant_bits.unwrap_or(0).to_ne_bytes();
        let specialization = vk::SpecializationInfo::default().map_entries(&entries).data(&data);
        let mut stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(entry_point);
        if variant_bits.is_some() {
            stage = stage.specialization_info(&specialization);
        }
        let info = vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout);
        // SAFETY: module, layout and specialisation outlive the call.
        let made = unsafe { device.create_compute_pipelines(context.made.handle(), &[info], None) };
        // SAFETY: pipelines do not need their module once made.
        unsafe { device.destroy_shader_module(module, None) };
        pipeline.handle = made.map_err(|(_, result)| refused(result))?[0];
        // Once it is made: what failed is then destroyed.
        out_of(ask("vkCreateComputePipelines", Errno::NOMEM)).map_err(failed("vkCreateComputePipelines"))?;
        Ok(pipeline)
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // SAFETY: every dispatch holds an Arc of its pipeline until it was waited for. Null handles are allowed.
        unsafe {
            self.context.device.destroy_pipeline(self.handle, None);
            self.context.device.destroy_pipeline_layout(self.layout, None);
        }
    }
}

/// Pipelines by kernel id and variant.
#[derive(Default)]
pub(super) struct Pipelines(Mutex<HashMap<(u32, u32), Arc<Pipeline>>>);

impl Pipelines {
    pub(super) fn get(
        &self,
        context: &Arc<Context>,
        kernel: &KernelModule,
        variant_bits: u32,
    ) -> Result<Arc<Pipeline>, DeviceError> {
        if let Some(pipeline) = self.0.lock().get(&(kernel.id, variant_bits)) {
            return Ok(pipeline.clone());
        }
        let Code::Spirv { words, entry_point } = &kernel.code else {
            let reason = "it is a Rust function, which only the reference device runs".into();
            return Err(DeviceError::Pipeline { kernel: kernel.name.clone(), reason });
        };
        // Drivers take long over code that they then find dead.
        let cut = kernel.variant(variant_bits);
        // Made without the lock, since drivers take milliseconds; a second maker's pipeline is dropped.
        let pipeline = Arc::new(Pipeline::new(
            context,
            &kernel.name,
            cut.as_deref().unwrap_or(words),
            entry_point,
            kernel.push_bytes(),
            Some(variant_bits),
        )?);
        Ok(self.0.lock().entry((kernel.id, variant_bits)).or_insert(pipeline).clone())
    }

    pub(super) fn forget(&self, kernel: u32) {
        self.0.lock().retain(|key, _| key.0 != kernel);
    }
}
