//! `cargo xtask shaders`: the kernels' SPIR-V, which is committed, so that building vksvm needs no shader
//! compiler. `NAME.comp` becomes `spv/NAME.spv` in the same folder.
//!
//! Compilers of different versions give different bytes. `shaders/GLSLC_VERSION` records which one wrote what
//! is committed; bytes are compared only with that one at hand, otherwise the hashes in `shaders/spv.lock`.

mod compiler;
mod lock;
mod source;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo;
use compiler::Compiler;
use lock::Lock;
use source::Source;

/// Folders with kernels.
const FOLDERS: [&str; 5] = ["shaders", "samples/shaders", "tests/shaders", "tests/shaders/plain", "bench/shaders"];
const VERSION: &str = "shaders/GLSLC_VERSION";
const LOCK: &str = "shaders/spv.lock";

/// Compiles every kernel (*.comp) of shaders/, samples/shaders/, tests/shaders/ (and plain/ in it) and bench/shaders/ to the
/// SPIR-V committed in `spv/` beside it.
///
/// Uses the private driver's glslc where that can be set up, else the system's. A kernel that needs further
/// arguments for glslc names them in a line `// glslc: ARGUMENTS`.
#[derive(Args)]
pub(crate) struct Shaders {
    /// Change nothing; fail if a committed file is missing, stale or left over
    #[arg(long)]
    check: bool,
}

impl Shaders {
    /// `--check`.
    pub(crate) fn checking() -> Shaders {
        Shaders { check: true }
    }

    pub(crate) fn run(self) -> Result<()> {
        let root = cargo::root();
        if self.check { check(&root) } else { compile(&root) }
    }
}

fn compile(root: &Path) -> Result<()> {
    let sources = sources(root)?;
    let compiler = Compiler::find(None)?;
    let mut lock = Lock::default();
    for source in &sources {
        let spv = root.join(source.spv());
        fs::create_dir_all(spv.parent().unwrap_or(root)).context("cannot create the folder `spv`")?;
        compiler.compile(root, source, &spv)?;
        compiler.validate(&spv)?;
        lock.insert(source.path(), source.hash(root)?, lock::hash(&read(&spv)?));
        println!("{}", source.spv().display());
    }
    for orphan in orphans(root, &sources) {
        fs::remove_file(root.join(&orphan)).with_context(|| format!("cannot remove {}", orphan.display()))?;
        println!("removed {}: no kernel of that name", orphan.display());
    }
    write(&root.join(LOCK), &lock.to_text())?;
    write(&root.join(VERSION), &compiler.version)
}

fn check(root: &Path) -> Result<()> {
    let sources = sources(root)?;
    let recorded = fs::read_to_string(root.join(VERSION)).unwrap_or_default();
    let lock = Lock::parse(&fs::read_to_string(root.join(LOCK)).unwrap_or_default());
    let mut problems: Vec<String> =
        orphans(root, &sources).iter().map(|orphan| format!("{}: no kernel of that name", orphan.display())).collect();
    problems.extend(
        lock.paths()
            .filter(|path| !sources.iter().any(|source| source.path() == *path))
            .map(|path| format!("{LOCK}: names {path}, which does not exist")),
    );

    let compiler = match Compiler::find(Some(&recorded)) {
        Ok(compiler) if compiler.version == recorded => Some(compiler),
        Ok(_) => {
            eprintln!("The glslc at hand is not the one that {VERSION} records: bytes are not compared, only hashes.");
            None
        }
        Err(error) => {
            eprintln!("There is no glslc here: bytes are not compared, only hashes. ({error:#})");
            None
        }
    };
    let scratch = Scratch::new()?;
    for source in &sources {
        problems.extend(problem(root, source, &lock, compiler.as_ref(), &scratch)?);
    }
    if !problems.is_empty() {
        bail!("the committed SPIR-V is not current:\n    {}\n`cargo xtask shaders` renews it", problems.join("\n    "));
    }
    let how = if compiler.is_some() { "compiled and compared byte by byte" } else { "compared by hashes only" };
    println!("SPIR-V of {} kernels is current ({how})", sources.len());
    Ok(())
}

/// What is wrong with a kernel's SPIR-V, if anything.
fn problem(
    root: &Path,
    source: &Source,
    lock: &Lock,
    compiler: Option<&Compiler>,
    scratch: &Scratch,
) -> Result<Option<String>> {
    let name = source.spv();
    let Ok(committed) = fs::read(root.join(&name)) else {
        return Ok(Some(format!("{}: missing", name.display())));
    };
    if let Some(compiler) = compiler {
        let fresh = scratch.folder.join("fresh.spv");
        compiler.compile(root, source, &fresh)?;
        if let Err(error) = compiler.validate(&root.join(&name)) {
            return Ok(Some(format!("{error:#}")));
        }
        if read(&fresh)? != committed {
            return Ok(Some(format!("{}: stale", name.display())));
        }
    }
    Ok(match lock.get(source.path()) {
        None => Some(format!("{}: not in {LOCK}", source.path())),
        Some(entry) if entry.source != source.hash(root)? => {
            Some(format!("{}: its source or an include changed since {LOCK} was written", name.display()))
        }
        Some(entry) if entry.spv != lock::hash(&committed) => {
            Some(format!("{}: not the file that {LOCK} records", name.display()))
        }
        Some(_) => None,
    })
}

/// All kernels, by path.
fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for folder in FOLDERS {
        for name in files(&root.join(folder), "comp") {
            sources.push(Source::read(root, format!("{folder}/{name}"))?);
        }
    }
    Ok(sources)
}

/// Committed SPIR-V without a kernel.
fn orphans(root: &Path, sources: &[Source]) -> Vec<PathBuf> {
    let wanted: BTreeSet<PathBuf> = sources.iter().map(Source::spv).collect();
    let there = FOLDERS.iter().flat_map(|folder| {
        let spv = Path::new(folder).join("spv");
        files(&root.join(&spv), "spv").into_iter().map(move |name| spv.join(name))
    });
    there.filter(|path| !wanted.contains(path)).collect()
}

/// The names of a folder's files with this extension, in order; none if there is no such folder.
fn files(folder: &Path, extension: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| Path::new(name).extension().is_some_and(|found| found == extension)).collect();
    names.sort();
    names
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A folder for this run only.
struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    fn new() -> Result<Scratch> {
        let folder = env::temp_dir().join(format!("vksvm-shaders-{}", process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Scratch { folder })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It lies in the temporary folder: if it cannot be removed, the system will.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
