//! Configuration files: TOML, where an unknown key or a wrong value is an error that names file, line
//! and the nearest right key. Shared by all daemons.

use serde::de::DeserializeOwned;
use std::path::Path;

/// A configuration that can't be used: which file, which line, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct SettingsError {
    place: String,
    problem: String,
}

impl SettingsError {
    /// A setting whose value cannot work; `problem` names the key and what to write instead.
    pub fn value(path: &Path, problem: impl Into<String>) -> SettingsError {
        SettingsError {
            place: path.display().to_string(),
            problem: problem.into(),
        }
    }
}

/// Reads the file at `path`. `T` should deny unknown fields.
///
/// # Errors
/// When the file cannot be read, is no TOML, or does not fit `T`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| SettingsError::value(path, format!("cannot read the configuration: {e}")))?;
    parse(path, &text)
}

/// Reads the configuration `text`; `path` is for the messages.
///
/// # Errors
/// When the text is no TOML, or does not fit `T`.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, SettingsError> {
    toml::from_str(text).map_err(|error| {
        let place = match error.span() {
            Some(span) => format!("{}:{}", path.display(), line_of(text, span.start)),
            None => path.display().to_string(),
        };
        SettingsError {
            place,
            problem: explain(error.message()),
        }
    })
}

/// The number of the line that byte `at` of `text` is in, from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

/// Shortens serde's "unknown field `x`, expected one of `a`, `b`" to what helps.
fn explain(message: &str) -> String {
    if !message.starts_with("unknown field") {
        return message.to_owned();
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(unknown) = quoted.next() else {
        return message.to_owned();
    };
    match quoted.min_by_key(|known| edit_distance(unknown, known)) {
        Some(nearest) => format!("unknown key \"{unknown}\"; did you mean \"{nearest}\"?"),
        None => message.to_owned(),
    }
}

/// Levenshtein's distance between two short words.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)] // only read into
    struct Outer {
        name: String,
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)] // only read into
    struct Inner {
        timeout_ms: u64,
    }

    fn problem(text: &str) -> String {
        let parsed: Result<Outer, _> = parse(Path::new("spare.toml"), text);
        parsed.expect_err("it is wrong").to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_right_key() {
        assert_eq!(
            problem("name = \"a\"\nnmae = \"b\"\n"),
            "spare.toml:2: unknown key \"nmae\"; did you mean \"name\"?"
        );
        assert_eq!(
            problem("name = \"a\"\n[inner]\ntimeot_ms = 5\n"),
            "spare.toml:3: unknown key \"timeot_ms\"; did you mean \"timeout_ms\"?"
        );
    }

    #[test]
    fn a_missing_key_and_a_wrong_type_are_named() {
        assert!(problem("").contains("missing field `name`"));
        assert!(problem("name = 3\n").starts_with("spare.toml:1: "));
    }

    #[test]
    fn edit_distance_counts_changes() {
        assert_eq!(edit_distance("door", "door"), 0);
        assert_eq!(edit_distance("dor", "door"), 1);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
