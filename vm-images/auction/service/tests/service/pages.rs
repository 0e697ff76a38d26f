//! Every interaction gives its page, and the writes do what they say.

use spare_auction_interactions::Interaction;

use crate::service::{Reply, Service, DAY_US};

const USER_1: [(&str, &str); 2] = [("nickname", "user1"), ("password", "password1")];
const USER_2: [(&str, &str); 2] = [("nickname", "user2"), ("password", "password2")];

/// Parameters with which an interaction succeeds on the tiny data, where items 1 to 1000 are on
/// sale. `item` has a fixed price.
pub(crate) fn valid(interaction: Interaction, item: &str) -> Vec<(&'static str, &str)> {
    let value = |name| match name {
        "id" | "to" | "region" | "category" | "quantity" => "3",
        "item" => item,
        "page" => "1",
        "nickname" => "user1",
        "password" => "password1",
        "firstname" | "lastname" | "name" | "description" | "comment" => "a b & <c>",
        "email" => "a@example.org",
        "bid" | "max_bid" => "99999.50",
        "initial_price" | "reserve_price" | "buy_now" => "12.5",
        "rating" => "-5",
        "duration" => "7",
        other => panic!("no example for the parameter {other}"),
    };
    let mut parameters: Vec<_> = interaction
        .parameters()
        .iter()
        .map(|parameter| (parameter.name, value(parameter.name)))
        .collect();
    if interaction == Interaction::RegisterUser {
        parameters.retain(|(name, _)| *name != "nickname");
        parameters.push(("nickname", "newcomer"));
    }
    parameters
}

/// The number of an item with a fixed price and at least 3 pieces.
pub(crate) fn item_with_fixed_price(service: &Service) -> String {
    let sql = "SELECT min(id) FROM items WHERE buy_now > 0 AND quantity > 3";
    service.sql(sql).trim().to_owned()
}

fn bid(service: &Service, user: [(&str, &str); 2], item: &str, amount: &str) -> Reply {
    let parameters = [user[0], user[1], ("item", item), ("bid", amount)];
    service.ask(Interaction::StoreBid, &parameters)
}

fn view(service: &Service, item: &str) -> Reply {
    let reply = service.ask(Interaction::ViewItem, &[("id", item)]);
    reply.must_be(Interaction::ViewItem)
}

/// Puts an item of user 1 on sale, for 10.00 or 15.00 at once, for seven days.
fn sell(service: &Service, name: &str, quantity: &str) -> String {
    let parameters = [
        USER_1[0],
        USER_1[1],
        ("category", "4"),
        ("name", name),
        ("initial_price", "10"),
        ("buy_now", "15"),
        ("quantity", quantity),
        ("duration", "7"),
    ];
    let reply = service.ask(Interaction::RegisterItem, &parameters);
    reply
        .must_be(Interaction::RegisterItem)
        .attribute("data-item")
}

#[test]
fn every_interaction_answers_with_its_page() {
    let Some(service) = Service::start() else {
        return;
    };
    let item = item_with_fixed_price(&service);
    for interaction in Interaction::ALL {
        let reply = service.ask(interaction, &valid(interaction, &item));
        let reply = reply.must_be(interaction);
        assert!(reply.body.contains(" · Auction</title>"));
        assert!(reply.body.ends_with("</main></body></html>\n"));
        assert!(reply
            .head
            .contains("content-type: text/html; charset=utf-8"));
        assert!(
            !reply.head.to_lowercase().contains("\r\ndate:"),
            "{}",
            reply.head
        );
        assert!(!reply.body.contains("<c>"), "not escaped: {}", reply.body);
        for outside in ["http:", "https:", "src=", "<script", "<link"] {
            assert!(
                !reply.body.contains(outside),
                "{interaction:?} loads something"
            );
        }
    }
}

#[test]
fn a_bid_shows_on_the_item_its_history_and_the_bidders_page() {
    let Some(service) = Service::start() else {
        return;
    };
    let before = view(&service, "5");
    let (bids, minimum) = (before.number("data-bids"), before.number("data-minimum"));
    let amount = format!("{}.{:02}", minimum / 100, minimum % 100);
    let stored = bid(&service, USER_1, "5", &amount).must_be(Interaction::StoreBid);
    assert_eq!(stored.number("data-bids"), bids + 1);
    assert_eq!(stored.number("data-max-bid"), minimum);
    assert_eq!(stored.number("data-bid"), 5001);

    let after = view(&service, "5");
    assert_eq!(after.number("data-bids"), bids + 1);
    assert_eq!(after.number("data-max-bid"), minimum);
    assert_eq!(after.number("data-minimum"), minimum + 100);

    let history = service.ask(Interaction::ViewBidHistory, &[("id", "5")]);
    let row = format!("<tr data-bid=\"5001\" data-user=\"1\" data-amount=\"{minimum}\">");
    assert!(history.body.contains(&row), "{}", history.body);
    assert_eq!(history.number("data-shown"), (bids + 1).min(25));

    let about = service.ask(Interaction::AboutMe, &USER_1);
    let (_, bidding) = about.body.split_once("<section id=\"bidding\">").unwrap();
    let row = format!(
        "<tr data-item=\"5\" data-bids=\"{}\" data-max-bid=\"{minimum}\">",
        bids + 1
    );
    assert!(bidding.split("</section>").next().unwrap().contains(&row));
}

#[test]
fn bids_below_the_minimum_are_refused_and_change_nothing() {
    let Some(service) = Service::start() else {
        return;
    };
    let item = sell(&service, "thing", "1");
    let before = service.contents();
    let low = bid(&service, USER_2, &item, "9.99").must_refuse(409, "bid-too-low");
    assert_eq!(low.number("data-minimum"), 1000);
    assert_eq!(service.contents(), before);
    bid(&service, USER_2, &item, "10").must_be(Interaction::StoreBid);
    let low = bid(&service, USER_1, &item, "10.99").must_refuse(409, "bid-too-low");
    assert_eq!(low.number("data-minimum"), 1100);
    bid(&service, USER_1, &item, "11").must_be(Interaction::StoreBid);
}

#[test]
fn an_auction_ends_at_its_agreed_time() {
    let Some(service) = Service::start() else {
        return;
    };
    let item = sell(&service, "thing", "1");
    bid(&service, USER_2, &item, "10").must_be(Interaction::StoreBid);
    assert_eq!(view(&service, &item).number("data-ended"), 0);
    service.pass(7 * DAY_US);
    assert_eq!(view(&service, &item).number("data-ended"), 1);
    bid(&service, USER_2, &item, "20").must_refuse(409, "ended");
    for interaction in [Interaction::PutBid, Interaction::BuyNow] {
        let reply = service.ask(interaction, &[USER_2[0], USER_2[1], ("item", &item)]);
        reply.must_refuse(409, "ended");
    }
    let listed = format!("<tr data-item=\"{item}\"");
    let search = service.ask(Interaction::SearchItemsInCategory, &[("id", "4")]);
    assert!(!search.body.contains(&listed));
    let winner = service.ask(Interaction::AboutMe, &USER_2);
    let (_, won) = winner.body.split_once("<section id=\"won\">").unwrap();
    assert!(won.split("</section>").next().unwrap().contains(&listed));
    let seller = service.ask(Interaction::AboutMe, &USER_1);
    let (_, sold) = seller.body.split_once("<section id=\"sold\">").unwrap();
    assert!(sold.split("</section>").next().unwrap().contains(&listed));
}

#[test]
fn buying_reduces_the_quantity_and_moves_a_sold_out_item() {
    let Some(service) = Service::start() else {
        return;
    };
    let item = sell(&service, "thing", "3");
    let buy = |quantity| {
        let parameters = [
            USER_2[0],
            USER_2[1],
            ("item", &*item),
            ("quantity", quantity),
        ];
        service.ask(Interaction::StoreBuyNow, &parameters)
    };
    let first = buy("2").must_be(Interaction::StoreBuyNow);
    assert_eq!(first.number("data-quantity"), 1);
    assert_eq!(first.number("data-ended"), 0);
    let much = buy("2").must_refuse(409, "not-enough");
    assert_eq!(much.number("data-quantity"), 1);
    let last = buy("1").must_be(Interaction::StoreBuyNow);
    assert_eq!(last.number("data-quantity"), 0);
    assert_eq!(last.number("data-ended"), 1);
    assert_eq!(
        last.number("data-purchase"),
        first.number("data-purchase") + 1
    );
    buy("1").must_refuse(409, "ended");
    let item_page = view(&service, &item);
    assert_eq!(item_page.number("data-ended"), 1);
    let places = format!(
        "SELECT (SELECT count(*) FROM items WHERE id = {item}), \
         (SELECT count(*) FROM old_items WHERE id = {item} AND quantity = 0)"
    );
    assert_eq!(service.sql(&places).trim(), "0|1");
    let about = service.ask(Interaction::AboutMe, &USER_2);
    assert!(about.number("data-bought") >= 2);
}

#[test]
fn an_item_without_a_fixed_price_cannot_be_bought() {
    let Some(service) = Service::start() else {
        return;
    };
    let item = service.sql("SELECT min(id) FROM items WHERE buy_now = 0");
    let parameters = [
        USER_1[0],
        USER_1[1],
        ("item", item.trim()),
        ("quantity", "1"),
    ];
    for interaction in [Interaction::BuyNow, Interaction::StoreBuyNow] {
        service
            .ask(interaction, &parameters)
            .must_refuse(409, "no-buy-now");
    }
}

#[test]
fn a_comment_changes_the_rating() {
    let Some(service) = Service::start() else {
        return;
    };
    let user = || service.ask(Interaction::ViewUserInfo, &[("id", "3")]);
    let before = user().number("data-rating");
    let parameters = [
        USER_1[0],
        USER_1[1],
        ("item", "1"),
        ("to", "3"),
        ("rating", "-5"),
        ("comment", "<b>late & \"broken\"</b>"),
    ];
    let stored = service.ask(Interaction::StoreComment, &parameters);
    let stored = stored.must_be(Interaction::StoreComment);
    assert_eq!(stored.number("data-rating"), before - 5);
    let after = user();
    assert_eq!(after.number("data-rating"), before - 5);
    let row = format!(
        "<tr data-comment=\"{}\" data-user=\"1\" data-rating=\"-5\">",
        stored.number("data-comment")
    );
    assert!(after.body.contains(&row), "{}", after.body);
    assert!(after
        .body
        .contains("&lt;b&gt;late &amp; &quot;broken&quot;&lt;/b&gt;"));
}

#[test]
fn a_new_user_can_log_in_and_a_taken_nickname_uses_up_no_number() {
    let Some(service) = Service::start() else {
        return;
    };
    let register = |nickname| {
        let parameters = [
            ("firstname", "A"),
            ("lastname", "B"),
            ("nickname", nickname),
            ("password", "p&=é"),
            ("email", "e"),
            ("region", "62"),
        ];
        service.ask(Interaction::RegisterUser, &parameters)
    };
    let first = register("Zoë <z>").must_be(Interaction::RegisterUser);
    assert_eq!(first.number("data-user"), 1001);
    assert_eq!(first.attribute("data-nickname"), "Zoë &lt;z&gt;");
    register("Zoë <z>").must_refuse(409, "nickname-taken");
    register("user7").must_refuse(409, "nickname-taken");
    let second = register("another").must_be(Interaction::RegisterUser);
    assert_eq!(second.number("data-user"), 1002);
    let about = [("nickname", "Zoë <z>"), ("password", "p&=é")];
    let about = service.ask(Interaction::AboutMe, &about);
    assert_eq!(
        about.must_be(Interaction::AboutMe).number("data-user"),
        1001
    );
}

#[test]
fn a_search_page_by_page_shows_every_item_once() {
    let Some(service) = Service::start() else {
        return;
    };
    let item = sell(&service, "the first to end", "1");
    let mut found = Vec::new();
    for page in 0.. {
        let parameters = [("id", "4"), ("page", &*page.to_string())];
        let reply = service.ask(Interaction::SearchItemsInCategory, &parameters);
        let rows = reply.body.split("<tr data-item=\"").skip(1);
        found.extend(rows.map(|row| row.split('"').next().unwrap().to_owned()));
        if reply.number("data-more") == 0 {
            break;
        }
        assert_eq!(reply.number("data-items-shown"), 20);
    }
    assert_eq!(found[0], item);
    let expected = service.sql("SELECT id FROM items WHERE category = 4 ORDER BY end_date, id");
    assert_eq!(found, expected.lines().collect::<Vec<_>>());
}

#[test]
fn a_search_by_region_finds_the_items_of_sellers_who_live_there() {
    let Some(service) = Service::start() else {
        return;
    };
    let sql =
        "SELECT region, category FROM items GROUP BY 1, 2 ORDER BY count(*) DESC, 1, 2 LIMIT 1";
    let place = service.sql(sql);
    let (region, category) = place.trim().split_once('|').unwrap();
    let parameters = [("region", region), ("category", category)];
    let reply = service.ask(Interaction::SearchItemsInRegion, &parameters);
    let found: Vec<_> = reply.body.split("<tr data-item=\"").skip(1).collect();
    let found: Vec<_> = found
        .iter()
        .map(|row| row.split('"').next().unwrap())
        .collect();
    let expected = service.sql(&format!(
        "SELECT i.id FROM items i JOIN users u ON u.id = i.seller
         WHERE u.region = {region} AND i.category = {category} ORDER BY i.end_date, i.id LIMIT 20"
    ));
    assert!(!found.is_empty());
    assert_eq!(found, expected.lines().collect::<Vec<_>>());
}

#[test]
fn the_sums_in_the_generated_data_agree_with_their_rows() {
    let Some(service) = Service::start() else {
        return;
    };
    let wrong = service.sql(
        "SELECT count(*) FROM (SELECT id, nb_of_bids, max_bid FROM items
           UNION ALL SELECT id, nb_of_bids, max_bid FROM old_items) i
         LEFT JOIN (SELECT item_id, count(*), max(bid) FROM bids GROUP BY item_id) b
           ON b.item_id = i.id
         WHERE (nb_of_bids, max_bid) <> (coalesce(b.count, 0), coalesce(b.max, 0));
         SELECT count(*) FROM users u WHERE rating <>
           (SELECT coalesce(sum(rating), 0) FROM comments WHERE to_user_id = u.id);
         SELECT count(*) FROM items i JOIN users u ON u.id = i.seller WHERE i.region <> u.region;",
    );
    assert_eq!(wrong, "0\n0\n0\n");
    let home = service.ask(Interaction::Home, &[]);
    assert_eq!(home.number("data-users"), 1000);
    assert_eq!(home.number("data-items"), 1000);
    assert_eq!(home.number("data-old-items"), 500);
    assert_eq!(home.number("data-bids"), 5000);
}
