//! The pages, one module for each part of the auction, and what they have in common.
//!
//! Queries that do not need each other's results are awaited together (`join`), so that they travel
//! to the database together. Their errors are then looked at in a fixed order: `try_join` would
//! answer with whichever came first, which is not the same on every replica.

use tokio_postgres::Row;

use crate::database::Session;
use crate::html::{Html, Page};
use crate::money::Money;
use crate::password;
use crate::queries::Query;
use crate::refusal::Refusal;
use crate::request::{Parameters, Request, LINE_CHARS_MAX};
use crate::time::Moment;
use spare_auction_interactions::Interaction;

mod about_me;
mod bid;
mod browse;
mod buy_now;
mod comment;
mod item;
mod register;
mod sell;
mod user;

/// The page that a request asks for.
///
/// # Errors
/// A [`Refusal`], which is a page too.
pub async fn answer(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    match request.interaction {
        Interaction::Home => browse::home(request, session).await,
        Interaction::Register => register::form(request, session).await,
        Interaction::RegisterUser => register::store(request, session).await,
        Interaction::Browse => Ok(browse::browse(request)),
        Interaction::BrowseCategories => browse::categories(request, session).await,
        Interaction::SearchItemsInCategory => browse::items_in_category(request, session).await,
        Interaction::BrowseRegions => browse::regions(request, session).await,
        Interaction::BrowseCategoriesInRegion => browse::region(request, session).await,
        Interaction::SearchItemsInRegion => browse::items_in_region(request, session).await,
        Interaction::ViewItem => item::view(request, session).await,
        Interaction::ViewUserInfo => user::view(request, session).await,
        Interaction::ViewBidHistory => item::bids(request, session).await,
        Interaction::BuyNowAuth => buy_now::login(request, session).await,
        Interaction::BuyNow => buy_now::form(request, session).await,
        Interaction::StoreBuyNow => buy_now::store(request, session).await,
        Interaction::PutBidAuth => bid::login(request, session).await,
        Interaction::PutBid => bid::form(request, session).await,
        Interaction::StoreBid => bid::store(request, session).await,
        Interaction::PutCommentAuth => comment::login(request, session).await,
        Interaction::PutComment => comment::form(request, session).await,
        Interaction::StoreComment => comment::store(request, session).await,
        Interaction::Sell => Ok(sell::login(request)),
        Interaction::SelectCategoryToSellItem => sell::categories(request, session).await,
        Interaction::SellItemForm => sell::form(request, session).await,
        Interaction::RegisterItem => sell::store(request, session).await,
        Interaction::AboutMeAuth => Ok(about_me::login(request)),
        Interaction::AboutMe => about_me::view(request, session).await,
    }
}

/// An empty page for a request's interaction.
fn page(request: &Request, title: &str) -> Page {
    Page::new(request.interaction.name(), title)
}

/// Who is logged in.
struct Member {
    id: i64,
    rating: i64,
    balance: i64,
    nickname: String,
    password: String,
}

/// Checks the nickname and the password of a request.
async fn log_in(parameters: &Parameters, session: &Session<'_>) -> Result<Member, Refusal> {
    let nickname = parameters.text("nickname", LINE_CHARS_MAX)?;
    let password = parameters.text("password", LINE_CHARS_MAX)?;
    if let Some(row) = session.row(Query::Login, &[&nickname]).await? {
        if password::matches(row.try_get(2)?, password) {
            return Ok(Member {
                id: row.try_get(0)?,
                nickname: row.try_get(1)?,
                rating: row.try_get(3)?,
                balance: row.try_get(4)?,
                password: password.to_owned(),
            });
        }
    }
    let message = "There is no user with this nickname and this password. Go back and try again, or register.";
    Err(Refusal::new(403, "wrong-login", message))
}

/// The name of a category or region.
async fn name_of(
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
fn begin_form(body: &mut Html, target: Interaction) {
    body.raw(if target.is_write() {
        "<form method=\"post\" action=\""
    } else {
        "<form method=\"get\" action=\""
    });
    body.text(target.path()).raw("\">\n");
}

/// Ends a form with its button.
fn end_form(body: &mut Html, button: &'static str) {
    body.raw("<p><button>")
        .raw(button)
        .raw("</button></p></form>\n");
}

/// A field that the form passes on unseen.
fn hidden(body: &mut Html, name: &'static str, value: impl std::fmt::Display) {
    body.raw("<input type=\"hidden\" name=\"").raw(name);
    body.raw("\" value=\"").value(value).raw("\">\n");
}

/// The nickname and the password, passed on unseen from form to form as in RUBiS.
fn hidden_login(body: &mut Html, member: &Member) {
    hidden(body, "nickname", &member.nickname);
    hidden(body, "password", &member.password);
}

/// A field to fill in; `kind` is the type of the input and may carry more attributes.
fn field(body: &mut Html, label: &'static str, name: &'static str, kind: &'static str) {
    body.raw("<label>").raw(label).raw(" <input name=\"");
    body.raw(name).raw("\" type=").raw(kind).raw("></label>\n");
}

/// Asks for nickname and password, then goes on to an interaction.
fn login_form(body: &mut Html, target: Interaction, passed_on: &[(&'static str, i64)]) {
    begin_form(body, target);
    for (name, value) in passed_on {
        hidden(body, name, value);
    }
    field(body, "Nickname", "nickname", "\"text\" required");
    field(body, "Password", "password", "\"password\" required");
    end_form(body, "Log in");
}

/// A link to an item.
fn item_link(body: &mut Html, id: i64, name: &str) {
    body.raw("<a href=\"/item?id=").value(id).raw("\">");
    body.text(name).raw("</a>");
}

/// A link to a user.
fn user_link(body: &mut Html, id: i64, nickname: &str) {
    body.raw("<a href=\"/user?id=").value(id).raw("\">");
    body.text(nickname).raw("</a>");
}

/// A table of items. The rows are id, name, number of bids, highest bid, initial price, end.
fn item_table(body: &mut Html, rows: &[Row]) -> Result<(), Refusal> {
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
fn comment_table(body: &mut Html, rows: &[Row]) -> Result<(), Refusal> {
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
