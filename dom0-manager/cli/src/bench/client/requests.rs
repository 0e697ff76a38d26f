//! What a client asks for: the request for a page about what it has chosen, and what the right page
//! must then say.

use super::{decimal, Client, NEW_PASSWORD};
use crate::bench::auction::{PageRequest, REGIONS};
use crate::bench::transitions::Interaction;
use rand::seq::IndexedRandom;
use rand::Rng;

impl Client {
    pub(super) fn new_nickname(&self) -> String {
        format!("{}c{}n{}", self.run.nonce, self.number, self.registered)
    }

    /// The request for a page about what the client has chosen.
    pub(super) fn request(&mut self, interaction: Interaction) -> PageRequest {
        let plain = PageRequest::new(interaction);
        match interaction {
            Interaction::RegisterUser
            | Interaction::StoreComment
            | Interaction::RegisterItem
            | Interaction::StoreBid
            | Interaction::StoreBuyNow => self.write_request(plain),
            Interaction::BrowseCategoriesInRegion => plain
                .with("id", self.listing.region.max(1))
                .expect("data-region", self.listing.region.max(1)),
            Interaction::SearchItemsInCategory | Interaction::SearchItemsInRegion => {
                self.listing_request(plain)
            }
            Interaction::ViewItem | Interaction::ViewBidHistory => plain
                .with("id", self.item.id)
                .expect("data-item", self.item.id),
            Interaction::ViewUserInfo => {
                let user = self.choose_user();
                plain.with("id", user).expect("data-user", user)
            }
            Interaction::BuyNowAuth | Interaction::PutBidAuth => self.about_item(plain),
            Interaction::BuyNow | Interaction::PutBid => self.logged_in(self.about_item(plain)),
            Interaction::PutCommentAuth => self.about_seller(plain),
            Interaction::PutComment => self.logged_in(self.about_seller(plain)),
            Interaction::SelectCategoryToSellItem | Interaction::AboutMe => self.logged_in(plain),
            Interaction::SellItemForm => {
                let category = self.listing.category.max(1);
                self.logged_in(
                    plain
                        .with("category", category)
                        .expect("data-category", category),
                )
            }
            _ => plain,
        }
    }

    fn listing_request(&mut self, plain: PageRequest) -> PageRequest {
        let (category, page) = (self.listing.category.max(1), self.listing.page);
        let request = if plain.interaction == Interaction::SearchItemsInRegion {
            let region = self.listing.region.max(1);
            plain
                .with("region", region)
                .with("category", category)
                .expect("data-region", region)
        } else {
            plain.with("id", category)
        };
        request
            .with("page", page)
            .expect("data-category", category)
            .expect("data-page-number", page)
    }

    fn write_request(&mut self, plain: PageRequest) -> PageRequest {
        match plain.interaction {
            Interaction::RegisterUser => {
                // Counted before it is known whether it worked: no name is tried twice.
                self.registered += 1;
                let nickname = self.new_nickname();
                plain
                    .with("firstname", "Emulated")
                    .with("lastname", "Client")
                    .with("nickname", &nickname)
                    .with("password", NEW_PASSWORD)
                    .with("email", format!("{nickname}@example.org"))
                    .with("region", self.rng.random_range(1..=REGIONS))
                    .expect("data-nickname", nickname)
            }
            Interaction::StoreComment => self
                .logged_in(self.about_seller(plain))
                .with("rating", self.rng.random_range(-5..=5))
                .with("comment", "As described & quickly sent: \"thank you\"."),
            Interaction::RegisterItem => self.sale(plain),
            Interaction::StoreBid => {
                // Whole units above the minimum, like a person.
                let more = 100 * self.rng.random_range(0..5);
                let bid = self.item.minimum.max(100).saturating_add(more);
                self.logged_in(self.about_item(plain))
                    .with("bid", decimal(bid))
            }
            _ => self.logged_in(self.about_item(plain)).with("quantity", 1),
        }
    }

    fn sale(&mut self, plain: PageRequest) -> PageRequest {
        let category = self.listing.category.max(1);
        let price = 100 * self.rng.random_range(1..=100);
        let request = plain
            .with("category", category)
            .with("nickname", &self.user.nickname)
            .with("password", &self.user.password)
            .with("name", format!("Thing of {}", self.user.nickname))
            .with("description", "Hardly used; from a home without smokers.")
            .with("initial_price", decimal(price))
            .with("quantity", self.rng.random_range(1..=10))
            .with("duration", 7)
            .expect("data-seller", self.user.id)
            .expect("data-category", category);
        if self.rng.random_bool(0.5) {
            request.with("buy_now", decimal(2 * price))
        } else {
            request
        }
    }

    fn about_item(&self, request: PageRequest) -> PageRequest {
        request
            .with("item", self.item.id)
            .expect("data-item", self.item.id)
    }

    fn about_seller(&self, request: PageRequest) -> PageRequest {
        // The item's page need not have been seen; any user may be commented on.
        let seller = self.item.seller.unwrap_or(1);
        self.about_item(request)
            .with("to", seller)
            .expect("data-to", seller)
    }

    fn logged_in(&self, request: PageRequest) -> PageRequest {
        request
            .with("nickname", &self.user.nickname)
            .with("password", &self.user.password)
            .expect("data-user", self.user.id)
    }

    fn choose_user(&mut self) -> u64 {
        let linked = self.linked_users.choose(&mut self.rng).copied();
        linked
            .or(self.item.seller)
            .unwrap_or_else(|| self.rng.random_range(1..=self.run.options.size.users()))
    }
}
