//! Decoders of the demo service: queries, forms and headers.

use crate::meter::{within, Limit, KIB};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use spare_auction::html::Html;
use spare_auction::money::Money;
use spare_auction::request::{Agreed, Parameters, HEADER_CLASS, HEADER_SEED, HEADER_TIME};
use spare_auction_interactions::Interaction;

/// A name of one byte takes 56 with its empty value, three times that while the list moves.
pub const FORM: Limit = Limit::new(128, 4 * KIB);
/// Of three headers.
pub const HEADERS: Limit = Limit::new(16, 4 * KIB);

/// A query or a form, and every kind of value in it; then the same bytes as a path.
pub fn auction_form(bytes: &[u8]) {
    let form = within(FORM, bytes.len(), || Parameters::decode(bytes));
    for name in ["a", "id", "bid", "nickname", ""] {
        if let Ok(Some(text)) = form.optional_text(name, 20) {
            assert!(!text.is_empty() && text.chars().count() <= 20 && !text.contains('\0'));
        }
        if let Ok(Some(number)) = form.optional_number(name, -5, 5) {
            assert!((-5..=5).contains(&number));
        }
        if let Ok(Some(money)) = form.optional_money(name) {
            assert_eq!(Money::parse(&money.to_string()), Some(money));
        }
        if let Err(refusal) = form.id(name) {
            assert!(!refusal.page().is_empty());
        }
    }
    let text = String::from_utf8_lossy(bytes);
    let (method, path) = text.split_once(' ').unwrap_or(("GET", &text));
    if let Ok(interaction) = Interaction::find(method, path) {
        assert_eq!(
            (interaction.method().as_str(), interaction.path()),
            (method, path)
        );
    }
    let mut html = Html::default();
    html.text(&text);
    assert!(
        !format!("{html:?}").contains(['<', '>']),
        "text became markup"
    );
}

/// The three headers with the agreed values, one in a line.
pub fn agreed_headers(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    let names = [HEADER_TIME, HEADER_SEED, HEADER_CLASS];
    for (name, value) in names.into_iter().zip(bytes.split(|b| *b == b'\n')) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let agreed = within(HEADERS, bytes.len(), || Agreed::from_headers(&headers));
    if let Ok(agreed) = agreed {
        assert_eq!(agreed.now.to_string().len(), "2024-05-06 07:08:09".len());
    }
}
