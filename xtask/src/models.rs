//! The concurrency models: tests that a checker runs under every schedule (loom) or many random ones
//! (shuttle). They need the crates built with another `cfg`, so each checker has a target folder of its own.
//!
//! To add a checker or a package, add to `CHECKERS`.

use std::{env, fs, path::Path};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::cargo::{self, heading};

/// How much of the models' state space is searched.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Few preemptions or schedules: minutes
    Bounded,
    /// Everything the models allow: hours
    Full,
}

struct Checker {
    /// The `cfg` it needs; its tests' names start with it and an underscore.
    cfg: &'static str,
    packages: &'static [Package],
    /// Environment that keeps a bounded search short; what the user has set stands.
    bounds: &'static [(&'static str, &'static str)],
}

struct Package {
    name: &'static str,
    folder: &'static str,
}

const RUNTIME: Package = Package { name: "vksvm", folder: "runtime" };

const CHECKERS: [Checker; 2] = [
    Checker {
        cfg: "loom",
        packages: &[RUNTIME],
        bounds: &[("LOOM_MAX_PREEMPTIONS", "2"), ("LOOM_MAX_DURATION", "60")],
    },
    Checker { cfg: "shuttle", packages: &[RUNTIME], bounds: &[("SHUTTLE_ITERATIONS", "1000")] },
];

/// Runs every checker on every package that has models for it.
pub(crate) fn run(extent: Extent) -> Result<()> {
    for checker in &CHECKERS {
        for package in checker.packages {
            let prefix = format!("{}_", checker.cfg);
            if !mentions(&cargo::root().join(package.folder), &format!("fn {prefix}"))? {
                heading(&format!("{} has no {} models", package.name, checker.cfg));
                continue;
            }
            heading(&format!("{} models of {}", checker.cfg, package.name));
            let flags = env::var("RUSTFLAGS").unwrap_or_default();
            let mut command = cargo::cargo();
            command.args(["test", "--release", "--package", package.name, "--lib", "--tests"]);
            command.args(["--", prefix.as_str()]);
            command.env("RUSTFLAGS", format!("{flags} --cfg {}", checker.cfg));
            command.env("CARGO_TARGET_DIR", cargo::target_dir().join(checker.cfg));
            if extent == Extent::Bounded {
                command.envs(checker.bounds.iter().filter(|(name, _)| env::var_os(name).is_none()).copied());
            }
            cargo::run(&mut command)?;
        }
    }
    if extent == Extent::Full {
        search()?;
    }
    Ok(())
}

/// The searches of the page-state machine, of which the ordinary tests look at the nearest worlds only.
fn search() -> Result<()> {
    heading("search of every world of the page-state machine");
    let mut command = cargo::cargo();
    command.args([
        "test",
        "--release",
        "--package",
        RUNTIME.name,
        "--lib",
        "mm::state::search",
        "--",
        "--test-threads=1",
    ]);
    command.env("VKSVM_SEARCH", "full");
    cargo::run(&mut command)
}

/// Whether a Rust source below `folder` contains `text`.
fn mentions(folder: &Path, text: &str) -> Result<bool> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let found = if path.is_dir() {
            mentions(&path, text)?
        } else {
            path.extension().is_some_and(|extension| extension == "rs")
                && fs::read_to_string(&path).is_ok_and(|source| source.contains(text))
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}
