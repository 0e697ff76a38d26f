//! A readable account of a run: written only when somebody will read it.

use std::fmt::Write as _;

#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    text: Option<String>,
}

impl Trace {
    pub(crate) fn new(wanted: bool) -> Trace {
        Trace {
            text: wanted.then(String::new),
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.text.is_some()
    }

    /// Time, host, what happened.
    pub(crate) fn line(&mut self, now: u64, host: Option<usize>, what: std::fmt::Arguments<'_>) {
        let Some(text) = &mut self.text else {
            return;
        };
        let (seconds, rest) = (now / 1_000_000, now % 1_000_000);
        let host = host.map_or_else(|| "-".to_owned(), |h| h.to_string());
        // Writing into a string does not fail.
        let _ = writeln!(text, "{seconds:>4}.{rest:06} {host:>2} {what}");
    }

    pub(crate) fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }
}
