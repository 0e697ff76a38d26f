//! Who a request is from: every request that needs to know says the nickname and the password again, as in RUBiS.

use crate::database::Session;
use crate::html::Html;
use crate::pages::parts::{begin_form, end_form, field, hidden};
use crate::password;
use crate::queries::Query;
use crate::refusal::Refusal;
use crate::request::{Parameters, LINE_CHARS_MAX};
use spare_auction_interactions::Interaction;

/// Who is logged in.
pub(super) struct Member {
    pub(super) id: i64,
    pub(super) rating: i64,
    pub(super) balance: i64,
    pub(super) nickname: String,
    pub(super) password: String,
}

/// Checks the nickname and the password of a request.
pub(super) async fn log_in(
    parameters: &Parameters,
    session: &Session<'_>,
) -> Result<Member, Refusal> {
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

/// The nickname and the password, passed on unseen from form to form as in RUBiS.
pub(super) fn hidden_login(body: &mut Html, member: &Member) {
    hidden(body, "nickname", &member.nickname);
    hidden(body, "password", &member.password);
}

/// Asks for nickname and password, then goes on to an interaction.
pub(super) fn login_form(body: &mut Html, target: Interaction, passed_on: &[(&'static str, i64)]) {
    begin_form(body, target);
    for (name, value) in passed_on {
        hidden(body, name, value);
    }
    field(body, "Nickname", "nickname", "\"text\" required");
    field(body, "Password", "password", "\"password\" required");
    end_form(body, "Log in");
}
