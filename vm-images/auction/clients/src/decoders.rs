//! What an emulated client makes of a page, as a function of its text. For `tests/fuzz`, and for nobody
//! else.

use crate::knowledge::{Knowledge, OwnBid, OwnBids};
use crate::page::Page;
use crate::request::PageRequest;
use crate::verdict::{judge, Verdict};
use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderValue};
use spare_auction_interactions::Interaction;
use spare_client::http::Reply;
use std::time::Instant;

/// How many rows a page has; `None` if it is none of the auction's. Every check that a client makes of
/// any page is made of this one.
#[must_use]
pub fn auction_page(status: u16, body: Bytes) -> Option<usize> {
    let mut headers = HeaderMap::new();
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    headers.insert("content-type", html);
    let reply = Reply {
        status,
        headers,
        body,
    };
    let mut knowledge = Knowledge::default();
    let mut own = OwnBids::default();
    own.add(OwnBid {
        bid: 1,
        item: 1,
        user: 1,
        amount: 100,
    });
    for interaction in Interaction::ALL {
        // What is wrong with the page is of no interest here.
        if let Ok(Verdict::Right(page)) = judge(&PageRequest::new(interaction), &reply) {
            let _ = knowledge.check(&page, Instant::now());
            let _ = own.check(interaction, &page);
        }
    }
    let page = Page::parse(std::str::from_utf8(&reply.body).ok()?).ok()?;
    Some(page.rows.len())
}
