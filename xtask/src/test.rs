//! `cargo xtask test`: the workspace's tests on a device, once for each way of tracking CPU accesses.
//!
//! A *pass* is one run of the test tool with one tracker. The first leaves the choice of the tracker to the
//! runtime and covers everything; the second repeats what depends on the tracker with the other one, and a third what runs on a device with
//! kernels that wait for their pages (live mode).

use std::env;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{
    cargo::{self, heading},
    driver::{self, Choice, Device, Profile},
    models::{self, Extent},
};

/// The packages whose tests depend on the tracker.
const TRACKED: [&str; 2] = ["vksvm", "vksvm-tests"];

/// The package whose tests run on a device.
const ON_DEVICE: [&str; 1] = ["vksvm-tests"];

const FAULT_MODE: &str = "VKSVM_FAULT_MODE";
const TRACKER: &str = "VKSVM_TRACKER";
const VALIDATION: &str = "VKSVM_VALIDATION";
/// How long the coherence fuzz runs; CI takes a minute for each tracker.
const FUZZ_SECONDS: &str = "VKSVM_FUZZ_SECONDS";

/// Runs all tests: with the tracker that the runtime chooses, then again with the SIGSEGV tracker, then those on a device in live mode.
///
/// VKSVM_TRACKER, if set, restricts this to the tracker it names. Where the Vulkan validation layers are
/// installed, the tests run under them. Uses cargo-nextest if it is installed.
#[derive(Args, Default)]
pub(crate) struct Test {
    /// Which tracker of CPU accesses to test
    #[arg(long, value_name = "WHICH", default_value = "both")]
    tracker: Tracker,
    /// Also run the concurrency models (loom, shuttle): `bounded` ends in minutes, `full` may take hours
    #[arg(long, value_name = "EXTENT", num_args = 0..=1, require_equals = true, default_missing_value = "bounded")]
    models: Option<Extent>,
    /// Test the optimised build
    #[arg(long)]
    release: bool,
    /// Names of tests to run, and other arguments for the test tool (then without doc tests)
    #[arg(last = true)]
    args: Vec<String>,
}

#[derive(ValueEnum, Clone, Copy, Default)]
enum Tracker {
    /// The one the runtime chooses, then `sigsegv`
    #[default]
    Both,
    /// userfaultfd
    #[value(alias = "userfaultfd")]
    Uffd,
    /// mprotect and SIGSEGV
    Sigsegv,
}

/// One run of the test tool.
struct Pass {
    /// For `VKSVM_TRACKER`; none leaves the choice to the runtime.
    tracker: Option<String>,
    /// None stands for the whole workspace.
    packages: Option<&'static [&'static str]>,
    /// Kernels wait for missing pages; else the mode is the runtime's, or the user's, choice.
    live: bool,
}

impl Test {
    /// Everything, with the bounded models.
    pub(crate) fn everything() -> Test {
        Test { models: Some(Extent::Bounded), ..Test::default() }
    }

    pub(crate) fn run(self, choice: Choice) -> Result<()> {
        let device = driver::ensure(choice, self.profile())?;
        let nextest = cargo::succeeds(cargo::cargo().args(["nextest", "--version"]));
        let forced = env::var(TRACKER).ok().filter(|name| !name.is_empty());
        for pass in passes(self.tracker, forced) {
            let tracker = pass.tracker.as_deref().unwrap_or("chosen by the runtime");
            let validated = if device.has_validation() { ", under the validation layers" } else { "" };
            let mode = if pass.live { ", live mode" } else { "" };
            heading(&format!("tests of {}, tracker: {tracker}{mode}{validated}", scope(&pass)));
            self.unit_tests(&device, &pass, nextest)?;
            if pass.packages.is_none() && self.args.is_empty() {
                heading(&format!("doc tests, tracker: {tracker}"));
                self.cargo_test(&device, &pass, &["--doc"])?;
            }
        }
        if let Some(extent) = self.models {
            models::run(extent)?;
        }
        eprintln!("\nAll tests passed.");
        Ok(())
    }

    fn unit_tests(&self, device: &Device, pass: &Pass, nextest: bool) -> Result<()> {
        if !nextest {
            return self.cargo_test(device, pass, &["--lib", "--bins", "--tests"]);
        }
        let mut command = cargo::cargo();
        command.args(["nextest", "run"]).args(pass.selection()).args(self.profile().args()).args(&self.args);
        // A filter may leave nothing to do in one of the passes.
        command.env("NEXTEST_NO_TESTS", "pass");
        cargo::run(pass.prepare(device, &mut command)?)
    }

    fn cargo_test(&self, device: &Device, pass: &Pass, targets: &[&str]) -> Result<()> {
        let mut command = cargo::cargo();
        command.arg("test").args(pass.selection()).args(self.profile().args()).args(targets);
        command.arg("--").args(&self.args);
        cargo::run(pass.prepare(device, &mut command)?)
    }

    fn profile(&self) -> Profile {
        if self.release { Profile::Release } else { Profile::Dev }
    }
}

impl Pass {
    fn selection(&self) -> Vec<&'static str> {
        match self.packages {
            None => vec!["--workspace"],
            Some(packages) => packages.iter().flat_map(|package| ["--package", package]).collect(),
        }
    }

    fn prepare<'a>(
        &self,
        device: &Device,
        command: &'a mut std::process::Command,
    ) -> Result<&'a mut std::process::Command> {
        device.prepare(command)?;
        match &self.tracker {
            Some(tracker) => command.env(TRACKER, tracker),
            None => command.env_remove(TRACKER),
        };
        if self.live {
            command.env(FAULT_MODE, "live");
        }
        if env::var_os("CI").is_some() && env::var_os(FUZZ_SECONDS).is_none() {
            command.env(FUZZ_SECONDS, "60");
        }
        if device.has_validation() && env::var_os(VALIDATION).is_none() {
            command.env(VALIDATION, "1");
        }
        Ok(command)
    }
}

fn passes(tracker: Tracker, forced: Option<String>) -> Vec<Pass> {
    let whole = |tracker: Option<&str>| Pass { tracker: tracker.map(str::to_owned), packages: None, live: false };
    match (tracker, forced) {
        (Tracker::Uffd, _) => vec![whole(Some("uffd"))],
        (Tracker::Sigsegv, _) => vec![whole(Some("sigsegv"))],
        (Tracker::Both, Some(forced)) => vec![whole(Some(&forced))],
        (Tracker::Both, None) => {
            vec![
                whole(None),
                Pass { tracker: Some("sigsegv".to_owned()), packages: Some(&TRACKED), live: false },
                Pass { tracker: None, packages: Some(&ON_DEVICE), live: true },
            ]
        }
    }
}

fn scope(pass: &Pass) -> String {
    pass.packages.map_or("the workspace".to_owned(), |packages| packages.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(passes: &[Pass]) -> Vec<(Option<&str>, bool, bool)> {
        passes.iter().map(|pass| (pass.tracker.as_deref(), pass.packages.is_none(), pass.live)).collect()
    }

    #[test]
    fn both_trackers_and_live_mode_are_covered_by_default() {
        let all = [(None, true, false), (Some("sigsegv"), false, false), (None, false, true)];
        assert_eq!(shape(&passes(Tracker::Both, None)), all);
    }

    #[test]
    fn a_tracker_set_by_the_user_is_the_only_one() {
        assert_eq!(shape(&passes(Tracker::Both, Some("sigsegv".into()))), [(Some("sigsegv"), true, false)]);
    }

    #[test]
    fn the_option_is_stronger_than_the_environment() {
        assert_eq!(shape(&passes(Tracker::Uffd, Some("sigsegv".into()))), [(Some("uffd"), true, false)]);
    }
}
