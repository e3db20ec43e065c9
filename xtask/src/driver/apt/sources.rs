//! The machine's package sources: reads both formats of sources.list(5) and finds the mirrors from which
//! the machine gets Debian itself, as opposed to security updates and third parties' packages.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// One entry of the package sources.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Source {
    types: Vec<String>,
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    disabled: bool,
    /// Fields about trust, which a source for another release of the same mirror keeps: name and value, the
    /// latter possibly of several lines (a key itself).
    trust: Vec<(String, String)>,
}

const TRUST: [&str; 4] = ["signed-by", "trusted", "check-valid-until", "allow-insecure"];

impl Source {
    /// The same mirror as a source of `suite`'s main component for one architecture, in deb822 format.
    pub(super) fn for_suite(&self, suite: &str, arch: &str) -> String {
        let uris = self.uris.join(" ");
        let mut text = format!("Types: deb\nURIs: {uris}\nSuites: {suite}\nComponents: main\nArchitectures: {arch}\n");
        // Not the lists of file names and the like that other tools make apt fetch as well.
        text += "Targets: Packages\n";
        for (name, value) in &self.trust {
            text += &format!("{name}: {value}\n");
        }
        text
    }

    fn set(&mut self, field: &str, value: &str) {
        let words = || value.split_whitespace().map(str::to_owned).collect();
        match field.to_ascii_lowercase().as_str() {
            "types" => self.types = words(),
            "uris" => self.uris = words(),
            "suites" => self.suites = words(),
            "components" => self.components = words(),
            "enabled" => self.disabled = ["no", "false", "0"].contains(&value.trim()),
            name if TRUST.contains(&name) => self.trust.push((name.to_owned(), value.to_owned())),
            _ => {}
        }
    }
}

/// Reads all sources that apt would read, in its order.
pub(super) fn read_system() -> Result<Vec<Source>> {
    let etc = Path::new("/etc/apt");
    let mut files = vec![etc.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
        let mut parts: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        parts.sort();
        files.extend(parts);
    }
    let mut sources = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let read = || fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(parse_list(&read()?)),
            Some("sources") => sources.extend(parse_deb822(&read()?)),
            _ => {}
        }
    }
    Ok(sources)
}

/// The sources that provide Debian's release `codename` itself, likeliest first. Third parties use the same
/// suite names, so the caller checks the origin of what it gets.
pub(super) fn debian_mirrors(sources: &[Source], codename: &str) -> Vec<Source> {
    let aliases = ["stable", "oldstable", "testing", "unstable", "sid"];
    let mut ranked: Vec<(u32, &Source)> = sources
        .iter()
        .filter(|source| !source.disabled && source.types.iter().any(|kind| kind == "deb"))
        .filter(|source| source.components.iter().any(|component| component == "main"))
        .filter(|source| source.uris.iter().any(|uri| !uri.starts_with("cdrom:")))
        .filter_map(|source| {
            let named = source.suites.iter().any(|suite| suite == codename);
            let aliased = source.suites.iter().any(|suite| aliases.contains(&suite.as_str()));
            let debian_key = source.trust.iter().any(|(_, value)| value.contains("debian-archive"));
            let debian_path = source.uris.iter().any(|uri| uri.trim_end_matches('/').ends_with("/debian"));
            let rank = 4 * u32::from(debian_key) + 2 * u32::from(debian_path) + u32::from(named);
            (named || aliased).then_some((rank, source))
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| u32::MAX - rank);
    let mut mirrors: Vec<Source> = Vec::new();
    for (_, source) in ranked {
        if !mirrors.iter().any(|mirror| mirror.uris == source.uris) {
            mirrors.push(source.clone());
        }
    }
    mirrors
}

/// Reads the one-line format: `deb [option=value …] URI SUITE COMPONENT…`.
fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(|line| parse_line(line.split('#').next().unwrap_or(""))).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let mut source = Source::default();
    let (kind, mut rest) = line.trim().split_once(char::is_whitespace)?;
    source.set("types", kind);
    if let Some(bracketed) = rest.trim_start().strip_prefix('[') {
        let (options, after) = bracketed.split_once(']')?;
        for (name, value) in options.split_whitespace().filter_map(|option| option.split_once('=')) {
            source.set(name, &value.replace(',', " "));
        }
        rest = after;
    }
    let mut words = rest.split_whitespace();
    source.set("uris", words.next()?);
    source.set("suites", words.next()?);
    source.components = words.map(str::to_owned).collect();
    Some(source)
}

/// Reads the deb822 format: stanzas of `Field: value`, values continued on indented lines, `#` lines are
/// comments wherever they stand.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]).filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            let mut source = Source::default();
            fields.drain(..).for_each(|(name, value)| source.set(&name, &value));
            if source != Source::default() {
                sources.push(source);
            }
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                *value += &format!("\n{line}");
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb
# http://old.invalid/archive/debian/20250520T000000Z
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

    fn uris(mirrors: &[Source]) -> Vec<&str> {
        mirrors.iter().flat_map(|mirror| &mirror.uris).map(String::as_str).collect()
    }

    #[test]
    fn deb822_comments_inside_a_stanza_are_passed_over_and_security_is_not_taken() {
        let sources = parse_deb822(DEB822);

        assert_eq!(sources.len(), 2);
        assert_eq!(uris(&debian_mirrors(&sources, "bookworm")), ["http://mirror.invalid/debian"]);
    }

    #[test]
    fn one_line_entries_with_and_without_options_are_read() {
        let text = "# deb http://commented.invalid/debian bookworm main\n\
                    deb http://mirror.invalid/debian/ bookworm main contrib # ours\n\
                    deb-src http://mirror.invalid/debian bookworm main\n\
                    deb [ arch=amd64,arm64 signed-by=/k/debian-archive-keyring.gpg ] https://b.invalid/debian bookworm main\n\
                    deb\n";

        let sources = parse_list(text);

        assert_eq!(sources.len(), 3);
        assert_eq!(sources[0].components, ["main", "contrib"]);
        let mirrors = debian_mirrors(&sources, "bookworm");
        assert_eq!(uris(&mirrors), ["https://b.invalid/debian", "http://mirror.invalid/debian/"]);
        assert_eq!(mirrors[0].trust, [("signed-by".to_owned(), "/k/debian-archive-keyring.gpg".to_owned())]);
    }

    #[test]
    fn third_parties_rank_behind_debian_or_drop_out() {
        let text = "deb https://a.invalid bookworm main\n\
                    deb https://docker.invalid/linux/debian bookworm stable\n\
                    deb https://node.invalid/node_20.x nodistro main\n\
                    deb https://pg.invalid/apt bookworm-pgdg main\n\
                    deb cdrom:[Debian]/ bookworm main\n";
        let sources = [parse_list(text), parse_deb822(DEB822)].concat();

        assert_eq!(uris(&debian_mirrors(&sources, "bookworm")), ["http://mirror.invalid/debian", "https://a.invalid"]);
    }

    #[test]
    fn disabled_entries_drop_out_and_aliases_count() {
        let text = "Types: deb\nURIs: http://off.invalid/debian\nSuites: forky\nComponents: main\nEnabled: no\n\n\
                    Types: deb deb-src\nURIs: mirror+file:/etc/apt/mirrors/debian.list\nSuites: testing\nComponents: main\n";

        let mirrors = debian_mirrors(&parse_deb822(text), "forky");

        assert_eq!(uris(&mirrors), ["mirror+file:/etc/apt/mirrors/debian.list"]);
    }

    #[test]
    fn a_source_for_another_release_keeps_mirror_and_key() {
        let text = "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: bookworm\nComponents: main non-free\n\
                    Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ\n -----END PGP PUBLIC KEY BLOCK-----\n";

        let source = parse_deb822(text)[0].for_suite("trixie", "amd64");

        assert_eq!(
            source,
            "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: trixie\nComponents: main\nArchitectures: amd64\n\
             Targets: Packages\nsigned-by: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ\n -----END PGP PUBLIC KEY BLOCK-----\n"
        );
    }
}
