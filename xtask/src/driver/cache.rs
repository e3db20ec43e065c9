//! The cache folder: where the private driver lives, and the lock that keeps two set-ups apart.

use std::{
    env,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// `$VKSVM_CACHE`, else `$XDG_CACHE_HOME/vksvm`, else `~/.cache/vksvm`. What the runtime takes for none counts as none: `VKSVM_CACHE=0`, and relative
/// paths in `XDG_CACHE_HOME`.
pub(super) fn folder() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("VKSVM_CACHE")
        .filter(|folder| folder.as_os_str() != "0")
        .or_else(|| set("XDG_CACHE_HOME").filter(|dir| dir.is_absolute()).map(|dir| dir.join("vksvm")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/vksvm")))
        .context("no cache folder: neither VKSVM_CACHE nor XDG_CACHE_HOME nor HOME is set; set VKSVM_CACHE")?;
    let folder = std::path::absolute(&folder).with_context(|| format!("bad cache folder {}", folder.display()))?;
    if folder.to_str().is_none_or(|path| path.contains([' ', '\t', '\n', '"', ':', '\''])) {
        // Cargo splits a runner's command line at spaces, the dynamic loader its path at colons.
        bail!(
            "the cache folder {} has a space, quote or colon in its path; set VKSVM_CACHE to one without",
            folder.display()
        );
    }
    Ok(folder)
}

/// Held while the folder is being changed; released on drop, and by the kernel if the process dies.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the folder's lock, waiting for another process that holds it.
    pub(super) fn take(folder: &Path) -> Result<Lock> {
        fs::create_dir_all(folder).with_context(|| {
            format!("cannot create the cache folder {}; VKSVM_CACHE names another", folder.display())
        })?;
        let path = folder.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot write to {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("waiting for another process that is setting up {}", folder.display());
                file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(Lock { _file: file })
    }
}
