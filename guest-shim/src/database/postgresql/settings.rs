//! The section `[postgresql]` of the configuration.

use serde::Deserialize;
use std::path::PathBuf;

/// The output plugin of the slot, which also guards sessions (`guest-shim/output-plugin`).
pub(super) const PLUGIN: &str = "spare_output";

/// Where the database is, and the names of what was made in it when the image was built.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Folder of the `postgres` program.
    pub bin: PathBuf,
    /// The folder in which the database keeps all of its files.
    pub data: PathBuf,
    /// Folder of the Unix socket.
    pub socket_dir: PathBuf,
    /// Name of the database.
    pub database: String,
    /// Name of the logical replication slot.
    pub slot: String,
    /// Name of the publication.
    pub publication: String,
    /// File with the leaves of the pristine state's root.
    pub leaves: PathBuf,
}
