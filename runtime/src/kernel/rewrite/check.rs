//! What can be rewritten: each instruction that names a pointer to physical memory is known either to access memory
//! through it, and is translated, or to only pass it on; all else is refused. The proof over what was rewritten is `proof`.

use super::code::Code;
use super::entry::groups_decorations;
use super::error::RewriteError;
use super::operands::is_atomic;
use crate::device::layout::variant;
use rspirv::dr::Operand;
use rspirv::spirv::{AddressingModel, Decoration, ExecutionModel, Op, Word};
use std::collections::HashSet;

/// The kernel's entry function, if the module is of a kind that can be rewritten.
pub(super) fn entry_function(code: &Code) -> Result<Word, RewriteError> {
    let module = &code.module;
    let [entry] = &module.entry_points[..] else {
        let found = module.entry_points.len();
        return Err(RewriteError::Module(format!(
            "it has {found} entry points; it must have one, or be loaded as a kernel with the name of one"
        )));
    };
    let (Some(Operand::ExecutionModel(ExecutionModel::GLCompute)), Some(Operand::IdRef(function))) =
        (entry.operands.first(), entry.operands.get(1))
    else {
        return Err(RewriteError::Module("its entry point is not that of a compute shader".into()));
    };
    if !module.functions.iter().any(|candidate| candidate.def_id() == Some(*function)) {
        return Err(RewriteError::Malformed("its entry point names no function".into()));
    }
    let model = module.memory_model.as_ref().and_then(|model| model.operands.first());
    if model != Some(&Operand::AddressingModel(AddressingModel::PhysicalStorageBuffer64)) {
        return Err(RewriteError::NoPointers("its addressing model is not PhysicalStorageBuffer64"));
    }
    for annotation in &module.annotations {
        if groups_decorations(annotation) {
            return Err(code.unsupported(annotation, "decoration groups and linkage are not for shaders"));
        }
        if annotation.operands.get(1) == Some(&Operand::Decoration(Decoration::SpecId))
            && annotation.operands.get(2) == Some(&Operand::LiteralBit32(variant::CONSTANT_ID))
        {
            let id = variant::CONSTANT_ID;
            return Err(code.unsupported(annotation, format!("the specialisation constant {id} is vksvm's own")));
        }
    }
    Ok(*function)
}

/// Whether an instruction accesses memory through its operand `index`.
fn accesses(opcode: Op, index: usize) -> bool {
    match opcode {
        Op::Load | Op::Store => index == 0,
        Op::CopyMemory => index < 2,
        opcode => is_atomic(opcode) && index == 0,
    }
}

/// Whether an instruction only passes pointers on, or computes with their values.
fn passes_on(opcode: Op) -> bool {
    matches!(
        opcode,
        Op::Store
            | Op::AccessChain
            | Op::InBoundsAccessChain
            | Op::PtrAccessChain
            | Op::InBoundsPtrAccessChain
            | Op::ConvertPtrToU
            | Op::Bitcast
            | Op::CopyObject
            | Op::CopyLogical
            | Op::Phi
            | Op::Select
            | Op::FunctionCall
            | Op::ReturnValue
            | Op::CompositeConstruct
            | Op::CompositeInsert
            | Op::PtrEqual
            | Op::PtrNotEqual
            | Op::PtrDiff
    )
}

/// Whether an instruction's pointer result must have come from somewhere that is known to be virtual.
fn makes_pointers(opcode: Op) -> bool {
    passes_on(opcode)
        || matches!(
            opcode,
            Op::Load
                | Op::ConvertUToPtr
                | Op::CompositeExtract
                | Op::FunctionParameter
                | Op::Undef
                | Op::AtomicExchange
                | Op::AtomicLoad
        )
}

/// Refuses what would be left untranslated. `scattered` are pointers to vectors whose components do not follow each
/// other; whether there is anything to translate is returned.
pub(super) fn check(code: &Code, scattered: &HashSet<Word>) -> Result<bool, RewriteError> {
    check_types(code)?;
    let mut found = false;
    for instruction in code.module.functions.iter().flat_map(|function| function.all_inst_iter()) {
        let opcode = instruction.class.opcode;
        for (index, operand) in instruction.operands.iter().enumerate() {
            let Some(id) = operand.id_ref_any() else { continue };
            if scattered.contains(&id)
                && !(accesses(opcode, index) || opcode == Op::AccessChain || opcode == Op::InBoundsAccessChain)
            {
                return Err(code.unsupported(
                    instruction,
                    "it passes on a pointer to a column of a row-major matrix; pass the matrix's structure instead",
                ));
            }
            if code.physical(id).is_none() {
                continue;
            }
            if accesses(opcode, index) {
                found = true;
            } else if !passes_on(opcode) {
                return Err(code.unsupported(
                    instruction,
                    "it takes a pointer to memory, and only loads, stores, copies and atomics are translated",
                ));
            }
        }
        if let Some(id) = instruction.result_id
            && code.physical(id).is_some()
            && !makes_pointers(opcode)
        {
            return Err(code.unsupported(instruction, "it makes a pointer in a way that is not known"));
        }
        if let Some(reason) = refused(opcode) {
            return Err(code.unsupported(instruction, reason));
        }
    }
    Ok(found)
}

/// Pointers of which nothing else here would know.
fn check_types(code: &Code) -> Result<(), RewriteError> {
    for global in &code.module.types_global_values {
        let reason = match global.class.opcode {
            Op::TypeUntypedPointerKHR => "an untyped pointer does not say what is accessed; use a typed one",
            Op::TypeVector if is_pointer(code, global.operands.first()) => {
                "vectors of pointers are for gathering in a way that only the device knows; use an array"
            }
            _ => continue,
        };
        return Err(code.unsupported(global, reason));
    }
    Ok(())
}

fn is_pointer(code: &Code, ty: Option<&Operand>) -> bool {
    let ty = ty.and_then(Operand::id_ref_any).and_then(|ty| code.global(ty));
    ty.is_some_and(|ty| ty.class.opcode == Op::TypePointer)
}

/// Instructions that reach memory past pointers.
fn refused(opcode: Op) -> Option<&'static str> {
    let name = format!("{opcode:?}");
    if name.starts_with("CooperativeMatrix") || name.starts_with("CooperativeVector") {
        return Some("cooperative matrices and vectors access memory in a way that only the device knows");
    }
    if name.starts_with("RayQuery") || name.starts_with("TraceRay") || opcode == Op::ConvertUToAccelerationStructureKHR
    {
        return Some("ray queries read acceleration structures, which the heap cannot hold");
    }
    match opcode {
        Op::CopyMemorySized => Some("copies of a size that is computed are for OpenCL; copy in a loop"),
        Op::RawAccessChainNV => Some("raw access chains have no type to translate by"),
        _ => None,
    }
}
