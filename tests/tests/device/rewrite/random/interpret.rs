//! Runs a program on the CPU: all invocations of a workgroup side by side, statement by statement.

use super::program::{Atomic, Binary, Cond, Expr, Form, Function, Input, Place, Program, SLOTS, Step, Stmt, Ty, Whose};
use super::types::{Memory, Role, Type, TypeId};
use std::collections::HashSet;

/// Statements that a workgroup may run, times invocations.
const MAX_STEPS: u64 = 60_000;

/// Source, destination and counters.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) source: Memory,
    pub(super) destination: Memory,
    pub(super) counters: Memory,
}

/// What running a program came to.
pub(super) struct Run {
    pub(super) world: World,
    /// The most pages that a workgroup touched.
    pub(super) pages: usize,
}

/// A program that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// It takes too long.
    Long,
    /// It touches what it must not, which is the generator's mistake.
    Wild(String),
}

/// Runs the program.
pub(super) fn run(program: &Program, world: World) -> Result<Run, Unusable> {
    let mut pages = 0;
    let mut world = world;
    for group in 0..program.grid[0] * program.grid[1] {
        let mut machine = Machine { program, group, world, frames: Vec::new(), pages: HashSet::new(), steps: 0 };
        let all = u64::MAX >> (64 - program.per_group());
        machine.call(program.functions.len() - 1, &[], all)?;
        pages = pages.max(machine.pages.len());
        world = machine.world;
    }
    Ok(Run { world, pages })
}

/// A function being run, by invocation.
struct Frame {
    /// Variables by invocation.
    values: Vec<Vec<u64>>,
    slots: Vec<[u64; SLOTS as usize]>,
    results: Vec<u64>,
}

/// Invocations that have left a statement list early.
#[derive(Clone, Copy, Default)]
struct Left {
    broke: u64,
    continued: u64,
    returned: u64,
}

impl Left {
    fn all(self) -> u64 {
        self.broke | self.continued | self.returned
    }
}

struct Machine<'a> {
    program: &'a Program,
    group: u32,
    world: World,
    frames: Vec<Frame>,
    pages: HashSet<u64>,
    steps: u64,
}

/// What lies at a place.
#[derive(Clone, Copy)]
enum What {
    Object(TypeId),
    /// A component, of so many bytes.
    Scalar(u32),
}

fn lanes(mask: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |lane| mask >> lane & 1 != 0)
}

impl Machine<'_> {
    fn call(&mut self, function: usize, arguments: &[Vec<u64>], mask: u64) -> Result<Vec<u64>, Unusable> {
        let Function { variables, body, .. } = &self.program.functions[function];
        let count = self.program.per_group() as usize;
        let types = &self.program.types;
        let first: Vec<u64> = variables
            .iter()
            .map(|ty| match ty {
                Ty::Pointer(node) => types.address(*node, 0, self.world.source.base, self.world.destination.base),
                Ty::Word | Ty::Long => 0,
            })
            .collect();
        let mut values = vec![first; count];
        for (parameter, argument) in arguments.iter().enumerate() {
            (0..count).for_each(|lane| values[lane][parameter] = argument[lane]);
        }
        self.frames.push(Frame { values, slots: vec![[0; SLOTS as usize]; count], results: vec![0; count] });
        self.block(body, mask, &mut Left::default())?;
        Ok(self.frames.pop().map_or_else(Vec::new, |frame| frame.results))
    }

    fn frame(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("a function is running")
    }

    fn block(&mut self, body: &[Stmt], mask: u64, left: &mut Left) -> Result<(), Unusable> {
        for stmt in body {
            let mask = mask & !left.all();
            if mask == 0 {
                return Ok(());
            }
            self.steps += u64::from(mask.count_ones());
            if self.steps > MAX_STEPS {
                return Err(Unusable::Long);
            }
            self.stmt(stmt, mask, left)?;
        }
        Ok(())
    }

    fn stmt(&mut self, stmt: &Stmt, mask: u64, left: &mut Left) -> Result<(), Unusable> {
        match stmt {
            Stmt::Set(var, value) => {
                for lane in lanes(mask) {
                    let value = self.eval(value, lane)?;
                    self.frame().values[lane][*var] = value;
                }
            }
            Stmt::Store(place, value) => {
                for lane in lanes(mask) {
                    let value = self.eval(value, lane)?;
                    let (address, what) = self.place(place, lane)?;
                    self.set(address, self.bytes(what), value)?;
                }
            }
            Stmt::Copy { to, from, .. } => {
                for lane in lanes(mask) {
                    let (from, what) = self.place(from, lane)?;
                    let (to, _) = self.place(to, lane)?;
                    match what {
                        What::Object(ty) => self.copy(from, to, ty)?,
                        What::Scalar(bytes) => {
                            let value = self.get(from, bytes)?;
                            self.set(to, bytes, value)?;
                        }
                    }
                }
            }
            Stmt::Atomic { kind, index, value } => {
                for lane in lanes(mask) {
                    let index = self.eval(index, lane)? as u32;
                    let value = self.eval(value, lane)?;
                    self.atomic(*kind, index, value)?;
                }
            }
            Stmt::SetSlot(index, value) => {
                for lane in lanes(mask) {
                    let index = self.eval(index, lane)? as usize;
                    let value = self.eval(value, lane)?;
                    *self.frame().slots[lane].get_mut(index).ok_or_else(|| wild("slot"))? = value;
                }
            }
            Stmt::If(cond, yes, no) => {
                let taken = self.test(cond, mask)?;
                self.block(yes, taken, left)?;
                self.block(no, mask & !taken, left)?;
            }
            Stmt::Switch(selector, cases) => {
                let mut chosen = vec![0u64; cases.len()];
                for lane in lanes(mask) {
                    let value = self.eval(selector, lane)?;
                    chosen[value as usize % cases.len()] |= 1 << lane;
                }
                let mut falling = 0;
                for (at, (case, falls)) in cases.iter().enumerate() {
                    let here = (chosen[at] | falling) & !left.all();
                    self.block(case, here, left)?;
                    falling = if *falls { here } else { 0 };
                }
            }
            Stmt::For { var, bound, form, body } => {
                let mut bounds = vec![0; 64];
                for lane in lanes(mask) {
                    bounds[lane] = self.eval(bound, lane)? as u32;
                    self.frame().values[lane][*var] = 0;
                }
                let more = |machine: &mut Self, mask: u64| {
                    Ok(lanes(mask)
                        .filter(|&lane| (machine.frame().values[lane][*var] as u32) < bounds[lane])
                        .fold(0, |more, lane| more | 1 << lane))
                };
                let step = |machine: &mut Self, mask: u64| {
                    lanes(mask).for_each(|lane| machine.frame().values[lane][*var] += 1);
                    Ok(())
                };
                self.go_round(*form, body, mask, left, more, step)?;
            }
            Stmt::Walk { var, node, start, form, body } => {
                for lane in lanes(mask) {
                    let start = self.eval(start, lane)?;
                    self.frame().values[lane][*var] = start;
                }
                let more = |machine: &mut Self, mask: u64| {
                    let frame = machine.frame();
                    Ok(lanes(mask).filter(|&lane| frame.values[lane][*var] != 0).fold(0, |more, lane| more | 1 << lane))
                };
                let offset = self.next_offset(*node);
                let step = |machine: &mut Self, mask: u64| {
                    for lane in lanes(mask) {
                        let at = machine.frame().values[lane][*var] + offset;
                        let next = machine.get(at, 8)?;
                        machine.frame().values[lane][*var] = next;
                    }
                    Ok(())
                };
                self.go_round(*form, body, mask, left, more, step)?;
            }
            Stmt::Break => left.broke |= mask,
            Stmt::Continue => left.continued |= mask,
            Stmt::Return(value) => {
                if let Some(value) = value {
                    for lane in lanes(mask) {
                        let value = self.eval(value, lane)?;
                        self.frame().results[lane] = value;
                    }
                }
                left.returned |= mask;
            }
            Stmt::Exchange { to, value, whose } => {
                let count = self.program.per_group();
                if mask != u64::MAX >> (64 - count) {
                    return Err(wild("barrier in divergent control flow"));
                }
                let words: Result<Vec<_>, _> = lanes(mask).map(|lane| self.eval(value, lane)).collect();
                let words = words?;
                for lane in lanes(mask) {
                    let index = match whose {
                        Whose::Rotate(by) => (lane as u32 + by) % count,
                        Whose::At(index) => self.eval(index, lane)? as u32,
                    };
                    let word = *words.get(index as usize).ok_or_else(|| wild("shared memory"))?;
                    self.frame().values[lane][*to] = word;
                }
            }
            Stmt::Call { function, arguments, to } => {
                let count = self.program.per_group() as usize;
                let mut given = Vec::new();
                for argument in arguments {
                    let mut values = vec![0; count];
                    for lane in lanes(mask) {
                        values[lane] = self.eval(argument, lane)?;
                    }
                    given.push(values);
                }
                let results = self.call(*function, &given, mask)?;
                if let Some(to) = to {
                    lanes(mask).for_each(|lane| self.frame().values[lane][*to] = results[lane]);
                }
            }
        }
        Ok(())
    }

    /// Runs a loop's body while `more` says so.
    fn go_round(
        &mut self,
        form: Form,
        body: &[Stmt],
        mask: u64,
        left: &mut Left,
        more: impl Fn(&mut Self, u64) -> Result<u64, Unusable>,
        step: impl Fn(&mut Self, u64) -> Result<(), Unusable>,
    ) -> Result<(), Unusable> {
        let mut going = mask;
        if form != Form::Bottom {
            going = more(self, going)?;
        }
        while going != 0 {
            self.steps += u64::from(going.count_ones());
            let mut inner = Left::default();
            self.block(body, going, &mut inner)?;
            left.returned |= inner.returned;
            going &= !(inner.broke | inner.returned);
            step(self, going)?;
            going = more(self, going)?;
        }
        Ok(())
    }

    /// Where a kind's nodes keep the pointer to the next.
    fn next_offset(&self, node: usize) -> u64 {
        let types = &self.program.types;
        match &types.all[types.nodes[node].ty] {
            Type::Struct(members) => {
                let next = members.iter().find(|member| member.role == Role::Next);
                next.map_or(0, |member| u64::from(member.offset))
            }
            _ => 0,
        }
    }

    fn test(&mut self, cond: &Cond, mask: u64) -> Result<u64, Unusable> {
        let mut taken = 0;
        for lane in lanes(mask) {
            taken |= u64::from(self.cond(cond, lane)?) << lane;
        }
        Ok(taken)
    }

    fn cond(&mut self, cond: &Cond, lane: usize) -> Result<bool, Unusable> {
        Ok(match cond {
            Cond::Less(a, b) => self.eval(a, lane)? < self.eval(b, lane)?,
            Cond::Equal(a, b) => self.eval(a, lane)? == self.eval(b, lane)?,
            Cond::Not(cond) => !self.cond(cond, lane)?,
            // Both are evaluated, as the shader does.
            Cond::Both(a, b) => self.cond(a, lane)? & self.cond(b, lane)?,
        })
    }

    fn eval(&mut self, expr: &Expr, lane: usize) -> Result<u64, Unusable> {
        let program = self.program;
        Ok(match expr {
            Expr::Word(value) => u64::from(*value),
            Expr::Long(value) => *value,
            Expr::Var(var) => self.frame().values[lane][*var],
            Expr::Input(input) => u64::from(self.input(*input, lane as u32)),
            Expr::Binary(operation, ty, a, b) => {
                let (a, b) = (self.eval(a, lane)?, self.eval(b, lane)?);
                let value = match operation {
                    Binary::Add => a.wrapping_add(b),
                    Binary::Sub => a.wrapping_sub(b),
                    Binary::Mul => a.wrapping_mul(b),
                    Binary::And => a & b,
                    Binary::Or => a | b,
                    Binary::Xor => a ^ b,
                    Binary::Rem => a.checked_rem(b).ok_or_else(|| wild("division by zero"))?,
                };
                if *ty == Ty::Long { value } else { u64::from(value as u32) }
            }
            Expr::Wide(value) => self.eval(value, lane)?,
            Expr::Low(value) => u64::from(self.eval(value, lane)? as u32),
            Expr::Select(cond, a, b) => {
                // Both are evaluated, as the shader does.
                let (a, b) = (self.eval(a, lane)?, self.eval(b, lane)?);
                if self.cond(cond, lane)? { a } else { b }
            }
            Expr::Load(load) => {
                let (address, what) = self.place(&load.from, lane)?;
                self.touch(address, self.bytes(what));
                let (address, bytes) = match what {
                    What::Object(ty) => self.take(address, ty, &load.take)?,
                    What::Scalar(bytes) => (address, bytes),
                };
                self.get(address, bytes)?
            }
            Expr::Element(node, index, _) => {
                let index = self.eval(index, lane)? as u32;
                if index >= program.types.nodes[*node].count {
                    return Err(wild("node"));
                }
                program.types.address(*node, index, self.world.source.base, self.world.destination.base)
            }
            Expr::Address(pointer) | Expr::Pointer(_, pointer) => self.eval(pointer, lane)?,
            Expr::Slot(index) => {
                let index = self.eval(index, lane)? as usize;
                *self.frame().slots[lane].get(index).ok_or_else(|| wild("slot"))?
            }
        })
    }

    fn input(&self, input: Input, lane: u32) -> u32 {
        let Program { local, grid, count, .. } = self.program;
        let (x, y) = (lane % local[0], lane / local[0]);
        let (group_x, group_y) = (self.group % grid[0], self.group / grid[0]);
        match input {
            Input::Linear => (group_y * local[1] + y) * (grid[0] * local[0]) + group_x * local[0] + x,
            Input::Local => lane,
            Input::Group => group_x,
            Input::Groups => grid[0],
            Input::Count => *count,
        }
    }

    /// Where a place lies, and what is there.
    fn place(&mut self, place: &Place, lane: usize) -> Result<(u64, What), Unusable> {
        let types = &self.program.types;
        let mut address = self.eval(&place.pointer, lane)?;
        let mut ty = types.nodes[place.node].ty;
        let mut steps = place.path.iter();
        while let Some(step) = steps.next() {
            let index = match step {
                Step::Member(index) | Step::At(index) => *index,
                Step::Index(index) => self.eval(index, lane)? as u32,
            };
            match &types.all[ty] {
                Type::Struct(members) => {
                    address += u64::from(members[index as usize].offset);
                    ty = members[index as usize].ty;
                }
                Type::Array { element, count, stride } if index < *count => {
                    address += u64::from(index * stride);
                    ty = *element;
                }
                Type::Vector(scalar, count) if index < *count => {
                    address += u64::from(index * scalar.bytes());
                    return Ok((address, What::Scalar(scalar.bytes())));
                }
                Type::Matrix { columns, rows, .. } if index < *columns => {
                    // Programs take a matrix whole, or one of its components.
                    let row = match steps.next() {
                        Some(Step::At(row)) => *row,
                        Some(Step::Index(row)) => self.eval(row, lane)? as u32,
                        _ => return Err(wild("column")),
                    };
                    if row >= *rows {
                        return Err(wild("row"));
                    }
                    address += types.component(ty, index, row);
                    return Ok((address, What::Scalar(4)));
                }
                _ => return Err(wild("element")),
            }
        }
        Ok((address, What::Object(ty)))
    }

    fn bytes(&self, what: What) -> u32 {
        match what {
            What::Object(ty) => self.program.types.size(ty),
            What::Scalar(bytes) => bytes,
        }
    }

    /// The scalar that is taken out of a loaded object: where it lies, and its bytes.
    fn take(&self, address: u64, ty: TypeId, take: &[u32]) -> Result<(u64, u32), Unusable> {
        let types = &self.program.types;
        match (&types.all[ty], take) {
            (Type::Scalar(scalar), []) => Ok((address, scalar.bytes())),
            (Type::Pointer(_), []) => Ok((address, 8)),
            (Type::Vector(scalar, _), &[at]) => Ok((address + u64::from(at * scalar.bytes()), scalar.bytes())),
            (Type::Matrix { .. }, &[column, row]) => Ok((address + types.component(ty, column, row), 4)),
            (Type::Array { element, stride, .. }, [at, rest @ ..]) => {
                self.take(address + u64::from(at * stride), *element, rest)
            }
            (Type::Struct(members), [at, rest @ ..]) => {
                let member = members[*at as usize];
                self.take(address + u64::from(member.offset), member.ty, rest)
            }
            _ => Err(wild("part")),
        }
    }

    /// Copies what has a value, and no gaps.
    fn copy(&mut self, from: u64, to: u64, ty: TypeId) -> Result<(), Unusable> {
        let types = &self.program.types;
        match &types.all[ty] {
            Type::Array { element, count, stride } => (0..*count).try_for_each(|at| {
                let at = u64::from(at * stride);
                self.copy(from + at, to + at, *element)
            }),
            Type::Struct(members) => members.iter().try_for_each(|member| {
                let at = u64::from(member.offset);
                self.copy(from + at, to + at, member.ty)
            }),
            Type::Matrix { columns, rows, .. } => (0..columns * rows).try_for_each(|at| {
                let at = types.component(ty, at % columns, at / columns);
                let value = self.get(from + at, 4)?;
                self.set(to + at, 4, value)
            }),
            Type::Vector(scalar, count) => (0..*count).try_for_each(|at| {
                let at = u64::from(at * scalar.bytes());
                let value = self.get(from + at, scalar.bytes())?;
                self.set(to + at, scalar.bytes(), value)
            }),
            Type::Scalar(_) | Type::Pointer(_) => {
                let bytes = types.size(ty);
                let value = self.get(from, bytes)?;
                self.set(to, bytes, value)
            }
        }
    }

    fn atomic(&mut self, kind: Atomic, index: u32, value: u64) -> Result<(), Unusable> {
        let at = self.world.counters.base + u64::from(kind.offset(index));
        let bytes = if kind == Atomic::LongAdd { 8 } else { 4 };
        let old = self.get(at, bytes)?;
        let new = match kind {
            Atomic::Add | Atomic::SwapSeen | Atomic::SwapLoaded => u64::from((old as u32).wrapping_add(value as u32)),
            Atomic::LongAdd => old.wrapping_add(value),
            Atomic::Or => old | value,
            Atomic::And => old & value,
            Atomic::Xor => old ^ value,
            Atomic::Min => old.min(value),
            Atomic::Max => old.max(value),
        };
        self.set(at, bytes, new)
    }

    fn touch(&mut self, address: u64, bytes: u32) {
        self.pages.extend(address >> 12..=(address + u64::from(bytes) - 1) >> 12);
    }

    fn get(&mut self, address: u64, bytes: u32) -> Result<u64, Unusable> {
        self.touch(address, bytes);
        let World { source, destination, counters } = &self.world;
        let found = [source, destination, counters].into_iter().find_map(|memory| memory.get(address, bytes));
        found.ok_or_else(|| Unusable::Wild(format!("load at {address:#x}")))
    }

    fn set(&mut self, address: u64, bytes: u32, value: u64) -> Result<(), Unusable> {
        self.touch(address, bytes);
        let World { destination, counters, .. } = &mut self.world;
        let stored = [destination, counters].into_iter().find_map(|memory| memory.set(address, bytes, value));
        stored.ok_or_else(|| Unusable::Wild(format!("store at {address:#x}")))
    }
}

fn wild(what: &str) -> Unusable {
    Unusable::Wild(what.into())
}
