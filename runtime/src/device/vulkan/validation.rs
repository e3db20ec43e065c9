//! Collects the validation layers' messages, so that tests can fail on any.

use super::context::failed;
use crate::device::DeviceError;
use ash::vk;
use parking_lot::Mutex;
use std::ffi::{CStr, c_void};

/// A debug messenger and what it was told.
pub(super) struct Messenger {
    loader: ash::ext::debug_utils::Instance,
    handle: vk::DebugUtilsMessengerEXT,
    // Boxed, since the layer holds its address.
    messages: Box<Mutex<Vec<String>>>,
}

impl Messenger {
    pub(super) fn new(entry: &ash::Entry, instance: &ash::Instance) -> Result<Self, DeviceError> {
        let messages = Box::new(Mutex::new(Vec::new()));
        let loader = ash::ext::debug_utils::Instance::new(entry, instance);
        let info = vk::DebugUtilsMessengerCreateInfoEXT::default()
            .message_severity(
                vk::DebugUtilsMessageSeverityFlagsEXT::ERROR | vk::DebugUtilsMessageSeverityFlagsEXT::WARNING,
            )
            .message_type(
                vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION | vk::DebugUtilsMessageTypeFlagsEXT::PERFORMANCE,
            )
            .pfn_user_callback(Some(record))
            .user_data(std::ptr::from_ref::<Mutex<Vec<String>>>(&messages).cast_mut().cast());
        // SAFETY: the extension is enabled whenever this is called; `messages` outlives the messenger (see Drop).
        let handle = unsafe { loader.create_debug_utils_messenger(&info, None) }
            .map_err(failed("vkCreateDebugUtilsMessengerEXT"))?;
        Ok(Self { loader, handle, messages })
    }

    pub(super) fn messages(&self) -> Vec<String> {
        self.messages.lock().clone()
    }
}

impl Drop for Messenger {
    fn drop(&mut self) {
        // SAFETY: the handle is live and destroyed once; afterwards nobody calls back into `messages`.
        unsafe { self.loader.destroy_debug_utils_messenger(self.handle, None) };
    }
}

/// # Safety
/// Called by the layer with valid data, and with the address of the messenger's list as `user`.
unsafe extern "system" fn record(
    _severity: vk::DebugUtilsMessageSeverityFlagsEXT,
    _types: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    user: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: the caller's contract.
    let (data, messages) = unsafe { (&*data, &*user.cast::<Mutex<Vec<String>>>()) };
    if !data.p_message.is_null() {
        // SAFETY: a C string, by the extension's specification.
        let text = unsafe { CStr::from_ptr(data.p_message) }.to_string_lossy().into_owned();
        tracing::error!(target: "vksvm::validation", "{text}");
        messages.lock().push(text);
    }
    vk::FALSE
}
