//! Evidence of a conviction, as files that an operator can read.

use crate::difference::first_difference;
use spare_core::{ConvictionBasis, Disagreement, Evidence};
use spare_protocol::admin::Conviction;
use spare_protocol::channel::Outcome;
use spare_protocol::http::{HttpReply, HttpRequest};
use spare_protocol::{Position, ReplicaId};
use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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

/// The folder of all convictions' evidence, and its bounds. The oldest make room, but the last one stays.
#[derive(Debug)]
pub(crate) struct Archive {
    folder: PathBuf,
    convictions_max: usize,
    bytes_max: u64,
    /// Held while something is written or removed.
    changing: Mutex<()>,
}

/// A conviction's folder.
struct ConvictionFolder {
    path: PathBuf,
    at_us: i64,
    bytes: u64,
}

impl Archive {
    /// Evidence goes to `folder`: of at most so many convictions, and about so many bytes.
    pub(crate) fn new(folder: PathBuf, convictions_max: usize, bytes_max: u64) -> Archive {
        Archive {
            folder,
            convictions_max,
            bytes_max,
            changing: Mutex::default(),
        }
    }

    /// Where the evidence against `replica` goes.
    pub(crate) fn folder_of(&self, replica: ReplicaId, position: Position) -> PathBuf {
        self.folder.join(folder_name(replica, position))
    }

    /// Writes what `evidence` holds, and the conviction, from the seat that tells of it; on a thread of its own:
    /// the disk may be slow.
    pub(crate) fn keep(
        self: &Arc<Archive>,
        (replica, position): (ReplicaId, Position),
        evidence: &Evidence,
        conviction: Option<Conviction>,
    ) {
        let (archive, evidence) = (Arc::clone(self), evidence.clone());
        tokio::task::spawn_blocking(move || {
            let folder = archive.folder_of(replica, position);
            if let Err(error) = archive.add(&folder, replica, &evidence, conviction.as_ref()) {
                tracing::error!("cannot keep evidence in {}: {error}", folder.display());
            }
        });
    }

    fn add(
        &self,
        folder: &Path,
        replica: ReplicaId,
        evidence: &Evidence,
        conviction: Option<&Conviction>,
    ) -> std::io::Result<()> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        write(folder, replica, evidence, conviction)?;
        self.trim(folder)
    }

    /// Removes the oldest until what is left is within the bounds; `last` and the newest stay.
    fn trim(&self, last: &Path) -> std::io::Result<()> {
        let mut all: Vec<ConvictionFolder> = self.folders()?;
        all.sort_by_key(|folder| folder.at_us);
        let newest = all.pop();
        let mut count = all.len() + usize::from(newest.is_some());
        let mut bytes: u64 = all.iter().chain(&newest).map(|folder| folder.bytes).sum();
        for folder in all.iter().filter(|folder| folder.path != last) {
            if count <= self.convictions_max && bytes <= self.bytes_max {
                break;
            }
            std::fs::remove_dir_all(&folder.path)?;
            count -= 1;
            bytes -= folder.bytes;
        }
        Ok(())
    }

    /// The folders that this program made.
    fn folders(&self) -> std::io::Result<Vec<ConvictionFolder>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if !entry.file_type()?.is_dir() || !is_folder_name(&name.to_string_lossy()) {
                continue;
            }
            let folder = entry.path();
            let told = read(&folder.join(CONVICTION)).map(|conviction| conviction.at_us);
            all.push(ConvictionFolder {
                at_us: told.map_or_else(|| changed_us(&entry), Ok)?,
                bytes: bytes_in(&folder)?,
                path: folder,
            });
        }
        Ok(all)
    }
}

/// So many disagreements are kept; the oldest make room.
const DISAGREEMENTS_MAX: usize = 16;
/// So much of each reply is.
const REPLY_BYTES_MAX: usize = 1 << 20;

/// The name of a disagreement's folder.
pub(crate) fn disagreement_name(position: Position) -> String {
    format!("disagreement-at-{position}")
}

impl Archive {
    /// Writes what a request was that replicas answered differently, all votes, the replies of this host's, and where
    /// those differ; on a thread of its own. Each seat adds what it has.
    pub(crate) fn keep_disagreement(self: &Arc<Archive>, position: Position, shown: &Disagreement) {
        let (archive, shown) = (Arc::clone(self), shown.clone());
        tokio::task::spawn_blocking(move || {
            let folder = archive.folder.join(disagreement_name(position));
            if let Err(error) = archive.add_disagreement(&folder, &shown) {
                tracing::error!("cannot keep evidence in {}: {error}", folder.display());
            }
        });
    }

    fn add_disagreement(&self, folder: &Path, shown: &Disagreement) -> std::io::Result<()> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("request.txt"), request_text(&shown.request))?;
        let mut votes = String::from("replica  reply             update\n");
        for vote in &shown.votes {
            let (replica, reply) = (vote.replica.to_string(), vote.reply.short());
            // Writing to a string cannot fail.
            let _ = writeln!(votes, "{replica:<8} {reply}  {}", vote.update.short());
        }
        std::fs::write(folder.join("votes.txt"), votes)?;
        for (replica, outcome, update) in &shown.answers {
            let mut reply = reply_text(outcome);
            reply.truncate(REPLY_BYTES_MAX);
            std::fs::write(folder.join(format!("{REPLY}{replica}.txt")), reply)?;
            let update = update.slice(..update.len().min(REPLY_BYTES_MAX));
            std::fs::write(folder.join(format!("update-{replica}.bin")), update)?;
        }
        if let Some(text) = differences(folder)? {
            std::fs::write(folder.join("difference.txt"), text)?;
        }
        self.trim_disagreements()
    }

    fn trim_disagreements(&self) -> std::io::Result<()> {
        let mut all: Vec<(i64, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            if is_disagreement_name(&entry.file_name().to_string_lossy()) {
                all.push((changed_us(&entry)?, entry.path()));
            }
        }
        all.sort_unstable();
        let many = all.len().saturating_sub(DISAGREEMENTS_MAX);
        for (_, folder) in all.iter().take(many) {
            std::fs::remove_dir_all(folder)?;
        }
        Ok(())
    }
}

/// Files with this and a replica's name hold its reply.
const REPLY: &str = "reply-";

/// Where the first of the replies in a folder differs from each of the others, if there are several.
fn differences(folder: &Path) -> std::io::Result<Option<String>> {
    let mut replies = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(of) = name
            .strip_prefix(REPLY)
            .and_then(|n| n.strip_suffix(".txt"))
        {
            replies.insert(of.to_owned(), std::fs::read(entry.path())?);
        }
    }
    let mut replies = replies.into_iter();
    let Some((first, reply)) = replies.next() else {
        return Ok(None);
    };
    let mut text = String::new();
    for (other, its) in replies {
        let place = first_difference(&reply, &its);
        let place = place.unwrap_or_else(|| "the same reply".to_owned());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{first} | {other}: {place}");
    }
    Ok((!text.is_empty()).then_some(text))
}

fn is_disagreement_name(name: &str) -> bool {
    let position = name.strip_prefix("disagreement-at-");
    position.is_some_and(|p| p.parse::<u64>().is_ok())
}

/// The name of a conviction's folder.
pub(crate) fn folder_name(replica: ReplicaId, position: Position) -> String {
    format!("{replica}-at-{position}")
}

/// Why a replica was convicted, for the note that later runs find on disk.
pub(crate) fn reason(basis: &ConvictionBasis) -> String {
    match basis {
        ConvictionBasis::Channel(how) => format!("channel: {how}"),
        ConvictionBasis::Reply => "reply".to_owned(),
        ConvictionBasis::Update => "update".to_owned(),
        ConvictionBasis::Root { .. } => "root".to_owned(),
    }
}

fn is_folder_name(name: &str) -> bool {
    name.split_once("-at-").is_some_and(|(replica, position)| {
        replica.parse::<ReplicaId>().is_ok() && position.parse::<u64>().is_ok()
    })
}

/// When the folder was changed, in microseconds since the Unix epoch.
fn changed_us(entry: &std::fs::DirEntry) -> std::io::Result<i64> {
    let metadata = entry.metadata()?;
    let whole = metadata.mtime().saturating_mul(1_000_000);
    Ok(whole.saturating_add(metadata.mtime_nsec() / 1000))
}

/// The lengths of its files.
fn bytes_in(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

impl Archive {
    /// The newest conviction, of whatever run.
    pub(crate) fn newest(&self) -> Option<Conviction> {
        let folders = std::fs::read_dir(&self.folder).ok()?;
        let convictions = folders.filter_map(|folder| read(&folder.ok()?.path().join(CONVICTION)));
        convictions.max_by_key(|conviction| conviction.at_us)
    }
}

/// Nothing if it is not there, or not whole: its host may have crashed meanwhile.
fn read(path: &Path) -> Option<Conviction> {
    let length = std::fs::symlink_metadata(path).ok()?.len();
    let text = (length <= CONVICTION_BYTES_MAX).then(|| std::fs::read(path).ok())??;
    serde_json::from_slice(&text).ok()
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
    std::fs::write(folder.join("request.txt"), request_text(&evidence.request))?;
    for (name, bytes) in [("agreed", &evidence.agreed), ("wrong", &evidence.wrong)] {
        if let Some((outcome, update)) = bytes {
            std::fs::write(
                folder.join(format!("{name}-reply.txt")),
                reply_text(outcome),
            )?;
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

/// A request as it is written into its file: HTTP as text, or its bytes if it is none.
pub(crate) fn request_text(bytes: &[u8]) -> Vec<u8> {
    let Ok(http) = spare_protocol::decode::<HttpRequest>(bytes) else {
        return bytes.to_vec();
    };
    let mut text = format!("{} {}\n", http.method, http.target).into_bytes();
    headers(&mut text, &http.headers);
    text.extend_from_slice(&http.body);
    text
}

/// A reply as it is written into its file.
pub(crate) fn reply_text(outcome: &Outcome) -> Vec<u8> {
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

    fn archive(name: &str, convictions_max: usize, bytes_max: u64) -> Archive {
        let folder =
            std::env::temp_dir().join(format!("spare-evidence-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        Archive::new(folder, convictions_max, bytes_max)
    }

    fn add(archive: &Archive, replica: &str, at_us: i64, request_bytes: usize) {
        let replica: ReplicaId = replica.parse().expect("it is one");
        let conviction = Conviction {
            replica: replica.to_string(),
            position: 1,
            at_us,
            reason: ConvictionReason::Channel,
            request: "x".repeat(request_bytes),
            votes: vec![],
            agreed_reply: String::new(),
            agreed_update: String::new(),
            evidence: None,
        };
        let folder = archive.folder_of(replica, Position(1));
        let added = archive.add(&folder, replica, &Evidence::default(), Some(&conviction));
        added.expect("it is written");
    }

    fn replicas(archive: &Archive) -> Vec<String> {
        let entries = std::fs::read_dir(&archive.folder).expect("it is there");
        let names = entries.flatten().map(|e| e.file_name());
        let mut names: Vec<_> = names.map(|n| n.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_conviction_is_found_among_damaged_ones() {
        let archive = archive("newest", 10, 1 << 20);
        assert_eq!(archive.newest(), None);
        for (replica, at_us) in [("0.1", 5), ("1.2", 9), ("0.3", 7)] {
            add(&archive, replica, at_us, 10);
        }
        let found = || archive.newest().map(|c| c.replica);
        assert_eq!(found().as_deref(), Some("1.2"));
        let torn = archive.folder.join("1.2-at-1").join(CONVICTION);
        std::fs::write(&torn, "{\"replica\": \"1.").expect("it is written");
        assert_eq!(found().as_deref(), Some("0.3"));
        std::fs::remove_dir_all(&archive.folder).expect("it is there");
    }

    #[test]
    fn of_a_disagreement_both_replies_are_kept_and_where_they_differ() {
        let archive = archive("disagreement", 2, 1 << 20);
        for position in 1..=20 {
            let folder = archive.folder.join(disagreement_name(Position(position)));
            for (replica, page) in [("0.1", "drawn: 17"), ("1.1", "drawn: 4")] {
                let replica = replica.parse().expect("it is one");
                let shown = Disagreement {
                    request: bytes::Bytes::from_static(b"GET /lottery"),
                    votes: vec![],
                    answers: vec![(replica, Outcome::Reply(page.into()), bytes::Bytes::new())],
                };
                let added = archive.add_disagreement(&folder, &shown);
                added.expect("it is written");
            }
        }
        let kept = replicas(&archive);
        assert_eq!(kept.len(), DISAGREEMENTS_MAX);
        let newest = archive.folder.join(disagreement_name(Position(20)));
        let text = std::fs::read_to_string(newest.join("difference.txt")).expect("it is there");
        let expected = "0.1 | 1.1: line 1: \"drawn: 17\" | \"drawn: 4\"\n";
        assert_eq!(text, expected);
        std::fs::remove_dir_all(&archive.folder).expect("it is there");
    }

    #[test]
    fn the_oldest_convictions_make_room_and_nothing_else_does() {
        let archive = archive("count", 2, 1 << 20);
        let others = archive.folder.join("an operator's notes");
        std::fs::create_dir_all(&others).expect("it is made");
        for (replica, at_us) in [("0.1", 5), ("1.2", 9), ("0.3", 7)] {
            add(&archive, replica, at_us, 10);
        }
        assert_eq!(
            replicas(&archive),
            ["0.3-at-1", "1.2-at-1", "an operator's notes"]
        );
        // One that is written just now stays, whatever its host's clock says; and so does the newest.
        add(&archive, "0.4", 1, 10);
        assert_eq!(
            replicas(&archive),
            ["0.4-at-1", "1.2-at-1", "an operator's notes"]
        );
        std::fs::remove_dir_all(&archive.folder).expect("it is there");
    }

    #[test]
    fn evidence_is_bounded_in_bytes_but_the_last_conviction_stays() {
        let archive = archive("bytes", 10, 5000);
        for (replica, at_us) in [("0.1", 1), ("0.2", 2), ("0.3", 3)] {
            add(&archive, replica, at_us, 2000);
        }
        assert_eq!(replicas(&archive), ["0.2-at-1", "0.3-at-1"]);
        add(&archive, "0.4", 4, 10_000);
        assert_eq!(replicas(&archive), ["0.4-at-1"]);
        std::fs::remove_dir_all(&archive.folder).expect("it is there");
    }
}
