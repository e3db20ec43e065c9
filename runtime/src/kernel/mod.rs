//! Kernels: SPIR-V modules that were compiled with `vksvm.glsl`, or plain ones that are rewritten; or Rust functions, for the
//! reference device.

mod arrays;
mod direct;
mod dispatch;
mod entries;
mod error;
pub(crate) mod execute;
mod fast;
mod hold;
mod instances;
pub(crate) mod kept;
mod launch;
mod live;
mod parts;
mod read;
mod reflect;
pub(crate) mod requests;
pub mod rewrite;
mod serve;
pub(crate) mod specialise;
mod worklist;

pub use error::{FaultReason, KernelFault, LaunchError};
pub use execute::LaunchReport;
pub use launch::{Kernel, Launch, Pending, Scope};
pub use reflect::KernelError;

use crate::device::layout::{LAUNCH_BYTES, RUN_BYTES};
use crate::device::soft::SoftFunction;
use kept::{Kept, Made, Origin};
use rewrite::{RewriteError, RewriteStats, Runs};
use std::ffi::CString;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What a kernel is made of. A device runs one of the two and refuses the other.
#[derive(Clone)]
pub enum Code {
    /// A shader, for Vulkan devices.
    Spirv {
        /// The SPIR-V module.
        words: Vec<u32>,
        /// The name of the entry point.
        entry_point: CString,
    },
    /// A Rust function, called for every invocation by the [reference device](crate::device::soft).
    Soft(Arc<SoftFunction>),
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spirv { words, .. } => write!(f, "SPIR-V of {} words", words.len()),
            Self::Soft(_) => f.write_str("Rust function"),
        }
    }
}

/// A kernel's code and what the runtime needs to know of it.
#[derive(Debug)]
pub struct KernelModule {
    /// Unique in the process; names the kernel in fault queue entries.
    pub id: u32,
    /// The name it was given, for messages.
    pub name: String,
    /// What it is made of.
    pub code: Code,
    /// Workgroup size, in invocations.
    pub local_size: [u32; 3],
    /// Bytes of arguments after the launch block.
    pub argument_bytes: usize,
    /// Whether it last found all that it used on the device: then fast passes pay.
    pub(crate) hits: AtomicBool,
    /// How often a pass that relied on whole runs found something missing.
    pub(crate) strays: AtomicU32,
    /// What it wants to know of its arguments.
    pub(crate) runs: Runs,
    /// What rewriting did, if the module came without the include.
    pub rewritten: Option<RewriteStats>,
    /// Where a rewritten kernel's accesses stand in its source, by their number in fault entries.
    pub(crate) sites: Vec<String>,
    /// What its variants are kept under, and where.
    origin: Option<Origin>,
    kept: Kept,
}

impl KernelModule {
    /// Reads and checks a module for a device with `push_bytes` of push constants; one that was compiled without the include is
    /// rewritten. Of several compute entry points, the one called `name` is the kernel.
    pub fn new(name: &str, spirv: &[u8], push_bytes: usize) -> Result<Self, KernelError> {
        Self::kept(name, spirv, push_bytes, Kept::default())
    }

    /// As [`new`](Self::new), with what was made of the same module before, if it was kept.
    pub(crate) fn kept(name: &str, spirv: &[u8], push_bytes: usize, kept: Kept) -> Result<Self, KernelError> {
        let spirv = &*entries::only(spirv, name).map_err(|entries::Unnamed { found, names }| {
            KernelError::EntryPoint { kernel: name.into(), found, names }
        })?;
        let origin = Origin::new(spirv, push_bytes);
        let made = match kept.module(&origin) {
            Some(made) => made,
            None => match reflect::reflect(name, spirv) {
                Ok(included) => {
                    let code = Code::Spirv { words: included.words, entry_point: included.entry_point };
                    let arguments = included.push_bytes - LAUNCH_BYTES;
                    let module = Self::with_code(name, code, included.local_size, arguments);
                    return Ok(Self { origin: Some(origin), kept, ..module });
                }
                Err(without @ KernelError::WithoutInclude { .. }) => {
                    let made = Self::rewrite(name, spirv, push_bytes, without)?;
                    kept.keep_module(&origin, &made);
                    made
                }
                Err(error) => return Err(error),
            },
        };
        let code = Code::Spirv { words: made.words, entry_point: made.entry_point };
        let module = Self::with_code(name, code, made.local_size, made.runs.arguments);
        let (rewritten, sites, runs) = (Some(made.stats), made.sites, made.runs);
        Ok(Self { rewritten, sites, runs, origin: Some(origin), kept, ..module })
    }

    /// Rewrites a module; `without` is what it lacks otherwise.
    fn rewrite(name: &str, spirv: &[u8], push_bytes: usize, without: KernelError) -> Result<Made, KernelError> {
        let plain = match rewrite::rewrite_within(spirv, push_bytes) {
            Ok(plain) => plain,
            Err(RewriteError::NoPointers(_)) => return Err(without),
            Err(source) => return Err(KernelError::Rewrite { kernel: name.into(), source }),
        };
        let reflected = reflect::reflect(name, bytemuck::cast_slice(&plain.words))?;
        let mut runs = plain.runs;
        if runs.of.is_empty() {
            runs.arguments = reflected.push_bytes - LAUNCH_BYTES;
        }
        Ok(Made {
            words: reflected.words,
            entry_point: reflected.entry_point,
            local_size: reflected.local_size,
            runs,
            stats: plain.stats,
            sites: plain.sites,
        })
    }

    /// A kernel that is a Rust function.
    pub fn soft(name: &str, local_size: [u32; 3], argument_bytes: usize, function: Arc<SoftFunction>) -> Self {
        Self::with_code(name, Code::Soft(function), local_size, argument_bytes)
    }

    fn with_code(name: &str, code: Code, local_size: [u32; 3], argument_bytes: usize) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
            code,
            local_size,
            argument_bytes,
            hits: AtomicBool::new(false),
            strays: AtomicU32::new(0),
            runs: Runs::default(),
            rewritten: None,
            sites: Vec::new(),
            origin: None,
            kept: Kept::default(),
        }
    }

    /// Its SPIR-V, if it is a shader.
    pub(crate) fn code_words(&self) -> Option<&[u32]> {
        match &self.code {
            Code::Spirv { words, .. } => Some(words),
            Code::Soft(_) => None,
        }
    }

    /// Its SPIR-V cut down to a variant; `None` if it has none that could be read.
    pub fn variant(&self, bits: u32) -> Option<Vec<u32>> {
        self.kept.variant(self.origin.as_ref()?, self.code_words()?, bits)
    }

    /// Bytes of its push constants.
    pub fn push_bytes(&self) -> usize {
        let runs = if self.runs.of.is_empty() { self.argument_bytes } else { self.runs.offset() };
        LAUNCH_BYTES + runs + RUN_BYTES * self.runs.of.len()
    }

    /// Invocations of a workgroup.
    pub fn invocations(&self) -> u32 {
        self.local_size.iter().product()
    }
}
