//! Push constants: the launch block comes first, the kernel's own block follows as a member of the same block,
//! because an entry point can have only one.

use super::code::Code;
use super::error::RewriteError;
use super::link::Linked;
use crate::device::layout::LAUNCH_BYTES;
use rspirv::dr::{Instruction, Operand};
use rspirv::spirv::{Decoration, Op, StorageClass, Word};

/// Member of the library's block that holds the kernel's.
const MEMBER: u32 = 1;

/// Moves the kernel's push constants behind the launch block; `before` is the number of the kernel's functions.
pub(super) fn merge(code: &mut Code, linked: &Linked) -> Result<(), RewriteError> {
    let mut variables = code.module.types_global_values.iter().filter(|global| {
        global.class.opcode == Op::Variable
            && global.operands.first() == Some(&Operand::StorageClass(StorageClass::PushConstant))
            && global.result_id != Some(linked.push_variable)
    });
    let (variable, more) = (variables.next().cloned(), variables.next());
    let Some(variable) = variable else { return Ok(()) };
    if let Some(more) = more {
        return Err(code.unsupported(more, "a kernel can have one push constant block"));
    }
    let (Some(id), Some(ty)) = (variable.result_id, variable.result_type) else {
        return Err(code.unsupported(&variable, "it has no type"));
    };
    let Some((_, structure)) = code.pointee(ty) else {
        return Err(code.unsupported(&variable, "its type is not a pointer"));
    };
    if code.global(structure).is_none_or(|ty| ty.class.opcode != Op::TypeStruct) {
        return Err(code.unsupported(&variable, "push constants must be a structure"));
    }
    let shared = code.module.types_global_values.iter().any(|global| {
        global.class.opcode == Op::TypePointer
            && global.operands.get(1) == Some(&Operand::IdRef(structure))
            && global.operands.first() != Some(&Operand::StorageClass(StorageClass::PushConstant))
    });
    if shared {
        return Err(code.unsupported(&variable, "its structure is that of another block too; declare two structures"));
    }
    // A block within a block is not allowed, and needs no decoration.
    code.module.annotations.retain(|annotation| {
        let target = annotation.operands.first() == Some(&Operand::IdRef(structure));
        let of_variable = annotation.operands.first() == Some(&Operand::IdRef(id));
        !(of_variable || target && annotation.operands.get(1) == Some(&Operand::Decoration(Decoration::Block)))
    });
    code.module.debug_names.retain(|name| name.operands.first() != Some(&Operand::IdRef(id)));
    code.remove_globals(&[id]);
    append_member(code, linked.push_structure, structure);
    redirect(code, linked, id, structure);
    Ok(())
}

fn append_member(code: &mut Code, block: Word, member: Word) {
    if let Some(block) = code.module.types_global_values.iter_mut().find(|global| global.result_id == Some(block)) {
        block.operands.push(Operand::IdRef(member));
    }
    code.module.annotations.push(Instruction::new(
        Op::MemberDecorate,
        None,
        None,
        vec![
            Operand::IdRef(block),
            Operand::LiteralBit32(MEMBER),
            Operand::Decoration(Decoration::Offset),
            Operand::LiteralBit32(LAUNCH_BYTES as u32),
        ],
    ));
}

/// Uses of the kernel's variable become uses of the member.
fn redirect(code: &mut Code, linked: &Linked, variable: Word, structure: Word) {
    let member = code.constant(MEMBER);
    let pointer = code.pointer(StorageClass::PushConstant, structure);
    let mut functions = std::mem::take(&mut code.module.functions);
    for block in functions[..linked.first].iter_mut().flat_map(|function| &mut function.blocks) {
        let mut rewritten = Vec::with_capacity(block.instructions.len());
        for mut instruction in std::mem::take(&mut block.instructions) {
            let chain = matches!(instruction.class.opcode, Op::AccessChain | Op::InBoundsAccessChain);
            if chain && instruction.operands.first() == Some(&Operand::IdRef(variable)) {
                instruction.operands[0] = Operand::IdRef(linked.push_variable);
                instruction.operands.insert(1, Operand::IdRef(member));
            } else if instruction.operands.contains(&Operand::IdRef(variable)) {
                let whole = code.fresh_value(pointer);
                let operands = vec![Operand::IdRef(linked.push_variable), Operand::IdRef(member)];
                rewritten.push(Instruction::new(Op::AccessChain, Some(pointer), Some(whole), operands));
                for operand in &mut instruction.operands {
                    if *operand == Operand::IdRef(variable) {
                        *operand = Operand::IdRef(whole);
                    }
                }
            }
            rewritten.push(instruction);
        }
        block.instructions = rewritten;
    }
    code.module.functions = functions;
}
