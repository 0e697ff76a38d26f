//! Two replicas that execute the same requests, with the same agreed times and seeds, give the same
//! bytes and end in the same state.

use std::thread;

use spare_auction_interactions::Interaction;

use crate::service::{Reply, Service};

/// How many requests the replicas execute.
const REQUESTS: u64 = 1500;

/// A request of the run: an interaction with parameters that follow from a number, some of them
/// wrong, and often the same as in earlier requests.
fn request(service: &Service, number: u64) -> Reply {
    let random = |salt: u64| {
        let x = (number * 31 + salt + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33
    };
    let interaction = Interaction::ALL[(random(0) % 27) as usize];
    let user = 1 + random(1) % 1010;
    let parameters: Vec<(&str, String)> = interaction
        .parameters()
        .iter()
        .enumerate()
        .map(|(i, parameter)| {
            let pick = random(2 + i as u64);
            let value = match parameter.name {
                "id" | "category" | "region" => (1 + pick % 64).to_string(),
                "to" => (1 + pick % 1010).to_string(),
                "item" => (1 + pick % 40).to_string(),
                "nickname" if interaction == Interaction::RegisterUser => {
                    format!("newcomer{}", pick % 60)
                }
                "nickname" => format!("user{user}"),
                "password" => format!("password{user}"),
                "quantity" | "rating" | "duration" => (1 + pick % 4).to_string(),
                "page" => (pick % 3).to_string(),
                "bid" | "max_bid" => format!("{}.{}", 100 + number, pick % 100),
                "initial_price" | "reserve_price" | "buy_now" => (pick % 50).to_string(),
                _ => format!("text {pick} <&>"),
            };
            (parameter.name, value)
        })
        .collect();
    let parameters: Vec<_> = parameters.iter().map(|(n, v)| (*n, v.as_str())).collect();
    service.ask(interaction, &parameters)
}

#[test]
fn two_replicas_give_the_same_bytes_and_end_in_the_same_state() {
    let (Some(one), Some(other)) = (Service::start(), Service::start()) else {
        return;
    };
    let mut statuses = [0; 600];
    let (mut writes, start) = (0, one.contents());
    for number in 0..REQUESTS {
        let (first, second) = thread::scope(|scope| {
            let second = scope.spawn(|| request(&other, number));
            (request(&one, number), second.join().unwrap())
        });
        assert_eq!(first, second, "request {number}");
        statuses[usize::from(first.status)] += 1;
        writes += u32::from(first.body.contains("data-page=\"Store"));
    }
    let state = one.contents();
    assert_eq!(state, other.contents());
    assert_ne!(state, start);
    // The run is worth something only if most of it succeeds, and some of it does not.
    assert!(statuses[200] > 900, "{} pages", statuses[200]);
    assert!(statuses[409] > 10 && statuses[404] > 10, "hardly a refusal");
    assert!(statuses[500] == 0 && statuses[503] == 0, "an error");
    assert!(writes > 80, "{writes} writes");
}

#[test]
fn reads_give_the_same_bytes_however_many_run_at_once() {
    let Some(service) = Service::start() else {
        return;
    };
    let targets = [
        "/item?id=3",
        "/item/bids?id=3",
        "/category?id=4",
        "/about-me?nickname=user1&password=password1",
        // Two things are wrong here; the same one is always named.
        "/bid?item=999999&nickname=user1&password=wrong",
        "/region/items?region=99&category=99",
    ];
    let alone: Vec<_> = targets.iter().map(|target| service.get(target)).collect();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..40 {
                    for (target, expected) in targets.iter().zip(&alone) {
                        assert_eq!(service.get(target), *expected);
                    }
                }
            });
        }
    });
}

#[test]
fn the_seed_decides_the_salt_and_nothing_else_does() {
    let (Some(one), Some(other)) = (Service::start(), Service::start()) else {
        return;
    };
    let form = "firstname=a&lastname=b&nickname=c&password=d&email=e&region=1";
    let password = "SELECT password FROM users WHERE id = 1001";
    one.post("/register", form, "write")
        .must_be(Interaction::RegisterUser);
    other
        .post("/register", form, "write")
        .must_be(Interaction::RegisterUser);
    assert_eq!(one.sql(password), other.sql(password));
    let form = form.replace("nickname=c", "nickname=f");
    one.post("/register", &form, "write")
        .must_be(Interaction::RegisterUser);
    let second = one.sql("SELECT password FROM users WHERE id = 1002");
    assert_ne!(one.sql(password), second);
}
