//! The shader compiler and the SPIR-V validator: the private folder's where that can be set up, because it is
//! the same everywhere, else the system's.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::source::{INCLUDES, Source};
use crate::{
    cargo,
    driver::{self, Folder},
};

/// What kernels are compiled for. Not later: the runtime's SPIR-V reader stumbles over an instruction that
/// glslc emits for Vulkan 1.3.
const TARGET: &str = "vulkan1.2";

/// A glslc, and a spirv-val if there is one.
pub(super) struct Compiler {
    folder: Option<Folder>,
    /// What `glslc --version` prints.
    pub version: String,
    validates: bool,
}

impl Compiler {
    /// The compiler to use; the system's is preferred if it is the one `recorded` and the private folder
    /// would have to be fetched for nothing.
    pub(super) fn find(recorded: Option<&str>) -> Result<Compiler> {
        if let Some(recorded) = recorded
            && let Ok(system) = Compiler::new(None)
            && system.version == recorded
        {
            return Ok(system);
        }
        match driver::tools() {
            Ok(folder) => Compiler::new(Some(folder)),
            Err(error) => {
                eprintln!("No private glslc: {error:#}\nUsing the system's.");
                Compiler::new(None).context("glslc is missing; install it (package `glslc` or `shaderc`)")
            }
        }
    }

    fn new(folder: Option<Folder>) -> Result<Compiler> {
        let mut compiler = Compiler { folder, version: String::new(), validates: false };
        compiler.version = cargo::stdout(compiler.tool("glslc").arg("--version"))?;
        compiler.validates = cargo::succeeds(compiler.tool("spirv-val").arg("--version"));
        Ok(compiler)
    }

    /// Compiles a kernel to `spv`.
    pub(super) fn compile(&self, root: &Path, source: &Source, spv: &Path) -> Result<()> {
        let mut glslc = self.tool("glslc");
        glslc.current_dir(root).arg(format!("--target-env={TARGET}")).args(["-O", "-I", INCLUDES]);
        glslc.args(&source.arguments).arg("-o").arg(spv).arg(source.path());
        let out = glslc.output().context("cannot start glslc")?;
        // Its warnings are shown too.
        eprint!("{}", String::from_utf8_lossy(&out.stderr));
        if !out.status.success() {
            bail!("{} does not compile", source.path());
        }
        Ok(())
    }

    /// Checks a SPIR-V file against the rules of Vulkan, if the validator is at hand.
    pub(super) fn validate(&self, spv: &Path) -> Result<()> {
        if !self.validates {
            return Ok(());
        }
        let mut validator = self.tool("spirv-val");
        // The runtime switches scalarBlockLayout on.
        cargo::stdout(validator.args(["--target-env", TARGET, "--scalar-block-layout"]).arg(spv))
            .map(drop)
            .with_context(|| format!("{} is not valid SPIR-V", spv.display()))
    }

    fn tool(&self, name: &str) -> Command {
        self.folder.as_ref().and_then(|folder| folder.program(name)).unwrap_or_else(|| Command::new(name))
    }
}
