//! What the samples are made of: the CPU side of each, in plain Rust, and the little they share.
//!
//! | module | holds |
//! |---|---|
//! | [`input`] | the error of a file that cannot be used, with its line |
//! | [`progress`] | progress bars |
//! | [`device`] | opening the runtime, and what it did between two points in time |
//! | [`mesh`] | triangle meshes from OBJ and PLY files |
//! | [`scene`] | the ray tracer: tree, tracing, refit, pictures |
//! | [`graph`] | graphs as nodes with pointers; breadth-first search and PageRank |
//!
//! Nothing but [`device`] knows of the runtime: data structures are generic over the allocator they live in,
//! and the tests put them on the ordinary heap.
#![warn(missing_docs)]

pub mod device;
pub mod graph;
pub mod input;
pub mod mesh;
pub mod progress;
pub mod scene;
