//! What each page costs, over the same service and database as the tests of the whole service:
//! `cargo bench -p spare-auction`.
#![allow(clippy::unwrap_used)] // a measurement may panic
#![allow(dead_code, unused_imports)] // the modules are the tests', which need more of them

mod cluster;
mod pages;
mod service;

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use spare_auction_interactions::Interaction;

use crate::cluster::Cluster;
use crate::pages::valid;
use crate::service::Service;

/// Requests of each kind.
const REQUESTS: u32 = 300;

fn main() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    cluster.fill("small", "small");
    let service = Service::over(cluster, "small".to_owned());
    println!(
        "{:26} {:>9} {:>12} {:>12} {:>7}",
        "page", "ms", "service ms", "database ms", "bytes"
    );
    for interaction in Interaction::ALL {
        measure(&service, interaction);
    }
    measure_throughput(&service);
}

/// Sends requests of one kind, one after the other, each on a connection of its own, and prints the
/// mean time, the mean processor time of both programs and the length of the last page.
fn measure(service: &Service, interaction: Interaction) {
    let begin = (Instant::now(), service.cpu_ns(), service.cluster.cpu_ns());
    let mut bytes = 0;
    for i in 0..REQUESTS {
        let id = (1 + i * 97 % 33_000).to_string();
        let small_id = (1 + i % 20).to_string();
        let mut parameters = valid(interaction, &id);
        for (name, value) in &mut parameters {
            match *name {
                "id" if matches!(
                    interaction,
                    Interaction::ViewItem | Interaction::ViewUserInfo | Interaction::ViewBidHistory
                ) =>
                {
                    *value = &id;
                }
                "id" | "category" | "region" => *value = &small_id,
                "quantity" => *value = "1",
                "nickname" if interaction == Interaction::RegisterUser => *value = &id,
                _ => {}
            }
        }
        bytes = service.ask(interaction, &parameters).body.len();
    }
    let ms = |ns: u64| ns as f64 / 1e6 / f64::from(REQUESTS);
    println!(
        "{:26} {:9.3} {:12.3} {:12.3} {bytes:7}",
        interaction.name(),
        begin.0.elapsed().as_secs_f64() * 1e3 / f64::from(REQUESTS),
        ms(service.cpu_ns() - begin.1),
        ms(service.cluster.cpu_ns() - begin.2),
    );
}

/// Lets 16 clients look at items as fast as they can, and prints how many pages they get.
fn measure_throughput(service: &Service) {
    const CLIENTS: u32 = 16;
    const DURATION: Duration = Duration::from_secs(5);
    let (begin, pages) = (Instant::now(), AtomicU32::new(0));
    let cpu = service.cpu_ns() + service.cluster.cpu_ns();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let pages = &pages;
            scope.spawn(move || {
                for i in 0.. {
                    if begin.elapsed() > DURATION {
                        break;
                    }
                    let item = 1 + (client * 2000 + i) % 33_000;
                    let reply = service.get(&format!("/item?id={item}"));
                    assert_eq!(reply.status, 200);
                    pages.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let pages = f64::from(pages.into_inner());
    let cpu = service.cpu_ns() + service.cluster.cpu_ns() - cpu;
    println!(
        "{CLIENTS} clients: {:.0} pages of items a second, {:.3} ms of processor time each",
        pages / begin.elapsed().as_secs_f64(),
        cpu as f64 / 1e6 / pages
    );
}
