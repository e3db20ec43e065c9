//! A kernel's source: where its SPIR-V goes, what further arguments it asks for, and a hash over everything
//! that its SPIR-V depends on, includes as well.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::lock;

/// The folder in which includes are looked for after the including file's own.
pub(super) const INCLUDES: &str = "shaders";

/// One `.comp` file.
pub(super) struct Source {
    path: String,
    /// Arguments for glslc that it asks for.
    pub arguments: Vec<String>,
}

impl Source {
    /// Reads the kernel at `path`, relative to the workspace's root.
    pub(super) fn read(root: &Path, path: String) -> Result<Source> {
        let text = fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {path}"))?;
        let asked = text.lines().filter_map(|line| line.trim().strip_prefix("// glslc:"));
        let arguments = asked.flat_map(str::split_whitespace).map(str::to_owned).collect();
        Ok(Source { path, arguments })
    }

    /// Relative to the workspace's root.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Where its SPIR-V belongs, relative to the workspace's root.
    pub(super) fn spv(&self) -> PathBuf {
        let path = Path::new(&self.path);
        let name = path.file_stem().unwrap_or_default();
        path.parent().unwrap_or(path).join("spv").join(name).with_extension("spv")
    }

    /// A hash over the kernel and every file that it includes, directly or not.
    pub(super) fn hash(&self, root: &Path) -> Result<u64> {
        let mut files = BTreeMap::new();
        gather(root, PathBuf::from(&self.path), &mut files)?;
        let mut all = Vec::new();
        for (path, text) in files {
            all.extend_from_slice(path.to_string_lossy().as_bytes());
            all.push(0);
            all.extend_from_slice(text.as_bytes());
            all.push(0);
        }
        Ok(lock::hash(&all))
    }
}

/// Adds `path` and what it includes to `files`.
fn gather(root: &Path, path: PathBuf, files: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    if files.contains_key(&path) {
        return Ok(());
    }
    let text = fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let includes: Vec<PathBuf> = included(&text)
        .map(|name| [folder.join(name), Path::new(INCLUDES).join(name)])
        .filter_map(|places| places.into_iter().find(|place| root.join(place).is_file()))
        .collect();
    files.insert(path, text);
    // An include that is nowhere is the compiler's to complain about.
    includes.into_iter().try_for_each(|include| gather(root, include, files))
}

/// The names in `#include` lines.
fn included(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let directive = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?.trim_start();
        let end = if directive.starts_with('<') { '>' } else { '"' };
        directive.strip_prefix(['"', '<'])?.split(end).next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_covers_indirect_includes() {
        let root = std::env::temp_dir().join(format!("vksvm-source-{}", std::process::id()));
        fs::create_dir_all(root.join("shaders")).unwrap();
        fs::create_dir_all(root.join("samples/shaders")).unwrap();
        fs::write(root.join("samples/shaders/a.comp"), "// glslc: -DN=4\n#include \"one.glsl\"\n").unwrap();
        fs::write(root.join("shaders/one.glsl"), "#  include <two.glsl>\n").unwrap();
        fs::write(root.join("shaders/two.glsl"), "int x;\n").unwrap();
        let source = Source::read(&root, "samples/shaders/a.comp".into()).unwrap();

        let before = source.hash(&root).unwrap();
        fs::write(root.join("shaders/two.glsl"), "int y;\n").unwrap();
        let after = source.hash(&root).unwrap();

        assert_ne!(before, after);
        assert_eq!(source.arguments, ["-DN=4"]);
        assert_eq!(source.spv(), Path::new("samples/shaders/spv/a.spv"));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn include_lines_are_found_however_they_are_spaced() {
        let text = "#include \"a.glsl\"\n  # include <b.glsl>\n// #include \"c.glsl\"\n#include_next\n";

        assert_eq!(included(text).collect::<Vec<_>>(), ["a.glsl", "b.glsl"]);
    }
}
