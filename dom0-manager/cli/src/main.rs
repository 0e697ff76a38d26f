//! The operator's command: `spare`.

use std::process::ExitCode;

fn main() -> ExitCode {
    spare_cli::command_line::main()
}
