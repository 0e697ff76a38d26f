//! The agent with which hosts ask the lab's fence device, in the standard interface of fence agents
//! (`fence-agents`): `key=value` lines on standard input, or options.

use crate::names::TOOLS_IN_HOST;
use anyhow::{bail, Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The agent's name, as for any of the package.
pub const AGENT: &str = "fence_spare_lab";
pub(crate) const SOCKET: &str = "fence.sock";

/// Exit code: it is done, or the host is on.
const SUCCEEDED: i32 = 0;
/// Exit code: it is not done, or nobody can tell.
const FAILED: i32 = 1;
/// Exit code of `status`: the host is off.
const IS_OFF: i32 = 2;

/// What the agent describes itself with.
const METADATA: &str = r#"<?xml version="1.0" ?>
<resource-agent name="fence_spare_lab" shortdesc="Fence agent for the virtual hosts of SPARE's lab">
<longdesc>Cuts the power of a virtual host: kills all of its processes without a word.</longdesc>
<parameters>
	<parameter name="action" unique="0" required="1"><getopt mixed="-o, --action=[action]" /><content type="string" default="reboot" /><shortdesc lang="en">Fencing action</shortdesc></parameter>
	<parameter name="plug" unique="0" required="1" obsoletes="port"><getopt mixed="-n, --plug=[id]" /><content type="string" /><shortdesc lang="en">The host</shortdesc></parameter>
	<parameter name="delay" unique="0" required="0"><getopt mixed="--delay=[seconds]" /><content type="second" default="0" /><shortdesc lang="en">Wait so long before fencing is started</shortdesc></parameter>
</parameters>
<actions>
	<action name="on" automatic="0"/>
	<action name="off" />
	<action name="reboot" />
	<action name="status" />
	<action name="monitor" />
	<action name="metadata" />
</actions>
</resource-agent>
"#;

/// What an agent is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    On,
    Off,
    Reboot,
    Status,
    Monitor,
    Metadata,
}

impl Action {
    pub(crate) fn parse(word: &str) -> Option<Action> {
        match word.to_ascii_lowercase().as_str() {
            "on" => Some(Action::On),
            "off" => Some(Action::Off),
            "reboot" => Some(Action::Reboot),
            "status" => Some(Action::Status),
            "monitor" => Some(Action::Monitor),
            "metadata" => Some(Action::Metadata),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Action::On => "on",
            Action::Off => "off",
            Action::Reboot => "reboot",
            Action::Status => "status",
            Action::Monitor => "monitor",
            Action::Metadata => "metadata",
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    action: Action,
    host: Option<String>,
    delay_s: u64,
}

impl Request {
    /// From the options, or where there are none from the lines on standard input.
    fn read(arguments: &[String], input: &mut dyn BufRead) -> Result<Request> {
        let pairs = if arguments.is_empty() {
            let lines: Vec<String> = input.lines().collect::<Result<_, _>>()?;
            let lines = lines.iter().map(|l| l.trim());
            let lines = lines.filter(|l| !l.is_empty() && !l.starts_with('#'));
            let pair = |line: &str| {
                line.split_once('=')
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
            };
            lines.filter_map(pair).collect()
        } else {
            options(arguments)?
        };
        let mut request = Request {
            action: Action::Reboot,
            host: None,
            delay_s: 0,
        };
        for (key, value) in pairs {
            match key.as_str() {
                "action" => {
                    let action = Action::parse(&value);
                    request.action = action.with_context(|| format!("unknown action {value:?}"))?;
                }
                "plug" | "port" | "nodename" => request.host = Some(value),
                "delay" => {
                    request.delay_s = value.parse().context("delay is no number of seconds")?
                }
                // Agents are given parameters of all kinds, and leave what they do not know.
                _ => {}
            }
        }
        Ok(request)
    }
}

fn options(arguments: &[String]) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if let Some((key, value)) = word.strip_prefix("--").and_then(|o| o.split_once('=')) {
            pairs.push((key.to_owned(), value.to_owned()));
            continue;
        }
        let key = match word.as_str() {
            "-o" | "--action" => "action",
            "-n" | "--plug" => "plug",
            "--delay" => "delay",
            _ => bail!("unknown option {word:?}"),
        };
        let value = words
            .next()
            .with_context(|| format!("{word} needs a value"))?;
        pairs.push((key.to_owned(), value.clone()));
    }
    Ok(pairs)
}

/// The agent: does what it is asked for and gives its exit code.
#[must_use]
pub fn agent(arguments: &[String]) -> i32 {
    let socket = Path::new(TOOLS_IN_HOST).join(SOCKET);
    match agent_on(arguments, &mut std::io::stdin().lock(), &socket) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("{AGENT}: {e:#}");
            FAILED
        }
    }
}

fn agent_on(arguments: &[String], input: &mut dyn BufRead, socket: &Path) -> Result<i32> {
    let request = Request::read(arguments, input)?;
    if request.action == Action::Metadata {
        print!("{METADATA}");
        return Ok(SUCCEEDED);
    }
    let host = match (&request.host, request.action) {
        (Some(host), _) => host.as_str(),
        (None, Action::Monitor) => "-",
        (None, _) => bail!("plug is missing: which host?"),
    };
    if !matches!(request.action, Action::Status | Action::Monitor) {
        std::thread::sleep(Duration::from_secs(request.delay_s));
    }
    let mut device = UnixStream::connect(socket).context("the device is not in reach")?;
    writeln!(device, "{} {host}", request.action.word())?;
    let mut answer = String::new();
    BufReader::new(device).read_line(&mut answer)?;
    match answer.trim() {
        "ok" => Ok(SUCCEEDED),
        "off" => Ok(IS_OFF),
        other => bail!("{} {host}: the device says: {other}", request.action.word()),
    }
}

/// Has the device at `socket` switch `host` off, as a fence agent would.
pub(crate) fn switch_off(host: &str, socket: &Path) -> Result<()> {
    let lines = format!("action=off\nplug={host}\n");
    agent_on(&[], &mut lines.as_bytes(), socket).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str], input: &str) -> Result<Request> {
        let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
        Request::read(&arguments, &mut input.as_bytes())
    }

    #[test]
    fn parameters_come_on_standard_input() {
        let request = read(
            &[],
            "# from a cluster\naction=off\nport=h2\nlogin=x\ndelay=3\n\n",
        )
        .unwrap();
        assert_eq!(request.action, Action::Off);
        assert_eq!(request.host.as_deref(), Some("h2"));
        assert_eq!(request.delay_s, 3);
    }

    #[test]
    fn parameters_come_as_options() {
        for arguments in [
            &["-o", "status", "-n", "h1"][..],
            &["--action=status", "--plug=h1"],
            &["--action", "status", "--plug", "h1"],
        ] {
            let request = read(arguments, "").unwrap();
            assert_eq!(
                (request.action, request.host.as_deref()),
                (Action::Status, Some("h1"))
            );
        }
        assert!(read(&["-x"], "").is_err());
    }

    #[test]
    fn without_an_action_a_host_is_rebooted_and_an_unknown_one_is_refused() {
        assert_eq!(read(&[], "plug=h1\n").unwrap().action, Action::Reboot);
        assert!(read(&[], "action=explode\n").is_err());
    }

    #[test]
    fn a_device_that_is_not_there_is_a_failure() {
        let nowhere = Path::new("/nonexistent/fence.sock");
        let asked = agent_on(&[], &mut &b"action=off\nplug=h1\n"[..], nowhere);
        assert!(asked.is_err());
        let asked = agent_on(&[], &mut &b"action=off\n"[..], nowhere);
        assert!(asked.unwrap_err().to_string().contains("which host"));
    }
}
