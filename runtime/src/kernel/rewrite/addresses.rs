//! Where pointers point, relative to each other: which are the same, and which differ by a constant.
//!
//! Values of a function get *numbers*: what computes the same from the same numbers has the same number, wherever it stands. An address is a
//! number, terms with their factors and a constant. Two addresses whose numbers and terms agree differ by their constants, wherever one of the
//! two dominates the other: both are then computed from what the same definitions gave last.

use super::code::Code;
use super::layout::{Layouts, MatrixLayout};
use rspirv::dr::{Function, Instruction, Operand};
use rspirv::spirv::{MemoryAccess, Op, Word};
use std::collections::{HashMap, HashSet};

/// Most terms of an address; one with more is a base of its own.
const MAX_TERMS: usize = 8;

/// An address, but for a constant: a base and what is added to it at run time, with its factor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Key {
    base: Word,
    terms: Vec<(Word, u32)>,
}

/// What a module says of its memory and its variables.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) layouts: &'a Layouts,
    /// Pointers to what need not lie in memory as its type says.
    pub(super) matrices: &'a HashMap<Word, MatrixLayout>,
    /// Global variables that do not change while the kernel runs.
    pub(super) fixed: &'a HashSet<Word>,
}

/// The addresses of a function.
pub(super) struct Addresses<'a> {
    known: Known<'a>,
    /// Of values that are not the first of their number: the first.
    same: HashMap<Word, Word>,
    found: HashMap<Word, (Key, u64)>,
    /// Pointers to variables that do not change, or to parts of them.
    fixed: HashSet<Word>,
    /// Values that follow from the operands of their instructions alone.
    pure: HashSet<Word>,
}

impl<'a> Addresses<'a> {
    pub(super) fn of(code: &Code, known: Known<'a>, function: &Function) -> Self {
        let mut addresses = Self {
            known,
            same: HashMap::new(),
            found: HashMap::new(),
            fixed: known.fixed.clone(),
            pure: HashSet::new(),
        };
        let mut numbers: HashMap<(Op, Option<Word>, Vec<Operand>), Word> = HashMap::new();
        for instruction in function.blocks.iter().flat_map(|block| &block.instructions) {
            let Some(id) = instruction.result_id else { continue };
            if addresses.follows(instruction) {
                addresses.pure.insert(id);
                let numbered = |operand: &Operand| match operand {
                    Operand::IdRef(id) => Operand::IdRef(addresses.number(*id)),
                    other => other.clone(),
                };
                let operands = instruction.operands.iter().map(numbered).collect();
                let first = *numbers.entry((instruction.class.opcode, instruction.result_type, operands)).or_insert(id);
                if first != id {
                    addresses.same.insert(id, first);
                }
            }
            if let Some(at) = addresses.follow(code, instruction) {
                addresses.found.insert(id, at);
            }
        }
        addresses
    }

    /// The first value of the same number.
    fn number(&self, value: Word) -> Word {
        self.same.get(&value).copied().unwrap_or(value)
    }

    /// Where a pointer, or an address as an integer, leads.
    pub(super) fn get(&self, pointer: Word) -> (Key, u64) {
        let plain = || (Key { base: self.number(pointer), terms: Vec::new() }, 0);
        self.found.get(&pointer).cloned().unwrap_or_else(plain)
    }

    /// Whether what a pointer points to need not lie as its type says.
    pub(super) fn is_matrix(&self, pointer: Word) -> bool {
        self.known.matrices.contains_key(&pointer)
    }

    /// Whether a value is the same whenever the operands of its instruction are.
    pub(super) fn is_pure(&self, value: Word) -> bool {
        self.pure.contains(&value)
    }

    /// Whether an instruction is such. Notes pointers to what does not change.
    fn follows(&mut self, instruction: &Instruction) -> bool {
        let first = instruction.operands.first().and_then(Operand::id_ref_any);
        match instruction.class.opcode {
            Op::AccessChain | Op::InBoundsAccessChain | Op::PtrAccessChain | Op::InBoundsPtrAccessChain => {
                if first.is_some_and(|base| self.fixed.contains(&base)) {
                    self.fixed.extend(instruction.result_id);
                }
                true
            }
            Op::Load => {
                let volatile = match instruction.operands.get(1) {
                    Some(Operand::MemoryAccess(bits)) => bits.contains(MemoryAccess::VOLATILE),
                    _ => false,
                };
                !volatile && first.is_some_and(|pointer| self.fixed.contains(&pointer))
            }
            opcode => computes(opcode),
        }
    }

    fn follow(&self, code: &Code, instruction: &Instruction) -> Option<(Key, u64)> {
        let operand = |index: usize| instruction.operands.get(index).and_then(Operand::id_ref_any);
        match instruction.class.opcode {
            Op::AccessChain | Op::InBoundsAccessChain => {
                let base = operand(0)?;
                if self.is_matrix(base) {
                    return None;
                }
                self.chain(code, base, &instruction.operands[1..])
            }
            Op::CopyObject | Op::ConvertPtrToU | Op::ConvertUToPtr | Op::Bitcast => {
                let (from, to) = (operand(0)?, instruction.result_id?);
                (is_address(code, from) && is_address(code, to)).then(|| self.get(from))
            }
            Op::IAdd if is_address(code, instruction.result_id?) => {
                let (left, right) = (operand(0)?, operand(1)?);
                let (value, constant) = match (long(code, left), long(code, right)) {
                    (None, Some(constant)) => (left, constant),
                    (Some(constant), None) => (right, constant),
                    _ => return None,
                };
                let (key, offset) = self.get(value);
                Some((key, offset.wrapping_add(constant)))
            }
            _ => None,
        }
    }

    fn chain(&self, code: &Code, base: Word, indices: &[Operand]) -> Option<(Key, u64)> {
        let mut ty = code.physical(base)?;
        let (mut key, mut offset) = self.get(base);
        for index in indices {
            let index = index.id_ref_any()?;
            let declared = code.global(ty)?;
            let element = declared.operands.first().and_then(Operand::id_ref_any);
            let layouts = self.known.layouts;
            let stride = match declared.class.opcode {
                Op::TypeStruct => {
                    let member = code.constant_value(index)?;
                    offset = offset.wrapping_add(u64::from(layouts.offset(ty, member)?));
                    ty = declared.operands.get(member as usize)?.id_ref_any()?;
                    continue;
                }
                Op::TypeArray | Op::TypeRuntimeArray => layouts.array_stride(ty)?,
                Op::TypeVector => layouts.scalar(code, ty, 0)?,
                // How a matrix lies is not said by its type.
                _ => return None,
            };
            match code.index_value(index) {
                Some(value) => offset = offset.wrapping_add((value as u64).wrapping_mul(u64::from(stride))),
                None if key.terms.len() == MAX_TERMS => return None,
                None => key.terms.push((self.number(index), stride)),
            }
            ty = element?;
        }
        key.terms.sort_unstable();
        Some((key, offset))
    }
}

/// Whether an operation's result follows from its operands alone.
fn computes(opcode: Op) -> bool {
    matches!(
        opcode,
        Op::IAdd
            | Op::ISub
            | Op::IMul
            | Op::ShiftLeftLogical
            | Op::ShiftRightLogical
            | Op::BitwiseAnd
            | Op::BitwiseOr
            | Op::BitwiseXor
            | Op::UConvert
            | Op::SConvert
            | Op::Bitcast
            | Op::ConvertUToPtr
            | Op::ConvertPtrToU
            | Op::CopyObject
            | Op::CompositeExtract
            | Op::CompositeConstruct
    )
}

/// Whether a value is a pointer to physical memory, or a 64-bit integer.
fn is_address(code: &Code, value: Word) -> bool {
    let ty = code.type_of(value).and_then(|ty| code.global(ty));
    let wide =
        |ty: &Instruction| ty.class.opcode == Op::TypeInt && ty.operands.first() == Some(&Operand::LiteralBit32(64));
    code.physical(value).is_some() || ty.is_some_and(wide)
}

/// The value of a 64-bit constant.
pub(super) fn long(code: &Code, value: Word) -> Option<u64> {
    let constant = code.global(value).filter(|constant| constant.class.opcode == Op::Constant)?;
    match constant.operands.first()? {
        Operand::LiteralBit64(value) => Some(*value),
        _ => None,
    }
}
