//! What a lab was set up with, on a file system of the machine's memory: it goes when the processes go.

use crate::names::Places;
use crate::rules::Rules;
use anyhow::{bail, Context, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// A folder of the machine that hosts see, read-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// The folder on this machine.
    pub source: PathBuf,
    /// Where every host sees it.
    pub target: PathBuf,
}

/// How a lab was set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Hosts, without witness and client.
    pub(crate) hosts: usize,
    pub(crate) witness: bool,
    /// The root that all share.
    pub(crate) root: PathBuf,
    pub(crate) shared: Vec<Shared>,
}

const SETUP: &str = "setup.json";
const RULES: &str = "rules.json";

/// What a fence agent's device does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FenceMode {
    /// Does what it is asked for.
    #[default]
    Works,
    /// Nothing; it says that it failed.
    Fails,
    /// Nothing; it does not answer.
    Hangs,
}

const FENCE_MODE: &str = "fence-mode.json";

impl Setup {
    pub(crate) fn read(places: &Places) -> Result<Setup> {
        let path = places.state().join(SETUP);
        if !path.exists() {
            bail!("the lab {} is not up", places.lab());
        }
        read(&path)
    }

    pub(crate) fn write(&self, places: &Places) -> Result<()> {
        write(&places.state().join(SETUP), self)
    }
}

pub(crate) fn rules(places: &Places) -> Result<Rules> {
    let path = places.state().join(RULES);
    if path.exists() {
        read(&path)
    } else {
        Ok(Rules::default())
    }
}

pub(crate) fn write_rules(places: &Places, rules: &Rules) -> Result<()> {
    write(&places.state().join(RULES), rules)
}

pub(crate) fn fence_mode(places: &Places) -> FenceMode {
    read(&places.state().join(FENCE_MODE)).unwrap_or_default()
}

pub(crate) fn write_fence_mode(places: &Places, mode: FenceMode) -> Result<()> {
    write(&places.state().join(FENCE_MODE), &mode)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let explain = || format!("cannot read {}", path.display());
    let text = std::fs::read_to_string(path).with_context(explain)?;
    serde_json::from_str(&text).with_context(explain)
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let explain = || format!("cannot write {}", path.display());
    let new = path.with_extension("new");
    std::fs::write(&new, serde_json::to_string_pretty(value)?).with_context(explain)?;
    std::fs::rename(&new, path).with_context(explain)
}

/// Waits until nobody else holds `path`, and holds it until the value goes.
pub(crate) fn lock(path: &Path) -> Result<Flock<File>> {
    let explain = || format!("cannot lock {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(explain)?;
    }
    let file = File::options().create(true).append(true).open(path);
    let file = file.with_context(explain)?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .with_context(explain)
}
