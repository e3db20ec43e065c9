//! Tells the runtime what its rewriting is made of: `VKSVM_REWRITER`, a hash of the sources that decide what becomes of a module. Rewritten
//! modules that are kept between runs are only those of the same sources.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

/// Where it stands, from this package on: the passes, and the layouts and the library that they put in.
const SOURCES: [&str; 5] = [
    "src/kernel",
    "src/addr.rs",
    "src/device/layout.rs",
    "../shaders/vksvm_layout.glsl",
    "../shaders/spv/rewrite_library.spv",
];
/// Where the versions of the crates stand that read and write SPIR-V.
const LOCK: &str = "../Cargo.lock";
const CRATES: [&str; 2] = ["name = \"rspirv\"", "name = \"spirv\""];

fn files(path: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            files(&entry?.path(), found)?;
        }
    } else {
        found.push(path.to_owned());
    }
    Ok(())
}

fn main() -> io::Result<()> {
    // With fixed keys, so that the same sources have the same hash.
    let mut hash = DefaultHasher::new();
    let mut found = Vec::new();
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
        files(Path::new(source), &mut found)?;
    }
    found.sort();
    for path in found {
        (path.to_string_lossy(), fs::read(&path)?).hash(&mut hash);
    }
    // As a dependency of another workspace the lock is that one's, out of reach: then the versions that this package asks for are what is known.
    println!("cargo::rerun-if-changed={LOCK}");
    println!("cargo::rerun-if-changed=Cargo.toml");
    let lock = fs::read_to_string(LOCK).unwrap_or_default();
    let versions = lock.split("[[package]]").filter(|package| CRATES.iter().any(|name| package.contains(name)));
    versions.collect::<Vec<_>>().hash(&mut hash);
    fs::read("Cargo.toml")?.hash(&mut hash);
    println!("cargo::rustc-env=VKSVM_REWRITER={}-{:016x}", env!("CARGO_PKG_VERSION"), hash.finish());
    Ok(())
}
