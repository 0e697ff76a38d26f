//! Why a run cannot begin or go on.

use spare_client::http::{HttpError, UrlError};
use spare_client::pages::PagesError;

/// The run could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A URL is not one of plain HTTP.
    #[error("--url or --also: {0}")]
    Url(#[from] UrlError),
    /// The gateway does not answer.
    #[error("the gateway {url} does not answer: {source}\nIs the service up? See `spare status`.")]
    Unreachable {
        /// The first gateway.
        url: String,
        /// Why the home page could not be fetched.
        source: HttpError,
    },
    /// Something answers, but not the auction.
    #[error(
        "{url} does not answer like the auction: {what}\nIs the service up? See `spare status`."
    )]
    NotTheAuction {
        /// The first gateway.
        url: String,
        /// What is wrong with the home page.
        what: String,
    },
    /// The record of pages cannot be written.
    #[error("--record: {0}")]
    Record(#[from] PagesError),
}
