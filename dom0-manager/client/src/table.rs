//! Tables for a terminal.

use std::fmt::Write;

/// Characters of a cell that are shown; the longest that is right is a hash.
const CELL_CHARS_MAX: usize = 100;

/// Text from elsewhere without anything that a terminal would obey: a guest's or a client's words may
/// be in it.
pub(crate) fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A table with left-aligned columns; the last one is not padded.
#[derive(Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Begins with a row of headings.
    #[must_use]
    pub fn new(head: &[&str]) -> Table {
        let mut table = Table::default();
        table.row(head.iter().map(ToString::to_string).collect());
        table
    }

    /// Adds a row. Control characters in a cell are shown as spaces, and a long one is cut.
    pub fn row(&mut self, cells: Vec<String>) {
        let shown = |cell: &String| plain(cell).chars().take(CELL_CHARS_MAX).collect();
        self.rows.push(cells.iter().map(shown).collect());
    }

    /// The table as lines that begin with `indent` spaces.
    #[must_use]
    pub fn render(&self, indent: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| {
            let cells = self.rows.iter().filter_map(|r| r.get(c));
            cells.map(|t| t.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}
