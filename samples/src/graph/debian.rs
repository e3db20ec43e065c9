//! The machine's package index as a graph: packages are nodes, what they depend on is where their edges lead.

use super::edges::EdgeList;
use crate::input::{self, InputError, excerpt};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where apt keeps the indices it has downloaded, for each source one `…_Packages`, perhaps compressed (`….lz4`).
const LISTS: &str = "/var/lib/apt/lists";
/// Apt's own tool for reading them whatever the compression.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";
/// What is installed.
const STATUS: &str = "/var/lib/dpkg/status";

/// A package index, and how it became a graph.
#[derive(Debug)]
pub struct Index {
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// The graph.
    pub graph: EdgeList,
    /// Dependencies on packages that no file describes or provides.
    pub unknown: usize,
}

/// The files that describe packages on this machine: what apt has downloaded, else what is installed.
pub fn files() -> Vec<PathBuf> {
    let listed = std::fs::read_dir(LISTS).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = listed.filter(|file| index_name(file).is_some()).collect();
    files.sort();
    if files.is_empty() && Path::new(STATUS).exists() {
        files.push(STATUS.into());
    }
    files
}

/// What follows `_Packages` in the name of an index; `None` if it is not one.
fn index_name(file: &Path) -> Option<&str> {
    let (_, suffix) = file.file_name()?.to_str()?.rsplit_once("_Packages")?;
    (suffix.is_empty() || suffix.starts_with('.')).then_some(suffix)
}

/// The contents of an index, decompressed.
fn text(file: &Path) -> Result<String, InputError> {
    if index_name(file).is_none_or(str::is_empty) {
        return input::read_text(file);
    }
    let output = Command::new(APT_HELPER).arg("cat-file").arg(file).output();
    let output = output.map_err(|error| InputError::new(file, format!("{APT_HELPER} cannot be run: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(InputError::new(file, format!("{APT_HELPER} cannot read it: {}", said.trim())));
    }
    input::as_text(file, &output.stdout).map(str::to_owned)
}

/// Reads the machine's package index.
///
/// # Errors
/// If there is none, or a file of it is malformed (the error names the line).
pub fn read() -> Result<Index, InputError> {
    let files = files();
    let mut packages = Packages::default();
    for file in &files {
        packages.add(file, &text(file)?)?;
    }
    let (graph, unknown) = packages.graph();
    if graph.edges.is_empty() {
        let message = format!("no package index on this machine (nor in {STATUS}); is it a Debian? Try apt-get update");
        return Err(InputError::new(Path::new(LISTS), message));
    }
    Ok(Index { files, graph, unknown })
}

/// The packages of any number of files.
#[derive(Default)]
struct Packages {
    indices: HashMap<String, u32>,
    names: Vec<String>,
    /// Names of what each package depends on.
    depends: Vec<BTreeSet<String>>,
    /// Packages that provide a name.
    provides: HashMap<String, BTreeSet<u32>>,
}

/// The fields of one paragraph that matter.
#[derive(Default)]
struct Paragraph<'a> {
    package: Option<&'a str>,
    depends: Vec<&'a str>,
    provides: Vec<&'a str>,
    removed: bool,
}

impl Packages {
    /// Adds the packages that `text`, the contents of `file`, describes: paragraphs of `Field: value` lines.
    fn add(&mut self, file: &Path, text: &str) -> Result<(), InputError> {
        let mut paragraph = Paragraph::default();
        // The field that a line beginning with white space continues.
        let mut field = "";
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() {
                self.finish(std::mem::take(&mut paragraph));
                field = "";
                continue;
            }
            let value = if line.starts_with([' ', '\t']) {
                if field.is_empty() {
                    return Err(InputError::at(file, number, "a continuation line, but of no field"));
                }
                line
            } else {
                let message = || format!("expected `Field: value`, this line is {}", excerpt(line));
                let (name, value) = line.split_once(':').ok_or_else(|| InputError::at(file, number, message()))?;
                field = name;
                value
            };
            match field {
                "Package" => paragraph.package = Some(value.trim()),
                "Depends" | "Pre-Depends" => paragraph.depends.extend(value.split([',', '|'])),
                "Provides" => paragraph.provides.extend(value.split(',')),
                "Status" => paragraph.removed = !value.ends_with(" installed"),
                _ => {}
            }
        }
        self.finish(paragraph);
        Ok(())
    }

    /// Takes a paragraph in. Where several describe one package (architectures, suites), their dependencies add up.
    fn finish(&mut self, paragraph: Paragraph<'_>) {
        let Some(package) = paragraph.package.filter(|_| !paragraph.removed) else { return };
        let index = *self.indices.entry(package.to_owned()).or_insert_with(|| {
            self.names.push(package.to_owned());
            self.depends.push(BTreeSet::new());
            self.names.len() as u32 - 1
        });
        let named = |dependency: &&str| !dependency.is_empty();
        let depends = paragraph.depends.into_iter().map(bare_name).filter(named);
        self.depends[index as usize].extend(depends.map(str::to_owned));
        for name in paragraph.provides.into_iter().map(bare_name).filter(named) {
            self.provides.entry(name.to_owned()).or_default().insert(index);
        }
    }

    /// The graph, and how many dependencies lead nowhere.
    fn graph(self) -> (EdgeList, usize) {
        let mut edges = BTreeSet::new();
        let mut unknown = 0;
        for (from, depends) in (0..).zip(&self.depends) {
            for name in depends {
                let package = self.indices.get(name);
                let providers = self.provides.get(name);
                unknown += usize::from(package.is_none() && providers.is_none());
                edges.extend(package.into_iter().chain(providers.into_iter().flatten()).map(|&to| (from, to)));
            }
        }
        (EdgeList { names: self.names, edges: edges.into_iter().collect() }, unknown)
    }
}

/// `name` of `name:any (>= 1.0) [amd64]`.
fn bare_name(dependency: &str) -> &str {
    dependency.trim().split([' ', '(', ':', '[', '\t']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "\
Package: editor
Architecture: amd64
Depends: libc (>= 2.3), libx:any | liby (<< 3) [amd64],
 mta, nothing
Description: edits
 Depends: this is prose

Package: libc

Package: libx
Pre-Depends: libc

Package: liby
Depends: libc, libc (>= 2)

Package: exim
Provides: mta (= 1), smtp

Package: gone
Status: deinstall ok config-files
Depends: libc

Package: kept
Status: install ok installed
";

    fn graph(text: &str) -> Result<(EdgeList, usize), String> {
        let mut packages = Packages::default();
        packages.add(Path::new("index"), text).map_err(|error| error.to_string())?;
        Ok(packages.graph())
    }

    #[test]
    fn packages_become_nodes_and_dependencies_edges() {
        let (list, unknown) = graph(INDEX).unwrap();
        assert_eq!(list.names, ["editor", "libc", "libx", "liby", "exim", "kept"]);
        assert_eq!(list.edges, [(0, 1), (0, 2), (0, 3), (0, 4), (2, 1), (3, 1)]);
        assert_eq!(unknown, 1);
    }

    #[test]
    fn the_same_package_twice_is_one_node() {
        let (list, _) =
            graph("Package: a\nDepends: b\n\nPackage: b\n\nPackage: a\nDepends: b, c\n\nPackage: c\n").unwrap();
        assert_eq!(list.names, ["a", "b", "c"]);
        assert_eq!(list.edges, [(0, 1), (0, 2)]);
    }

    #[test]
    fn an_index_is_known_by_its_name() {
        assert_eq!(index_name(Path::new("lists/host_main_binary-amd64_Packages")), Some(""));
        assert_eq!(index_name(Path::new("lists/host_main_binary-amd64_Packages.lz4")), Some(".lz4"));
        assert_eq!(index_name(Path::new("lists/host_Packages-old")), None);
        assert_eq!(index_name(Path::new("lists/host_InRelease")), None);
    }

    #[test]
    fn garbage_is_named_by_line() {
        let error = graph("Package: a\n\nwhat is this\n").unwrap_err();
        assert_eq!(error, "index:3: expected `Field: value`, this line is `what is this`");
        assert_eq!(graph("Package: a\n\n b\n").unwrap_err(), "index:3: a continuation line, but of no field");
    }
}
