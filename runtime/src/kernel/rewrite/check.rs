//! What can be rewritten, and the proof over what was.
//!
//! Both go through all instructions that name a pointer to physical memory. Before: each is known either to access
//! memory through it, and is translated, or to only pass it on; all else is refused. After: each that accesses memory
//! does so through what the library's translation returned.

use super::access::is_atomic;
use super::code::Code;
use super::entry::groups_decorations;
use super::error::RewriteError;
use crate::device::layout::variant;
use rspirv::dr::{Instruction, Operand};
use rspirv::spirv::{AddressingModel, Decoration, ExecutionModel, Op, Word};
use std::collections::{HashMap, HashSet};

/// The kernel's entry function, if the module is of a kind that can be rewritten.
pub(super) fn entry_function(code: &Code) -> Result<Word, RewriteError> {
    let module = &code.module;
    let [entry] = &module.entry_points[..] else {
        let found = module.entry_points.len();
        return Err(RewriteError::Module(format!("it has {found} entry points; it must have one")));
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

/// Proves that the functions before `own` access physical memory only through what the functions in `translations`
/// return.
pub(super) fn verify(code: &Code, own: usize, translations: &HashSet<Word>) -> Result<(), RewriteError> {
    for function in &code.module.functions[..own] {
        let definitions: HashMap<Word, &Instruction> =
            function.all_inst_iter().filter_map(|instruction| Some((instruction.result_id?, instruction))).collect();
        for instruction in function.all_inst_iter() {
            for (index, operand) in instruction.operands.iter().enumerate() {
                if let Some(id) = operand.id_ref_any()
                    && accesses(instruction.class.opcode, index)
                    && code.physical(id).is_some()
                    && !is_translated(code, &definitions, translations, id)
                {
                    return Err(RewriteError::Untranslated { instruction: code.show(instruction) });
                }
            }
        }
    }
    Ok(())
}

/// Whether a pointer is what a translation returned, or lies within the bytes that it was asked for.
fn is_translated(
    code: &Code,
    definitions: &HashMap<Word, &Instruction>,
    translations: &HashSet<Word>,
    id: Word,
) -> bool {
    let operands = |id: Word, opcode: Op| {
        definitions.get(&id).filter(|definition| definition.class.opcode == opcode).map(|found| &found.operands[..])
    };
    // A matrix is the only member of the structure that says how it lies.
    let id = match operands(id, Op::AccessChain) {
        Some([Operand::IdRef(holder), Operand::IdRef(first)]) if code.constant_value(*first) == Some(0) => *holder,
        _ => id,
    };
    let Some([Operand::IdRef(address)]) = operands(id, Op::ConvertUToPtr) else { return false };
    let mut address = *address;
    let mut offset = 0;
    if let Some([Operand::IdRef(base), Operand::IdRef(more)]) = operands(address, Op::IAdd) {
        let Some(more) = code.constant_value(*more) else { return false };
        (address, offset) = (*base, more);
    }
    let Some([Operand::IdRef(function), arguments @ ..]) = operands(address, Op::FunctionCall) else { return false };
    let bytes = match arguments {
        // Followed by a run, if there is one.
        [_, Operand::IdRef(bytes)] | [_, Operand::IdRef(bytes), _, _, _] => code.constant_value(*bytes),
        // What is aligned to its size lies on a page.
        _ => Some(crate::addr::PAGE_SIZE as u32),
    };
    translations.contains(function) && bytes.is_some_and(|bytes| offset < bytes)
}
