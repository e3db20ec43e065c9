//! That the proof sees through: each kernel of the corpus is rewritten, its output weakened in one way, and must then be refused.

use super::{Transformed, corpus, read, transform};
use rspirv::dr::{Instruction, Operand};
use rspirv::spirv::{Op, StorageClass};

/// Weakens a rewritten module; false where there is nothing to weaken in that way.
type Weaken = dyn Fn(&mut Transformed) -> bool;

/// Every kernel in which something was weakened must be refused, and there must be one.
fn refuses(what: &str, weaken: &Weaken) {
    let mut weakened = 0;
    for (name, kernel) in corpus() {
        // With room for runs of the arguments and without.
        for push_bytes in [256, 0] {
            let (_, module) = read(&kernel).unwrap();
            let mut transformed = transform(module, push_bytes).unwrap();
            if weaken(&mut transformed) {
                weakened += 1;
                assert!(transformed.prove().is_err(), "{name}: {what}, and the proof holds");
            } else {
                transformed.prove().unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
    }
    assert!(weakened > 0, "{what}: no kernel of the corpus has that");
}

/// The kernel's own instructions.
fn instructions(of: &mut Transformed) -> impl Iterator<Item = &mut Instruction> {
    let own = of.own;
    of.code.module.functions[..own]
        .iter_mut()
        .flat_map(|function| &mut function.blocks)
        .flat_map(|block| &mut block.instructions)
}

/// Calls of a function of the library.
fn calls<'a>(of: &'a mut Transformed, name: &str) -> impl Iterator<Item = &'a mut Instruction> {
    let function = Operand::IdRef(of.linked.function(name).unwrap());
    instructions(of).filter(move |instruction| {
        instruction.class.opcode == Op::FunctionCall && instruction.operands.first() == Some(&function)
    })
}

/// The `index`-th operand of the first call of a function, and its place.
fn change_argument(
    of: &mut Transformed,
    name: &str,
    index: usize,
    new: impl FnOnce(&mut Transformed, u32) -> u32,
) -> bool {
    let Some(old) = calls(of, name).next().and_then(|call| call.operands[index].id_ref_any()) else { return false };
    let new = new(of, old);
    calls(of, name).next().unwrap().operands[index] = Operand::IdRef(new);
    true
}

#[test]
fn what_was_translated_for_something_weaker() {
    for (asked, weaker) in [
        ("link_write", "link_read"),
        ("link_atomic", "link_read"),
        ("link_run_write", "link_run_read"),
        ("link_own_write", "link_own_read"),
        // Loads must not find what stores went to that must not happen.
        ("link_read", "link_write"),
        ("link_own_read", "link_own_write"),
        ("link_near_read", "link_near_write"),
        ("link_read_object", "link_begin_write"),
        ("link_own_begin_write", "link_own_read_object"),
        // What is reused.
        ("link_again_read", "link_again_write"),
        ("link_again_read_stored", "link_again_read"),
        ("link_again_write", "link_again_read"),
        ("link_again_write", "link_again_read_stored"),
        ("link_again_atomic", "link_again_write"),
        ("link_again_atomic", "link_again_read"),
        // Reported nowhere, and zero where the page is missing.
        ("link_read", "link_peek_read"),
    ] {
        refuses(&format!("{weaker} in place of {asked}"), &move |of: &mut Transformed| {
            let weaker = of.linked.function(weaker).unwrap();
            calls(of, asked).map(|call| call.operands[0] = Operand::IdRef(weaker)).count() > 0
        });
    }
}

#[test]
fn a_store_that_reuses_what_was_translated_for_loading() {
    for (asked, weaker) in [("link_write", "link_read"), ("link_own_write", "link_own_read")] {
        refuses("a cover that only reads", &move |of: &mut Transformed| {
            if calls(of, "link_again_write").count() == 0 {
                return false;
            }
            let weaker = of.linked.function(weaker).unwrap();
            calls(of, asked).map(|call| call.operands[0] = Operand::IdRef(weaker)).count() > 0
        });
    }
}

#[test]
fn an_address_that_is_not_translated() {
    refuses("the CPU's address", &|of: &mut Transformed| {
        let addresses: Vec<_> = instructions(of)
            .filter(|instruction| instruction.class.opcode == Op::FunctionCall)
            .filter_map(|call| Some((call.result_id?, call.operands.get(1)?.clone())))
            .collect();
        let mut found = 0;
        for made in instructions(of).filter(|instruction| instruction.class.opcode == Op::ConvertUToPtr) {
            if let Some((_, address)) = addresses.iter().find(|(call, _)| made.operands[0] == Operand::IdRef(*call)) {
                made.operands[0] = address.clone();
                found += 1;
            }
        }
        found > 0
    });
    refuses("a copy that is left", &|of: &mut Transformed| {
        let pointers: Vec<u32> = instructions(of)
            .filter(|instruction| instruction.class.opcode == Op::Load)
            .filter_map(|load| load.operands[0].id_ref_any())
            .collect();
        let physical = pointers.into_iter().find(|pointer| {
            let class = of.code.type_of(*pointer).and_then(|ty| of.code.pointee(ty));
            class.is_some_and(|(class, _)| class == StorageClass::PhysicalStorageBuffer)
        });
        let Some(pointer) = physical.map(Operand::IdRef) else { return false };
        let store = instructions(of).find(|instruction| instruction.class.opcode == Op::Store);
        let copy = Instruction::new(Op::CopyMemory, None, None, vec![pointer.clone(), pointer]);
        store.map(|store| *store = copy).is_some()
    });
}

#[test]
fn bytes_that_were_not_asked_for() {
    for object in ["link_read_object", "link_own_read_object", "link_near_read_object", "link_own_begin_write"] {
        refuses(&format!("a byte less for {object}"), &move |of: &mut Transformed| {
            change_argument(of, object, 2, |of, bytes| {
                let bytes = of.code.constant_value(bytes).unwrap();
                of.code.constant(bytes - 1)
            })
        });
    }
    refuses("an offset of a page more", &|of: &mut Transformed| {
        let moved: Vec<u32> = instructions(of)
            .filter(|instruction| instruction.class.opcode == Op::ConvertUToPtr)
            .filter_map(|made| made.operands[0].id_ref_any())
            .collect();
        let page = of.code.long(4096);
        let sums = instructions(of).filter(|instruction| {
            instruction.class.opcode == Op::IAdd && instruction.result_id.is_some_and(|id| moved.contains(&id))
        });
        let mut found = 0;
        for sum in sums {
            sum.operands[1] = Operand::IdRef(page);
            found += 1;
        }
        // Offsets from what is no call of the library are the kernel's own.
        found > 0 && of.stats.merged > 0
    });
    refuses("no promise of the alignment that puts an object on one page", &|of: &mut Transformed| {
        // Vectors whose loads say that they are aligned to their size are translated like scalars.
        let word = |of: &Transformed, name| Operand::IdRef(of.linked.function(name).unwrap());
        let words =
            [word(of, "link_read"), word(of, "link_own_read"), word(of, "link_run_read"), word(of, "link_near_read")];
        let single: Vec<u32> = instructions(of)
            .filter(|call| call.class.opcode == Op::FunctionCall && words.contains(&call.operands[0]))
            .filter_map(|call| call.result_id)
            .collect();
        let pointers: Vec<u32> = instructions(of)
            .filter(|made| made.class.opcode == Op::ConvertUToPtr)
            .filter(|made| made.operands[0].id_ref_any().is_some_and(|address| single.contains(&address)))
            .filter_map(|made| made.result_id)
            .collect();
        let vectors: Vec<u32> = of
            .code
            .module
            .types_global_values
            .iter()
            .filter(|ty| ty.class.opcode == Op::TypeVector)
            .filter_map(|ty| ty.result_id)
            .collect();
        let loads = instructions(of).filter(|load| {
            let through = load.operands.first().and_then(Operand::id_ref_any).is_some_and(|id| pointers.contains(&id));
            let vector = load.result_type.is_some_and(|ty| vectors.contains(&ty));
            load.class.opcode == Op::Load
                && through
                && vector
                && load.operands.get(2) == Some(&Operand::LiteralBit32(16))
        });
        loads.map(|load| load.operands[2] = Operand::LiteralBit32(4)).count() > 0
    });
}

#[test]
fn an_object_that_is_stored_to_a_copy_only() {
    refuses("the end of a store of an object left out", &|of: &mut Transformed| {
        let end = Operand::IdRef(of.linked.function("link_end_write").unwrap());
        let own = of.own;
        let mut found = 0;
        for block in of.code.module.functions[..own].iter_mut().flat_map(|function| &mut function.blocks) {
            let before = block.instructions.len();
            block.instructions.retain(|instruction| {
                instruction.class.opcode != Op::FunctionCall || instruction.operands.first() != Some(&end)
            });
            found += before - block.instructions.len();
        }
        found > 0
    });
    refuses("the end of a store of another object", &|of: &mut Transformed| {
        change_argument(of, "link_end_write", 1, |of, _| of.code.long(0))
    });
}

#[test]
fn a_translation_that_is_reused_at_another_distance_than_the_library_is_told() {
    for again in ["link_again_read", "link_again_read_stored", "link_again_write", "link_again_atomic"] {
        refuses(&format!("another distance for {again}"), &move |of: &mut Transformed| {
            change_argument(of, again, 3, |of, distance| {
                let distance = of.code.constant_value(distance).unwrap();
                of.code.constant(distance ^ 4)
            })
        });
        refuses(&format!("another address for {again}"), &move |of: &mut Transformed| {
            change_argument(of, again, 1, |of, _| of.code.long(0))
        });
    }
}

#[test]
fn a_peek_at_another_address() {
    refuses("another address", &|of: &mut Transformed| {
        let null = Operand::IdRef(of.code.long(0));
        calls(of, "link_peek_read").for_each(|peek| peek.operands[1] = null.clone());
        // A load that is covered after all does not use its peek.
        calls(of, "link_hoisted_read").count() > 0
    });
    refuses("no peek", &|of: &mut Transformed| change_argument(of, "link_hoisted_read", 2, |of, _| of.code.long(4096)));
}
