//! A module being rewritten: what its ids are, and new ones.
//!
//! Types and constants are found or made; the specification forbids two declarations of the same type that is
//! neither aggregate nor pointer, so such types are only made through here.

use super::error::RewriteError;
use super::layout::MatrixLayout;
use rspirv::dr::{Instruction, Module, Operand};
use rspirv::spirv::{BuiltIn, Decoration, Op, StorageClass, Word};
use std::collections::HashMap;

/// Most operands of an instruction that a message shows.
const MOST_SHOWN: usize = 16;
/// Most letters of a name that a message shows.
const LONGEST_NAME: usize = 60;

/// As much of a name as a message shows.
pub(in crate::kernel) fn short(name: &str) -> String {
    name.chars().take(LONGEST_NAME).collect()
}

/// A module with an index over its ids.
pub(super) struct Code {
    pub(super) module: Module,
    /// Of each id that is a value: its type. 0 for others.
    types: Vec<Word>,
    /// Of each id that is a global: its place, counted from 1. 0 for others.
    globals: Vec<u32>,
    /// Types and constants made or looked for, by what they are.
    interned: HashMap<(Op, Option<Word>, Vec<Operand>), Word>,
    /// Structures around matrices.
    matrix_holders: HashMap<(Word, MatrixLayout), Word>,
    /// Members that instructions were taken apart into so far.
    pub(super) parts: u32,
}

impl Code {
    pub(super) fn new(module: Module) -> Self {
        let bound = module.header.as_ref().map_or(1, |header| header.bound) as usize;
        let mut code = Self {
            module: Module::new(),
            types: vec![0; bound],
            globals: vec![0; bound],
            interned: HashMap::new(),
            matrix_holders: HashMap::new(),
            parts: 0,
        };
        for instruction in module.all_inst_iter() {
            code.note(instruction);
        }
        for (index, global) in module.types_global_values.iter().enumerate() {
            code.note_global(index, global);
        }
        code.module = module;
        code
    }

    fn note(&mut self, instruction: &Instruction) {
        // The type of a function is that of its result.
        if let (Some(id), Some(ty)) = (instruction.result_id, instruction.result_type)
            && instruction.class.opcode != Op::Function
        {
            self.types[id as usize] = ty;
        }
    }

    fn note_global(&mut self, index: usize, global: &Instruction) {
        let Some(id) = global.result_id else { return };
        self.globals[id as usize] = index as u32 + 1;
        let opcode = global.class.opcode;
        if is_unique_type(opcode) || matches!(opcode, Op::Constant | Op::ConstantNull) {
            self.interned.entry((opcode, global.result_type, global.operands.clone())).or_insert(id);
        }
    }

    /// A new id.
    pub(super) fn fresh(&mut self) -> Word {
        self.types.push(0);
        self.globals.push(0);
        self.types.len() as Word - 1
    }

    /// A new id for a value of type `ty`.
    pub(super) fn fresh_value(&mut self, ty: Word) -> Word {
        let id = self.fresh();
        self.types[id as usize] = ty;
        id
    }

    pub(super) fn bound(&self) -> Word {
        self.types.len() as Word
    }

    /// The type of a value.
    pub(super) fn type_of(&self, value: Word) -> Option<Word> {
        self.types.get(value as usize).copied().filter(|&ty| ty != 0)
    }

    /// Changes what is known of a value's type; its instruction is the caller's to change.
    pub(super) fn set_type(&mut self, value: Word, ty: Word) {
        self.types[value as usize] = ty;
    }

    /// The type, constant or variable at module scope with this id.
    pub(super) fn global(&self, id: Word) -> Option<&Instruction> {
        let index = *self.globals.get(id as usize)?;
        self.module.types_global_values.get((index as usize).checked_sub(1)?)
    }

    /// Adds a type, constant or variable at module scope.
    pub(super) fn add_global(&mut self, global: Instruction) {
        self.note(&global);
        self.note_global(self.module.types_global_values.len(), &global);
        self.module.types_global_values.push(global);
    }

    /// Takes variables away from module scope.
    pub(super) fn remove_globals(&mut self, gone: &[Word]) {
        self.module.types_global_values.retain(|global| global.result_id.is_none_or(|id| !gone.contains(&id)));
        self.globals.fill(0);
        for (index, global) in self.module.types_global_values.iter().enumerate() {
            if let Some(id) = global.result_id {
                self.globals[id as usize] = index as u32 + 1;
            }
        }
    }

    /// The type or constant that is so, found or made.
    pub(super) fn intern(&mut self, opcode: Op, ty: Option<Word>, operands: Vec<Operand>) -> Word {
        let key = (opcode, ty, operands);
        if let Some(&id) = self.interned.get(&key) {
            return id;
        }
        let id = self.fresh();
        let (opcode, ty, operands) = key.clone();
        self.interned.insert(key, id);
        self.add_global(Instruction::new(opcode, ty, Some(id), operands));
        id
    }

    pub(super) fn uint(&mut self, bits: u32) -> Word {
        self.intern(Op::TypeInt, None, vec![Operand::LiteralBit32(bits), Operand::LiteralBit32(0)])
    }

    pub(super) fn bool(&mut self) -> Word {
        self.intern(Op::TypeBool, None, Vec::new())
    }

    pub(super) fn void(&mut self) -> Word {
        self.intern(Op::TypeVoid, None, Vec::new())
    }

    pub(super) fn vector(&mut self, component: Word, count: u32) -> Word {
        self.intern(Op::TypeVector, None, vec![Operand::IdRef(component), Operand::LiteralBit32(count)])
    }

    /// A pointer type; pointer types may be declared twice.
    pub(super) fn pointer(&mut self, class: StorageClass, pointee: Word) -> Word {
        self.intern(Op::TypePointer, None, vec![Operand::StorageClass(class), Operand::IdRef(pointee)])
    }

    pub(super) fn constant(&mut self, value: u32) -> Word {
        let uint = self.uint(32);
        self.intern(Op::Constant, Some(uint), vec![Operand::LiteralBit32(value)])
    }

    pub(super) fn long(&mut self, value: u64) -> Word {
        let ulong = self.uint(64);
        self.intern(Op::Constant, Some(ulong), vec![Operand::LiteralBit64(value)])
    }

    pub(super) fn null(&mut self, ty: Word) -> Word {
        self.intern(Op::ConstantNull, Some(ty), Vec::new())
    }

    /// A structure whose only member is a matrix that lies so.
    pub(super) fn matrix_holder(&mut self, matrix: Word, layout: MatrixLayout) -> Word {
        if let Some(&holder) = self.matrix_holders.get(&(matrix, layout)) {
            return holder;
        }
        let holder = self.fresh();
        self.add_global(Instruction::new(Op::TypeStruct, None, Some(holder), vec![Operand::IdRef(matrix)]));
        let major = if layout.row_major { Decoration::RowMajor } else { Decoration::ColMajor };
        let (offset, stride) = (Operand::LiteralBit32(0), Operand::LiteralBit32(layout.stride));
        for (decoration, operand) in
            [(Decoration::Offset, Some(offset)), (Decoration::MatrixStride, Some(stride)), (major, None)]
        {
            let operands = [Operand::IdRef(holder), Operand::LiteralBit32(0), Operand::Decoration(decoration)];
            let operands = operands.into_iter().chain(operand).collect();
            self.module.annotations.push(Instruction::new(Op::MemberDecorate, None, None, operands));
        }
        self.matrix_holders.insert((matrix, layout), holder);
        holder
    }

    /// Storage class and pointee of a pointer type.
    pub(super) fn pointee(&self, ty: Word) -> Option<(StorageClass, Word)> {
        let ty = self.global(ty).filter(|ty| ty.class.opcode == Op::TypePointer)?;
        match ty.operands[..] {
            [Operand::StorageClass(class), Operand::IdRef(pointee)] => Some((class, pointee)),
            _ => None,
        }
    }

    /// Whether a value is a pointer to physical memory; and to what.
    pub(super) fn physical(&self, value: Word) -> Option<Word> {
        let (class, pointee) = self.pointee(self.type_of(value)?)?;
        (class == StorageClass::PhysicalStorageBuffer).then_some(pointee)
    }

    /// The value of a 32-bit integer constant that is not specialised.
    pub(super) fn constant_value(&self, id: Word) -> Option<u32> {
        let constant = self.global(id).filter(|constant| constant.class.opcode == Op::Constant)?;
        match constant.operands.first()? {
            Operand::LiteralBit32(value) => Some(*value),
            Operand::LiteralBit64(value) => u32::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The value of an integer constant as an index of an access chain, which is signed whatever its type says.
    pub(super) fn index_value(&self, id: Word) -> Option<i64> {
        let constant = self.global(id).filter(|constant| constant.class.opcode == Op::Constant)?;
        let width = self.global(constant.result_type?)?.operands.first()?;
        match (constant.operands.first()?, width) {
            (Operand::LiteralBit32(value), Operand::LiteralBit32(8)) => Some(i64::from(*value as i8)),
            (Operand::LiteralBit32(value), Operand::LiteralBit32(16)) => Some(i64::from(*value as i16)),
            (Operand::LiteralBit32(value), _) => Some(i64::from(*value as i32)),
            (Operand::LiteralBit64(value), _) => Some(*value as i64),
            _ => None,
        }
    }

    /// The id that is decorated as this built-in.
    pub(super) fn built_in(&self, wanted: BuiltIn) -> Option<Word> {
        self.module.annotations.iter().find_map(|annotation| match annotation.operands[..] {
            [Operand::IdRef(target), Operand::Decoration(Decoration::BuiltIn), Operand::BuiltIn(found)]
                if annotation.class.opcode == Op::Decorate && found == wanted =>
            {
                Some(target)
            }
            _ => None,
        })
    }

    /// An instruction that cannot be dealt with.
    pub(super) fn unsupported(&self, instruction: &Instruction, reason: impl Into<String>) -> RewriteError {
        RewriteError::Unsupported { instruction: self.show(instruction), reason: reason.into() }
    }

    /// An instruction in words, with the names that debug information has for its operands.
    pub(super) fn show(&self, instruction: &Instruction) -> String {
        let name = |id: Word| {
            let given = self.module.debug_names.iter().find_map(|name| match &name.operands[..] {
                [Operand::IdRef(target), Operand::LiteralString(text)] if *target == id && !text.is_empty() => {
                    Some(text)
                }
                _ => None,
            });
            given.map_or_else(|| format!("%{id}"), |text| format!("%{}", short(text)))
        };
        let mut text = instruction.result_id.map_or_else(String::new, |id| format!("{} = ", name(id)));
        text += &format!("Op{}", instruction.class.opname);
        for operand in instruction.operands.iter().take(MOST_SHOWN) {
            match operand.id_ref_any() {
                Some(id) => text += &format!(" {}", name(id)),
                None => text += &format!(" {operand}"),
            }
        }
        if instruction.operands.len() > MOST_SHOWN {
            text += " …";
        }
        text
    }
}

/// Types that may be declared only once.
pub(super) fn is_unique_type(opcode: Op) -> bool {
    opcode.is_type()
        && !matches!(
            opcode,
            Op::TypeStruct | Op::TypeArray | Op::TypeRuntimeArray | Op::TypePointer | Op::TypeForwardPointer
        )
}
