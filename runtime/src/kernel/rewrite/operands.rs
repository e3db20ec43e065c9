//! What accesses say of themselves: memory operands, which instructions are atomics, and which of the library's functions translates.

use super::runs::Origin;
use rspirv::dr::Operand;
use rspirv::spirv::{MemoryAccess, Op};

/// Memory operands of a load or store.
#[derive(Clone, Debug)]
pub(super) struct MemoryOperands {
    bits: MemoryAccess,
    /// The alignment that is promised.
    pub(super) align: Option<u32>,
    available: Option<Operand>,
    visible: Option<Operand>,
}

impl MemoryOperands {
    /// Reads the first set of memory operands; what follows it is a second set (of `OpCopyMemory`).
    pub(super) fn parse(operands: &[Operand]) -> Option<(Self, &[Operand])> {
        let none = Self { bits: MemoryAccess::NONE, align: None, available: None, visible: None };
        let [Operand::MemoryAccess(bits), rest @ ..] = operands else {
            return operands.is_empty().then_some((none, operands));
        };
        let known = MemoryAccess::VOLATILE
            | MemoryAccess::ALIGNED
            | MemoryAccess::NONTEMPORAL
            | MemoryAccess::MAKE_POINTER_AVAILABLE
            | MemoryAccess::MAKE_POINTER_VISIBLE
            | MemoryAccess::NON_PRIVATE_POINTER;
        if !known.contains(*bits) {
            return None;
        }
        let mut parsed = Self { bits: *bits, ..none };
        let mut rest = rest;
        if bits.contains(MemoryAccess::ALIGNED) {
            let [Operand::LiteralBit32(align), more @ ..] = rest else { return None };
            (parsed.align, rest) = (Some(*align), more);
        }
        for (bit, scope) in [
            (MemoryAccess::MAKE_POINTER_AVAILABLE, &mut parsed.available),
            (MemoryAccess::MAKE_POINTER_VISIBLE, &mut parsed.visible),
        ] {
            if bits.contains(bit) {
                let [operand, more @ ..] = rest else { return None };
                (*scope, rest) = (Some(operand.clone()), more);
            }
        }
        Some((parsed, rest))
    }

    pub(super) fn is_volatile(&self) -> bool {
        self.bits.contains(MemoryAccess::VOLATILE)
    }

    pub(super) fn operands(&self, align: Option<u32>) -> Vec<Operand> {
        let mut bits = self.bits - MemoryAccess::ALIGNED;
        if align.is_some() {
            bits |= MemoryAccess::ALIGNED;
        }
        if bits.is_empty() {
            return Vec::new();
        }
        let aligned = align.map(Operand::LiteralBit32);
        std::iter::once(Operand::MemoryAccess(bits))
            .chain(aligned)
            .chain(self.available.clone())
            .chain(self.visible.clone())
            .collect()
    }

    pub(super) fn for_load(&self) -> Self {
        Self { bits: self.bits - MemoryAccess::MAKE_POINTER_AVAILABLE, available: None, ..self.clone() }
    }

    pub(super) fn for_store(&self) -> Self {
        Self { bits: self.bits - MemoryAccess::MAKE_POINTER_VISIBLE, visible: None, ..self.clone() }
    }
}

/// The operand of an atomic or of another access that is the pointer it works on.
pub(super) fn is_atomic(opcode: Op) -> bool {
    matches!(
        opcode,
        Op::AtomicLoad
            | Op::AtomicStore
            | Op::AtomicExchange
            | Op::AtomicCompareExchange
            | Op::AtomicIIncrement
            | Op::AtomicIDecrement
            | Op::AtomicIAdd
            | Op::AtomicISub
            | Op::AtomicSMin
            | Op::AtomicUMin
            | Op::AtomicSMax
            | Op::AtomicUMax
            | Op::AtomicAnd
            | Op::AtomicOr
            | Op::AtomicXor
            | Op::AtomicFAddEXT
            | Op::AtomicFMinEXT
            | Op::AtomicFMaxEXT
    )
}

/// The translation that looks at a run first.
pub(super) fn run_variant(function: &str, origin: Origin) -> &'static str {
    let of = |own, run, near| match origin {
        Origin::Own => own,
        Origin::Argument => run,
        Origin::Somewhere => near,
    };
    match function {
        "link_read" => of("link_own_read", "link_run_read", "link_near_read"),
        "link_read_object" => of("link_own_read_object", "link_run_read_object", "link_near_read_object"),
        "link_begin_write" => of("link_own_begin_write", "link_run_begin_write", "link_near_begin_write"),
        _ => of("link_own_write", "link_run_write", "link_near_write"),
    }
}
