//! Options from the environment. A value that cannot be is an error that names what was expected.

use super::OpenError;
use super::choose::{FaultMode, PlacementChoice};
use crate::device::vulkan::CopyPath;
use crate::mm::state::Placement;
use crate::policy::{ThrashOptions, ThrashPolicy};
use crate::track::TrackerKind;

pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

pub(super) fn tracker_from_environment() -> Result<Option<TrackerKind>, OpenError> {
    match variable("VKSVM_TRACKER").as_deref() {
        None | Some("auto") => Ok(None),
        Some(value) => value.parse().map(Some).map_err(|_| OpenError::Option {
            name: "VKSVM_TRACKER",
            value: value.into(),
            reason: "expected userfaultfd, sigsegv or auto".into(),
        }),
    }
}

pub(super) fn fault_mode_from_environment() -> Result<FaultMode, OpenError> {
    match variable("VKSVM_FAULT_MODE").as_deref() {
        None | Some("auto") => Ok(FaultMode::Auto),
        Some("replay") => Ok(FaultMode::Replay),
        Some("live") => Ok(FaultMode::Live),
        Some(value) => Err(OpenError::Option {
            name: "VKSVM_FAULT_MODE",
            value: value.into(),
            reason: "expected live, replay or auto".into(),
        }),
    }
}

pub(super) fn thrash_from_environment() -> Result<ThrashOptions, OpenError> {
    let policy = match variable("VKSVM_THRASH").as_deref() {
        None | Some("full") => ThrashPolicy::Full,
        Some("throttle") => ThrashPolicy::Throttle,
        Some("off") => ThrashPolicy::Off,
        Some(value) => {
            return Err(OpenError::Option {
                name: "VKSVM_THRASH",
                value: value.into(),
                reason: "expected off, throttle or full".into(),
            });
        }
    };
    Ok(ThrashOptions { policy, ..ThrashOptions::default() })
}

pub(super) fn copy_path_from_environment() -> Result<CopyPath, OpenError> {
    match variable("VKSVM_COPY").as_deref() {
        None | Some("auto") => Ok(CopyPath::Auto),
        Some("staging") => Ok(CopyPath::Staging),
        Some(value) => Err(OpenError::Option {
            name: "VKSVM_COPY",
            value: value.into(),
            reason: "expected auto or staging".into(),
        }),
    }
}

pub(super) fn placement_from_environment() -> Result<PlacementChoice, OpenError> {
    match variable("VKSVM_PLACEMENT").as_deref() {
        None | Some("auto") => Ok(PlacementChoice::Measured),
        Some("copy") => Ok(PlacementChoice::Fixed(Placement::Copy)),
        Some("remote") => Ok(PlacementChoice::Fixed(Placement::Remote)),
        Some(value) => Err(OpenError::Option {
            name: "VKSVM_PLACEMENT",
            value: value.into(),
            reason: "expected copy, remote or auto".into(),
        }),
    }
}

pub(super) fn frames_from_environment() -> Result<Option<u32>, OpenError> {
    let Some(value) = variable("VKSVM_FRAMES") else { return Ok(None) };
    match value.parse() {
        Ok(frames) if frames > 0 => Ok(Some(frames)),
        _ => Err(OpenError::Option { name: "VKSVM_FRAMES", value, reason: "expected a number of 4 KiB frames".into() }),
    }
}

pub(super) fn budget_from_environment() -> Result<Option<u64>, OpenError> {
    let Some(value) = variable("VKSVM_BUDGET") else { return Ok(None) };
    let (digits, unit) = match value.char_indices().last() {
        Some((at, 'K' | 'k')) => (&value[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&value[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&value[..at], 1 << 30),
        _ => (&value[..], 1),
    };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|&bytes| bytes > 0) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(OpenError::Option {
            name: "VKSVM_BUDGET",
            value,
            reason: "expected a number of bytes, or one with K, M or G behind".into(),
        }),
    }
}
