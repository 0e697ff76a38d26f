//! What the clients of one run have seen, held against what they see next.
//!
//! An item's bids only ever increase. So a page that was asked for after another client had received
//! its page must show at least what that page showed; and a client's own bids must be in what it
//! asks for afterwards.

use crate::page::{Attributes, Page, WrongPage};
use spare_auction_interactions::{Interaction, LIST_ROWS_MAX};
use std::collections::HashMap;
use std::time::Instant;

/// The newest that was seen of one item.
#[derive(Clone, Copy, Debug)]
struct Seen {
    bids: u64,
    max_bid: u64,
    /// When the page that showed it had arrived.
    at: Instant,
}

/// What all clients together have seen.
#[derive(Debug, Default)]
pub(crate) struct Knowledge {
    items: HashMap<u64, Seen>,
    /// Items of which a next bid is known, for clients that bid without looking.
    biddable: Vec<u64>,
    minimum: HashMap<u64, u64>,
}

impl Knowledge {
    /// Holds all that a page says about items against what had arrived before it was asked for, and
    /// remembers it.
    ///
    /// # Errors
    /// Which item went backwards.
    pub(crate) fn check(&mut self, page: &Page<'_>, asked_at: Instant) -> Result<(), WrongPage> {
        let rows = page.rows_about("data-item").map(|row| &row.attributes);
        for attributes in std::iter::once(&page.main).chain(rows) {
            let has_bids = attributes.get("data-bids").is_some();
            if has_bids && attributes.get("data-item").is_some() {
                self.check_item(attributes, asked_at)?;
            }
        }
        let item = page.main.number("data-item");
        if let (Ok(item), Some("1")) = (&item, page.main.get("data-ended")) {
            self.forget(*item);
        } else if let (Ok(item), Ok(minimum)) = (item, page.main.number("data-minimum")) {
            self.learn_minimum(item, minimum);
        }
        Ok(())
    }

    fn check_item(&mut self, of: &Attributes<'_>, asked_at: Instant) -> Result<(), WrongPage> {
        let item = of.number("data-item")?;
        let (bids, max_bid) = (of.number("data-bids")?, of.number("data-max-bid")?);
        let at = Instant::now();
        let seen = self.items.entry(item).or_insert(Seen { bids, max_bid, at });
        let went_back = bids < seen.bids || max_bid < seen.max_bid;
        if went_back && seen.at < asked_at {
            return Err(WrongPage(format!(
                "item {item} has {bids} bids up to {max_bid}, but had {} up to {} in a page received before",
                seen.bids, seen.max_bid
            )));
        }
        if bids > seen.bids || max_bid > seen.max_bid {
            *seen = Seen {
                bids: bids.max(seen.bids),
                max_bid: max_bid.max(seen.max_bid),
                at,
            };
        }
        Ok(())
    }

    /// Remembers what the next bid on an item must at least be.
    pub(crate) fn learn_minimum(&mut self, item: u64, minimum: u64) {
        if self.minimum.insert(item, minimum).is_none() {
            self.biddable.push(item);
        }
    }

    /// An item is not on sale any more.
    pub(crate) fn forget(&mut self, item: u64) {
        if self.minimum.remove(&item).is_some() {
            self.biddable.retain(|&i| i != item);
        }
    }

    /// Items of which a minimum is known.
    #[must_use]
    pub(crate) fn biddable(&self) -> &[u64] {
        &self.biddable
    }

    /// What the next bid on an item must at least be, if that was seen.
    #[must_use]
    pub(crate) fn minimum(&self, item: u64) -> Option<u64> {
        self.minimum.get(&item).copied()
    }
}

/// A bid that a client placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnBid {
    /// Its number, from the page that confirmed it.
    pub(crate) bid: u64,
    pub(crate) item: u64,
    pub(crate) user: u64,
    /// In cents.
    pub(crate) amount: u64,
}

/// How many of its bids a client remembers.
const OWN_BIDS_MAX: usize = 64;

/// The newest bids of one client.
#[derive(Debug, Default)]
pub(crate) struct OwnBids {
    bids: Vec<OwnBid>,
}

impl OwnBids {
    /// Remembers a bid that was accepted.
    pub(crate) fn add(&mut self, bid: OwnBid) {
        if self.bids.len() == OWN_BIDS_MAX {
            self.bids.remove(0);
        }
        self.bids.push(bid);
    }

    /// The items that were bid on, one for each bid.
    pub(crate) fn items(&self) -> impl Iterator<Item = u64> + '_ {
        self.bids.iter().map(|bid| bid.item)
    }

    /// Holds a page against the bids that must be on it. Returns a bid whose item is missing among
    /// the items that its user bids on: right only if the item is not on sale any more.
    ///
    /// # Errors
    /// Which bid is missing or differs.
    pub(crate) fn check(
        &self,
        interaction: Interaction,
        page: &Page<'_>,
    ) -> Result<Option<OwnBid>, WrongPage> {
        match interaction {
            Interaction::ViewBidHistory => self.check_history(page).map(|()| None),
            Interaction::AboutMe => self.missing_in_about_me(page),
            _ => Ok(None),
        }
    }

    /// An item is not on sale any more.
    pub(crate) fn forget(&mut self, item: u64) {
        self.bids.retain(|bid| bid.item != item);
    }

    fn check_history(&self, page: &Page<'_>) -> Result<(), WrongPage> {
        let item = page.main.number("data-item")?;
        let shown: Vec<u64> = page.ids("data-bid").collect();
        let all_shown = shown.len() < LIST_ROWS_MAX;
        for own in self.bids.iter().filter(|bid| bid.item == item) {
            let row = page
                .rows_about("data-bid")
                .find(|row| row.attributes.number("data-bid") == Ok(own.bid));
            match row {
                Some(row) => {
                    let user = row.attributes.number("data-user")?;
                    let amount = row.attributes.number("data-amount")?;
                    if (user, amount) != (own.user, own.amount) {
                        return Err(WrongPage(format!(
                            "{own:?} is shown as of user {user} with {amount}"
                        )));
                    }
                }
                None if all_shown || shown.iter().any(|&bid| bid < own.bid) => {
                    return Err(WrongPage(format!("{own:?} is missing in the bid history")));
                }
                None => {}
            }
        }
        Ok(())
    }

    fn missing_in_about_me(&self, page: &Page<'_>) -> Result<Option<OwnBid>, WrongPage> {
        let user = page.main.number("data-user")?;
        if page.main.number("data-bidding")? >= LIST_ROWS_MAX as u64 {
            return Ok(None);
        }
        let listed: Vec<u64> = page.ids("data-item").collect();
        let missing = |own: &&OwnBid| own.user == user && !listed.contains(&own.item);
        Ok(self.bids.iter().find(missing).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(bids: u64, max_bid: u64) -> String {
        format!(
            "<main data-page=\"ViewItem\" data-item=\"3\" data-bids=\"{bids}\" \
             data-max-bid=\"{max_bid}\" data-minimum=\"{}\">",
            max_bid + 100
        )
    }

    fn check(knowledge: &mut Knowledge, page: &str, asked_at: Instant) -> Result<(), WrongPage> {
        knowledge.check(&Page::parse(page).expect("a page"), asked_at)
    }

    #[test]
    fn an_item_that_lost_a_bid_is_noticed() {
        let mut knowledge = Knowledge::default();
        check(&mut knowledge, &item(2, 500), Instant::now()).expect("first");
        check(&mut knowledge, &item(3, 600), Instant::now()).expect("more");
        let error = check(&mut knowledge, &item(2, 500), Instant::now()).expect_err("less");
        assert!(error.0.contains("item 3"), "{error}");
        assert_eq!(knowledge.minimum(3), Some(700));
    }

    #[test]
    fn a_page_asked_for_before_the_newer_one_arrived_may_be_older() {
        let mut knowledge = Knowledge::default();
        let before = Instant::now();
        check(&mut knowledge, &item(3, 600), before).expect("newer");
        check(&mut knowledge, &item(2, 500), before).expect("asked for earlier");
    }

    const OWN: OwnBid = OwnBid {
        bid: 88,
        item: 3,
        user: 5,
        amount: 1234,
    };

    fn history(rows: &[(u64, u64, u64)]) -> String {
        let row = |(bid, user, amount): &(u64, u64, u64)| {
            format!("<tr data-bid=\"{bid}\" data-user=\"{user}\" data-amount=\"{amount}\">")
        };
        let rows: String = rows.iter().map(row).collect();
        format!("<main data-page=\"ViewBidHistory\" data-item=\"3\">{rows}")
    }

    fn check_own(interaction: Interaction, page: &str) -> Result<Option<OwnBid>, WrongPage> {
        let mut own = OwnBids::default();
        own.add(OWN);
        own.check(interaction, &Page::parse(page).expect("a page"))
    }

    #[test]
    fn an_own_bid_must_be_in_the_history_as_it_was_placed() {
        let check = |rows: &[_]| check_own(Interaction::ViewBidHistory, &history(rows));
        check(&[(90, 7, 2000), (88, 5, 1234)]).expect("there");
        check(&[(90, 7, 2000)]).expect_err("missing");
        check(&[(88, 5, 1233)]).expect_err("another amount");
        let newer: Vec<_> = (0..LIST_ROWS_MAX as u64)
            .map(|i| (100 + i, 7, 5000))
            .collect();
        check(&newer).expect("25 newer bids came");
    }

    #[test]
    fn an_item_one_bids_on_that_is_not_among_ones_items_is_noticed() {
        let page = |user: u64, items: &str| {
            format!(
                "<main data-page=\"AboutMe\" data-user=\"{user}\" data-bidding=\"1\">\
                 <section id=\"bidding\">{items}</section>"
            )
        };
        let check = |page: &str| check_own(Interaction::AboutMe, page);
        let there = "<tr data-item=\"3\" data-bids=\"1\" data-max-bid=\"1234\">";
        assert_eq!(check(&page(5, there)), Ok(None));
        assert_eq!(check(&page(5, "")), Ok(Some(OWN)));
        assert_eq!(check(&page(6, "")), Ok(None), "somebody else's page");
    }
}
