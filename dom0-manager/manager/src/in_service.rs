//! Which replicas are in service, for the next run of the manager: it takes up those that are still
//! there ([`spare_core::Output::PutInService`]).
//!
//! A line for each change, handed to the operating system before anything else is done, and never synced: what
//! survives the loss of the host's memory names replicas that did not, which the host's boot id shows.
//!
//! The file is called `kept`, and its first line says so: an older word for replicas that outlive their manager. The
//! format on disk stays, so that a manager of a newer build takes up the replicas of an older one.
//!
//! ```text
//! spare-kept 1 BOOT
//! + REPLICA clean      in service, and never executed a request
//! + REPLICA used       in service
//! - REPLICA            no longer
//! ```

use spare_protocol::ReplicaId;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

const NAME: &str = "kept";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The list of one seat, open for changes.
#[derive(Debug)]
pub(crate) struct InServiceList {
    file: File,
}

/// The replicas that the list in `folder` names, and whether they are clean; none if the list was
/// written before the host started, or not by this program.
pub(crate) fn read(folder: &Path) -> BTreeMap<ReplicaId, bool> {
    let text = std::fs::read(folder.join(NAME)).unwrap_or_default();
    parse(&String::from_utf8_lossy(&text), &boot_id())
}

/// Whether there is a list, of whatever run.
pub(crate) fn exists(folder: &Path) -> bool {
    folder.join(NAME).exists()
}

fn boot_id() -> String {
    let id = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    id.trim().to_owned()
}

fn parse(text: &str, boot: &str) -> BTreeMap<ReplicaId, bool> {
    let mut found = BTreeMap::new();
    // A line without an end was not written before its change took place.
    let mut lines = text
        .split_inclusive('\n')
        .filter_map(|l| l.strip_suffix('\n'));
    if boot.is_empty() || lines.next() != Some(&head(boot)) {
        return found;
    }
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let replica = words.get(1).and_then(|name| name.parse::<ReplicaId>().ok());
        match (words.as_slice(), replica) {
            (["+", _, "clean"], Some(replica)) => drop(found.insert(replica, true)),
            (["+", _, "used"], Some(replica)) => drop(found.insert(replica, false)),
            (["-", _], Some(replica)) => drop(found.remove(&replica)),
            _ => {}
        }
    }
    found
}

fn head(boot: &str) -> String {
    format!("spare-kept 1 {boot}")
}

fn line(replica: ReplicaId, clean: bool) -> String {
    format!("+ {replica} {}\n", if clean { "clean" } else { "used" })
}

impl InServiceList {
    /// Begins the list in `folder` anew, with these replicas.
    pub(crate) fn begin(
        folder: &Path,
        replicas: &BTreeMap<ReplicaId, bool>,
    ) -> io::Result<InServiceList> {
        let mut text = head(&boot_id()) + "\n";
        text.extend(
            replicas
                .iter()
                .map(|(replica, clean)| line(*replica, *clean)),
        );
        let new = folder.join("kept.new");
        std::fs::write(&new, text)?;
        std::fs::rename(&new, folder.join(NAME))?;
        let file = File::options().append(true).open(folder.join(NAME))?;
        Ok(InServiceList { file })
    }

    /// A replica is in service.
    pub(crate) fn add(&mut self, replica: ReplicaId, clean: bool) -> io::Result<()> {
        self.file.write_all(line(replica, clean).as_bytes())
    }

    /// A replica is no longer.
    pub(crate) fn remove(&mut self, replica: ReplicaId) -> io::Result<()> {
        self.file.write_all(format!("- {replica}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_protocol::SeatId;

    fn replica(generation: u32) -> ReplicaId {
        ReplicaId {
            seat: SeatId(1),
            generation,
        }
    }

    #[test]
    fn the_list_names_what_is_in_service_and_what_executed() {
        let folder = std::env::temp_dir().join(format!("spare-kept-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("create");
        let mut list = InServiceList::begin(&folder, &BTreeMap::new()).expect("begin");
        list.add(replica(1), true).expect("add");
        list.add(replica(2), true).expect("add");
        list.add(replica(3), true).expect("add");
        list.add(replica(1), false).expect("add");
        list.remove(replica(2)).expect("remove");
        let expected = BTreeMap::from([(replica(1), false), (replica(3), true)]);
        assert_eq!(read(&folder), expected);
        let begun = InServiceList::begin(&folder, &expected).expect("begin");
        drop(begun);
        assert_eq!(read(&folder), expected);
        std::fs::remove_dir_all(folder).expect("remove");
    }

    #[test]
    fn a_list_from_before_the_host_started_names_nothing_and_a_torn_line_does_not_count() {
        let text = "spare-kept 1 now\n+ 1.1 clean\n+ 1.1 use";
        assert_eq!(parse(text, "now"), BTreeMap::from([(replica(1), true)]));
        assert_eq!(parse(text, "later"), BTreeMap::new());
        assert_eq!(parse("", ""), BTreeMap::new());
    }
}
