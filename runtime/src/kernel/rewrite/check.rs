//! What can be rewritten, and the proof over what was.
//!
//! Both go through all instructions that name a pointer to physical memory. Before: each is known either to access
//! memory through it, and is translated, or to only pass it on; all else is refused. After: each that accesses memory
//! does so through what the library's translation returned.

use super::addresses::{Addresses, Known, long};
use super::code::Code;
use super::entry::groups_decorations;
use super::error::RewriteError;
use super::link::Linked;
use super::operands::{MemoryOperands, is_atomic};
use crate::device::layout::variant;
use rspirv::dr::{Function, Instruction, Operand};
use rspirv::spirv::{AddressingModel, Decoration, ExecutionModel, Op, Word};
use std::collections::{HashMap, HashSet};

const PAGE: u64 = crate::addr::PAGE_SIZE as u64;

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

/// The library's functions that the proof relies on.
pub(super) struct Trusted<'a> {
    /// What returns the device address of its first argument.
    pub(super) translations: HashSet<Word>,
    /// What does so given the result of one of the former, moved by the distance between the two addresses, on the same page.
    pub(super) again: HashSet<Word>,
    pub(super) linked: &'a Linked,
}

/// Proves that the functions before `own` access physical memory only through what the library's translations return, and that
/// what reuses a translation is on its page.
pub(super) fn verify(code: &Code, own: usize, trusted: &Trusted<'_>, known: Known<'_>) -> Result<(), RewriteError> {
    let peek = trusted.linked.function("link_peek_read")?;
    let hoisted = trusted.linked.function("link_hoisted_read")?;
    for function in &code.module.functions[..own] {
        let mut proof = Proof::of(code, function, trusted, known, [peek, hoisted]);
        for instruction in function.all_inst_iter() {
            for (index, operand) in instruction.operands.iter().enumerate() {
                if let Some(id) = operand.id_ref_any()
                    && accesses(instruction.class.opcode, index)
                    && code.physical(id).is_some()
                    && !proof.is_translated(id)
                {
                    return Err(RewriteError::Untranslated { instruction: code.show(instruction) });
                }
            }
        }
    }
    Ok(())
}

/// What is known of a function that was rewritten.
struct Proof<'a> {
    code: &'a Code,
    trusted: &'a Trusted<'a>,
    peek: Word,
    hoisted: Word,
    definitions: HashMap<Word, &'a Instruction>,
    addresses: Addresses<'a>,
    /// What the accesses through a device address promise of its alignment.
    aligned: HashMap<Word, u64>,
}

impl<'a> Proof<'a> {
    fn of(
        code: &'a Code,
        function: &'a Function,
        trusted: &'a Trusted<'a>,
        known: Known<'a>,
        [peek, hoisted]: [Word; 2],
    ) -> Self {
        let definitions: HashMap<Word, &Instruction> =
            function.all_inst_iter().filter_map(|instruction| Some((instruction.result_id?, instruction))).collect();
        let mut aligned = HashMap::new();
        for instruction in function.all_inst_iter() {
            let before = match instruction.class.opcode {
                Op::Load => 1,
                Op::Store => 2,
                opcode if is_atomic(opcode) => usize::MAX,
                _ => continue,
            };
            let Some(pointer) = instruction.operands.first().and_then(Operand::id_ref_any) else { continue };
            let Some(made) = definitions.get(&pointer).filter(|made| made.class.opcode == Op::ConvertUToPtr) else {
                continue;
            };
            let memory = MemoryOperands::parse(instruction.operands.get(before..).unwrap_or_default());
            let said = memory.and_then(|(memory, _)| memory.align).unwrap_or(1);
            let natural =
                code.physical(pointer).and_then(|pointee| known.layouts.scalar(code, pointee, 0)).unwrap_or(1);
            if let Some(Operand::IdRef(address)) = made.operands.first() {
                let align = aligned.entry(*address).or_insert(1);
                *align = u64::from(said.max(natural)).max(*align);
            }
        }
        let addresses = Addresses::of(code, known, function);
        Self { code, trusted, peek, hoisted, definitions, addresses, aligned }
    }

    fn operands(&self, id: Word, opcode: Op) -> Option<&'a [Operand]> {
        self.definitions
            .get(&id)
            .filter(|definition| definition.class.opcode == opcode)
            .map(|found| &found.operands[..])
    }

    /// Whether a pointer is what a translation returned, or lies within the bytes that it was asked for.
    fn is_translated(&mut self, id: Word) -> bool {
        // A matrix is the only member of the structure that says how it lies.
        let id = match self.operands(id, Op::AccessChain) {
            Some([Operand::IdRef(holder), Operand::IdRef(first)]) if self.code.constant_value(*first) == Some(0) => {
                *holder
            }
            _ => id,
        };
        let Some([Operand::IdRef(address)]) = self.operands(id, Op::ConvertUToPtr) else { return false };
        let mut address = *address;
        let mut offset = 0;
        if let Some([Operand::IdRef(base), Operand::IdRef(more)]) = self.operands(address, Op::IAdd) {
            let Some(more) = self.code.constant_value(*more) else { return false };
            (address, offset) = (*base, more);
        }
        self.is_asked_for(address, u64::from(offset))
    }

    /// Whether `offset` bytes from what a call of the library returned are among those that it was asked for.
    fn is_asked_for(&self, address: Word, offset: u64) -> bool {
        let Some([Operand::IdRef(function), arguments @ ..]) = self.operands(address, Op::FunctionCall) else {
            return false;
        };
        match arguments {
            [Operand::IdRef(va), Operand::IdRef(before), Operand::IdRef(distance)]
                if self.trusted.again.contains(function) =>
            {
                offset < PAGE && self.is_beside(address, *va, *before, *distance)
            }
            [Operand::IdRef(va), Operand::IdRef(peeked)] if *function == self.hoisted => {
                offset < PAGE && self.is_peek_of(*va, *peeked)
            }
            // Followed by a run, if there is one.
            [_, Operand::IdRef(bytes)] | [_, Operand::IdRef(bytes), _, _, _] => {
                let bytes = self.code.constant_value(*bytes);
                self.trusted.translations.contains(function) && bytes.is_some_and(|bytes| offset < u64::from(bytes))
            }
            // What is aligned to its size lies on a page.
            _ => self.trusted.translations.contains(function) && offset < PAGE,
        }
    }

    /// Whether a peek was at this address.
    fn is_peek_of(&self, va: Word, peeked: Word) -> bool {
        let call = self.operands(peeked, Op::FunctionCall);
        matches!(call, Some([Operand::IdRef(function), Operand::IdRef(at)])
            if *function == self.peek && self.addresses.get(*at) == self.addresses.get(va))
    }

    /// Whether `before` is as far from what a translation returned as `va` is from what that was asked for, and alignment says that no page
    /// ends between them; the library is told that distance and `again` is the address that is made of it.
    fn is_beside(&self, again: Word, va: Word, before: Word, told: Word) -> bool {
        let (translated, distance) = match self.operands(before, Op::IAdd) {
            Some([Operand::IdRef(base), Operand::IdRef(more)]) => match long(self.code, *more) {
                Some(distance) => (*base, distance),
                None => return false,
            },
            _ => (before, 0),
        };
        let Some([Operand::IdRef(function), Operand::IdRef(asked), rest @ ..]) =
            self.operands(translated, Op::FunctionCall)
        else {
            return false;
        };
        // Objects may be copies.
        let whole = matches!(rest, [] | [_, _, _]) && self.trusted.translations.contains(function);
        let hoisted = matches!(rest, [_]) && *function == self.hoisted;
        let (key, offset) = self.addresses.get(va);
        let (of, from) = self.addresses.get(*asked);
        let promised = |id: Word| self.aligned.get(&id).copied().unwrap_or(1).min(PAGE);
        (whole || hoisted)
            && key == of
            && offset.wrapping_sub(from) == distance
            && self.code.constant_value(told) == Some(distance as u32)
            && (distance < promised(translated) || distance.wrapping_neg() < promised(again))
    }
}
