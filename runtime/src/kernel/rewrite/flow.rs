//! Where arguments go: those that nothing is done with but reach memory from them by arithmetic might as well be device addresses.
//!
//! An argument is followed forwards from where it is loaded. Whatever could tell one address from another (comparing it, storing it,
//! computing with it otherwise) or mixes it with another pointer makes it an ordinary one.

use super::code::Code;
use super::operands::is_atomic;
use super::runs::Origins;
use rspirv::dr::{Instruction, Operand};
use rspirv::spirv::{Op, StorageClass, Word};
use std::collections::{HashMap, HashSet};

/// Most values that an argument is followed through.
const MAX_VALUES: usize = 1 << 12;

/// What is done with a value.
enum Use {
    /// Memory is accessed through it.
    Accessed,
    /// This is another address in the same object.
    Becomes(Word),
    /// It is kept in this variable.
    Kept(Word),
    Other,
}

/// Whether a value is one argument at most: not a structure, array or vector of several.
fn is_single(code: &Code, value: Word) -> bool {
    let opcode = code.type_of(value).and_then(|ty| code.global(ty)).map(|ty| ty.class.opcode);
    matches!(opcode, Some(Op::TypePointer | Op::TypeInt | Op::TypeFloat | Op::TypeBool))
}

/// The arguments that are only reached from; `exact` says of pointers that are accessed which argument they come from, if they come
/// from one by arithmetic alone.
pub(super) fn own(code: &Code, exact: &HashMap<Word, u32>, origins: &Origins<'_>) -> HashSet<u32> {
    let mut uses: HashMap<Word, Vec<(&Instruction, usize)>> = HashMap::new();
    let mut loads: HashMap<u32, Vec<Word>> = HashMap::new();
    for instruction in code.module.functions.iter().flat_map(|function| function.all_inst_iter()) {
        for (at, operand) in instruction.operands.iter().enumerate() {
            if let Some(id) = operand.id_ref_any() {
                uses.entry(id).or_default().push((instruction, at));
            }
        }
        let pushed = |id: Word| {
            let class = code.type_of(id).and_then(|ty| code.pointee(ty)).map(|(class, _)| class);
            class == Some(StorageClass::PushConstant)
        };
        let from = instruction.operands.first().and_then(Operand::id_ref_any).filter(|&from| pushed(from));
        match (instruction.class.opcode, from, instruction.result_id) {
            (Op::Load, Some(from), Some(value)) => match origins.argument(from).filter(|_| is_single(code, value)) {
                Some(argument) => loads.entry(argument).or_default().push(value),
                // Several at once, or one of several: who knows which.
                None => return HashSet::new(),
            },
            (Op::AccessChain | Op::InBoundsAccessChain, ..) => {}
            _ => {
                let mut operands = instruction.operands.iter().filter_map(Operand::id_ref_any);
                if operands.any(pushed) {
                    return HashSet::new();
                }
            }
        }
    }
    let arguments: HashSet<u32> = exact.values().copied().collect();
    let only_reached_from = |argument: &u32| {
        let mut seen = HashSet::new();
        let mut waiting = loads.get(argument).cloned().unwrap_or_default();
        while let Some(value) = waiting.pop() {
            if !seen.insert(value) {
                continue;
            }
            // Several arguments may lead to one and the same long way.
            if seen.len() > MAX_VALUES {
                return false;
            }
            for &(instruction, at) in uses.get(&value).into_iter().flatten() {
                match use_of(origins, instruction, at) {
                    Use::Accessed if exact.get(&value) == Some(argument) => {}
                    Use::Becomes(next) => waiting.push(next),
                    Use::Kept(variable) => {
                        let loaded = uses.get(&variable).into_iter().flatten();
                        let loaded = loaded.filter(|(user, _)| user.class.opcode == Op::Load);
                        waiting.extend(loaded.filter_map(|(load, _)| load.result_id));
                    }
                    _ => return false,
                }
            }
        }
        true
    };
    arguments.into_iter().filter(only_reached_from).collect()
}

fn use_of(origins: &Origins<'_>, instruction: &Instruction, at: usize) -> Use {
    let becomes = instruction.result_id.map_or(Use::Other, Use::Becomes);
    match instruction.class.opcode {
        Op::AccessChain | Op::InBoundsAccessChain | Op::PtrAccessChain | Op::InBoundsPtrAccessChain | Op::ISub
            if at == 0 =>
        {
            becomes
        }
        Op::CopyObject | Op::Bitcast | Op::ConvertPtrToU | Op::ConvertUToPtr | Op::IAdd | Op::Phi => becomes,
        Op::Select if at > 0 => becomes,
        Op::Load | Op::Store | Op::CopyMemory if at == 0 => Use::Accessed,
        Op::CopyMemory if at == 1 => Use::Accessed,
        opcode if is_atomic(opcode) && at == 0 => Use::Accessed,
        Op::Store => match instruction.operands.first().and_then(Operand::id_ref_any) {
            Some(variable) if origins.is_plain_variable(variable) => Use::Kept(variable),
            _ => Use::Other,
        },
        Op::FunctionCall => {
            let function = instruction.operands.first().and_then(Operand::id_ref_any);
            let parameters = function.and_then(|function| origins.parameters.get(&function));
            let parameter = parameters.zip(at.checked_sub(1)).and_then(|(all, index)| all.get(index));
            parameter.map_or(Use::Other, |&parameter| Use::Becomes(parameter))
        }
        _ => Use::Other,
    }
}
