//! Files of one crate that know each other in a circle: of such files none can be read, or moved, without the others.
//!
//! A file knows another if it names something of that one's module, in a `use` or in a path. What tests need is left out.

use crate::{Finding, Tree};
use std::collections::BTreeSet;

/// Module paths from the root of a crate: `["guest", "merge"]`.
type Module = Vec<String>;

/// The circles of the crate whose sources are in the folder `src`.
#[must_use]
pub fn in_crate(tree: &Tree, src: &str) -> Vec<Finding> {
    let inside = format!("{src}/");
    let texts = tree.texts().filter_map(|(path, text)| {
        let name = path.strip_prefix(&inside)?.strip_suffix(".rs")?;
        let is_test = name.split('/').any(|part| part == "tests");
        (!is_test).then(|| (path, module_of(name), without_tests(text)))
    });
    let files: Vec<(&str, Module, String)> = texts.collect();
    // A program beside the library is another crate.
    let of = |m: &Module| {
        files
            .iter()
            .position(|(p, module, _)| module == m && !p.ends_with("/main.rs"))
    };
    let known = |(path, module, text): &(&str, Module, String)| -> BTreeSet<usize> {
        if path.ends_with("/main.rs") {
            return BTreeSet::new();
        }
        let targets = paths(text, module).into_iter().filter_map(|named| {
            let prefixes = (0..=named.len()).rev().map(|n| named[..n].to_vec());
            prefixes.map(|p| of(&p)).find(Option::is_some).flatten()
        });
        targets.collect()
    };
    let edges: Vec<BTreeSet<usize>> = files.iter().map(known).collect();
    let reach: Vec<BTreeSet<usize>> = (0..files.len())
        .map(|from| reachable(&edges, from))
        .collect();
    let mut found = Vec::new();
    let mut told = BTreeSet::new();
    for from in 0..files.len() {
        let circle: Vec<usize> = reach[from]
            .iter()
            .copied()
            .filter(|to| *to != from && reach[*to].contains(&from))
            .collect();
        if circle.is_empty() || !told.insert(from) {
            continue;
        }
        told.extend(circle.iter().copied());
        let names: Vec<&str> = circle.iter().map(|i| files[*i].0).collect();
        found.push(Finding {
            file: files[from].0.to_owned(),
            line: 1,
            what: format!(
                "knows itself by way of {}; move what they share below them",
                names.join(", ")
            ),
        });
    }
    found
}

fn reachable(edges: &[BTreeSet<usize>], from: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open: Vec<usize> = edges[from].iter().copied().collect();
    while let Some(next) = open.pop() {
        if next != from && found.insert(next) {
            open.extend(&edges[next]);
        }
    }
    found
}

/// `lib`, `guest/mod` and `guest/merge` are the modules ``, `guest` and `guest::merge`.
fn module_of(name: &str) -> Module {
    let parts: Vec<String> = name.split('/').map(str::to_owned).collect();
    match parts.last().map(String::as_str) {
        Some("lib" | "main") if parts.len() == 1 => Vec::new(),
        Some("mod") => parts[..parts.len() - 1].to_vec(),
        _ => parts,
    }
}

/// The source without comments, and without its tests, which stand at its end.
fn without_tests(text: &str) -> String {
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]");
    let code = lines.map(|line| line.split("//").next().unwrap_or_default());
    code.collect::<Vec<_>>().join("\n")
}

/// Everything within the crate that a source names, from the crate's root.
fn paths(text: &str, module: &Module) -> Vec<Module> {
    let children: BTreeSet<&str> = text.lines().filter_map(declared).collect();
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = next_path(rest) {
        rest = &rest[at..];
        let length = tree_length(rest);
        for path in expanded(&rest[..length]) {
            found.extend(from_root(&path, module, &children));
        }
        rest = &rest[length.max(1)..];
    }
    let uses = text
        .split(';')
        .filter_map(|part| Some(part.rsplit_once("use ")?.1));
    for path in uses.flat_map(expanded) {
        let first = path.first().map(String::as_str).unwrap_or_default();
        if children.contains(first) {
            found.extend(from_root(&path, module, &children));
        }
    }
    found
}

/// The module that a line declares, if it does.
fn declared(line: &str) -> Option<&str> {
    line.rsplit_once("mod ")?.1.strip_suffix(';')
}

/// Where the next path that begins with `crate`, `super` or `self` begins.
fn next_path(text: &str) -> Option<usize> {
    let begins = ["crate::", "super::", "self::"];
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let mut from = 0;
    loop {
        let at = begins.iter().filter_map(|b| text[from..].find(b)).min()? + from;
        if !text[..at].ends_with(is_word) {
            return Some(at);
        }
        from = at + 1;
    }
}

/// How long the path, or the tree of paths, at the beginning of `text` is.
fn tree_length(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' if depth > 0 || text[..at].ends_with("::") => depth += 1,
            '}' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ if depth > 0 || c.is_alphanumeric() || c == '_' || c == ':' => {}
            _ => return at,
        }
    }
    text.len()
}

/// The paths of a tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expanded(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((prefix, inner)) = tree.split_once('{') else {
        let name = tree.split(" as ").next().unwrap_or_default();
        return vec![segments(name)];
    };
    let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
    let mut parts = vec![String::new()];
    let mut depth = 0_usize;
    for c in inner.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    let prefix = segments(prefix);
    let below = parts.iter().flat_map(|part| expanded(part));
    below.map(|path| [prefix.clone(), path].concat()).collect()
}

fn segments(path: &str) -> Vec<String> {
    let parts = path.split("::").map(str::trim);
    parts.filter(|p| !p.is_empty()).map(str::to_owned).collect()
}

/// A path that is named in `module`, from the crate's root; none if it leads elsewhere.
fn from_root(path: &[String], module: &Module, children: &BTreeSet<&str>) -> Option<Module> {
    let mut base = module.clone();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => {
            base.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while let Some((_, after)) = rest.split_first().filter(|(first, _)| *first == "super") {
                base.pop();
                rest = after;
            }
        }
        child if children.contains(child) => {}
        _ => return None,
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let found = in_crate(&Tree::of_texts(files), "a/src");
        found.into_iter().map(|f| f.file).collect()
    }

    #[test]
    fn files_in_layers_are_no_circle() {
        let files = [
            ("a/src/lib.rs", "mod high;\nmod low;\npub use high::High;\n"),
            (
                "a/src/high.rs",
                "use crate::low::{Low, other::{self, More}};\n",
            ),
            (
                "a/src/low.rs",
                "// as crate::high has it\nstruct Low;\n#[cfg(test)]\nuse crate::high::High;\n",
            ),
        ];
        assert!(circles(&files).is_empty());
    }

    #[test]
    fn a_use_a_path_and_a_parent_close_a_circle() {
        let by_use = [
            ("a/src/lib.rs", "mod high;\nmod low;\n"),
            ("a/src/high.rs", "use crate::{\n    low::Low,\n};\n"),
            ("a/src/low.rs", "fn f() -> crate::high::High {}\n"),
        ];
        assert_eq!(circles(&by_use), ["a/src/high.rs"]);
        let by_parent = [
            ("a/src/lib.rs", "mod low;\n"),
            (
                "a/src/low/mod.rs",
                "mod part;\npub(crate) use part::Part;\nstruct Whole;\n",
            ),
            ("a/src/low/part.rs", "use super::Whole;\n"),
        ];
        assert_eq!(circles(&by_parent), ["a/src/low/mod.rs"]);
    }
}
