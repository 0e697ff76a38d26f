//! The text of pages. Markup can only be a literal of this program, and everything else is escaped:
//! the types of [`Html`]'s methods leave no other way.

use std::fmt::{self, Write};

/// The style of every page; the pages load nothing else.
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;color:#222;background:#f4f5f7;margin:0}\
header{background:#1d3557;padding:.7em 1.2em}header a{color:#fff;margin-right:1.2em;text-decoration:none}\
header b{color:#ffd166;margin-right:1.5em}main{max-width:56em;margin:1.2em auto;padding:.6em 1.6em 1.6em;\
background:#fff;border-radius:8px;box-shadow:0 1px 4px #0002}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:1.6em}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3em .6em;border-bottom:1px solid #e5e7eb}\
th{color:#667}a{color:#1d5fa8}form{max-width:28em}label{display:block;margin:.6em 0}\
input,select,textarea{display:block;width:100%;box-sizing:border-box;font:inherit;padding:.3em}\
button{font:inherit;padding:.4em 1.2em;background:#1d3557;color:#fff;border:0;border-radius:4px}\
ul{columns:2}dt{color:#667}dd{margin:0 0 .4em}main[data-page=Error]{border-top:5px solid #c1121f}";

/// A piece of a page.
#[derive(Debug, Default)]
pub struct Html(String);

impl Html {
    /// Appends markup as it is; `'static`, so that nothing of a request gets in unescaped.
    pub fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Appends text, escaped for elements and for quoted attributes.
    pub fn text(&mut self, text: &str) -> &mut Self {
        let mut rest = text;
        while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
            self.0.push_str(&rest[..at]);
            self.0.push_str(match rest.as_bytes()[at] {
                b'&' => "&amp;",
                b'<' => "&lt;",
                b'>' => "&gt;",
                b'"' => "&quot;",
                _ => "&#39;",
            });
            rest = &rest[at + 1..];
        }
        self.0.push_str(rest);
        self
    }

    /// Appends a value in its displayed form (a number, an amount, a time), escaped.
    pub fn value(&mut self, value: impl fmt::Display) -> &mut Self {
        // Writing to `Escaped` never fails, and a `Display` that fails has written what it could.
        let _ = write!(Escaped(self), "{value}");
        self
    }

    /// Appends a piece that was made this way, whose texts are escaped already.
    pub fn html(&mut self, other: &Self) -> &mut Self {
        self.0.push_str(&other.0);
        self
    }
}

/// Escapes what is formatted into it.
struct Escaped<'a>(&'a mut Html);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.text(text);
        Ok(())
    }
}

/// A page in the making: its title, the attributes of its `<main>` by which a client checks it, and
/// its content.
#[derive(Debug)]
pub struct Page {
    title: Html,
    attributes: Html,
    /// The content of `<main>`.
    pub body: Html,
}

impl Page {
    /// An empty page of the interaction (or kind) `name`, with a title that becomes its heading.
    #[must_use]
    pub fn new(name: &str, title: &str) -> Self {
        let mut page = Self {
            title: Html::default(),
            attributes: Html::default(),
            body: Html(String::with_capacity(4096)),
        };
        page.title.text(title);
        page.attribute("data-page", name);
        page
    }

    /// Adds an attribute to `<main>`.
    pub fn attribute(&mut self, name: &'static str, value: impl fmt::Display) -> &mut Self {
        self.attributes.raw(" ").raw(name).raw("=\"");
        self.attributes.value(value).raw("\"");
        self
    }

    /// The page from `<!DOCTYPE html>` to `</html>`.
    #[must_use]
    pub fn finish(self) -> String {
        let mut page = Html(String::with_capacity(self.body.0.len() + 2048));
        page.raw("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>")
            .html(&self.title)
            .raw(" · Auction</title><style>")
            .raw(STYLE)
            .raw("</style></head>\n<body><header><b>Auction</b><a href=\"/\">Home</a><a href=\"/register\">Register</a>")
            .raw("<a href=\"/browse\">Browse</a><a href=\"/sell\">Sell</a><a href=\"/about-me/login\">About me</a></header>\n<main")
            .html(&self.attributes)
            .raw(">\n<h1>")
            .html(&self.title)
            .raw("</h1>\n")
            .html(&self.body)
            .raw("</main></body></html>\n");
        page.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        let mut html = Html::default();
        html.raw("<p>").text("<a href='x'>\"&\"</a> ü").raw("</p>");
        assert_eq!(
            html.0,
            "<p>&lt;a href=&#39;x&#39;&gt;&quot;&amp;&quot;&lt;/a&gt; ü</p>"
        );
    }

    #[test]
    fn title_and_attributes_are_escaped_too() {
        let mut page = Page::new("P\"", "<t>");
        page.attribute("data-x", "\"><script>");
        let text = page.finish();
        assert!(text.contains("<title>&lt;t&gt; · Auction</title>"));
        assert!(text.contains("data-page=\"P&quot;\" data-x=\"&quot;&gt;&lt;script&gt;\">"));
    }
}
