//! Why a page is refused, and the page that says so.

use tokio_postgres::error::SqlState;

use crate::html::Page;

/// A refusal: a status, a reason that programs understand and a message that people understand.
#[derive(Debug)]
pub struct Refusal {
    /// The status of the reply.
    pub status: u16,
    /// Whether the database refused because a request of class read tried to write.
    pub write_in_read: bool,
    reason: &'static str,
    detail: Option<(&'static str, String)>,
    message: String,
}

impl Refusal {
    /// A refusal for `reason`, which becomes the attribute `data-reason`.
    #[must_use]
    pub fn new(status: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            write_in_read: false,
            reason,
            detail: None,
            message: message.into(),
        }
    }

    /// Adds an attribute, by which a program learns what `reason` is about; one at most is kept.
    #[must_use]
    pub fn with(mut self, attribute: &'static str, value: impl ToString) -> Self {
        self.detail = Some((attribute, value.to_string()));
        self
    }

    /// A parameter that must be there is not.
    #[must_use]
    pub fn missing(parameter: &str) -> Self {
        let message = format!("The parameter \"{parameter}\" is missing.");
        Self::new(400, "missing-parameter", message).with("data-parameter", parameter)
    }

    /// A parameter has a value that it cannot have; `expected` says which it can.
    #[must_use]
    pub fn bad(parameter: &str, expected: &str) -> Self {
        let message = format!("The parameter \"{parameter}\" must be {expected}.");
        Self::new(400, "bad-parameter", message).with("data-parameter", parameter)
    }

    /// A parameter names something that does not exist.
    #[must_use]
    pub fn unknown(parameter: &str, id: i64) -> Self {
        let message = format!(
            "There is nothing with the number {id} that the parameter \"{parameter}\" could name."
        );
        Self::new(404, "unknown", message).with("data-parameter", parameter)
    }

    /// A header that the shim adds to every request is missing or malformed.
    #[must_use]
    pub fn header(name: &str, expected: &str) -> Self {
        let message = format!(
            "The request needs the header \"{name}\" with {expected}. The shim of SPARE adds it: \
             send requests through SPARE's gateway, or add the header yourself."
        );
        Self::new(500, "missing-header", message).with("data-parameter", name)
    }

    /// The refusal as an HTML page, for people and for programs.
    #[must_use]
    pub fn page(&self) -> String {
        let title = match self.status {
            400 => "Something is missing or wrong",
            403 => "Wrong nickname or password",
            404 => "Not found",
            409 => "Not possible",
            _ => "This did not work",
        };
        let mut page = Page::new("Error", title);
        page.attribute("data-status", self.status);
        page.attribute("data-reason", self.reason);
        if let Some((name, value)) = &self.detail {
            page.attribute(name, value);
        }
        page.body.raw("<p>").text(&self.message).raw("</p>\n");
        page.finish()
    }
}

/// A statement failed. The page tells only the SQLSTATE: messages may differ between replicas.
impl From<tokio_postgres::Error> for Refusal {
    fn from(error: tokio_postgres::Error) -> Self {
        if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
            let message = "This request writes, but was ordered as a read.";
            return Self {
                write_in_read: true,
                ..Self::new(503, "write-in-read", message)
            };
        }
        eprintln!(
            "auction: the database refused a statement: {}",
            explain(&error)
        );
        let state = error.code().map_or("none", SqlState::code);
        Self::new(
            500,
            "database",
            format!("The database failed (SQLSTATE {state})."),
        )
    }
}

/// The error with its causes, which `tokio_postgres::Error` leaves out of its own text.
#[must_use]
pub fn explain(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
