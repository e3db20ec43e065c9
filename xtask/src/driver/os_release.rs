//! Which operating system this is: the fields of os-release(5) that decide where a driver comes from.

use std::fs;

/// What os-release says, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OsRelease {
    /// `ID`, for example `debian`.
    pub id: String,
    /// `ID_LIKE`: the systems it derives from, nearest first.
    pub like: Vec<String>,
    /// `VERSION_CODENAME`, for example `bookworm`.
    pub codename: Option<String>,
    /// The whole number that `VERSION_ID` starts with; Debian's testing and unstable have none.
    pub version: Option<u32>,
    /// `PRETTY_NAME`.
    pub name: String,
}

impl OsRelease {
    /// Reads the running system's; empty where there is none.
    pub(super) fn read() -> OsRelease {
        let text = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| fs::read_to_string(path).ok());
        OsRelease::parse(&text.unwrap_or_default())
    }

    fn parse(text: &str) -> OsRelease {
        let mut release = OsRelease::default();
        for (key, value) in text.lines().filter_map(|line| line.trim().split_once('=')) {
            let value = value.trim_matches(['"', '\'']);
            match key {
                "ID" => release.id = value.to_owned(),
                "ID_LIKE" => release.like = value.split_whitespace().map(str::to_owned).collect(),
                "VERSION_CODENAME" => release.codename = Some(value.to_owned()).filter(|name| !name.is_empty()),
                "VERSION_ID" => release.version = value.split('.').next().and_then(|number| number.parse().ok()),
                "PRETTY_NAME" => release.name = value.to_owned(),
                _ => {}
            }
        }
        release
    }

    /// Whether this is the system `id` or derives from it.
    pub(super) fn is_like(&self, id: &str) -> bool {
        self.id == id || self.like.iter().any(|like| like == id)
    }
}

#[cfg(test)]
mod tests {
    use super::OsRelease;

    #[test]
    fn quoted_and_plain_values_are_read() {
        let text =
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n";

        let release = OsRelease::parse(text);

        assert_eq!(release.id, "debian");
        assert_eq!(release.version, Some(12));
        assert_eq!(release.codename.as_deref(), Some("bookworm"));
        assert_eq!(release.name, "Debian GNU/Linux 12 (bookworm)");
    }

    #[test]
    fn a_derivative_is_like_its_parents() {
        let release = OsRelease::parse("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_ID='22.1'\n");

        assert!(release.is_like("ubuntu") && release.is_like("debian") && release.is_like("linuxmint"));
        assert!(!release.is_like("fedora"));
        assert_eq!(release.version, Some(22));
    }

    #[test]
    fn a_system_without_version_has_none() {
        let release = OsRelease::parse("ID=debian\nVERSION_CODENAME=forky\n");

        assert_eq!(release.version, None);
        assert_eq!(release.codename.as_deref(), Some("forky"));
    }
}
