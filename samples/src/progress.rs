//! Progress bars on standard error; none where it is not a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// A bar over `steps` steps.
pub fn bar(what: &'static str, steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:24} {wide_bar} {pos}/{len} {elapsed}");
    let bar = ProgressBar::new(steps).with_message(what);
    // The template is a constant; without it the bar looks plainer.
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

/// A sign of life for work whose length is not known.
pub fn spinner(what: &'static str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
