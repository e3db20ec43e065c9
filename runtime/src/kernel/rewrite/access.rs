//! Translating accesses: what is loaded, stored or changed through a pointer to physical memory is so through the
//! address that the library makes of it, right before the access. Pointers themselves stay virtual, wherever they
//! are kept, passed or computed with.
//!
//! | accessed | translated as |
//! |---|---|
//! | neighbouring loads | one object ([`group`]) |
//! | a scalar or pointer, or anything aligned to its size | one address: it cannot straddle a page |
//! | another vector, structure or array | an object (a copy, should it straddle) |
//! | an object that cannot be one: over a page, or stored and not of whole words | its members, one by one |
//! | a matrix | one object, through a structure that says how it lies, for its pointer's type does not |
//! | a column of a row-major matrix | its scalars |

use super::addresses::Addresses;
use super::code::Code;
use super::covers::{Covers, Does, Span};
use super::error::RewriteError;
use super::group::{self, Group};
use super::hoist::Hoisted;
use super::layout::{Layouts, MatrixLayout};
use super::link::Linked;
use super::operands::{MemoryOperands, is_atomic, run_variant};
use super::runs::{Guess, Runs};
use super::sites::Sites;
use super::stats::RewriteStats;
use rspirv::dr::{Instruction, Operand};
use rspirv::spirv::{Op, StorageClass, Word};
use std::collections::{HashMap, HashSet};

const PAGE: u64 = crate::addr::PAGE_SIZE as u64;
/// Bytes of the longest integer or float that a device may have.
const LONGEST_SCALAR: u64 = 8;
/// What copies of straddling objects are aligned to, relative to the original.
const BOUNCE_ALIGN: u32 = 16;
/// Most scalars that one instruction is taken apart into.
const MAX_PARTS: u32 = 1024;
/// And all of a module's together: its size would no longer say how long rewriting it takes.
const MAX_ALL_PARTS: u32 = 1 << 15;

/// A pointer to an object, and what is known of it.
#[derive(Clone, Copy)]
struct Place {
    pointer: Word,
    /// The pointer's type.
    ty: Word,
    pointee: Word,
    align: u32,
    /// How the matrix lies that this is, or that this is a column of.
    matrix: Option<MatrixLayout>,
    /// The run that it most likely lies in.
    run: Option<Guess>,
}

/// How a place is accessed.
enum Plan {
    Whole,
    Object(u32),
    Parts,
}

/// Rewrites the accesses of functions.
pub(super) struct Translator<'a> {
    pub(super) code: &'a mut Code,
    pub(super) layouts: &'a Layouts,
    pub(super) linked: &'a Linked,
    pub(super) stats: &'a mut RewriteStats,
    /// Where the function's pointers point.
    pub(super) addresses: &'a Addresses<'a>,
    /// Translations made before, and those made ahead of loops.
    pub(super) covers: Covers<'a>,
    pub(super) hoisted: &'a Hoisted,
    /// Matrix layouts of pointers into structures, by pointer.
    pub(super) matrices: &'a HashMap<Word, MatrixLayout>,
    /// Runs of the arguments.
    pub(super) runs: &'a Runs,
    /// Places in the source, and the number of the instruction at hand.
    pub(super) sites: &'a mut Sites,
    pub(super) site: u32,
    /// Parts made of the instruction at hand.
    pub(super) parts: u32,
    /// The block at hand.
    pub(super) block: usize,
}

impl Translator<'_> {
    /// Rewrites a block's instructions.
    pub(super) fn translate_block(
        &mut self,
        block: usize,
        instructions: Vec<Instruction>,
    ) -> Result<Vec<Instruction>, RewriteError> {
        self.block = block;
        self.covers.enter(block);
        let mut out = Vec::with_capacity(instructions.len() * 2);
        let groups = group::find(self.code, self.layouts, self.addresses, &instructions);
        let mut made = HashSet::new();
        self.sites.enter_block();
        for (at, instruction) in instructions.iter().enumerate() {
            self.sites.note(instruction);
            if self.accesses(instruction) {
                self.site = self.sites.number(instruction);
            }
            if let Some(group) = groups.get(&at).filter(|group| !self.covers_all(group, &instructions)) {
                self.load_group(group, &instructions, &mut out)?;
                made.extend(group.members.iter().map(|member| member.at));
            }
            if made.contains(&at) {
                continue;
            }
            let instruction = instruction.clone();
            self.parts = 0;
            let physical = |code: &Code, index: usize| {
                let id = instruction.operands.get(index).and_then(Operand::id_ref_any);
                id.is_some_and(|id| code.physical(id).is_some())
            };
            match instruction.class.opcode {
                Op::Load if physical(self.code, 0) => self.load(instruction, &mut out)?,
                Op::Store if physical(self.code, 0) => self.store(instruction, &mut out)?,
                Op::CopyMemory if physical(self.code, 0) || physical(self.code, 1) => {
                    self.copy(&instruction, &mut out)?;
                }
                opcode if is_atomic(opcode) => {
                    // Stores have no result: the pointer is always the first operand.
                    if physical(self.code, 0) {
                        self.atomic(instruction, &mut out)?;
                    } else {
                        out.push(instruction);
                    }
                }
                _ => out.push(instruction),
            }
        }
        Ok(out)
    }

    fn place(&self, instruction: &Instruction, pointer: Word, align: Option<u32>) -> Result<Place, RewriteError> {
        let (Some(ty), Some(pointee)) = (self.code.type_of(pointer), self.code.physical(pointer)) else {
            return Err(self.code.unsupported(instruction, "its pointer has no type"));
        };
        let scalar = self
            .layouts
            .scalar(self.code, pointee, 0)
            .ok_or_else(|| self.code.unsupported(instruction, "what it accesses has no layout in memory"))?;
        let align = align.filter(|align| align.is_power_of_two()).unwrap_or(1).max(scalar);
        let matrix = self.matrices.get(&pointer).copied();
        Ok(Place { pointer, ty, pointee, align, matrix, run: self.runs.of_pointer(pointer) })
    }

    fn emit(&mut self, out: &mut Vec<Instruction>, opcode: Op, ty: Word, operands: Vec<Operand>) -> Word {
        let id = self.code.fresh_value(ty);
        out.push(Instruction::new(opcode, Some(ty), Some(id), operands));
        id
    }

    /// Whether an instruction will be translated.
    fn accesses(&self, instruction: &Instruction) -> bool {
        let physical = |index: usize| {
            let id = instruction.operands.get(index).and_then(Operand::id_ref_any);
            id.is_some_and(|id| self.code.physical(id).is_some())
        };
        match instruction.class.opcode {
            Op::Load | Op::Store => physical(0),
            Op::CopyMemory => physical(0) || physical(1),
            opcode => is_atomic(opcode) && physical(0),
        }
    }

    /// The address to translate; from now on the invocation is at the access at hand.
    fn address_of(&mut self, out: &mut Vec<Instruction>, pointer: Word) -> Result<Word, RewriteError> {
        let (void, site) = (self.code.void(), self.code.constant(self.site));
        let function = self.linked.function("link_site")?;
        self.emit(out, Op::FunctionCall, void, [function, site].map(Operand::IdRef).to_vec());
        let ulong = self.code.uint(64);
        Ok(self.emit(out, Op::ConvertPtrToU, ulong, vec![Operand::IdRef(pointer)]))
    }

    /// Calls a translation of the library, the one for runs if there is one.
    fn call(
        &mut self,
        out: &mut Vec<Instruction>,
        function: &str,
        address: Word,
        bytes: Option<u32>,
        run: Option<Guess>,
    ) -> Result<Word, RewriteError> {
        self.stats.translations += 1;
        let ulong = self.code.uint(64);
        let bytes = bytes.map(|bytes| self.code.constant(bytes));
        let (function, run) = match run {
            Some(run) => {
                self.stats.runs += 1;
                (run_variant(function, run.origin), Some(Runs::load(self.code, self.linked, run.run, out)))
            }
            None => (function, None),
        };
        let operands = [self.linked.function(function)?, address].into_iter().chain(bytes);
        let operands = operands.chain(run.into_iter().flatten()).map(Operand::IdRef).collect();
        Ok(self.emit(out, Op::FunctionCall, ulong, operands))
    }

    /// The pointer for the access, as `function` of the library translates it; and both addresses.
    fn translate(
        &mut self,
        out: &mut Vec<Instruction>,
        place: Place,
        function: &str,
        bytes: Option<u32>,
    ) -> Result<(Word, Word, Word), RewriteError> {
        let address = self.address_of(out, place.pointer)?;
        let does = match (function, bytes) {
            ("link_read", None) => Some(Does::Read),
            ("link_write", None) => Some(Does::Write),
            ("link_atomic", None) => Some(Does::Atomic),
            _ => None,
        };
        let translated = match does.zip(self.span(place)) {
            Some((does, span)) => self.look_up(out, function, place, address, span, does)?,
            None => self.call(out, function, address, bytes, place.run)?,
        };
        let whole = self.code.global(place.pointee).map(|ty| ty.class.opcode) == Some(Op::TypeMatrix);
        let pointer = match place.matrix.filter(|_| whole) {
            Some(matrix) => {
                let holder = self.code.matrix_holder(place.pointee, matrix);
                let class = StorageClass::PhysicalStorageBuffer;
                let holder = self.code.pointer(class, holder);
                let held = self.emit(out, Op::ConvertUToPtr, holder, vec![Operand::IdRef(translated)]);
                let member = self.code.constant(0);
                self.emit(out, Op::AccessChain, place.ty, [held, member].map(Operand::IdRef).to_vec())
            }
            None => self.emit(out, Op::ConvertUToPtr, place.ty, vec![Operand::IdRef(translated)]),
        };
        Ok((pointer, address, translated))
    }

    /// What an access that cannot straddle a page reaches.
    fn span(&self, place: Place) -> Option<Span> {
        let bytes = self.layouts.size(self.code, place.pointee)?;
        let (key, offset) = self.addresses.get(place.pointer);
        (bytes <= u64::from(place.align)).then_some(Span { key, offset, bytes, align: u64::from(place.align) })
    }

    /// The device address of an access that cannot straddle a page: from what covers it, from ahead of its loop, or translated.
    fn look_up(
        &mut self,
        out: &mut Vec<Instruction>,
        function: &str,
        place: Place,
        address: Word,
        span: Span,
        does: Does,
    ) -> Result<Word, RewriteError> {
        let ulong = self.code.uint(64);
        if let Some(covered) = self.covers.find(&span, does) {
            self.stats.covered += 1;
            let mut known = covered.translated;
            if covered.distance != 0 {
                let distance = self.code.long(covered.distance);
                known = self.emit(out, Op::IAdd, ulong, [known, distance].map(Operand::IdRef).to_vec());
            }
            let distance = self.code.constant(covered.distance as u32);
            let operands = [self.linked.function(covered.function)?, address, known, distance].map(Operand::IdRef);
            return Ok(self.emit(out, Op::FunctionCall, ulong, operands.to_vec()));
        }
        let own = self.addresses.get(place.pointer).1 == span.offset;
        let peeked = if own && does == Does::Read { self.hoisted.get(self.block, place.pointer) } else { None };
        let translated = match peeked {
            Some(peeked) => {
                self.stats.hoisted += 1;
                let operands = [self.linked.function("link_hoisted_read")?, address, peeked].map(Operand::IdRef);
                self.emit(out, Op::FunctionCall, ulong, operands.to_vec())
            }
            None => self.call(out, function, address, None, place.run)?,
        };
        self.covers.note(span, does, translated);
        Ok(translated)
    }

    /// Whether each load of a group is covered by what was translated before.
    fn covers_all(&self, group: &Group, block: &[Instruction]) -> bool {
        group.members.iter().all(|member| {
            let load = &block[member.at];
            let Ok((pointer, memory)) = self.operands(load, 1) else { return false };
            let Ok(place) = self.place(load, pointer, memory.align) else { return false };
            self.span(place).is_some_and(|span| self.covers.find(&span, Does::Read).is_some())
        })
    }

    /// Makes loads together, where the first of them is.
    fn load_group(
        &mut self,
        group: &Group,
        block: &[Instruction],
        out: &mut Vec<Instruction>,
    ) -> Result<(), RewriteError> {
        let Some(first) = group.members.first() else { return Ok(()) };
        let (pointer, _) = self.operands(&block[first.at], 1)?;
        let ulong = self.code.uint(64);
        let mut address = self.address_of(out, pointer)?;
        if first.offset > 0 {
            let offset = self.code.long(first.offset.wrapping_neg());
            address = self.emit(out, Op::IAdd, ulong, [address, offset].map(Operand::IdRef).to_vec());
        }
        let translated = match group.on_one_page {
            Some(align) => {
                let place = self.place(&block[first.at], pointer, Some(align as u32))?;
                let (key, offset) = self.addresses.get(pointer);
                let span = Span { key, offset: offset.wrapping_sub(first.offset), bytes: group.bytes, align };
                self.look_up(out, "link_read", place, address, span, Does::Read)?
            }
            None => {
                let bytes = Some(group.bytes as u32);
                self.call(out, "link_read_object", address, bytes, self.runs.of_pointer(pointer))?
            }
        };
        for member in &group.members {
            let load = &block[member.at];
            let (pointer, memory) = self.operands(load, 1)?;
            let place = self.place(load, pointer, memory.align)?;
            self.stats.loads += 1;
            let mut at = translated;
            if member.offset > 0 {
                let offset = self.code.long(member.offset);
                at = self.emit(out, Op::IAdd, ulong, [at, offset].map(Operand::IdRef).to_vec());
            }
            let pointer = self.emit(out, Op::ConvertUToPtr, place.ty, vec![Operand::IdRef(at)]);
            let align = if group.on_one_page.is_some() { place.align } else { place.align.min(BOUNCE_ALIGN) };
            let operands = std::iter::once(Operand::IdRef(pointer)).chain(memory.operands(Some(align))).collect();
            out.push(Instruction::new(Op::Load, load.result_type, load.result_id, operands));
        }
        self.stats.merged += group.members.len() as u32 - 1;
        Ok(())
    }

    fn load(&mut self, instruction: Instruction, out: &mut Vec<Instruction>) -> Result<(), RewriteError> {
        let (pointer, memory) = self.operands(&instruction, 1)?;
        self.stats.loads += 1;
        let place = self.place(&instruction, pointer, memory.align)?;
        self.load_place(&instruction, place, &memory, instruction.result_id, out).map(drop)
    }

    /// Loads a place; the value gets the id `result`, or a new one.
    fn load_place(
        &mut self,
        origin: &Instruction,
        place: Place,
        memory: &MemoryOperands,
        result: Option<Word>,
        out: &mut Vec<Instruction>,
    ) -> Result<Word, RewriteError> {
        let plan = self.plan(origin, place, false)?;
        let id = result.unwrap_or_else(|| self.code.fresh_value(place.pointee));
        match plan {
            Plan::Whole | Plan::Object(_) => {
                let (function, bytes, align) = match plan {
                    Plan::Object(bytes) => ("link_read_object", Some(bytes), place.align.min(BOUNCE_ALIGN)),
                    _ => ("link_read", None, place.align),
                };
                let (pointer, ..) = self.translate(out, place, function, bytes)?;
                let operands = std::iter::once(Operand::IdRef(pointer)).chain(memory.operands(Some(align))).collect();
                out.push(Instruction::new(Op::Load, Some(place.pointee), Some(id), operands));
            }
            Plan::Parts => {
                let mut values = Vec::new();
                for part in self.parts_of(origin, place, out)? {
                    values.push(Operand::IdRef(self.load_place(origin, part, memory, None, out)?));
                }
                out.push(Instruction::new(Op::CompositeConstruct, Some(place.pointee), Some(id), values));
            }
        }
        Ok(id)
    }

    fn store(&mut self, instruction: Instruction, out: &mut Vec<Instruction>) -> Result<(), RewriteError> {
        let (pointer, memory) = self.operands(&instruction, 2)?;
        let Some(Operand::IdRef(object)) = instruction.operands.get(1).cloned() else {
            return Err(self.code.unsupported(&instruction, "it stores nothing"));
        };
        self.stats.stores += 1;
        let place = self.place(&instruction, pointer, memory.align)?;
        self.store_place(&instruction, place, &memory, object, out)
    }

    fn store_place(
        &mut self,
        origin: &Instruction,
        place: Place,
        memory: &MemoryOperands,
        object: Word,
        out: &mut Vec<Instruction>,
    ) -> Result<(), RewriteError> {
        let store = |pointer, align| {
            let operands = [Operand::IdRef(pointer), Operand::IdRef(object)];
            let operands = operands.into_iter().chain(memory.operands(Some(align))).collect();
            Instruction::new(Op::Store, None, None, operands)
        };
        match self.plan(origin, place, true)? {
            Plan::Whole => {
                let (pointer, ..) = self.translate(out, place, "link_write", None)?;
                out.push(store(pointer, place.align));
            }
            Plan::Object(bytes) => {
                let (pointer, address, translated) = self.translate(out, place, "link_begin_write", Some(bytes))?;
                out.push(store(pointer, place.align.min(BOUNCE_ALIGN)));
                let (void, bytes) = (self.code.void(), self.code.constant(bytes));
                let end = self.linked.function("link_end_write")?;
                let operands = [end, address, bytes, translated].map(Operand::IdRef).to_vec();
                self.emit(out, Op::FunctionCall, void, operands);
            }
            Plan::Parts => {
                for (index, part) in self.parts_of(origin, place, out)?.into_iter().enumerate() {
                    let operands = vec![Operand::IdRef(object), Operand::LiteralBit32(index as u32)];
                    let value = self.emit(out, Op::CompositeExtract, part.pointee, operands);
                    self.store_place(origin, part, memory, value, out)?;
                }
            }
        }
        Ok(())
    }

    /// A copy is a load and a store.
    fn copy(&mut self, instruction: &Instruction, out: &mut Vec<Instruction>) -> Result<(), RewriteError> {
        let malformed = |code: &Code| code.unsupported(instruction, "its operands cannot be read");
        let (Some(Operand::IdRef(target)), Some(Operand::IdRef(source))) =
            (instruction.operands.first(), instruction.operands.get(1))
        else {
            return Err(malformed(self.code));
        };
        let (first, rest) = MemoryOperands::parse(&instruction.operands[2..]).ok_or_else(|| malformed(self.code))?;
        let (to, from) = if rest.is_empty() {
            (first.for_store(), first.for_load())
        } else {
            let (second, _) = MemoryOperands::parse(rest).ok_or_else(|| malformed(self.code))?;
            (first, second)
        };
        let ty = self.code.type_of(*source).and_then(|ty| self.code.pointee(ty));
        let Some((_, pointee)) = ty else { return Err(malformed(self.code)) };
        let value = self.code.fresh_value(pointee);
        let operands = std::iter::once(Operand::IdRef(*source)).chain(from.operands(from.align)).collect();
        let load = Instruction::new(Op::Load, Some(pointee), Some(value), operands);
        let operands = [Operand::IdRef(*target), Operand::IdRef(value)];
        let operands = operands.into_iter().chain(to.operands(to.align)).collect();
        let store = Instruction::new(Op::Store, None, None, operands);
        for part in [load, store] {
            let physical = part.operands[0].id_ref_any().is_some_and(|id| self.code.physical(id).is_some());
            match part.class.opcode {
                Op::Load if physical => self.load(part, out)?,
                Op::Store if physical => self.store(part, out)?,
                _ => out.push(part),
            }
        }
        Ok(())
    }

    fn atomic(&mut self, mut instruction: Instruction, out: &mut Vec<Instruction>) -> Result<(), RewriteError> {
        let Some(pointer) = instruction.operands.first().and_then(Operand::id_ref_any) else { return Ok(()) };
        self.stats.atomics += 1;
        let place = self.place(&instruction, pointer, None)?;
        if self.scalar_bytes(place.pointee).is_none() {
            return Err(self.code.unsupported(&instruction, "atomics are of integers and floats of at most 64 bits"));
        }
        let function = if instruction.class.opcode == Op::AtomicLoad { "link_read" } else { "link_atomic" };
        let (pointer, ..) = self.translate(out, place, function, None)?;
        instruction.operands[0] = Operand::IdRef(pointer);
        out.push(instruction);
        Ok(())
    }

    fn operands(&self, instruction: &Instruction, before: usize) -> Result<(Word, MemoryOperands), RewriteError> {
        let pointer = instruction.operands.first().and_then(Operand::id_ref_any);
        let memory = MemoryOperands::parse(instruction.operands.get(before..).unwrap_or_default());
        match (pointer, memory) {
            (Some(pointer), Some((memory, []))) => Ok((pointer, memory)),
            _ => Err(self.code.unsupported(instruction, "it has memory operands that are not known")),
        }
    }

    /// The size of an integer or float that a device may have.
    fn scalar_bytes(&self, ty: Word) -> Option<u64> {
        let scalar = matches!(self.code.global(ty)?.class.opcode, Op::TypeInt | Op::TypeFloat);
        let bytes = self.layouts.scalar(self.code, ty, 0).map(u64::from);
        bytes.filter(|&bytes| scalar && bytes <= LONGEST_SCALAR)
    }

    fn plan(&mut self, origin: &Instruction, place: Place, store: bool) -> Result<Plan, RewriteError> {
        let opcode = self.code.global(place.pointee).map(|ty| ty.class.opcode);
        if opcode == Some(Op::TypeVector) && place.scattered() {
            return Ok(Plan::Parts);
        }
        let matrix = opcode == Some(Op::TypeMatrix);
        if matrix && place.matrix.is_none() {
            return Err(self.code.unsupported(
                origin,
                "it is not known how the matrix lies in memory; access it through the structure it is in",
            ));
        }
        let size = self.layouts.size_within(self.code, place.pointee, place.matrix.filter(|_| matrix), 0);
        let Some(size) = size else {
            return Err(self.code.unsupported(origin, "the size of what it accesses is not known"));
        };
        let scalar = matches!(opcode, Some(Op::TypeInt | Op::TypeFloat | Op::TypePointer));
        if scalar && size > LONGEST_SCALAR {
            return Err(self.code.unsupported(origin, "integers and floats are of at most 64 bits"));
        }
        if scalar || (size <= u64::from(place.align) && size <= PAGE && !matrix) {
            return Ok(Plan::Whole);
        }
        let words = size.is_multiple_of(4) && place.align >= 4;
        if size <= PAGE && (words || !store) { Ok(Plan::Object(size as u32)) } else { Ok(Plan::Parts) }
    }

    /// Pointers to the members of what a place holds.
    fn parts_of(
        &mut self,
        origin: &Instruction,
        place: Place,
        out: &mut Vec<Instruction>,
    ) -> Result<Vec<Place>, RewriteError> {
        let unknown = |code: &Code| code.unsupported(origin, "the layout of what it accesses is not known");
        let declared = self.code.global(place.pointee).ok_or_else(|| unknown(self.code))?.clone();
        let element = declared.operands.first().and_then(Operand::id_ref_any);
        let literal = match declared.operands.get(1) {
            Some(Operand::LiteralBit32(count)) if *count <= MAX_PARTS => Some(*count),
            _ => None,
        };
        // Each part's type, offset and matrix layout; offsets only serve to know its alignment.
        let parts: Option<Vec<(Word, u32, Option<MatrixLayout>)>> = match declared.class.opcode {
            Op::TypeVector => element.zip(literal).and_then(|(element, count)| {
                let size = self.layouts.scalar(self.code, element, 0)?;
                let apart = match place.matrix {
                    Some(matrix) if matrix.row_major => matrix.stride,
                    _ => size,
                };
                Some((0..count).map(|index| (element, index.wrapping_mul(apart), None)).collect())
            }),
            Op::TypeMatrix => {
                let matrix = place.matrix.ok_or_else(|| unknown(self.code))?;
                element.zip(literal).and_then(|(column, count)| {
                    let apart =
                        if matrix.row_major { self.layouts.scalar(self.code, column, 0)? } else { matrix.stride };
                    Some((0..count).map(|index| (column, index.wrapping_mul(apart), Some(matrix))).collect())
                })
            }
            Op::TypeArray => element.and_then(|element| {
                let count = self.code.constant_value(declared.operands.get(1)?.id_ref_any()?)?;
                let stride = self.layouts.array_stride(place.pointee)?;
                // One more than is taken apart says that they are too many.
                let count = count.min(MAX_PARTS + 1);
                Some((0..count).map(|index| (element, index.wrapping_mul(stride), place.matrix)).collect())
            }),
            Op::TypeStruct => declared
                .operands
                .iter()
                .enumerate()
                .map(|(index, member)| {
                    let index = index as u32;
                    let offset = self.layouts.offset(place.pointee, index)?;
                    Some((member.id_ref_any()?, offset, self.layouts.matrix(place.pointee, index)))
                })
                .collect(),
            _ => None,
        };
        let parts = parts.ok_or_else(|| unknown(self.code))?;
        self.parts = self.parts.saturating_add(parts.len() as u32);
        if self.parts > MAX_PARTS {
            let reason = format!("it accesses more than {MAX_PARTS} members at once; access them in a loop");
            return Err(self.code.unsupported(origin, reason));
        }
        self.code.parts = self.code.parts.saturating_add(parts.len() as u32);
        if self.code.parts > MAX_ALL_PARTS {
            let reason =
                format!("the module accesses more than {MAX_ALL_PARTS} members so; use words, aligned to four");
            return Err(self.code.unsupported(origin, reason));
        }
        let (class, _) = self.code.pointee(place.ty).ok_or_else(|| unknown(self.code))?;
        let mut places = Vec::with_capacity(parts.len());
        for (index, (pointee, offset, matrix)) in parts.into_iter().enumerate() {
            let ty = self.code.pointer(class, pointee);
            let index = self.code.constant(index as u32);
            let operands = vec![Operand::IdRef(place.pointer), Operand::IdRef(index)];
            let pointer = self.emit(out, Op::AccessChain, ty, operands);
            let scalar = self.layouts.scalar(self.code, pointee, 0).ok_or_else(|| unknown(self.code))?;
            let known = if offset == 0 { place.align } else { place.align.min(1 << offset.trailing_zeros()) };
            places.push(Place { pointer, ty, pointee, align: known.max(scalar), matrix, run: place.run });
        }
        Ok(places)
    }
}

impl Place {
    /// Whether the components of a vector do not follow each other.
    fn scattered(&self) -> bool {
        self.matrix.is_some_and(|matrix| matrix.row_major)
    }
}
