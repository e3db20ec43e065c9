//! What is computed comes before what uses it: SPIR-V's rule of dominance (specification, section 2.16.1), which every analysis here relies on and which a
//! damaged module may break.

use super::graph::Graph;
use rspirv::dr::{Function, Instruction, Module};
use rspirv::spirv::{Op, Word};
use std::collections::HashMap;

/// Where a value is defined.
struct Place {
    function: usize,
    block: usize,
    /// Whether the walk through the module has passed it.
    passed: bool,
}

/// Whether the definition of each value dominates its uses, and calls pass what functions take; says what is wrong. In blocks that cannot be reached a
/// definition need only come first.
pub(super) fn check(module: &Module) -> Result<(), String> {
    check_calls(module)?;
    let mut places = HashMap::new();
    for (number, function) in module.functions.iter().enumerate() {
        let mut define = |block: usize, passed: bool, instruction: &Instruction| {
            if let Some(id) = instruction.result_id {
                places.insert(id, Place { function: number, block, passed });
            }
        };
        function.parameters.iter().for_each(|parameter| define(0, true, parameter));
        for (block, code) in function.blocks.iter().enumerate() {
            code.instructions.iter().for_each(|instruction| define(block, false, instruction));
        }
    }
    module.functions.iter().enumerate().try_for_each(|(number, function)| check_function(&mut places, number, function))
}

fn check_calls(module: &Module) -> Result<(), String> {
    let parameters =
        module.functions.iter().filter_map(|function| Some((function.def_id()?, function.parameters.len())));
    let parameters: HashMap<Word, usize> = parameters.collect();
    for call in module.functions.iter().flat_map(|function| function.all_inst_iter()) {
        if call.class.opcode != Op::FunctionCall {
            continue;
        }
        let callee = call.operands.first().and_then(|callee| callee.id_ref_any());
        let takes = callee.and_then(|callee| parameters.get(&callee).copied());
        if takes != Some(call.operands.len() - 1) {
            return Err("OpFunctionCall passes more or less than the function takes, or names no function".into());
        }
    }
    Ok(())
}

fn check_function(places: &mut HashMap<Word, Place>, number: usize, function: &Function) -> Result<(), String> {
    let graph = Graph::of(function);
    for (here, code) in function.blocks.iter().enumerate() {
        for instruction in &code.instructions {
            let phi = instruction.class.opcode == Op::Phi;
            for (index, operand) in instruction.operands.iter().enumerate() {
                let Some(id) = operand.id_ref_any() else { continue };
                // Globals, labels and functions have no place.
                let Some(place) = places.get(&id) else { continue };
                // A value of a phi is used where its way comes from.
                let parent = || instruction.operands.get(index + 1)?.id_ref_any();
                let user = if phi { parent().and_then(|label| graph.index.get(&label).copied()) } else { Some(here) };
                let before = |user: usize| !graph.reachable(user) || graph.dominates(place.block, user);
                if place.function != number || !(place.passed || phi) || !user.is_some_and(before) {
                    return Err(format!(
                        "Op{} uses id {id}, which is not computed on every way there",
                        instruction.class.opname
                    ));
                }
            }
            if let Some(place) = instruction.result_id.and_then(|id| places.get_mut(&id)) {
                place.passed = true;
            }
        }
    }
    Ok(())
}
