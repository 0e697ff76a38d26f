//! The pages on which a user comments on another one, from the login to the stored comment.

use futures_util::future::{join, join3};

use crate::database::Session;
use crate::html::Page;
use crate::pages::item::Item;
use crate::pages::login::{hidden_login, log_in, login_form};
use crate::pages::parts::{begin_form, end_form, field, hidden, name_of, page, user_link};
use crate::queries::Query;
use crate::refusal::Refusal;
use crate::request::{Request, TEXT_CHARS_MAX};
use spare_auction_interactions::Interaction;

/// A comment rates its user from minus this to plus this.
const RATING_MAX: i64 = 5;

pub(super) async fn login(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let (item, to) = (request.parameters.id("item")?, request.parameters.id("to")?);
    let (item, nickname) = join(
        Item::find(session, "item", item),
        name_of(session, Query::User, "to", to),
    )
    .await;
    let (item, nickname) = (item?, nickname?);
    let mut page = page(request, &format!("Log in to comment on {nickname}"));
    page.attribute("data-item", item.id);
    page.attribute("data-to", to);
    login_form(
        &mut page.body,
        Interaction::PutComment,
        &[("item", item.id), ("to", to)],
    );
    Ok(page)
}

pub(super) async fn form(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let (item, to) = (request.parameters.id("item")?, request.parameters.id("to")?);
    let (member, item, nickname) = join3(
        log_in(&request.parameters, session),
        Item::find(session, "item", item),
        name_of(session, Query::User, "to", to),
    )
    .await;
    let (member, item, nickname) = (member?, item?, nickname?);
    let mut page = page(request, &format!("Comment on {nickname}"));
    page.attribute("data-item", item.id);
    page.attribute("data-to", to);
    page.attribute("data-user", member.id);
    let body = &mut page.body;
    body.raw("<p>About ").text(&item.name).raw(".</p>\n");
    begin_form(body, Interaction::StoreComment);
    hidden(body, "item", item.id);
    hidden(body, "to", to);
    hidden_login(body, &member);
    field(
        body,
        "Rating, from -5 to 5",
        "rating",
        "\"number\" min=\"-5\" max=\"5\" value=\"0\"",
    );
    body.raw("<label>Comment <textarea name=\"comment\" rows=\"5\" required></textarea></label>\n");
    end_form(body, "Comment");
    Ok(page)
}

pub(super) async fn store(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let parameters = &request.parameters;
    let (item, to) = (parameters.id("item")?, parameters.id("to")?);
    let rating = parameters.number("rating", -RATING_MAX, RATING_MAX)?;
    let comment = parameters.text("comment", TEXT_CHARS_MAX)?;
    let now = request.agreed.now;
    let member = log_in(parameters, session).await?;
    let row = session
        .row(
            Query::StoreComment,
            &[&member.id, &to, &item, &rating, &now, &comment],
        )
        .await?;
    let Some(row) = row else {
        name_of(session, Query::User, "to", to).await?;
        return Err(Refusal::unknown("item", item));
    };
    let (id, nickname, rating): (i64, &str, i64) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let mut page = page(request, &format!("You commented on {nickname}"));
    page.attribute("data-item", item);
    page.attribute("data-to", to);
    page.attribute("data-user", member.id);
    page.attribute("data-comment", id);
    page.attribute("data-rating", rating);
    page.body.raw("<p>The rating of ");
    user_link(&mut page.body, to, nickname);
    page.body.raw(" is ").value(rating).raw(" now.</p>\n");
    Ok(page)
}
