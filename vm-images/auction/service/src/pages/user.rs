//! One user, with the comments on them.

use futures_util::future::join;

use crate::database::Session;
use crate::html::Page;
use crate::pages::parts::{comment_table, page};
use crate::queries::Query;
use crate::refusal::Refusal;
use crate::request::Request;
use crate::time::Moment;

pub(super) async fn view(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let id = request.parameters.id("id")?;
    let (user, comments) = join(
        session.row(Query::User, &[&id]),
        session.rows(Query::Comments, &[&id]),
    )
    .await;
    let (user, comments) = (user?, comments?);
    let user = user.ok_or_else(|| Refusal::unknown("id", id))?;
    let (nickname, rating): (&str, i64) = (user.try_get(0)?, user.try_get(1)?);
    let mut page = page(request, nickname);
    page.attribute("data-user", id);
    page.attribute("data-rating", rating);
    page.attribute("data-comments", comments.len());
    let body = &mut page.body;
    body.raw("<dl><dt>Rating</dt><dd>").value(rating);
    body.raw("</dd><dt>Region</dt><dd>").text(user.try_get(3)?);
    body.raw("</dd><dt>Member since</dt><dd>");
    body.value(user.try_get::<_, Moment>(2)?);
    body.raw("</dd></dl>\n<h2>Comments</h2>\n");
    comment_table(body, &comments)?;
    Ok(page)
}
