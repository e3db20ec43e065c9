//! Makes random programs.

use super::program::{
    Atomic, Binary, COUNTERS, Cond, Dialect, Expr, Form, Function, Input, Load, Place, Program, Reach, SLOTS, Step,
    Stmt, Style, Ty, Var, Whose,
};
use super::types::{NodeId, Role, SMALL, Scalar, Type, Types};
use rand::Rng;
use rand::rngs::SmallRng;

/// A random program with a launch that fits it.
pub(super) fn program(random: &mut SmallRng) -> Program {
    let local = [[8, 1], [16, 1], [32, 1], [64, 1], [12, 1], [4, 3], [8, 8]][random.random_range(0..7)];
    let grid = [random.random_range(1..6), if random.random_bool(0.3) { random.random_range(1..4) } else { 1 }];
    let invocations = local[0] * local[1] * grid[0] * grid[1];
    let types = Types::random(random, invocations);
    let dialect = Dialect {
        phis: random.random(),
        vulkan_memory_model: random.random_bool(0.3),
        pointer_arguments: random.random(),
    };
    let barriers = random.random_bool(0.5);
    let mut functions: Vec<Function> = Vec::new();
    for _ in 0..random.random_range(0..2) {
        let uniform = barriers && random.random_bool(0.4);
        let function = Writer::new(random, &types, &functions, barriers, false).function(uniform);
        functions.push(function);
    }
    let entry = Writer::new(random, &types, &functions, barriers, true).entry();
    functions.push(entry);
    Program { types, functions, local, grid, count: random.random_range(1..100), dialect }
}

/// Whether a function has barriers, itself or through what it calls.
fn exchanges(functions: &[Function], body: &[Stmt]) -> bool {
    body.iter().any(|stmt| match stmt {
        Stmt::Exchange { .. } => true,
        Stmt::Call { function, .. } => exchanges(functions, &functions[*function].body),
        Stmt::If(_, yes, no) => exchanges(functions, yes) || exchanges(functions, no),
        Stmt::Switch(_, cases) => cases.iter().any(|(case, _)| exchanges(functions, case)),
        Stmt::For { body, .. } | Stmt::Walk { body, .. } => exchanges(functions, body),
        _ => false,
    })
}

/// Where a statement stands.
#[derive(Clone, Copy)]
struct Here {
    depth: u32,
    in_loop: bool,
    /// All of the workgroup's invocations come here together.
    uniform: bool,
}

struct Writer<'a> {
    random: &'a mut SmallRng,
    types: &'a Types,
    functions: &'a [Function],
    barriers: bool,
    entry: bool,
    variables: Vec<Ty>,
    /// Words that may come from the destination.
    dirty: Vec<Var>,
    /// Counters of loops that all invocations go round together.
    uniform: Vec<Var>,
    /// Counters and pointers of loops, which nothing else may set.
    fixed: Vec<Var>,
    statements: u32,
    /// Loads to come: drivers take long over kernels with many accesses.
    loads: u32,
    /// Loads made before, with the loops' variables that there were: they are made again, whatever lies between.
    made: Vec<(Load, Ty, Vec<Var>)>,
}

impl<'a> Writer<'a> {
    fn new(random: &'a mut SmallRng, types: &'a Types, functions: &'a [Function], barriers: bool, entry: bool) -> Self {
        let mut variables = vec![Ty::Word, Ty::Word, Ty::Long];
        variables.extend((0..types.destination()).map(Ty::Pointer));
        variables.extend([Ty::Word, Ty::Word]);
        let dirty = if entry { vec![variables.len() - 2, variables.len() - 1] } else { Vec::new() };
        let statements = if entry { random.random_range(2..12) } else { 3 };
        let loads = if entry { random.random_range(2..16) } else { 3 };
        Self {
            random,
            types,
            functions,
            barriers,
            entry,
            variables,
            dirty,
            uniform: Vec::new(),
            fixed: Vec::new(),
            statements,
            loads,
            made: Vec::new(),
        }
    }

    fn entry(mut self) -> Function {
        let here = Here { depth: 0, in_loop: false, uniform: true };
        let mut body = Vec::new();
        while self.statements > 0 {
            body.extend(self.body(here, 4));
        }
        // Everything computed ends up somewhere.
        for var in 0..self.variables.len() {
            if self.variables[var] == Ty::Word && self.random.random_bool(0.5) {
                body.extend(self.store(Expr::Var(var)));
            }
        }
        if !self.barriers && self.random.random_bool(0.5) {
            let cond = Cond::Less(Expr::Input(Input::Linear), Expr::Input(Input::Count));
            body = vec![Stmt::If(cond, body, Vec::new())];
        }
        Function { parameters: 0, variables: self.variables, body }
    }

    /// A function of a word and pointers that returns a word.
    fn function(mut self, uniform: bool) -> Function {
        let parameters = self.variables.len() - 2;
        let here = Here { depth: 1, in_loop: false, uniform };
        let mut body = Vec::new();
        while self.statements > 0 {
            body.extend(self.body(here, 4));
        }
        let result = self.word(2);
        body.push(Stmt::Return(Some(result)));
        Function { parameters, variables: self.variables, body }
    }

    fn body(&mut self, here: Here, most: u32) -> Vec<Stmt> {
        let mut body = Vec::new();
        for _ in 0..self.random.random_range(1..=most) {
            self.statements = self.statements.saturating_sub(1);
            let stmt = self.stmt(here);
            let ends = matches!(stmt, Stmt::Break | Stmt::Continue | Stmt::Return(_));
            body.push(stmt);
            if ends {
                break;
            }
        }
        body
    }

    fn chance(&mut self, of: f64) -> bool {
        self.random.random_bool(of)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.random_range(0..from.len())]
    }

    fn stmt(&mut self, here: Here) -> Stmt {
        let deep = here.depth >= 4;
        let inside = Here { depth: here.depth + 1, uniform: false, ..here };
        match self.random.random_range(0..100) {
            0..22 => self.set(),
            22..34 if self.entry => {
                let value = self.data();
                self.store(value).unwrap_or_else(|| self.set())
            }
            34..40 if self.entry => self.copy().unwrap_or_else(|| self.set()),
            40..46 => {
                Stmt::Atomic { kind: self.pick(&Atomic::ALL), index: self.below(COUNTERS, 2), value: self.word(2) }
            }
            46..50 => Stmt::SetSlot(self.below(SLOTS, 1), self.word(2)),
            50..64 if !deep => {
                let uniform = here.uniform && self.chance(0.6);
                let cond = if uniform { self.uniform_cond() } else { self.cond() };
                let inside = Here { uniform, ..inside };
                let yes = self.body(inside, 4);
                let no = if self.chance(0.5) { self.body(inside, 3) } else { Vec::new() };
                Stmt::If(cond, yes, no)
            }
            64..68 if !deep => {
                let selector = self.word(2);
                let cases =
                    (0..self.random.random_range(1..5)).map(|_| (self.body(inside, 2), self.random.random_bool(0.3)));
                let mut cases: Vec<_> = cases.collect();
                for (case, falls) in &mut cases {
                    *falls &= !matches!(case.last(), Some(Stmt::Break | Stmt::Continue | Stmt::Return(_)));
                }
                if let Some((_, falls)) = cases.last_mut() {
                    *falls = false;
                }
                Stmt::Switch(selector, cases)
            }
            68..78 if !deep => self.count(here),
            78..86 if !deep => self.walk(here),
            86..94 if self.barriers && here.uniform => {
                let to = self.pick(&[0, 1]);
                let whose = if self.chance(0.7) {
                    Whose::Rotate(self.random.random_range(1..8))
                } else {
                    Whose::At(self.small())
                };
                Stmt::Exchange { to, value: self.word(2), whose }
            }
            94..96 if here.in_loop && here.depth > 0 => self.pick_end(),
            // What a barrier follows must be reached by all.
            96 if !self.entry && !self.barriers => Stmt::Return(Some(self.word(2))),
            97..100 => self.call(here).unwrap_or_else(|| self.set()),
            _ => self.set(),
        }
    }

    fn pick_end(&mut self) -> Stmt {
        if self.random.random() { Stmt::Break } else { Stmt::Continue }
    }

    fn set(&mut self) -> Stmt {
        let free = (0..self.variables.len()).filter(|var| !self.fixed.contains(var)).collect::<Vec<_>>();
        let var = self.pick(&free);
        let value = match self.variables[var] {
            Ty::Word if self.dirty.contains(&var) => self.data(),
            Ty::Word => self.word(2),
            Ty::Long => self.long(2),
            Ty::Pointer(node) => self.pointer(node, 2),
        };
        Stmt::Set(var, value)
    }

    fn count(&mut self, here: Here) -> Stmt {
        let var = self.new_variable(Ty::Word);
        let uniform = here.uniform && self.barriers && self.chance(0.7);
        let bound = if uniform {
            match self.random.random_range(0..3) {
                0 => Expr::Word(self.random.random_range(1..5)),
                _ => both(Binary::And, self.uniform_word(2), Expr::Word(3)),
            }
        } else {
            match self.random.random_range(0..5) {
                0 => Expr::Word(self.random.random_range(1..9)),
                1 => self.below(6, 2),
                // Without end once it is poisoned.
                2 => both(Binary::Sub, self.small_member(), Expr::Word(1)),
                _ => both(Binary::And, self.word(2), Expr::Word(7)),
            }
        };
        let form = self.pick(&[Form::Header, Form::Top, Form::Bottom, Form::Middle]);
        let body = self.loop_body(here, var, uniform);
        Stmt::For { var, bound, form, body }
    }

    fn walk(&mut self, here: Here) -> Stmt {
        let node = self.random.random_range(0..self.types.destination());
        let var = self.new_variable(Ty::Pointer(node));
        let uniform = here.uniform && self.barriers && self.chance(0.4);
        let start = if uniform { self.uniform_pointer(node) } else { self.pointer(node, 1) };
        let form = self.pick(&[Form::Header, Form::Top, Form::Bottom, Form::Middle]);
        let body = self.loop_body(here, var, false);
        let body = if uniform { self.loop_body(here, var, true) } else { body };
        Stmt::Walk { var, node, start, form, body }
    }

    fn loop_body(&mut self, here: Here, var: Var, uniform: bool) -> Vec<Stmt> {
        let inside = Here { depth: here.depth + 1, in_loop: !uniform, uniform };
        if uniform {
            self.uniform.push(var);
        }
        self.fixed.push(var);
        let body = self.body(inside, 4);
        self.fixed.pop();
        if uniform {
            self.uniform.pop();
        }
        body
    }

    fn new_variable(&mut self, ty: Ty) -> Var {
        self.variables.push(ty);
        self.variables.len() - 1
    }

    fn call(&mut self, here: Here) -> Option<Stmt> {
        let able: Vec<usize> = (0..self.functions.len())
            .filter(|&function| here.uniform || !exchanges(self.functions, &self.functions[function].body))
            .collect();
        if able.is_empty() {
            return None;
        }
        let function = self.pick(&able);
        let needed = exchanges(self.functions, &self.functions[function].body);
        let Function { parameters, variables, .. } = &self.functions[function];
        let arguments = variables[..*parameters]
            .iter()
            .map(|ty| match ty {
                Ty::Word => self.word(2),
                Ty::Long => self.long(2),
                Ty::Pointer(node) => self.pointer(*node, 1),
            })
            .collect();
        debug_assert!(here.uniform || !needed);
        let to = Some(self.pick(&[0, 1])).filter(|_| self.random.random_bool(0.9));
        Some(Stmt::Call { function, arguments, to })
    }

    /// A word that does not come from the destination.
    fn word(&mut self, depth: u32) -> Expr {
        if depth == 0 || self.loads == 0 {
            return match self.random.random_range(0..4) {
                0 => Expr::Word(self.pick(&[0, 1, 2, 3, 7, 100, 0x8000_0000, u32::MAX])),
                1 => {
                    let input = self.pick(&[Input::Linear, Input::Local, Input::Group, Input::Groups, Input::Count]);
                    Expr::Input(input)
                }
                _ => Expr::Var(self.clean_word()),
            };
        }
        match self.random.random_range(0..20) {
            0..4 => self.word(0),
            4..9 => {
                let operation =
                    self.pick(&[Binary::Add, Binary::Sub, Binary::Mul, Binary::And, Binary::Or, Binary::Xor]);
                both(operation, self.word(depth - 1), self.word(depth - 1))
            }
            9 => both(Binary::Rem, self.word(depth - 1), self.small_member()),
            10 => Expr::Low(Box::new(self.long(depth - 1))),
            11 => Expr::Select(
                Box::new(self.plain_cond(depth - 1)),
                Box::new(self.word(depth - 1)),
                Box::new(self.word(depth - 1)),
            ),
            12..14 => Expr::Slot(Box::new(self.below(SLOTS, depth - 1))),
            _ => {
                let node = self.random.random_range(0..self.types.destination());
                let pointer = self.pointer(node, depth - 1);
                self.load_word(node, pointer)
            }
        }
    }

    fn clean_word(&mut self) -> Var {
        let words: Vec<Var> = (0..self.variables.len())
            .filter(|var| self.variables[*var] == Ty::Word && !self.dirty.contains(var))
            .collect();
        self.pick(&words)
    }

    /// A word to be stored.
    fn data(&mut self) -> Expr {
        match self.random.random_range(0..6) {
            0 if !self.dirty.is_empty() => Expr::Var(self.pick(&self.dirty.clone())),
            1..3 if self.entry => {
                let node = self.types.destination();
                let own = self.own();
                let value = self.load_word(node, own);
                both(Binary::Add, value, self.word(1))
            }
            _ => self.word(2),
        }
    }

    fn long(&mut self, depth: u32) -> Expr {
        if depth == 0 {
            return if self.random.random() { Expr::Var(2) } else { Expr::Long(self.random.random()) };
        }
        match self.random.random_range(0..6) {
            0 => Expr::Wide(Box::new(self.word(depth - 1))),
            1 => {
                let node = self.random.random_range(0..self.types.destination());
                Expr::Address(Box::new(self.pointer(node, depth - 1)))
            }
            2..4 => {
                let operation = self.pick(&[Binary::Add, Binary::Sub, Binary::Mul, Binary::Xor]);
                Expr::Binary(operation, Ty::Long, Box::new(self.long(depth - 1)), Box::new(self.long(depth - 1)))
            }
            _ => self.long(0),
        }
    }

    /// A word below a bound.
    fn below(&mut self, bound: u32, depth: u32) -> Expr {
        if bound == SMALL && self.loads > 0 && self.chance(0.4) {
            return self.small();
        }
        let value = self.word(depth);
        if bound.is_power_of_two() {
            both(Binary::And, value, Expr::Word(bound - 1))
        } else {
            both(Binary::Rem, value, Expr::Word(bound))
        }
    }

    /// A word below [`SMALL`], and the largest of all once the invocation is poisoned.
    fn small(&mut self) -> Expr {
        both(Binary::Sub, self.small_member(), Expr::Word(1))
    }

    fn small_member(&mut self) -> Expr {
        self.loads = self.loads.saturating_sub(1);
        let node = self.random.random_range(0..self.types.destination());
        let pointer = self.pointer(node, 1);
        self.member(node, pointer, Role::Small)
    }

    fn member(&mut self, node: NodeId, pointer: Expr, role: Role) -> Expr {
        let Type::Struct(members) = &self.types.all[self.types.nodes[node].ty] else { return Expr::Word(1) };
        let at = members.iter().position(|member| member.role == role).unwrap_or(0) as u32;
        let style = self.style(1);
        Expr::Load(Box::new(Load { from: Place { node, pointer, path: vec![Step::Member(at)], style }, take: vec![] }))
    }

    fn style(&mut self, steps: usize) -> Style {
        Style {
            cut: self.random.random_range(0..=2 * steps),
            in_bounds: self.random.random(),
            volatile: self.random.random_bool(0.1),
            aligned: self.random.random(),
        }
    }

    fn own(&mut self) -> Expr {
        let reach = self.reach();
        Expr::Element(self.types.destination(), Box::new(Expr::Input(Input::Linear)), reach)
    }

    fn reach(&mut self) -> Reach {
        self.pick(&[Reach::Chain, Reach::Chain, Reach::Long, Reach::Halves])
    }

    fn pointer(&mut self, node: NodeId, depth: u32) -> Expr {
        let depth = if self.loads == 0 { 0 } else { depth };
        let variables: Vec<Var> = (0..self.variables.len())
            .filter(|&var| self.variables[var] == Ty::Pointer(node) && !self.fixed_walk(var))
            .collect();
        match self.random.random_range(0..10) {
            0..3 => Expr::Var(self.pick(&variables)),
            3..5 if depth > 0 => {
                let cond = self.plain_cond(depth - 1);
                Expr::Select(
                    Box::new(cond),
                    Box::new(self.pointer(node, depth - 1)),
                    Box::new(self.pointer(node, depth - 1)),
                )
            }
            5 if depth > 0 => Expr::Pointer(node, Box::new(Expr::Address(Box::new(self.pointer(node, depth - 1))))),
            6..9 if depth > 0 => {
                let from = self.random.random_range(0..self.types.destination());
                let base = self.pointer(from, depth - 1);
                self.load_pointer(from, base, node).unwrap_or_else(|| self.element(node, depth))
            }
            _ => self.element(node, depth),
        }
    }

    /// Whether a variable is a loop's, and null outside of it.
    fn fixed_walk(&self, var: Var) -> bool {
        let first = 3 + self.types.destination() + 2;
        var >= first && !self.fixed.contains(&var)
    }

    fn element(&mut self, node: NodeId, depth: u32) -> Expr {
        let count = self.types.nodes[node].count;
        let index = if self.chance(0.4) {
            both(Binary::Rem, Expr::Input(Input::Linear), Expr::Word(count))
        } else {
            both(Binary::Rem, self.word(depth.min(1)), Expr::Word(count))
        };
        Expr::Element(node, Box::new(index), self.reach())
    }

    /// Loads from a node, and takes a word out of what was loaded.
    fn load_word(&mut self, node: NodeId, pointer: Expr) -> Expr {
        let (load, ty) = self.load(node, pointer);
        match ty {
            Ty::Word => Expr::Load(Box::new(load)),
            Ty::Long | Ty::Pointer(_) => {
                let value = Expr::Load(Box::new(load));
                let value = if let Ty::Pointer(_) = ty { Expr::Address(Box::new(value)) } else { value };
                Expr::Low(Box::new(value))
            }
        }
    }

    fn load_pointer(&mut self, from: NodeId, base: Expr, to: NodeId) -> Option<Expr> {
        for _ in 0..8 {
            let (load, ty) = self.load(from, base.clone());
            if ty == Ty::Pointer(to) && !self.is_next(&load) {
                return Some(Expr::Load(Box::new(load)));
            }
        }
        None
    }

    /// Whether a load's pointer may be null.
    fn is_next(&self, load: &Load) -> bool {
        let first = match load.from.path.first() {
            Some(Step::Member(at)) => Some(*at),
            _ => load.take.first().copied(),
        };
        match (&self.types.all[self.types.nodes[load.from.node].ty], first) {
            (Type::Struct(members), Some(at)) => members[at as usize].role == Role::Next,
            _ => true,
        }
    }

    /// A random way into a node: steps to an object that is loaded, then to a scalar in it.
    fn load(&mut self, node: NodeId, pointer: Expr) -> (Load, Ty) {
        self.loads = self.loads.saturating_sub(1);
        if let Some(again) = self.again(node) {
            return again;
        }
        let (mut path, mut take) = (Vec::new(), Vec::new());
        let mut ty = self.types.nodes[node].ty;
        let whole = self.pick(&[0, 1, 1, 2, 2, 3, 9, 9, 9]);
        let types = self.types;
        let word = |scalar: Scalar| if scalar == Scalar::Long { Ty::Long } else { Ty::Word };
        let result = loop {
            let taking = path.len() >= whole;
            match &types.all[ty] {
                Type::Scalar(scalar) => break word(*scalar),
                Type::Pointer(to) => break Ty::Pointer(*to),
                Type::Struct(members) => {
                    let at = self.random.random_range(0..members.len() as u32);
                    if taking {
                        take.push(at)
                    } else {
                        path.push(Step::Member(at))
                    }
                    ty = members[at as usize].ty;
                }
                Type::Array { element, count, .. } => {
                    self.step(taking, *count, &mut path, &mut take);
                    ty = *element;
                }
                Type::Vector(scalar, count) => {
                    self.step(taking, *count, &mut path, &mut take);
                    break word(*scalar);
                }
                Type::Matrix { columns, rows, .. } => {
                    self.step(taking, *columns, &mut path, &mut take);
                    self.step(taking, *rows, &mut path, &mut take);
                    break Ty::Word;
                }
            }
        };
        let style = self.style(path.len());
        let load = Load { from: Place { node, pointer, path, style }, take };
        self.made.push((load.clone(), result, self.fixed.clone()));
        (load, result)
    }

    /// A load of this node that was made before, where its loops' variables still mean something.
    fn again(&mut self, node: NodeId) -> Option<(Load, Ty)> {
        let known = |(load, _, fixed): &&(Load, Ty, Vec<Var>)| load.from.node == node && self.fixed.starts_with(fixed);
        let able: Vec<(Load, Ty)> = self.made.iter().filter(known).map(|(load, ty, _)| (load.clone(), *ty)).collect();
        if able.is_empty() || !self.chance(0.35) {
            return None;
        }
        let at = self.random.random_range(0..able.len());
        Some(able[at].clone())
    }

    /// A step to one of `count` parts: taken out of what is loaded, or on the way to it.
    fn step(&mut self, taking: bool, count: u32, path: &mut Vec<Step>, take: &mut Vec<u32>) {
        let at = self.random.random_range(0..count);
        if taking {
            take.push(at);
        } else if self.chance(0.5) {
            path.push(Step::At(at));
        } else {
            path.push(Step::Index(self.below(count, 0)));
        }
    }

    /// Stores a word to a scalar of the invocation's own node.
    fn store(&mut self, value: Expr) -> Option<Stmt> {
        let node = self.types.destination();
        for _ in 0..8 {
            let own = self.own();
            let (mut load, ty) = self.load(node, own);
            if load.take.is_empty() && !matches!(ty, Ty::Pointer(_)) {
                load.from.style.volatile = false;
                let value = if ty == Ty::Long { Expr::Wide(Box::new(value)) } else { value };
                return Some(Stmt::Store(load.from, value));
            }
        }
        None
    }

    /// Copies an object that a node and the destination have in common.
    fn copy(&mut self) -> Option<Stmt> {
        let places = |writer: &Self, node: NodeId| {
            let mut found = Vec::new();
            parts(writer.types, writer.types.nodes[node].ty, &mut Vec::new(), &mut found);
            found
        };
        let node = self.random.random_range(0..self.types.destination());
        let from = places(self, node);
        let to = places(self, self.types.destination());
        let pairs: Vec<_> = from
            .iter()
            .flat_map(|from| to.iter().filter(|to| to.0 == from.0).map(move |to| (from.1.clone(), to.1.clone())))
            .collect();
        if pairs.is_empty() {
            return None;
        }
        let (from, to) = pairs[self.random.random_range(0..pairs.len())].clone();
        let steps = |path: Vec<(bool, u32)>| {
            path.into_iter()
                .map(|(member, at)| if member { Step::Member(at) } else { Step::At(at) })
                .collect::<Vec<_>>()
        };
        let (from, to) = (steps(from), steps(to));
        let pointer = self.pointer(node, 1);
        let own = self.own();
        let mut style = (self.style(from.len()), self.style(to.len()));
        let at_once = self.random.random();
        if at_once {
            // One set of memory operands for both.
            (style.0.volatile, style.0.aligned, style.1.volatile, style.1.aligned) = (false, false, false, false);
        }
        Some(Stmt::Copy {
            to: Place { node: self.types.destination(), pointer: own, path: to, style: style.1 },
            from: Place { node, pointer, path: from, style: style.0 },
            at_once,
        })
    }

    fn cond(&mut self) -> Cond {
        self.plain_cond(2)
    }

    fn plain_cond(&mut self, depth: u32) -> Cond {
        let (a, b) = (self.word(depth), self.word(depth.min(1)));
        match self.random.random_range(0..6) {
            0..2 => Cond::Less(a, b),
            2 => Cond::Equal(both(Binary::And, a, Expr::Word(3)), both(Binary::And, b, Expr::Word(3))),
            3 => Cond::Not(Box::new(Cond::Less(a, b))),
            4 if depth > 0 => Cond::Both(Box::new(Cond::Less(a, b)), Box::new(self.plain_cond(depth - 1))),
            _ => Cond::Equal(both(Binary::And, a, Expr::Word(1)), Expr::Word(0)),
        }
    }

    /// A condition that is the same in the whole workgroup.
    fn uniform_cond(&mut self) -> Cond {
        let value = self.uniform_word(2);
        if self.random.random() {
            Cond::Equal(both(Binary::And, value, Expr::Word(1)), Expr::Word(0))
        } else {
            Cond::Less(value, self.uniform_word(0))
        }
    }

    /// A word that is the same in the whole workgroup.
    fn uniform_word(&mut self, depth: u32) -> Expr {
        match self.random.random_range(0..5) {
            0 => Expr::Word(self.random.random_range(0..20)),
            1 => Expr::Input(self.pick(&[Input::Group, Input::Groups, Input::Count])),
            2..5 if depth > 0 => {
                let node = self.random.random_range(0..self.types.destination());
                let pointer = self.uniform_pointer(node);
                self.member(node, pointer, Role::Small)
            }
            _ => Expr::Input(Input::Group),
        }
    }

    fn uniform_pointer(&mut self, node: NodeId) -> Expr {
        let walked: Vec<Var> =
            self.uniform.iter().copied().filter(|&var| self.variables[var] == Ty::Pointer(node)).collect();
        if !walked.is_empty() && self.chance(0.6) {
            return Expr::Var(self.pick(&walked));
        }
        let count = Expr::Word(self.types.nodes[node].count);
        Expr::Element(node, Box::new(both(Binary::Rem, self.uniform_word(0), count)), self.reach())
    }
}

fn both(operation: Binary, a: Expr, b: Expr) -> Expr {
    Expr::Binary(operation, Ty::Word, Box::new(a), Box::new(b))
}

/// The parts of an object, by type, with the members and elements that lead there.
type Part = (usize, Vec<(bool, u32)>);

fn parts(types: &Types, ty: usize, path: &mut Vec<(bool, u32)>, found: &mut Vec<Part>) {
    if !path.is_empty() {
        found.push((ty, path.clone()));
    }
    let inside: Vec<(bool, usize)> = match &types.all[ty] {
        Type::Struct(members) => members.iter().map(|member| (true, member.ty)).collect(),
        Type::Array { element, count, .. } => (0..*count).map(|_| (false, *element)).collect(),
        _ => Vec::new(),
    };
    for (at, (member, ty)) in inside.into_iter().enumerate() {
        path.push((member, at as u32));
        parts(types, ty, path, found);
        path.pop();
    }
}
