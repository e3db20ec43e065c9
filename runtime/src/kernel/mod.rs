//! Kernels: SPIR-V modules that were compiled with `vksvm.glsl`, or plain ones that are rewritten; checked and described.

mod error;
pub(crate) mod execute;
mod launch;
mod read;
mod reflect;
pub mod rewrite;

pub use error::{FaultReason, KernelFault, LaunchError};
pub use execute::LaunchReport;
pub use launch::{Kernel, Launch, Pending, Scope};
pub use reflect::KernelError;

use crate::device::layout::LAUNCH_BYTES;
use rewrite::{RewriteError, RewriteStats};
use std::sync::atomic::{AtomicU32, Ordering};

/// A kernel's code and what the runtime needs to know of it.
#[derive(Debug)]
pub struct KernelModule {
    /// Unique in the process; names the kernel in fault queue entries.
    pub id: u32,
    /// The name it was given, for messages.
    pub name: String,
    /// The SPIR-V module, as rewritten if it was.
    pub words: Vec<u32>,
    /// Workgroup size, in invocations.
    pub local_size: [u32; 3],
    /// Bytes of arguments after the launch block.
    pub argument_bytes: usize,
    /// The name of the entry point.
    pub entry_point: std::ffi::CString,
    /// What rewriting did, if the module came without the include.
    pub rewritten: Option<RewriteStats>,
}

impl KernelModule {
    /// Reads and checks a module; one that was compiled without the include is rewritten.
    pub fn new(name: &str, spirv: &[u8]) -> Result<Self, KernelError> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let mut rewritten = None;
        let reflected = match reflect::reflect(name, spirv) {
            Err(without @ KernelError::WithoutInclude { .. }) => match rewrite::rewrite(spirv) {
                Ok(plain) => {
                    rewritten = Some(plain.stats);
                    reflect::reflect(name, bytemuck::cast_slice(&plain.words))
                }
                Err(RewriteError::NoPointers(_)) => Err(without),
                Err(source) => Err(KernelError::Rewrite { kernel: name.into(), source }),
            },
            reflected => reflected,
        }?;
        Ok(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
            words: reflected.words,
            local_size: reflected.local_size,
            argument_bytes: reflected.push_bytes - LAUNCH_BYTES,
            entry_point: reflected.entry_point,
            rewritten,
        })
    }

    /// Invocations of a workgroup.
    pub fn invocations(&self) -> u32 {
        self.local_size.iter().product()
    }
}
