//! Whether an operator drained this host, for the next run of the manager ([`spare_core::Output::StoreDrained`]): a
//! file in the seat's folder, which is there if it is so.

use std::fs::File;
use std::io::{ErrorKind, Result};
use std::path::Path;

const NAME: &str = "drained";

pub(crate) fn is_drained(folder: &Path) -> Result<bool> {
    folder.join(NAME).try_exists()
}

/// It is on disk when this returns.
pub(crate) fn set(folder: &Path, drained: bool) -> Result<()> {
    let path = folder.join(NAME);
    if drained {
        File::create(&path)?;
    } else {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_remembered_until_it_is_over() {
        let folder = std::env::temp_dir().join(format!("spare-drained-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("create");
        assert!(!is_drained(&folder).expect("read"));
        for drained in [true, true, false, false] {
            set(&folder, drained).expect("write");
            assert_eq!(is_drained(&folder).expect("read"), drained);
        }
        std::fs::remove_dir_all(folder).expect("remove");
    }
}
