use super::*;
use crate::init::{self, InitOptions};
use clap::Parser;
use spare_protocol::admin::{Counters, HostStatus, Mode};

/// What `spare init` wrote for h1 and h2, as it lies on h1, and a folder for what is made.
struct Scratch(PathBuf);

#[derive(Parser)]
struct Init {
    #[command(flatten)]
    options: InitOptions,
}

#[derive(Parser)]
struct Add {
    #[command(flatten)]
    options: AddOptions,
}

impl Scratch {
    fn new(name: &str, hosts: &str) -> Scratch {
        Scratch::with(name, hosts, &[])
    }

    fn with(name: &str, hosts: &str, more: &[&str]) -> Scratch {
        let folder = std::env::temp_dir().join(format!("spare-host-{name}-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let made = folder.join("made");
        let line = [
            "init",
            "--hosts",
            hosts,
            "--directory",
            made.to_str().unwrap(),
        ];
        init::run(&Init::parse_from(line.iter().chain(more)).options).unwrap();
        Scratch(folder)
    }

    fn path(&self, file: &str) -> String {
        self.0.join(file).to_str().unwrap().to_owned()
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join(file)).unwrap()
    }

    fn files(&self, host: &str) -> Files {
        Files {
            config: self.0.join(format!("made/{host}/spare.toml")),
            corosync: self.0.join(format!("made/{host}/corosync.conf")),
        }
    }

    fn add(&self, host: &str, arguments: &[&str]) -> Result<String> {
        let (config, conf) = (
            self.path(&format!("made/{host}/spare.toml")),
            self.path(&format!("made/{host}/corosync.conf")),
        );
        let line = ["add", "--config", &config, "--corosync", &conf];
        add(&Add::parse_from(line.iter().chain(arguments)).options)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn status(members: &[(&str, bool, bool)]) -> Status {
    let host = |(name, member, drained): &(&str, bool, bool)| HostStatus {
        name: (*name).to_owned(),
        accelerator: String::new(),
        agent: true,
        here: false,
        member: *member,
        drained: *drained,
        connected: *member,
    };
    let hosts = members.iter().map(host).collect();
    Status {
        service: "auction".to_owned(),
        mode: Mode::Serving,
        engine: "corosync".to_owned(),
        durability: "disk".to_owned(),
        faults: 1,
        epoch: 2,
        ordered: 4_210,
        decided: 4_207,
        updates_max: 200,
        gateway: "http://127.0.0.1:8080".to_owned(),
        state: String::new(),
        waits_for: String::new(),
        hosts,
        seats: Vec::new(),
        counters: Counters::default(),
        last_conviction: None,
    }
}

#[test]
fn a_host_is_added_to_every_hosts_files_and_gets_its_own() {
    let scratch = Scratch::new("add", "h1=10.0.0.1,h2=10.0.0.2");
    let (authority, new) = (scratch.path("made/authority"), scratch.path("new"));
    let with = [
        "h3=10.0.0.3",
        "--authority",
        &authority,
        "--directory",
        &new,
    ];
    let said = scratch.add("h1", &with).unwrap();
    assert!(said.contains("needed on: h2"), "{said}");
    scratch.add("h2", &["h3=10.0.0.3"]).unwrap();
    let conf = scratch.read("made/h1/corosync.conf");
    assert_eq!(conf, scratch.read("made/h2/corosync.conf"));
    assert_eq!(conf, scratch.read("new/h3/corosync.conf"));
    assert!(conf.contains("ring0_addr: 10.0.0.3"));
    for (file, host) in [("made/h2", "h2"), ("new/h3", "h3")] {
        let settings = Settings::read(&scratch.read(&format!("{file}/spare.toml"))).unwrap();
        assert_eq!(settings.this_host(), Some(host));
        assert_eq!(settings.hosts().len(), 3);
    }
    let same = |file: &str| std::fs::read(scratch.0.join(file)).unwrap();
    assert_eq!(same("new/h3/authkey"), same("made/h1/authkey"));
    assert_eq!(
        same("new/h3/peers/authority.pem"),
        same("made/h1/peers/authority.pem")
    );
    let before = scratch.read("made/h1/spare.toml.before");
    assert_eq!(Settings::read(&before).unwrap().hosts().len(), 2);
    let mode = |file: &str| std::fs::metadata(scratch.0.join(file)).unwrap().mode() & 0o777;
    assert_eq!(mode("new/h3/peers/key.pem"), 0o600);
    assert_eq!(mode("made/h1/corosync.conf"), 0o644);
}

#[test]
fn what_is_refused_changes_nothing() {
    let scratch = Scratch::new("refused", "h1=10.0.0.1,h2=10.0.0.2");
    let before = [
        scratch.read("made/h1/spare.toml"),
        scratch.read("made/h1/corosync.conf"),
    ];
    let missing = scratch.path("nowhere");
    let new = scratch.path("new");
    for arguments in [
        &["h2=10.0.0.3"][..],
        &["h3=10.0.0.2"],
        &["h3=127.0.0.1"],
        &["h3=10.0.0.3", "--seat", "1"],
        &["h3=10.0.0.3+10.1.0.3"],
        &["h3=10.0.0.3", "--authority", &missing, "--directory", &new],
    ] {
        assert!(scratch.add("h1", arguments).is_err(), "{arguments:?}");
    }
    let all = status(&[("h1", true, false), ("h2", true, true)]);
    let refused = remove(&all, &scratch.files("h1"), "h2").unwrap_err();
    assert!(format!("{refused:#}").contains("f + 1 = 2"), "{refused:#}");
    let after = [
        scratch.read("made/h1/spare.toml"),
        scratch.read("made/h1/corosync.conf"),
    ];
    assert_eq!(before, after);
}

#[test]
fn a_host_is_removed_only_when_others_have_its_replicas() {
    let scratch = Scratch::new("remove", "h1=10.0.0.1,h2=10.0.0.2,h3=10.0.0.3");
    let files = scratch.files("h1");
    let refused = |members: &[(&str, bool, bool)]| {
        let refused = remove(&status(members), &files, "h3").unwrap_err();
        format!("{refused:#}")
    };
    let serving = [
        ("h1", true, false),
        ("h2", true, false),
        ("h3", true, false),
    ];
    assert!(refused(&serving).contains("drain h3 first"));
    let short = [
        ("h1", true, false),
        ("h2", false, false),
        ("h3", true, true),
    ];
    assert!(refused(&short).contains("bring them back"));
    assert!(
        format!("{:#}", remove(&status(&serving), &files, "h1").unwrap_err()).contains("this host")
    );
    let drained = [("h1", true, false), ("h2", true, false), ("h3", true, true)];
    let said = remove(&status(&drained), &files, "h3").unwrap();
    assert!(said.contains("needed on: h2"), "{said}");
    assert!(!scratch.read("made/h1/corosync.conf").contains("10.0.0.3"));
    let settings = Settings::read(&scratch.read("made/h1/spare.toml")).unwrap();
    assert_eq!(settings.hosts().len(), 2);
    // Again on the next host: the first one's manager may know of it no more.
    let gone = [("h1", true, false), ("h2", true, false)];
    remove(&status(&gone), &scratch.files("h2"), "h3").unwrap();
}

#[test]
fn a_link_beside_a_file_that_is_replaced_is_not_written_through() {
    let scratch = Scratch::with("link", "h1=10.0.0.1,h2=10.0.0.2", &[]);
    let victim = scratch.0.join("victim");
    std::fs::write(&victim, "of somebody else").unwrap();
    let beside = scratch.0.join("made/h1/spare.toml.new");
    std::os::unix::fs::symlink(&victim, &beside).unwrap();
    scratch.add("h1", &["h3=10.0.0.3"]).unwrap();
    assert_eq!(scratch.read("victim"), "of somebody else");
    assert!(scratch.read("made/h1/spare.toml").contains("10.0.0.3"));
}

#[test]
fn beside_a_witness_its_device_is_started_and_stopped_too() {
    let scratch = Scratch::with(
        "witness",
        "h1=10.0.0.1,h2=10.0.0.2",
        &["--witness", "10.0.0.9", "--witness-tls", "off"],
    );
    let said = scratch.add("h1", &["h3=10.0.0.3"]).unwrap();
    assert!(
        said.contains("start corosync, corosync-qdevice and"),
        "{said}"
    );
    let all = status(&[("h1", true, false), ("h2", true, false)]);
    let said = remove(&all, &scratch.files("h1"), "h3").unwrap();
    assert!(
        said.contains("Stop corosync, corosync-qdevice and"),
        "{said}"
    );
}
