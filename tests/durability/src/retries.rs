//! `Idempotency-Key`: a retry gets the first answer, over any restart.

use crate::backups::backup;
use crate::book::{comment, connection, text};
use crate::suite::Suite;
use crate::trial;
use anyhow::{ensure, Context, Result};
use libtest_mimic::Trial;
use spare_client::http::{Connection, Reply, Request};

const METHODS: [&str; 4] = ["POST", "PUT", "PATCH", "DELETE"];

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial(
        "a_retry_gets_the_first_answer_and_another_body_422_whatever_the_method_and_what_was_killed",
        retries,
    )]
}

fn request(method: &'static str, number: u64, body: &str) -> Request {
    Request {
        method,
        ..comment(900, &format!("retry-{number}-{method}"), body)
    }
}

async fn send(connection: &mut Connection, request: &Request) -> Result<(u16, String, String)> {
    let reply: Reply = connection.send(request).await?;
    let position = reply
        .header("spare-position")
        .unwrap_or_default()
        .to_owned();
    Ok((reply.status, position, text(&reply)))
}

async fn retries(suite: &mut Suite) -> Result<()> {
    let number: u64 = rand::Rng::random(&mut suite.random);
    let mut client = connection(&suite.gateway())?;
    let mut first = Vec::new();
    for method in METHODS {
        let answer = send(&mut client, &request(method, number, "once")).await?;
        // The auction knows POST alone; what it says about others counts as an answer.
        ensure!(
            answer.0 == if method == "POST" { 200 } else { 405 },
            "{method}: {answer:?}"
        );
        first.push(answer);
    }
    for when in ["at once", "after a snapshot", "after everything was killed"] {
        match when {
            "after a snapshot" => {
                let file = suite.deployment.folder().join("retries.backup");
                backup(suite, &file)?;
            }
            "after everything was killed" => {
                suite.deployment.kill_everything()?;
                suite.revive().await?;
                client = connection(&suite.gateway())?;
            }
            _ => {}
        }
        for (method, first) in METHODS.iter().zip(&first) {
            let again = send(&mut client, &request(method, number, "once")).await?;
            ensure!(
                again == *first,
                "{when}, {method}: first {first:?}, now {again:?}"
            );
            let other = send(&mut client, &request(method, number, "twice")).await?;
            ensure!(other.0 == 422, "{when}, {method}: {other:?}");
        }
    }
    let page = Request {
        method: "GET",
        target: "/user?id=900".to_owned(),
        headers: vec![],
        body: String::new(),
    };
    let (_, _, page) = send(&mut client, &page).await.context("the page")?;
    let times = |text: &str| page.matches(&format!(">{text}<")).count();
    ensure!(times("once") >= 1 && times("twice") == 0, "{page}");
    suite.book.forget(900);
    Ok(())
}
