//! What is refused, each with the words that say why, and where an instruction is the reason, with that.
//!
//! Kernels of the corpus are changed in one way each. What no module that can be read can provoke has no case here: pointers, loads and variables
//! without types or operands, and what only a damaged library would bring.

use super::{RewriteError, corpus, read, rewrite};
use rspirv::binary::Assemble;
use rspirv::dr::{Instruction, Module, Operand};
use rspirv::spirv::{
    AddressingModel, BuiltIn, Decoration, ExecutionMode, ExecutionModel, MemoryAccess, Op, StorageClass, Word,
};

/// A kernel that leaves its loop on some ways round only.
const RARE: &str = "list_with_a_rare_way_out";

/// A kernel of the corpus, changed.
fn changed(kernel: &str, change: impl FnOnce(&mut Module)) -> Result<super::Rewritten, RewriteError> {
    let rare = (RARE.to_owned(), super::list_with_a_rare_way_out());
    let (_, bytes) = corpus().into_iter().chain([rare]).find(|(name, _)| name == kernel).unwrap();
    let (_, mut module) = read(&bytes).unwrap();
    change(&mut module);
    rewrite(bytemuck::cast_slice(&module.assemble()))
}

/// The module must be refused for an instruction, which the error names, and that reason.
#[track_caller]
fn refused(kernel: &str, instruction: &str, reason: &str, change: impl FnOnce(&mut Module)) {
    match changed(kernel, change) {
        Err(RewriteError::Unsupported { instruction: named, reason: given }) => {
            assert!(named.contains(instruction), "{named} does not name {instruction}");
            assert!(given.contains(reason), "{given}");
        }
        other => panic!("{:?} instead of a refusal of {instruction}: {reason}", other.map(|_| "rewritten")),
    }
}

/// The module must be refused as a whole.
#[track_caller]
fn refused_whole(kernel: &str, reason: &str, change: impl FnOnce(&mut Module)) {
    let error = changed(kernel, change).expect_err(reason);
    assert!(!matches!(error, RewriteError::Unsupported { .. } | RewriteError::Untranslated { .. }), "{error}");
    assert!(error.to_string().contains(reason), "{error}");
}

fn fresh(module: &mut Module) -> Word {
    let header = module.header.as_mut().unwrap();
    header.bound += 1;
    header.bound - 1
}

fn instructions(module: &mut Module) -> impl Iterator<Item = &mut Instruction> {
    module.functions.iter_mut().flat_map(|function| &mut function.blocks).flat_map(|block| &mut block.instructions)
}

fn first(module: &mut Module, opcode: Op) -> &mut Instruction {
    instructions(module).find(|instruction| instruction.class.opcode == opcode).unwrap()
}

/// A pointer that is loaded through, or stored; with its type.
fn physical(module: &mut Module) -> (Word, Word) {
    let pointers: Vec<Word> = module
        .types_global_values
        .iter()
        .filter(|ty| ty.operands.first() == Some(&Operand::StorageClass(StorageClass::PhysicalStorageBuffer)))
        .filter_map(|ty| ty.result_id)
        .collect();
    let made = instructions(module).find(|made| made.result_type.is_some_and(|ty| pointers.contains(&ty))).unwrap();
    (made.result_id.unwrap(), made.result_type.unwrap())
}

/// Puts an instruction at the end of the block that defines `after`.
fn append(module: &mut Module, after: Word, instruction: Instruction) {
    let blocks = module.functions.iter_mut().flat_map(|function| &mut function.blocks);
    for block in blocks {
        if let Some(at) = block.instructions.iter().position(|one| one.result_id == Some(after)) {
            block.instructions.insert(at + 1, instruction);
            return;
        }
    }
    panic!("nothing defines %{after}");
}

/// Has an instruction use a pointer to physical memory.
fn used_by(opcode: Op, operands: impl FnOnce(Word) -> Vec<Operand>) -> impl FnOnce(&mut Module) {
    move |module| {
        let (pointer, _) = physical(module);
        append(module, pointer, Instruction::new(opcode, None, None, operands(pointer)));
    }
}

fn forget(module: &mut Module, decoration: Decoration) {
    module.annotations.retain(|annotation| !annotation.operands.contains(&Operand::Decoration(decoration)));
}

#[test]
fn modules_of_another_kind() {
    refused_whole("saxpy", "not that of a compute shader", |module| {
        module.entry_points[0].operands[0] = Operand::ExecutionModel(ExecutionModel::Fragment);
    });
    refused_whole("saxpy", "2 entry points", |module| {
        let entry = module.entry_points[0].clone();
        module.entry_points.push(entry);
    });
    refused_whole("saxpy", "0 entry points", |module| module.entry_points.clear());
    refused_whole("saxpy", "names no function", |module| {
        let id = module.types_global_values[0].result_id.unwrap();
        module.entry_points[0].operands[1] = Operand::IdRef(id);
    });
    refused_whole("saxpy", "its addressing model is not PhysicalStorageBuffer64", |module| {
        module.memory_model.as_mut().unwrap().operands[0] = Operand::AddressingModel(AddressingModel::Logical);
    });
    refused_whole("saxpy", "nothing is accessed through PhysicalStorageBuffer pointers", |module| {
        for function in &mut module.functions {
            function.blocks.truncate(1);
            let block = &mut function.blocks[0];
            block.instructions = vec![Instruction::new(Op::Return, None, None, vec![])];
        }
    });
    refused_whole("saxpy", "does not say its workgroup size", |module| {
        module.execution_modes.clear();
        forget(module, Decoration::BuiltIn);
    });
    refused("saxpy", "OpDecorate", "decoration groups and linkage are not for shaders", |module| {
        let function = module.functions[0].def_id().unwrap();
        let linkage = vec![
            Operand::IdRef(function),
            Operand::Decoration(Decoration::LinkageAttributes),
            Operand::LiteralString("main".into()),
            Operand::LinkageType(rspirv::spirv::LinkageType::Export),
        ];
        module.annotations.push(Instruction::new(Op::Decorate, None, None, linkage));
    });
}

#[test]
fn workgroup_sizes_that_are_no_constants() {
    refused_whole("saxpy", "three unsigned integer constants", |module| {
        let (pointer, _) = physical(module);
        module.annotations.retain(|one| !one.operands.contains(&Operand::BuiltIn(BuiltIn::WorkgroupSize)));
        let mode = &mut module.execution_modes[0];
        mode.operands.truncate(1);
        mode.operands.push(Operand::ExecutionMode(ExecutionMode::LocalSizeId));
        mode.operands.extend([pointer; 3].map(Operand::IdRef));
        mode.class = Instruction::new(Op::ExecutionModeId, None, None, vec![]).class;
    });
}

#[test]
fn built_ins_that_are_not_plain_inputs() {
    let input = |module: &Module| {
        let of = |annotation: &&Instruction| {
            annotation.operands.get(2) == Some(&Operand::BuiltIn(BuiltIn::GlobalInvocationId))
        };
        module.annotations.iter().find(of).unwrap().operands[0].id_ref_any().unwrap()
    };
    refused_whole("saxpy", "is not the only variable for GlobalInvocationId", |module| {
        let again = module.annotations.iter().find(|one| one.operands[0] == Operand::IdRef(input(module))).cloned();
        module.annotations.extend(again);
    });
    refused_whole("saxpy", "is decorated as a built-in and is no variable", |module| {
        let id = module.functions[0].def_id().unwrap();
        let variable = input(module);
        let annotation = module.annotations.iter_mut().find(|one| one.operands[0] == Operand::IdRef(variable));
        annotation.unwrap().operands[0] = Operand::IdRef(id);
    });
    refused("saxpy", "OpVariable", "a built-in must be an input", |module| {
        let variable = input(module);
        let globals = &mut module.types_global_values;
        let ty = globals.iter().find(|global| global.result_id == Some(variable)).unwrap().result_type;
        let pointer = globals.iter_mut().find(|global| global.result_id == ty).unwrap();
        pointer.operands[0] = Operand::StorageClass(StorageClass::Private);
    });
    refused("saxpy", "OpCopyObject", "a built-in can only be loaded", |module| {
        let (variable, id) = (input(module), fresh(module));
        let global = module.types_global_values.iter().find(|global| global.result_id == Some(variable)).unwrap();
        let copy = Instruction::new(Op::CopyObject, global.result_type, Some(id), vec![Operand::IdRef(variable)]);
        let (pointer, _) = physical(module);
        append(module, pointer, copy);
    });
}

#[test]
fn push_constants_that_cannot_be_moved() {
    let block = |module: &Module| {
        let is = |global: &&Instruction| {
            global.class.opcode == Op::Variable
                && global.operands.first() == Some(&Operand::StorageClass(StorageClass::PushConstant))
        };
        module.types_global_values.iter().find(is).unwrap().clone()
    };
    refused("saxpy", "OpVariable", "one push constant block", |module| {
        let mut second = block(module);
        second.result_id = Some(fresh(module));
        module.types_global_values.push(second);
    });
    refused("saxpy", "OpVariable", "its structure is that of another block too", |module| {
        let ty = block(module).result_type;
        let ty = module.types_global_values.iter().find(|global| global.result_id == ty).unwrap();
        let mut other = ty.clone();
        other.operands[0] = Operand::StorageClass(StorageClass::StorageBuffer);
        other.result_id = Some(fresh(module));
        module.types_global_values.push(other);
    });
}

#[test]
fn what_reaches_memory_past_loads_stores_and_atomics() {
    let only = "only loads, stores, copies and atomics are translated";
    let sized = |pointer| vec![Operand::IdRef(pointer), Operand::IdRef(pointer), Operand::IdRef(pointer)];
    refused("saxpy", "OpCopyMemorySized", only, used_by(Op::CopyMemorySized, sized));
    refused("saxpy", "OpUConvert", only, |module| {
        let (pointer, ty) = physical(module);
        let id = fresh(module);
        append(module, pointer, Instruction::new(Op::UConvert, Some(ty), Some(id), vec![Operand::IdRef(pointer)]));
    });
    refused("saxpy", "OpCompositeExtract", only, |module| {
        let (pointer, ty) = physical(module);
        let id = fresh(module);
        let operands = vec![Operand::IdRef(pointer), Operand::LiteralBit32(0)];
        append(module, pointer, Instruction::new(Op::CompositeExtract, Some(ty), Some(id), operands));
    });
}

#[test]
fn pointers_that_come_from_nowhere() {
    refused("saxpy", "OpVectorExtractDynamic", "it makes a pointer in a way that is not known", |module| {
        let (_, ty) = physical(module);
        let value = first(module, Op::FMul).result_id.unwrap();
        let id = fresh(module);
        let operands = vec![Operand::IdRef(value), Operand::IdRef(value)];
        append(module, value, Instruction::new(Op::VectorExtractDynamic, Some(ty), Some(id), operands));
    });
}

#[test]
fn instructions_that_reach_memory_by_themselves() {
    for (opcode, name, reason) in [
        (Op::CooperativeMatrixLoadKHR, "OpCooperativeMatrixLoadKHR", "only the device knows"),
        (Op::RayQueryProceedKHR, "OpRayQueryProceedKHR", "acceleration structures"),
        (Op::ConvertUToAccelerationStructureKHR, "OpConvertUToAccelerationStructureKHR", "acceleration structures"),
    ] {
        refused("saxpy", name, reason, |module| {
            let convert = first(module, Op::FMul);
            let (after, ty, id) = (convert.result_id.unwrap(), convert.result_type, fresh(module));
            let operands = if opcode == Op::CooperativeMatrixLoadKHR { 2 } else { 1 };
            let operands = vec![Operand::IdRef(after); operands];
            append(module, after, Instruction::new(opcode, ty, Some(id), operands));
        });
    }
}

#[test]
fn memory_operands_that_are_not_known() {
    let scoped = |operands: &mut Vec<Operand>, id: Word| {
        operands.truncate(operands.iter().position(|operand| matches!(operand, Operand::MemoryAccess(_))).unwrap());
        operands.push(Operand::MemoryAccess(MemoryAccess::ALIAS_SCOPE_INTEL_MASK));
        operands.push(Operand::IdRef(id));
    };
    let aligned = |module: &mut Module, opcode| {
        let is = |one: &&mut Instruction| {
            one.class.opcode == opcode && one.operands.iter().any(|operand| matches!(operand, Operand::MemoryAccess(_)))
        };
        let id = module.types_global_values[0].result_id.unwrap();
        scoped(&mut instructions(module).find(is).unwrap().operands, id);
    };
    let unknown = "it has memory operands that are not known";
    refused("saxpy", "OpLoad", unknown, |module| aligned(module, Op::Load));
    refused("saxpy", "OpStore", unknown, |module| aligned(module, Op::Store));
}

#[test]
fn types_whose_place_in_memory_is_not_said() {
    refused("struct_load", "OpLoad", "the size of what it accesses is not known", |module| {
        forget(module, Decoration::Offset);
    });
    refused("mat4_columns", "OpLoad", "not known how the matrix lies in memory", |module| {
        forget(module, Decoration::MatrixStride);
    });
    refused("saxpy", "Op", "what it accesses has no layout in memory", |module| {
        let float = module.types_global_values.iter().find(|ty| ty.class.opcode == Op::TypeFloat).unwrap().result_id;
        let bool = module.types_global_values.iter().find(|ty| ty.class.opcode == Op::TypeBool).unwrap().clone();
        module.types_global_values.retain(|ty| ty.class.opcode != Op::TypeBool);
        let physical = Operand::StorageClass(StorageClass::PhysicalStorageBuffer);
        let at = module.types_global_values.iter().position(|ty| ty.class.opcode == Op::TypeFloat).unwrap();
        let id = bool.result_id.unwrap();
        module.types_global_values.insert(at, bool);
        for ty in &mut module.types_global_values {
            if ty.operands.first() == Some(&physical) && ty.operands.get(1) == float.map(Operand::IdRef).as_ref() {
                ty.operands[1] = Operand::IdRef(id);
            }
        }
    });
}

#[test]
fn more_members_at_once_than_are_taken_apart() {
    refused("struct_load", "OpLoad", "more than 1024 members at once", |module| {
        // Its members become arrays of 2000 words.
        let uint =
            module.types_global_values.iter().find(|ty| ty.class.opcode == Op::TypeInt).unwrap().result_id.unwrap();
        let (count, array) = (fresh(module), fresh(module));
        let loaded = instructions(module)
            .filter(|load| load.class.opcode == Op::Load && load.operands.len() > 1)
            .find_map(|load| load.result_type)
            .unwrap();
        let at = module.types_global_values.iter().position(|ty| ty.result_id == Some(loaded)).unwrap();
        let structure = &mut module.types_global_values[at];
        structure.operands[0] = Operand::IdRef(array);
        let length = Instruction::new(Op::Constant, Some(uint), Some(count), vec![Operand::LiteralBit32(2000)]);
        let operands = vec![Operand::IdRef(uint), Operand::IdRef(count)];
        let made = Instruction::new(Op::TypeArray, None, Some(array), operands);
        module.types_global_values.splice(at..at, [length, made]);
        let stride =
            vec![Operand::IdRef(array), Operand::Decoration(Decoration::ArrayStride), Operand::LiteralBit32(4)];
        module.annotations.push(Instruction::new(Op::Decorate, None, None, stride));
    });
}

#[test]
fn loops_that_no_poisoned_invocation_could_leave() {
    refused(RARE, "OpBranchConditional", "no exit that a poisoned invocation could take", |module| {
        // The way back is taken on a condition, and that is the only way round.
        let back = first(module, Op::LoopMerge).operands[1].clone();
        let condition = first(module, Op::IEqual).result_id.unwrap();
        let blocks = module.functions.iter_mut().flat_map(|function| &mut function.blocks);
        for block in blocks {
            if block.label_id().map(Operand::IdRef).as_ref() == Some(&back) {
                let branch = block.instructions.last_mut().unwrap();
                let target = branch.operands[0].clone();
                *branch = Instruction::new(
                    Op::BranchConditional,
                    None,
                    None,
                    vec![Operand::IdRef(condition), target.clone(), target],
                );
            }
        }
    });
}

#[test]
fn pointers_and_values_that_no_translation_is_known_for() {
    refused("saxpy", "OpTypeUntypedPointerKHR", "an untyped pointer does not say what is accessed", |module| {
        let id = fresh(module);
        let class = vec![Operand::StorageClass(StorageClass::PhysicalStorageBuffer)];
        module.types_global_values.push(Instruction::new(Op::TypeUntypedPointerKHR, None, Some(id), class));
    });
    refused("saxpy", "OpTypeVector", "vectors of pointers", |module| {
        let (id, (_, pointer)) = (fresh(module), physical(module));
        let two = vec![Operand::IdRef(pointer), Operand::LiteralBit32(2)];
        module.types_global_values.push(Instruction::new(Op::TypeVector, None, Some(id), two));
    });
    refused("saxpy", "OpLoad", "integers and floats are of at most 64 bits", |module| {
        let floats = module.types_global_values.iter_mut().filter(|global| global.class.opcode == Op::TypeFloat);
        floats.for_each(|float| float.operands[0] = Operand::LiteralBit32(65_568));
    });
}

#[test]
fn calls_that_do_not_pass_what_is_taken() {
    refused_whole("pointer_parameter", "passes more or less than the function takes", |module| {
        first(module, Op::FunctionCall).operands.pop();
    });
}
