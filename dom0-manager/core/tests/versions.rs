//! Managers of different builds in one group (`docs/protocol.md#versions`): hosts are upgraded one after the other while
//! the group serves, and one that does not speak the group's version stays outside and stops nobody.

mod cluster;

use cluster::{answered, config, three_seats, Cluster};
use spare_core::{Config, Core, ManagerState, Notice};
use spare_protocol::versions::{VersionRange, FIRST_VERSION, PROTOCOL_VERSION};
use spare_protocol::{Class, SeatId};

/// A build that speaks the version before the newest one as well.
const BOTH: VersionRange = VersionRange {
    lowest: FIRST_VERSION,
    highest: PROTOCOL_VERSION,
};

/// A group whose managers are all of the build before versions were negotiated.
fn of_old_builds(settings: Config) -> Cluster {
    let seats: Vec<u16> = settings.seats.iter().map(|s| s.0).collect();
    let mut cluster = Cluster::with(Config {
        versions: VersionRange::only(FIRST_VERSION),
        ..settings
    });
    cluster.mute_of_versions = seats;
    cluster
}

fn serving(cluster: &Cluster, seats: &[u16]) -> bool {
    let state = |seat: &u16| cluster.cores[usize::from(*seat)].state();
    seats.iter().all(|s| state(s) == ManagerState::Serving)
}

fn versions(cluster: &Cluster) -> Vec<u16> {
    cluster.cores.iter().map(Core::version).collect()
}

/// The host of a seat gets a build that speaks these versions, while the others go on.
fn reinstalled(cluster: &mut Cluster, seat: u16, spoken: VersionRange) {
    let all: Vec<u16> = (0..cluster.cores.len() as u16).collect();
    let others: Vec<u16> = all.iter().copied().filter(|s| *s != seat).collect();
    cluster.manager_crashes(seat);
    cluster.form_ring(&others, true);
    cluster.run_for(1000);
    cluster.mute_of_versions.retain(|s| *s != seat);
    cluster.speak.insert(seat, spoken);
    cluster.restart(seat);
    cluster.form_ring(&all, true);
    cluster.run_for(5000);
}

/// Requests at the gateways of these seats are answered.
fn serves(cluster: &mut Cluster, gateways: &[u16]) {
    let submitted: Vec<u64> = (gateways.iter())
        .map(|seat| cluster.submit_at(*seat, Class::Write, None, "one more"))
        .collect();
    cluster.run_for(2000);
    for number in submitted {
        assert!(answered(cluster, number), "{:?}", cluster.refused);
    }
}

#[test]
fn hosts_are_upgraded_one_by_one_and_the_last_one_makes_the_new_version_active() {
    let mut cluster = of_old_builds(three_seats());
    cluster.load(31);
    assert_eq!(versions(&cluster), [FIRST_VERSION; 3]);
    for seat in 0..3u16 {
        let begun = cluster.encoded.len();
        reinstalled(&mut cluster, seat, BOTH);
        assert!(serving(&cluster, &[0, 1, 2]), "after seat {seat}");
        serves(&mut cluster, &[0, 1, 2]);
        let expected = if seat < 2 {
            FIRST_VERSION
        } else {
            PROTOCOL_VERSION
        };
        assert_eq!(versions(&cluster), [expected; 3], "after seat {seat}");
        // A later version has a header, which begins so.
        let is_old = |bytes: &[u8]| !bytes.starts_with(&[0x80, 0x00]);
        let said = &cluster.encoded[begun..];
        assert_eq!(said.iter().all(|b| is_old(b)), seat < 2);
    }
    let active =
        |n: &Notice| matches!(n, Notice::Version { version } if *version == PROTOCOL_VERSION);
    let told = cluster.notices.iter().filter(|(_, n)| active(n));
    assert_eq!(told.count(), 2, "once at each member");
    assert_eq!(cluster.logs[0], cluster.logs[2]);
    let print = cluster.cores[0].fingerprint();
    assert_eq!(print, cluster.cores[1].fingerprint());
    assert_eq!(print, cluster.cores[2].fingerprint());
}

#[test]
fn while_a_host_is_of_the_old_build_the_others_can_go_back_to_it() {
    let mut cluster = of_old_builds(config(0, 1));
    cluster.load(31);
    reinstalled(&mut cluster, 0, BOTH);
    // Alone, it could speak the new version with everybody who is there.
    cluster.manager_crashes(1);
    cluster.form_ring(&[0], true);
    cluster.run_for(1000);
    assert_eq!(cluster.cores[0].version(), FIRST_VERSION);
    cluster.restart(1);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(5000);
    assert!(serving(&cluster, &[0, 1]));
    serves(&mut cluster, &[0, 1]);
}

fn alarms(cluster: &Cluster, seat: u16) -> Vec<&str> {
    let of_seat = cluster.notices.iter().filter(|(s, _)| *s == SeatId(seat));
    let alarms = of_seat.filter_map(|(_, notice)| match notice {
        Notice::Alarm(text) => Some(text.as_str()),
        _ => None,
    });
    alarms.collect()
}

/// A joiner that shares no version with the group, beside so many that serve.
fn a_stranger_joins(settings: Config, spoken: VersionRange) {
    let mut cluster = Cluster::with(settings);
    let last = cluster.cores.len() as u16 - 1;
    let others: Vec<u16> = (0..last).collect();
    cluster.load(31);
    let version = cluster.cores[0].version();
    reinstalled(&mut cluster, last, spoken);
    assert!(serving(&cluster, &others), "those that serve go on");
    serves(&mut cluster, &others);
    assert_eq!(
        cluster.cores[usize::from(last)].state(),
        ManagerState::Waiting
    );
    let here = cluster.cores[usize::from(last)].waits_for();
    for text in alarms(&cluster, 0).last().into_iter().chain([&here]) {
        assert!(text.contains(&spoken.to_string()), "{text}");
        assert!(text.contains(&format!("version {version}")), "{text}");
        assert!(text.contains("install a build"), "{text}");
    }
    assert!(
        alarms(&cluster, last).contains(&here),
        "and its own host says so"
    );
    // With a build that speaks it, it is a member again.
    reinstalled(&mut cluster, last, BOTH);
    assert!(serving(&cluster, &others) && serving(&cluster, &[last]));
}

#[test]
fn a_joiner_of_a_newer_version_alone_stays_outside_and_the_others_go_on() {
    let newer = VersionRange::only(PROTOCOL_VERSION + 1);
    a_stranger_joins(three_seats(), newer);
    a_stranger_joins(config(0, 1), newer);
}

#[test]
fn a_joiner_of_an_older_version_alone_stays_outside_and_the_others_go_on() {
    let older = VersionRange::only(FIRST_VERSION);
    a_stranger_joins(three_seats(), older);
    a_stranger_joins(config(0, 1), older);
}

#[test]
fn a_group_that_begins_anew_speaks_the_newest_version_that_all_speak() {
    let mut cluster = cluster::durable();
    cluster.load(31);
    for seat in 0..2 {
        cluster.crash(seat);
    }
    cluster.speak.insert(0, BOTH);
    cluster.speak.insert(1, VersionRange::only(FIRST_VERSION));
    cluster.restart(0);
    cluster.restart(1);
    cluster.form_ring(&[0, 1], true);
    cluster.run_for(10_000);
    assert!(serving(&cluster, &[0, 1]));
    assert_eq!(versions(&cluster), [FIRST_VERSION; 2]);
    serves(&mut cluster, &[0, 1]);
}
