//! Modules with several entry points, as Slang and HLSL compilers write them: cut down to one before anything else looks at them.
//!
//! Of several compute entry points, the kernel is the one that has its name. What only the others need goes: their execution modes, functions and
//! variables, so that what must be there once (a built-in, the push constants) is counted for one entry point.

use super::read::read;
use super::rewrite::short;
use super::specialise::drop_unused_functions;
use rspirv::binary::Assemble;
use rspirv::dr::{Instruction, Module, Operand};
use rspirv::spirv::{ExecutionModel, Op, Word};
use std::borrow::Cow;
use std::collections::HashSet;

/// Most entry points that a message names.
const MOST_SHOWN: usize = 8;

/// None of a module's compute entry points has the kernel's name.
#[derive(Debug)]
pub(super) struct Unnamed {
    pub(super) found: usize,
    /// What the first of them are called, for a message.
    pub(super) names: String,
}

/// The module with the entry point `name` alone; as it is, if it has no more than one, or cannot be read, which others say.
pub(super) fn only<'a>(spirv: &'a [u8], name: &str) -> Result<Cow<'a, [u8]>, Unnamed> {
    if count(spirv) < 2 {
        return Ok(Cow::Borrowed(spirv));
    }
    let Ok((_, mut module)) = read(spirv) else { return Ok(Cow::Borrowed(spirv)) };
    let called = |entry: &Instruction| match entry.operands.get(2) {
        Some(Operand::LiteralString(called)) => called.clone(),
        _ => String::new(),
    };
    let compute = Operand::ExecutionModel(ExecutionModel::GLCompute);
    let mut chosen: Vec<Instruction> =
        module.entry_points.iter().filter(|entry| entry.operands.first() == Some(&compute)).cloned().collect();
    let names: Vec<String> = chosen.iter().map(called).collect();
    if chosen.len() > 1 {
        chosen.retain(|entry| called(entry) == name);
    }
    let [entry] = &chosen[..] else {
        let shown: Vec<String> = names.iter().take(MOST_SHOWN).map(|name| short(name)).collect();
        let more = if names.len() > MOST_SHOWN { ", …" } else { "" };
        return Err(Unnamed { found: names.len(), names: format!(" ({}{more})", shown.join(", ")) });
    };
    let function = entry.operands.get(1).and_then(Operand::id_ref_any);
    module.execution_modes.retain(|mode| mode.operands.first().and_then(Operand::id_ref_any) == function);
    module.entry_points = chosen;
    drop_unused_functions(&mut module);
    drop_unused_variables(&mut module);
    Ok(Cow::Owned(bytemuck::cast_slice(&module.assemble()).to_vec()))
}

/// How many entry points a stream of instructions declares.
fn count(spirv: &[u8]) -> usize {
    let word =
        |at: usize| spirv.get(4 * at..4 * at + 4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let (mut at, mut found) = (5, 0);
    while let Some(first) = word(at) {
        found += usize::from(first & 0xFFFF == Op::EntryPoint as u32);
        // Functions come last.
        if first >> 16 == 0 || first & 0xFFFF == Op::Function as u32 {
            break;
        }
        at += (first >> 16) as usize;
    }
    found
}

/// Takes out variables that no function names and nothing else is made of, and what is said of them.
fn drop_unused_variables(module: &mut Module) {
    let operands =
        |instruction: &Instruction| instruction.operands.iter().filter_map(Operand::id_ref_any).collect::<Vec<Word>>();
    let used: HashSet<Word> =
        module.functions.iter().flat_map(|function| function.all_inst_iter()).flat_map(operands).collect();
    let made_of: HashSet<Word> = module.types_global_values.iter().flat_map(operands).collect();
    let gone: HashSet<Word> = module
        .types_global_values
        .iter()
        .filter(|global| global.class.opcode == Op::Variable)
        .filter_map(|variable| variable.result_id)
        .filter(|id| !used.contains(id) && !made_of.contains(id))
        .collect();
    let stays = |id: Option<Word>| id.is_none_or(|id| !gone.contains(&id));
    module.types_global_values.retain(|global| stays(global.result_id));
    let of = |instruction: &Instruction| instruction.operands.first().and_then(Operand::id_ref_any);
    module.debug_names.retain(|name| stays(of(name)));
    module.annotations.retain(|annotation| stays(of(annotation)));
    for entry in &mut module.entry_points {
        let mut index = 0;
        entry.operands.retain(|operand| {
            index += 1;
            // Model, function and name come before the variables.
            index <= 3 || stays(operand.id_ref_any())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{KernelError, KernelModule};

    const TREE: &[u8] = include_bytes!("../../../tests/shaders/plain/spv/tree.spv");
    const SAXPY: &[u8] = include_bytes!("../../../tests/shaders/plain/spv/saxpy.spv");

    /// A module with the entry points of two, called `tree` and `saxpy`; each has its own variables, types included.
    fn both() -> Vec<u8> {
        let (_, mut tree) = read(TREE).unwrap();
        let (_, mut saxpy) = read(SAXPY).unwrap();
        let shift = tree.header.as_ref().unwrap().bound;
        saxpy.all_inst_iter_mut().for_each(|instruction| {
            instruction.result_id = instruction.result_id.map(|id| id + shift);
            instruction.result_type = instruction.result_type.map(|id| id + shift);
            instruction.operands.iter_mut().filter_map(Operand::id_ref_any_mut).for_each(|id| *id += shift);
        });
        tree.entry_points[0].operands[2] = Operand::LiteralString("tree".into());
        saxpy.entry_points[0].operands[2] = Operand::LiteralString("saxpy".into());
        tree.header.as_mut().unwrap().bound += saxpy.header.as_ref().unwrap().bound;
        for instruction in saxpy.capabilities {
            if !tree.capabilities.contains(&instruction) {
                tree.capabilities.push(instruction);
            }
        }
        tree.ext_inst_imports.extend(saxpy.ext_inst_imports);
        tree.entry_points.extend(saxpy.entry_points);
        tree.execution_modes.extend(saxpy.execution_modes);
        tree.debug_names.extend(saxpy.debug_names);
        tree.annotations.extend(saxpy.annotations);
        tree.types_global_values.extend(saxpy.types_global_values);
        tree.functions.extend(saxpy.functions);
        bytemuck::cast_slice(&tree.assemble()).to_vec()
    }

    #[test]
    fn of_several_entry_points_the_one_with_the_kernels_name_is_rewritten() {
        for (name, alone) in [("tree", TREE), ("saxpy", SAXPY)] {
            let kernel = KernelModule::new(name, &both(), 256).unwrap();
            let alone = KernelModule::new(name, alone, 256).unwrap();

            let counts = |kernel: &KernelModule| {
                let stats = kernel.rewritten.unwrap();
                (stats.loads, stats.stores, stats.translations, stats.replay)
            };
            assert_eq!(counts(&kernel), counts(&alone), "{name}");
            assert_eq!((kernel.local_size, kernel.argument_bytes), (alone.local_size, alone.argument_bytes), "{name}");
            assert_eq!(kernel.runs.of, alone.runs.of, "{name}");
        }
    }

    #[test]
    fn if_none_has_it_the_error_says_what_they_are_called() {
        let error = KernelModule::new("other", &both(), 256).unwrap_err();

        assert!(matches!(error, KernelError::EntryPoint { found: 2, .. }), "{error}");
        assert!(error.to_string().contains("tree, saxpy"), "{error}");
    }

    #[test]
    fn one_entry_point_may_be_called_anything() {
        assert!(matches!(only(TREE, "whatever"), Ok(Cow::Borrowed(_))));
        assert!(matches!(only(&TREE[..TREE.len() / 2], "whatever"), Ok(Cow::Borrowed(_))));
    }
}
