//! The pages on which a user puts an item on sale, from the login to the stored item.

use futures_util::future::join;

use crate::database::Session;
use crate::html::Page;
use crate::money::Money;
use crate::pages::bid::QUANTITY_MAX;
use crate::pages::browse;
use crate::pages::login::{hidden_login, log_in, login_form};
use crate::pages::parts::{begin_form, end_form, field, hidden, item_link, name_of, page};
use crate::queries::Query;
use crate::refusal::Refusal;
use crate::request::{Request, LINE_CHARS_MAX, TEXT_CHARS_MAX};
use spare_auction_interactions::Interaction;

/// The longest that an auction may last, in days.
const DURATION_DAYS_MAX: i64 = 365;

pub(super) fn login(request: &Request) -> Page {
    let mut page = page(request, "Log in to sell");
    login_form(&mut page.body, Interaction::SelectCategoryToSellItem, &[]);
    page
}

pub(super) async fn categories(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let (member, rows) = join(
        log_in(&request.parameters, session),
        session.rows(Query::Categories, &[]),
    )
    .await;
    let (member, rows) = (member?, rows?);
    let login = form_urlencoded::Serializer::new(String::new())
        .append_pair("nickname", &member.nickname)
        .append_pair("password", &member.password)
        .finish();
    let mut page = page(request, "What do you sell?");
    page.attribute("data-user", member.id);
    page.attribute("data-categories", rows.len());
    browse::links(&mut page.body, "category", &rows, |body, id| {
        body.raw("/sell/item?category=").value(id);
        body.raw("&amp;").text(&login);
    })?;
    Ok(page)
}

pub(super) async fn form(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let category = request.parameters.id("category")?;
    let (member, name) = join(
        log_in(&request.parameters, session),
        name_of(session, Query::Category, "category", category),
    )
    .await;
    let (member, name) = (member?, name?);
    let mut page = page(request, &format!("Sell in {name}"));
    page.attribute("data-user", member.id);
    page.attribute("data-category", category);
    let body = &mut page.body;
    begin_form(body, Interaction::RegisterItem);
    hidden(body, "category", category);
    hidden_login(body, &member);
    field(body, "Name", "name", "\"text\" required");
    body.raw("<label>Description <textarea name=\"description\" rows=\"5\"></textarea></label>\n");
    field(body, "Initial price", "initial_price", "\"text\" required");
    field(body, "Reserve price", "reserve_price", "\"text\"");
    field(body, "Fixed price", "buy_now", "\"text\"");
    field(
        body,
        "Quantity",
        "quantity",
        "\"number\" min=\"1\" value=\"1\"",
    );
    field(
        body,
        "Duration in days",
        "duration",
        "\"number\" min=\"1\" max=\"365\" value=\"7\"",
    );
    end_form(body, "Put on sale");
    Ok(page)
}

pub(super) async fn store(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let parameters = &request.parameters;
    let category = parameters.id("category")?;
    let name = parameters.text("name", LINE_CHARS_MAX)?;
    let description = parameters
        .optional_text("description", TEXT_CHARS_MAX)?
        .unwrap_or_default();
    let Money(initial_price) = parameters.money("initial_price")?;
    if initial_price == 0 {
        return Err(Refusal::bad("initial_price", "more than 0"));
    }
    let Money(reserve_price) = parameters
        .optional_money("reserve_price")?
        .unwrap_or(Money(0));
    let Money(buy_now) = parameters.optional_money("buy_now")?.unwrap_or(Money(0));
    let quantity = parameters.number("quantity", 1, QUANTITY_MAX)?;
    let start = request.agreed.now;
    let end = start.plus_days(parameters.number("duration", 1, DURATION_DAYS_MAX)?);
    let member = log_in(parameters, session).await?;
    let row = session
        .row(
            Query::StoreItem,
            &[
                &member.id,
                &category,
                &name,
                &description,
                &initial_price,
                &quantity,
                &reserve_price,
                &buy_now,
                &start,
                &end,
            ],
        )
        .await?;
    let id: i64 = row
        .ok_or_else(|| Refusal::unknown("category", category))?
        .try_get(0)?;
    let mut page = page(request, &format!("{name} is on sale"));
    page.attribute("data-item", id);
    page.attribute("data-seller", member.id);
    page.attribute("data-category", category);
    page.body.raw("<p>See ");
    item_link(&mut page.body, id, name);
    page.body.raw(", on sale until ").value(end).raw(".</p>\n");
    Ok(page)
}
