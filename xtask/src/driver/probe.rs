//! Asking the runtime itself whether it can use a device: builds and runs the sample `info`, which goes
//! through the runtime's start-up probes.

use std::{
    io::Read,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::cargo;

const PACKAGE: &str = "vksvm-samples";
const BINARY: &str = "info";

/// A driver that takes longer to answer than this is not one to work with.
const PATIENCE: Duration = Duration::from_secs(120);

/// What `info` said.
pub(super) enum Answer {
    /// A device passed the probes; the text describes it.
    Usable(String),
    /// None did, and why.
    Unusable(String),
    /// There is no such program in this workspace.
    Unknown,
}

/// How programs are about to be built; the probe is built in the same way, so that nothing is built twice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// The cargo arguments that select the profile.
    pub(crate) fn args(self) -> &'static [&'static str] {
        match self {
            Profile::Dev => &[],
            Profile::Release => &["--release"],
        }
    }
}

/// Runs the probes on the system's own devices, or through `runner` on those it leads to.
pub(super) fn ask(runner: Option<&Path>, profile: Profile) -> Result<Answer> {
    if !cargo::binaries(PACKAGE).iter().any(|name| name == BINARY) {
        return Ok(Answer::Unknown);
    }
    let select = ["--package", PACKAGE, "--bin", BINARY];
    // Not quietly: the first time it takes a minute or two.
    cargo::run(cargo::cargo().arg("build").args(select).args(profile.args()))?;

    let mut command = cargo::cargo();
    command.args(["run", "--quiet"]).args(select).args(profile.args());
    if let Some(runner) = runner {
        command.env(cargo::runner_variable()?, runner);
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    answer(child.context("cannot start cargo")?)
}

fn answer(mut child: Child) -> Result<Answer> {
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let start = Instant::now();
    let status = loop {
        match child.try_wait().context("cannot wait for the probe")? {
            Some(status) => break status,
            None if start.elapsed() > PATIENCE => {
                child.kill().and_then(|()| child.wait()).context("cannot stop the probe")?;
                return Ok(Answer::Unusable(format!("no answer within {} s", PATIENCE.as_secs())));
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    let text = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default().trim().to_owned();
    let (said, complained) = (text(stdout), text(stderr));
    Ok(match status.success() {
        true => Answer::Usable(said),
        false if complained.is_empty() => Answer::Unusable(format!("the probe ended with {status}")),
        false => Answer::Unusable(complained),
    })
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth showing.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn shell(script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn success_describes_the_device() {
        assert!(matches!(answer(shell("echo some GPU")).unwrap(), Answer::Usable(text) if text == "some GPU"));
    }

    #[test]
    fn failure_gives_the_reason() {
        let said = answer(shell("echo no loader >&2; exit 1")).unwrap();
        assert!(matches!(said, Answer::Unusable(text) if text == "no loader"));
        assert!(matches!(answer(shell("kill -9 $$")).unwrap(), Answer::Unusable(text) if text.contains("signal")));
    }
}
