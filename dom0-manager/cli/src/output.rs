//! What subcommands print, and the reports that they write.

use anyhow::{anyhow, Result};
use serde::Serialize;
use std::io::Write;
use std::path::Path;

/// Prints an answer, as JSON or in words.
pub(crate) fn show<T: Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce() -> String,
) -> Result<()> {
    if json {
        print(&(serde_json::to_string_pretty(value)? + "\n"))
    } else {
        print(&text())
    }
}

/// Writes to standard output at once.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes a report to the file of `--json`, if there is one.
pub(crate) fn write_report<T: Serialize>(path: Option<&Path>, report: &T) -> Result<()> {
    let Some(path) = path else {
        return Ok(());
    };
    let text = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(path, text).map_err(|e| anyhow!("--json: cannot write {}: {e}", path.display()))
}
