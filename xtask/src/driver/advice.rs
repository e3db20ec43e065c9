//! What to tell people whose system has no usable Vulkan device and for which none can be fetched.

use super::os_release::OsRelease;

/// The sentence that says exactly what to install on this system.
pub(super) fn what_to_install(release: &OsRelease) -> String {
    let command = [
        ("fedora", "sudo dnf install mesa-vulkan-drivers vulkan-loader vulkan-validation-layers"),
        ("rhel", "sudo dnf install mesa-vulkan-drivers vulkan-loader vulkan-validation-layers"),
        ("arch", "sudo pacman -S vulkan-swrast vulkan-icd-loader vulkan-validation-layers"),
        ("suse", "sudo zypper install libvulkan_lvp libvulkan1 vulkan-validationlayers"),
        ("alpine", "sudo apk add mesa-vulkan-swrast vulkan-loader vulkan-validation-layers"),
        ("gentoo", "sudo env VIDEO_CARDS=lavapipe emerge media-libs/mesa media-libs/vulkan-loader"),
        ("ubuntu", "sudo apt-get install mesa-vulkan-drivers libvulkan1 vulkan-validationlayers"),
        ("debian", "sudo apt-get install mesa-vulkan-drivers libvulkan1 vulkan-validationlayers"),
    ]
    .iter()
    .find(|(id, _)| release.is_like(id))
    .map(|(_, command)| *command);
    match command {
        Some(command) => format!(
            "Install your GPU's Vulkan driver, or the software driver:\n    {command}\n\
             (Mesa's lavapipe must be built with LLVM 16 or later: older ones stop long loops silently.)"
        ),
        None if release.id == "nixos" => "Install your GPU's Vulkan driver, or the software driver: add `mesa` and \
             `vulkan-loader` to the shell, put the loader's `lib` on LD_LIBRARY_PATH and let VK_DRIVER_FILES name \
             mesa's `share/vulkan/icd.d/lvp_icd.*.json`."
            .to_owned(),
        None => "Install the Vulkan loader (libvulkan.so.1) and a driver: your GPU's, or Mesa's software driver \
             lavapipe (a recent Mesa, built with LLVM 16 or later)."
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{OsRelease, what_to_install};

    fn system(id: &str, like: &[&str]) -> OsRelease {
        OsRelease { id: id.into(), like: like.iter().map(|&like| like.into()).collect(), ..OsRelease::default() }
    }

    #[test]
    fn known_systems_get_their_own_command() {
        assert!(what_to_install(&system("fedora", &[])).contains("dnf install mesa-vulkan-drivers vulkan-loader"));
        assert!(what_to_install(&system("arch", &[])).contains("pacman -S vulkan-swrast vulkan-icd-loader"));
        assert!(what_to_install(&system("opensuse-tumbleweed", &["opensuse", "suse"])).contains("zypper"));
        assert!(what_to_install(&system("linuxmint", &["ubuntu", "debian"])).contains("apt-get install"));
    }

    #[test]
    fn unknown_systems_learn_what_is_missing() {
        assert!(what_to_install(&system("plan9", &[])).contains("libvulkan.so.1"));
    }
}
