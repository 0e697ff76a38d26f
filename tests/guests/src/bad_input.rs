//! Bad input from clients and operators: each gets a clear answer that names the thing and the way
//! out, and the service goes on.

use crate::suite::{ensure_clean, Suite};
use crate::trial;
use anyhow::{ensure, Context, Result};
use libtest_mimic::Trial;
use spare_rig::Hypervisor;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) fn trials(hypervisor: Hypervisor) -> Vec<Trial> {
    let mut trials = vec![
        trial(
            "a_malformed_request_gets_400_and_the_service_goes_on",
            |s| answers(s, b"this is no HTTP\r\n\r\n", "HTTP/1.1 400"),
        ),
        trial("an_oversized_header_gets_431", |s| {
            let header = format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
                "y".repeat(100_000)
            );
            answers(s, header.as_bytes(), "HTTP/1.1 431")
        }),
        trial("an_oversized_body_gets_413_with_the_limit", |s| {
            let head = "POST /bid HTTP/1.1\r\nhost: a\r\ncontent-length: 5000000\r\n\r\n";
            let mut request = head.as_bytes().to_vec();
            request.resize(request.len() + 3_000_000, b'z');
            answers(s, &request, "HTTP/1.1 413")
        }),
        trial("a_slow_client_gets_408_and_holds_nobody_up", slow_client),
        trial(
            "an_unknown_key_is_named_with_its_line_and_the_right_key",
            unknown_key,
        ),
        trial("a_port_in_use_is_named", port_in_use),
        trial(
            "a_missing_image_is_named_with_the_command_that_builds_it",
            missing_image,
        ),
    ];
    if hypervisor == Hypervisor::Libvirt {
        trials.push(trial(
            "a_hypervisor_that_is_down_is_named_with_the_command_that_starts_it",
            hypervisor_down,
        ));
    }
    trials
}

fn connect(suite: &Suite) -> Result<TcpStream> {
    let address = suite.deployment.gateway().trim_start_matches("http://");
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

fn answers(suite: &mut Suite, request: &[u8], status: &str) -> Result<()> {
    let mut stream = connect(suite)?;
    // The gateway may close before it has read everything.
    let _ = stream.write_all(request);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    let reply = String::from_utf8_lossy(&reply).into_owned();
    println!("{reply}");
    ensure!(reply.starts_with(status), "expected {status}, got: {reply}");
    ensure_clean(&suite.load(20, None)?)
}

fn slow_client(suite: &mut Suite) -> Result<()> {
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut stream = connect(suite)?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: ")?;
        slow.push(stream);
    }
    let begun = Instant::now();
    ensure_clean(&suite.load(50, None)?)?;
    let mut reply = String::new();
    let mut first = slow.swap_remove(0);
    first
        .read_to_string(&mut reply)
        .context("the slow client is not told")?;
    ensure!(reply.starts_with("HTTP/1.1 408"), "got: {reply}");
    ensure!(
        begun.elapsed() < Duration::from_secs(25),
        "the slow client was told late"
    );
    Ok(())
}

/// Runs one of the daemons on a changed copy of its configuration; it must refuse with a message that
/// has all of `wanted`.
fn refuses(
    suite: &Suite,
    program: &str,
    config: &str,
    change: impl Fn(&str) -> String,
    wanted: &[&str],
) -> Result<()> {
    let folder = suite.deployment.folder();
    let text = std::fs::read_to_string(folder.join(config))?;
    let copy = folder.join(format!("bad-{config}"));
    std::fs::write(&copy, change(&text))?;
    let output = Command::new("timeout")
        .arg("60")
        .arg(spare_rig::binaries()?.join(program))
        .arg("--config")
        .arg(&copy)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}");
    ensure!(!output.status.success(), "{program} did not refuse");
    for part in wanted {
        ensure!(
            said.contains(part),
            "{program} does not say {part:?} but: {said}"
        );
    }
    Ok(())
}

fn unknown_key(suite: &mut Suite) -> Result<()> {
    let misspelt = |text: &str| text.replace("listen =", "lisen =");
    refuses(
        suite,
        "spare-manager",
        "spare.toml",
        misspelt,
        &["bad-spare.toml:", "lisen", "did you mean \"listen\"?"],
    )?;
    let misspelt = |text: &str| text.replace("images =", "imges =");
    refuses(
        suite,
        "spare-agent",
        "agent.toml",
        misspelt,
        &["bad-agent.toml:", "imges", "did you mean \"images\"?"],
    )
}

fn port_in_use(suite: &mut Suite) -> Result<()> {
    let address = suite
        .deployment
        .gateway()
        .trim_start_matches("http://")
        .to_owned();
    let same = |text: &str| text.replace("admin.sock", "other.sock");
    refuses(
        suite,
        "spare-manager",
        "spare.toml",
        same,
        &[&address, "gateway.listen"],
    )?;
    ensure_clean(&suite.load(20, None)?)
}

fn missing_image(suite: &mut Suite) -> Result<()> {
    suite.runtime.block_on(async {
        let agent = suite.deployment.agent().await?;
        let refused = agent.create("0.9999", "no-such-image").await;
        let said = refused
            .err()
            .context("an image that is not there was taken")?;
        let said = spare_agent_client::message(&said);
        println!("{said}");
        ensure!(said.contains("no-such-image"), "{said}");
        ensure!(said.contains("vm-images/build"), "{said}");
        Ok(())
    })
}

fn hypervisor_down(suite: &mut Suite) -> Result<()> {
    let down = |text: &str| {
        let uri = "uri = \"qemu+unix:///system?socket=/nonexistent/libvirt-sock\"\n";
        let text = text.replace("agent.sock", "other.sock");
        format!("{uri}{}", text.replace("/agent\"", "/other\""))
    };
    refuses(
        suite,
        "spare-agent",
        "agent.toml",
        down,
        &["/nonexistent/libvirt-sock", "systemctl start libvirtd"],
    )?;
    ensure_clean(&suite.load(20, None)?)
}
