//! For tests that need a process of their own: this test program, to be started again.

use std::ffi::OsString;

/// Program and first arguments. Under a runner (`VKSVM_RUNNER`, see `xtask`) the current executable is a dynamic loader, and the test
/// program has to be started through the runner again.
pub(crate) fn again() -> Vec<OsString> {
    match std::env::var_os("VKSVM_RUNNER") {
        Some(runner) => vec![runner, std::env::args_os().next().expect("a program has a name")],
        None => vec![std::env::current_exe().expect("the executable is there").into_os_string()],
    }
}
