//! What `apt-get install --print-uris` answers: one line a package to fetch, `'URI' FILE SIZE HASH`.

use anyhow::{Context, Result};

/// A package that has to be fetched.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::driver) struct Package {
    /// Its file's name without folder and extension, for example `libc6_2.41-12_amd64`.
    pub name: String,
    /// The size of its file in bytes.
    pub bytes: u64,
}

/// Reads apt's answer; lines that are no package (apt's notices) are passed over.
pub(super) fn parse(text: &str) -> Result<Vec<Package>> {
    text.lines().filter(|line| line.starts_with('\'')).map(package).collect()
}

fn package(line: &str) -> Result<Package> {
    let fields = || {
        let (_uri, rest) = line.strip_prefix('\'')?.split_once('\'')?;
        let mut fields = rest.split_whitespace();
        let name = fields.next()?.trim_end_matches(".deb").replace("%3a", ":");
        Some(Package { name, bytes: fields.next()?.parse().ok()? })
    };
    fields().with_context(|| format!("apt answered a line that cannot be read: {line}"))
}

#[cfg(test)]
mod tests {
    use super::{Package, parse};

    #[test]
    fn packages_are_read_and_notices_passed_over() {
        let text = "Reading package lists...\n\
                    'http://mirror.invalid/pool/g/glibc/libc6_2.41-12_amd64.deb' libc6_2.41-12_amd64.deb 2847412 SHA256:00\n\
                    'http://mirror.invalid/pool/z/zlib1g_1.3_amd64.deb' zlib1g_1%3a1.3_amd64.deb 88880 SHA256:01\n";

        let packages = parse(text).unwrap();

        assert_eq!(
            packages,
            [
                Package { name: "libc6_2.41-12_amd64".into(), bytes: 2_847_412 },
                Package { name: "zlib1g_1:1.3_amd64".into(), bytes: 88_880 },
            ]
        );
    }

    #[test]
    fn an_unreadable_line_is_named() {
        let error = parse("'http://mirror.invalid/x.deb' x.deb many\n").unwrap_err();

        assert!(error.to_string().contains("x.deb many"));
    }
}
