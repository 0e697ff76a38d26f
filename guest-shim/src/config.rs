//! The guest's configuration, `/etc/spare/guest.toml`.

use crate::database::{postgresql, Server};
use crate::transport::unix_socket::{inherited_socket, InheritedSocket, UnixSocket};
use crate::transport::virtio_serial::VirtioSerial;
use crate::transport::Transport;
use serde::Deserialize;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the configuration is if no `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/spare/guest.toml";

/// At least so many reads run at once, if the configuration does not say.
const READS_MAX_LEAST: NonZeroUsize = NonZeroUsize::new(2).unwrap();
/// PostgreSQL tells of a changed row in one message of at most 1 GiB, which has the row before and the row
/// after.
pub const UPDATE_BYTES_MOST: u64 = 480 << 20;

/// What the file says, checked.
#[derive(Debug)]
pub struct Config {
    /// Section `[channel]`.
    pub channel: ChannelSettings,
    /// Section `[service]`.
    pub service: ServiceSettings,
    /// The section of the service's database, which is named for its product.
    pub database: Box<dyn Server>,
}

/// The file as it is written: a section for each database that the shim knows, of which one is there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    channel: ChannelSettings,
    service: ServiceSettings,
    postgresql: Option<postgresql::Settings>,
}

/// The configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file, or it is not readable.
    #[error("cannot read the configuration {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// The file was read, and says something that can't be used.
    #[error("in the configuration {}", .0.display())]
    In(PathBuf, #[source] Box<ConfigError>),
    /// It is no TOML, or has other sections and settings than there are.
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
    /// `[channel]` names no transport, or several.
    #[error("[channel] needs either port or socket, not both and not neither")]
    Transport,
    /// `service.command` has not even a program.
    #[error("service.command is empty; give the program and its arguments")]
    Command,
    /// A request may change more than can be captured, or nothing.
    #[error("service.update_bytes_max is {0}; it must be between 1 and {UPDATE_BYTES_MOST}")]
    UpdateBytes(u64),
    /// There is no section of a database.
    #[error("no database is configured; add the section [postgresql]")]
    Database,
}

/// The text is no address of a service.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not an address; write unix:/path or host:port")]
pub struct AddressError(String);

/// The text is no request of a warm-up.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is no request for the warm-up; write /page or POST /page a=1&b=2")]
pub struct WarmUpError(String);

/// How the manager is reached: exactly one of the settings is there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelSettings {
    /// Name of a virtio-serial port.
    pub port: Option<String>,
    /// A Unix socket to connect to.
    pub socket: Option<PathBuf>,
}

/// The service beside the shim.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSettings {
    /// Program and arguments; started by init.
    pub command: Vec<String>,
    /// The user it runs as.
    pub user: String,
    /// Where it listens: `unix:/path` or `host:port`.
    pub address: Address,
    /// Reads that run at once; those behind them wait in the agreed order.
    #[serde(default = "default_reads_max")]
    pub reads_max: NonZeroUsize,
    /// The longest update of one request that this guest has room for; [`UPDATE_BYTES_MOST`] at most. A request
    /// with a longer one is undone. The manager's setting counts where it is less.
    #[serde(default = "default_update_bytes_max")]
    pub update_bytes_max: u64,
    /// Requests made before the shim says that it is ready, so that the first real request
    /// does not run cold code.
    #[serde(default)]
    pub warm_up: Vec<WarmUp>,
}

fn default_update_bytes_max() -> u64 {
    256 << 20
}

/// One for each processor. More would only share them, so that all take longer, and each replica ends
/// them in another order: the votes on them would come later.
fn default_reads_max() -> NonZeroUsize {
    std::thread::available_parallelism().map_or(READS_MAX_LEAST, |n| n.max(READS_MAX_LEAST))
}

/// A request of the warm-up: `/target` to get a page, `POST /target form` to send a form. A page is
/// made as a read, a form as a write, which the shim undoes in the database.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct WarmUp {
    /// `GET` or `POST`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The form's fields, encoded as in a query.
    pub form: String,
}

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Address::Tcp(text.to_owned()))
            }
            _ => Err(AddressError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Address, AddressError> {
        text.parse()
    }
}

impl TryFrom<String> for WarmUp {
    type Error = WarmUpError;

    fn try_from(text: String) -> Result<WarmUp, WarmUpError> {
        // One more than there may be.
        let words: Vec<&str> = text.splitn(4, ' ').collect();
        let (method, target, form) = match words[..] {
            [target] => ("GET", target, ""),
            ["POST", target] => ("POST", target, ""),
            ["POST", target, form] => ("POST", target, form),
            _ => ("GET", "", ""),
        };
        if !target.starts_with('/') {
            return Err(WarmUpError(text));
        }
        Ok(WarmUp {
            method: method.to_owned(),
            target: target.to_owned(),
            form: form.to_owned(),
        })
    }
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|e| ConfigError::Read(path.to_owned(), e))?;
        Config::parse(&text).map_err(|e| ConfigError::In(path.to_owned(), Box::new(e)))
    }

    /// Reads and checks the text of a file.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        let sections: Sections = toml::from_str(text)?;
        sections.channel.transport()?;
        if sections.service.command.is_empty() {
            return Err(ConfigError::Command);
        }
        let update_bytes_max = sections.service.update_bytes_max;
        if !(1..=UPDATE_BYTES_MOST).contains(&update_bytes_max) {
            return Err(ConfigError::UpdateBytes(update_bytes_max));
        }
        let database = match sections.postgresql {
            Some(settings) => Box::new(settings),
            None => return Err(ConfigError::Database),
        };
        Ok(Config {
            channel: sections.channel,
            service: sections.service,
            database,
        })
    }
}

impl ChannelSettings {
    /// The one transport that is configured.
    ///
    /// # Errors
    /// When none or several are.
    pub fn transport(&self) -> Result<Box<dyn Transport>, ConfigError> {
        match (&self.port, &self.socket) {
            (Some(port), None) => Ok(match inherited_socket(port) {
                Some(fd) => Box::new(InheritedSocket::new(fd)),
                None => Box::new(VirtioSerial::new(port)),
            }),
            (None, Some(socket)) => Ok(Box::new(UnixSocket::new(socket))),
            _ => Err(ConfigError::Transport),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [channel]
        port = "org.spare.shim.0"
        [service]
        command = ["/usr/lib/spare/auction", "serve"]
        user = "auction"
        address = "unix:/run/service/http.sock"
        [postgresql]
        bin = "/usr/lib/postgresql/15/bin"
        data = "/var/lib/postgresql/data"
        socket_dir = "/run/postgresql"
        database = "auction"
        slot = "spare"
        publication = "spare"
        leaves = "/var/lib/spare/leaves"
    "#;

    #[test]
    fn a_complete_file_is_read() {
        let config = Config::parse(GOOD).expect("a good file");
        assert_eq!(
            format!("{:?}", config.channel.transport().expect("one transport")),
            format!("{:?}", VirtioSerial::new("org.spare.shim.0"))
        );
        assert_eq!(
            config.service.address,
            Address::Unix("/run/service/http.sock".into())
        );
        assert!(config.service.reads_max >= READS_MAX_LEAST);
    }

    #[test]
    fn requests_of_the_warm_up_are_pages_or_forms() {
        let parse = |text: &str| WarmUp::try_from(text.to_owned());
        let form = parse("POST /bid item=1&bid=2").expect("a form");
        assert_eq!(
            (&*form.method, &*form.target, &*form.form),
            ("POST", "/bid", "item=1&bid=2")
        );
        assert_eq!(parse("/?a=b").expect("a page").method, "GET");
        assert!(parse("DELETE /x").is_err());
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, complaint) in [
            ("port =", "prot =", "prot"),
            ("port =", "socket = \"/s\"\nport =", "either port or socket"),
            ("unix:/run/service/http.sock", "nowhere", "not an address"),
            ("user =", "reads_max = 0\nuser =", "reads_max = 0"),
            (
                "user =",
                "update_bytes_max = 1000000000\nuser =",
                "service.update_bytes_max",
            ),
            (
                "[\"/usr/lib/spare/auction\", \"serve\"]",
                "[]",
                "service.command",
            ),
        ] {
            let text = GOOD.replacen(from, to, 1);
            let error = format!("{:#}", Config::parse(&text).expect_err("a mistake"));
            assert!(error.contains(complaint), "{error}");
        }
    }
}
