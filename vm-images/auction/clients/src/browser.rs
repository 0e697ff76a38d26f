//! What a client has in its browser and in its head, and the requests that follow from it: each for a page about
//! what it has chosen, with what the right page must then say.

use crate::page::{Page, WrongPage};
use crate::request::{PageRequest, Size};
use rand::seq::IndexedRandom;
use rand::Rng;
use spare_auction_interactions::{Interaction, REGIONS};

/// The password of all users that clients register.
const NEW_PASSWORD: &str = "emulated";

/// Who the client is logged in as.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: u64,
    nickname: String,
    password: String,
}

/// The item the client looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub(crate) id: u64,
    /// Unknown until the item's page was seen.
    pub(crate) seller: Option<u64>,
    /// What the next bid must at least be, in cents.
    pub(crate) minimum: u64,
    pub(crate) has_buy_now: bool,
    pub(crate) ended: bool,
}

impl Item {
    pub(crate) fn unseen(id: u64) -> Item {
        Item {
            id,
            seller: None,
            minimum: 0,
            has_buy_now: true,
            ended: false,
        }
    }

    /// What the item's page says.
    ///
    /// # Errors
    /// What is missing on the page.
    pub(crate) fn seen(page: &Page<'_>) -> Result<Item, WrongPage> {
        Ok(Item {
            id: page.main.number("data-item")?,
            seller: Some(page.main.number("data-seller")?),
            minimum: page.main.number("data-minimum")?,
            has_buy_now: page.main.number("data-buy-now")? > 0,
            ended: page.main.number("data-ended")? == 1,
        })
    }
}

/// What the last list of items was of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Listing {
    pub(crate) category: u64,
    pub(crate) region: u64,
    pub(crate) page: u64,
    pub(crate) more: bool,
}

/// What a client is looking at, and as whom.
pub(crate) struct Browser {
    pub(crate) user: User,
    pub(crate) item: Item,
    pub(crate) listing: Listing,
    /// Items that the page links to, and whether they are on sale.
    pub(crate) linked_items: Vec<(u64, bool)>,
    /// Users that it links to.
    pub(crate) linked_users: Vec<u64>,
    /// What the nicknames of users whom this client registers begin with.
    names: String,
    /// How many users it tried to register.
    registered: u64,
    size: Size,
}

impl Browser {
    /// Somebody whom the data have, at an item that was not looked at yet. Users who are registered get `names` and
    /// a number.
    pub(crate) fn new(names: String, size: Size, rng: &mut impl Rng) -> Browser {
        let user = populated_user(rng, size.users());
        let item = Item::unseen(rng.random_range(1..=size.items()));
        Browser {
            user,
            item,
            listing: Listing::default(),
            linked_items: vec![],
            linked_users: vec![],
            names,
            registered: 0,
            size,
        }
    }

    /// Is somebody else from now on, whom the data have.
    pub(crate) fn log_in_anew(&mut self, rng: &mut impl Rng) {
        self.user = populated_user(rng, self.size.users());
    }

    /// Is the user who was registered last, and got this number.
    pub(crate) fn log_in_registered(&mut self, id: u64) {
        self.user = User {
            id,
            nickname: self.new_nickname(),
            password: NEW_PASSWORD.to_owned(),
        };
    }

    fn new_nickname(&self) -> String {
        format!("{}{}", self.names, self.registered)
    }

    /// The request for a page about what the client has chosen.
    pub(crate) fn request(&mut self, interaction: Interaction, rng: &mut impl Rng) -> PageRequest {
        let plain = PageRequest::new(interaction);
        match interaction {
            Interaction::RegisterUser
            | Interaction::StoreComment
            | Interaction::RegisterItem
            | Interaction::StoreBid
            | Interaction::StoreBuyNow => self.write_request(plain, rng),
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
                let user = self.choose_user(rng);
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

    fn write_request(&mut self, plain: PageRequest, rng: &mut impl Rng) -> PageRequest {
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
                    .with("region", rng.random_range(1..=REGIONS))
                    .expect("data-nickname", nickname)
            }
            Interaction::StoreComment => self
                .logged_in(self.about_seller(plain))
                .with("rating", rng.random_range(-5..=5))
                .with("comment", "As described & quickly sent: \"thank you\"."),
            Interaction::RegisterItem => self.sale(plain, rng),
            Interaction::StoreBid => {
                // Whole units above the minimum, like a person.
                let more = 100 * rng.random_range(0..5);
                let bid = self.item.minimum.max(100).saturating_add(more);
                self.logged_in(self.about_item(plain))
                    .with("bid", decimal(bid))
            }
            _ => self.logged_in(self.about_item(plain)).with("quantity", 1),
        }
    }

    fn sale(&mut self, plain: PageRequest, rng: &mut impl Rng) -> PageRequest {
        let category = self.listing.category.max(1);
        let price = 100 * rng.random_range(1..=100);
        let request = plain
            .with("category", category)
            .with("nickname", &self.user.nickname)
            .with("password", &self.user.password)
            .with("name", format!("Thing of {}", self.user.nickname))
            .with("description", "Hardly used; from a home without smokers.")
            .with("initial_price", decimal(price))
            .with("quantity", rng.random_range(1..=10))
            .with("duration", 7)
            .expect("data-seller", self.user.id)
            .expect("data-category", category);
        if rng.random_bool(0.5) {
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

    fn choose_user(&mut self, rng: &mut impl Rng) -> u64 {
        let linked = self.linked_users.choose(rng).copied();
        linked
            .or(self.item.seller)
            .unwrap_or_else(|| rng.random_range(1..=self.size.users()))
    }
}

fn populated_user(rng: &mut impl Rng, users: u64) -> User {
    let id = rng.random_range(1..=users);
    User {
        id,
        nickname: format!("user{id}"),
        password: format!("password{id}"),
    }
}

/// `12.34` for 1234.
fn decimal(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

/// 1234 for `12.34`.
pub(crate) fn cents(decimal: &str) -> Option<u64> {
    let (units, cents) = decimal.split_once('.')?;
    let units: u64 = units.parse().ok()?;
    units.checked_mul(100)?.checked_add(cents.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_survive_their_decimal_form() {
        for amount in [0, 5, 100, 1234, 99_999_999] {
            assert_eq!(cents(&decimal(amount)), Some(amount));
        }
    }
}
