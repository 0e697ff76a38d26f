//! Buying at a fixed price.

use futures_util::future::join;

use crate::database::Session;
use crate::html::Page;
use crate::money::Money;
use crate::pages::bid::QUANTITY_MAX;
use crate::pages::item::Item;
use crate::pages::login::{hidden_login, log_in, login_form};
use crate::pages::parts::{begin_form, end_form, field, hidden, item_link, page};
use crate::queries::Query;
use crate::refusal::Refusal;
use crate::request::Request;
use spare_auction_interactions::Interaction;

pub(super) async fn login(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let item = Item::find(session, "item", request.parameters.id("item")?).await?;
    let mut page = page(request, &format!("Log in to buy {}", item.name));
    page.attribute("data-item", item.id);
    login_form(&mut page.body, Interaction::BuyNow, &[("item", item.id)]);
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
    must_have_fixed_price(&item)?;
    let mut page = page(request, &format!("Buy {}", item.name));
    page.attribute("data-item", item.id);
    page.attribute("data-user", member.id);
    page.attribute("data-buy-now", item.buy_now);
    page.attribute("data-quantity", item.quantity);
    let body = &mut page.body;
    body.raw("<p>One costs ").value(Money(item.buy_now));
    body.raw(", and ")
        .value(item.quantity)
        .raw(" are left.</p>\n");
    begin_form(body, Interaction::StoreBuyNow);
    hidden(body, "item", item.id);
    hidden_login(body, &member);
    field(
        body,
        "Quantity",
        "quantity",
        "\"number\" min=\"1\" value=\"1\"",
    );
    end_form(body, "Buy");
    Ok(page)
}

pub(super) async fn store(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let parameters = &request.parameters;
    let item = parameters.id("item")?;
    let quantity = parameters.number("quantity", 1, QUANTITY_MAX)?;
    let now = request.agreed.now;
    let member = log_in(parameters, session).await?;
    let row = session
        .row(Query::StoreBuyNow, &[&item, &member.id, &quantity, &now])
        .await?;
    let Some(row) = row else {
        return Err(refusal(request, session, item, quantity).await);
    };
    let (id, name, left): (i64, &str, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let mut page = page(request, &format!("You bought {name}"));
    page.attribute("data-item", item);
    page.attribute("data-user", member.id);
    page.attribute("data-purchase", id);
    page.attribute("data-quantity", left);
    page.attribute("data-ended", u8::from(left == 0));
    page.body.raw("<p>You bought ").value(quantity).raw(" of ");
    item_link(&mut page.body, item, name);
    page.body.raw(".</p>\n");
    Ok(page)
}

fn must_have_fixed_price(item: &Item) -> Result<(), Refusal> {
    if item.buy_now == 0 {
        let message = format!("Item {} has no fixed price; bid on it.", item.id);
        return Err(Refusal::new(409, "no-buy-now", message));
    }
    Ok(())
}

/// Why a purchase was not accepted.
async fn refusal(request: &Request, session: &Session<'_>, id: i64, quantity: i64) -> Refusal {
    let check = async {
        let item = Item::find(session, "item", id).await?;
        item.must_be_on_sale(request.agreed.now)?;
        must_have_fixed_price(&item)?;
        item.must_have(quantity)
    };
    match check.await {
        // Only if another program changed the item in between.
        Ok(()) => Refusal::new(409, "ended", format!("Item {id} changed; try again.")),
        Err(refusal) => refusal,
    }
}
