//! `spare init`: everything that several hosts need before their managers start, in one folder a host, to
//! be copied there by whoever may. It changes nothing on the machine it runs on.
//!
//! The texts are made by pure functions ([`corosync`], [`fragment`]) from a checked [`plan`]; the rest is
//! keys ([`authority`], [`witness`]) and writing files ([`folder`]).

pub(crate) mod authority;
pub(crate) mod corosync;
pub(crate) mod folder;
pub(crate) mod fragment;
pub(crate) mod plan;
pub(crate) mod witness;

use anyhow::{anyhow, bail, Context, Result};
use folder::NewFile;
use plan::{Plan, Witness, WitnessTls, AUTHORITY_FOLDER, WITNESS_FOLDER};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Less than this and a busy host is taken for a dead one.
const TOKEN_MS_MIN: u32 = 300;
/// More than this and clients have long given up.
const TOKEN_MS_MAX: u32 = 30_000;

/// What is asked for.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct InitOptions {
    /// The hosts, at least f+1; with several links, NAME=ADDRESS+ADDRESS
    #[arg(
        long,
        value_name = "NAME=ADDRESS,…",
        value_delimiter = ',',
        required_unless_present = "existing"
    )]
    pub(crate) hosts: Vec<String>,
    /// Join the cluster that this configuration of Corosync describes, and write only SPARE's part
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = "/etc/corosync/corosync.conf",
        conflicts_with_all = ["hosts", "witness", "witness_tls", "cluster", "token_ms"]
    )]
    pub(crate) existing: Option<PathBuf>,
    /// f: how many faulty replicas are masked
    #[arg(long, default_value_t = 1)]
    pub(crate) faults: u16,
    /// A third machine that decides which half goes on (corosync-qnetd)
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) witness: Option<String>,
    /// Whether hosts and witness know one another by certificates
    #[arg(long, value_enum, default_value_t = WitnessTls::Required, requires = "witness")]
    pub(crate) witness_tls: WitnessTls,
    /// A lost host is fenced before another goes on alone (set up in spare.toml)
    #[arg(long)]
    pub(crate) fencing: bool,
    /// The cluster's name
    #[arg(long, value_name = "NAME", default_value = "spare")]
    pub(crate) cluster: String,
    /// The loss of a host is noticed after about 2.1 times this
    #[arg(long, value_name = "MS", default_value_t = corosync::TOKEN_MS)]
    pub(crate) token_ms: u32,
    /// The port of the managers' direct connections
    #[arg(long, value_name = "PORT", default_value_t = 7400)]
    pub(crate) peer_port: u16,
    /// Where to write: a folder for each host
    #[arg(long, value_name = "DIR", default_value = "spare-hosts")]
    pub(crate) directory: PathBuf,
}

/// Does it, and says in words what was written and what to do with it.
///
/// # Errors
/// When what is asked for makes no group, or cannot be written. What was there before stays as it was.
pub(crate) fn run(options: &InitOptions) -> Result<String> {
    if !(TOKEN_MS_MIN..=TOKEN_MS_MAX).contains(&options.token_ms) {
        bail!("--token-ms: from {TOKEN_MS_MIN} to {TOKEN_MS_MAX}");
    }
    let (plan, joins) = match &options.existing {
        Some(file) => (existing(file, options)?, true),
        None => (new(options)?, false),
    };
    plan.check()?;
    folder::check_empty(&options.directory)?;
    let certified = |w: &Witness| !joins && w.tls == WitnessTls::Required;
    let certified = plan.witness.as_ref().is_some_and(certified);
    if certified {
        witness::check_tools()?;
    }
    let files = files(&plan, (!joins).then_some(options.token_ms))?;
    folder::write(&options.directory, &files)?;
    if certified {
        let databases = witness::Databases {
            witness: options.directory.join(WITNESS_FOLDER).join("nssdb"),
            hosts: (plan.hosts.iter())
                .map(|host| options.directory.join(&host.name).join("nssdb"))
                .collect(),
        };
        witness::make(&databases, &plan.cluster)
            .context("the witness's certificates could not be made")?;
    }
    Ok(report(&plan, &options.directory, joins, certified))
}

fn new(options: &InitOptions) -> Result<Plan> {
    Ok(Plan {
        cluster: options.cluster.clone(),
        hosts: plan::parse_hosts(options.hosts.iter().map(String::as_str))?,
        faults: options.faults,
        witness: options.witness.clone().map(|address| Witness {
            address,
            tls: options.witness_tls,
        }),
        fencing: options.fencing,
        peer_port: options.peer_port,
    })
}

fn existing(file: &Path, options: &InitOptions) -> Result<Plan> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("--existing: cannot read {}", file.display()))?;
    let existing =
        corosync::read(&text).map_err(|e| anyhow!("--existing: {}: {e}", file.display()))?;
    if existing.two_node {
        bail!(
            "--existing: {} has two_node: 1, so both halves of a partition are quorate, and SPARE does not run on \
             that. Replace two_node by a witness, or remove it and let SPARE fence (--fencing)",
            file.display()
        );
    }
    Ok(Plan {
        cluster: existing.cluster,
        hosts: existing.hosts,
        faults: options.faults,
        // How its connections are secured is not SPARE's to say.
        witness: existing.witness.map(|address| Witness {
            address,
            tls: WitnessTls::Required,
        }),
        fencing: options.fencing,
        peer_port: options.peer_port,
    })
}

/// All files; those of Corosync only for a new cluster, with its token.
fn files(plan: &Plan, token_ms: Option<u32>) -> Result<Vec<NewFile>> {
    let certificates = authority::certificates(plan)?;
    let link_key = authority::link_key();
    let mut files = vec![
        NewFile::open(
            format!("{AUTHORITY_FOLDER}/{}", fragment::AUTHORITY_FILE),
            certificates.authority.clone(),
        ),
        NewFile::secret(
            format!("{AUTHORITY_FOLDER}/{}", fragment::KEY_FILE),
            certificates.authority_key,
        ),
    ];
    if token_ms.is_some() && plan.witness.is_some() {
        let path = format!("{WITNESS_FOLDER}/corosync-qnetd");
        files.push(NewFile::open(path, corosync::witness_options()));
    }
    for (host, (certificate, key)) in plan.hosts.iter().zip(certificates.hosts) {
        let of = |file: &str| format!("{}/{file}", host.name);
        let peers = |file: &str| format!("{}/peers/{file}", host.name);
        if let Some(token_ms) = token_ms {
            let text = corosync::configuration(plan, token_ms);
            files.push(NewFile::open(of("corosync.conf"), text));
            files.push(NewFile::key(of("authkey"), link_key));
        }
        files.push(NewFile::open(of("uidgid"), corosync::admission()));
        let text = fragment::fragment(plan, host);
        files.push(NewFile::open(of("spare.toml"), text));
        let authority = certificates.authority.clone();
        files.push(NewFile::open(peers(fragment::AUTHORITY_FILE), authority));
        files.push(NewFile::open(
            peers(fragment::CERTIFICATE_FILE),
            certificate,
        ));
        files.push(NewFile::secret(peers(fragment::KEY_FILE), key));
    }
    Ok(files)
}

fn report(plan: &Plan, directory: &Path, joins: bool, certified: bool) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut say = |line: String| {
        let _ = writeln!(text, "{line}");
    };
    let names: Vec<&str> = plan.hosts.iter().map(|h| h.name.as_str()).collect();
    say(format!(
        "{}: written for {}; f = {}",
        directory.display(),
        names.join(", "),
        plan.faults
    ));
    for note in plan.notes() {
        say(format!("note: {note}"));
    }
    say("On each HOST, as root, from its folder:".to_owned());
    if !joins {
        say("  corosync.conf, authkey  to /etc/corosync/".to_owned());
    }
    say("  uidgid                  to /etc/corosync/uidgid.d/spare".to_owned());
    if certified {
        say("  nssdb/                  to /etc/corosync/qdevice/net/nssdb/".to_owned());
    }
    say("  peers/                  to /etc/spare/peers/, owned by the user spare".to_owned());
    say("  spare.toml              in the place of [group] in /etc/spare/spare.toml".to_owned());
    if !joins && plan.witness.is_some() {
        say(format!(
            "On the witness: {WITNESS_FOLDER}/corosync-qnetd to /etc/default/"
        ));
    }
    if certified {
        say(format!(
            "On the witness: {WITNESS_FOLDER}/nssdb/ to /etc/corosync/qnetd/nssdb/, owned by coroqnetd"
        ));
    }
    if !joins {
        let device = plan.witness.as_ref().map_or("", |_| " corosync-qdevice");
        say(format!(
            "Then on each HOST: systemctl enable --now corosync{device}; corosync-quorumtool -s"
        ));
    } else {
        say("Then on each HOST: corosync-cfgtool -R, which lets the user spare in".to_owned());
    }
    say(format!(
        "Keep {AUTHORITY_FOLDER}/ where nobody reads it: it signs a new host's certificate. \
         Remove the other folders here once they are copied: they hold keys."
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::os::unix::fs::PermissionsExt;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: InitOptions,
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let folder = format!("spare-init-run-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(folder);
            std::fs::create_dir(&folder).unwrap();
            Scratch(folder)
        }

        fn options(&self, arguments: &[&str]) -> InitOptions {
            let directory = self.0.join("out");
            let directory = directory.to_str().unwrap();
            let fixed = ["init", "--directory", directory];
            Line::try_parse_from(fixed.iter().chain(arguments))
                .unwrap_or_else(|e| panic!("{e}"))
                .options
        }

        fn read(&self, file: &str) -> String {
            std::fs::read_to_string(self.0.join("out").join(file)).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const TWO: [&str; 2] = ["--hosts", "h1=10.0.0.1,h2=10.0.0.2"];

    #[test]
    fn every_host_gets_the_same_cluster_and_its_own_identity() {
        let scratch = Scratch::new("two");
        let said = run(&scratch.options(&TWO)).unwrap();
        assert!(said.contains("written for h1, h2") && said.contains("stop answering"));
        assert_eq!(
            scratch.read("h1/corosync.conf"),
            scratch.read("h2/corosync.conf")
        );
        let key = |host: &str| std::fs::read(scratch.0.join("out").join(host).join("authkey"));
        assert_eq!(key("h1").unwrap(), key("h2").unwrap());
        assert_eq!(key("h1").unwrap().len(), authority::LINK_KEY_BYTES);
        assert_ne!(
            scratch.read("h1/peers/key.pem"),
            scratch.read("h2/peers/key.pem")
        );
        assert_eq!(
            scratch.read("h1/peers/authority.pem"),
            scratch.read("authority/authority.pem")
        );
        for (file, wanted) in [("h1/authkey", 0o400), ("h2/peers/key.pem", 0o600)] {
            let metadata = std::fs::metadata(scratch.0.join("out").join(file)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, wanted, "{file}");
        }
    }

    #[test]
    fn a_second_run_into_the_same_folder_is_refused() {
        let scratch = Scratch::new("again");
        run(&scratch.options(&TWO)).unwrap();
        let before = scratch.read("h1/peers/key.pem");
        let refused = run(&scratch.options(&TWO)).unwrap_err().to_string();
        assert!(refused.contains("has files already"), "{refused}");
        assert_eq!(before, scratch.read("h1/peers/key.pem"));
    }

    #[test]
    fn what_is_wrong_leaves_no_files() {
        let scratch = Scratch::new("wrong");
        let refused = run(&scratch.options(&["--hosts", "h1=10.0.0.1,h2=10.0.0.1"]));
        assert!(refused.is_err() && !scratch.0.join("out").exists());
        let refused = run(&scratch.options(&[&TWO[..], &["--token-ms", "10"]].concat()));
        assert!(refused.is_err() && !scratch.0.join("out").exists());
    }

    #[test]
    fn an_existing_cluster_gets_only_spares_part() {
        let scratch = Scratch::new("existing");
        let file = scratch.0.join("corosync.conf");
        let plan = plan::tests::plan(&["alpha=10.0.0.1", "beta=10.0.0.2"]);
        std::fs::write(&file, corosync::configuration(&plan, 1000)).unwrap();
        run(&scratch.options(&["--existing", file.to_str().unwrap()])).unwrap();
        assert!(scratch.read("beta/spare.toml").contains("host = \"beta\""));
        let alpha = scratch.0.join("out/alpha");
        assert!(!alpha.join("corosync.conf").exists() && !alpha.join("authkey").exists());
        assert!(scratch.read("alpha/uidgid").contains("uid: spare"));
    }

    #[test]
    fn an_existing_cluster_in_which_one_of_two_is_enough_is_refused() {
        let scratch = Scratch::new("two-node");
        let file = scratch.0.join("corosync.conf");
        let plan = plan::tests::plan(&["alpha=10.0.0.1", "beta=10.0.0.2"]);
        let sound = corosync::configuration(&plan, 1000);
        let provider = "provider: corosync_votequorum";
        let two_node = sound.replace(provider, &format!("{provider}\n\ttwo_node: 1"));
        std::fs::write(&file, two_node).unwrap();
        let existing = ["--existing", file.to_str().unwrap(), "--fencing"];
        let refused = run(&scratch.options(&existing)).unwrap_err().to_string();
        assert!(refused.contains("two_node"), "{refused}");
        std::fs::write(&file, sound).unwrap();
        run(&scratch.options(&existing)).unwrap();
    }

    #[test]
    fn what_excludes_each_other_is_refused() {
        for line in [
            vec!["init"],
            vec!["init", "--hosts", "a=10.0.0.1", "--existing"],
            vec!["init", "--existing", "f", "--witness", "10.0.0.3"],
            vec!["init", "--hosts", "a=10.0.0.1", "--witness-tls", "off"],
        ] {
            assert!(Line::try_parse_from(&line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn with_a_witness_both_sides_get_their_certificates() {
        if let Err(reason) = witness::check_tools() {
            // As for all tests of this project: what is required and missing is a failure.
            assert!(std::env::var_os("SPARE_TEST_REQUIRE").is_none(), "{reason}");
            println!("SKIPPED with_a_witness_both_sides_get_their_certificates: {reason}");
            return;
        }
        let scratch = Scratch::new("witness");
        run(&scratch.options(&[&TWO[..], &["--witness", "10.0.0.3"]].concat())).unwrap();
        for database in ["witness", "h1", "h2"] {
            let folder = scratch.0.join("out").join(database).join("nssdb");
            for file in ["cert9.db", "key4.db", "pkcs11.txt", "pwdfile.txt"] {
                let metadata = std::fs::metadata(folder.join(file)).unwrap();
                assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{file}");
            }
            assert!(!folder.join("cluster.p12").exists() && !folder.join("noise").exists());
        }
    }
}
