//! After a workgroup barrier, poison is workgroup-wide: what a poisoned invocation left in shared memory is void, and so
//! is what its neighbours make of it.

use super::code::Code;
use super::error::RewriteError;
use super::link::Linked;
use rspirv::dr::{Function, Instruction, Operand};
use rspirv::spirv::{Op, Scope, Word};
use std::collections::{HashMap, HashSet};

/// Acquire-release, and workgroup memory.
const SEMANTICS: u32 = 0x8 | 0x100;
/// Any of the orders that cover acquire-release.
const ORDERED: u32 = 0x8 | 0x10;

/// Whether an instruction is a barrier of the workgroup.
pub(super) fn is_workgroup_barrier(code: &Code, instruction: &Instruction) -> bool {
    let scope = match instruction.operands.first() {
        Some(Operand::IdScope(scope)) if instruction.class.opcode == Op::ControlBarrier => *scope,
        _ => return false,
    };
    // A scope that is specialised might be the workgroup.
    code.constant_value(scope).is_none_or(|scope| scope == Scope::Workgroup as u32)
}

/// Functions that have a workgroup barrier, or call such functions.
pub(super) fn functions_with_barriers(code: &Code) -> HashSet<Word> {
    let mut waiting = Vec::new();
    let mut callers: HashMap<Word, Vec<Word>> = HashMap::new();
    for function in &code.module.functions {
        let Some(id) = function.def_id() else { continue };
        for instruction in function.all_inst_iter() {
            if is_workgroup_barrier(code, instruction) {
                waiting.push(id);
            } else if instruction.class.opcode == Op::FunctionCall
                && let Some(callee) = instruction.operands.first().and_then(Operand::id_ref_any)
            {
                callers.entry(callee).or_default().push(id);
            }
        }
    }
    let mut found = HashSet::new();
    while let Some(id) = waiting.pop() {
        if found.insert(id) {
            waiting.extend(callers.get(&id).into_iter().flatten());
        }
    }
    found
}

/// Puts the library's calls around a function's barriers; says how many there were.
pub(super) fn spread_poison(code: &mut Code, function: &mut Function, linked: &Linked) -> Result<u32, RewriteError> {
    let mut count = 0;
    for block in &mut function.blocks {
        if !block.instructions.iter().any(|instruction| is_workgroup_barrier(code, instruction)) {
            continue;
        }
        let void = code.void();
        let mut rewritten = Vec::with_capacity(block.instructions.len() + 4);
        for mut barrier in std::mem::take(&mut block.instructions) {
            if !is_workgroup_barrier(code, &barrier) {
                rewritten.push(barrier);
                continue;
            }
            count += 1;
            if let Some(Operand::IdMemorySemantics(semantics)) = barrier.operands.get_mut(2) {
                let value = code.constant_value(*semantics).unwrap_or_default();
                let order = if value & ORDERED == 0 { SEMANTICS } else { SEMANTICS & !0x8 };
                // Acquire or release alone give way to both.
                let rest = if value & ORDERED == 0 { value & !0x6 } else { value };
                if rest | order != value {
                    *semantics = code.constant(rest | order);
                }
            }
            let mut call = |name: &str| -> Result<Instruction, RewriteError> {
                let operands = vec![Operand::IdRef(linked.function(name)?)];
                Ok(Instruction::new(Op::FunctionCall, Some(void), Some(code.fresh_value(void)), operands))
            };
            rewritten.extend([call("link_before_barrier")?, barrier, call("link_after_barrier")?]);
        }
        block.instructions = rewritten;
    }
    Ok(count)
}
