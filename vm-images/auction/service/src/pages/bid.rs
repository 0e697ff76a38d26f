//! The pages on which a user bids for an item, from the login to the stored bid.

use futures_util::future::join;

use crate::database::Session;
use crate::html::Page;
use crate::money::Money;
use crate::pages::item::Item;
use crate::pages::login::{hidden_login, log_in, login_form};
use crate::pages::parts::{begin_form, end_form, field, hidden, item_link, page};
use crate::queries::Query;
use crate::refusal::Refusal;
use crate::request::Request;
use spare_auction_interactions::Interaction;

/// The most pieces that one bid, purchase or new item may be about.
pub(super) const QUANTITY_MAX: i64 = 1_000_000;

pub(super) async fn login(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let item = Item::find(session, "item", request.parameters.id("item")?).await?;
    let mut page = page(request, &format!("Log in to bid on {}", item.name));
    page.attribute("data-item", item.id);
    login_form(&mut page.body, Interaction::PutBid, &[("item", item.id)]);
    Ok(page)
}

pub(super) async fn form(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let id = request.parameters.id("item")?;
    let (member, item) = join(
        log_in(&request.parameters, session),
        Item::find(session, "item", id),
    )
    .await;
    let (member, item) = (member?, item?);
    item.must_be_on_sale(request.agreed.now)?;
    let mut page = page(request, &format!("Bid on {}", item.name));
    page.attribute("data-item", item.id);
    page.attribute("data-user", member.id);
    page.attribute("data-bids", item.bids);
    page.attribute("data-max-bid", item.max_bid);
    page.attribute("data-minimum", item.minimum());
    let body = &mut page.body;
    body.raw("<p>There are ").value(item.bids);
    body.raw(" bids. Yours must be at least ")
        .value(Money(item.minimum()));
    body.raw(".</p>\n");
    begin_form(body, Interaction::StoreBid);
    hidden(body, "item", item.id);
    hidden_login(body, &member);
    field(body, "Your bid", "bid", "\"text\" required");
    field(body, "The most you would pay", "max_bid", "\"text\"");
    field(
        body,
        "Quantity",
        "quantity",
        "\"number\" min=\"1\" value=\"1\"",
    );
    end_form(body, "Bid");
    Ok(page)
}

pub(super) async fn store(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let parameters = &request.parameters;
    let item = parameters.id("item")?;
    let Money(bid) = parameters.money("bid")?;
    let Money(max_bid) = parameters.optional_money("max_bid")?.unwrap_or(Money(bid));
    if max_bid < bid {
        return Err(Refusal::bad("max_bid", "at least the bid"));
    }
    let quantity = parameters
        .optional_number("quantity", 1, QUANTITY_MAX)?
        .unwrap_or(1);
    let now = request.agreed.now;
    let member = log_in(parameters, session).await?;
    let row = session
        .row(
            Query::StoreBid,
            &[&item, &member.id, &bid, &max_bid, &quantity, &now],
        )
        .await?;
    let Some(row) = row else {
        return Err(refusal(request, session, item, quantity).await);
    };
    let (id, name, bids): (i64, &str, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let mut page = page(request, &format!("You bid on {name}"));
    page.attribute("data-item", item);
    page.attribute("data-user", member.id);
    page.attribute("data-bid", id);
    page.attribute("data-bids", bids);
    page.attribute("data-max-bid", bid);
    page.body
        .raw("<p>Your bid of ")
        .value(Money(bid))
        .raw(" on ");
    item_link(&mut page.body, item, name);
    page.body.raw(" is the highest now.</p>\n");
    Ok(page)
}

/// Why a bid was not accepted.
async fn refusal(request: &Request, session: &Session<'_>, id: i64, quantity: i64) -> Refusal {
    let check = async {
        let item = Item::find(session, "item", id).await?;
        item.must_be_on_sale(request.agreed.now)?;
        item.must_have(quantity)?;
        Ok(item.minimum())
    };
    match check.await {
        Ok(minimum) => {
            let message = format!(
                "The bid is too low: it must be at least {}.",
                Money(minimum)
            );
            Refusal::new(409, "bid-too-low", message).with("data-minimum", minimum)
        }
        Err(refusal) => refusal,
    }
}
