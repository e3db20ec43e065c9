//! Runs: where the pages of the kernel's pointer arguments lie on the device.
//!
//! While an argument's pages are all there, contiguous and marked as used, the host says so at each dispatch, behind the kernel's own
//! push constants, and an access that falls inside needs no page table: it compares and adds. So an access is given the run of
//! the argument that its pointer comes from, be it by arithmetic or by following links in memory, which mostly lie beside each
//! other. That is a guess, and need be no more: what falls outside is translated like everything else.

use super::code::Code;
use super::flow;
use super::layout::Layouts;
use super::link::Linked;
use super::loops::Renamed;
use crate::device::layout::{LAUNCH_BYTES, RUN_BYTES};
use rspirv::dr::{Instruction, Operand};
use rspirv::spirv::{Decoration, Op, StorageClass, Word};
use std::collections::{HashMap, HashSet};

/// Most runs of a kernel.
const MAX_RUNS: usize = 8;
/// How far a pointer is followed back.
const MAX_STEPS: u32 = 64;
/// Members of the push constant block before the runs: launch block and the kernel's own.
const FIRST_MEMBER: u32 = 2;

/// An argument whose place on the device the kernel wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its offset in the arguments, in bytes.
    pub argument: u32,
    /// Whether the kernel stores through it.
    pub write: bool,
    /// Whether nothing is done with it but reach memory from it by arithmetic: then it may as well be a device address.
    pub own: bool,
}

/// The runs of a module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Runs {
    /// The arguments, in the order of their runs.
    pub of: Vec<Run>,
    /// Bytes of the kernel's own push constants.
    pub arguments: usize,
    /// Whether something is accessed that is not known to come from an argument with a run by arithmetic alone: then, in direct
    /// variants, all that the kernel may touch must lie equally far from its device address.
    pub strays: bool,
    /// Run by pointer that is accessed.
    by_pointer: HashMap<Word, Guess>,
}

/// The run that a pointer most likely points into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guess {
    pub(super) run: usize,
    pub(super) origin: Origin,
}

/// Where a pointer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the argument by arithmetic alone, along every way through the kernel, and nothing else is done with the argument.
    Own,
    /// From the argument by arithmetic alone, along every way through the kernel.
    Argument,
    /// Perhaps through memory.
    Somewhere,
}

impl Runs {
    /// Those of a module that was rewritten before.
    pub(in crate::kernel) fn kept(of: Vec<Run>, arguments: usize, strays: bool) -> Self {
        Self { of, arguments, strays, by_pointer: HashMap::new() }
    }

    /// Offset of the first run from the end of the launch block.
    pub fn offset(&self) -> usize {
        self.arguments.next_multiple_of(8)
    }

    /// The run that a pointer most likely points into.
    pub(super) fn of_pointer(&self, pointer: Word) -> Option<Guess> {
        self.by_pointer.get(&pointer).copied()
    }

    /// Takes it that a pointer leads where another does.
    pub(super) fn rename(&mut self, renamed: Renamed) {
        if let Some(guess) = self.of_pointer(renamed.old) {
            self.by_pointer.insert(renamed.new, guess);
        }
    }

    /// Chooses runs for a kernel that may have `push_bytes` of push constants; to be asked before the library is linked.
    pub(super) fn find(code: &Code, layouts: &Layouts, push_bytes: usize) -> Self {
        let block = code.module.types_global_values.iter().find(|global| {
            global.class.opcode == Op::Variable
                && global.operands.first() == Some(&Operand::StorageClass(StorageClass::PushConstant))
        });
        let Some((push, ty)) = block.and_then(|block| Some((block.result_id?, block.result_type?))) else {
            return Self { strays: true, ..Self::default() };
        };
        let structure = code.pointee(ty).map_or(0, |(_, structure)| structure);
        let Some(bytes) = layouts.size(code, structure).and_then(|bytes| usize::try_from(bytes).ok()) else {
            return Self { strays: true, ..Self::default() };
        };
        let mut runs = Self { arguments: bytes, ..Self::default() };
        let room = push_bytes.saturating_sub(LAUNCH_BYTES + runs.offset()) / RUN_BYTES;
        let mut origins = Origins::new(code, layouts, push);
        let accesses = accesses(code);
        // What was asked in a cycle of phis may have been given up too early: asked again, it is known.
        for _ in 0..2 {
            origins.known.retain(|_, origin| origin.is_some());
            origins.places.retain(|_, origin| origin.is_some());
            for &(pointer, _) in &accesses {
                origins.of(pointer, MAX_STEPS);
            }
        }
        let mut found: Vec<(Run, usize)> = Vec::new();
        let mut places = HashMap::new();
        for &(pointer, write) in &accesses {
            let Some(argument) = origins.of(pointer, MAX_STEPS) else { continue };
            let at = *places.entry(argument).or_insert_with(|| {
                found.push((Run { argument, write: false, own: false }, 0));
                found.len() - 1
            });
            found[at].0.write |= write;
            found[at].1 += 1;
        }
        // Those that are accessed most.
        found.sort_by_key(|&(run, count)| (std::cmp::Reverse(count), run.argument));
        runs.of = found.into_iter().map(|(run, _)| run).take(room.min(MAX_RUNS)).collect();
        let index: HashMap<u32, usize> = runs.of.iter().enumerate().map(|(index, run)| (run.argument, index)).collect();
        let exact: HashMap<Word, u32> =
            accesses.iter().filter_map(|&(pointer, _)| Some((pointer, origins.only(pointer)?))).collect();
        let own = flow::own(code, &exact, &origins);
        runs.of.iter_mut().for_each(|run| run.own = own.contains(&run.argument));
        runs.by_pointer = accesses
            .iter()
            .filter_map(|&(pointer, _)| {
                let argument = origins.of(pointer, MAX_STEPS)?;
                let run = *index.get(&argument)?;
                let origin = match exact.get(&pointer) {
                    Some(&only) if only == argument && runs.of[run].own => Origin::Own,
                    Some(&only) if only == argument => Origin::Argument,
                    _ => Origin::Somewhere,
                };
                Some((pointer, Guess { run, origin }))
            })
            .collect();
        let strays = |guess: &Guess| guess.origin == Origin::Somewhere;
        runs.strays = accesses.iter().any(|(pointer, _)| runs.by_pointer.get(pointer).is_none_or(strays));
        runs
    }

    /// Appends the runs to the push constant block.
    pub(super) fn declare(&self, code: &mut Code, linked: &Linked) {
        let ulong = code.uint(64);
        for index in 0..self.of.len() * RUN_BYTES / 8 {
            let structure = linked.push_structure;
            if let Some(block) =
                code.module.types_global_values.iter_mut().find(|global| global.result_id == Some(structure))
            {
                block.operands.push(Operand::IdRef(ulong));
            }
            let offset = LAUNCH_BYTES + self.offset() + 8 * index;
            let operands = vec![
                Operand::IdRef(structure),
                Operand::LiteralBit32(FIRST_MEMBER + index as u32),
                Operand::Decoration(Decoration::Offset),
                Operand::LiteralBit32(offset as u32),
            ];
            code.module.annotations.push(Instruction::new(Op::MemberDecorate, None, None, operands));
        }
    }

    /// Loads what is known of a run: address on the CPU, bytes, address on the device.
    pub(super) fn load(code: &mut Code, linked: &Linked, run: usize, out: &mut Vec<Instruction>) -> [Word; 3] {
        let ulong = code.uint(64);
        let pointer = code.pointer(StorageClass::PushConstant, ulong);
        [0, 1, 2].map(|word| {
            let member = code.constant(FIRST_MEMBER + (run * RUN_BYTES / 8) as u32 + word);
            let (place, value) = (code.fresh_value(pointer), code.fresh_value(ulong));
            let operands = vec![Operand::IdRef(linked.push_variable), Operand::IdRef(member)];
            out.push(Instruction::new(Op::AccessChain, Some(pointer), Some(place), operands));
            out.push(Instruction::new(Op::Load, Some(ulong), Some(value), vec![Operand::IdRef(place)]));
            value
        })
    }
}

/// Pointers to physical memory that are accessed, and whether for storing.
fn accesses(code: &Code) -> Vec<(Word, bool)> {
    let mut found = Vec::new();
    for instruction in code.module.functions.iter().flat_map(|function| function.all_inst_iter()) {
        let opcode = instruction.class.opcode;
        let operands: &[bool] = match opcode {
            Op::Load | Op::AtomicLoad => &[false],
            Op::Store => &[true],
            Op::CopyMemory => &[true, false],
            opcode if super::operands::is_atomic(opcode) => &[true],
            _ => continue,
        };
        for (operand, &write) in instruction.operands.iter().zip(operands) {
            if let Some(pointer) = operand.id_ref_any().filter(|&pointer| code.physical(pointer).is_some()) {
                found.push((pointer, write));
            }
        }
    }
    found
}

/// From which argument values come.
pub(super) struct Origins<'a> {
    code: &'a Code,
    layouts: &'a Layouts,
    /// The push constant variable.
    push: Word,
    pub(super) definitions: HashMap<Word, &'a Instruction>,
    /// Of functions, by their ids.
    pub(super) parameters: HashMap<Word, Vec<Word>>,
    /// What is stored to variables, and passed to parameters.
    stored: HashMap<Word, Vec<Word>>,
    /// Variables that are used in other ways than being loaded and stored whole.
    shared: HashSet<Word>,
    /// Offsets of arguments, as far as they were asked for; none also while it is looked for.
    known: HashMap<Word, Option<u32>>,
    /// Likewise, of what is stored to variables and passed to parameters.
    places: HashMap<Word, Option<u32>>,
}

impl<'a> Origins<'a> {
    fn new(code: &'a Code, layouts: &'a Layouts, push: Word) -> Self {
        let mut definitions = HashMap::new();
        let mut stored: HashMap<Word, Vec<Word>> = HashMap::new();
        let parameters: HashMap<Word, Vec<Word>> = code
            .module
            .functions
            .iter()
            .filter_map(|function| {
                Some((function.def_id()?, function.parameters.iter().filter_map(|one| one.result_id).collect()))
            })
            .collect();
        let mut shared = HashSet::new();
        for instruction in code.module.functions.iter().flat_map(|function| function.all_inst_iter()) {
            if let Some(id) = instruction.result_id {
                definitions.insert(id, instruction);
            }
            let whole = usize::from(matches!(instruction.class.opcode, Op::Load | Op::Store));
            shared.extend(instruction.operands.iter().skip(whole).filter_map(Operand::id_ref_any));
            let operand = |index: usize| instruction.operands.get(index).and_then(Operand::id_ref_any);
            match instruction.class.opcode {
                Op::Store => {
                    if let (Some(pointer), Some(value)) = (operand(0), operand(1)) {
                        stored.entry(pointer).or_default().push(value);
                    }
                }
                Op::FunctionCall => {
                    let parameters = operand(0).and_then(|function| parameters.get(&function));
                    for (index, &parameter) in parameters.into_iter().flatten().enumerate() {
                        stored.entry(parameter).or_default().extend(operand(index + 1));
                    }
                }
                _ => {}
            }
        }
        Self {
            code,
            layouts,
            push,
            definitions,
            parameters,
            stored,
            shared,
            known: HashMap::new(),
            places: HashMap::new(),
        }
    }

    /// The argument that a pointer comes from by arithmetic alone, along every way that leads to it.
    fn only(&mut self, pointer: Word) -> Option<u32> {
        let mut found = None;
        let mut seen = HashSet::new();
        let mut waiting = vec![pointer];
        while let Some(id) = waiting.pop() {
            if !seen.insert(id) {
                continue;
            }
            if seen.len() > MAX_STEPS as usize {
                return None;
            }
            let &definition = self.definitions.get(&id)?;
            let operand = |index: usize| definition.operands.get(index).and_then(Operand::id_ref_any);
            match definition.class.opcode {
                Op::AccessChain
                | Op::InBoundsAccessChain
                | Op::PtrAccessChain
                | Op::InBoundsPtrAccessChain
                | Op::CopyObject
                | Op::Bitcast
                | Op::ConvertPtrToU
                | Op::ConvertUToPtr => waiting.push(operand(0)?),
                // What is added to an address is none itself; an address less another is no address.
                Op::IAdd => {
                    let (left, right) = (operand(0)?, operand(1)?);
                    match (self.of(left, MAX_STEPS), self.of(right, MAX_STEPS)) {
                        (Some(_), None) => waiting.push(left),
                        (None, Some(_)) => waiting.push(right),
                        _ => return None,
                    }
                }
                Op::ISub if self.of(operand(1)?, MAX_STEPS).is_none() => waiting.push(operand(0)?),
                Op::Select => waiting.extend([operand(1)?, operand(2)?]),
                Op::Phi => waiting.extend(definition.operands.iter().step_by(2).filter_map(Operand::id_ref_any)),
                Op::FunctionParameter => waiting.extend(self.stored.get(&id)?),
                Op::Load => {
                    let place = operand(0)?;
                    let (class, _) = self.code.type_of(place).and_then(|ty| self.code.pointee(ty))?;
                    match class {
                        StorageClass::PushConstant => {
                            let argument = self.argument(place)?;
                            if *found.get_or_insert(argument) != argument {
                                return None;
                            }
                        }
                        StorageClass::Function if self.is_plain_variable(place) => {
                            waiting.extend(self.stored.get(&place)?);
                        }
                        _ => return None,
                    }
                }
                _ => return None,
            }
        }
        found
    }

    /// Whether a variable holds nothing but what stores to it say.
    pub(super) fn is_plain_variable(&self, place: Word) -> bool {
        let variable = self.definitions.get(&place).filter(|definition| definition.class.opcode == Op::Variable);
        variable.is_some_and(|variable| variable.operands.len() == 1) && !self.shared.contains(&place)
    }

    fn of(&mut self, id: Word, steps: u32) -> Option<u32> {
        if let Some(&known) = self.known.get(&id) {
            return known;
        }
        let steps = steps.checked_sub(1)?;
        self.known.insert(id, None);
        let found = self.look(id, steps);
        self.known.insert(id, found);
        found
    }

    fn look(&mut self, id: Word, steps: u32) -> Option<u32> {
        let &definition = self.definitions.get(&id)?;
        let operand = |index: usize| definition.operands.get(index).and_then(Operand::id_ref_any);
        match definition.class.opcode {
            Op::AccessChain
            | Op::InBoundsAccessChain
            | Op::PtrAccessChain
            | Op::InBoundsPtrAccessChain
            | Op::CopyObject
            | Op::CopyLogical
            | Op::Bitcast
            | Op::ConvertPtrToU
            | Op::ConvertUToPtr
            | Op::CompositeConstruct
            | Op::CompositeExtract => self.of(operand(0)?, steps),
            Op::IAdd | Op::ISub => self.of(operand(0)?, steps).or_else(|| self.of(operand(1)?, steps)),
            Op::Select => self.of(operand(1)?, steps).or_else(|| self.of(operand(2)?, steps)),
            Op::Phi => {
                let values = definition.operands.iter().step_by(2).filter_map(Operand::id_ref_any);
                values.into_iter().find_map(|value| self.of(value, steps))
            }
            Op::FunctionParameter => self.of_place(id, steps),
            Op::Load => {
                let pointer = operand(0)?;
                let class = self.code.type_of(pointer).and_then(|ty| self.code.pointee(ty)).map(|(class, _)| class)?;
                match class {
                    StorageClass::PushConstant => self.argument(pointer),
                    StorageClass::PhysicalStorageBuffer => self.of(pointer, steps),
                    _ => self.of_place(pointer, steps),
                }
            }
            _ => None,
        }
    }

    /// As [`of`](Self::of), of what is stored to a place.
    fn of_place(&mut self, place: Word, steps: u32) -> Option<u32> {
        if let Some(&known) = self.places.get(&place) {
            return known;
        }
        let steps = steps.checked_sub(1)?;
        self.places.insert(place, None);
        let values = self.stored.get(&place).cloned().unwrap_or_default();
        let found = values.into_iter().find_map(|value| self.of(value, steps));
        self.places.insert(place, found);
        found
    }

    /// The offset of a member of the push constants.
    pub(super) fn argument(&self, pointer: Word) -> Option<u32> {
        let definition = self.definitions.get(&pointer)?;
        if !matches!(definition.class.opcode, Op::AccessChain | Op::InBoundsAccessChain) {
            return None;
        }
        let [Operand::IdRef(base), indices @ ..] = &definition.operands[..] else { return None };
        if *base != self.push {
            return None;
        }
        let (_, mut ty) = self.code.pointee(self.code.type_of(self.push)?)?;
        let mut offset = 0u32;
        for index in indices {
            let index = self.code.constant_value(index.id_ref_any()?)?;
            let declared = self.code.global(ty)?;
            match declared.class.opcode {
                Op::TypeStruct => {
                    offset = offset.checked_add(self.layouts.offset(ty, index)?)?;
                    ty = declared.operands.get(index as usize)?.id_ref_any()?;
                }
                Op::TypeArray => {
                    offset = offset.checked_add(self.layouts.array_stride(ty)?.checked_mul(index)?)?;
                    ty = declared.operands.first()?.id_ref_any()?;
                }
                _ => return None,
            }
        }
        Some(offset)
    }
}
