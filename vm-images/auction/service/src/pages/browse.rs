//! Home, and the pages that lead to an item: by category, by region.

use futures_util::future::{join, join3};
use tokio_postgres::Row;

use crate::database::Session;
use crate::html::{Html, Page};
use crate::pages::parts::{item_table, name_of, page};
use crate::queries::{Query, ITEMS_PER_PAGE};
use crate::refusal::Refusal;
use crate::request::Request;

/// The last page of a search that can be asked for; pages are counted from 0.
const PAGE_NUMBER_MAX: i64 = 9999;

pub(super) async fn home(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let row = session.row(Query::Counts, &[]).await?.ok_or_else(|| {
        let message = "The database is empty: fill it with what \"auction populate\" prints.";
        Refusal::new(500, "database", message)
    })?;
    let mut page = page(request, "Welcome");
    page.attribute("data-users", row.try_get::<_, i64>(0)?);
    page.attribute("data-items", row.try_get::<_, i64>(1)?);
    page.attribute("data-old-items", row.try_get::<_, i64>(2)?);
    page.attribute("data-bids", row.try_get::<_, i64>(3)?);
    page.body
        .raw("<p>Buy and sell, by bidding or at a fixed price.</p>\n<ul>")
        .raw("<li><a href=\"/browse\">Look for something</a></li>")
        .raw("<li><a href=\"/sell\">Sell something</a></li>")
        .raw("<li><a href=\"/register\">Become a member</a></li>")
        .raw("<li><a href=\"/about-me/login\">See your bids and sales</a></li></ul>\n");
    Ok(page)
}

pub(super) fn browse(request: &Request) -> Page {
    let mut page = page(request, "Browse");
    page.body
        .raw("<ul><li><a href=\"/categories\">All items, by category</a></li>")
        .raw("<li><a href=\"/regions\">Items near you, by region</a></li></ul>\n");
    page
}

pub(super) async fn categories(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let rows = session.rows(Query::Categories, &[]).await?;
    let mut page = page(request, "Categories");
    page.attribute("data-categories", rows.len());
    links(&mut page.body, "category", &rows, |body, id| {
        body.raw("/category?id=").value(id);
    })?;
    Ok(page)
}

pub(super) async fn regions(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let rows = session.rows(Query::Regions, &[]).await?;
    let mut page = page(request, "Regions");
    page.attribute("data-regions", rows.len());
    links(&mut page.body, "region", &rows, |body, id| {
        body.raw("/region?id=").value(id);
    })?;
    Ok(page)
}

pub(super) async fn region(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let region = request.parameters.id("id")?;
    let (name, rows) = join(
        name_of(session, Query::Region, "id", region),
        session.rows(Query::Categories, &[]),
    )
    .await;
    let (name, rows) = (name?, rows?);
    let mut page = page(request, &format!("Categories in {name}"));
    page.attribute("data-region", region);
    page.attribute("data-categories", rows.len());
    links(&mut page.body, "category", &rows, |body, id| {
        body.raw("/region/items?region=").value(region);
        body.raw("&amp;category=").value(id);
    })?;
    Ok(page)
}

pub(super) async fn items_in_category(
    request: &Request,
    session: &Session<'_>,
) -> Result<Page, Refusal> {
    let category = request.parameters.id("id")?;
    let number = page_number(request)?;
    let offset = number * ITEMS_PER_PAGE as i64;
    let (name, rows) = join(
        name_of(session, Query::Category, "id", category),
        session.rows(
            Query::ItemsInCategory,
            &[&category, &request.agreed.now, &offset],
        ),
    )
    .await;
    let (name, rows) = (name?, rows?);
    let mut page = page(request, &name);
    page.attribute("data-category", category);
    search_results(&mut page, &rows, number, |body| {
        body.raw("/category?id=").value(category);
    })?;
    Ok(page)
}

pub(super) async fn items_in_region(
    request: &Request,
    session: &Session<'_>,
) -> Result<Page, Refusal> {
    let region = request.parameters.id("region")?;
    let category = request.parameters.id("category")?;
    let number = page_number(request)?;
    let offset = number * ITEMS_PER_PAGE as i64;
    let (region_name, category_name, rows) = join3(
        name_of(session, Query::Region, "region", region),
        name_of(session, Query::Category, "category", category),
        session.rows(
            Query::ItemsInRegion,
            &[&region, &category, &request.agreed.now, &offset],
        ),
    )
    .await;
    let (region_name, category_name, rows) = (region_name?, category_name?, rows?);
    let mut page = page(request, &format!("{category_name} in {region_name}"));
    page.attribute("data-region", region);
    page.attribute("data-category", category);
    search_results(&mut page, &rows, number, |body| {
        body.raw("/region/items?region=").value(region);
        body.raw("&amp;category=").value(category);
    })?;
    Ok(page)
}

fn page_number(request: &Request) -> Result<i64, Refusal> {
    let number = request
        .parameters
        .optional_number("page", 0, PAGE_NUMBER_MAX)?;
    Ok(number.unwrap_or(0))
}

/// A list of links to categories or regions; the rows are id, name.
pub(super) fn links(
    body: &mut Html,
    kind: &'static str,
    rows: &[Row],
    address: impl Fn(&mut Html, i64),
) -> Result<(), Refusal> {
    body.raw("<ul>\n");
    for row in rows {
        let (id, name): (i64, &str) = (row.try_get(0)?, row.try_get(1)?);
        body.raw("<li data-").raw(kind).raw("=\"").value(id);
        body.raw("\"><a href=\"");
        address(body, id);
        body.raw("\">").text(name).raw("</a></li>\n");
    }
    body.raw("</ul>\n");
    Ok(())
}

/// One page of found items; `rows` holds one more than is shown if there is a next page.
fn search_results(
    page: &mut Page,
    rows: &[Row],
    number: i64,
    address: impl Fn(&mut Html),
) -> Result<(), Refusal> {
    let more = rows.len() > ITEMS_PER_PAGE;
    let shown = &rows[..rows.len().min(ITEMS_PER_PAGE)];
    page.attribute("data-items-shown", shown.len());
    page.attribute("data-page-number", number);
    page.attribute("data-more", u8::from(more));
    let body = &mut page.body;
    if shown.is_empty() {
        body.raw("<p>Nothing is on sale here.</p>\n");
    } else {
        item_table(body, shown)?;
    }
    body.raw("<p>");
    if number > 0 {
        body.raw("<a href=\"");
        address(body);
        body.raw("&amp;page=")
            .value(number - 1)
            .raw("\">Previous page</a> ");
    }
    if more && number < PAGE_NUMBER_MAX {
        body.raw("<a href=\"");
        address(body);
        body.raw("&amp;page=")
            .value(number + 1)
            .raw("\">Next page</a>");
    }
    body.raw("</p>\n");
    Ok(())
}
