//! Setting the private folder up from packages of a Debian release that has a good software driver.
//!
//! Says what it will fetch before it does, leaves nothing behind but the folder, and starts over if an earlier
//! attempt was interrupted.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    advice,
    apt::{self, Apt},
    cache,
    os_release::OsRelease,
    private::{self, Arch, Folder, PACKAGES},
};
use crate::cargo;

/// The oldest release whose software driver runs long loops to their end, and the releases before it, on
/// which its programs are therefore used.
const GOOD_SUITE: &str = "trixie";
const GOOD_VERSION: u32 = 13;
const OLDEST_VERSION: u32 = 11;

/// Where a private folder for this machine comes from.
pub(super) struct Recipe {
    suite: String,
    running: String,
    arch: Arch,
}

impl Recipe {
    /// The recipe for this system, or what to install where there is none.
    pub(super) fn here(release: &OsRelease) -> Result<Recipe> {
        let suite = suite_for(release).with_context(|| advice::what_to_install(release))?;
        if !apt::is_available() {
            bail!("apt-get or dpkg-deb is missing. {}", advice::what_to_install(release));
        }
        if !cargo::triple()?.ends_with("-linux-gnu") {
            bail!("the private driver serves programs built for GNU/Linux only, not for {}", cargo::triple()?);
        }
        Ok(Recipe { suite, running: release.codename.clone().unwrap_or_default(), arch: Arch::here()? })
    }

    /// The private folder; set up now if it is not there yet or if `refresh` asks for it.
    pub(super) fn ensure(&self, refresh: bool) -> Result<Folder> {
        let cache = cache::folder()?;
        let root = Folder::path(&cache, &self.suite);
        if let (false, Some(folder)) = (refresh, Folder::open(&root, &self.suite)) {
            return Ok(folder);
        }
        let _lock = cache::Lock::take(&cache)?;
        // Somebody else may have set it up while we waited.
        match Folder::open(&root, &self.suite) {
            Some(folder) if !refresh => Ok(folder),
            _ => self.set_up(&cache, &root),
        }
    }

    fn set_up(&self, cache: &Path, root: &Path) -> Result<Folder> {
        let Recipe { suite, running, arch } = self;
        let (lists, building) = (cache.join("fetching"), cache.join("unpacking"));
        private::remove(&lists)?;
        private::remove(&building)?;
        eprintln!(
            "Setting up a private software Vulkan driver in {}.\n\
             Nothing outside that folder changes. Fetching the package lists of Debian {suite} (about 10 MB).",
            root.display()
        );
        let spinner = ProgressBar::new_spinner().with_message("package lists");
        spinner.enable_steady_tick(Duration::from_millis(100));
        let apt = Apt::fetch_lists(&lists, suite, running, arch.debian);
        spinner.finish_and_clear();
        let apt = apt?;

        let closure = apt.closure(&PACKAGES)?;
        let bytes: u64 = closure.iter().map(|package| package.bytes).sum();
        eprintln!(
            "Fetching {} packages, {} MB (about four times that unpacked):\n    {} and what they need.",
            closure.len(),
            bytes.div_ceil(1_000_000),
            PACKAGES.join(", ")
        );
        let style =
            |template: &str| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar =
            ProgressBar::new(bytes).with_style(style("fetching  {bar:40} {bytes}/{total_bytes}  {bytes_per_sec}"));
        let files = apt.download(&PACKAGES, |done| bar.set_position(done));
        bar.finish_and_clear();
        let files = files?;

        fs::create_dir_all(&building).with_context(|| format!("cannot create {}", building.display()))?;
        let bar = ProgressBar::new(files.len() as u64).with_style(style("unpacking {bar:40} {pos}/{len} packages"));
        for file in &files {
            apt::unpack(file, &building)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        private::remove(&lists)?;
        let names: Vec<String> = closure.into_iter().map(|package| package.name).collect();
        let folder = Folder::finish(&building, root, suite, arch, &names)?;
        eprintln!("The private driver is ready. Removing {} undoes this.", cache.display());
        Ok(folder)
    }
}

/// The Debian release to take packages from: the first good one, or the running one if that is newer, since
/// programs built there need its libc.
fn suite_for(release: &OsRelease) -> Option<String> {
    if release.id != "debian" {
        return None;
    }
    match (release.version, &release.codename) {
        (Some(version), _) if version < OLDEST_VERSION => None,
        (Some(version), _) if version <= GOOD_VERSION => Some(GOOD_SUITE.to_owned()),
        (_, codename) => codename.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::{OsRelease, suite_for};

    fn suite(id: &str, version: Option<u32>, codename: &str) -> Option<String> {
        let codename = Some(codename.to_owned()).filter(|name| !name.is_empty());
        suite_for(&OsRelease { id: id.into(), version, codename, ..OsRelease::default() })
    }

    #[test]
    fn older_debians_take_the_first_good_release() {
        assert_eq!(suite("debian", Some(12), "bookworm").as_deref(), Some("trixie"));
        assert_eq!(suite("debian", Some(13), "trixie").as_deref(), Some("trixie"));
    }

    #[test]
    fn newer_debians_take_their_own() {
        assert_eq!(suite("debian", Some(14), "forky").as_deref(), Some("forky"));
        assert_eq!(suite("debian", None, "sid").as_deref(), Some("sid"));
    }

    #[test]
    fn other_systems_have_no_recipe() {
        assert_eq!(suite("ubuntu", Some(24), "noble"), None);
        assert_eq!(suite("debian", Some(10), "buster"), None);
        assert_eq!(suite("debian", None, ""), None);
    }
}
