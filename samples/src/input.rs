//! Input files: reading them whole, and saying where one cannot be used.

use std::fmt;
use std::path::{Path, PathBuf};

/// Why a file cannot be used, and where in it.
#[derive(Debug, thiserror::Error)]
pub struct InputError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1, where one is to blame.
    pub line: Option<usize>,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl InputError {
    /// The file as a whole is to blame.
    pub fn new(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: None, message: message.into() }
    }

    /// Line `line` (from 1) is to blame.
    pub fn at(file: &Path, line: usize, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: Some(line), message: message.into() }
    }
}

/// Reads a file.
///
/// # Errors
/// If it is missing, is a folder or cannot be read.
pub fn read(file: &Path) -> Result<Vec<u8>, InputError> {
    std::fs::read(file).map_err(|error| InputError::new(file, format!("cannot be read: {error}")))
}

/// Reads a text file.
///
/// # Errors
/// As [`read`], and if it is not UTF-8.
pub fn read_text(file: &Path) -> Result<String, InputError> {
    as_text(file, &read(file)?).map(str::to_owned)
}

/// `bytes`, which are the contents of `file`, as text.
///
/// # Errors
/// Names the first line that is not UTF-8.
pub fn as_text<'a>(file: &Path, bytes: &'a [u8]) -> Result<&'a str, InputError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
        InputError::at(file, line, "not text (UTF-8)")
    })
}

/// A piece of a line, short enough for a message.
pub fn excerpt(text: &str) -> String {
    const LONGEST: usize = 40;
    let text = text.trim();
    if text.chars().count() <= LONGEST {
        format!("`{text}`")
    } else {
        format!("`{}…`", text.chars().take(LONGEST).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let error = read_text(Path::new("no/such/file")).unwrap_err().to_string();
        assert!(error.starts_with("no/such/file: cannot be read"), "{error}");
    }

    #[test]
    fn bytes_that_are_no_text_are_named_by_line() {
        let error = as_text(Path::new("f"), b"one\ntwo \xff\n").unwrap_err().to_string();
        assert_eq!(error, "f:2: not text (UTF-8)");
    }

    #[test]
    fn a_long_line_is_cut() {
        assert!(excerpt(&"ä".repeat(100)).chars().count() < 50);
    }
}
