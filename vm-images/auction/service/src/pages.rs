//! The pages, one module for each part of the auction; `parts` and `login` have what they share.
//!
//! Queries that do not need each other's results are awaited together (`join`), so that they travel
//! to the database together. Their errors are then looked at in a fixed order: `try_join` would
//! answer with whichever came first, which is not the same on every replica.

use crate::database::Session;
use crate::html::Page;
use crate::refusal::Refusal;
use crate::request::Request;
use spare_auction_interactions::Interaction;

mod about_me;
mod bid;
mod browse;
mod buy_now;
mod comment;
mod item;
mod login;
mod parts;
mod register;
mod sell;
mod user;

/// The page that a request asks for.
///
/// # Errors
/// A [`Refusal`], which is a page too.
pub async fn answer(request: &Request, session: &Session<'_>) -> Result<Page, Refusal> {
    match request.interaction {
        Interaction::Home => browse::home(request, session).await,
        Interaction::Register => register::form(request, session).await,
        Interaction::RegisterUser => register::store(request, session).await,
        Interaction::Browse => Ok(browse::browse(request)),
        Interaction::BrowseCategories => browse::categories(request, session).await,
        Interaction::SearchItemsInCategory => browse::items_in_category(request, session).await,
        Interaction::BrowseRegions => browse::regions(request, session).await,
        Interaction::BrowseCategoriesInRegion => browse::region(request, session).await,
        Interaction::SearchItemsInRegion => browse::items_in_region(request, session).await,
        Interaction::ViewItem => item::view(request, session).await,
        Interaction::ViewUserInfo => user::view(request, session).await,
        Interaction::ViewBidHistory => item::bids(request, session).await,
        Interaction::BuyNowAuth => buy_now::login(request, session).await,
        Interaction::BuyNow => buy_now::form(request, session).await,
        Interaction::StoreBuyNow => buy_now::store(request, session).await,
        Interaction::PutBidAuth => bid::login(request, session).await,
        Interaction::PutBid => bid::form(request, session).await,
        Interaction::StoreBid => bid::store(request, session).await,
        Interaction::PutCommentAuth => comment::login(request, session).await,
        Interaction::PutComment => comment::form(request, session).await,
        Interaction::StoreComment => comment::store(request, session).await,
        Interaction::Sell => Ok(sell::login(request)),
        Interaction::SelectCategoryToSellItem => sell::categories(request, session).await,
        Interaction::SellItemForm => sell::form(request, session).await,
        Interaction::RegisterItem => sell::store(request, session).await,
        Interaction::AboutMeAuth => Ok(about_me::login(request)),
        Interaction::AboutMe => about_me::view(request, session).await,
    }
}
