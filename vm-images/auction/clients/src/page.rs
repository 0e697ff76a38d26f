//! Reads what a program needs from one of the auction's pages: the attributes of `<main>` and of the
//! rows of its lists.
//!
//! This is no HTML parser. The pages name everything a client must know in `data-` attributes, in
//! which the service escapes `<`, `>`, `&` and quotes, so a scan for tags finds them.

/// What is wrong with a page, in words for the report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongPage(pub(crate) String);

impl From<String> for WrongPage {
    fn from(what: String) -> WrongPage {
        WrongPage(what)
    }
}

impl From<&str> for WrongPage {
    fn from(what: &str) -> WrongPage {
        WrongPage(what.to_owned())
    }
}

/// The `data-` attributes of one tag, in order, with names as in the page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Attributes<'a> {
    /// The value of an attribute.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }

    /// The value of an attribute that holds a number; says which is missing or is none.
    ///
    /// # Errors
    /// When there is no such attribute or it holds something else.
    pub(crate) fn number(&self, name: &str) -> Result<u64, WrongPage> {
        let value = self.get(name).ok_or_else(|| format!("{name} is missing"))?;
        value
            .parse()
            .map_err(|_| WrongPage(format!("{name}=\"{value}\" is not a number")))
    }

    /// The name of the first attribute: what a row is about.
    fn first(&self) -> Option<&'a str> {
        self.0.first().map(|(name, _)| *name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    /// Identifier of the section that it is in.
    pub(crate) section: Option<&'a str>,
    pub(crate) attributes: Attributes<'a>,
}

/// What a program needs of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page<'a> {
    /// Attributes of `<main>`.
    pub(crate) main: Attributes<'a>,
    /// Rows of lists, from the top.
    pub(crate) rows: Vec<Row<'a>>,
}

impl<'a> Page<'a> {
    /// # Errors
    /// When it has not exactly one `<main>`.
    pub(crate) fn parse(text: &'a str) -> Result<Page<'a>, WrongPage> {
        let mut main = None;
        let mut rows = Vec::new();
        let mut section = None;
        for (name, inside) in tags(text) {
            match name {
                "main" if main.is_some() => return Err("two <main> tags".into()),
                "main" => main = Some(data_attributes(inside)),
                "section" => section = attribute(inside, "id"),
                "/section" => section = None,
                "tr" | "li" => {
                    let attributes = data_attributes(inside);
                    if attributes.first().is_some() {
                        rows.push(Row {
                            section,
                            attributes,
                        });
                    }
                }
                _ => {}
            }
        }
        let main = main.ok_or("no <main> tag")?;
        Ok(Page { main, rows })
    }

    /// Rows that are about `about` (their first attribute).
    pub(crate) fn rows_about<'p>(
        &'p self,
        about: &'p str,
    ) -> impl Iterator<Item = &'p Row<'a>> + 'p {
        self.rows
            .iter()
            .filter(move |row| row.attributes.first() == Some(about))
    }

    /// The numbers that the rows about `about` are about.
    pub(crate) fn ids<'p>(&'p self, about: &'p str) -> impl Iterator<Item = u64> + 'p {
        self.rows_about(about)
            .filter_map(move |row| row.attributes.number(about).ok())
    }
}

/// All tags: name and what follows it up to the bracket.
fn tags(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split('<').skip(1).filter_map(|rest| {
        let inside = &rest[..rest.find('>')?];
        Some(
            inside
                .split_once(char::is_whitespace)
                .unwrap_or((inside, "")),
        )
    })
}

/// All attributes with values in double quotes.
fn attributes(inside: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = inside;
    std::iter::from_fn(move || {
        let (before, after) = rest.split_once("=\"")?;
        let (value, next) = after.split_once('"')?;
        rest = next;
        let name = before.rsplit(char::is_whitespace).next().unwrap_or(before);
        Some((name, value))
    })
}

fn attribute<'a>(inside: &'a str, name: &str) -> Option<&'a str> {
    attributes(inside).find(|(n, _)| *n == name).map(|(_, v)| v)
}

fn data_attributes(inside: &str) -> Attributes<'_> {
    Attributes(
        attributes(inside)
            .filter(|(n, _)| n.starts_with("data-"))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ABOUT_ME: &str = "<html><title>Me · Auction</title><main data-page=\"AboutMe\" data-user=\"5\">\n\
        <section id=\"bidding\" class=\"list\"><table><tr><th>Item</th></tr>\
        <tr data-item=\"17\" data-bids=\"3\" data-max-bid=\"1234\"><td>x &lt; y</td></tr></table></section>\
        <section id=\"comments\"><tr data-comment=\"9\" data-user=\"5\" data-rating=\"3\"></tr></section>\
        <li data-region=\"7\">Here</li></main></html>";

    #[test]
    fn the_rows_of_each_section_are_found() {
        let page = Page::parse(ABOUT_ME).expect("a page");
        assert_eq!(page.main.get("data-page"), Some("AboutMe"));
        assert_eq!(page.main.number("data-user"), Ok(5));
        assert_eq!(page.rows.len(), 3);
        assert_eq!(page.rows[0].section, Some("bidding"));
        assert_eq!(page.rows[0].attributes.number("data-max-bid"), Ok(1234));
        assert_eq!(page.ids("data-comment").collect::<Vec<_>>(), [9]);
        assert_eq!(page.rows[2].section, None);
    }

    #[test]
    fn a_page_without_main_or_with_two_is_refused() {
        assert!(Page::parse("<html></html>").is_err());
        assert!(Page::parse("<main data-page=\"a\"></main><main>").is_err());
    }

    #[test]
    fn a_missing_number_is_named() {
        let page = Page::parse("<main data-page=\"Home\">").expect("a page");
        assert_eq!(
            page.main.number("data-user"),
            Err("data-user is missing".into())
        );
        assert!(page
            .main
            .number("data-page")
            .expect_err("text")
            .0
            .contains("Home"));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[<>=\" a-z/ü-]{0,200}") {
            let _ = Page::parse(&text);
        }
    }
}
