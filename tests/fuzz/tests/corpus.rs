//! Every committed file of the corpus through its target, and what else holds of corpus and targets.

use spare_fuzz::meter::{measured, Meter};
use spare_fuzz::{seeds, Target, TARGETS};
use std::path::{Path, PathBuf};

#[global_allocator]
static METER: Meter = Meter;

const FILES_MAX: usize = 40;
const BYTES_MAX: usize = 100 << 10;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = here().join("corpus").join(target.name);
    let listed = std::fs::read_dir(&folder);
    let listed = listed.unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = listed.map(|entry| entry.expect("listed").path()).collect();
    files.sort();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).expect("readable");
        (path, bytes)
    };
    files.into_iter().map(read).collect()
}

/// Says which file it was.
struct Named<'a>(&'a Path);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("with the file {}", self.0.display());
        }
    }
}

#[test]
fn every_file_of_the_corpus_is_handled() {
    for target in TARGETS {
        for (path, bytes) in corpus(target) {
            let _named = Named(&path);
            (target.run)(&bytes);
        }
    }
}

#[test]
fn the_corpus_of_each_target_is_small_and_has_its_seeds() {
    for target in TARGETS {
        let files = corpus(target);
        let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        let name = target.name;
        assert!(files.len() <= FILES_MAX, "{name}: {} files", files.len());
        assert!(bytes <= BYTES_MAX, "{name}: {bytes} bytes");
        for (seed, _) in seeds::of(name) {
            let there = here().join(format!("corpus/{name}/seed-{seed}")).exists();
            assert!(there, "{name}: no seed {seed}; run spare-fuzz-seeds");
        }
    }
}

#[test]
fn every_target_is_in_the_table_and_has_a_libfuzzer_program() {
    let table = include_str!("../src/lib.rs");
    let programs = include_str!("../targets/Cargo.toml");
    for target in TARGETS {
        let (name, limit) = (target.name, target.limit.to_string());
        let row = table
            .lines()
            .find(|line| line.starts_with(&format!("//! | `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("{name} is not in the table of lib.rs"));
        assert!(row.contains(&format!("| {limit} |")), "{name}: {limit}");
        let program = format!("fuzz_targets/{name}.rs");
        assert!(
            programs.contains(&program),
            "{program} is not in Cargo.toml"
        );
        assert!(here().join("targets").join(&program).exists(), "{program}");
    }
    let folders = std::fs::read_dir(here().join("corpus")).expect("listed");
    assert_eq!(folders.count(), TARGETS.len(), "a corpus without a target");
}

#[test]
fn memory_is_counted() {
    let (kept, peak) = measured(|| {
        drop(vec![0u8; 5000]);
        vec![0u8; 3000]
    });
    assert_eq!((kept.len(), peak), (3000, 5000));
}
