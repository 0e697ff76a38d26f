//! What pages are put together from: forms, links and tables.

use tokio_postgres::Row;

use crate::database::Session;
use crate::html::{Html, Page};
use crate::money::Money;
use crate::queries::Query;
use crate::refusal::Refusal;
use crate::request::Request;
use crate::time::Moment;
use spare_auction_interactions::Interaction;

/// An empty page for a request's interaction.
pub(super) fn page(request: &Request, title: &str) -> Page {
    Page::new(request.interaction.name(), title)
}

/// The name of a category or region.
pub(super) async fn name_of(
    session: &Session<'_>,
    query: Query,
    parameter: &str,
    id: i64,
) -> Result<String, Refusal> {
    match session.row(query, &[&id]).await? {
        Some(row) => Ok(row.try_get(0)?),
        None => Err(Refusal::unknown(parameter, id)),
    }
}

/// Begins a form that goes to an interaction.
pub(super) fn begin_form(body: &mut Html, target: Interaction) {
    body.raw(if target.is_write() {
        "<form method=\"post\" action=\""
    } else {
        "<form method=\"get\" action=\""
    });
    body.text(target.path()).raw("\">\n");
}

/// Ends a form with its button.
pub(super) fn end_form(body: &mut Html, button: &'static str) {
    body.raw("<p><button>")
        .raw(button)
        .raw("</button></p></form>\n");
}

/// A field that the form passes on unseen.
pub(super) fn hidden(body: &mut Html, name: &'static str, value: impl std::fmt::Display) {
    body.raw("<input type=\"hidden\" name=\"").raw(name);
    body.raw("\" value=\"").value(value).raw("\">\n");
}

/// A field to fill in; `kind` is the type of the input and may carry more attributes.
pub(super) fn field(body: &mut Html, label: &'static str, name: &'static str, kind: &'static str) {
    body.raw("<label>").raw(label).raw(" <input name=\"");
    body.raw(name).raw("\" type=").raw(kind).raw("></label>\n");
}

/// A link to an item.
pub(super) fn item_link(body: &mut Html, id: i64, name: &str) {
    body.raw("<a href=\"/item?id=").value(id).raw("\">");
    body.text(name).raw("</a>");
}

/// A link to a user.
pub(super) fn user_link(body: &mut Html, id: i64, nickname: &str) {
    body.raw("<a href=\"/user?id=").value(id).raw("\">");
    body.text(nickname).raw("</a>");
}

/// A table of items. The rows are id, name, number of bids, highest bid, initial price, end.
pub(super) fn item_table(body: &mut Html, rows: &[Row]) -> Result<(), Refusal> {
    body.raw("<table><tr><th>Item</th><th>Price</th><th>Bids</th><th>Ends</th></tr>\n");
    for row in rows {
        let (id, name): (i64, &str) = (row.try_get(0)?, row.try_get(1)?);
        let (bids, max_bid): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
        let (initial_price, end): (i64, Moment) = (row.try_get(4)?, row.try_get(5)?);
        body.raw("<tr data-item=\"").value(id);
        body.raw("\" data-bids=\"").value(bids);
        body.raw("\" data-max-bid=\"").value(max_bid).raw("\"><td>");
        item_link(body, id, name);
        let price = if bids == 0 { initial_price } else { max_bid };
        body.raw("</td><td>").value(Money(price));
        body.raw("</td><td>").value(bids);
        body.raw("</td><td>").value(end).raw("</td></tr>\n");
    }
    body.raw("</table>\n");
    Ok(())
}

/// A table of comments. The rows are those of [`Query::Comments`].
pub(super) fn comment_table(body: &mut Html, rows: &[Row]) -> Result<(), Refusal> {
    body.raw("<table><tr><th>From</th><th>About item</th><th>Rating</th><th>Comment</th><th>Date</th></tr>\n");
    for row in rows {
        let (id, from, nickname): (i64, i64, &str) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (item, rating): (i64, i64) = (row.try_get(3)?, row.try_get(4)?);
        let (date, comment): (Moment, &str) = (row.try_get(5)?, row.try_get(6)?);
        body.raw("<tr data-comment=\"").value(id);
        body.raw("\" data-user=\"").value(from);
        body.raw("\" data-rating=\"").value(rating).raw("\"><td>");
        user_link(body, from, nickname);
        body.raw("</td><td><a href=\"/item?id=").value(item);
        body.raw("\">").value(item);
        body.raw("</a></td><td>").value(rating);
        body.raw("</td><td>").text(comment);
        body.raw("</td><td>").value(date).raw("</td></tr>\n");
    }
    body.raw("</table>\n");
    Ok(())
}
