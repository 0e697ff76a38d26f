//! Where two replies differ, for a person.

/// Characters of a line that are shown.
const SHOWN_MAX: usize = 160;

/// The first place where two texts differ: the number of the line, and both lines. None if they do not.
pub(crate) fn first_difference(one: &[u8], other: &[u8]) -> Option<String> {
    if one == other {
        return None;
    }
    let (mut lines, mut others) = (one.split(is_end), other.split(is_end));
    for number in 1_usize.. {
        match (lines.next(), others.next()) {
            (None, None) => break,
            (line, other) if line != other => {
                let place = format!("line {number}: {} | {}", shown(line), shown(other));
                return Some(place);
            }
            _ => {}
        }
    }
    None
}

fn is_end(byte: &u8) -> bool {
    *byte == b'\n'
}

fn shown(line: Option<&[u8]>) -> String {
    let Some(line) = line else {
        return "(ends before)".to_owned();
    };
    let text = String::from_utf8_lossy(line);
    let cut: String = text.chars().take(SHOWN_MAX).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{:?}{more}", cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_differs_is_shown_of_both() {
        let one = b"200\n\n<p>drawn: 17</p>\n";
        let other = b"200\n\n<p>drawn: 4</p>\n";
        let found = first_difference(one, other);
        let expected = r#"line 3: "<p>drawn: 17</p>" | "<p>drawn: 4</p>""#;
        assert_eq!(found.as_deref(), Some(expected));
        assert_eq!(first_difference(one, one), None);
    }

    #[test]
    fn an_end_and_bytes_that_are_no_text_are_shown_too() {
        let ends = first_difference(b"a", b"a\nb");
        assert_eq!(ends.as_deref(), Some("line 2: (ends before) | \"b\""));
        let long = vec![0xff; 1000];
        let found = first_difference(&long, b"x").expect("they differ");
        assert!(
            found.contains('…') && found.chars().count() < 1000,
            "{found}"
        );
    }
}
