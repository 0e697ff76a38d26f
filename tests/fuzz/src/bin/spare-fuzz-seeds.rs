//! Writes the seeds into the corpus: `cargo run --release -p spare-fuzz --bin spare-fuzz-seeds`.
//! Seeds that are there are written anew; other files stay.

use std::path::Path;

fn main() -> std::io::Result<()> {
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
