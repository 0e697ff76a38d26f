//! Bad requests get a page that names what is wrong, and change nothing.

use std::io::Read;
use std::process::{Command, Output};

use spare_auction_interactions::Interaction;

use crate::cluster::{Cluster, AUCTION};
use crate::pages::{item_with_fixed_price, valid};
use crate::service::Service;

#[test]
fn each_missing_parameter_is_named() {
    let Some(service) = Service::start() else {
        return;
    };
    let item = item_with_fixed_price(&service);
    let before = service.contents();
    for interaction in Interaction::ALL {
        for parameter in interaction.parameters().iter().filter(|p| p.required) {
            let mut parameters = valid(interaction, &item);
            parameters.retain(|(name, _)| *name != parameter.name);
            let reply = service.ask(interaction, &parameters);
            let reply = reply.must_refuse(400, "missing-parameter");
            assert_eq!(reply.attribute("data-parameter"), parameter.name);
        }
    }
    assert_eq!(service.contents(), before);
}

#[test]
fn each_impossible_value_is_named() {
    let Some(service) = Service::start() else {
        return;
    };
    let item = item_with_fixed_price(&service);
    let before = service.contents();
    let long = "x".repeat(2001);
    for interaction in Interaction::ALL {
        for parameter in interaction.parameters() {
            let impossible: &[&str] = match parameter.name {
                "id" | "item" | "to" | "region" | "category" | "quantity" => {
                    &["x", "0", "-1", "1.0", "9223372036854775808"]
                }
                "page" => &["x", "-1", "10000"],
                "rating" => &["-6", "6", "good"],
                "duration" => &["0", "366", "week"],
                "bid" | "max_bid" | "initial_price" | "reserve_price" | "buy_now" => {
                    &["x", "-1", "1.234", "1000000.01", "1e3", "NaN"]
                }
                _ => &[&long, "a\0b"],
            };
            for value in impossible {
                let mut parameters = valid(interaction, &item);
                parameters.retain(|(name, _)| *name != parameter.name);
                parameters.push((parameter.name, value));
                let reply = service.ask(interaction, &parameters);
                let reply = reply.must_refuse(400, "bad-parameter");
                assert_eq!(reply.attribute("data-parameter"), parameter.name);
            }
        }
    }
    assert_eq!(service.contents(), before);
}

#[test]
fn each_number_of_nothing_is_named() {
    let Some(service) = Service::start() else {
        return;
    };
    let item = item_with_fixed_price(&service);
    let before = service.contents();
    for interaction in Interaction::ALL {
        let names = interaction.parameters().iter().map(|p| p.name);
        let ids = names.filter(|n| ["id", "item", "to", "region", "category"].contains(n));
        for name in ids {
            let mut parameters = valid(interaction, &item);
            parameters.retain(|(n, _)| *n != name);
            parameters.push((name, "9223372036854775807"));
            let reply = service
                .ask(interaction, &parameters)
                .must_refuse(404, "unknown");
            assert_eq!(reply.attribute("data-parameter"), name);
        }
    }
    assert_eq!(service.contents(), before);
}

#[test]
fn a_wrong_password_opens_nothing() {
    let Some(service) = Service::start() else {
        return;
    };
    let item = item_with_fixed_price(&service);
    let before = service.contents();
    for interaction in Interaction::ALL {
        let asks_password = interaction
            .parameters()
            .iter()
            .any(|p| p.name == "password");
        if !asks_password || interaction == Interaction::RegisterUser {
            continue;
        }
        for (nickname, password) in [("user1", "password2"), ("nobody", "password1")] {
            let mut parameters = valid(interaction, &item);
            parameters.retain(|(name, _)| !["nickname", "password"].contains(name));
            parameters.extend([("nickname", nickname), ("password", password)]);
            service
                .ask(interaction, &parameters)
                .must_refuse(403, "wrong-login");
        }
    }
    assert_eq!(service.contents(), before);
}

#[test]
fn each_missing_header_is_named() {
    let Some(service) = Service::start() else {
        return;
    };
    for name in ["spare-time", "spare-seed", "spare-class"] {
        for value in [None, Some("nonsense")] {
            let agreed = service.agreed("read");
            let mut headers: Vec<_> = agreed.lines().map(str::to_owned).collect();
            headers.retain(|header| !header.starts_with(name));
            headers.extend(value.map(|value| format!("{name}: {value}")));
            let headers = headers.join("\r\n");
            let request =
                format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n\r\n");
            let reply = service
                .raw(request.as_bytes())
                .must_refuse(500, "missing-header");
            assert_eq!(reply.attribute("data-parameter"), name);
            assert!(reply.body.contains("gateway"), "no way out: {}", reply.body);
        }
    }
}

#[test]
fn a_write_in_a_read_is_marked_and_changes_nothing() {
    let Some(service) = Service::start() else {
        return;
    };
    let item = item_with_fixed_price(&service);
    for interaction in Interaction::ALL.into_iter().filter(|i| i.is_write()) {
        let before = service.contents();
        let parameters = valid(interaction, &item);
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(&parameters)
            .finish();
        let reply = service.post(interaction.path(), &form, "read");
        let reply = reply.must_refuse(503, "write-in-read");
        assert!(
            reply.head.contains("\r\nspare-write-in-read: 1"),
            "{}",
            reply.head
        );
        assert_eq!(service.contents(), before);
        // Ordered again as a write, it succeeds.
        let reply = service.post(interaction.path(), &form, "write");
        let reply = reply.must_be(interaction);
        assert!(!reply.head.contains("spare-write-in-read"));
        assert_ne!(service.contents(), before);
    }
}

#[test]
fn a_page_or_method_that_does_not_exist_is_refused() {
    let Some(service) = Service::start() else {
        return;
    };
    service.get("/nowhere").must_refuse(404, "no-such-page");
    service.get("/item/").must_refuse(404, "no-such-page");
    let reply = service
        .post("/item", "id=1", "write")
        .must_refuse(405, "wrong-method");
    assert!(reply.head.contains("\r\nallow: GET"), "{}", reply.head);
    let agreed = service.agreed("read");
    let request = format!("DELETE /bid HTTP/1.1\r\nhost: x\r\n{agreed}connection: close\r\n\r\n");
    let reply = service
        .raw(request.as_bytes())
        .must_refuse(405, "wrong-method");
    assert!(
        reply.head.contains("\r\nallow: GET, HEAD, POST"),
        "{}",
        reply.head
    );
}

#[test]
fn head_is_answered_as_get_without_the_body() {
    let Some(service) = Service::start() else {
        return;
    };
    let agreed = service.agreed("read");
    for target in ["/", "/item?id=1", "/item?id=999999999", "/nowhere"] {
        let [get, head] = ["GET", "HEAD"].map(|method| {
            let head = format!(
                "{method} {target} HTTP/1.1\r\nhost: x\r\n{agreed}connection: close\r\n\r\n"
            );
            service.raw(head.as_bytes())
        });
        assert_eq!((head.head, head.body.as_str()), (get.head, ""), "{target}");
        assert!(!get.body.is_empty(), "{target}");
    }
}

#[test]
fn a_large_body_is_refused() {
    let Some(service) = Service::start() else {
        return;
    };
    let form = format!("comment={}", "x".repeat(64 * 1024));
    let reply = service.post("/comment", &form, "write");
    reply.must_refuse(413, "body-too-large");
    let form = format!("nothing={}", "x".repeat(63 * 1024));
    let reply = service.post("/comment", &form, "write");
    reply.must_refuse(400, "missing-parameter");
}

#[test]
fn what_is_no_http_gets_no_page_and_harms_nobody() {
    let Some(service) = Service::start() else {
        return;
    };
    for garbage in [
        &b"\0\xff\xfe nonsense\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n",
    ] {
        let status = service.raw(garbage).status;
        assert!(status == 0 || status == 400, "{status}");
    }
    let endless = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(1 << 20));
    let reply = service.raw(endless.as_bytes());
    assert!(reply.status == 0 || reply.status == 431, "{}", reply.status);
    service.get("/").must_be(Interaction::Home);
}

/// The end of a service that cannot start.
fn serve(listen: &str, database: &str) -> Output {
    let mut command = Command::new(AUCTION);
    command.args(["serve", "--listen", listen, "--database", database]);
    command.output().unwrap()
}

#[test]
fn a_service_that_cannot_start_says_why() {
    let Some(service) = Service::start() else {
        return;
    };
    let folder = service.cluster.folder.display();
    let good = format!("host={folder} user=auction dbname={}", service.database);
    let free = format!("{folder}/free.http");
    let fails = |listen: &str, database: &str, reason: &str| {
        let output = serve(listen, database);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(error.contains(reason), "{error}");
    };
    fails(
        service.socket.to_str().unwrap(),
        &good,
        "another process listens",
    );
    fails(&format!("{folder}/postgresql.log"), &good, "is no socket");
    fails(&format!("{folder}/none/free.http"), &good, "none/free.http");
    fails("nowhere:x", &good, "nowhere:x");
    fails(&free, "host=/ port=x", "no PostgreSQL connection string");
    let wrong_database = format!("host={folder} user=auction dbname=none");
    fails(&free, &wrong_database, "database \"none\" does not exist");
    let empty_database = format!("host={folder} user=auction dbname=postgres");
    fails(&free, &empty_database, "auction schema");
    service.get("/").must_be(Interaction::Home);
}

#[test]
fn a_service_that_loses_its_database_ends() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let database = cluster.copy_of_tiny();
    let socket = cluster.folder.join("losing.http");
    let mut process = Command::new(AUCTION)
        .args(["serve", "--listen"])
        .arg(&socket)
        .args(["--database"])
        .arg(format!(
            "host={} user=auction dbname={database}",
            cluster.folder.display()
        ))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = process.stderr.take().unwrap();
    let mut first = [0; 64];
    assert!(
        stderr.read(&mut first).unwrap() > 0,
        "it says when it serves"
    );
    cluster.sql(
        "postgres",
        &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' LIMIT 1"),
    );
    assert!(!process.wait().unwrap().success());
    let mut error = String::new();
    stderr.read_to_string(&mut error).unwrap();
    assert!(
        error.contains("connection to the database was lost"),
        "{error}"
    );
    assert!(!socket.exists());
}
