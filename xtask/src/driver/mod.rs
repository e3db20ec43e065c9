//! A Vulkan device for whatever is about to run: the system's own if the runtime accepts it (a GPU, or a
//! software driver that passes the probes), else a private software driver, set up on first use.
//!
//! Commands get a [`Device`] from [`ensure`] and let it prepare the cargo commands that run programs.

mod advice;
mod apt;
mod cache;
mod os_release;
mod private;
mod probe;
mod setup;

use std::{env, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::cargo;
use os_release::OsRelease;
pub(crate) use private::Folder;
use probe::Answer;
pub(crate) use probe::Profile;

/// Where the device comes from.
#[derive(Args, Clone, Copy)]
pub(crate) struct Choice {
    /// Whose Vulkan driver to use
    #[arg(long = "driver", value_name = "WHICH", env = "VKSVM_DRIVER", default_value = "auto", global = true)]
    which: Which,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// The system's if it is good enough, else a private one
    Auto,
    /// The system's
    System,
    /// The private software driver, even if the system has a good one
    Private,
}

/// Finds a usable Vulkan device and says which; sets up the private software driver where there is none.
///
/// The private driver lives in $VKSVM_CACHE, else $XDG_CACHE_HOME/vksvm, else ~/.cache/vksvm, and is
/// fetched once. VKSVM_DEVICE names the device to use where there are several.
#[derive(Args)]
pub(crate) struct Driver {
    /// Fetch the private driver again, in its newest version
    #[arg(long)]
    refresh: bool,
}

impl Driver {
    pub(crate) fn run(self, choice: Choice) -> Result<()> {
        let release = OsRelease::read();
        if self.refresh {
            setup::Recipe::here(&release)?.ensure(true)?;
        }
        let device = ensure(choice, Profile::Release)?;
        match &device.source {
            Source::System => println!("driver: the system's"),
            Source::Private(folder) => println!("driver: private, in {}", folder.root().display()),
        }
        println!("validation layers: {}", if device.has_validation() { "yes" } else { "no" });
        for (name, value) in device.variables()? {
            println!("{name}={value}");
        }
        Ok(())
    }
}

/// `cargo xtask env`.
pub(crate) fn print_env(choice: Choice) -> Result<()> {
    for (name, value) in ensure(choice, Profile::Release)?.variables()? {
        println!("export {name}='{value}'");
    }
    Ok(())
}

/// A device that programs can be run on.
pub(crate) struct Device {
    source: Source,
}

enum Source {
    System,
    Private(Folder),
}

impl Device {
    /// Lets the programs that a cargo command runs use this device.
    pub(crate) fn prepare<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command> {
        Ok(command.envs(self.variables()?))
    }

    /// Whether programs on this device can be run under the Vulkan validation layers.
    pub(crate) fn has_validation(&self) -> bool {
        match &self.source {
            Source::System => system_has_validation(),
            Source::Private(folder) => folder.has_validation(),
        }
    }

    fn variables(&self) -> Result<Vec<(String, String)>> {
        match &self.source {
            Source::System => Ok(Vec::new()),
            Source::Private(folder) => {
                Ok(vec![(cargo::runner_variable()?, folder.runner().to_string_lossy().into_owned())])
            }
        }
    }
}

/// Finds or sets up a device. Programs for the probes are built in `profile`.
///
/// # Errors
/// If there is none, with what to install.
pub(crate) fn ensure(choice: Choice, profile: Profile) -> Result<Device> {
    let release = OsRelease::read();
    if choice.which != Which::Private {
        match probe::ask(None, profile)? {
            Answer::Usable(text) => {
                report("the system's driver", &text);
                return Ok(Device { source: Source::System });
            }
            Answer::Unusable(why) if choice.which == Which::System => {
                let remedy = match setup::Recipe::here(&release) {
                    Ok(_) => "`--driver private` sets one up in a cache folder".to_owned(),
                    Err(_) => advice::what_to_install(&release),
                };
                bail!("the system has no usable Vulkan device: {why}\n{remedy}");
            }
            Answer::Unusable(why) => eprintln!("The system's Vulkan is not used: {why}"),
            Answer::Unknown if choice.which == Which::System => return Ok(Device { source: Source::System }),
            Answer::Unknown => {}
        }
    }
    let folder = setup::Recipe::here(&release).context("no usable Vulkan device")?.ensure(false)?;
    match probe::ask(Some(&folder.runner()), profile)? {
        Answer::Usable(text) => report("the private driver", &text),
        Answer::Unknown => {}
        Answer::Unusable(why) => bail!(
            "the private driver in {} does not work: {why}\n`cargo xtask driver --refresh` fetches it again",
            folder.root().display()
        ),
    }
    Ok(Device { source: Source::Private(folder) })
}

/// The private folder for the tools in it, set up now if that is possible here; none, with the reason, where not.
pub(crate) fn tools() -> Result<Folder> {
    setup::Recipe::here(&OsRelease::read())?.ensure(false)
}

fn report(driver: &str, text: &str) {
    eprintln!("device: {} ({driver})", text.lines().next().unwrap_or("unnamed").trim_start_matches("device: "));
}

fn system_has_validation() -> bool {
    let mut folders = vec!["/usr/share".into(), "/usr/local/share".into(), "/etc".into()];
    folders.extend(env::var_os("XDG_DATA_DIRS").iter().flat_map(env::split_paths));
    let layers = env::var_os("VK_LAYER_PATH");
    let named: Vec<_> = layers.iter().flat_map(env::split_paths).collect();
    let standard = folders.iter().map(|folder| folder.join("vulkan/explicit_layer.d"));
    let has = |folder: &Path| folder.join("VkLayer_khronos_validation.json").exists();
    if layers.is_some() {
        named.iter().any(|folder| has(folder))
    } else {
        standard.into_iter().any(|folder| has(&folder))
    }
}
