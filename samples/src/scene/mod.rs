//! The ray tracer: a bounding-volume hierarchy of linked nodes, built, traced and refitted on the CPU.
//!
//! The device follows the very same pointers (`shaders/raytrace.comp`), and is to come to the very same picture.
//! So tracing uses only additions, subtractions, multiplications and comparisons of `f32`, which have one
//! right result everywhere, in one order; reciprocals and roots are made of those ([`math`]).

mod build;
mod frame;
pub mod math;
mod node;
mod pages;
mod picture;
mod refit;
mod trace;

pub use build::{OutOfMemory, Scene};
pub use frame::{View, render};
pub use node::{Node, Triangle, Vertex};
pub use pages::PageSet;
pub use picture::{Difference, write_png};
pub use trace::{Hit, Ray, closest_hit};
