//! Sizes and offsets of types in memory, from their decorations.

use super::code::Code;
use rspirv::dr::Operand;
use rspirv::spirv::{Decoration, Op, Word};
use std::cell::RefCell;
use std::collections::HashMap;

/// Structures nested deeper than this are not looked into.
const MAX_DEPTH: u32 = 32;

/// Bytes by type, and by how matrices in it lie.
type Sizes = HashMap<(Word, Option<MatrixLayout>), Option<u64>>;

/// The decorations that lay types out.
#[derive(Default)]
pub(super) struct Layouts {
    offsets: HashMap<(Word, u32), u32>,
    array_strides: HashMap<Word, u32>,
    matrix_strides: HashMap<(Word, u32), u32>,
    row_major: HashMap<(Word, u32), bool>,
    /// What was worked out already: types may be made of the same ones many times over.
    sizes: RefCell<Sizes>,
    scalars: RefCell<HashMap<Word, Option<u32>>>,
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct MatrixLayout {
    pub(super) stride: u32,
    pub(super) row_major: bool,
}

impl Layouts {
    pub(super) fn of(code: &Code) -> Self {
        let mut layouts = Self::default();
        for annotation in &code.module.annotations {
            match annotation.operands[..] {
                [Operand::IdRef(ty), Operand::Decoration(Decoration::ArrayStride), Operand::LiteralBit32(stride)] => {
                    layouts.array_strides.insert(ty, stride);
                }
                [
                    Operand::IdRef(ty),
                    Operand::LiteralBit32(member),
                    Operand::Decoration(Decoration::Offset),
                    Operand::LiteralBit32(offset),
                ] => {
                    layouts.offsets.insert((ty, member), offset);
                }
                [
                    Operand::IdRef(ty),
                    Operand::LiteralBit32(member),
                    Operand::Decoration(Decoration::MatrixStride),
                    Operand::LiteralBit32(stride),
                ] => {
                    layouts.matrix_strides.insert((ty, member), stride);
                }
                [Operand::IdRef(ty), Operand::LiteralBit32(member), Operand::Decoration(Decoration::RowMajor)] => {
                    layouts.row_major.insert((ty, member), true);
                }
                _ => {}
            }
        }
        layouts
    }

    pub(super) fn offset(&self, structure: Word, member: u32) -> Option<u32> {
        self.offsets.get(&(structure, member)).copied()
    }

    pub(super) fn array_stride(&self, array: Word) -> Option<u32> {
        self.array_strides.get(&array).copied()
    }

    /// The layout of matrices in a member: decorations of the structure that holds it.
    pub(super) fn matrix(&self, structure: Word, member: u32) -> Option<MatrixLayout> {
        let stride = *self.matrix_strides.get(&(structure, member))?;
        Some(MatrixLayout { stride, row_major: self.row_major.contains_key(&(structure, member)) })
    }

    /// Bytes from the start of a value of this type to its end, without padding after it. `None` where they are
    /// not known: matrices outside of structures, lengths that are specialised, runtime arrays.
    pub(super) fn size(&self, code: &Code, ty: Word) -> Option<u64> {
        self.size_within(code, ty, None, 0)
    }

    /// As [`size`](Self::size), of a matrix that lies so, or an array of such.
    pub(super) fn size_within(&self, code: &Code, ty: Word, matrix: Option<MatrixLayout>, depth: u32) -> Option<u64> {
        if depth > MAX_DEPTH {
            return None;
        }
        if let Some(&known) = self.sizes.borrow().get(&(ty, matrix)) {
            return known;
        }
        let size = self.work_out_size(code, ty, matrix, depth);
        // Another type may hold this one where it is not too deep.
        if size.is_some() || depth == 0 {
            self.sizes.borrow_mut().insert((ty, matrix), size);
        }
        size
    }

    fn work_out_size(&self, code: &Code, ty: Word, matrix: Option<MatrixLayout>, depth: u32) -> Option<u64> {
        let declared = code.global(ty)?;
        let id = |index: usize| declared.operands.get(index).and_then(Operand::id_ref_any);
        let literal = |index: usize| match declared.operands.get(index) {
            Some(Operand::LiteralBit32(value)) => Some(u64::from(*value)),
            _ => None,
        };
        match declared.class.opcode {
            Op::TypeInt | Op::TypeFloat => Some(literal(0)? / 8),
            Op::TypePointer => Some(8),
            Op::TypeVector => self.size_within(code, id(0)?, None, depth + 1)?.checked_mul(literal(1)?),
            Op::TypeMatrix => {
                let matrix = matrix?;
                let column = code.global(id(0)?)?;
                let (Some(Operand::IdRef(component)), Some(Operand::LiteralBit32(rows))) =
                    (column.operands.first(), column.operands.get(1))
                else {
                    return None;
                };
                let component = self.size_within(code, *component, None, depth + 1)?;
                let (major, minor) =
                    if matrix.row_major { (u64::from(*rows), literal(1)?) } else { (literal(1)?, u64::from(*rows)) };
                u64::from(matrix.stride).checked_mul(major.checked_sub(1)?)?.checked_add(component.checked_mul(minor)?)
            }
            Op::TypeArray => {
                let count = u64::from(code.constant_value(id(1)?)?);
                let element = self.size_within(code, id(0)?, matrix, depth + 1)?;
                u64::from(self.array_stride(ty)?).checked_mul(count.checked_sub(1)?)?.checked_add(element)
            }
            Op::TypeStruct => {
                let mut size = 0;
                for (index, member) in declared.operands.iter().enumerate() {
                    let index = index as u32;
                    let member = self.size_within(code, member.id_ref_any()?, self.matrix(ty, index), depth + 1)?;
                    size = size.max(u64::from(self.offset(ty, index)?).checked_add(member)?);
                }
                Some(size)
            }
            _ => None,
        }
    }

    /// Bytes of the largest scalar in a type: what it is aligned to at least.
    pub(super) fn scalar(&self, code: &Code, ty: Word, depth: u32) -> Option<u32> {
        if depth > MAX_DEPTH {
            return None;
        }
        if let Some(&known) = self.scalars.borrow().get(&ty) {
            return known;
        }
        let scalar = self.work_out_scalar(code, ty, depth);
        if scalar.is_some() || depth == 0 {
            self.scalars.borrow_mut().insert(ty, scalar);
        }
        scalar
    }

    fn work_out_scalar(&self, code: &Code, ty: Word, depth: u32) -> Option<u32> {
        let declared = code.global(ty)?;
        match (declared.class.opcode, declared.operands.first()) {
            (Op::TypeInt | Op::TypeFloat, Some(Operand::LiteralBit32(bits))) => Some(bits / 8),
            (Op::TypePointer, _) => Some(8),
            (Op::TypeVector | Op::TypeMatrix | Op::TypeArray | Op::TypeRuntimeArray, Some(Operand::IdRef(element))) => {
                self.scalar(code, *element, depth + 1)
            }
            (Op::TypeStruct, _) => declared
                .operands
                .iter()
                .map(|member| self.scalar(code, member.id_ref_any()?, depth + 1))
                .try_fold(1, |largest, scalar| Some(largest.max(scalar?))),
            _ => None,
        }
    }
}
