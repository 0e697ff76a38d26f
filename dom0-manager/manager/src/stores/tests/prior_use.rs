//! A directory without stores, of a service that was in use.

use super::super::directory::seat_folder;
use super::super::error::StoresError;
use super::super::{begin_anew, open, Opened, Stores};
use crate::config::Config;
use spare_protocol::{Hash, SeatId};
use std::path::Path;

const IMAGE: Hash = Hash([5; 32]);

fn config(name: &str) -> Config {
    let directory = std::env::temp_dir().join(format!("spare-used-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    let text = format!(
        "[service]\nname = \"a\"\nimage = \"a\"\n[group]\nengine = \"local\"\nfaults = 1\n\
         [store]\ndirectory = \"{}\"\n",
        directory.display()
    );
    spare_settings::parse(Path::new("spare.toml"), &text).expect("a configuration")
}

fn opened(config: &Config, replicas: &[&str]) -> Result<Stores, StoresError> {
    let replicas: Vec<String> = replicas.iter().map(ToString::to_string).collect();
    match open(config, IMAGE, &replicas)? {
        Opened::Ready(stores) => Ok(stores),
        Opened::Replace(replacement) => panic!("{}", replacement.why),
    }
}

fn refused(config: &Config, replicas: &[&str]) -> String {
    let refused = opened(config, replicas).err().expect("refused");
    let text = format!("{refused:#}");
    let folder = config.store.directory.display().to_string();
    for part in [&folder, "spare restore FILE", "spare begin-anew"] {
        assert!(text.contains(part), "{text}");
    }
    text
}

fn remove_stores(config: &Config) {
    for seat in [0, 1] {
        let folder = seat_folder(&config.store.directory, SeatId(seat));
        std::fs::remove_dir_all(folder).expect("remove");
    }
}

#[test]
fn a_service_whose_stores_are_gone_begins_anew_when_an_operator_says_so() {
    let config = config("gone");
    drop(opened(&config, &[]).expect("a new directory"));
    begin_anew(&config).expect_err("its stores are there");
    drop(opened(&config, &[]).expect("as before"));
    remove_stores(&config);
    refused(&config, &[]);
    // What a failed start left does not count.
    refused(&config, &[]);
    begin_anew(&config).expect("nothing is there");
    let stores = opened(&config, &[]).expect("begun anew");
    assert!(stores.remarks.iter().any(|r| r.contains("an operator")));
    drop(stores);
    remove_stores(&config);
    refused(&config, &[]);
    std::fs::remove_dir_all(&config.store.directory).expect("remove");
}

#[test]
fn replicas_of_a_service_tell_that_its_directory_is_gone() {
    let config = config("replicas");
    let text = refused(&config, &["0.3", "1.2"]);
    assert!(text.contains("0.3, 1.2"), "{text}");
    begin_anew(&config).expect("nothing is there");
    drop(opened(&config, &["0.3"]).expect("begun anew"));
    // The stores are there: replicas say nothing.
    drop(opened(&config, &["0.3"]).expect("as before"));
    std::fs::remove_dir_all(&config.store.directory).expect("remove");
}

#[test]
fn a_store_without_its_log_is_none() {
    let config = config("log");
    drop(opened(&config, &[]).expect("a new directory"));
    for seat in [0, 1] {
        let folder = seat_folder(&config.store.directory, SeatId(seat));
        std::fs::write(folder.join("kept"), "").expect("write");
        std::fs::remove_dir_all(folder.join("log")).expect("remove");
    }
    refused(&config, &[]);
    assert!(config.store.directory.join("seat-0.damaged").exists());
    std::fs::remove_dir_all(&config.store.directory).expect("remove");
}
