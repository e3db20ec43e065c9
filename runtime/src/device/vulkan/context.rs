//! Instance, logical device and queue: everything that lives as long as the device.

use super::choose::{self, Chosen};
use super::made::Made;
use super::validation::Messenger;
use crate::cache::Cache;
use crate::device::{DeviceError, MemoryBudget};
use ash::vk;
use gpu_allocator::vulkan::{Allocator, AllocatorCreateDesc};
use parking_lot::Mutex;
use std::ffi::CStr;
use std::mem::ManuallyDrop;
use std::time::Duration;

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

/// The queue and the value that its next submission signals.
struct Submissions {
    queue: vk::Queue,
    next: u64,
}

/// A logical device with one compute queue and a timeline. Destroyed on drop, after all that was made from it.
pub(super) struct Context {
    pub(super) device: ash::Device,
    pub(super) physical: Chosen,
    pub(super) allocator: ManuallyDrop<Mutex<Allocator>>,
    pub(super) messenger: Option<Messenger>,
    /// What the driver made of kernels before.
    pub(super) made: Made,
    submissions: Mutex<Submissions>,
    timeline: vk::Semaphore,
    pub(super) instance: ash::Instance,
    // The loader must outlive everything made through it.
    _entry: ash::Entry,
}

impl Context {
    /// Loads Vulkan, picks a device (`wanted`: an index or part of a name) and opens it.
    pub(super) fn open(wanted: Option<&str>, validation: bool, cache: &Cache) -> Result<Self, DeviceError> {
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
        let opened = choose::choose(&instance, wanted).and_then(|physical| {
            let device = create_device(&instance, &physical)?;
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
        let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
        let parts = (|| {
            // SAFETY: the device is live and the create info well formed.
            let timeline =
                unsafe { device.create_semaphore(&vk::SemaphoreCreateInfo::default().push_next(&mut kind), None) }
                    .map_err(failed("vkCreateSemaphore"))?;
            let allocator = Allocator::new(&AllocatorCreateDesc {
                instance: instance.clone(),
                device: device.clone(),
                physical_device: physical.handle,
                debug_settings: gpu_allocator::AllocatorDebugSettings::default(),
                buffer_device_address: true,
                allocation_sizes: gpu_allocator::AllocationSizes::new(16 << 20, 16 << 20),
            });
            match allocator {
                Ok(allocator) => Ok((timeline, allocator)),
                Err(error) => {
                    // SAFETY: just made, used by nobody.
                    unsafe { device.destroy_semaphore(timeline, None) };
                    Err(DeviceError::Call { call: "gpu-allocator", reason: error.to_string() })
                }
            }
        })();
        let (timeline, allocator) = match parts {
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
        // SAFETY: the family was asked for one queue in `create_device`.
        let queue = unsafe { device.get_device_queue(physical.queue_family, 0) };
        let made = Made::open(&device, &physical.properties, cache);
        Ok(Self {
            made,
            device,
            physical,
            allocator: ManuallyDrop::new(Mutex::new(allocator)),
            messenger,
            submissions: Mutex::new(Submissions { queue, next: 1 }),
            timeline,
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

    /// Submits a recorded command buffer; returns the timeline value that says it is done.
    pub(super) fn submit(&self, commands: vk::CommandBuffer) -> Result<u64, DeviceError> {
        let mut submissions = self.submissions.lock();
        let value = submissions.next;
        let values = [value];
        let mut timeline = vk::TimelineSemaphoreSubmitInfo::default().signal_semaphore_values(&values);
        let commands = [commands];
        let semaphores = [self.timeline];
        let submit = vk::SubmitInfo::default()
            .command_buffers(&commands)
            .signal_semaphores(&semaphores)
            .push_next(&mut timeline);
        // SAFETY: the command buffer is recorded and not in flight (callers own it); the queue is externally
        // synchronised by the lock.
        unsafe { self.device.queue_submit(submissions.queue, &[submit], vk::Fence::null()) }
            .map_err(failed("vkQueueSubmit"))?;
        submissions.next += 1;
        Ok(value)
    }

    /// Waits up to `patience` for the submission with `value`; true once it is done.
    pub(super) fn wait_for(&self, value: u64, patience: Duration) -> Result<bool, DeviceError> {
        if patience.is_zero() {
            // Only a look: drivers sleep for tens of microseconds in a wait, however short.
            // SAFETY: the semaphore is a live timeline semaphore.
            let done = unsafe { self.device.get_semaphore_counter_value(self.timeline) };
            return done.map(|done| done >= value).map_err(failed("vkGetSemaphoreCounterValue"));
        }
        let semaphores = [self.timeline];
        let values = [value];
        let info = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
        let nanos = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        // SAFETY: the semaphore is a live timeline semaphore.
        match unsafe { self.device.wait_semaphores(&info, nanos) } {
            Ok(()) => Ok(true),
            Err(vk::Result::TIMEOUT) => Ok(false),
            Err(error) => Err(failed("vkWaitSemaphores")(error)),
        }
    }

    /// Waits until the submission with `value` is done.
    pub(super) fn wait(&self, value: u64) -> Result<(), DeviceError> {
        let semaphores = [self.timeline];
        let values = [value];
        let info = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
        // SAFETY: the semaphore is a live timeline semaphore.
        unsafe { self.device.wait_semaphores(&info, u64::MAX) }.map_err(failed("vkWaitSemaphores"))
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
            self.device.destroy_semaphore(self.timeline, None);
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

fn create_device(instance: &ash::Instance, physical: &Chosen) -> Result<ash::Device, DeviceError> {
    let priorities = [1.0];
    let queues =
        [vk::DeviceQueueCreateInfo::default().queue_family_index(physical.queue_family).queue_priorities(&priorities)];
    let mut enabled = physical.features.clone();
    let mut features = enabled.chain();
    let mut extensions = Vec::new();
    if physical.imports_at.is_some() {
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
