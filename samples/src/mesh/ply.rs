//! PLY, ascii and binary: the `vertex` and `face` elements, through the `ply-rs-bw` crate.

use super::{LARGEST, Mesh, push_fan};
use crate::input::InputError;
use ply_rs_bw::parser::Parser;
use ply_rs_bw::ply::{Property, PropertyAccess, PropertyAccessResult};
use std::path::Path;

/// One row of any element: what of it is of use here.
#[derive(Default)]
struct Row {
    position: [Option<f32>; 3],
    /// `None` where an index is negative.
    corners: Option<Vec<u32>>,
}

impl PropertyAccess for Row {
    fn new() -> Self {
        Self::default()
    }

    fn set_property(&mut self, name: &str, value: Property) -> PropertyAccessResult {
        match name {
            "x" => self.position[0] = value.to_f32_lossy(),
            "y" => self.position[1] = value.to_f32_lossy(),
            "z" => self.position[2] = value.to_f32_lossy(),
            "vertex_indices" | "vertex_index" => self.corners = indices(value),
            _ => return PropertyAccessResult::Ignored,
        }
        PropertyAccessResult::Set
    }
}

/// A list of indices, if it is one.
fn indices(list: Property) -> Option<Vec<u32>> {
    fn all<T: TryInto<u32>>(list: Vec<T>) -> Option<Vec<u32>> {
        list.into_iter().map(|index| index.try_into().ok()).collect()
    }
    match list {
        Property::ListChar(list) => all(list),
        Property::ListUChar(list) => all(list),
        Property::ListShort(list) => all(list),
        Property::ListUShort(list) => all(list),
        Property::ListInt(list) => all(list),
        Property::ListUInt(list) => Some(list),
        _ => None,
    }
}

/// Reads a PLY file; `file` is its name for messages.
pub(super) fn parse(file: &Path, mut bytes: &[u8]) -> Result<Mesh, InputError> {
    let ply = Parser::<Row>::new().read_ply(&mut bytes).map_err(|error| {
        // The crate's text runs over several lines and names the line itself.
        let text = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        InputError { file: file.to_owned(), line: error.line(), message: format!("malformed PLY: {text}") }
    })?;
    let element = |name: &str| {
        let missing =
            || InputError::new(file, format!("a PLY mesh has elements `vertex` and `face`, here is no `{name}`"));
        ply.payload.get(name).ok_or_else(missing)
    };
    let mut mesh = Mesh { positions: Vec::new(), triangles: Vec::new() };
    for (number, row) in element("vertex")?.iter().enumerate() {
        match row.position {
            [Some(x), Some(y), Some(z)] if [x, y, z].iter().all(|value| value.abs() <= LARGEST) => {
                mesh.positions.push([x, y, z]);
            }
            [Some(_), Some(_), Some(_)] => {
                return Err(InputError::new(file, format!("vertex {number} is out of range (±{LARGEST:e})")));
            }
            _ => return Err(InputError::new(file, "element `vertex` lacks one of the properties x, y, z")),
        }
    }
    for (number, row) in element("face")?.iter().enumerate() {
        let problem = match &row.corners {
            None => "has no list of vertex indices (property `vertex_indices`), or a negative one in it".to_owned(),
            Some(corners) if corners.len() < 3 => format!("has {} corners, not at least 3", corners.len()),
            Some(corners) => match corners.iter().find(|&&corner| corner as usize >= mesh.positions.len()) {
                Some(corner) => format!("names vertex {corner}, but there are only {}", mesh.positions.len()),
                None => {
                    push_fan(&mut mesh.triangles, corners);
                    continue;
                }
            },
        };
        return Err(InputError::new(file, format!("face {number} (counted from 0) {problem}")));
    }
    Ok(mesh)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::tests::parse;

    fn header(format: &str, vertices: usize, faces: usize) -> String {
        format!(
            "ply\nformat {format} 1.0\ncomment a test\nelement vertex {vertices}\nproperty float x\nproperty float y\n\
             property float z\nelement face {faces}\nproperty list uchar int vertex_indices\nend_header\n"
        )
    }

    #[test]
    fn ascii_is_read() {
        let mesh = parse(&(header("ascii", 4, 1) + "0 0 0\n1 0 0\n1 1 0\n0 1 0.5\n4 0 1 2 3\n")).unwrap();
        assert_eq!(mesh.positions[3], [0.0, 1.0, 0.5]);
        assert_eq!(mesh.triangles, [[0, 1, 2], [0, 2, 3]]);
    }

    #[test]
    fn binary_is_read_in_both_byte_orders() {
        let points = [[0f32, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.25]];
        let mut little = header("binary_little_endian", 3, 1).into_bytes();
        let mut big = header("binary_big_endian", 3, 1).into_bytes();
        for value in points.iter().flatten() {
            little.extend(value.to_le_bytes());
            big.extend(value.to_be_bytes());
        }
        little.push(3);
        big.push(3);
        for index in 0i32..3 {
            little.extend(index.to_le_bytes());
            big.extend(index.to_be_bytes());
        }
        let expected = Mesh { positions: points.to_vec(), triangles: vec![[0, 1, 2]] };
        assert_eq!(Mesh::parse(Path::new("mesh"), &little).unwrap(), expected);
        assert_eq!(Mesh::parse(Path::new("mesh"), &big).unwrap(), expected);
        little.truncate(little.len() - 2);
        let error = Mesh::parse(Path::new("mesh"), &little).unwrap_err().to_string();
        assert!(error.starts_with("mesh:"), "{error}");
    }

    #[test]
    fn malformed_files_are_named_with_the_line_where_there_is_one() {
        let points = "0 0 0\n1 0 0\n1 1 0\n";
        let cases = [
            ("ply\nformat ascii 1.0\nelephant vertex 3\n".to_owned(), "mesh:3: malformed PLY"),
            (header("ascii", 3, 1) + "0 0 0\n1 zero 0\n", "mesh:12: malformed PLY"),
            (header("ascii", 3, 1) + points, "mesh:14: malformed PLY"),
            (header("ascii", 3, 1) + points + "3 0 1 9\n", "mesh: face 0 (counted from 0) names vertex 9, but"),
            (header("ascii", 3, 1) + points + "3 0 1 -1\n", "mesh: face 0 (counted from 0) has no list"),
            (header("ascii", 3, 1) + points + "2 0 1\n", "mesh: face 0 (counted from 0) has 2 corners"),
            (header("ascii", 3, 0) + points, "mesh: no triangles in it"),
            (header("ascii", 1, 0) + "1e30 0 0\n", "mesh: vertex 0 is out of range"),
            (header("ascii", 1, 0).replace("float z", "float w") + "0 0 0\n", "mesh: element `vertex` lacks"),
            (
                header("ascii", 1, 0).replace("element face", "element cell") + "0 0 0\n",
                "mesh: a PLY mesh has elements",
            ),
        ];
        for (text, start) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.starts_with(start), "{error}\nis not\n{start}");
        }
    }
}
