//! `spare host`: hosts are added, drained and removed while the service runs.
//!
//! Draining is the group's, by an operator's word to any manager of it. Which hosts there are is in two files of each
//! host; `add` and `remove` change those of the host they run on, so they run on every host that stays, and the
//! managers take them up one after the other.

mod edit;

use crate::init::plan::{self, Host, PlanError, HOSTS_MAX};
use crate::init::{authority, corosync, folder, fragment};
use crate::manager::Manager;
use anyhow::{anyhow, bail, ensure, Context, Result};
use edit::{add_node, remove_node, Listed, Settings};
use folder::NewFile;
use spare_client::admin::Admin;
use spare_protocol::admin::Status;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{fchown, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(200);

/// Where Corosync's link key is.
const AUTHKEY: &str = "authkey";
/// Where a host's certificates towards the witness are, beside `corosync.conf`.
const DEVICE_DATABASE: &str = "qdevice/net/nssdb";

/// What makes the managers take up other hosts.
const TAKEN_UP: &str =
    "Once all have it: corosync-cfgtool -R on one of them, and systemctl restart spare-manager on \
    each, one after the other, when spare status says that the last one is a member again.";

#[derive(clap::Subcommand)]
pub(crate) enum HostCommand {
    /// Write HOST into this host's files; on every host. On one of them, with --authority, also write what HOST needs
    Add(AddOptions),
    /// Let other hosts take the places of HOST's replicas, and wait until they have: it can be switched off then
    Drain {
        #[command(flatten)]
        manager: Manager,
        /// Its name in group.hosts
        host: String,
        /// Do not wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Give HOST, which was drained, its share of the replicas again
    Fill {
        #[command(flatten)]
        manager: Manager,
        /// Its name in group.hosts
        host: String,
    },
    /// Take HOST, which is drained or off, out of this host's files; on every host that stays
    Remove {
        #[command(flatten)]
        manager: Manager,
        #[command(flatten)]
        files: Files,
        /// Its name in group.hosts
        host: String,
    },
}

/// The files that name all hosts.
#[derive(clap::Args)]
pub(crate) struct Files {
    /// The replica manager's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/spare/spare.toml")]
    config: PathBuf,
    /// Corosync's configuration
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/corosync/corosync.conf"
    )]
    corosync: PathBuf,
}

/// What a host is added with.
#[derive(clap::Args)]
pub(crate) struct AddOptions {
    #[command(flatten)]
    files: Files,
    /// The host; with several links, NAME=ADDRESS+ADDRESS
    #[arg(value_name = "NAME=ADDRESS")]
    host: String,
    /// Its seat, which no other host ever had; the one after the last, unless said
    #[arg(long)]
    seat: Option<u16>,
    /// The folder `authority` that `spare init` wrote: also write the new host's files
    #[arg(long, value_name = "DIR", requires = "directory")]
    authority: Option<PathBuf>,
    /// Where to: a folder with the new host's name is made in it
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl HostCommand {
    /// Does it, and says in words what was done and what is left to do.
    ///
    /// # Errors
    /// When it cannot be done; nothing was changed then.
    pub(crate) async fn run(&self) -> Result<String> {
        match self {
            HostCommand::Add(options) => add(options).map_err(|e| anyhow!("{e:#}")),
            HostCommand::Drain {
                manager,
                host,
                no_wait,
            } => {
                let admin = manager.connect();
                admin.drain(host, true).await?;
                if *no_wait {
                    return Ok(format!("host {host} is being drained (spare status)\n"));
                }
                wait_until_empty(&admin, host).await?;
                Ok(format!(
                    "host {host} has no replicas any more: it can be switched off\n"
                ))
            }
            HostCommand::Fill { manager, host } => {
                manager.connect().drain(host, false).await?;
                Ok(format!(
                    "host {host} gets its share of the replicas (spare status)\n"
                ))
            }
            HostCommand::Remove {
                manager,
                files,
                host,
            } => {
                let status = manager.connect().status().await?;
                remove(&status, files, host).map_err(|e| anyhow!("{e:#}"))
            }
        }
    }
}

/// Until other hosts have everything that `host` had.
async fn wait_until_empty(admin: &Admin, host: &str) -> Result<()> {
    loop {
        let status = admin.status().await?;
        let found = status.hosts.iter().find(|h| h.name == host);
        let found = found.with_context(|| format!("there is no host {host} any more"))?;
        // It may have left meanwhile: its replicas are gone with it.
        if !found.member {
            return Ok(());
        }
        let seats = status.seats.iter().filter(|s| s.host == host);
        if found.drained && seats.map(|s| s.replicas.len()).sum::<usize>() == 0 {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

fn add(options: &AddOptions) -> Result<String> {
    let files = &options.files;
    let mut settings = read_settings(&files.config)?;
    let conf = read(&files.corosync)?;
    let seat = options.seat.unwrap_or_else(|| settings.next_seat());
    let host = plan::parse_host(seat, &options.host)?;
    let this = settings.this_host().unwrap_or_default().to_owned();
    let here = settings.hosts().iter().find(|h| h.name == this);
    let here = here.with_context(|| {
        format!(
            "{}: group.host is none of group.hosts",
            files.config.display()
        )
    })?;
    let first = host.addresses.first().copied();
    let listed = Listed {
        name: host.name.clone(),
        seat,
        address: SocketAddr::new(first.context("no address")?, here.address.port()),
    };
    let others: Vec<Listed> = settings.hosts().to_vec();
    settings
        .add(&listed)
        .with_context(|| files.config.display().to_string())?;
    if settings.hosts().len() > HOSTS_MAX {
        bail!(PlanError::ManyHosts(settings.hosts().len()));
    }
    plan::check_addresses_of(&host)?;
    let units = units(&conf);
    let conf = add_node(&conf, &host).with_context(|| files.corosync.display().to_string())?;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut say = |line: String| {
        let _ = writeln!(text, "{line}");
    };
    if let (Some(authority), Some(directory)) = (&options.authority, &options.directory) {
        folder::check_empty(&directory.join(&host.name))?;
        let new = new_host(&settings, &host, &conf, authority, &files.corosync)?;
        folder::write(directory, &new)?;
        say(format!(
            "{}: written for {}, to be copied there as docs/operators/hosts.md says",
            directory.join(&host.name).display(),
            host.name
        ));
    }
    replace(&files.corosync, &conf)?;
    replace(&files.config, &settings.to_string())?;
    say(format!(
        "host {} with seat {seat} is in {} and {} of host {this}",
        host.name,
        files.config.display(),
        files.corosync.display()
    ));
    let names: Vec<&str> = (others.iter())
        .map(|h| h.name.as_str())
        .filter(|name| *name != this)
        .collect();
    say(format!(
        "The same command is needed on: {}",
        names.join(", ")
    ));
    say(TAKEN_UP.to_owned());
    say(format!("Then start {units} on {}.", host.name));
    Ok(text)
}

/// What runs on every host of this cluster, in words.
fn units(conf: &str) -> &'static str {
    match corosync::read(conf) {
        Ok(cluster) if cluster.witness.is_some() => "corosync, corosync-qdevice and spare-manager",
        _ => "corosync and spare-manager",
    }
}

fn remove(status: &Status, files: &Files, name: &str) -> Result<String> {
    let mut settings = read_settings(&files.config)?;
    let conf = read(&files.corosync)?;
    if settings.this_host() == Some(name) {
        bail!("{name} is this host: the command is for those that stay");
    }
    let removed = settings
        .remove(name)
        .with_context(|| files.config.display().to_string())?;
    if let Some(host) = status.hosts.iter().find(|h| h.name == name) {
        ensure!(
            host.drained || !host.member,
            "host {name} has replicas: spare host drain {name} first"
        );
        // A manager that restarts for this must not leave too few.
        let members = status.hosts.iter();
        let members = members.filter(|h| h.member && !h.drained && h.name != name);
        let needed = settings.faults() + 1;
        ensure!(
            members.count() >= needed,
            "fewer than f + 1 = {needed} other hosts are members of the group: bring them back first"
        );
    }
    let units = units(&conf);
    let conf =
        remove_node(&conf, &removed).with_context(|| files.corosync.display().to_string())?;
    replace(&files.corosync, &conf)?;
    replace(&files.config, &settings.to_string())?;
    let this = settings.this_host().unwrap_or_default().to_owned();
    let hosts = settings.hosts().iter().map(|h| h.name.as_str());
    let others: Vec<&str> = hosts.filter(|name| *name != this).collect();
    Ok(format!(
        "host {name} with seat {} is in {} and {} of host {this} no more\n\
         The same command is needed on: {}\nStop {units} on {name} for good. {TAKEN_UP}\n",
        removed.seat,
        files.config.display(),
        files.corosync.display(),
        others.join(", "),
    ))
}

/// Everything that the new host needs.
fn new_host(
    settings: &Settings,
    host: &Host,
    conf: &str,
    authority: &Path,
    corosync: &Path,
) -> Result<Vec<NewFile>> {
    let of = |file: &str| format!("{}/{file}", host.name);
    let certificate_of_authority = read(&authority.join(fragment::AUTHORITY_FILE))?;
    let key = read(&authority.join(fragment::KEY_FILE))?;
    let cluster = corosync::read(conf)?.cluster;
    let (certificate, secret) = authority::certificate_for(&cluster, &key, host)
        .with_context(|| format!("{}: no usable key", authority.display()))?;
    let beside = corosync.parent().unwrap_or(Path::new("/"));
    let link_key = beside.join(AUTHKEY);
    let link_key =
        std::fs::read(&link_key).with_context(|| format!("cannot read {}", link_key.display()))?;
    let peers = |file: &str| of(&format!("peers/{file}"));
    let mut files = vec![
        NewFile::open(of("corosync.conf"), conf),
        NewFile::key(of(AUTHKEY), link_key),
        NewFile::open(of("uidgid"), corosync::admission()),
        NewFile::open(of("spare.toml"), settings.of_host(&host.name)),
        NewFile::open(peers(fragment::AUTHORITY_FILE), certificate_of_authority),
        NewFile::open(peers(fragment::CERTIFICATE_FILE), certificate),
        NewFile::secret(peers(fragment::KEY_FILE), secret),
    ];
    // A witness with certificates has one database for all hosts: the new one gets a copy.
    for entry in std::fs::read_dir(beside.join(DEVICE_DATABASE))
        .into_iter()
        .flatten()
    {
        let entry = entry?;
        let name = format!("nssdb/{}", entry.file_name().to_string_lossy());
        files.push(NewFile::secret(of(&name), std::fs::read(entry.path())?));
    }
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read_settings(path: &Path) -> Result<Settings> {
    Settings::read(&read(path)?).with_context(|| path.display().to_string())
}

/// Puts `text` in the place of a file, in one step and for good, with its mode and owner. What it was is in
/// FILE.before.
fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = |end: &str| {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(end);
        path.with_file_name(name)
    };
    let write = || {
        let is = std::fs::metadata(path)?;
        std::fs::copy(path, beside(".before"))?;
        let new = beside(".new");
        // Left behind by one that was interrupted.
        if let Err(e) = std::fs::remove_file(&new) {
            if e.kind() != ErrorKind::NotFound {
                return Err(e);
            }
        }
        // It may have secrets in it: nobody reads it before it has the mode of what was there.
        let mut options = std::fs::File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        fchown(&file, Some(is.uid()), Some(is.gid()))?;
        file.set_permissions(Permissions::from_mode(is.mode() & 0o7777))?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests;
