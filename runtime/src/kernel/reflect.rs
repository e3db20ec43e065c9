//! What a SPIR-V module says about itself: entry point, workgroup size, push constants, and whether it was
//! compiled with `vksvm.glsl`.

use super::read::read;
use crate::device::layout::{LAUNCH_BYTES, variant};
use rspirv::dr::{Instruction, Module, Operand};
use rspirv::spirv::{Decoration, ExecutionMode, ExecutionModel, Op, StorageClass, Word};
use std::collections::HashMap;
use std::ffi::CString;

/// A SPIR-V module cannot be used as a kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not SPIR-V, or damaged.
    #[error("kernel `{kernel}` is not a SPIR-V module that can be read: {reason}")]
    Malformed {
        /// The kernel's name.
        kernel: String,
        /// What the parser said.
        reason: String,
    },
    /// No compute entry point, or several none of which has the kernel's name.
    #[error(
        "kernel `{kernel}` has {found} compute entry points{names}: it must have one, or one that is called like the kernel"
    )]
    EntryPoint {
        /// The kernel's name.
        kernel: String,
        /// How many were found.
        found: usize,
        /// What the first of them are called, in parentheses, if there are several.
        names: String,
    },
    /// Compiled without the include, and without pointers that could be translated for it.
    #[error(
        "kernel `{kernel}` follows no pointers and does not use vksvm.glsl ({missing}): take pointers as push constants, or `#include \"vksvm.glsl\"` and translate every pointer"
    )]
    WithoutInclude {
        /// The kernel's name.
        kernel: String,
        /// What is not there.
        missing: &'static str,
    },
    /// A plain shader that cannot be rewritten.
    #[error("kernel `{kernel}` cannot be rewritten to follow the CPU's pointers: {source}")]
    Rewrite {
        /// The kernel's name.
        kernel: String,
        /// What stands in the way.
        source: super::rewrite::RewriteError,
    },
    /// It wants buffers or images that a launch does not bind.
    #[error(
        "kernel `{kernel}` has a variable in storage class {class}, and launches bind no descriptors: take a pointer as a push constant instead"
    )]
    Descriptors {
        /// The kernel's name.
        kernel: String,
        /// The variable's storage class.
        class: String,
    },
    /// The workgroup is larger than the device allows.
    #[error(
        "kernel `{kernel}` has workgroups of {size:?}, and the device allows {limit:?} and {invocations} invocations in all"
    )]
    WorkgroupTooLarge {
        /// The kernel's name.
        kernel: String,
        /// Its local size.
        size: [u32; 3],
        /// The device's limit by dimension.
        limit: [u32; 3],
        /// The device's limit in all.
        invocations: u32,
    },
    /// More arguments than push constants.
    #[error(
        "kernel `{kernel}` takes {bytes} bytes of arguments, and the device has room for {limit}: pass a pointer to a structure in the heap instead"
    )]
    TooManyArguments {
        /// The kernel's name.
        kernel: String,
        /// Bytes of VKSVM_ARGS.
        bytes: usize,
        /// Bytes the device has left.
        limit: usize,
    },
    /// The device refused the module.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
}

pub(super) struct Reflected {
    pub(super) words: Vec<u32>,
    pub(super) local_size: [u32; 3],
    pub(super) push_bytes: usize,
    pub(super) entry_point: CString,
}

pub(super) fn reflect(kernel: &str, spirv: &[u8]) -> Result<Reflected, KernelError> {
    let malformed = |reason: String| KernelError::Malformed { kernel: kernel.into(), reason };
    let (words, module) = read(spirv).map_err(malformed)?;

    let entries: Vec<_> = module
        .entry_points
        .iter()
        .filter(|entry| entry.operands.first() == Some(&Operand::ExecutionModel(ExecutionModel::GLCompute)))
        .collect();
    let [entry] = entries[..] else {
        return Err(KernelError::EntryPoint { kernel: kernel.into(), found: entries.len(), names: String::new() });
    };
    let (Some(Operand::IdRef(function)), Some(Operand::LiteralString(name))) =
        (entry.operands.get(1), entry.operands.get(2))
    else {
        return Err(malformed("its entry point has no name".into()));
    };
    if !module.functions.iter().any(|candidate| candidate.def_id() == Some(*function)) {
        return Err(malformed("its entry point names no function".into()));
    }
    let entry_point =
        CString::new(name.as_str()).map_err(|_| malformed("its entry point's name has a zero byte".into()))?;

    let without = |missing| KernelError::WithoutInclude { kernel: kernel.into(), missing };
    let has_variant = module.annotations.iter().any(|decoration| {
        decoration.operands.get(1) == Some(&Operand::Decoration(Decoration::SpecId))
            && decoration.operands.get(2) == Some(&Operand::LiteralBit32(variant::CONSTANT_ID))
    });
    if !has_variant {
        return Err(without("no variant constant"));
    }
    if let Some(class) = descriptor(&module) {
        return Err(KernelError::Descriptors { kernel: kernel.into(), class: format!("{class:?}") });
    }
    let push_bytes = push_constant_bytes(&module).ok_or_else(|| without("no push constants"))?;
    if push_bytes < LAUNCH_BYTES {
        return Err(without("the launch block is missing from the push constants"));
    }
    let local_size =
        local_size(&module, *function).ok_or_else(|| malformed("it does not say its workgroup size".into()))?;
    if local_size.contains(&0) {
        return Err(malformed(format!("its workgroup size is {local_size:?}")));
    }
    Ok(Reflected { words, local_size, push_bytes, entry_point })
}

/// The storage class of a variable that needs a descriptor.
fn descriptor(module: &Module) -> Option<StorageClass> {
    let mut variables = module.types_global_values.iter().filter(|global| global.class.opcode == Op::Variable);
    variables.find_map(|variable| match variable.operands.first() {
        Some(Operand::StorageClass(
            class @ (StorageClass::Uniform | StorageClass::UniformConstant | StorageClass::StorageBuffer),
        )) => Some(*class),
        _ => None,
    })
}

fn local_size(module: &Module, function: Word) -> Option<[u32; 3]> {
    let of_entry =
        module.execution_modes.iter().filter(|mode| mode.operands.first() == Some(&Operand::IdRef(function)));
    of_entry.into_iter().find_map(|mode| match mode.operands[1..] {
        [
            Operand::ExecutionMode(ExecutionMode::LocalSize),
            Operand::LiteralBit32(x),
            Operand::LiteralBit32(y),
            Operand::LiteralBit32(z),
        ] => Some([x, y, z]),
        [
            Operand::ExecutionMode(ExecutionMode::LocalSizeId),
            Operand::IdRef(x),
            Operand::IdRef(y),
            Operand::IdRef(z),
        ] => Some([constant(module, x)?, constant(module, y)?, constant(module, z)?]),
        _ => None,
    })
}

fn constant(module: &Module, id: Word) -> Option<u32> {
    let instruction = module.types_global_values.iter().find(|global| global.result_id == Some(id))?;
    literal(instruction)
}

fn literal(constant: &Instruction) -> Option<u32> {
    match constant.operands.first()? {
        Operand::LiteralBit32(value) => Some(*value),
        _ => None,
    }
}

/// Size of the push constant block: the end of its furthest member.
fn push_constant_bytes(module: &Module) -> Option<usize> {
    let mut types =
        Types { globals: HashMap::new(), strides: HashMap::new(), offsets: HashMap::new(), sizes: HashMap::new() };
    types.globals.extend(module.types_global_values.iter().filter_map(|global| Some((global.result_id?, global))));
    for annotation in &module.annotations {
        match annotation.operands[..] {
            [Operand::IdRef(target), Operand::Decoration(Decoration::ArrayStride), Operand::LiteralBit32(stride)] => {
                types.strides.insert(target, stride as usize);
            }
            [
                Operand::IdRef(target),
                Operand::LiteralBit32(member),
                Operand::Decoration(Decoration::Offset),
                Operand::LiteralBit32(offset),
            ] => {
                types.offsets.insert((target, member as usize), offset as usize);
            }
            _ => {}
        }
    }
    let variable = module.types_global_values.iter().find(|global| {
        global.class.opcode == Op::Variable
            && global.operands.first() == Some(&Operand::StorageClass(StorageClass::PushConstant))
    })?;
    let pointer = types.globals.get(&variable.result_type?)?;
    let Some(Operand::IdRef(block)) = pointer.operands.get(1) else { return None };
    types.size(*block)
}

/// Types and how they are laid out.
struct Types<'a> {
    globals: HashMap<Word, &'a Instruction>,
    strides: HashMap<Word, usize>,
    offsets: HashMap<(Word, usize), usize>,
    /// Sizes that were worked out.
    sizes: HashMap<Word, Option<usize>>,
}

impl Types<'_> {
    /// Bytes of a type; none where they are not known. Types are made of earlier ones, no deeper than [`read`] lets them be.
    fn size(&mut self, id: Word) -> Option<usize> {
        if let Some(&known) = self.sizes.get(&id) {
            return known;
        }
        let size = self.work_out(id);
        self.sizes.insert(id, size);
        size
    }

    fn work_out(&mut self, id: Word) -> Option<usize> {
        let ty = *self.globals.get(&id)?;
        let id_at = |index: usize| match ty.operands.get(index) {
            Some(Operand::IdRef(id)) => Some(*id),
            _ => None,
        };
        let literal_at = |index: usize| match ty.operands.get(index) {
            Some(Operand::LiteralBit32(value)) => Some(*value as usize),
            _ => None,
        };
        match ty.class.opcode {
            Op::TypeInt | Op::TypeFloat => Some(literal_at(0)? / 8),
            Op::TypePointer => Some(8),
            Op::TypeVector => self.size(id_at(0)?)?.checked_mul(literal_at(1)?),
            Op::TypeMatrix => {
                // Columns of three are padded to four in std430.
                let column = self.size(id_at(0)?)?;
                column.checked_next_power_of_two()?.checked_mul(literal_at(1)?)
            }
            Op::TypeArray => {
                let length = literal(self.globals.get(&id_at(1)?)?)? as usize;
                self.strides.get(&id)?.checked_mul(length)
            }
            Op::TypeStruct => {
                let mut size = 0;
                for index in 0..ty.operands.len() {
                    let offset = *self.offsets.get(&(id, index))?;
                    size = size.max(offset.checked_add(self.size(id_at(index)?)?)?);
                }
                Some(size)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAXPY: &[u8] = include_bytes!("../../../tests/shaders/spv/saxpy.spv");

    #[test]
    fn describes_a_kernel_compiled_with_the_include() {
        let kernel = reflect("saxpy", SAXPY).unwrap();
        assert_eq!(kernel.local_size, [64, 1, 1]);
        assert_eq!(kernel.push_bytes - LAUNCH_BYTES, 24);
        assert_eq!(kernel.entry_point.to_str(), Ok("main"));
    }

    #[test]
    fn refuses_what_is_not_spirv_at_every_length() {
        for end in 0..SAXPY.len() {
            assert!(reflect("cut", &SAXPY[..end]).is_err(), "{end} bytes were taken for a module");
        }
        assert!(matches!(reflect("noise", &[7; 400]), Err(KernelError::Malformed { .. })));
    }
}
