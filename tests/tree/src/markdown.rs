//! Markdown as far as links, headings and tables go.

use crate::{Finding, Tree};
use std::collections::BTreeMap;

/// The lines outside of fenced code, with their numbers from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(i, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fence && !fenced).then_some((i + 1, line))
    })
}

/// The line without its code spans.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// The anchor that GitHub gives to a heading.
#[must_use]
pub fn slug(heading: &str) -> String {
    let kept = heading.trim().chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    });
    kept.flat_map(char::to_lowercase).collect()
}

/// The headings: line and level of each, and its anchor. Of several with the same text the second has the anchor `…-1`.
#[must_use]
pub fn headings(text: &str) -> Vec<(usize, usize, String)> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let level = line.bytes().take_while(|b| *b == b'#').count();
        let Some(title) = line.get(level..).and_then(|rest| rest.strip_prefix(' ')) else {
            continue;
        };
        if level == 0 || level > 6 {
            continue;
        }
        let anchor = slug(title);
        let before = seen.entry(anchor.clone()).or_default();
        let unique = match *before {
            0 => anchor,
            n => format!("{anchor}-{n}"),
        };
        *before += 1;
        found.push((number, level, unique));
    }
    found
}

/// Whether a heading of `text` has this anchor.
#[must_use]
pub fn has_anchor(text: &str, anchor: &str) -> bool {
    headings(text).iter().any(|(_, _, found)| found == anchor)
}

/// A row of a table: its line, and its cells as they are written.
pub type Row = (usize, Vec<String>);

/// The rows of all tables in the section with this anchor, up to the next heading of its level or above, and the line of
/// that section's heading; none if there is no such section.
#[must_use]
pub fn rows(text: &str, anchor: &str) -> Option<(usize, Vec<Row>)> {
    let headings = headings(text);
    let at = headings.iter().position(|(_, _, a)| a == anchor)?;
    let (begin, level, _) = &headings[at];
    let next = headings[at + 1..].iter().find(|(_, l, _)| l <= level);
    let end = next.map_or(usize::MAX, |(line, _, _)| *line);
    let inside = prose(text).filter(|(n, line)| n > begin && *n < end && line.starts_with('|'));
    let cells = |line: &str| {
        let inner = line.trim().trim_matches('|');
        inner.split('|').map(|c| c.trim().to_owned()).collect()
    };
    Some((*begin, inside.map(|(n, line)| (n, cells(line))).collect()))
}

/// The text of a cell that is one code span.
#[must_use]
pub fn code(cell: &str) -> Option<&str> {
    let inner = cell.strip_prefix('`')?.strip_suffix('`')?;
    (!inner.contains('`')).then_some(inner)
}

/// The code spans of a text's prose, with their lines.
pub fn code_spans(text: &str) -> impl Iterator<Item = (usize, &str)> {
    prose(text).flat_map(|(n, line)| line.split('`').skip(1).step_by(2).map(move |s| (n, s)))
}

/// The targets of the links of a text, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let line = without_code(line);
        for rest in line.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            let target = target.split_whitespace().next().unwrap_or_default();
            found.push((number, target.to_owned()));
        }
    }
    found
}

/// `target`, as a file in `folder` means it, from the root of the repository; none if it leads out of that.
fn resolve(folder: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Links between documents that lead nowhere.
#[must_use]
pub fn broken_links(tree: &Tree) -> Vec<Finding> {
    let documents = tree.texts().filter(|(path, _)| path.ends_with(".md"));
    documents
        .flat_map(|(path, text)| {
            let broken = links(text).into_iter().filter_map(move |(line, target)| {
                let what = broken(tree, path, &target)?;
                let file = path.to_owned();
                Some(Finding { file, line, what })
            });
            broken.collect::<Vec<_>>()
        })
        .collect()
}

fn broken(tree: &Tree, from: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
    let found = match path {
        "" => Some(from.to_owned()),
        path => resolve(folder, path),
    };
    let Some(found) = found.filter(|f| tree.has(f)) else {
        return Some(format!(
            "the link to {target} leads to no tracked file; correct the path, or git add the file"
        ));
    };
    let lost = !anchor.is_empty() && !has_anchor(tree.text(&found).unwrap_or_default(), anchor);
    lost.then(|| format!("no heading of {found} has the anchor #{anchor}; correct the link"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_those_of_github() {
        assert_eq!(slug("Life of a request"), "life-of-a-request");
        assert_eq!(slug(" `guest.toml`, and more: "), "guesttoml-and-more");
        let text = "# One\n```\n# no heading\n```\n## Two words\n## Two words\n#nor this\n";
        let anchors: Vec<String> = headings(text).into_iter().map(|(_, _, a)| a).collect();
        assert_eq!(anchors, ["one", "two-words", "two-words-1"]);
    }

    #[test]
    fn a_link_leads_to_a_file_and_a_heading_that_are_there() {
        let tree = Tree::of_texts(&[
            (
                "README.md",
                "[a](docs/a.md#here) [f](docs/) [w](https://example.org/x.md)",
            ),
            (
                "docs/a.md",
                "## Here\n[up](../README.md) [self](#here) `[no](link)`\n",
            ),
        ]);
        assert_eq!(broken_links(&tree), []);
        let tree = Tree::of_texts(&[
            ("README.md", "\n[a](docs/a.md#there) [b](docs/b.md)"),
            ("docs/a.md", "## Here\n[out](../../x.md) [self](#there)\n"),
        ]);
        let found = broken_links(&tree);
        let at = |f: &Finding| (f.file.clone(), f.line);
        let places: Vec<_> = found.iter().map(at).collect();
        let readme = ("README.md".to_owned(), 2);
        let page = ("docs/a.md".to_owned(), 2);
        assert_eq!(places, [readme.clone(), readme, page.clone(), page]);
        assert!(found[0].what.contains("#there") && found[1].what.contains("docs/b.md"));
    }

    #[test]
    fn rows_are_those_of_one_section() {
        let text = "## A\n| `x` | 1 |\n### A part\n| `y` | 2 |\n## B\n| `z` | 3 |\n";
        let (line, rows) = rows(text, "a").expect("it is there");
        assert_eq!(line, 1);
        let first: Vec<_> = rows.iter().map(|(n, c)| (*n, c[0].as_str())).collect();
        assert_eq!(first, [(2, "`x`"), (4, "`y`")]);
        assert_eq!(code("`x`"), Some("x"));
        assert_eq!(code("`x` and `y`"), None);
    }
}
