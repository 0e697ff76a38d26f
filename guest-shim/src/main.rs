//! `spare-shim`: see the crate's documentation, and `spare-shim help`.

use anyhow::{bail, Context, Result};
use spare_shim::config::{Config, DEFAULT_PATH};
use spare_shim::{commands, init};
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
spare-shim: the program inside every replica of SPARE

usage: spare-shim COMMAND [--config FILE]

  init            the first process of a guest: mounts, starts and watches everything
                  (the default for process number 1)
  run             the shim: serves the replica manager
  prepare         when an image is built, database running: makes in it what capturing changes needs
  leaves --write  when an image is built, database running, last of all: the pristine state's root

FILE defaults to /etc/spare/guest.toml.";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Init,
    Run,
    Prepare,
    WriteLeaves,
    Help,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // The kernel hands its own leftover parameters to the first process.
    let parsed = if std::process::id() == 1 {
        Ok((Command::Init, PathBuf::from(DEFAULT_PATH)))
    } else {
        parse(&arguments)
    };
    match parsed.and_then(|(command, config)| execute(command, config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("spare-shim: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[String]) -> Result<(Command, PathBuf)> {
    let mut words = Vec::new();
    let mut config = PathBuf::from(DEFAULT_PATH);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--config" => config = rest.next().context("--config needs a file")?.into(),
            word => words.push(word),
        }
    }
    let command = match words.as_slice() {
        ["init"] => Command::Init,
        ["run"] => Command::Run,
        ["prepare"] => Command::Prepare,
        ["leaves", "--write"] => Command::WriteLeaves,
        ["leaves"] => {
            bail!("leaves needs --write: it scans the database and writes the file of leaves anew")
        }
        ["help" | "--help" | "-h"] => Command::Help,
        [] => bail!("no command is given\n\n{HELP}"),
        words => bail!("\"{}\" is not a command\n\n{HELP}", words.join(" ")),
    };
    Ok((command, config))
}

fn execute(command: Command, config: PathBuf) -> Result<()> {
    match command {
        Command::Help => {
            println!("{HELP}");
            Ok(())
        }
        Command::Init => Ok(init::run(&config)?),
        Command::Run => Ok(commands::run(&Config::read(&config)?)?),
        Command::Prepare => Ok(commands::prepare(&Config::read(&config)?)?),
        Command::WriteLeaves => Ok(commands::write_leaves(&Config::read(&config)?)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Command, PathBuf)> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&words)
    }

    #[test]
    fn commands_are_read() {
        let (command, config) = parsed("run --config /x").expect("a command");
        assert_eq!((command, config), (Command::Run, "/x".into()));
        let (command, _) = parsed("leaves --write").expect("a command");
        assert_eq!(command, Command::WriteLeaves);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, complaint) in [
            ("", "no command"),
            ("leaves", "leaves needs --write"),
            ("run --config", "--config needs a file"),
        ] {
            let error = parsed(line).expect_err("a mistake").to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
