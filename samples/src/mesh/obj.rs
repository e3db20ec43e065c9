//! Wavefront OBJ: positions and faces. The rest of the format is passed over, what is not in it refused.
//!
//! The `tobj` crate reads more of the format, but its errors do not say in which line.

use super::{LARGEST, Mesh, push_fan};
use crate::input::{InputError, excerpt};
use std::path::Path;

/// Statements that do not change the triangles.
#[rustfmt::skip]
const PASSED_OVER: &[&str] = &[
    "vn", "vt", "vp", "o", "g", "s", "mg", "l", "p", "usemtl", "mtllib", "usemap", "maplib", "bevel", "c_interp",
    "d_interp", "lod", "shadow_obj", "trace_obj", "ctech", "stech", "cstype", "deg", "bmat", "step", "curv", "curv2",
    "surf", "parm", "trim", "hole", "scrv", "sp", "end", "con",
];

/// Reads an OBJ file; `file` is its name for messages.
pub(super) fn parse(file: &Path, text: &str) -> Result<Mesh, InputError> {
    let mut mesh = Mesh { positions: Vec::new(), triangles: Vec::new() };
    let mut corners = Vec::new();
    // Faces may name vertices that come later: largest index seen, and where.
    let mut largest = (0, 0);
    for (number, line) in (1..).zip(text.lines()) {
        let statement = line.split('#').next().unwrap_or_default();
        let mut words = statement.split_whitespace();
        let Some(keyword) = words.next() else { continue };
        match keyword {
            "v" => mesh.positions.push(position(words).map_err(|message| InputError::at(file, number, message))?),
            "f" => {
                corners.clear();
                for word in words {
                    let index = corner(word, mesh.positions.len());
                    let index = index.map_err(|message| InputError::at(file, number, message))?;
                    if index >= largest.0 {
                        largest = (index, number);
                    }
                    corners.push(index);
                }
                if corners.len() < 3 {
                    let message = format!("a face needs at least 3 corners, this one has {}", corners.len());
                    return Err(InputError::at(file, number, message));
                }
                push_fan(&mut mesh.triangles, &corners);
            }
            _ if PASSED_OVER.contains(&keyword) => {}
            _ => {
                let message = format!("{} is no statement of an OBJ file (nor is this a PLY file)", excerpt(keyword));
                return Err(InputError::at(file, number, message));
            }
        }
    }
    if !mesh.triangles.is_empty() && largest.0 as usize >= mesh.positions.len() {
        let message =
            format!("the face names vertex {}, but the file has only {}", largest.0 + 1, mesh.positions.len());
        return Err(InputError::at(file, largest.1, message));
    }
    Ok(mesh)
}

/// `x y z`, with whatever may follow (a weight, a colour).
fn position<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<[f32; 3], String> {
    let mut position = [0.0; 3];
    for (axis, value) in position.iter_mut().enumerate() {
        let word = words.next().ok_or_else(|| format!("a vertex needs 3 coordinates, this one has {axis}"))?;
        *value = match word.parse::<f32>() {
            Ok(value) if value.abs() <= LARGEST => value,
            Ok(_) => return Err(format!("coordinate {} is out of range (±{LARGEST:e})", excerpt(word))),
            Err(_) => return Err(format!("{} is not a number", excerpt(word))),
        };
    }
    Ok(position)
}

/// The position index in `a`, `a/b`, `a//c` or `a/b/c`: from 1, or from the end where negative.
fn corner(word: &str, so_far: usize) -> Result<u32, String> {
    let bad = || format!("{} is not a vertex index", excerpt(word));
    let index: i64 = word.split('/').next().unwrap_or_default().parse().map_err(|_| bad())?;
    let index = match index {
        1.. => index - 1,
        0 => return Err("vertex indices count from 1".to_owned()),
        _ if index.unsigned_abs() <= so_far as u64 => so_far as i64 + index,
        _ => return Err(format!("vertex {index} counts back past the first of {so_far}")),
    };
    u32::try_from(index).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use crate::mesh::tests::parse;

    const SQUARE: &str = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n";

    #[test]
    fn polygons_become_fans() {
        let mesh = parse(&format!("{SQUARE}f 1 2 3 4\n")).unwrap();
        assert_eq!(mesh.triangles, [[0, 1, 2], [0, 2, 3]]);
    }

    #[test]
    fn corners_may_carry_textures_and_normals_and_count_back() {
        let mesh = parse(&format!("# a square\n{SQUARE}vn 0 0 1\nusemtl x\nf 1/1 2//1 3/1/1 # half\nf -4 -2 -1\n"));
        assert_eq!(mesh.unwrap().triangles, [[0, 1, 2], [0, 2, 3]]);
    }

    #[test]
    fn faces_may_come_before_their_vertices() {
        assert_eq!(parse(&format!("f 1 2 3\n{SQUARE}")).unwrap().triangles.len(), 1);
    }

    #[test]
    fn malformed_lines_are_named() {
        let cases = [
            ("v 0 0\n", "mesh:1: a vertex needs 3 coordinates, this one has 2"),
            ("v 0 0 0\nv 0 zero 0\n", "mesh:2: `zero` is not a number"),
            ("v 0 nan 0\n", "mesh:1: coordinate `nan` is out of range (±1e9)"),
            ("v 0 1e30 0\n", "mesh:1: coordinate `1e30` is out of range (±1e9)"),
            ("v 0 0 0\nf 1 1\n", "mesh:2: a face needs at least 3 corners, this one has 2"),
            ("v 0 0 0\nf 1 x 1\n", "mesh:2: `x` is not a vertex index"),
            ("v 0 0 0\nf 1 0 1\n", "mesh:2: vertex indices count from 1"),
            ("v 0 0 0\nf 1 -2 1\n", "mesh:2: vertex -2 counts back past the first of 1"),
            ("v 0 0 0\nf 1 1 1\nf 1 7 1\n", "mesh:3: the face names vertex 7, but the file has only 1"),
            ("v 0 0 0\nf 1 99999999999 1\n", "mesh:2: `99999999999` is not a vertex index"),
            ("hello world\n", "mesh:1: `hello` is no statement of an OBJ file (nor is this a PLY file)"),
        ];
        for (text, message) in cases {
            assert_eq!(parse(text).unwrap_err(), message);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([vf#x] ?(-?[0-9]{1,3}(/[0-9]?)? ?){0,4}\n){0,20}") {
            if let Ok(mesh) = parse(&text) {
                assert!(mesh.triangles.iter().flatten().all(|&corner| (corner as usize) < mesh.positions.len()));
            }
        }
    }
}
