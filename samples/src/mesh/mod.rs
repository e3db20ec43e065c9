//! Triangle meshes, read from OBJ and PLY files.

mod obj;
mod ply;

use crate::input::{self, InputError};
use std::path::Path;

/// A triangle mesh as files have it: positions and, for each triangle, three indices into them.
#[derive(Debug, Clone, PartialEq)]
pub struct Mesh {
    /// Corners.
    pub positions: Vec<[f32; 3]>,
    /// Triangles, each three valid indices into `positions`.
    pub triangles: Vec<[u32; 3]>,
}

impl Mesh {
    /// Reads a mesh; the format follows from the file's first bytes, not its name.
    ///
    /// # Errors
    /// A file that is missing, malformed or without triangles; where a line is to blame, the error names it.
    pub fn read(file: &Path) -> Result<Self, InputError> {
        Self::parse(file, &input::read(file)?)
    }

    /// Makes a mesh of `bytes`, the contents of `file` (a name for messages).
    ///
    /// # Errors
    /// As [`Mesh::read`].
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self, InputError> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(InputError::new(file, "the file is empty"));
        }
        let is_ply = bytes.starts_with(b"ply\n") || bytes.starts_with(b"ply\r");
        let mesh = if is_ply { ply::parse(file, bytes)? } else { obj::parse(file, input::as_text(file, bytes)?)? };
        if mesh.triangles.is_empty() {
            let corners = mesh.positions.len();
            return Err(InputError::new(file, format!("no triangles in it ({corners} vertices, no faces)")));
        }
        Ok(mesh)
    }

    /// Smallest and largest coordinates of the positions.
    pub fn bounds(&self) -> ([f32; 3], [f32; 3]) {
        let mut lo = [f32::INFINITY; 3];
        let mut hi = [f32::NEG_INFINITY; 3];
        for position in &self.positions {
            for axis in 0..3 {
                lo[axis] = lo[axis].min(position[axis]);
                hi[axis] = hi[axis].max(position[axis]);
            }
        }
        (lo, hi)
    }
}

/// Adds the triangles of a polygon, as a fan around its first corner.
fn push_fan(triangles: &mut Vec<[u32; 3]>, corners: &[u32]) {
    for pair in corners[1..].windows(2) {
        triangles.push([corners[0], pair[0], pair[1]]);
    }
}

/// Largest magnitude of a coordinate: beyond it, products of three would leave the range of `f32`.
const LARGEST: f32 = 1e9;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn parse(text: &str) -> Result<Mesh, String> {
        Mesh::parse(Path::new("mesh"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_refused() {
        assert_eq!(parse("").unwrap_err(), "mesh: the file is empty");
        assert_eq!(parse(" \n\n").unwrap_err(), "mesh: the file is empty");
    }

    #[test]
    fn a_mesh_without_faces_is_refused() {
        assert_eq!(parse("v 0 0 0\n").unwrap_err(), "mesh: no triangles in it (1 vertices, no faces)");
    }

    #[test]
    fn the_bunny_is_whole() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/bunny.obj");
        let mesh = Mesh::read(&file).unwrap();
        assert_eq!((mesh.positions.len(), mesh.triangles.len()), (1839, 3674));
    }

    #[test]
    fn bounds_enclose_all_positions() {
        let mesh = parse("v 1 -2 3\nv -1 5 0\nv 0 0 9\nf 1 2 3\n").unwrap();
        assert_eq!(mesh.bounds(), ([-1.0, -2.0, 0.0], [1.0, 5.0, 9.0]));
    }
}
