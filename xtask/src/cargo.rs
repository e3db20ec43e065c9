//! Running cargo itself: the workspace, the toolchain's host triple, what targets exist, and one
//! way of running a command so that failure names what was run.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The workspace's root folder.
pub(crate) fn root() -> PathBuf {
    // Asked at run time first: a target folder may be shared by several checkouts.
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let manifest = PathBuf::from(manifest);
    manifest.parent().map(Path::to_path_buf).unwrap_or(manifest)
}

/// `cargo`, to be run in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Cargo's folder for build results.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The triple that programs are built for, such as `x86_64-unknown-linux-gnu`.
pub(crate) fn triple() -> Result<String> {
    if let Some(target) = env::var("CARGO_BUILD_TARGET").ok().filter(|target| !target.is_empty()) {
        return Ok(target);
    }
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = stdout(Command::new(rustc).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}

/// The environment variable with which cargo is told how to run programs of this triple.
pub(crate) fn runner_variable() -> Result<String> {
    Ok(format!("CARGO_TARGET_{}_RUNNER", triple()?.to_uppercase().replace('-', "_")))
}

/// The names of a package's binaries.
pub(crate) fn binaries(package: &str) -> Vec<String> {
    // `--bin` without a name lists the binaries and builds nothing.
    let listing = cargo().args(["build", "--package", package, "--bin"]).output();
    let text = listing.map(|out| String::from_utf8_lossy(&out.stderr).into_owned()).unwrap_or_default();
    let names = text.lines().skip_while(|line| *line != "Available binaries:").skip(1);
    names.map(|line| line.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// Runs a command with this terminal's input and output; fails if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Runs a command and returns what it printed; fails, with what it complained about, if it fails.
pub(crate) fn stdout(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !out.status.success() {
        bail!("`{shown}` failed ({}):\n{}", out.status, String::from_utf8_lossy(&out.stderr).trim_end());
    }
    String::from_utf8(out.stdout).with_context(|| format!("`{shown}` printed something other than UTF-8"))
}

/// Whether a command can be started and succeeds; its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Prints the heading of one step of a longer task.
pub(crate) fn heading(text: &str) {
    eprintln!("\n── {text}");
}

fn show(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut line = OsString::from(name);
    for arg in command.get_args() {
        line.push(" ");
        line.push(arg);
    }
    line.to_string_lossy().into_owned()
}
