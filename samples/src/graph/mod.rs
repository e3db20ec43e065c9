//! Directed graphs: read as lists of edges, kept as nodes that point to their neighbours.

mod cpu;
pub mod debian;
mod edges;
mod node;

pub use cpu::{UNSEEN, breadth_first, page_rank};
pub use edges::EdgeList;
pub use node::{Graph, Node, OutOfMemory};
