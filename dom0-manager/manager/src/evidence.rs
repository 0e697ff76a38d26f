//! Evidence of a conviction, as files that an operator can read.

use spare_core::Evidence;
use spare_protocol::admin::Conviction;
use spare_protocol::channel::Outcome;
use spare_protocol::http::{HttpReply, HttpRequest};
use spare_protocol::ReplicaId;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The file of a conviction as the status shows it.
const CONVICTION: &str = "conviction.json";
/// A larger one is none of ours.
const CONVICTION_BYTES_MAX: u64 = 1 << 20;

/// A request in one line.
pub(crate) fn request_line(request: &[u8]) -> String {
    match spare_protocol::decode::<HttpRequest>(request) {
        Ok(http) => format!("{} {}", http.method, http.target),
        Err(_) if request.is_empty() => "no request".into(),
        Err(_) => format!("{} bytes", request.len()),
    }
}

/// Writes what `evidence` holds into `folder`, and the conviction, from the seat that tells of it; on a thread
/// of its own: the disk may be slow.
pub(crate) fn keep(
    folder: PathBuf,
    replica: ReplicaId,
    evidence: &Evidence,
    conviction: Option<Conviction>,
) {
    let evidence = evidence.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = write(&folder, replica, &evidence, conviction.as_ref()) {
            tracing::error!("cannot keep evidence in {}: {error}", folder.display());
        }
    });
}

/// The newest conviction among the folders in `evidence`, of whatever run.
pub(crate) fn newest(evidence: &Path) -> Option<Conviction> {
    let folders = std::fs::read_dir(evidence).ok()?;
    let convictions = folders.filter_map(|folder| read(&folder.ok()?.path().join(CONVICTION)));
    convictions.max_by_key(|conviction| conviction.at_us)
}

/// Nothing if it is not there, or not whole: its host may have crashed meanwhile.
fn read(path: &Path) -> Option<Conviction> {
    let length = std::fs::symlink_metadata(path).ok()?.len();
    let text = (length <= CONVICTION_BYTES_MAX).then(|| std::fs::read(path).ok())??;
    serde_json::from_slice(&text).ok()
}

/// For [`crate::decoders`]: the texts of a request and of a reply.
pub(crate) fn texts(bytes: &[u8], outcome: &Outcome) -> [Vec<u8>; 2] {
    [request(bytes), reply(outcome)]
}

fn write(
    folder: &Path,
    replica: ReplicaId,
    evidence: &Evidence,
    conviction: Option<&Conviction>,
) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    if let Some(conviction) = conviction {
        std::fs::write(
            folder.join(CONVICTION),
            serde_json::to_vec_pretty(conviction)?,
        )?;
    }
    if evidence.votes.is_empty() {
        return Ok(());
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::admin::ConvictionReason;

    #[test]
    fn the_newest_conviction_is_found_among_damaged_ones() {
        let folder = std::env::temp_dir().join(format!("spare-evidence-{}", std::process::id()));
        assert_eq!(newest(&folder), None);
        let evidence = Evidence::default();
        for (replica, at_us) in [("0.1", 5), ("1.2", 9), ("0.3", 7)] {
            let replica: ReplicaId = replica.parse().expect("it is one");
            let conviction = Conviction {
                replica: replica.to_string(),
                position: 1,
                at_us,
                reason: ConvictionReason::Channel,
                request: "no request".into(),
                votes: vec![],
                agreed_reply: String::new(),
                agreed_update: String::new(),
                evidence: None,
            };
            let place = folder.join(replica.to_string());
            write(&place, replica, &evidence, Some(&conviction)).expect("it is written");
        }
        let found = || newest(&folder).map(|c| c.replica);
        assert_eq!(found().as_deref(), Some("1.2"));
        let torn = folder.join("1.2").join(CONVICTION);
        std::fs::write(&torn, "{\"replica\": \"1.").expect("it is written");
        assert_eq!(found().as_deref(), Some("0.3"));
        std::fs::remove_dir_all(&folder).expect("it is there");
    }
}
