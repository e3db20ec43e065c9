//! A graph as a list of edges, and the text files that hold one: two node numbers per line.

use crate::input::{self, InputError, excerpt};
use std::collections::HashMap;
use std::path::Path;

/// A directed graph as names and pairs of indices into them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EdgeList {
    /// What each node is called.
    pub names: Vec<String>,
    /// From, to.
    pub edges: Vec<(u32, u32)>,
}

impl EdgeList {
    /// Reads a file with one edge per line, as two numbers; `#` and `%` begin comments.
    ///
    /// # Errors
    /// A file that is missing, has no edges, or a line that is anything else; the error names the line.
    pub fn read(file: &Path) -> Result<Self, InputError> {
        Self::parse(file, &input::read_text(file)?)
    }

    /// Makes a graph of `text`, the contents of `file` (a name for messages). Nodes come in the order in which
    /// they are first named.
    ///
    /// # Errors
    /// As [`EdgeList::read`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, InputError> {
        let mut list = Self::default();
        let mut indices = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let content = line.split(['#', '%']).next().unwrap_or_default();
            let mut words = content.split_whitespace();
            let (from, to) = match (words.next(), words.next(), words.next()) {
                (None, ..) => continue,
                (Some(from), Some(to), None) => (from, to),
                _ => {
                    let message = format!("an edge is two node numbers, this line is {}", excerpt(content));
                    return Err(InputError::at(file, number, message));
                }
            };
            let mut node = |word: &str| match word.parse::<u64>() {
                Ok(id) => Ok(*indices.entry(id).or_insert_with(|| {
                    list.names.push(id.to_string());
                    list.names.len() as u32 - 1
                })),
                Err(_) => Err(InputError::at(file, number, format!("{} is not a node number", excerpt(word)))),
            };
            let edge = (node(from)?, node(to)?);
            list.edges.push(edge);
        }
        if list.edges.is_empty() {
            return Err(InputError::new(file, "no edges in it (expected two node numbers per line)"));
        }
        Ok(list)
    }

    /// The node called `name`.
    pub fn find(&self, name: &str) -> Option<u32> {
        self.names.iter().position(|candidate| candidate == name).map(|index| index as u32)
    }

    /// For each node, where its edges lead; against the edges' direction if `backwards`.
    pub(super) fn neighbours(&self, backwards: bool) -> Vec<Vec<u32>> {
        let mut neighbours = vec![Vec::new(); self.names.len()];
        for &(from, to) in &self.edges {
            let (from, to) = if backwards { (to, from) } else { (from, to) };
            neighbours[from as usize].push(to);
        }
        neighbours
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<EdgeList, String> {
        EdgeList::parse(Path::new("edges"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_become_nodes_in_the_order_they_appear() {
        let list = parse("# a graph\n7 3 # an edge\n\n% more\n3\t100\n").unwrap();
        assert_eq!(list.names, ["7", "3", "100"]);
        assert_eq!(list.edges, [(0, 1), (1, 2)]);
        assert_eq!((list.find("100"), list.find("8")), (Some(2), None));
    }

    #[test]
    fn garbage_is_named_by_line() {
        let cases = [
            ("1 2\n2 three\n", "edges:2: `three` is not a node number"),
            ("1 2\n\n# x\n5\n", "edges:4: an edge is two node numbers, this line is `5`"),
            ("1 2 3\n", "edges:1: an edge is two node numbers, this line is `1 2 3`"),
            ("1 -2\n", "edges:1: `-2` is not a node number"),
            ("# nothing\n", "edges: no edges in it (expected two node numbers per line)"),
        ];
        for (text, message) in cases {
            assert_eq!(parse(text).unwrap_err(), message);
        }
    }
}
