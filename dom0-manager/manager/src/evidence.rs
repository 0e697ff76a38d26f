//! Evidence of a conviction, as files that an operator can read.

use spare_core::Evidence;
use spare_protocol::channel::Outcome;
use spare_protocol::http::{HttpReply, HttpRequest};
use spare_protocol::ReplicaId;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A request in one line.
pub(crate) fn request_line(request: &[u8]) -> String {
    match spare_protocol::decode::<HttpRequest>(request) {
        Ok(http) => format!("{} {}", http.method, http.target),
        Err(_) if request.is_empty() => "no request".into(),
        Err(_) => format!("{} bytes", request.len()),
    }
}

/// Writes what `evidence` holds into `folder`, on a thread of its own: the disk may be slow.
pub(crate) fn keep(folder: PathBuf, replica: ReplicaId, evidence: &Evidence) {
    let evidence = evidence.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = write(&folder, replica, &evidence) {
            tracing::error!("cannot keep evidence in {}: {error}", folder.display());
        }
    });
}

/// For [`crate::decoders`]: the texts of a request and of a reply.
pub(crate) fn texts(bytes: &[u8], outcome: &Outcome) -> [Vec<u8>; 2] {
    [request(bytes), reply(outcome)]
}

fn write(folder: &Path, replica: ReplicaId, evidence: &Evidence) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("votes.txt"), votes(replica, evidence))?;
    std::fs::write(folder.join("request.txt"), request(&evidence.request))?;
    for (name, bytes) in [("agreed", &evidence.agreed), ("wrong", &evidence.wrong)] {
        if let Some((outcome, update)) = bytes {
            std::fs::write(folder.join(format!("{name}-reply.txt")), reply(outcome))?;
            std::fs::write(folder.join(format!("{name}-update.bin")), update)?;
        }
    }
    Ok(())
}

fn votes(convicted: ReplicaId, evidence: &Evidence) -> String {
    let mut text = String::from("replica  reply             update            verdict\n");
    for vote in &evidence.votes {
        let right = vote.reply == evidence.agreed_reply && vote.update == evidence.agreed_update;
        let verdict = match (right, vote.replica == convicted) {
            (true, _) => "agrees",
            (false, true) => "differs: convicted",
            (false, false) => "differs",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<8} {}  {}  {verdict}",
            vote.replica.to_string(),
            vote.reply.short(),
            vote.update.short()
        );
    }
    text
}

fn headers(text: &mut Vec<u8>, headers: &[(String, Vec<u8>)]) {
    for (name, value) in headers {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value);
        text.push(b'\n');
    }
    text.push(b'\n');
}

fn request(bytes: &[u8]) -> Vec<u8> {
    let Ok(http) = spare_protocol::decode::<HttpRequest>(bytes) else {
        return bytes.to_vec();
    };
    let mut text = format!("{} {}\n", http.method, http.target).into_bytes();
    headers(&mut text, &http.headers);
    text.extend_from_slice(&http.body);
    text
}

fn reply(outcome: &Outcome) -> Vec<u8> {
    let Outcome::Reply(bytes) = outcome else {
        return b"a request of class read tried to write\n".to_vec();
    };
    let Ok(http) = spare_protocol::decode::<HttpReply>(bytes) else {
        return bytes.to_vec();
    };
    let mut text = format!("{}\n", http.status).into_bytes();
    headers(&mut text, &http.headers);
    text.extend_from_slice(&http.body);
    text
}
