//! One emulated client: a person with a browser who wanders through the auction.

use crate::browser::{cents, Browser, Item};
use crate::knowledge::{OwnBid, OwnBids};
use crate::page::{Page, WrongPage};
use crate::request::PageRequest;
use crate::run::Run;
use crate::statistics::Outcome;
use crate::transitions::{History, Step};
use crate::verdict::{judge, Verdict};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::Rng;
use spare_auction_interactions::{Interaction, CATEGORIES, REGIONS};
use spare_client::http::{Connection, Reply};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a client draws again when the page it is on does not have the link that was drawn.
const DRAWS_MAX: usize = 32;
/// How far a client that leaves out reads follows the table to the next write.
const STEPS_MAX: usize = 1_000;
/// How long a client waits after a failed request before its next.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);
/// A client that bids without looking first looks at items until this many are known.
const BIDDABLE_MIN: usize = 32;
/// How often a client goes to an item it has bid on instead of another one.
const REVISIT_PROBABILITY: f64 = 0.25;

pub(crate) struct Client {
    run: Arc<Run>,
    /// One to each gateway.
    connections: Vec<Connection>,
    /// Index of the connection in use; a client changes it when a gateway fails.
    gateway: usize,
    /// Writes that were sent with a key.
    keys: u64,
    rng: SmallRng,
    at: Interaction,
    history: History,
    browser: Browser,
    own: OwnBids,
    number: usize,
}

impl Client {
    pub(crate) fn new(
        run: Arc<Run>,
        connections: Vec<Connection>,
        mut rng: SmallRng,
        number: usize,
    ) -> Client {
        let names = format!("{}c{number}n", run.nonce);
        let browser = Browser::new(names, run.options.size, &mut rng);
        Client {
            run,
            gateway: number % connections.len().max(1),
            connections,
            keys: 0,
            rng,
            at: Interaction::Home,
            history: History::default(),
            browser,
            own: OwnBids::default(),
            number,
        }
    }

    /// Loads pages until the run is over. Returns how often a connection was opened.
    pub(crate) async fn browse(mut self) -> u64 {
        if !self.run.take_request() {
            return 0;
        }
        self.load(Interaction::Home).await;
        while self.think().await && self.run.take_request() {
            let write_share = self.run.write_share();
            if self.run.writes_only() {
                self.write_next().await;
            } else if self.rng.random_bool(write_share) {
                self.bid_without_looking().await;
            } else {
                self.follow_the_table().await;
            }
        }
        self.connections.iter().map(Connection::opened).sum()
    }

    /// Waits as a person would; false when the run ends meanwhile.
    async fn think(&mut self) -> bool {
        let time = self
            .run
            .table
            .think_time(self.at)
            .mul_f64(self.run.options.think_scale);
        if time.is_zero() {
            // Replies may be there already: other clients get their turn.
            tokio::task::yield_now().await;
        }
        self.run.sleep(time).await
    }

    async fn follow_the_table(&mut self) {
        self.step();
        self.load(self.at).await;
    }

    /// Goes to the next page that the table says, without loading it.
    fn step(&mut self) {
        self.at = match self.draw() {
            Step::To(to) => {
                self.go_to(to);
                self.history.go(&self.run.table, self.at, to)
            }
            Step::Back => self.history.back(),
            Step::EndOfSession => {
                self.browser.log_in_anew(&mut self.rng);
                self.history.end()
            }
        };
    }

    /// Follows the table to the next write. Of the pages before it only the item's is loaded, and only
    /// if the write is about an item that the client has not seen.
    async fn write_next(&mut self) {
        for _ in 0..STEPS_MAX {
            self.step();
            if self.at.is_write() {
                break;
            }
        }
        let about_item = self.at.is_write()
            && !matches!(
                self.at,
                Interaction::RegisterUser | Interaction::RegisterItem
            );
        if about_item && self.browser.item.seller.is_none() {
            self.load(Interaction::ViewItem).await;
            let possible = match self.at {
                Interaction::StoreBuyNow => {
                    self.browser.item.has_buy_now && !self.browser.item.ended
                }
                Interaction::StoreBid => !self.browser.item.ended,
                _ => true,
            };
            if !possible || !self.run.take_request() {
                // Nothing led to this page: there is no way back from it.
                self.history.end();
                self.at = Interaction::ViewItem;
                return;
            }
        }
        self.load(self.at).await;
    }

    /// The next step, among those that the page in the browser offers.
    fn draw(&mut self) -> Step {
        let item = self.browser.item;
        for _ in 0..DRAWS_MAX {
            let step = self.run.table.next(self.at, &mut self.rng);
            let offered = match step {
                Step::To(
                    Interaction::BuyNowAuth | Interaction::BuyNow | Interaction::StoreBuyNow,
                ) => item.has_buy_now && !item.ended,
                Step::To(Interaction::PutBid | Interaction::StoreBid) => !item.ended,
                Step::To(Interaction::PutBidAuth) => {
                    !item.ended
                        || self
                            .browser
                            .linked_items
                            .iter()
                            .any(|&(_, on_sale)| on_sale)
                }
                _ => true,
            };
            if offered {
                return step;
            }
        }
        Step::To(Interaction::Home)
    }

    /// Chooses what the page to go to will be about.
    fn go_to(&mut self, to: Interaction) {
        match to {
            Interaction::ViewItem | Interaction::PutBidAuth => self.choose_item(to),
            Interaction::SearchItemsInCategory | Interaction::SearchItemsInRegion => {
                self.choose_listing(to);
            }
            Interaction::BrowseCategoriesInRegion => {
                self.browser.listing.region = self.rng.random_range(1..=REGIONS);
            }
            Interaction::SellItemForm => {
                self.browser.listing.category = self.rng.random_range(1..=CATEGORIES);
            }
            _ => {}
        }
    }

    fn choose_item(&mut self, to: Interaction) {
        if to == Interaction::PutBidAuth && self.at == Interaction::ViewItem {
            return;
        }
        let own: Vec<u64> = self.own.items().collect();
        let linked: Vec<u64> = self
            .browser
            .linked_items
            .iter()
            .filter(|&&(_, on_sale)| on_sale || to == Interaction::ViewItem)
            .map(|&(id, _)| id)
            .collect();
        let revisit = self.rng.random_bool(REVISIT_PROBABILITY);
        let id = match (own.choose(&mut self.rng), linked.choose(&mut self.rng)) {
            (Some(&item), _) if revisit => item,
            (_, Some(&item)) => item,
            _ => self.rng.random_range(1..=self.run.options.size.items()),
        };
        self.browser.item = Item::unseen(id);
    }

    fn choose_listing(&mut self, to: Interaction) {
        if self.at == to && self.browser.listing.more {
            self.browser.listing.page += 1;
        } else {
            self.browser.listing.category = self.rng.random_range(1..=CATEGORIES);
            self.browser.listing.page = 0;
        }
    }

    /// A bid of a client that does not follow the table: for tests that want many writes. What is in
    /// its browser stays there.
    async fn bid_without_looking(&mut self) {
        let (item, items) = (
            self.browser.item,
            std::mem::take(&mut self.browser.linked_items),
        );
        let users = std::mem::take(&mut self.browser.linked_users);
        self.bid_on_some_item().await;
        (
            self.browser.item,
            self.browser.linked_items,
            self.browser.linked_users,
        ) = (item, items, users);
    }

    async fn bid_on_some_item(&mut self) {
        let known = self.run.with_knowledge(|k| {
            let enough = k.biddable().len() >= BIDDABLE_MIN;
            let item = k.biddable().choose(&mut self.rng).copied();
            item.filter(|_| enough)
                .and_then(|item| Some((item, k.minimum(item)?)))
        });
        if let Some((item, minimum)) = known {
            self.browser.item = Item {
                minimum,
                ..Item::unseen(item)
            };
            self.load(Interaction::StoreBid).await;
        } else {
            let any = self.rng.random_range(1..=self.run.options.size.items());
            self.browser.item = Item::unseen(any);
            self.load(Interaction::ViewItem).await;
        }
    }

    /// Loads one page and holds it against everything that is known.
    async fn load(&mut self, interaction: Interaction) {
        let asked = self.browser.request(interaction, &mut self.rng);
        let Some((arrived, asked_at)) = self.fetch(&asked).await else {
            return;
        };
        let outcome = match self.examine(&asked, &arrived, asked_at) {
            Ok((outcome, None)) => outcome,
            Ok((outcome, Some(missing))) => self.confirm(outcome, missing).await,
            Err(what) => Outcome::Wrong(what.to_string()),
        };
        self.run
            .count(self.number, &asked, arrived.latency, outcome);
    }

    /// Sends the request, where there are several gateways until one answers; a failure is counted here.
    async fn fetch(&mut self, asked: &PageRequest) -> Option<(Arrived, Instant)> {
        let mut request = asked.to_http();
        self.run.stamp(&mut request, &mut self.rng);
        let several = self.connections.len() > 1;
        if several && asked.interaction.is_write() {
            self.keys += 1;
            let key = format!("{}-{}-{}", self.run.nonce, self.number, self.keys);
            request.headers.push(("idempotency-key", key));
        }
        let asked_at = Instant::now();
        loop {
            let sent = self.connections[self.gateway].send(&request).await;
            let latency = asked_at.elapsed();
            let failure = match sent {
                Ok(reply) => {
                    self.run.record(&request, &reply);
                    if reply.status < 500 {
                        return Some((Arrived { reply, latency }, asked_at));
                    }
                    let body = String::from_utf8_lossy(&reply.body);
                    let start: String = body.chars().take(200).collect();
                    format!("status {}: {}", reply.status, start.trim())
                }
                Err(e) => e.to_string(),
            };
            let again = several && latency < self.run.timeout();
            if again {
                self.gateway = (self.gateway + 1) % self.connections.len();
            } else {
                self.run.count_failure(self.number, asked, failure);
            }
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            if !again {
                return None;
            }
        }
    }

    /// Judges a page and learns from it. Also returns an own bid that seems to be missing.
    fn examine(
        &mut self,
        asked: &PageRequest,
        arrived: &Arrived,
        asked_at: Instant,
    ) -> Result<(Outcome, Option<OwnBid>), WrongPage> {
        match judge(asked, &arrived.reply)? {
            Verdict::Right(page) => {
                self.run.with_knowledge(|k| k.check(&page, asked_at))?;
                let missing = self.own.check(asked.interaction, &page)?;
                self.learn(asked, &page)?;
                Ok((Outcome::Right, missing))
            }
            Verdict::Refused { reason, page } => {
                let item = self.browser.item.id;
                if let ("bid-too-low", Ok(minimum)) = (reason, page.main.number("data-minimum")) {
                    self.run.with_knowledge(|k| k.learn_minimum(item, minimum));
                    self.browser.item.minimum = minimum;
                } else {
                    self.browser.item.ended = true;
                    self.run.with_knowledge(|k| k.forget(item));
                }
                Ok((Outcome::Refused(reason.to_owned()), None))
            }
        }
    }

    /// An item that was bid on leaves its bidders' pages when somebody buys it: looks whether that is
    /// why it is missing.
    async fn confirm(&mut self, outcome: Outcome, missing: OwnBid) -> Outcome {
        let asked = PageRequest::new(Interaction::ViewItem)
            .with("id", missing.item)
            .expect("data-item", missing.item);
        let Some((arrived, _)) = self.fetch(&asked).await else {
            return outcome;
        };
        let ended = match judge(&asked, &arrived.reply) {
            Ok(Verdict::Right(page)) => page.main.get("data-ended") == Some("1"),
            _ => false,
        };
        self.run
            .count(self.number, &asked, arrived.latency, Outcome::Right);
        if ended {
            self.own.forget(missing.item);
            return outcome;
        }
        Outcome::Wrong(format!(
            "the item of {missing:?} is missing among the user's items"
        ))
    }

    fn learn(&mut self, asked: &PageRequest, page: &Page<'_>) -> Result<(), WrongPage> {
        match asked.interaction {
            Interaction::RegisterUser => {
                self.browser
                    .log_in_registered(page.main.number("data-user")?);
            }
            Interaction::ViewItem => self.browser.item = Item::seen(page)?,
            Interaction::PutBid => self.browser.item.minimum = page.main.number("data-minimum")?,
            Interaction::StoreBid => self.learn_own_bid(asked, page)?,
            Interaction::RegisterItem => {
                self.browser.item = Item {
                    seller: Some(self.browser.user.id),
                    ..Item::unseen(page.main.number("data-item")?)
                };
            }
            Interaction::SearchItemsInCategory | Interaction::SearchItemsInRegion => {
                self.browser.listing.more = page.main.number("data-more")? == 1;
            }
            _ => {}
        }
        self.browser.linked_items = page
            .rows_about("data-item")
            .filter_map(|row| {
                let on_sale = matches!(row.section, None | Some("bidding" | "selling"));
                Some((row.attributes.number("data-item").ok()?, on_sale))
            })
            .collect();
        let users = page
            .rows
            .iter()
            .filter_map(|row| row.attributes.number("data-user").ok());
        self.browser.linked_users = users.collect();
        Ok(())
    }

    fn learn_own_bid(&mut self, asked: &PageRequest, page: &Page<'_>) -> Result<(), WrongPage> {
        let amount = asked
            .parameters
            .iter()
            .find(|(name, _)| *name == "bid")
            .and_then(|(_, decimal)| cents(decimal))
            .ok_or("the bid that was sent is not an amount")?;
        let max_bid = page.main.number("data-max-bid")?;
        if max_bid != amount {
            return Err(WrongPage(format!(
                "the highest bid is {max_bid} after a bid of {amount}"
            )));
        }
        let item = self.browser.item.id;
        self.own.add(OwnBid {
            bid: page.main.number("data-bid")?,
            item,
            user: self.browser.user.id,
            amount,
        });
        let minimum = amount.saturating_add(100);
        self.browser.item.minimum = minimum;
        self.run.with_knowledge(|k| k.learn_minimum(item, minimum));
        Ok(())
    }
}

/// A reply and how long it took.
struct Arrived {
    reply: Reply,
    latency: Duration,
}
