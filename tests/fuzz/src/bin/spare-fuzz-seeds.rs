//! Writes the seeds into the corpus: `cargo run --release -p spare-fuzz --bin spare-fuzz-seeds`.
//! Seeds that are there are written anew; other files stay. It takes no arguments: with any, nothing is written.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(argument) = std::env::args_os().nth(1) {
        eprintln!(
            "spare-fuzz-seeds takes no arguments, and {argument:?} is one; without any it writes all seeds into the corpus anew"
        );
        return ExitCode::FAILURE;
    }
    match write_seeds() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spare-fuzz-seeds: the seeds cannot be written into the corpus: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_seeds() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut count = 0;
    for target in spare_fuzz::TARGETS {
        let folder = corpus.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (name, bytes) in spare_fuzz::seeds::of(target.name) {
            std::fs::write(folder.join(format!("seed-{name}")), bytes)?;
            count += 1;
        }
    }
    println!("{count} seeds for {} targets", spare_fuzz::TARGETS.len());
    Ok(())
}
