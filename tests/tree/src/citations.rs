//! What comments, messages and documents cite: sections of the paper, pages and their sections, source files.

use crate::markdown::{code_spans, has_anchor};
use crate::{Finding, Tree};

/// The sections of "SPARE: Replicas on Hold" (NDSS 2011).
const PAPER: &[&str] = &[
    "1", "2", "2.1", "2.2", "2.3", "3", "3.1", "3.2", "3.3", "4", "4.1", "4.1.1", "4.1.2", "4.1.3",
    "4.1.4", "4.2", "5", "5.1", "5.2", "5.3", "6", "6.1", "6.2", "6.3", "6.4", "6.4.1", "6.4.2",
    "6.4.3", "6.5", "6.6", "7", "7.1", "7.2", "7.3", "8", "9",
];

/// A plan that is not in the repository; `docs/protocol.md` took its place. In parts, so that a search for it finds nothing.
const OLD_PLAN: &[&str] = &[concat!("DESIGN", " §"), concat!("DESIGN", ".md")];

/// Documents whose code spans name source files. Paths in them begin at the root, or in the core's sources.
const NAMES_SOURCES: &[&str] = &[
    "docs/architecture.md",
    "docs/protocol.md",
    "CONTRIBUTING.md",
];
const CORE: &str = "dom0-manager/core/src/";

/// All wrong citations.
#[must_use]
pub fn wrong(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, text) in tree.texts() {
        for (i, line) in text.lines().enumerate() {
            let problems = old_plan(line)
                .chain(unknown_sections(line))
                .chain(lost_pages(tree, line));
            found.extend(problems.map(|what| Finding {
                file: path.to_owned(),
                line: i + 1,
                what,
            }));
        }
    }
    found.extend(
        NAMES_SOURCES
            .iter()
            .flat_map(|path| lost_sources(tree, path)),
    );
    found
}

fn old_plan(line: &str) -> impl Iterator<Item = String> + '_ {
    let cited = OLD_PLAN.iter().filter(|old| line.contains(**old));
    cited.map(|old| {
        format!("`{old}` is not in the repository; cite docs/protocol.md#SECTION, or SPARE §N of the paper")
    })
}

/// Sections that the paper does not have. (Those of an RFC are no concern of this test.)
fn unknown_sections(line: &str) -> impl Iterator<Item = String> + '_ {
    line.match_indices('§').filter_map(|(at, sign)| {
        let rest = &line[at + sign.len()..];
        let section: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let section = section.trim_end_matches('.');
        let known = section.is_empty() || PAPER.contains(&section) || follows_rfc(&line[..at]);
        (!known).then(|| format!("the paper has no section {section}; cite the one that has the rule, or docs/protocol.md#SECTION"))
    })
}

fn follows_rfc(before: &str) -> bool {
    let mut words = before.split_whitespace().rev();
    let number = words
        .next()
        .is_some_and(|w| w.bytes().all(|b| b.is_ascii_digit()));
    number && words.next().is_some_and(|w| w.ends_with("RFC"))
}

/// Pages `docs/….md`, and sections of them, that are not there.
fn lost_pages<'a>(tree: &'a Tree, line: &'a str) -> impl Iterator<Item = String> + 'a {
    let is_path = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    line.match_indices("docs/").filter_map(move |(at, _)| {
        if line[..at].ends_with(is_path) {
            return None; // of another path, or of an address
        }
        let end = line[at..]
            .find(|c| !is_path(c))
            .map_or(line.len(), |n| at + n);
        let path = line[at..end].trim_end_matches('.');
        let page = &path[..path.rfind(".md")? + ".md".len()];
        let Some(text) = tree.text(page) else {
            return Some(format!(
                "{page} is not tracked; docs/README.md lists the pages"
            ));
        };
        let is_anchor = |c: &char| c.is_ascii_alphanumeric() || "-_".contains(*c);
        let rest = line[at + page.len()..].strip_prefix('#')?;
        let anchor: String = rest.chars().take_while(is_anchor).collect();
        let lost = !has_anchor(text, &anchor);
        lost.then(|| {
            format!("no heading of {page} has the anchor #{anchor}; cite one that is there")
        })
    })
}

/// Source files and folders that a document names and that are not there.
fn lost_sources(tree: &Tree, document: &str) -> Vec<Finding> {
    let Some(text) = tree.text(document) else {
        let what = "this document is missing; it names the source files of each rule".to_owned();
        let file = document.to_owned();
        return vec![Finding {
            file,
            line: 1,
            what,
        }];
    };
    let lost = code_spans(text).filter(|(_, span)| is_source(span) && !is_there(tree, span));
    lost.map(|(line, span)| Finding {
        file: document.to_owned(),
        line,
        what: format!("`{span}` is no tracked file or folder, neither from the root nor in {CORE}; name where it is now"),
    })
    .collect()
}

/// Whether a code span is the path of a source: `folder/`, `folder/file.rs`, `file.rs`, `folder/folder`.
fn is_source(span: &str) -> bool {
    let is_path = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let inside = !span.starts_with('/') && span.chars().all(is_path);
    inside && !span.contains("..") && (span.contains('/') || span.ends_with(".rs"))
}

fn is_there(tree: &Tree, span: &str) -> bool {
    let file = format!("/{span}");
    let named = || !span.contains('/') && tree.paths().any(|p| p.ends_with(&file));
    tree.has(span) || tree.has(&format!("{CORE}{span}")) || named()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with the documents that must be there, and one more file.
    fn tree(path: &str, text: &str) -> Tree {
        let protocol = "## Votes\nsee `voting/` and `tally.rs`\n";
        Tree::of_texts(&[
            ("docs/protocol.md", protocol),
            ("docs/architecture.md", ""),
            ("CONTRIBUTING.md", ""),
            ("dom0-manager/core/src/voting/tally.rs", ""),
            (path, text),
        ])
    }

    fn lines(text: &str) -> Vec<usize> {
        let found = wrong(&tree("agent/src/lib.rs", text));
        found.iter().map(|f| f.line).collect()
    }

    #[test]
    fn right_citations_pass() {
        let text = "//! SPARE §4.1.2, §3.2. `docs/protocol.md#votes`; RFC 9110 §7.6.1; docs/*.md\n\
                    //! https://example.org/docs/none.md, docs/protocol.md.\n";
        assert_eq!(lines(text), [] as [usize; 0]);
    }

    #[test]
    fn a_section_that_the_paper_lacks_is_found() {
        assert_eq!(
            lines("// SPARE §4.1.2\n// (SPARE §4.3).\n// SPARE §4.2, §4.6\n"),
            [2, 3]
        );
    }

    #[test]
    fn the_old_plan_is_found() {
        assert_eq!(lines(&format!("\n// {}4.1\n", OLD_PLAN[0])), [2]);
        assert_eq!(lines(&format!("// `{}`\n", OLD_PLAN[1])), [1]);
    }

    #[test]
    fn pages_and_sections_that_are_not_there_are_found() {
        assert_eq!(
            lines(
                "// docs/contributors/store.md\n// docs/protocol.md#vote\n// docs/protocol.md#\n"
            ),
            [1, 2, 3]
        );
    }

    #[test]
    fn a_source_that_moved_is_found() {
        let found = wrong(&tree(
            "CONTRIBUTING.md",
            "`voting/count.rs`\n`cargo test`\n`ballot.rs` `agent/src`\n",
        ));
        let at: Vec<_> = found.iter().map(|f| (f.file.as_str(), f.line)).collect();
        assert_eq!(
            at,
            [
                ("CONTRIBUTING.md", 1),
                ("CONTRIBUTING.md", 3),
                ("CONTRIBUTING.md", 3)
            ]
        );
    }

    #[test]
    fn a_document_that_must_be_there_is_missed() {
        let found = wrong(&Tree::of_texts(&[("docs/protocol.md", "")]));
        assert_eq!(found.len(), NAMES_SOURCES.len() - 1);
    }
}
