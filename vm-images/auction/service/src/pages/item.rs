//! One item and the bids on it.

use futures_util::future::join;
use tokio_postgres::Row;

use crate::database::Session;
use crate::html::Page;
use crate::money::Money;
use crate::pages::parts::{item_link, page, user_link};
use crate::queries::{Query, BID_STEP_CENTS};
use crate::refusal::Refusal;
use crate::request::Request;
use crate::time::Moment;

/// An item, on sale or not any more.
pub(super) struct Item {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) initial_price: i64,
    pub(super) quantity: i64,
    pub(super) reserve_price: i64,
    /// The fixed price; 0 if there is none.
    pub(super) buy_now: i64,
    pub(super) bids: i64,
    pub(super) max_bid: i64,
    pub(super) start: Moment,
    pub(super) end: Moment,
    pub(super) category: i64,
    pub(super) seller: i64,
    pub(super) seller_nickname: String,
    /// Whether it is in `old_items`.
    moved: bool,
}

impl Item {
    /// The item with that number, on sale or not.
    ///
    /// # Errors
    /// [`Refusal::unknown`], which names the parameter that the number came from.
    pub(super) async fn find(
        session: &Session<'_>,
        parameter: &str,
        id: i64,
    ) -> Result<Self, Refusal> {
        if let Some(row) = session.row(Query::Item, &[&id]).await? {
            return Self::from_row(&row, false);
        }
        match session.row(Query::OldItem, &[&id]).await? {
            Some(row) => Self::from_row(&row, true),
            None => Err(Refusal::unknown(parameter, id)),
        }
    }

    fn from_row(row: &Row, moved: bool) -> Result<Self, Refusal> {
        Ok(Self {
            id: row.try_get(0)?,
            name: row.try_get(1)?,
            description: row.try_get(2)?,
            initial_price: row.try_get(3)?,
            quantity: row.try_get(4)?,
            reserve_price: row.try_get(5)?,
            buy_now: row.try_get(6)?,
            bids: row.try_get(7)?,
            max_bid: row.try_get(8)?,
            start: row.try_get(9)?,
            end: row.try_get(10)?,
            category: row.try_get(11)?,
            seller: row.try_get(12)?,
            seller_nickname: row.try_get(13)?,
            moved,
        })
    }

    /// What the next bid must at least be.
    pub(super) fn minimum(&self) -> i64 {
        if self.bids == 0 {
            self.initial_price
        } else {
            self.max_bid.saturating_add(BID_STEP_CENTS)
        }
    }

    /// Whether the auction is over at that time.
    pub(super) fn has_ended(&self, now: Moment) -> bool {
        self.moved || self.end <= now
    }

    /// Refuses if the auction is over.
    pub(super) fn must_be_on_sale(&self, now: Moment) -> Result<(), Refusal> {
        if self.has_ended(now) {
            let message = format!("The auction of item {} is over.", self.id);
            return Err(Refusal::new(409, "ended", message));
        }
        Ok(())
    }

    /// Refuses if fewer than `quantity` are left.
    pub(super) fn must_have(&self, quantity: i64) -> Result<(), Refusal> {
        if quantity > self.quantity {
            let message = format!("Only {} of item {} are left.", self.quantity, self.id);
            let refusal = Refusal::new(409, "not-enough", message);
            return Err(refusal.with("data-quantity", self.quantity));
        }
        Ok(())
    }
}

pub(super) async fn view(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let item = Item::find(session, "id", request.parameters.id("id")?).await?;
    let ended = item.has_ended(request.agreed.now);
    let mut page = page(request, &item.name);
    page.attribute("data-item", item.id);
    page.attribute("data-seller", item.seller);
    page.attribute("data-category", item.category);
    page.attribute("data-bids", item.bids);
    page.attribute("data-max-bid", item.max_bid);
    page.attribute("data-minimum", item.minimum());
    page.attribute("data-buy-now", item.buy_now);
    page.attribute("data-quantity", item.quantity);
    page.attribute("data-ended", u8::from(ended));
    describe(&mut page, &item);
    if ended {
        page.body.raw("<p><b>This auction is over.</b></p>\n");
    } else {
        offers(&mut page, &item);
    }
    page.body
        .raw("<p><a href=\"/comment/login?item=")
        .value(item.id)
        .raw("&amp;to=")
        .value(item.seller)
        .raw("\">Comment on the seller</a></p>\n");
    Ok(page)
}

fn describe(page: &mut Page, item: &Item) {
    let body = &mut page.body;
    body.raw("<p>").text(&item.description).raw("</p>\n<dl>");
    if item.bids == 0 {
        body.raw("<dt>Initial price</dt><dd>");
        body.value(Money(item.initial_price));
    } else {
        body.raw("<dt>Highest bid</dt><dd>");
        body.value(Money(item.max_bid));
        if item.max_bid < item.reserve_price {
            body.raw(" (the reserve price is not met)");
        }
    }
    body.raw("</dd><dt>Bids</dt><dd><a href=\"/item/bids?id=");
    body.value(item.id).raw("\">").value(item.bids).raw("</a>");
    body.raw("</dd><dt>Quantity</dt><dd>").value(item.quantity);
    body.raw("</dd><dt>Seller</dt><dd>");
    user_link(body, item.seller, &item.seller_nickname);
    body.raw("</dd><dt>Started</dt><dd>").value(item.start);
    body.raw("</dd><dt>Ends</dt><dd>").value(item.end);
    body.raw("</dd></dl>\n");
}

fn offers(page: &mut Page, item: &Item) {
    let body = &mut page.body;
    body.raw("<p><a href=\"/bid/login?item=").value(item.id);
    body.raw("\">Bid ").value(Money(item.minimum()));
    body.raw(" or more</a></p>\n");
    if item.buy_now > 0 {
        body.raw("<p><a href=\"/buy-now/login?item=").value(item.id);
        body.raw("\">Buy now for ").value(Money(item.buy_now));
        body.raw("</a></p>\n");
    }
}

pub(super) async fn bids(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let id = request.parameters.id("id")?;
    let (item, rows) = join(
        Item::find(session, "id", id),
        session.rows(Query::Bids, &[&id]),
    )
    .await;
    let (item, rows) = (item?, rows?);
    let mut page = page(request, &format!("Bids on {}", item.name));
    page.attribute("data-item", item.id);
    page.attribute("data-bids", item.bids);
    page.attribute("data-max-bid", item.max_bid);
    page.attribute("data-shown", rows.len());
    let body = &mut page.body;
    body.raw("<p>");
    item_link(body, item.id, &item.name);
    body.raw("</p>\n<table><tr><th>Bidder</th><th>Bid</th><th>Quantity</th><th>Date</th></tr>\n");
    for row in &rows {
        let (bid, user, nickname): (i64, i64, &str) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (amount, quantity): (i64, i64) = (row.try_get(3)?, row.try_get(4)?);
        body.raw("<tr data-bid=\"").value(bid);
        body.raw("\" data-user=\"").value(user);
        body.raw("\" data-amount=\"").value(amount).raw("\"><td>");
        user_link(body, user, nickname);
        body.raw("</td><td>").value(Money(amount));
        body.raw("</td><td>").value(quantity);
        body.raw("</td><td>").value(row.try_get::<_, Moment>(5)?);
        body.raw("</td></tr>\n");
    }
    body.raw("</table>\n");
    Ok(page)
}
