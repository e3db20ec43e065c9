//! apt with a state of its own: reads package lists, works out closures and fetches packages for another
//! Debian release into a folder, without root and without touching the system's apt.
//!
//! The mirror is one that the machine's own configuration names (`sources`), signatures are checked with the
//! keys that it names, and proxy settings stay in force, because the system's configuration is read first.

mod closure;
mod sources;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

pub(super) use closure::Package;

/// Whether the tools that are needed exist here.
pub(super) fn is_available() -> bool {
    ["apt-get", "dpkg-deb"].iter().all(|tool| crate::cargo::succeeds(Command::new(tool).arg("--version")))
}

/// An apt state in a folder, with one release's package lists.
pub(super) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Sets up the state in `folder` (which must not exist) and fetches the lists of `suite` for `arch` from
    /// the mirror from which this machine gets `running`, its own release.
    pub(super) fn fetch_lists(folder: &Path, suite: &str, running: &str, arch: &str) -> Result<Apt> {
        let apt = Apt { folder: folder.to_path_buf() };
        for name in ["sources.d", "state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(name)).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        apt.write("state/status", "")?;
        apt.write("apt.conf", &apt.configuration())?;

        let mirrors = sources::debian_mirrors(&sources::read_system()?, running);
        if mirrors.is_empty() {
            bail!(
                "apt's configuration (sources.list, sources.list.d) names no mirror of Debian {running} with the \
                 component `main`, from which the driver could be fetched"
            );
        }
        let mut failures = Vec::new();
        for mirror in mirrors {
            apt.write("sources.d/vksvm.sources", &mirror.for_suite(suite, arch))?;
            match apt.update(suite) {
                Ok(()) => return Ok(apt),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        bail!(
            "cannot fetch the package lists of Debian {suite}; is this machine online, and does `apt-get update` \
             work?\n{}",
            failures.join("\n")
        )
    }

    /// Everything that must be fetched for `packages`: themselves and their dependencies.
    pub(super) fn closure(&self, packages: &[&str]) -> Result<Vec<Package>> {
        let mut command = self.apt_get();
        command.args(["install", "--print-uris", "-qq", "--no-install-recommends"]).args(packages);
        let closure = closure::parse(&output(&mut command)?)?;
        if closure.is_empty() {
            bail!("apt finds nothing to fetch for {}", packages.join(" "));
        }
        Ok(closure)
    }

    /// Fetches packages and checks them; `progress` is told now and then how many bytes are there.
    pub(super) fn download(&self, packages: &[&str], progress: impl Fn(u64)) -> Result<Vec<PathBuf>> {
        let mut command = self.apt_get();
        command.args(["install", "--download-only", "-y", "-qq", "--no-install-recommends"]).args(packages);
        let archives = self.folder.join("cache/archives");
        thread::scope(|scope| {
            let download = scope.spawn(move || output(&mut command));
            while !download.is_finished() {
                progress(bytes_in(&archives) + bytes_in(&archives.join("partial")));
                thread::sleep(Duration::from_millis(100));
            }
            download.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .context("cannot fetch the packages; is this machine online?")?;
        let mut files: Vec<PathBuf> = fs::read_dir(&archives)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        files.sort();
        Ok(files)
    }

    fn update(&self, suite: &str) -> Result<()> {
        // Without this, apt reports lists that it could not fetch as warnings only.
        output(self.apt_get().args(["update", "-qq", "-o", "APT::Update::Error-Mode=any"]))?;
        let lists = self.folder.join("state/lists");
        let from_debian = fs::read_dir(&lists)?.flatten().any(|entry| {
            entry.file_name().to_string_lossy().ends_with("Release")
                && fs::read_to_string(entry.path()).is_ok_and(|text| text.lines().any(|line| line == "Origin: Debian"))
        });
        if !from_debian {
            bail!("what the mirror has as {suite} is not Debian's");
        }
        Ok(())
    }

    fn apt_get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.arg("-c").arg(self.folder.join("apt.conf"));
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Read after the system's configuration: redirects all state, drops hooks that act on the system and
    /// pins and lists that belong to it.
    fn configuration(&self) -> String {
        let folder = self.folder.display();
        format!(
            r#"#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear APT::Default-Release;
#clear APT::Architectures;
Dir::State "{folder}/state";
Dir::State::lists "lists";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Cache::archives "archives";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{folder}/sources.d";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Acquire::Retries "3";
"#
        )
    }
}

/// Unpacks one package file into a folder.
pub(super) fn unpack(file: &Path, into: &Path) -> Result<()> {
    output(Command::new("dpkg-deb").arg("--extract").arg(file).arg(into)).map(drop)
}

/// What a command prints; if it fails, only its complaints, not the whole log.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.output().with_context(|| format!("cannot start {name}"))?;
    if !out.status.success() {
        let log = String::from_utf8_lossy(&out.stderr);
        let complaints: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).take(20).collect();
        bail!("{name} failed ({}):\n{}", out.status, complaints.join("\n"));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(|data| data.is_file()).map(|data| data.len()).sum()
}
