//! As much of Rust's syntax as the tables of `docs/protocol.md` are held against.

/// A variant of an enum and the names of its fields, if they have names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The name as the source has it, without the enum's.
    pub name: String,
    /// In the order of the source.
    pub fields: Vec<String>,
}

/// The variants of `pub enum NAME` in a formatted source; none if it is not there.
#[must_use]
pub fn variants(source: &str, name: &str) -> Option<Vec<Variant>> {
    let head = format!("pub enum {name} {{");
    let mut lines = source.lines().skip_while(|line| *line != head);
    lines.next()?;
    let mut found: Vec<Variant> = Vec::new();
    for line in lines {
        let (indent, line) = (line.len() - line.trim_start().len(), line.trim_start());
        if indent == 0 && line == "}" {
            return Some(found);
        }
        let word: String = line
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        let rest = &line[word.len()..];
        match indent {
            4 if word.starts_with(char::is_uppercase) => {
                let fields = fields_of_one_line(rest);
                found.push(Variant { name: word, fields });
            }
            8 if rest.starts_with(':') => {
                if let Some(variant) = found.last_mut() {
                    variant.fields.push(word);
                }
            }
            _ => {}
        }
    }
    None
}

/// The names in ` { name: Type, name: Type },`; none if that is not what follows a variant's name.
fn fields_of_one_line(rest: &str) -> Vec<String> {
    let inner = || rest.strip_prefix(" { ")?.strip_suffix(" },");
    let parts = inner().unwrap_or_default().split(',');
    let names = parts
        .filter_map(|part| part.split_once(':'))
        .map(|(name, _)| name.trim());
    // What follows a comma within a type is no field.
    let is_name = |n: &&str| n.chars().all(|c| c.is_alphanumeric() || c == '_');
    names.filter(is_name).map(str::to_owned).collect()
}

/// The transitions that `tests/simulation/src/coverage.rs` knows: the strings `"MACHINE From -> To"` between states whose
/// names are written as in the code, and `gone`.
#[must_use]
pub fn transitions(source: &str) -> Vec<(&str, &str, &str)> {
    let strings = source
        .lines()
        .filter_map(|l| l.trim().strip_prefix('"')?.strip_suffix("\","));
    let parts = strings.filter_map(|s| {
        let (before, to) = s.split_once(" -> ")?;
        let (machine, from) = before.split_once(' ')?;
        Some((machine, from, to))
    });
    let is_state = |s: &str| s == "gone" || s.starts_with(char::is_uppercase);
    parts
        .filter(|(_, from, to)| is_state(from) && is_state(to))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_found_with_their_fields() {
        let source = "pub enum Other {\n    X,\n}\n/// Doc.\npub enum Message {\n    /// Requests: all.\n    Requests(Vec<Request>),\n    \
                      /// Help.\n    HelpMe {\n        /// The request: which.\n        position: Position,\n        #[serde(with = \"x\")]\n        \
                      n: u16,\n    },\n    Slept { replica: ReplicaId, of: Map<A, B> },\n}\n";
        let found = variants(source, "Message").expect("it is there");
        let names: Vec<_> = found.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["Requests", "HelpMe", "Slept"]);
        assert_eq!(found[1].fields, ["position", "n"]);
        assert_eq!(found[2].fields, ["replica", "of"]);
        assert_eq!(variants(source, "Missing"), None);
    }

    #[test]
    fn transitions_are_those_between_named_states() {
        let source = "    \"manager Apart -> Syncing\",\n    // A replica.\n    \"replica Active -> gone\",\n    \
                      \"request helped -> decided\",\n    \"replica kept -> brought up to date\",\n";
        assert_eq!(
            transitions(source),
            [
                ("manager", "Apart", "Syncing"),
                ("replica", "Active", "gone")
            ]
        );
    }
}
