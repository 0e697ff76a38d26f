//! A user's own page: bids, purchases, sales and comments.

use futures_util::future::{join, join3};
use tokio_postgres::Row;

use crate::database::Session;
use crate::html::{Html, Page};
use crate::money::Money;
use crate::pages::login::{log_in, login_form};
use crate::pages::parts::{comment_table, item_link, item_table, page};
use crate::queries::Query;
use crate::refusal::Refusal;
use crate::request::Request;
use crate::time::Moment;
use spare_auction_interactions::Interaction;

pub(super) fn login(request: &Request) -> Page {
    let mut page = page(request, "Log in to see your page");
    login_form(&mut page.body, Interaction::AboutMe, &[]);
    page
}

pub(super) async fn view(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let member = log_in(&request.parameters, session).await?;
    let (id, now) = (&member.id, &request.agreed.now);
    let ((bidding, won, bought), (selling, sold, comments)) = join(
        join3(
            session.rows(Query::Bidding, &[id, now]),
            session.rows(Query::Won, &[id, now]),
            session.rows(Query::Bought, &[id]),
        ),
        join3(
            session.rows(Query::Selling, &[id, now]),
            session.rows(Query::Sold, &[id, now]),
            session.rows(Query::Comments, &[id]),
        ),
    )
    .await;
    let (bidding, won, bought) = (bidding?, won?, bought?);
    let (selling, sold, comments) = (selling?, sold?, comments?);
    let mut page = page(request, &format!("About {}", member.nickname));
    page.attribute("data-user", member.id);
    page.attribute("data-rating", member.rating);
    page.attribute("data-bidding", bidding.len());
    page.attribute("data-won", won.len());
    page.attribute("data-bought", bought.len());
    page.attribute("data-selling", selling.len());
    page.attribute("data-sold", sold.len());
    page.attribute("data-comments", comments.len());
    let body = &mut page.body;
    body.raw("<p>Your rating is ").value(member.rating);
    body.raw(", your balance ")
        .value(Money(member.balance))
        .raw(".</p>\n");
    begin_section(body, "bidding", "You bid on");
    item_table(body, &bidding)?;
    begin_section(body, "won", "You won");
    item_table(body, &won)?;
    begin_section(body, "bought", "You bought");
    purchases(body, &bought)?;
    begin_section(body, "selling", "You sell");
    item_table(body, &selling)?;
    begin_section(body, "sold", "Your auctions that are over");
    item_table(body, &sold)?;
    begin_section(body, "comments", "Comments on you");
    comment_table(body, &comments)?;
    body.raw("</section>\n");
    Ok(page)
}

/// Ends the section before, if this is not the first, and begins another one.
fn begin_section(body: &mut Html, id: &'static str, title: &'static str) {
    if id != "bidding" {
        body.raw("</section>\n");
    }
    body.raw("<section id=\"").raw(id).raw("\"><h2>");
    body.raw(title).raw("</h2>\n");
}

/// The rows are item, its name, quantity, date, number of the purchase.
fn purchases(body: &mut Html, rows: &[Row]) -> Result<(), Refusal> {
    body.raw("<table><tr><th>Item</th><th>Quantity</th><th>Date</th></tr>\n");
    for row in rows {
        let item: i64 = row.try_get(0)?;
        body.raw("<tr data-item=\"").value(item);
        body.raw("\" data-purchase=\"")
            .value(row.try_get::<_, i64>(4)?);
        body.raw("\"><td>");
        item_link(body, item, row.try_get(1)?);
        body.raw("</td><td>").value(row.try_get::<_, i64>(2)?);
        body.raw("</td><td>").value(row.try_get::<_, Moment>(3)?);
        body.raw("</td></tr>\n");
    }
    body.raw("</table>\n");
    Ok(())
}
