//! Neighbouring loads of one object share a translation.
//!
//! Within a block, loads whose addresses differ only by constants, with nothing between them that could store or
//! synchronise, are made together where the first of them was: one translation covers the bytes from the first to
//! the last, and every load follows it at once. All of them would have been made anyway, so no page is touched that
//! the shader would not touch.

use super::addresses::{Addresses, Key};
use super::code::Code;
use super::layout::Layouts;
use super::operands::MemoryOperands;
use rspirv::dr::{Instruction, Operand};
use rspirv::spirv::{Op, StorageClass};
use std::collections::HashMap;

/// Loads further apart than this are not made together.
const MAX_SPAN: u64 = 256;

/// A load that is made with others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// Its place in the block.
    pub(super) at: usize,
    /// Bytes from the start of the group.
    pub(super) offset: u64,
}

/// Loads that are made together.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) members: Vec<Member>,
    /// Bytes from the start of the first byte to the end of the last.
    pub(super) bytes: u64,
    /// What the first byte is aligned to, if that proves that all lie on one page.
    pub(super) on_one_page: Option<u64>,
}

struct Candidate {
    at: usize,
    offset: u64,
    bytes: u64,
    align: u64,
}

/// Finds the groups of a block, by the place of their first load.
pub(super) fn find(
    code: &Code,
    layouts: &Layouts,
    addresses: &Addresses<'_>,
    block: &[Instruction],
) -> HashMap<usize, Group> {
    let mut groups = HashMap::new();
    let mut open: HashMap<Key, Vec<Candidate>> = HashMap::new();
    for (at, instruction) in block.iter().enumerate() {
        if let Some((key, candidate)) = candidate(code, layouts, addresses, at, instruction) {
            let loads = open.entry(key).or_default();
            let first = loads.iter().map(|load| load.offset).min().unwrap_or(candidate.offset).min(candidate.offset);
            let end = |load: &Candidate| load.offset + load.bytes;
            let last = loads.iter().map(end).max().unwrap_or(0).max(end(&candidate));
            if last - first > MAX_SPAN {
                close(&mut groups, std::mem::take(loads));
            }
            loads.push(candidate);
        } else if ends_groups(code, instruction) {
            open.drain().for_each(|(_, loads)| close(&mut groups, loads));
        }
    }
    open.into_iter().for_each(|(_, loads)| close(&mut groups, loads));
    groups
}

fn candidate(
    code: &Code,
    layouts: &Layouts,
    addresses: &Addresses<'_>,
    at: usize,
    instruction: &Instruction,
) -> Option<(Key, Candidate)> {
    if instruction.class.opcode != Op::Load {
        return None;
    }
    let pointer = instruction.operands.first()?.id_ref_any()?;
    let pointee = code.physical(pointer)?;
    let (memory, _) = MemoryOperands::parse(instruction.operands.get(1..)?)?;
    if memory.is_volatile() || addresses.is_matrix(pointer) {
        return None;
    }
    let bytes = layouts.size(code, pointee).filter(|&bytes| bytes <= MAX_SPAN)?;
    let align = memory.align.unwrap_or(1).max(layouts.scalar(code, pointee, 0)?);
    let (key, offset) = addresses.get(pointer);
    // Far from anything that could be added without overflow.
    let offset = Some(offset).filter(|&offset| offset < 1 << 32)?;
    Some((key, Candidate { at, offset, bytes, align: u64::from(align) }))
}

/// Whether loads must not be moved over an instruction.
fn ends_groups(code: &Code, instruction: &Instruction) -> bool {
    let private = |index: usize| {
        let pointer = instruction.operands.get(index).and_then(Operand::id_ref_any);
        let class = pointer.and_then(|pointer| code.type_of(pointer)).and_then(|ty| code.pointee(ty));
        matches!(class, Some((StorageClass::Function | StorageClass::Private | StorageClass::Workgroup, _)))
    };
    match instruction.class.opcode {
        Op::Load => code.physical(instruction.operands[0].id_ref_any().unwrap_or_default()).is_some(),
        Op::Store => !private(0),
        Op::CopyMemory => !(private(0) && private(1)),
        Op::FunctionCall | Op::ControlBarrier | Op::MemoryBarrier => true,
        opcode => super::operands::is_atomic(opcode),
    }
}

fn close(groups: &mut HashMap<usize, Group>, mut loads: Vec<Candidate>) {
    loads.sort_by_key(|load| load.at);
    let (Some(first), true) = (loads.first().map(|load| load.at), loads.len() > 1) else { return };
    let start = loads.iter().map(|load| load.offset).min().unwrap_or_default();
    let bytes = loads.iter().map(|load| load.offset + load.bytes).max().unwrap_or_default() - start;
    // One load's alignment may show that all lie between two multiples of it.
    let on_one_page = loads.iter().find_map(|load| {
        let shows = load.align.is_power_of_two() && load.offset == start && bytes <= load.align;
        shows.then_some(load.align)
    });
    let members = loads.iter().map(|load| Member { at: load.at, offset: load.offset - start }).collect();
    groups.insert(first, Group { members, bytes, on_one_page });
}
