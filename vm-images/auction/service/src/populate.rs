//! Generates the data that the service starts with, as a script for `psql`.
//!
//! The same sizes and seed give the same bytes. No date depends on the day it runs: everything was
//! put in before [`begin`], and what is on sale ends between 2090 and 2100, so the demo and its
//! tests work at any date. Shares of categories and names of regions are eBay's, as RUBiS has them.

use std::io::{self, Write};

use crate::password;
use crate::populate::figures::{CATEGORIES, REGIONS};
use crate::populate::random::Random;
use crate::populate::words::{description, first_name, last_name, thing};
use crate::queries::BID_STEP_CENTS;
use crate::time::Moment;

mod figures;
mod random;
mod words;

const DAY_US: i64 = 86_400_000_000;

/// When the generated history ends: 2025-01-01T00:00:00Z.
#[must_use]
pub fn begin() -> Moment {
    Moment::EPOCH.plus_us(1_735_689_600_000_000)
}

/// When the first generated item on sale ends: 2090-01-01T00:00:00Z.
fn first_end() -> Moment {
    Moment::EPOCH.plus_us(3_786_912_000_000_000)
}

/// How many rows to generate of each kind, and from which seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Users 1 to `users`, `user{i}` with the password `password{i}`.
    pub users: u64,
    /// Items on sale, 1 to `items`.
    pub items: u64,
    /// Items that ended, `items + 1` to `items + old_items`.
    pub old_items: u64,
    /// Bids on all items.
    pub bids: u64,
    /// Comments on users.
    pub comments: u64,
    /// Purchases at a fixed price.
    pub buy_now: u64,
    /// Everything random follows from it.
    pub seed: u64,
}

impl Sizes {
    /// A thousand users, for tests and the demo.
    pub const TINY: Self = Self {
        users: 1_000,
        items: 1_000,
        old_items: 500,
        bids: 5_000,
        comments: 1_000,
        buy_now: 200,
        seed: 1,
    };
    /// As in the evaluation of SPARE (§5): 100,000 users and 500,000 bids.
    pub const SMALL: Self = Self {
        users: 100_000,
        items: 33_000,
        old_items: 50_000,
        bids: 500_000,
        comments: 100_000,
        buy_now: 10_000,
        seed: 1,
    };

    /// Says what cannot be generated: rows that refer to others need at least one of those.
    ///
    /// # Errors
    /// Which option is too small.
    pub fn check(&self) -> Result<(), SizesError> {
        let rows = self.items + self.old_items + self.bids + self.comments + self.buy_now;
        if self.users == 0 && rows > 0 {
            return Err(SizesError::NoUsers);
        }
        let referring = self.bids + self.comments + self.buy_now;
        if self.items + self.old_items == 0 && referring > 0 {
            return Err(SizesError::NoItems);
        }
        Ok(())
    }
}

/// Numbers of rows that do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizesError {
    /// Everything belongs to somebody.
    #[error("--users must be at least 1 if there is to be anything else")]
    NoUsers,
    /// Bids, comments and purchases are about an item.
    #[error("--items or --old-items must be at least 1 for bids, comments and purchases")]
    NoItems,
}

/// What the rows written so far mean for rows that are written later.
struct Generator<'a, W> {
    sizes: Sizes,
    out: &'a mut W,
    /// The sum of ratings of each user.
    ratings: Vec<i64>,
    /// The number of bids and the highest bid of each item.
    bids: Vec<(i64, i64)>,
}

/// Writes a script for `psql` that fills the tables of [`crate::schema::SQL`].
///
/// # Errors
/// Whatever `out` refuses.
pub fn write(sizes: Sizes, out: &mut impl Write) -> io::Result<()> {
    let mut generator = Generator {
        sizes,
        out,
        ratings: vec![0; slots(sizes.users)],
        bids: vec![(0, 0); slots(sizes.items + sizes.old_items)],
    };
    writeln!(generator.out, "\\set ON_ERROR_STOP on\nBEGIN;")?;
    generator.names("categories", CATEGORIES.iter().map(|(name, _)| *name))?;
    generator.names("regions", REGIONS.iter().copied())?;
    // Bids and comments come before the items and users that carry their sums.
    generator.comments()?;
    generator.bids()?;
    generator.buy_now()?;
    generator.users()?;
    generator.items()?;
    generator.ids()?;
    generator.sequences()?;
    writeln!(generator.out, "COMMIT;\nVACUUM (FREEZE, ANALYZE);")
}

/// As a length of a vector; sizes that do not fit into memory fail at its allocation.
fn slots(rows: u64) -> usize {
    usize::try_from(rows).unwrap_or(usize::MAX)
}

impl<W: Write> Generator<'_, W> {
    /// The random numbers of one row: they depend on nothing but seed, table and row.
    fn random(&self, table: &str, row: u64) -> Random {
        Random::new(self.sizes.seed, table, row)
    }

    fn copy(&mut self, table: &str, columns: &str) -> io::Result<()> {
        writeln!(self.out, "COPY {table} ({columns}) FROM stdin;")
    }

    fn end_copy(&mut self) -> io::Result<()> {
        writeln!(self.out, "\\.")
    }

    fn names<'n>(&mut self, table: &str, names: impl Iterator<Item = &'n str>) -> io::Result<()> {
        self.copy(table, "id, name")?;
        for (i, name) in names.enumerate() {
            writeln!(self.out, "{}\t{name}", i + 1)?;
        }
        self.end_copy()
    }

    fn comments(&mut self) -> io::Result<()> {
        self.copy(
            "comments",
            "id, from_user_id, to_user_id, item_id, rating, date, comment",
        )?;
        for id in 1..=self.sizes.comments {
            let mut random = self.random("comments", id);
            let (from, to) = (random.id(self.sizes.users), random.id(self.sizes.users));
            let item = random.id(self.sizes.items + self.sizes.old_items);
            let rating = random.pick(&[-5_i64, -3, 0, 3, 5]);
            self.ratings[slots(to - 1)] += rating;
            let date = self.history(id, self.sizes.comments);
            let comment = description(&mut random, 20);
            writeln!(
                self.out,
                "{id}\t{from}\t{to}\t{item}\t{rating}\t{date:#}\t{comment}"
            )?;
        }
        self.end_copy()
    }

    fn bids(&mut self) -> io::Result<()> {
        self.copy("bids", "id, user_id, item_id, qty, bid, max_bid, date")?;
        for id in 1..=self.sizes.bids {
            let mut random = self.random("bids", id);
            let user = random.id(self.sizes.users);
            let item = random.id(self.sizes.items + self.sizes.old_items);
            let initial_price = self.initial_price(item);
            let (count, highest) = &mut self.bids[slots(item - 1)];
            *highest = match *count {
                0 => initial_price,
                _ => *highest + BID_STEP_CENTS + random.below(400),
            };
            *count += 1;
            let (bid, max_bid) = (*highest, *highest + random.below(2000));
            let date = self.history(id, self.sizes.bids);
            writeln!(
                self.out,
                "{id}\t{user}\t{item}\t1\t{bid}\t{max_bid}\t{date:#}"
            )?;
        }
        self.end_copy()
    }

    fn buy_now(&mut self) -> io::Result<()> {
        self.copy("buy_now", "id, buyer_id, item_id, qty, date")?;
        for id in 1..=self.sizes.buy_now {
            let mut random = self.random("buy_now", id);
            let user = random.id(self.sizes.users);
            let item = random.id(self.sizes.items + self.sizes.old_items);
            let quantity = 1 + random.below(3);
            let date = self.history(id, self.sizes.buy_now);
            writeln!(self.out, "{id}\t{user}\t{item}\t{quantity}\t{date:#}")?;
        }
        self.end_copy()
    }

    fn users(&mut self) -> io::Result<()> {
        self.copy(
            "users",
            "id, firstname, lastname, nickname, password, email, rating, balance, creation_date, region",
        )?;
        for id in 1..=self.sizes.users {
            let mut random = self.random("users", id);
            let password = password::store(&random.seed(), &format!("password{id}"));
            let rating = self.ratings[slots(id - 1)];
            let date = begin().plus_us(-DAY_US * (60 + random.below(1000)));
            let region = self.region(id);
            let (first, last) = (first_name(&mut random), last_name(&mut random));
            write!(self.out, "{id}\t{first}\t{last}\tuser{id}\t\\\\x")?;
            for byte in password {
                write!(self.out, "{byte:02x}")?;
            }
            writeln!(
                self.out,
                "\tuser{id}@example.org\t{rating}\t0\t{date:#}\t{region}"
            )?;
        }
        self.end_copy()
    }

    fn items(&mut self) -> io::Result<()> {
        const COLUMNS: &str = "id, name, description, initial_price, quantity, reserve_price, \
             buy_now, nb_of_bids, max_bid, start_date, end_date, seller, category, region";
        self.copy("items", COLUMNS)?;
        for id in 1..=self.sizes.items {
            self.item(id, first_end())?;
        }
        self.end_copy()?;
        self.copy("old_items", COLUMNS)?;
        for id in self.sizes.items + 1..=self.sizes.items + self.sizes.old_items {
            self.item(id, begin().plus_us(-30 * DAY_US))?;
        }
        self.end_copy()
    }

    /// Writes one item; it ends within the time that its kind may end in, which begins at `end`.
    fn item(&mut self, id: u64, end: Moment) -> io::Result<()> {
        let mut random = self.random("items", id);
        let on_sale = id <= self.sizes.items;
        let days = if on_sale { 3650 } else { 30 };
        let end = end.plus_us(random.below(days * DAY_US));
        let start = begin().plus_us(-DAY_US * (31 + random.below(30)));
        let initial_price = self.initial_price(id);
        let (bids, max_bid) = self.bids[slots(id - 1)];
        let reserve_price = initial_price * random.pick(&[0, 0, 0, 2]);
        let highest = max_bid.max(initial_price);
        let buy_now = (highest + highest / 4 + 500) * random.pick(&[0, 1]);
        let quantity = 1 + random.below(10);
        let seller = random.id(self.sizes.users);
        let region = self.region(seller);
        let category = category(&mut random);
        let (name, text) = (thing(&mut random), description(&mut random, 40));
        writeln!(
            self.out,
            "{id}\t{name} {id}\t{text}\t{initial_price}\t{quantity}\t{reserve_price}\t{buy_now}\t\
             {bids}\t{max_bid}\t{start:#}\t{end:#}\t{seller}\t{category}\t{region}"
        )
    }

    fn ids(&mut self) -> io::Result<()> {
        let sizes = self.sizes;
        self.copy(
            "ids",
            "id, categories, regions, users, items, old_items, bids, comments, buy_now",
        )?;
        writeln!(
            self.out,
            "0\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
            CATEGORIES.len(),
            REGIONS.len(),
            sizes.users,
            sizes.items,
            sizes.old_items,
            sizes.bids,
            sizes.comments,
            sizes.buy_now
        )?;
        self.end_copy()
    }

    /// Lets every sequence go on after the last id that was given out.
    fn sequences(&mut self) -> io::Result<()> {
        let sizes = self.sizes;
        for (table, last) in [
            ("categories", CATEGORIES.len() as u64),
            ("regions", REGIONS.len() as u64),
            ("users", sizes.users),
            ("items", sizes.items + sizes.old_items),
            ("bids", sizes.bids),
            ("comments", sizes.comments),
            ("buy_now", sizes.buy_now),
        ] {
            let next = last + 1;
            writeln!(
                self.out,
                "SELECT setval(pg_get_serial_sequence('{table}', 'id'), {next}, false);"
            )?;
        }
        Ok(())
    }

    /// The time of row `id` of `rows` in the month before [`begin`]; grows with the id.
    fn history(&self, id: u64, rows: u64) -> Moment {
        let share = 30 * i128::from(DAY_US) * i128::from(id) / (i128::from(rows) + 1);
        // At most 30 days, which fit.
        begin().plus_us(i64::try_from(share).unwrap_or(0) - 30 * DAY_US)
    }

    /// What bidding for an item begins with, 1.00 to 200.99.
    fn initial_price(&self, item: u64) -> i64 {
        100 + self.random("prices", item).below(20_000)
    }

    /// Where a user lives.
    fn region(&self, user: u64) -> u64 {
        self.random("homes", user).id(REGIONS.len() as u64)
    }
}

/// A category, as often as its share says.
fn category(random: &mut Random) -> usize {
    let total = CATEGORIES.iter().map(|(_, share)| share).sum();
    let mut at = random.below(total);
    for (i, (_, share)) in CATEGORIES.iter().enumerate() {
        if at < *share {
            return i + 1;
        }
        at -= share;
    }
    CATEGORIES.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(sizes: Sizes) -> String {
        let mut out = Vec::new();
        write(sizes, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_same_seed_gives_the_same_script_and_another_seed_another() {
        let other = Sizes {
            seed: 2,
            ..Sizes::TINY
        };
        assert_eq!(script(Sizes::TINY), script(Sizes::TINY));
        assert_ne!(script(Sizes::TINY), script(other));
    }

    #[test]
    fn categories_come_as_often_as_their_shares_say() {
        let mut counts = [0_i64; CATEGORIES.len()];
        for row in 0..32_667 {
            counts[category(&mut Random::new(1, "items", row)) - 1] += 1;
        }
        for ((name, share), count) in CATEGORIES.iter().zip(counts) {
            assert!((count - share).abs() < 60 + share / 10, "{name}: {count}");
        }
    }

    #[test]
    fn sizes_that_refer_to_nothing_are_refused() {
        let none = Sizes {
            users: 0,
            ..Sizes::TINY
        };
        assert!(none.check().unwrap_err().to_string().contains("--users"));
        let none = Sizes {
            items: 0,
            old_items: 0,
            ..Sizes::TINY
        };
        assert!(none.check().unwrap_err().to_string().contains("--items"));
        assert!(Sizes::SMALL.check().is_ok());
    }
}
