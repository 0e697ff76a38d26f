//! The option that says which replica manager a subcommand is about.

use spare_client::admin::{Admin, DEFAULT_SOCKET};
use std::path::PathBuf;

/// The replica manager that is asked.
#[derive(clap::Args)]
pub(crate) struct Manager {
    /// The manager's admin socket
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_SOCKET)]
    admin: PathBuf,
}

impl Manager {
    pub(crate) fn connect(&self) -> Admin {
        Admin::new(&self.admin)
    }
}
