//! The proof over what was rewritten: each access to physical memory goes through what the library's translations returned, and that
//! covers it.
//!
//! | asked of | |
//! |---|---|
//! | the pointer | it is what a call of the library returned, plus a constant |
//! | the call | it gives what the access needs: loads are given what was translated for loading, stores and atomics what was translated for storing |
//! | the bytes | an object: they are among those that were asked for. All else: they end before the next multiple of what the accesses promise of the address's alignment, so no page ends among them |
//! | a reused translation | its address differs by the constant that the library is told; a page ends between the two only where a promise is broken, which the library looks at; a store reuses only what was translated for storing |
//! | a peek | it is at the very address, and only loads use it |
//! | an object that is stored | what was stored is made part of it: the call that ends it names the same address, bytes and translation |
//!
//! It works on the output alone: values are numbered and types laid out again, by what stands in the module now.

use super::addresses::{Addresses, Known, long};
use super::code::Code;
use super::error::RewriteError;
use super::layout::Layouts;
use super::link::Linked;
use super::operands::{MemoryOperands, is_atomic};
use rspirv::dr::{Function, Instruction, Operand};
use rspirv::spirv::{Op, Word};
use std::collections::{HashMap, HashSet};

const PAGE: u64 = crate::addr::PAGE_SIZE as u64;

/// What an access needs, or a translation gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Read,
    Write,
    /// Finds in a probe what is there, as a load does, and stores.
    Atomic,
}

/// How a function of the library makes a device address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Of its first argument, on that page.
    Word,
    /// Of as many bytes as its second argument says.
    Object,
    /// Out of a translation before it.
    Again,
    /// Out of a peek.
    Hoisted,
}

/// What each function of the library gives that returns device addresses.
const GIVES: [(&str, Form, &[Does]); 22] = {
    use Form::{Again, Hoisted, Object, Word};
    const READ: &[Does] = &[Does::Read];
    const STORE: &[Does] = &[Does::Write, Does::Atomic];
    [
        ("link_read", Word, READ),
        ("link_run_read", Word, READ),
        ("link_own_read", Word, READ),
        ("link_near_read", Word, READ),
        ("link_write", Word, STORE),
        ("link_atomic", Word, STORE),
        ("link_run_write", Word, STORE),
        ("link_own_write", Word, STORE),
        ("link_near_write", Word, STORE),
        ("link_read_object", Object, READ),
        ("link_run_read_object", Object, READ),
        ("link_own_read_object", Object, READ),
        ("link_near_read_object", Object, READ),
        ("link_begin_write", Object, &[Does::Write]),
        ("link_run_begin_write", Object, &[Does::Write]),
        ("link_own_begin_write", Object, &[Does::Write]),
        ("link_near_begin_write", Object, &[Does::Write]),
        ("link_hoisted_read", Hoisted, READ),
        ("link_again_read", Again, READ),
        ("link_again_read_stored", Again, READ),
        ("link_again_write", Again, &[Does::Write]),
        ("link_again_atomic", Again, STORE),
    ]
};

/// The library's functions that the proof relies on.
struct Trusted {
    gives: HashMap<Word, (&'static str, Form, &'static [Does])>,
    peek: Word,
    end_write: Word,
}

/// Proves that the functions before `own` access physical memory only through translations that cover what they do.
pub(super) fn verify(code: &Code, own: usize, linked: &Linked, known: Known<'_>) -> Result<(), RewriteError> {
    let gives = GIVES.iter().map(|&(name, form, does)| Ok((linked.function(name)?, (name, form, does))));
    let trusted = Trusted {
        gives: gives.collect::<Result<_, RewriteError>>()?,
        peek: linked.function("link_peek_read")?,
        end_write: linked.function("link_end_write")?,
    };
    // Pointers whose type does not say what they lead to are none that are looked at below.
    if let Some(untyped) =
        code.module.types_global_values.iter().find(|global| global.class.opcode == Op::TypeUntypedPointerKHR)
    {
        return Err(RewriteError::Untranslated { instruction: code.show(untyped) });
    }
    // Matrices lie in structures that were made for them since.
    let layouts = Layouts::of(code);
    for function in &code.module.functions[..own] {
        let proof = Proof::of(code, function, &trusted, Known { layouts: &layouts, ..known });
        for instruction in function.all_inst_iter() {
            if !proof.holds(instruction) {
                return Err(RewriteError::Untranslated { instruction: code.show(instruction) });
            }
        }
    }
    Ok(())
}

/// An access through a pointer to physical memory.
struct Made {
    does: Does,
    pointer: Word,
    /// What it says of its alignment.
    said: u64,
}

/// What an instruction does through such a pointer; `Err` if it is none that may be left.
fn access(code: &Code, instruction: &Instruction) -> Option<Result<Made, ()>> {
    let physical = |index: usize| {
        let id = instruction.operands.get(index).and_then(Operand::id_ref_any);
        id.filter(|id| code.physical(*id).is_some())
    };
    let (does, before) = match instruction.class.opcode {
        Op::Load => (Does::Read, 1),
        Op::Store => (Does::Write, 2),
        Op::AtomicLoad => (Does::Read, usize::MAX),
        opcode if is_atomic(opcode) => (Does::Atomic, usize::MAX),
        // Copies became loads and stores.
        Op::CopyMemory => return physical(0).or(physical(1)).map(|_| Err(())),
        _ => return None,
    };
    let pointer = physical(0)?;
    let said = match MemoryOperands::parse(instruction.operands.get(before..).unwrap_or_default()) {
        Some((memory, [])) => u64::from(memory.align.unwrap_or(1)),
        _ => return Some(Err(())),
    };
    Some(Ok(Made { does, pointer, said }))
}

/// Where a pointer leads: `offset` bytes from the device address that a call returned.
#[derive(Clone, Copy)]
struct Place {
    call: Word,
    offset: u64,
    /// Bytes of what it points to.
    bytes: u64,
}

/// What is known of a function that was rewritten.
struct Proof<'a> {
    code: &'a Code,
    trusted: &'a Trusted,
    layouts: &'a Layouts,
    definitions: HashMap<Word, &'a Instruction>,
    addresses: Addresses<'a>,
    /// What the accesses through a device address promise of its alignment.
    aligned: HashMap<Word, u64>,
    /// Objects whose stores are made part of them: address, bytes and translation.
    ended: HashSet<[Word; 3]>,
}

impl<'a> Proof<'a> {
    fn of(code: &'a Code, function: &'a Function, trusted: &'a Trusted, known: Known<'a>) -> Self {
        let definitions: HashMap<Word, &Instruction> =
            function.all_inst_iter().filter_map(|instruction| Some((instruction.result_id?, instruction))).collect();
        let ended = function.all_inst_iter().filter_map(|instruction| match instruction.operands[..] {
            [Operand::IdRef(end), Operand::IdRef(va), Operand::IdRef(bytes), Operand::IdRef(address)]
                if instruction.class.opcode == Op::FunctionCall && end == trusted.end_write =>
            {
                Some([va, bytes, address])
            }
            _ => None,
        });
        let mut proof = Self {
            code,
            trusted,
            layouts: known.layouts,
            addresses: Addresses::of(code, known, function),
            aligned: HashMap::new(),
            ended: ended.collect(),
            definitions,
        };
        for made in function.all_inst_iter().filter_map(|instruction| access(code, instruction)?.ok()) {
            let natural = code.physical(made.pointer).and_then(|pointee| known.layouts.scalar(code, pointee, 0));
            let promised = made.said.max(u64::from(natural.unwrap_or(1)));
            if let Some(place) = proof.place(made.pointer).filter(|place| place.offset.is_multiple_of(promised)) {
                let aligned = proof.aligned.entry(place.call).or_insert(1);
                *aligned = promised.max(*aligned);
            }
        }
        proof
    }

    fn operands(&self, id: Word, opcode: Op) -> Option<&'a [Operand]> {
        self.definitions
            .get(&id)
            .filter(|definition| definition.class.opcode == opcode)
            .map(|found| &found.operands[..])
    }

    /// Whether an instruction accesses no physical memory but through what covers it.
    fn holds(&self, instruction: &Instruction) -> bool {
        match access(self.code, instruction) {
            None => true,
            Some(Err(())) => false,
            Some(Ok(made)) => self.place(made.pointer).is_some_and(|place| self.covers(place, made.does)),
        }
    }

    /// Where a pointer leads, if it is what a call returned plus a constant.
    fn place(&self, id: Word) -> Option<Place> {
        let pointee = self.code.physical(id)?;
        // A matrix is the only member of the structure that says how it lies.
        let (id, matrix) = match self.operands(id, Op::AccessChain) {
            Some([Operand::IdRef(holder), Operand::IdRef(first)]) if self.code.constant_value(*first) == Some(0) => {
                (*holder, self.layouts.matrix(self.code.physical(*holder)?, 0))
            }
            _ => (id, None),
        };
        let bytes = self.layouts.size_within(self.code, pointee, matrix, 0)?;
        let [Operand::IdRef(address)] = self.operands(id, Op::ConvertUToPtr)? else { return None };
        let (call, offset) = match self.operands(*address, Op::IAdd) {
            Some([Operand::IdRef(base), Operand::IdRef(more)]) => (*base, long(self.code, *more)?),
            _ => (*address, 0),
        };
        Some(Place { call, offset, bytes })
    }

    /// Whether what a call returned is good for an access there.
    fn covers(&self, place: Place, does: Does) -> bool {
        let Some((function, form, arguments)) = self.call(place.call) else { return false };
        let Some(&(_, _, gives)) = self.trusted.gives.get(&function) else { return false };
        let Some(end) = place.offset.checked_add(place.bytes) else { return false };
        let on_page = end <= self.promised(place.call);
        gives.contains(&does)
            && match (form, arguments) {
                // A run may follow.
                (Form::Word, [_] | [_, _, _, _]) => on_page,
                (Form::Hoisted, [Operand::IdRef(va), Operand::IdRef(peeked)]) => {
                    on_page && self.is_peek_of(*va, *peeked)
                }
                (Form::Again, [Operand::IdRef(va), Operand::IdRef(before), Operand::IdRef(distance)]) => {
                    on_page && self.is_beside(place.call, *va, *before, *distance)
                }
                (
                    Form::Object,
                    [Operand::IdRef(va), Operand::IdRef(asked)] | [Operand::IdRef(va), Operand::IdRef(asked), _, _, _],
                ) => {
                    let bytes = self.code.constant_value(*asked).map(u64::from);
                    bytes.is_some_and(|bytes| end <= bytes && bytes <= PAGE)
                        && (does == Does::Read || self.ended.contains(&[*va, *asked, place.call]))
                }
                _ => false,
            }
    }

    /// A call of the library that returns a device address: the function, its form, the arguments.
    fn call(&self, id: Word) -> Option<(Word, Form, &'a [Operand])> {
        let [Operand::IdRef(function), arguments @ ..] = self.operands(id, Op::FunctionCall)? else { return None };
        self.trusted.gives.get(function).map(|&(_, form, _)| (*function, form, arguments))
    }

    /// What a device address is aligned to; no page ends before the next multiple of it.
    fn promised(&self, address: Word) -> u64 {
        self.aligned.get(&address).copied().unwrap_or(1).min(PAGE)
    }

    /// Whether a peek was at this address.
    fn is_peek_of(&self, va: Word, peeked: Word) -> bool {
        let call = self.operands(peeked, Op::FunctionCall);
        matches!(call, Some([Operand::IdRef(function), Operand::IdRef(at)])
            if *function == self.trusted.peek && self.addresses.get(*at) == self.addresses.get(va))
    }

    /// Whether `before` is as far from what a translation returned as `va` is from what that was asked for, and alignment says that no page
    /// ends between them; the library is told that distance and `again` is the address that is made of it. And whether what the translation
    /// gives is enough for the function that makes it.
    fn is_beside(&self, again: Word, va: Word, before: Word, told: Word) -> bool {
        let (translated, distance) = match self.operands(before, Op::IAdd) {
            Some([Operand::IdRef(base), Operand::IdRef(more)]) => match long(self.code, *more) {
                Some(distance) => (*base, distance),
                None => return false,
            },
            _ => (before, 0),
        };
        let (Some((function, _, _)), Some((source, form, [Operand::IdRef(asked), ..]))) =
            (self.call(again), self.call(translated))
        else {
            return false;
        };
        let (Some((name, ..)), Some((_, _, gave))) =
            (self.trusted.gives.get(&function), self.trusted.gives.get(&source))
        else {
            return false;
        };
        // What was translated for storing may have been the sink's address, which loads must not use; what was translated for loading need
        // not be writable.
        let enough = match *name {
            "link_again_read" => gave.contains(&Does::Read),
            "link_again_read_stored" => true,
            _ => gave.contains(&Does::Write),
        };
        let (key, offset) = self.addresses.get(va);
        let (of, from) = self.addresses.get(*asked);
        // Objects may be copies.
        enough
            && matches!(form, Form::Word | Form::Hoisted)
            && key == of
            && offset.wrapping_sub(from) == distance
            && self.code.constant_value(told) == Some(distance as u32)
            && (distance < self.promised(translated) || distance.wrapping_neg() < self.promised(again))
    }
}
