//! Instance, logical device and queues: everything that lives as long as the device.

use super::beside::Beside;
use super::choose::{self, Chosen, CopyQueue};
use super::line::Line;
use super::made::Made;
use super::validation::Messenger;
use crate::cache::Cache;
use crate::device::{DeviceError, MemoryBudget};
use ash::vk;
use gpu_allocator::vulkan::{Allocator, AllocatorCreateDesc};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::ffi::CStr;
use std::mem::ManuallyDrop;
use std::time::Duration;

/// A refusal on request (`scarce.rs`) as Vulkan's.
pub(super) fn out_of(asked: Result<(), Errno>) -> Result<(), vk::Result> {
    asked.map_err(|_| vk::Result::ERROR_OUT_OF_HOST_MEMORY)
}

/// Turns a Vulkan result into an error that names the call.
pub(super) fn failed(call: &'static str) -> impl Fn(vk::Result) -> DeviceError {
    move |result| match result {
        vk::Result::ERROR_DEVICE_LOST => DeviceError::Lost(call.into()),
        vk::Result::ERROR_OUT_OF_DEVICE_MEMORY | vk::Result::ERROR_OUT_OF_HOST_MEMORY => {
            DeviceError::OutOfMemory { what: call, bytes: 0 }
        }
        other => DeviceError::Call { call, reason: other.to_string() },
    }
}

/// Which queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// The one for kernels.
    Compute,
    /// The one for copies beside them; the same one where there is none.
    Copies,
}

/// A logical device with a compute queue. Destroyed on drop, after all that was made from it.
pub(super) struct Context {
    pub(super) device: ash::Device,
    pub(super) physical: Chosen,
    pub(super) allocator: ManuallyDrop<Mutex<Allocator>>,
    pub(super) messenger: Option<Messenger>,
    /// What the driver made of kernels before.
    pub(super) made: Made,
    compute: ManuallyDrop<Line>,
    /// Another for copies, where they must go on beside kernels.
    beside: Option<Beside>,
    pub(super) instance: ash::Instance,
    // The loader must outlive everything made through it.
    _entry: ash::Entry,
}

impl Context {
    /// Loads Vulkan, picks a device (`wanted`: an index or part of a name) and opens it, with a queue for copies if `copies_beside` says so
    /// and there is one.
    pub(super) fn open(
        wanted: Option<&str>,
        validation: bool,
        cache: &Cache,
        copies_beside: impl FnOnce(&Chosen) -> bool,
    ) -> Result<Self, DeviceError> {
        // SAFETY: loads the system's Vulkan loader, whose initialisers are sound to run.
        let entry = unsafe { ash::Entry::load() }.map_err(|error| DeviceError::NoLoader(error.to_string()))?;
        let instance = create_instance(&entry, validation)?;
        let messenger = match validation.then(|| Messenger::new(&entry, &instance)).transpose() {
            Ok(messenger) => messenger,
            Err(error) => {
                // SAFETY: nothing else was made from the instance.
                unsafe { instance.destroy_instance(None) };
                return Err(error);
            }
        };
        let opened = choose::choose(&instance, wanted).and_then(|mut physical| {
            if !copies_beside(&physical) {
                physical.copy_queue = CopyQueue::None;
            }
            let device = create_device(&instance, &physical, true)?;
            Ok((physical, device))
        });
        let (physical, device) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                drop(messenger);
                // SAFETY: the messenger, the only child, is gone.
                unsafe { instance.destroy_instance(None) };
                return Err(error);
            }
        };
        let parts = (|| {
            let compute = Line::new(&device, physical.queue_family, 0)?;
            let beside = Beside::open(&instance, &physical, &device)?;
            let allocator = Allocator::new(&AllocatorCreateDesc {
                instance: instance.clone(),
                device: device.clone(),
                physical_device: physical.handle,
                debug_settings: gpu_allocator::AllocatorDebugSettings::default(),
                buffer_device_address: true,
                allocation_sizes: gpu_allocator::AllocationSizes::new(16 << 20, 16 << 20),
            });
            match allocator {
                Ok(allocator) => Ok((compute, beside, allocator)),
                Err(error) => Err(DeviceError::Call { call: "gpu-allocator", reason: error.to_string() }),
            }
        })();
        let (compute, beside, allocator) = match parts {
            Ok(parts) => parts,
            Err(error) => {
                // SAFETY: nothing made from device or instance is left but the messenger, dropped in between.
                unsafe { device.destroy_device(None) };
                drop(messenger);
                // SAFETY: as above.
                unsafe { instance.destroy_instance(None) };
                return Err(error);
            }
        };
        let made = Made::open(&device, &physical.properties, cache);
        Ok(Self {
            made,
            device,
            physical,
            allocator: ManuallyDrop::new(Mutex::new(allocator)),
            messenger,
            compute: ManuallyDrop::new(compute),
            beside,
            instance,
            _entry: entry,
        })
    }

    /// Budget and use of the largest device-local heap, where `VK_EXT_memory_budget` tells.
    pub(super) fn memory_budget(&self) -> Option<MemoryBudget> {
        if !self.physical.tells_budget {
            return None;
        }
        let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
        let mut properties = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
        // SAFETY: the device has the extension, whose structure is well formed.
        unsafe { self.instance.get_physical_device_memory_properties2(self.physical.handle, &mut properties) };
        let heap = self.physical.local_heap()?;
        Some(MemoryBudget { bytes: budget.heap_budget[heap], used: budget.heap_usage[heap] })
    }

    /// The queue for copies.
    pub(super) fn copies(&self) -> &Line {
        self.beside.as_ref().map_or(&*self.compute, |beside| &beside.line)
    }

    /// A queue.
    pub(super) fn line(&self, lane: Lane) -> &Line {
        match lane {
            Lane::Compute => &self.compute,
            Lane::Copies => self.copies(),
        }
    }

    /// Whether copies have a queue of their own, on which they may go on while a kernel runs.
    pub(super) fn copies_beside(&self) -> bool {
        self.beside.is_some()
    }

    /// Whether copies are made on another logical device, which does not know this one's buffers.
    pub(super) fn copies_elsewhere(&self) -> bool {
        self.beside.as_ref().is_some_and(|beside| !beside.shares_handles())
    }

    /// The queue families that use buffers, if there are several.
    pub(super) fn families(&self) -> Option<[u32; 2]> {
        let families = [self.compute.family, self.copies().family];
        (families[0] != families[1] && !self.copies_elsewhere()).then_some(families)
    }

    /// Submits a recorded command buffer, behind what the other queue of this logical device has done; returns the timeline value that
    /// says it is done.
    pub(super) fn submit(&self, lane: Lane, commands: vk::CommandBuffer) -> Result<u64, DeviceError> {
        let after = match (&self.beside, lane) {
            (Some(beside), Lane::Compute) if beside.shares_handles() => Some(beside.line.reached()?),
            (Some(beside), Lane::Copies) if beside.shares_handles() => Some(self.compute.reached()?),
            _ => None,
        };
        self.line(lane).submit(commands, after)
    }

    /// Waits up to `patience` for the submission of a kernel with `value`; true once it is done.
    pub(super) fn wait_for(&self, value: u64, patience: Duration) -> Result<bool, DeviceError> {
        self.compute.wait_for(value, patience)
    }

    /// Waits until the submission of a kernel with `value` is done.
    pub(super) fn wait(&self, value: u64) -> Result<(), DeviceError> {
        self.compute.wait(value)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: whoever made objects from the device holds an Arc of this context, so all are gone; the device
        // is idle once waited for. The allocator goes first, since it frees memory of the device; it is not
        // used afterwards.
        unsafe {
            let _ = self.device.device_wait_idle();
            self.made.close(&self.device);
            ManuallyDrop::drop(&mut self.allocator);
            self.beside = None;
            ManuallyDrop::drop(&mut self.compute);
            self.device.destroy_device(None);
            self.messenger = None;
            self.instance.destroy_instance(None);
        }
    }
}

fn create_instance(entry: &ash::Entry, validation: bool) -> Result<ash::Instance, DeviceError> {
    let application = vk::ApplicationInfo::default().engine_name(c"vksvm").api_version(vk::API_VERSION_1_2);
    let layers: Vec<_> = validation.then_some(c"VK_LAYER_KHRONOS_validation".as_ptr()).into_iter().collect();
    let extensions: Vec<_> = if validation {
        vec![vk::EXT_DEBUG_UTILS_NAME.as_ptr(), vk::EXT_VALIDATION_FEATURES_NAME.as_ptr()]
    } else {
        Vec::new()
    };
    let enabled = [vk::ValidationFeatureEnableEXT::SYNCHRONIZATION_VALIDATION];
    let mut features = vk::ValidationFeaturesEXT::default().enabled_validation_features(&enabled);
    let mut info = vk::InstanceCreateInfo::default()
        .application_info(&application)
        .enabled_layer_names(&layers)
        .enabled_extension_names(&extensions);
    if validation {
        info = info.push_next(&mut features);
    }
    // SAFETY: all pointers in the create info outlive the call.
    unsafe { entry.create_instance(&info, None) }.map_err(|result| match result {
        vk::Result::ERROR_LAYER_NOT_PRESENT => DeviceError::Call {
            call: "vkCreateInstance",
            reason: "VKSVM_VALIDATION is set, but the Khronos validation layer is not installed (Debian: vulkan-validationlayers)".into(),
        },
        other => DeviceError::NoLoader(format!("vkCreateInstance: {other}")),
    })
}

/// The logical device, or the second one, which only copies.
pub(super) fn create_device(
    instance: &ash::Instance,
    physical: &Chosen,
    first: bool,
) -> Result<ash::Device, DeviceError> {
    let priorities = [1.0, 1.0];
    let family = |family, count| {
        vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&priorities[..count])
    };
    let mut queues = vec![family(physical.queue_family, 1)];
    match physical.copy_queue {
        CopyQueue::Own { family: other, .. } if other != physical.queue_family => queues.push(family(other, 1)),
        CopyQueue::Own { .. } => queues = vec![family(physical.queue_family, 2)],
        CopyQueue::SecondDevice | CopyQueue::None => {}
    }
    let mut enabled = physical.features.clone();
    let mut features = enabled.chain();
    let mut extensions = Vec::new();
    if physical.copy_queue == CopyQueue::SecondDevice {
        extensions.push(ash::khr::external_memory_fd::NAME.as_ptr());
    }
    if first && physical.imports_at.is_some() {
        extensions.push(ash::ext::external_memory_host::NAME.as_ptr());
    }
    if physical.tells_budget {
        extensions.push(ash::ext::memory_budget::NAME.as_ptr());
    }
    let info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_extension_names(&extensions)
        .push_next(&mut features);
    // SAFETY: features and extensions were reported as supported by this device; all pointers outlive the call.
    unsafe { instance.create_device(physical.handle, &info, None) }.map_err(failed("vkCreateDevice"))
}

/// A fixed-size C string of a properties structure.
pub(super) fn text(raw: &[std::ffi::c_char]) -> String {
    CStr::from_bytes_until_nul(bytemuck::cast_slice(raw)).map_or_else(|_| String::new(), |s| s.to_string_lossy().into())
}
