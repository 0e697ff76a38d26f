//! How an emulated client moves from page to page: the figures of RUBiS, the auction site benchmark
//! (sheets `default_transitions` and `browse_only_transitions_7` of its workload folder).
//!
//! A sheet has a column for each page the client is on and a row for each page it may go to; three
//! more rows hold the probabilities of going back, of ending the session, and of using the links in
//! the page's header, and a last column the think time. The header's share is already spread over
//! its targets in the other rows. The client draws a number and takes the first row, from the top,
//! at which the column's running sum exceeds it. So where a column sums to more than 1 its last rows
//! are reached more rarely than they say, and where it sums to less the client loads the same page
//! again; both are kept, as they are part of what the sheets describe.

use rand::Rng;
use spare_auction_interactions::Interaction::{self, *};
use std::time::Duration;

/// What a client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    To(Interaction),
    /// Loads the page before this one again.
    Back,
    /// Leaves; the next session begins at the home page.
    EndOfSession,
}

/// The pages a client came through, for going back.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pages: Vec<Interaction>,
}

/// The longest chain of pages that a client can go back through.
const HISTORY_PAGES_MAX: usize = 64;

impl History {
    /// Follows a link from page `from` to page `to`.
    pub(crate) fn go(
        &mut self,
        table: &TransitionTable,
        from: Interaction,
        to: Interaction,
    ) -> Interaction {
        if !table.can_go_back(to) || self.pages.len() >= HISTORY_PAGES_MAX {
            self.pages.clear();
        }
        self.pages.push(from);
        to
    }

    /// The page before this one; the home page if there is none.
    pub(crate) fn back(&mut self) -> Interaction {
        self.pages.pop().unwrap_or(Home)
    }

    /// What came before is forgotten; a new session begins at the home page.
    pub(crate) fn end(&mut self) -> Interaction {
        self.pages.clear();
        Home
    }
}

/// Which of RUBiS's two workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mix {
    /// Reads and writes.
    Default,
    /// Reads only.
    Browse,
}

/// How the links in the header of every page are used; with the end of the session they make 1.
struct Header {
    home: f64,
    /// Flat: the sheets do not scale this one by the page's header share.
    register: f64,
    browse: f64,
    sell: f64,
    about_me: f64,
}

impl Mix {
    fn header(self) -> Header {
        match self {
            Mix::Default => Header {
                home: 0.01,
                register: 0.01,
                browse: 0.58,
                sell: 0.05,
                about_me: 0.15,
            },
            Mix::Browse => Header {
                home: 0.05,
                register: 0.0,
                browse: 0.75,
                sell: 0.0,
                about_me: 0.0,
            },
        }
    }

    /// The links of the page itself, without its header.
    fn links(self, from: Interaction) -> &'static [(Interaction, f64)] {
        match (self, from) {
            (Mix::Default, Home) => &[
                (Register, 0.07),
                (Browse, 0.7),
                (Sell, 0.05),
                (AboutMeAuth, 0.15),
            ],
            (Mix::Browse, Home) => &[(Browse, 1.0)],
            (_, Register) => &[(RegisterUser, 0.99)],
            (_, Browse) => &[(BrowseCategories, 0.7), (BrowseRegions, 0.29)],
            (_, BrowseCategories) => &[(SearchItemsInCategory, 0.99)],
            (_, BrowseRegions) => &[(BrowseCategoriesInRegion, 0.99)],
            (_, BrowseCategoriesInRegion) => &[(SearchItemsInRegion, 0.99)],
            (Mix::Default, SearchItemsInCategory) => &[
                (SearchItemsInCategory, 0.4),
                (ViewItem, 0.5),
                (PutBidAuth, 0.09),
            ],
            (Mix::Default, SearchItemsInRegion) => &[
                (SearchItemsInRegion, 0.4),
                (ViewItem, 0.5),
                (PutBidAuth, 0.09),
            ],
            (Mix::Browse, SearchItemsInCategory) => {
                &[(SearchItemsInCategory, 0.44), (ViewItem, 0.55)]
            }
            (Mix::Browse, SearchItemsInRegion) => &[(SearchItemsInRegion, 0.44), (ViewItem, 0.55)],
            (Mix::Default, ViewItem) => &[
                (ViewUserInfo, 0.1),
                (ViewBidHistory, 0.05),
                (BuyNowAuth, 0.1),
                (PutBidAuth, 0.22),
                (PutComment, 0.02),
            ],
            (Mix::Browse, ViewItem) => &[(ViewUserInfo, 0.15), (ViewBidHistory, 0.1)],
            (_, ViewUserInfo | ViewBidHistory) => &[(ViewUserInfo, 0.19)],
            (_, BuyNowAuth) => &[(BuyNow, 0.99)],
            (_, BuyNow) => &[(StoreBuyNow, 0.99)],
            (_, PutBidAuth) => &[(PutBid, 0.99)],
            (_, PutBid) => &[
                (ViewUserInfo, 0.05),
                (ViewBidHistory, 0.15),
                (StoreBid, 0.74),
                (PutComment, 0.05),
            ],
            (_, PutCommentAuth) => &[(PutComment, 0.99)],
            (_, PutComment) => &[(StoreComment, 0.99)],
            (_, Sell) => &[(SelectCategoryToSellItem, 0.99)],
            (_, SelectCategoryToSellItem) => &[(SellItemForm, 0.99)],
            (_, SellItemForm) => &[(RegisterItem, 0.99)],
            (_, AboutMeAuth) => &[(AboutMe, 0.99)],
            (Mix::Default, AboutMe) => &[(ViewItem, 0.65), (ViewUserInfo, 0.05), (PutBidAuth, 0.1)],
            (Mix::Browse, AboutMe) => &[(ViewItem, 0.75), (ViewUserInfo, 0.05)],
            (_, RegisterUser | StoreBuyNow | StoreBid | StoreComment | RegisterItem) => &[],
        }
    }

    fn back(self, from: Interaction) -> f64 {
        match (self, from) {
            (Mix::Default, ViewItem) => 0.5,
            (Mix::Browse, ViewItem) => 0.74,
            (_, ViewUserInfo | ViewBidHistory) => 0.8,
            _ => 0.0,
        }
    }

    /// The think time after a page.
    fn think_time(self, after: Interaction) -> Duration {
        if self == Mix::Browse {
            return Duration::from_secs(7);
        }
        Duration::from_secs(match after {
            Browse | StoreBuyNow | StoreBid | StoreComment | RegisterItem => 2,
            Home
            | RegisterUser
            | BrowseCategories
            | BrowseRegions
            | BrowseCategoriesInRegion
            | SelectCategoryToSellItem
            | AboutMeAuth => 3,
            BuyNowAuth | BuyNow | PutBidAuth | PutBid | PutCommentAuth | PutComment | Sell => 5,
            SearchItemsInCategory
            | SearchItemsInRegion
            | ViewItem
            | ViewUserInfo
            | ViewBidHistory
            | SellItemForm
            | AboutMe => 7,
            Register => 10,
        })
    }
}

/// The share of a page's clicks that go to its header.
fn header_share(from: Interaction) -> f64 {
    match from {
        Home => 0.0,
        AboutMe => 0.2,
        from if from.is_write() => 1.0,
        _ => 0.01,
    }
}

fn end_of_session(from: Interaction) -> f64 {
    match from {
        SearchItemsInCategory | SearchItemsInRegion | ViewItem | ViewUserInfo | AboutMe => 0.2,
        from if from.is_write() => 0.2,
        _ => 0.0,
    }
}

/// One of the two workloads, ready to be drawn from.
#[derive(Clone, Debug)]
pub(crate) struct TransitionTable {
    mix: Mix,
    /// For each interaction what may follow, in the order of the sheets' rows.
    columns: Vec<Vec<(Step, f64)>>,
}

impl TransitionTable {
    #[must_use]
    pub(crate) fn new(mix: Mix) -> TransitionTable {
        let columns = Interaction::ALL.map(|from| column(mix, from)).to_vec();
        TransitionTable { mix, columns }
    }

    /// Draws what a client that is on `from` does next.
    pub(crate) fn next(&self, from: Interaction, rng: &mut impl Rng) -> Step {
        let drawn: f64 = rng.random();
        let mut sum = 0.0;
        for &(step, probability) in &self.columns[from as usize] {
            sum += probability;
            if drawn < sum {
                return step;
            }
        }
        Step::To(from)
    }

    /// Whether a client on this page may go back from it; if not, its history is of no more use.
    #[must_use]
    pub(crate) fn can_go_back(&self, from: Interaction) -> bool {
        self.mix.back(from) > 0.0
    }

    /// The think time after a page.
    #[must_use]
    pub(crate) fn think_time(&self, after: Interaction) -> Duration {
        self.mix.think_time(after)
    }
}

fn column(mix: Mix, from: Interaction) -> Vec<(Step, f64)> {
    let header = mix.header();
    let share = header_share(from);
    // A page does not link to itself in its header, except the two with forms; and the page after a
    // registration does not offer another.
    let register = match from {
        Home | Register | RegisterUser => 0.0,
        _ => header.register,
    };
    let browse = if from == Browse {
        0.0
    } else {
        share * header.browse
    };
    let mut steps: Vec<(Step, f64)> = mix
        .links(from)
        .iter()
        .copied()
        .chain([
            (Home, share * header.home),
            (Register, register),
            (Browse, browse),
            (Sell, share * header.sell),
            (AboutMeAuth, share * header.about_me),
        ])
        .map(|(to, probability)| (Step::To(to), probability))
        .chain([
            (Step::Back, mix.back(from)),
            (Step::EndOfSession, end_of_session(from)),
        ])
        .filter(|&(_, probability)| probability > 0.0)
        .collect();
    steps.sort_by_key(|&(step, _)| step);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{rngs::SmallRng, SeedableRng};

    fn sum_without_end(mix: Mix, from: Interaction) -> f64 {
        let steps = column(mix, from);
        let sum: f64 = steps.iter().map(|(_, p)| p).sum();
        sum - end_of_session(from)
    }

    #[test]
    fn every_column_sums_to_about_one_apart_from_the_end_of_the_session() {
        for mix in [Mix::Default, Mix::Browse] {
            for from in Interaction::ALL {
                let sum = sum_without_end(mix, from) + if from.is_write() { 0.2 } else { 0.0 };
                assert!((0.95..1.02).contains(&sum), "{mix:?} {from:?}: {sum}");
            }
        }
    }

    #[test]
    fn no_column_names_a_page_twice() {
        for mix in [Mix::Default, Mix::Browse] {
            for from in Interaction::ALL {
                let steps = column(mix, from);
                assert!(
                    steps.windows(2).all(|w| w[0].0 < w[1].0),
                    "{mix:?} {from:?}"
                );
            }
        }
    }

    /// Walks like a client and counts.
    fn walk(mix: Mix, steps: usize) -> Vec<Interaction> {
        let table = TransitionTable::new(mix);
        let mut rng = SmallRng::seed_from_u64(1);
        let mut history = History::default();
        let mut at = Home;
        (0..steps)
            .map(|_| {
                at = match table.next(at, &mut rng) {
                    Step::To(to) => history.go(&table, at, to),
                    Step::Back => history.back(),
                    Step::EndOfSession => history.end(),
                };
                at
            })
            .collect()
    }

    #[test]
    fn the_browse_mix_writes_nothing() {
        assert!(!walk(Mix::Browse, 50_000).iter().any(|i| i.is_write()));
    }

    #[test]
    fn nine_in_ten_requests_of_the_default_mix_are_reads_and_all_pages_are_reached() {
        let visited = walk(Mix::Default, 200_000);
        let reads = visited.iter().filter(|i| !i.is_write()).count() as f64;
        let share = reads / visited.len() as f64;
        assert!((0.89..0.93).contains(&share), "{share}");
        let missing: Vec<_> = Interaction::ALL
            .iter()
            .filter(|i| !visited.contains(i))
            .collect();
        // The sheets lead nowhere to the log-in form before a comment.
        assert_eq!(missing, [&PutCommentAuth]);
    }
}
