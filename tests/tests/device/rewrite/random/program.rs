//! Random programs, as trees: the interpreter runs them, the emitter makes SPIR-V of them.
//!
//! What an invocation computes follows from the source, its place and the launch's arguments; it stores to the destination's
//! node that it owns, and adds to words that others add to. So results do not depend on the order in which invocations run. Values
//! that come from the destination are *dirty*: they are stored and computed with, and decide no address and no branch,
//! since a kernel where they do may end in a late fault.

use super::types::{NodeId, Types};

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ty {
    Word,
    Long,
    Pointer(NodeId),
}

/// A variable of a function.
pub(super) type Var = usize;

/// What an invocation is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Its place among all invocations.
    Linear,
    /// Its place in its workgroup.
    Local,
    /// Its workgroup's place, first coordinate.
    Group,
    /// The grid's first dimension.
    Groups,
    /// The launch's last argument.
    Count,
}

/// An operation on two values of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    And,
    Or,
    Xor,
    /// By an odd number, or by zero once an invocation is poisoned.
    Rem,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Expr {
    Word(u32),
    Long(u64),
    Var(Var),
    Input(Input),
    /// On words or longs.
    Binary(Binary, Ty, Box<Expr>, Box<Expr>),
    /// From a word to a long.
    Wide(Box<Expr>),
    /// From a long to a word.
    Low(Box<Expr>),
    Select(Box<Cond>, Box<Expr>, Box<Expr>),
    /// A scalar out of what is loaded.
    Load(Box<Load>),
    /// A pointer to a kind's node at an index below their count.
    Element(NodeId, Box<Expr>, Reach),
    Address(Box<Expr>),
    /// A pointer from its address.
    Pointer(NodeId, Box<Expr>),
    /// An element of the function's array.
    Slot(Box<Expr>),
}

/// How a node is reached from its kind's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// `OpPtrAccessChain` from a pointer.
    Chain,
    /// Computed from the address.
    Long,
    /// The same, through a vector of two words.
    Halves,
}

/// A condition.
#[derive(Clone, Debug)]
pub(super) enum Cond {
    Less(Expr, Expr),
    Equal(Expr, Expr),
    Not(Box<Cond>),
    Both(Box<Cond>, Box<Cond>),
}

/// A step into an object.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Member(u32),
    /// An element, a component or a column, known.
    At(u32),
    /// The same, computed.
    Index(Expr),
}

/// An object in memory: a node, or a part of it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) node: NodeId,
    pub(super) pointer: Expr,
    pub(super) path: Vec<Step>,
    pub(super) style: Style,
}

/// How an access is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Where the access chain is cut in two.
    pub(super) cut: usize,
    pub(super) in_bounds: bool,
    pub(super) volatile: bool,
    /// Promises all that is known of the alignment.
    pub(super) aligned: bool,
}

/// A load of an object, and the scalar that is taken out of it.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) from: Place,
    pub(super) take: Vec<u32>,
}

/// What is done to a word of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Atomic {
    Add,
    Or,
    And,
    Xor,
    Min,
    Max,
    LongAdd,
    /// An addition through compare and swap, in a loop that takes what it saw, or that loads again.
    SwapSeen,
    SwapLoaded,
}

impl Atomic {
    pub(super) const ALL: [Self; 9] = [
        Self::Add,
        Self::Or,
        Self::And,
        Self::Xor,
        Self::Min,
        Self::Max,
        Self::LongAdd,
        Self::SwapSeen,
        Self::SwapLoaded,
    ];

    /// Where in the counters its word with an index below [`COUNTERS`] lies, in bytes.
    pub(super) fn offset(self, index: u32) -> u32 {
        index * COUNTER_STRIDE + self as u32 * 8
    }
}

/// Words that each kind of atomic works on.
pub(super) const COUNTERS: u32 = 16;
/// Bytes from one such word to the next: on different pages.
pub(super) const COUNTER_STRIDE: u32 = 2080;

/// A way round a loop and out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The header's block decides.
    Header,
    /// A block after the header decides.
    Top,
    /// The branch back decides: runs once at least.
    Bottom,
    /// A branch in the body's middle leaves.
    Middle,
}

/// Whose word an invocation reads after a barrier.
#[derive(Clone, Debug)]
pub(super) enum Whose {
    /// That of the invocation so many places on, around.
    Rotate(u32),
    /// That at this index, below the least workgroup's size.
    At(Expr),
}

/// A statement.
#[derive(Clone, Debug)]
pub(super) enum Stmt {
    Set(Var, Expr),
    /// Stores to a scalar of the invocation's own node.
    Store(Place, Expr),
    /// Copies objects of one type to the invocation's own node; as a load and a store, or at once.
    Copy {
        to: Place,
        from: Place,
        at_once: bool,
    },
    Atomic {
        kind: Atomic,
        index: Expr,
        value: Expr,
    },
    /// Sets an element of the function's array.
    SetSlot(Expr, Expr),
    If(Cond, Vec<Stmt>, Vec<Stmt>),
    /// On a value modulo the number of cases; a case may fall through into the next.
    Switch(Expr, Vec<(Vec<Stmt>, bool)>),
    /// Counts `var` from zero up to a bound.
    For {
        var: Var,
        bound: Expr,
        form: Form,
        body: Vec<Stmt>,
    },
    /// Follows `Next` pointers with `var` until there is none.
    Walk {
        var: Var,
        node: NodeId,
        start: Expr,
        form: Form,
        body: Vec<Stmt>,
    },
    Break,
    Continue,
    /// Ends the function, with a value if it has one.
    Return(Option<Expr>),
    /// All of the workgroup's invocations exchange words through shared memory.
    Exchange {
        to: Var,
        value: Expr,
        whose: Whose,
    },
    /// Calls a function, with values for its first variables.
    Call {
        function: usize,
        arguments: Vec<Expr>,
        to: Option<Var>,
    },
}

/// A function that returns a word; the program's last returns nothing and is its entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Function {
    /// The first of its variables are given by the caller.
    pub(super) parameters: usize,
    pub(super) variables: Vec<Ty>,
    pub(super) body: Vec<Stmt>,
}

/// How a program is written down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect {
    /// Variables live in values and phis; otherwise in memory of the function.
    pub(super) phis: bool,
    pub(super) vulkan_memory_model: bool,
    /// Push constants hold pointers; otherwise their addresses.
    pub(super) pointer_arguments: bool,
}

/// A program and its launch.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) types: Types,
    pub(super) functions: Vec<Function>,
    pub(super) local: [u32; 2],
    pub(super) grid: [u32; 2],
    pub(super) count: u32,
    pub(super) dialect: Dialect,
}

/// Elements of a function's array.
pub(super) const SLOTS: u32 = super::types::SMALL;

impl Program {
    pub(super) fn per_group(&self) -> u32 {
        self.local[0] * self.local[1]
    }

    /// The program without its statement number `which`, counted in order; none if it has fewer. A branch leaves one
    /// of its sides behind first.
    pub(super) fn without(&self, which: usize) -> Option<Self> {
        let mut smaller = self.clone();
        let mut left = which;
        smaller.functions.iter_mut().rev().any(|function| remove(&mut function.body, &mut left)).then_some(smaller)
    }
}

fn remove(body: &mut Vec<Stmt>, left: &mut usize) -> bool {
    for at in 0..body.len() {
        if *left == 0 {
            // A function's value must stay.
            if let Stmt::Return(Some(_)) = body[at] {
                return true;
            }
            body.remove(at);
            return true;
        }
        *left -= 1;
        if let Stmt::If(_, yes, no) = &body[at] {
            for side in [yes.clone(), no.clone()] {
                if *left == 0 {
                    body.splice(at..=at, side);
                    return true;
                }
                *left -= 1;
            }
        }
        let inside = match &mut body[at] {
            Stmt::If(_, yes, no) => remove(yes, left) || remove(no, left),
            Stmt::Switch(_, cases) => cases.iter_mut().any(|(case, _)| remove(case, left)),
            Stmt::For { body, .. } | Stmt::Walk { body, .. } => remove(body, left),
            _ => false,
        };
        if inside {
            return true;
        }
    }
    false
}
