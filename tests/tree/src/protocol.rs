//! The tables of `docs/protocol.md` against the code: messages, transitions, invariants.

use crate::code::{transitions, variants};
use crate::markdown::{code, rows, Row};
use crate::{Finding, Tree};
use std::collections::BTreeSet;

const PAGE: &str = "docs/protocol.md";
const MESSAGES: &str = "dom0-manager/protocol/src/messages.rs";
const COVERAGE: &str = "tests/simulation/src/coverage.rs";
const INVARIANTS: &str = "tests/simulation/src/invariants/";

/// Everything that the tables and the code do not have in common.
#[must_use]
pub fn differences(tree: &Tree) -> Vec<Finding> {
    let mut found = messages(tree, "messages", "OrderedMessage");
    found.extend(messages(tree, "peer-messages", "PeerMessage"));
    found.extend(edges(tree, "life-of-a-replica", |machine| {
        machine == "replica"
    }));
    found.extend(edges(tree, "life-of-a-member", |machine| {
        machine != "replica"
    }));
    found.extend(invariants(tree));
    found
}

fn finding(file: &str, line: usize, what: String) -> Finding {
    let file = file.to_owned();
    Finding { file, line, what }
}

/// The rows of a section whose first cell is a code span, and the line of the section; or what is missing.
fn table(tree: &Tree, section: &str) -> Result<(usize, Vec<Row>), Finding> {
    let missing = || {
        finding(
            PAGE,
            1,
            format!("no section has the anchor #{section}; put it back"),
        )
    };
    let text = tree.text(PAGE).ok_or_else(missing)?;
    let (line, mut rows) = rows(text, section).ok_or_else(missing)?;
    rows.retain(|(_, cells)| cells.first().is_some_and(|c| code(c).is_some()));
    Ok((line, rows))
}

/// Every variant of `name` has a row in the table of `section`, with its fields, and every row a variant.
fn messages(tree: &Tree, section: &str, name: &str) -> Vec<Finding> {
    let (heading, rows) = match table(tree, section) {
        Ok(table) => table,
        Err(missing) => return vec![missing],
    };
    let Some(variants) = tree
        .text(MESSAGES)
        .and_then(|source| variants(source, name))
    else {
        let what =
            format!("`pub enum {name}` is not here; tell tests/tree/src/protocol.rs where it is");
        return vec![finding(MESSAGES, 1, what)];
    };
    let mut found = Vec::new();
    for variant in &variants {
        let of_variant = |(_, cells): &&Row| code(&cells[0]) == Some(&variant.name);
        let Some((line, cells)) = rows.iter().find(of_variant) else {
            let what = format!("{name}::{} has no row in this table; add one", variant.name);
            found.push(finding(PAGE, heading, what));
            continue;
        };
        let told = cells.get(1).map_or("", String::as_str);
        let untold = variant
            .fields
            .iter()
            .filter(|f| !told.contains(&format!("`{f}`")));
        found.extend(untold.map(|field| {
            let what = format!(
                "{name}::{} has a field `{field}`, which its row does not name; add it",
                variant.name
            );
            finding(PAGE, *line, what)
        }));
    }
    for (line, cells) in &rows {
        let named = code(&cells[0]).unwrap_or_default();
        if !variants.iter().any(|v| v.name == named) {
            let what = format!(
                "`{named}` is no variant of {name} in {MESSAGES}; remove or rename the row"
            );
            found.push(finding(PAGE, *line, what));
        }
    }
    found
}

/// The simulator's transitions of a state machine and the rows from / to of its section are the same.
fn edges(tree: &Tree, section: &str, is_of: impl Fn(&str) -> bool) -> Vec<Finding> {
    let (heading, rows) = match table(tree, section) {
        Ok(table) => table,
        Err(missing) => return vec![missing],
    };
    let known = transitions(tree.text(COVERAGE).unwrap_or_default());
    let known: BTreeSet<(&str, &str)> = known
        .into_iter()
        .filter(|(machine, _, _)| is_of(machine))
        .map(|(_, from, to)| (from, to))
        .collect();
    if known.is_empty() {
        let what = format!("no transitions for #{section} of {PAGE} are listed here; tell tests/tree/src/protocol.rs where they are");
        return vec![finding(COVERAGE, 1, what)];
    }
    let edge = |cells: &'_ [String]| {
        Some((
            code(cells.first()?)?.to_owned(),
            code(cells.get(1)?)?.to_owned(),
        ))
    };
    let told: BTreeSet<(String, String)> =
        rows.iter().filter_map(|(_, cells)| edge(cells)).collect();
    let is_told =
        |(from, to): &(&str, &str)| told.contains(&((*from).to_owned(), (*to).to_owned()));
    let untold = known.iter().filter(|e| !is_told(e)).map(|(from, to)| {
        let what = format!("the transition {from} -> {to} of {COVERAGE} has no row in this section; add it, to the diagram too");
        finding(PAGE, heading, what)
    });
    let unknown = rows.iter().filter_map(|(line, cells)| {
        let (from, to) = edge(cells)?;
        let what = format!("{COVERAGE} knows no transition {from} -> {to}; remove the row, or have the simulator take it");
        (!known.contains(&(from.as_str(), to.as_str()))).then(|| finding(PAGE, *line, what))
    });
    untold.chain(unknown).collect()
}

/// Every invariant of the simulator has its row, and every row its file.
fn invariants(tree: &Tree) -> Vec<Finding> {
    let (heading, rows) = match table(tree, "invariants") {
        Ok(table) => table,
        Err(missing) => return vec![missing],
    };
    let files = tree.paths().filter_map(|p| p.strip_prefix(INVARIANTS));
    let files: BTreeSet<&str> = files.filter(|f| *f != "mod.rs").collect();
    let told: BTreeSet<&str> = rows.iter().filter_map(|(_, c)| code(&c[0])).collect();
    let untold = files.difference(&told).map(|file| {
        finding(
            PAGE,
            heading,
            format!("{INVARIANTS}{file} has no row in this table; add one"),
        )
    });
    let gone = rows.iter().filter_map(|(line, cells)| {
        let file = code(&cells[0])?;
        let what = format!("{INVARIANTS}{file} is not there; remove or rename the row");
        (!files.contains(file)).then(|| finding(PAGE, *line, what))
    });
    untold.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "pub enum OrderedMessage {\n    Votes(Votes),\n    HelpMe {\n        position: Position,\n    },\n}\n\
                          pub enum PeerMessage {\n    Log {\n        records: Vec<Record>,\n    },\n}\n";
    const TRANSITIONS: &str =
        "    \"manager Apart -> Syncing\",\n    \"replica Active -> gone\",\n";
    const TABLES: &str = "## Messages\n| `Votes` | |\n| `HelpMe` | `position` |\n## Peer messages\n| `Log` | `records` |\n\
                          ## Life of a replica\n| `Active` | `gone` |\n## Life of a member\n| `Apart` | `Syncing` |\n\
                          ## Invariants\n| `one_total_order.rs` | |\n";

    fn differences_of(page: &str) -> Vec<(usize, String)> {
        let tree = Tree::of_texts(&[
            (PAGE, page),
            (MESSAGES, SOURCE),
            (COVERAGE, TRANSITIONS),
            ("tests/simulation/src/invariants/mod.rs", ""),
            ("tests/simulation/src/invariants/one_total_order.rs", ""),
        ]);
        let found = differences(&tree);
        found.into_iter().map(|f| (f.line, f.what)).collect()
    }

    /// The only difference of the page in which `old` was replaced: its line.
    fn only_difference(old: &str, new: &str, names: &str) -> usize {
        assert!(TABLES.contains(old));
        let found = differences_of(&TABLES.replace(old, new));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].1.contains(names), "{found:?}");
        found[0].0
    }

    #[test]
    fn tables_that_name_what_the_code_has_pass() {
        assert_eq!(differences_of(TABLES), []);
    }

    #[test]
    fn a_message_without_a_row_and_a_row_without_a_message_are_found() {
        assert_eq!(
            only_difference("| `Votes` | |\n", "", "OrderedMessage::Votes"),
            1
        );
        assert_eq!(
            only_difference(
                "| `Votes` | |\n",
                "| `Votes` | |\n| `Vetoes` | |\n",
                "Vetoes"
            ),
            3
        );
        assert_eq!(
            only_difference("| `Log` | `records` |\n", "", "PeerMessage::Log"),
            4
        );
    }

    #[test]
    fn a_field_that_a_row_does_not_name_is_found() {
        assert_eq!(only_difference("`position`", "position", "`position`"), 3);
    }

    #[test]
    fn transitions_that_differ_are_found() {
        assert_eq!(
            only_difference("| `Active` | `gone` |\n", "", "Active -> gone"),
            6
        );
        assert_eq!(
            only_difference(
                "| `Apart` | `Syncing` |\n",
                "| `Apart` | `Syncing` |\n| `Apart` | `Serving` |\n",
                "Apart -> Serving"
            ),
            10
        );
    }

    #[test]
    fn invariants_that_differ_are_found() {
        assert_eq!(
            only_difference("| `one_total_order.rs` | |\n", "", "one_total_order.rs"),
            10
        );
        let two = "| `one_total_order.rs` | |\n| `two.rs` | |\n";
        assert_eq!(
            only_difference("| `one_total_order.rs` | |\n", two, "two.rs"),
            12
        );
    }

    #[test]
    fn a_section_that_is_gone_is_missed() {
        assert_eq!(
            only_difference("## Invariants", "## Rules", "#invariants"),
            1
        );
    }
}
