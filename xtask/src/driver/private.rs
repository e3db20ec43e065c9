//! The private folder: a software Vulkan driver, the validation layers and the shader compiler, unpacked
//! where nothing else looks, with the libc they were built against. Programs see it only through the
//! *runner*, a script that starts them under the folder's own dynamic loader.
//!
//! A folder with a valid stamp is complete: it is put together under another name, the stamp is written
//! last, and then it is renamed into place.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// What the folder is made from; their dependencies come along.
pub(super) const PACKAGES: [&str; 6] =
    ["mesa-vulkan-drivers", "libvulkan1", "libc6", "vulkan-validationlayers", "glslc", "spirv-tools"];

/// Raised when folders set up by earlier versions of this program no longer do.
const FORMAT: u32 = 1;

const STAMP: &str = "stamp";
const RUNNER: &str = "run";

/// The machine's architecture, in Debian's words.
pub(super) struct Arch {
    /// As in package names: `amd64`.
    pub debian: &'static str,
    /// The folder of its libraries under `usr/lib`.
    multiarch: &'static str,
    /// The dynamic loader, from the folder's root.
    loader: &'static str,
}

impl Arch {
    /// The architecture this program runs on.
    pub(super) fn here() -> Result<Arch> {
        match env::consts::ARCH {
            "x86_64" => {
                Ok(Arch { debian: "amd64", multiarch: "x86_64-linux-gnu", loader: "usr/lib64/ld-linux-x86-64.so.2" })
            }
            "aarch64" => {
                Ok(Arch { debian: "arm64", multiarch: "aarch64-linux-gnu", loader: "usr/lib/ld-linux-aarch64.so.1" })
            }
            other => bail!("no private driver is known for the architecture {other}; install a Vulkan driver"),
        }
    }
}

/// A complete private folder.
pub(crate) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Where the folder for a Debian release belongs.
    pub(super) fn path(cache: &Path, suite: &str) -> PathBuf {
        cache.join(format!("driver-{suite}"))
    }

    /// The folder, if it is there, complete, and what this version of the program wants.
    pub(super) fn open(root: &Path, suite: &str) -> Option<Folder> {
        let stamp = fs::read_to_string(root.join(STAMP)).ok()?;
        stamp.starts_with(&wanted(suite)).then(|| Folder { root: root.to_path_buf() })
    }

    /// Makes a folder out of freshly unpacked packages: checks that all is there, writes the runner and the
    /// stamp, and renames `building` to `root`, replacing what was there.
    pub(super) fn finish(
        building: &Path,
        root: &Path,
        suite: &str,
        arch: &Arch,
        packages: &[String],
    ) -> Result<Folder> {
        let library = format!("usr/lib/{}", arch.multiarch);
        let needed =
            [arch.loader, &format!("{library}/libvulkan.so.1"), &format!("{library}/libc.so.6"), "usr/bin/glslc"];
        for path in needed {
            if !building.join(path).exists() {
                bail!("the packages of Debian {suite} lack {path}; the driver cannot be set up from them");
            }
        }
        let manifest = software_driver(building)?;
        let runner = building.join(RUNNER);
        fs::write(&runner, runner_script(root, arch, &manifest)).context("cannot write the runner")?;
        fs::set_permissions(&runner, fs::Permissions::from_mode(0o755)).context("cannot make the runner executable")?;
        let stamp = wanted(suite) + &packages.iter().map(|package| format!("{package}\n")).collect::<String>();
        fs::write(building.join(STAMP), stamp).context("cannot write the stamp")?;

        remove(root)?;
        fs::rename(building, root).with_context(|| format!("cannot move the driver to {}", root.display()))?;
        Ok(Folder { root: root.to_path_buf() })
    }

    /// The script that runs a program on the folder's driver: `RUNNER PROGRAM ARGUMENTS…`.
    pub(crate) fn runner(&self) -> PathBuf {
        self.root.join(RUNNER)
    }

    /// A program of the folder, to be run under its own libraries; none if the folder lacks it.
    pub(crate) fn program(&self, name: &str) -> Option<Command> {
        let path = self.root.join("usr/bin").join(name);
        path.exists().then(|| {
            let mut command = Command::new(self.runner());
            command.arg(path);
            command
        })
    }

    /// Whether the Vulkan validation layers came along.
    pub(super) fn has_validation(&self) -> bool {
        self.root.join("usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json").exists()
    }

    /// The folder itself.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

/// Removes a folder, if it is there.
pub(super) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// How the stamp of a folder begins that is what we want.
fn wanted(suite: &str) -> String {
    format!("format {FORMAT}\nsuite {suite}\npackages {}\n", PACKAGES.join(" "))
}

/// The manifest of Mesa's software driver, from the folder's root; its name has the architecture in it or not.
fn software_driver(building: &Path) -> Result<String> {
    let folder = "usr/share/vulkan/icd.d";
    let entries = fs::read_dir(building.join(folder)).context("the packages contain no Vulkan driver")?;
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let name = names.find(|name| name.starts_with("lvp_icd.") && name.ends_with("json"));
    Ok(format!("{folder}/{}", name.context("the packages contain no software Vulkan driver (lvp_icd.json)")?))
}

fn runner_script(root: &Path, arch: &Arch, manifest: &str) -> String {
    let Arch { multiarch, loader, .. } = arch;
    let root = root.display();
    format!(
        r#"#!/bin/sh
# Runs PROGRAM ARGUMENTS... on the software Vulkan driver in this folder, with the libraries it was built
# against: under the folder's dynamic loader, because the system's libc may be older. Programs that it starts
# in turn run under the system's loader again; to start itself again, a program uses $VKSVM_RUNNER.
root='{root}'
export VKSVM_RUNNER="$root/{RUNNER}"
export VK_DRIVER_FILES="$root/{manifest}"
export VK_LAYER_PATH="$root/usr/share/vulkan/explicit_layer.d"
export VK_LOADER_LAYERS_DISABLE="${{VK_LOADER_LAYERS_DISABLE:-~implicit~}}"
exec "$root/{loader}" --library-path "$root/usr/lib/{multiarch}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}" "$@"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_counts_only_once_finished_and_only_for_what_it_was_made_for() {
        let arch = Arch::here().unwrap();
        let base = env::temp_dir().join(format!("vksvm-private-{}", std::process::id()));
        let (building, root) = (base.join("new"), base.join("driver"));
        let library = format!("usr/lib/{}", arch.multiarch);
        for file in
            [arch.loader, &format!("{library}/libvulkan.so.1"), &format!("{library}/libc.so.6"), "usr/bin/glslc"]
        {
            fs::create_dir_all(building.join(file).parent().unwrap()).unwrap();
            fs::write(building.join(file), "").unwrap();
        }
        let finish = || Folder::finish(&building, &root, "trixie", &arch, &["libc6_2.41".into()]);

        assert!(finish().is_err(), "no driver manifest yet");
        assert!(Folder::open(&root, "trixie").is_none());
        fs::create_dir_all(building.join("usr/share/vulkan/icd.d")).unwrap();
        fs::write(building.join("usr/share/vulkan/icd.d/lvp_icd.json"), "").unwrap();
        let folder = finish().unwrap();

        assert!(Folder::open(&root, "trixie").is_some());
        assert!(Folder::open(&root, "forky").is_none());
        assert_eq!(fs::metadata(folder.runner()).unwrap().permissions().mode() & 0o111, 0o111);
        assert!(folder.program("glslc").is_some() && folder.program("missing").is_none());
        fs::write(root.join(STAMP), "format 0\n").unwrap();
        assert!(Folder::open(&root, "trixie").is_none());
        remove(&base).unwrap();
    }
}
