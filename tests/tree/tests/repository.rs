//! The repository's own citations, links and tables.

use spare_tree_tests::{circles, citations, markdown, protocol, Finding, Tree};
use std::path::Path;

fn repository() -> Tree {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    Tree::of_repository(&root).expect("the repository can be listed")
}

fn expect_none(found: Vec<Finding>) {
    let listed: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(
        found.is_empty(),
        "{} wrong:\n{}",
        found.len(),
        listed.join("\n")
    );
}

#[test]
fn everything_that_is_cited_is_there() {
    expect_none(citations::wrong(&repository()));
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    expect_none(markdown::broken_links(&repository()));
}

#[test]
fn the_tables_of_the_protocol_name_what_the_code_has() {
    expect_none(protocol::differences(&repository()));
}

#[test]
fn no_files_of_a_program_know_each_other_in_a_circle() {
    let tree = repository();
    for src in [
        "agent/src",
        "dom0-manager/cli/src",
        "dom0-manager/client/src",
        "dom0-manager/group-communication/src",
        "dom0-manager/manager/src",
        "dom0-manager/replay/src",
        "dom0-manager/store/src",
        "guest-shim/src",
    ] {
        assert!(tree.has(src), "{src} is not there; name where it is now");
        expect_none(circles::in_crate(&tree, src));
    }
}
