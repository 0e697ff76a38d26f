//! Every SQL statement of the service. Each is prepared once a connection, has a total order, and is
//! answered from an index.
//!
//! A statement that writes is one statement, and so one transaction: it carries its own conditions
//! (`WHERE … AND end_date > now`) and changes nothing, not even a sequence, if one of them fails.
//! The page then finds out which one failed.

/// Items shown on one page of a search.
pub const ITEMS_PER_PAGE: usize = 20;
/// Rows shown of any other list.
pub const ROWS_MAX: usize = spare_auction_interactions::LIST_ROWS_MAX;
/// How much a bid must be above the highest one, in cents.
pub const BID_STEP_CENTS: i64 = 100;

/// A statement; the comments give its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Query {
    /// How many rows of each kind were generated.
    Counts,
    /// All categories.
    Categories,
    /// The name of a category. Category.
    Category,
    /// All regions.
    Regions,
    /// The name of a region. Region.
    Region,
    /// Items on sale. Category, now, offset.
    ItemsInCategory,
    /// Items on sale. Region, category, now, offset.
    ItemsInRegion,
    /// An item of `items`. Item.
    Item,
    /// An item of `old_items`. Item.
    OldItem,
    /// Who logs in. Nickname.
    Login,
    /// A user as everybody may see them. User.
    User,
    /// The newest comments on a user. User.
    Comments,
    /// The newest bids on an item. Item.
    Bids,
    /// Items on sale that a user bid on. User, now.
    Bidding,
    /// Ended items of which a user's bid was the highest. User, now.
    Won,
    /// What a user bought at a fixed price. User.
    Bought,
    /// What a user sells. User, now.
    Selling,
    /// Ended items of a user. User, now.
    Sold,
    /// Adds a user. First name, last name, nickname, password, e-mail, now, region.
    StoreUser,
    /// Adds a bid and raises the item's. Item, user, bid, maximum, quantity, now.
    StoreBid,
    /// Sells at the fixed price and moves a sold-out item. Item, user, quantity, now.
    StoreBuyNow,
    /// Adds a comment and changes the rating. From user, to user, item, rating, now, comment.
    StoreComment,
    /// Adds an item. Seller, category, name, description, initial price, quantity, reserve price,
    /// fixed price, now, end.
    StoreItem,
}

/// The statements in the order of [`Query`]; see [`Query::sql`].
const SQL: [(Query, &str); 23] = [
    (
        Query::Counts,
        "SELECT users, items, old_items, bids FROM ids WHERE id = 0",
    ),
    (
        Query::Categories,
        "SELECT id, name FROM categories ORDER BY id",
    ),
    (Query::Category, "SELECT name FROM categories WHERE id = $1"),
    (Query::Regions, "SELECT id, name FROM regions ORDER BY id"),
    (Query::Region, "SELECT name FROM regions WHERE id = $1"),
    (
        Query::ItemsInCategory,
        "SELECT id, name, nb_of_bids, max_bid, initial_price, end_date FROM items
         WHERE category = $1 AND end_date > $2 ORDER BY end_date, id LIMIT 21 OFFSET $3",
    ),
    (
        Query::ItemsInRegion,
        "SELECT id, name, nb_of_bids, max_bid, initial_price, end_date FROM items
         WHERE region = $1 AND category = $2 AND end_date > $3
         ORDER BY end_date, id LIMIT 21 OFFSET $4",
    ),
    (
        Query::Item,
        "SELECT i.id, i.name, i.description, i.initial_price, i.quantity, i.reserve_price,
                i.buy_now, i.nb_of_bids, i.max_bid, i.start_date, i.end_date, i.category,
                i.seller, u.nickname
         FROM items i JOIN users u ON u.id = i.seller WHERE i.id = $1",
    ),
    (
        Query::OldItem,
        "SELECT i.id, i.name, i.description, i.initial_price, i.quantity, i.reserve_price,
                i.buy_now, i.nb_of_bids, i.max_bid, i.start_date, i.end_date, i.category,
                i.seller, u.nickname
         FROM old_items i JOIN users u ON u.id = i.seller WHERE i.id = $1",
    ),
    (
        Query::Login,
        "SELECT id, nickname, password, rating, balance FROM users WHERE nickname = $1",
    ),
    (
        Query::User,
        "SELECT u.nickname, u.rating, u.creation_date, r.name
         FROM users u JOIN regions r ON r.id = u.region WHERE u.id = $1",
    ),
    (
        Query::Comments,
        "SELECT c.id, c.from_user_id, u.nickname, c.item_id, c.rating, c.date, c.comment
         FROM comments c JOIN users u ON u.id = c.from_user_id
         WHERE c.to_user_id = $1 ORDER BY c.id DESC LIMIT 25",
    ),
    (
        Query::Bids,
        "SELECT b.id, b.user_id, u.nickname, b.bid, b.qty, b.date
         FROM bids b JOIN users u ON u.id = b.user_id
         WHERE b.item_id = $1 ORDER BY b.id DESC LIMIT 25",
    ),
    (
        Query::Bidding,
        "SELECT i.id, i.name, i.nb_of_bids, i.max_bid, i.initial_price, i.end_date
         FROM (SELECT item_id, max(id) AS newest FROM bids WHERE user_id = $1 GROUP BY item_id) b
         JOIN items i ON i.id = b.item_id
         WHERE i.end_date > $2 ORDER BY b.newest DESC LIMIT 25",
    ),
    (
        Query::Won,
        "SELECT id, name, nb_of_bids, max_bid, initial_price, end_date FROM (
           SELECT b.id AS bid_id, i.id, i.name, i.nb_of_bids, i.max_bid, i.initial_price, i.end_date
           FROM bids b JOIN old_items i ON i.id = b.item_id
           WHERE b.user_id = $1 AND b.bid = i.max_bid AND b.bid >= i.reserve_price
           UNION ALL
           SELECT b.id, i.id, i.name, i.nb_of_bids, i.max_bid, i.initial_price, i.end_date
           FROM bids b JOIN items i ON i.id = b.item_id
           WHERE b.user_id = $1 AND b.bid = i.max_bid AND b.bid >= i.reserve_price
             AND i.end_date <= $2
         ) won ORDER BY bid_id DESC LIMIT 25",
    ),
    (
        Query::Bought,
        "SELECT b.item_id, coalesce(i.name, o.name, ''), b.qty, b.date, b.id
         FROM buy_now b LEFT JOIN items i ON i.id = b.item_id
         LEFT JOIN old_items o ON o.id = b.item_id
         WHERE b.buyer_id = $1 ORDER BY b.id DESC LIMIT 25",
    ),
    (
        Query::Selling,
        "SELECT id, name, nb_of_bids, max_bid, initial_price, end_date FROM items
         WHERE seller = $1 AND end_date > $2 ORDER BY id DESC LIMIT 25",
    ),
    (
        Query::Sold,
        "SELECT id, name, nb_of_bids, max_bid, initial_price, end_date FROM (
           SELECT id, name, nb_of_bids, max_bid, initial_price, end_date
           FROM old_items WHERE seller = $1
           UNION ALL
           SELECT id, name, nb_of_bids, max_bid, initial_price, end_date
           FROM items WHERE seller = $1 AND end_date <= $2
         ) sold ORDER BY id DESC LIMIT 25",
    ),
    (
        Query::StoreUser,
        "INSERT INTO users (firstname, lastname, nickname, password, email, rating, balance,
                            creation_date, region)
         SELECT $1, $2, $3, $4, $5, 0, 0, $6, r.id FROM regions r
         WHERE r.id = $7 AND NOT EXISTS (SELECT FROM users WHERE nickname = $3)
         RETURNING id",
    ),
    (
        Query::StoreBid,
        "WITH item AS (
           UPDATE items SET nb_of_bids = nb_of_bids + 1, max_bid = $3
           WHERE id = $1 AND end_date > $6 AND quantity >= $5
             AND $3 >= CASE WHEN nb_of_bids = 0 THEN initial_price ELSE max_bid + 100 END
           RETURNING id, name, nb_of_bids)
         INSERT INTO bids (user_id, item_id, qty, bid, max_bid, date)
         SELECT $2, id, $5, $3, $4, $6 FROM item
         RETURNING id, (SELECT name FROM item), (SELECT nb_of_bids FROM item)",
    ),
    (
        Query::StoreBuyNow,
        "WITH reduced AS (
           UPDATE items SET quantity = quantity - $3
           WHERE id = $1 AND end_date > $4 AND buy_now > 0 AND quantity > $3
           RETURNING id, name, quantity),
         sold_out AS (
           DELETE FROM items
           WHERE id = $1 AND end_date > $4 AND buy_now > 0 AND quantity = $3
           RETURNING *),
         moved AS (
           INSERT INTO old_items (id, name, description, initial_price, quantity, reserve_price,
             buy_now, nb_of_bids, max_bid, start_date, end_date, seller, category, region)
           SELECT id, name, description, initial_price, 0, reserve_price,
             buy_now, nb_of_bids, max_bid, start_date, $4, seller, category, region
           FROM sold_out),
         item AS (
           SELECT id, name, quantity FROM reduced
           UNION ALL SELECT id, name, 0 FROM sold_out)
         INSERT INTO buy_now (buyer_id, item_id, qty, date)
         SELECT $2, id, $3, $4 FROM item
         RETURNING id, (SELECT name FROM item), (SELECT quantity FROM item)",
    ),
    (
        Query::StoreComment,
        "WITH target AS (
           UPDATE users SET rating = rating + $4
           WHERE id = $2 AND (EXISTS (SELECT FROM items WHERE id = $3)
                              OR EXISTS (SELECT FROM old_items WHERE id = $3))
           RETURNING id, nickname, rating)
         INSERT INTO comments (from_user_id, to_user_id, item_id, rating, date, comment)
         SELECT $1, id, $3, $4, $5, $6 FROM target
         RETURNING id, (SELECT nickname FROM target), (SELECT rating FROM target)",
    ),
    (
        Query::StoreItem,
        "INSERT INTO items (name, description, initial_price, quantity, reserve_price, buy_now,
           nb_of_bids, max_bid, start_date, end_date, seller, category, region)
         SELECT $3, $4, $5, $6, $7, $8, 0, 0, $9, $10, u.id, c.id, u.region
         FROM users u, categories c WHERE u.id = $1 AND c.id = $2
         RETURNING id",
    ),
];

impl Query {
    /// All statements.
    pub fn all() -> impl Iterator<Item = Self> {
        SQL.iter().map(|(query, _)| *query)
    }

    /// The statement's text.
    #[must_use]
    pub fn sql(self) -> &'static str {
        SQL[self as usize].1
    }

    /// Whether the statement writes.
    #[must_use]
    pub fn is_write(self) -> bool {
        self as usize >= Self::StoreUser as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statements_are_in_the_order_of_the_enumeration() {
        for (i, query) in Query::all().enumerate() {
            assert_eq!(query as usize, i);
            assert_eq!(query.is_write(), query.sql().contains("INSERT"));
        }
    }

    #[test]
    fn limits_in_the_statements_are_those_of_the_constants() {
        let sql = |query: Query| query.sql();
        let search = format!("LIMIT {} OFFSET", ITEMS_PER_PAGE + 1);
        assert!(sql(Query::ItemsInCategory).contains(&search));
        assert!(sql(Query::ItemsInRegion).contains(&search));
        let rows = format!("LIMIT {ROWS_MAX}");
        for query in [Query::Comments, Query::Bids, Query::Bidding, Query::Won] {
            assert!(sql(query).ends_with(&rows));
        }
        for query in [Query::Bought, Query::Selling, Query::Sold] {
            assert!(sql(query).ends_with(&rows));
        }
        assert!(sql(Query::StoreBid).contains(&format!("max_bid + {BID_STEP_CENTS} END")));
    }
}
