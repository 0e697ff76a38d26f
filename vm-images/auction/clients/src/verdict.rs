//! Whether a reply is the page that was asked for: what every right page has in common, and what the request says
//! of this one (`docs/contributors/demo-service.md`).

use crate::page::{Page, WrongPage};
use crate::request::PageRequest;
use spare_auction_interactions::Interaction;
use spare_client::http::Reply;

/// A list on a page: what its rows are about, in which section, and the attribute of `<main>` that
/// counts them.
type List = (&'static str, Option<&'static str>, &'static str);

fn lists(interaction: Interaction) -> &'static [List] {
    match interaction {
        Interaction::BrowseCategories
        | Interaction::BrowseCategoriesInRegion
        | Interaction::SelectCategoryToSellItem => &[("data-category", None, "data-categories")],
        Interaction::BrowseRegions => &[("data-region", None, "data-regions")],
        Interaction::SearchItemsInCategory | Interaction::SearchItemsInRegion => {
            &[("data-item", None, "data-items-shown")]
        }
        Interaction::ViewUserInfo => &[("data-comment", None, "data-comments")],
        Interaction::ViewBidHistory => &[("data-bid", None, "data-shown")],
        Interaction::AboutMe => &[
            ("data-item", Some("bidding"), "data-bidding"),
            ("data-item", Some("won"), "data-won"),
            ("data-item", Some("bought"), "data-bought"),
            ("data-item", Some("selling"), "data-selling"),
            ("data-item", Some("sold"), "data-sold"),
            ("data-comment", Some("comments"), "data-comments"),
        ],
        _ => &[],
    }
}

/// What a reply turned out to be.
#[derive(Debug)]
pub(crate) enum Verdict<'a> {
    /// The page that was asked for, as far as the page alone shows.
    Right(Page<'a>),
    /// A refusal that is right when another client was faster.
    Refused {
        /// Its reason, for example `bid-too-low`.
        reason: &'a str,
        /// The page that says so.
        page: Page<'a>,
    },
}

/// Holds a reply against what was asked for.
///
/// # Errors
/// What is wrong with the page.
pub(crate) fn judge<'a>(asked: &PageRequest, reply: &'a Reply) -> Result<Verdict<'a>, WrongPage> {
    let text = std::str::from_utf8(&reply.body).map_err(|_| "not UTF-8".to_owned())?;
    let content_type = reply.header("content-type").unwrap_or("none");
    if content_type != "text/html; charset=utf-8" {
        return Err(WrongPage(format!(
            "status {}, content type {content_type}",
            reply.status
        )));
    }
    if !text.contains(" · Auction</title>") || !text.trim_end().ends_with("</html>") {
        return Err(WrongPage(format!(
            "status {}, no whole page of the auction",
            reply.status
        )));
    }
    let page = Page::parse(text)?;
    if reply.status != 200 {
        return refusal(asked.interaction, reply.status, page);
    }
    let interaction = asked.interaction.name().to_owned();
    let page_name = ("data-page", interaction);
    for (name, expected) in std::iter::once(&page_name).chain(&asked.expected) {
        match page.main.get(name) {
            Some(value) if value == expected => {}
            found => {
                return Err(WrongPage(format!(
                    "{name} is {found:?} instead of \"{expected}\""
                )))
            }
        }
    }
    for list in lists(asked.interaction) {
        check_list(&page, list)?;
    }
    Ok(Verdict::Right(page))
}

fn refusal(asked: Interaction, status: u16, page: Page<'_>) -> Result<Verdict<'_>, WrongPage> {
    let reason = page.main.get("data-reason").unwrap_or("none given");
    let says_so = page.main.get("data-page") == Some("Error")
        && page.main.get("data-status") == Some(status.to_string().as_str());
    let expected = match asked {
        Interaction::StoreBid => matches!(reason, "bid-too-low" | "ended"),
        Interaction::PutBid | Interaction::PutBidAuth => reason == "ended",
        Interaction::BuyNowAuth | Interaction::BuyNow | Interaction::StoreBuyNow => {
            matches!(reason, "ended" | "not-enough")
        }
        _ => false,
    };
    if status == 409 && says_so && expected {
        Ok(Verdict::Refused { reason, page })
    } else {
        Err(WrongPage(format!("status {status}, reason {reason}")))
    }
}

fn check_list(page: &Page<'_>, (about, section, count): &List) -> Result<(), WrongPage> {
    let in_section = |s: Option<&str>| section.is_none() || s == *section;
    let rows = page
        .rows_about(about)
        .filter(|row| in_section(row.section))
        .count();
    let said = page.main.number(count)?;
    if rows as u64 != said {
        return Err(WrongPage(format!(
            "{rows} rows with {about}, but {count}=\"{said}\""
        )));
    }
    if said == 0 && matches!(*count, "data-categories" | "data-regions") {
        return Err(WrongPage(format!("{count} is 0")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderMap, HeaderValue};

    fn reply(status: u16, main: &str, rows: &str) -> Reply {
        let mut headers = HeaderMap::new();
        headers.insert(
            "content-type",
            HeaderValue::from_static("text/html; charset=utf-8"),
        );
        let page = format!(
            "<!DOCTYPE html><html><title>Page · Auction</title><main {main}>{rows}</main></html>\n"
        );
        Reply {
            status,
            headers,
            body: page.into(),
        }
    }

    fn item_3() -> PageRequest {
        PageRequest::new(Interaction::ViewItem)
            .with("id", 3)
            .expect("data-item", 3)
    }

    fn error_of(asked: &PageRequest, reply: &Reply) -> String {
        judge(asked, reply).expect_err("a wrong page").to_string()
    }

    #[test]
    fn the_page_that_was_asked_for_is_right() {
        let reply = reply(200, "data-page=\"ViewItem\" data-item=\"3\"", "");
        assert!(matches!(judge(&item_3(), &reply), Ok(Verdict::Right(_))));
    }

    #[test]
    fn another_page_or_another_item_is_wrong() {
        let other_item = reply(200, "data-page=\"ViewItem\" data-item=\"4\"", "");
        assert!(error_of(&item_3(), &other_item).contains("data-item"));
        let other_page = reply(200, "data-page=\"Home\" data-item=\"3\"", "");
        assert!(error_of(&item_3(), &other_page).contains("data-page"));
    }

    #[test]
    fn a_page_that_breaks_off_or_has_another_type_is_wrong() {
        let mut cut = reply(200, "data-page=\"ViewItem\" data-item=\"3\"", "");
        cut.body.truncate(cut.body.len() - 5);
        assert!(error_of(&item_3(), &cut).contains("no whole page"));
        let mut json = reply(200, "data-page=\"ViewItem\" data-item=\"3\"", "");
        json.headers.clear();
        assert!(error_of(&item_3(), &json).contains("content type"));
    }

    #[test]
    fn a_list_with_a_row_too_few_is_wrong() {
        let asked = PageRequest::new(Interaction::ViewBidHistory);
        let row = "<tr data-bid=\"1\" data-user=\"5\" data-amount=\"100\"></tr>";
        let right = reply(200, "data-page=\"ViewBidHistory\" data-shown=\"1\"", row);
        assert!(judge(&asked, &right).is_ok());
        let wrong = reply(200, "data-page=\"ViewBidHistory\" data-shown=\"2\"", row);
        assert!(error_of(&asked, &wrong).contains("1 rows"));
    }

    #[test]
    fn only_refusals_that_another_client_can_cause_are_right() {
        let low = reply(
            409,
            "data-page=\"Error\" data-status=\"409\" data-reason=\"bid-too-low\"",
            "",
        );
        let bid = PageRequest::new(Interaction::StoreBid);
        assert!(matches!(
            judge(&bid, &low),
            Ok(Verdict::Refused {
                reason: "bid-too-low",
                ..
            })
        ));
        assert!(error_of(&item_3(), &low).contains("409"));
        let login = reply(
            403,
            "data-page=\"Error\" data-status=\"403\" data-reason=\"wrong-login\"",
            "",
        );
        assert!(error_of(&bid, &login).contains("wrong-login"));
    }
}
