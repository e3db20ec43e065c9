//! Rewriting without a device.

mod mutants;
mod refusals;

use super::*;
use crate::device::layout::variant;
use crate::kernel::specialise::specialise;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

const SAXPY: &[u8] = include_bytes!("../../../../../tests/shaders/plain/spv/saxpy.spv");
const LIST: &[u8] = include_bytes!("../../../../../tests/shaders/plain/spv/list_break_deep.spv");
const INCLUDED: &[u8] = include_bytes!("../../../../../tests/shaders/spv/saxpy.spv");

/// The kernels of the corpus, by name.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/shaders/plain/spv");
    let mut kernels: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    kernels.sort();
    kernels
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn accesses_are_translated_and_counted() {
    let stats = rewrite(SAXPY).unwrap().stats;

    assert_eq!((stats.loads, stats.stores, stats.atomics, stats.barriers), (2, 1, 0, 0));
}

#[test]
fn the_same_module_becomes_the_same_kernel_each_time() {
    // What is kept between runs is cut from either.
    for (name, kernel) in corpus() {
        let (one, other) = (rewrite_within(&kernel, 256).unwrap(), rewrite_within(&kernel, 256).unwrap());
        assert!(one.words == other.words, "{name}: other words");
        assert_eq!((one.runs.of, one.sites), (other.runs.of, other.sites), "{name}");
    }
}

#[test]
fn loops_that_memory_decides_are_guarded_and_counted_ones_are_not() {
    let guarded = |name: &str| {
        let (_, kernel) = corpus().into_iter().find(|(found, _)| found == name).unwrap();
        let stats = rewrite(&kernel).unwrap().stats;
        (stats.guarded_loops, stats.counted_loops)
    };

    assert_eq!(guarded("list"), (1, 0));
    assert_eq!(guarded("bounds_from_memory"), (1, 0));
    assert_eq!(guarded("underflow_bound"), (1, 0));
    assert_eq!(guarded("grid_stride"), (0, 1));
}

#[test]
fn kernels_are_replayed_without_a_probe_where_it_is_proven_that_nothing_shows() {
    let replay = |name: &str| {
        let (_, kernel) = corpus().into_iter().find(|(found, _)| found == name).unwrap();
        rewrite(&kernel).unwrap().stats.replay
    };

    assert_eq!(replay("fill"), Replay::NoLoads);
    assert_eq!(replay("struct_store"), Replay::NoLoads);
    assert_eq!(replay("minimum"), Replay::NoLoads);
    assert_eq!(replay("alone"), Replay::StoresLast);
    // Source and destination might overlap, and neighbours may have stored.
    assert_eq!(replay("copy"), Replay::AfterProbe);
    assert_eq!(replay("update"), Replay::AfterProbe);
    // Additions count each time.
    assert_eq!(replay("atomic_add"), Replay::AfterProbe);
    // The second store may miss after the first.
    assert_eq!(replay("alone_twice"), Replay::AfterProbe);
    // The next round may miss after this one's store.
    assert_eq!(replay("alone_loop"), Replay::AfterProbe);
    // Another order of tickets when it runs again.
    assert_eq!(replay("ticket"), Replay::AfterProbe);
    // What the group makes of its values differs where a neighbour is poisoned.
    assert_eq!(replay("subgroup"), Replay::AfterProbe);
}

#[test]
fn neighbouring_loads_share_a_translation() {
    let (_, kernel) = corpus().into_iter().find(|(found, _)| found == "list").unwrap();
    let stats = rewrite(&kernel).unwrap().stats;

    assert_eq!((stats.loads, stats.merged, stats.translations), (2, 1, 2));
}

#[test]
fn a_kernel_of_the_include_is_refused_because_it_translates_already() {
    let error = rewrite(INCLUDED).unwrap_err();

    assert!(matches!(error, RewriteError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("vksvm's own"), "{error}");
}

/// spirv-val: the private driver folder's, under whose loader this process runs then, or the system's.
fn validator() -> Option<impl Fn() -> Command> {
    let start = || match std::env::var_os("VKSVM_RUNNER").map(PathBuf::from) {
        Some(runner) if runner.with_file_name("usr/bin/spirv-val").is_file() => {
            let mut command = Command::new(&runner);
            command.arg(runner.with_file_name("usr/bin/spirv-val"));
            command
        }
        _ => Command::new("spirv-val"),
    };
    start().arg("--version").output().is_ok_and(|output| output.status.success()).then_some(start)
}

#[test]
fn every_output_is_valid() {
    let Some(validator) = validator() else {
        eprintln!("SKIPPED: there is no spirv-val here (package `spirv-tools`)");
        return;
    };
    let folder = std::env::temp_dir().join(format!("vksvm-rewrite-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let invalid = |(name, words): (String, Vec<u32>)| {
        let path = folder.join(format!("{name}.spv"));
        std::fs::write(&path, bytes(&words)).unwrap();
        let run = validator().args(["--target-env", "vulkan1.2", "--scalar-block-layout"]).arg(&path).output().unwrap();
        (!run.status.success()).then(|| format!("{name}: {}", String::from_utf8_lossy(&run.stderr)))
    };
    let fast = variant::FAST | variant::IDEMPOTENT;
    let variants = [
        fast,
        variant::DIRECT | variant::IDEMPOTENT,
        variant::FAST | variant::PROBE,
        variant::PROBE,
        variant::LIVE | variant::LOCKSTEP,
    ];
    let mut found = Vec::new();
    let rare = ("list_with_a_rare_way_out".into(), list_with_a_rare_way_out());
    for (name, kernel) in corpus().into_iter().chain([rare]) {
        let rewritten = rewrite(&kernel).unwrap_or_else(|error| panic!("{name}: {error}"));
        let cut = variants.map(|bits| (format!("{name}, variant {bits}"), specialise(&rewritten.words, bits).unwrap()));
        found.extend([(name, rewritten.words)].into_iter().chain(cut).filter_map(invalid));
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A module's instructions: opcode, and all words.
fn instructions(words: &[u32]) -> Vec<(u32, Vec<u32>)> {
    let mut rest = &words[5..];
    let mut found = Vec::new();
    while let Some(&first) = rest.first() {
        let (instruction, after) = rest.split_at((first >> 16) as usize);
        found.push((first & 0xFFFF, instruction.to_vec()));
        rest = after;
    }
    found
}

fn words_of(kernel: &[u8]) -> Vec<u32> {
    kernel.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn accesses_are_named_by_line_or_else_by_instruction_and_function() {
    let (_, kernel) = corpus().into_iter().find(|(found, _)| found == "debug_information").unwrap();
    let lines = rewrite(&kernel).unwrap().sites;
    assert!(!lines.is_empty() && lines.iter().all(|line| line.contains("debug_information.comp:")), "{lines:?}");

    let instructions = rewrite(SAXPY).unwrap().sites;
    assert_eq!(instructions.len(), 3);
    assert!(instructions[0].starts_with("OpLoad %") && instructions[0].ends_with(" in main"), "{instructions:?}");
}

#[test]
fn lines_of_the_nonsemantic_instruction_set_count_like_any() {
    let words = words_of(SAXPY);
    let text = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(bytes.len() / 4 * 4 + 4, 0);
        words_of(&bytes)
    };
    let instruction = |opcode: Op, operands: &[u32]| {
        let first = (operands.len() as u32 + 1) << 16 | opcode as u32;
        [&[first], operands].concat()
    };
    let bound = words[3];
    let [set, file, source, line, column, nothing] = [0, 1, 2, 3, 4, 5].map(|id| bound + id);
    let all = instructions(&words);
    let uint = all.iter().find(|(opcode, words)| *opcode == Op::TypeInt as u32 && words[2..] == [32, 0]).unwrap().1[1];
    let void = all.iter().find(|(opcode, _)| *opcode == Op::TypeVoid as u32).unwrap().1[1];
    let mut with_lines = words[..5].to_vec();
    with_lines[3] += 6;
    for (opcode, instruction_words) in all {
        if opcode == Op::MemoryModel as u32 {
            let name = [&[set], &text("NonSemantic.Shader.DebugInfo.100")[..]].concat();
            with_lines.extend(instruction(Op::ExtInstImport, &name));
        }
        if opcode == Op::ExecutionMode as u32 {
            with_lines.extend(&instruction_words);
            with_lines.extend(instruction(Op::String, &[&[file], &text("other.hlsl")[..]].concat()));
            continue;
        }
        if opcode == Op::Function as u32 {
            with_lines.extend(instruction(Op::Constant, &[uint, line, 41]));
            with_lines.extend(instruction(Op::Constant, &[uint, column, 7]));
            with_lines.extend(instruction(Op::ExtInst, &[void, source, set, 35, file]));
        }
        if opcode == Op::Store as u32 {
            with_lines.extend(instruction(Op::ExtInst, &[void, nothing, set, 103, source, line, line, column, column]));
        }
        with_lines.extend(instruction_words);
    }

    let sites = rewrite(&bytes(&with_lines)).unwrap().sites;

    assert!(sites.contains(&"other.hlsl:41:7".to_owned()), "{sites:?}");
}

#[test]
fn rewriting_takes_time_in_proportion_to_size() {
    // Saxpy's loads and stores over and over, in one block.
    let repeated = |times: usize| {
        let words = words_of(SAXPY);
        let all = instructions(&words);
        let from = all.iter().position(|(opcode, _)| *opcode == Op::Store as u32).unwrap();
        let mut repeated = words[..5].to_vec();
        for (at, (_, instruction)) in all.iter().enumerate() {
            (0..if at == from { times } else { 1 }).for_each(|_| repeated.extend(instruction));
        }
        bytes(&repeated)
    };
    let time = |module: &[u8]| {
        let times = (0..3).map(|_| {
            let begin = Instant::now();
            rewrite(module).unwrap();
            begin.elapsed()
        });
        times.min().unwrap()
    };
    let (small, large) = (repeated(2_000), repeated(20_000));
    let (short, long) = (time(&small), time(&large));

    println!("{} bytes: {short:?}; {} bytes: {long:?}", small.len(), large.len());
    assert!(long < 30 * short, "ten times the size takes {long:?} after {short:?}");
}

#[test]
fn truncated_modules_are_refused() {
    for kernel in [SAXPY, LIST] {
        for end in 0..kernel.len() {
            assert!(rewrite(&kernel[..end]).is_err(), "{end} bytes were taken for a module");
        }
    }
}

#[test]
fn a_value_that_is_used_before_it_is_computed_is_refused_as_damage() {
    let words = words_of(LIST);
    let all = instructions(&words);
    // A load of what a later access chain makes.
    let chains = || all.iter().filter(|(opcode, _)| *opcode == Op::AccessChain as u32).map(|(_, words)| words[2]);
    let last = chains().next_back().unwrap();
    let load = all.iter().position(|(opcode, words)| *opcode == Op::Load as u32 && words.len() > 4).unwrap();
    assert!(all[load].1[3] != last);
    let damaged: Vec<u32> = all
        .iter()
        .enumerate()
        .flat_map(|(at, (_, words))| {
            let mut words = words.to_vec();
            if at == load {
                words[3] = last;
            }
            words
        })
        .collect();

    let error = rewrite(&bytes(&[&words[..5], &damaged].concat())).unwrap_err();

    assert!(matches!(&error, RewriteError::Malformed(_)), "{error}");
    assert!(error.to_string().contains(&format!("OpLoad uses id {last}, which is not computed")), "{error}");
}

/// A kernel that walks a list and leaves it only on some ways through the loop, with a pointer and with a structure
/// that holds pointers: types without a null constant.
fn list_with_a_rare_way_out() -> Vec<u8> {
    use rspirv::dr::Builder;
    use rspirv::spirv::*;
    let mut b = Builder::new();
    b.set_version(1, 5);
    for capability in [Capability::Shader, Capability::Int64, Capability::PhysicalStorageBufferAddresses] {
        b.capability(capability);
    }
    b.memory_model(AddressingModel::PhysicalStorageBuffer64, MemoryModel::GLSL450);
    let (void, bool) = (b.type_void(), b.type_bool());
    let (uint, ulong) = (b.type_int(32, 0), b.type_int(64, 0));
    let [node, pointer] = [b.id(), b.id()];
    b.type_forward_pointer(pointer, StorageClass::PhysicalStorageBuffer);
    b.type_struct_id(Some(node), [pointer, uint]);
    b.type_pointer(Some(pointer), StorageClass::PhysicalStorageBuffer, node);
    b.decorate(node, Decoration::Block, []);
    for (member, offset) in [(0, 0), (1, 8)] {
        b.member_decorate(node, member, Decoration::Offset, [Operand::LiteralBit32(offset)]);
    }
    let [zero, one, two] = [0, 1, 2].map(|value| b.constant_bit32(uint, value));
    let both = b.type_array(pointer, two);
    let pair = b.type_struct([both, uint]);
    let push = b.type_struct([ulong]);
    b.decorate(push, Decoration::Block, []);
    b.member_decorate(push, 0, Decoration::Offset, [Operand::LiteralBit32(0)]);
    let to_push = b.type_pointer(None, StorageClass::PushConstant, push);
    let to_head = b.type_pointer(None, StorageClass::PushConstant, ulong);
    let to_next = b.type_pointer(None, StorageClass::PhysicalStorageBuffer, pointer);
    let to_value = b.type_pointer(None, StorageClass::PhysicalStorageBuffer, uint);
    let arguments = b.variable(to_push, None, StorageClass::PushConstant, None);
    let signature = b.type_function(void, []);
    let main = b.begin_function(void, None, FunctionControl::NONE, signature).unwrap();
    let [entry, header, body, rare, go_on, back, merge] = std::array::from_fn(|_| b.id());
    let aligned = |bytes| [Operand::LiteralBit32(bytes)];

    b.begin_block(Some(entry)).unwrap();
    let head = b.access_chain(to_head, None, arguments, [zero]).unwrap();
    let head = b.load(ulong, None, head, None, []).unwrap();
    let head = b.convert_u_to_ptr(pointer, None, head).unwrap();
    let heads = b.composite_construct(both, None, [head, head]).unwrap();
    let heads = b.composite_construct(pair, None, [heads, one]).unwrap();
    b.branch(header).unwrap();

    let (next, pairs) = (b.id(), b.id());
    b.begin_block(Some(header)).unwrap();
    let at = b.phi(pointer, None, [(head, entry), (next, back)]).unwrap();
    let held = b.phi(pair, None, [(heads, entry), (pairs, back)]).unwrap();
    b.loop_merge(merge, back, LoopControl::NONE, []).unwrap();
    b.branch(body).unwrap();

    b.begin_block(Some(body)).unwrap();
    let place = b.access_chain(to_value, None, at, [one]).unwrap();
    let value = b.load(uint, None, place, Some(MemoryAccess::ALIGNED), aligned(4)).unwrap();
    let even = b.bitwise_and(uint, None, value, one).unwrap();
    let even = b.i_equal(bool, None, even, zero).unwrap();
    b.selection_merge(go_on, SelectionControl::NONE).unwrap();
    b.branch_conditional(even, rare, go_on, []).unwrap();

    b.begin_block(Some(rare)).unwrap();
    let ends = b.i_equal(bool, None, value, zero).unwrap();
    b.branch_conditional(ends, merge, go_on, []).unwrap();

    b.begin_block(Some(go_on)).unwrap();
    let place = b.access_chain(to_next, None, at, [zero]).unwrap();
    b.load(pointer, Some(next), place, Some(MemoryAccess::ALIGNED), aligned(8)).unwrap();
    let nexts = b.composite_construct(both, None, [next, at]).unwrap();
    b.composite_construct(pair, Some(pairs), [nexts, value]).unwrap();
    b.branch(back).unwrap();

    b.begin_block(Some(back)).unwrap();
    b.branch(header).unwrap();

    b.begin_block(Some(merge)).unwrap();
    let last = b.phi(pointer, None, [(at, rare)]).unwrap();
    let held = b.phi(pair, None, [(held, rare)]).unwrap();
    let count = b.composite_extract(uint, None, held, [1]).unwrap();
    let place = b.access_chain(to_value, None, last, [one]).unwrap();
    b.store(place, count, Some(MemoryAccess::ALIGNED), aligned(4)).unwrap();
    b.ret().unwrap();
    b.end_function().unwrap();
    b.entry_point(ExecutionModel::GLCompute, main, "main", [arguments]);
    b.execution_mode(main, ExecutionMode::LocalSize, [1, 1, 1]);
    bytes(&Assemble::assemble(&b.module()))
}

#[test]
fn poisoned_invocations_leave_a_loop_with_a_zero_of_types_that_have_no_null_constant() {
    let rewritten = rewrite(&list_with_a_rare_way_out()).unwrap().words;
    let all = instructions(&rewritten);
    let of = |opcode: Op| all.iter().filter(move |&&(is, _)| is == opcode as u32).map(|(_, words)| words);
    let aggregates = [Op::TypePointer, Op::TypeArray, Op::TypeStruct].into_iter().flat_map(of);
    let aggregates: Vec<u32> = aggregates.map(|words| words[1]).collect();
    assert_eq!(of(Op::ConstantNull).filter(|words| aggregates.contains(&words[1])).count(), 0);
    let pointer_zeros =
        of(Op::ConvertUToPtr).filter(|words| of(Op::Constant).any(|c| c[2] == words[3] && c[3..] == [0, 0]));
    // One for the pointer, and one that fills the array in the structure.
    assert_eq!(pointer_zeros.count(), 2);
}
