//! The pages on which somebody becomes a user of the auction.

use crate::database::Session;
use crate::html::Page;
use crate::pages::parts::{begin_form, end_form, field, name_of, page, user_link};
use crate::password;
use crate::queries::Query;
use crate::refusal::Refusal;
use crate::request::{Request, LINE_CHARS_MAX};
use spare_auction_interactions::Interaction;

pub(super) async fn form(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let regions = session.rows(Query::Regions, &[]).await?;
    let mut page = page(request, "Become a member");
    page.attribute("data-regions", regions.len());
    let body = &mut page.body;
    begin_form(body, Interaction::RegisterUser);
    field(body, "First name", "firstname", "\"text\" required");
    field(body, "Last name", "lastname", "\"text\" required");
    field(body, "Nickname", "nickname", "\"text\" required");
    field(body, "Password", "password", "\"password\" required");
    field(body, "E-mail", "email", "\"email\" required");
    body.raw("<label>Region <select name=\"region\">\n");
    for row in &regions {
        body.raw("<option value=\"")
            .value(row.try_get::<_, i64>(0)?);
        body.raw("\">").text(row.try_get(1)?).raw("</option>\n");
    }
    body.raw("</select></label>\n");
    end_form(body, "Register");
    Ok(page)
}

pub(super) async fn store(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    let parameters = &request.parameters;
    let firstname = parameters.text("firstname", LINE_CHARS_MAX)?;
    let lastname = parameters.text("lastname", LINE_CHARS_MAX)?;
    let nickname = parameters.text("nickname", LINE_CHARS_MAX)?;
    let password = parameters.text("password", LINE_CHARS_MAX)?;
    let email = parameters.text("email", LINE_CHARS_MAX)?;
    let region = parameters.id("region")?;
    let stored = password::store(&request.agreed.seed, password);
    let row = session
        .row(
            Query::StoreUser,
            &[
                &firstname,
                &lastname,
                &nickname,
                &stored,
                &email,
                &request.agreed.now,
                &region,
            ],
        )
        .await?;
    let Some(row) = row else {
        name_of(session, Query::Region, "region", region).await?;
        let message = format!("The nickname \"{nickname}\" is taken. Choose another one.");
        return Err(Refusal::new(409, "nickname-taken", message));
    };
    let id: i64 = row.try_get(0)?;
    let mut page = page(request, "Welcome, new member");
    page.attribute("data-user", id);
    page.attribute("data-nickname", nickname);
    page.body.raw("<p>You are registered as ");
    user_link(&mut page.body, id, nickname);
    page.body.raw(".</p>\n");
    Ok(page)
}
