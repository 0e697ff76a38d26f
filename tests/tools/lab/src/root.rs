//! The root that all hosts share: built once, kept outside the checkout, found by what it is built from.

use crate::command::run;
use crate::names::ROOTS;
use crate::state::lock;
use anyhow::{bail, Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What builds it; its hash names it.
const RECIPE: &str = include_str!("root.sh");
const KEY_HEX: usize = 16;

/// The root, which is built if it is not there; `say` hears about that.
pub(crate) fn ensure(say: &dyn Fn(&str)) -> Result<PathBuf> {
    let key = blake3::hash(RECIPE.as_bytes()).to_hex();
    let root = Path::new(ROOTS).join(format!("root-{}", &key[..KEY_HEX]));
    let _alone = lock(&Path::new(ROOTS).join("lock"))?;
    if root.exists() {
        return Ok(root);
    }
    let new = root.with_extension("new");
    if new.exists() {
        // Somebody was interrupted.
        std::fs::remove_dir_all(&new)
            .with_context(|| format!("cannot remove the unfinished {}", new.display()))?;
    }
    std::fs::create_dir_all(&new)?;
    let log = root.with_extension("log");
    say(&format!(
        "building the hosts' root, which takes some minutes: {}",
        log.display()
    ));
    build(&new, &log)?;
    std::fs::rename(&new, &root)?;
    Ok(root)
}

fn build(new: &Path, log: &Path) -> Result<()> {
    let recipe = log.with_extension("sh");
    std::fs::write(&recipe, RECIPE)?;
    let output = std::fs::File::create(log)?;
    // What it mounts goes with it.
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash"])
        .args([recipe.as_path(), new])
        .arg(mirror()?)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .context("cannot run unshare")?;
    if !status.success() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        bail!(
            "the hosts' root could not be built ({status}); is the mirror in reach? SPARE_MIRROR names \
             another one. {}:\n{}",
            log.display(),
            lines[lines.len().saturating_sub(15)..].join("\n")
        );
    }
    std::fs::remove_file(recipe)?;
    Ok(())
}

/// The machine's own mirror.
fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var("SPARE_MIRROR") {
        return Ok(mirror);
    }
    let format = "$(CREATED_BY) $(RELEASE) $(REPO_URI)";
    let targets = run("apt-get", &["indextargets", "--format", format]).unwrap_or_default();
    let uri = targets
        .lines()
        .find_map(|line| line.strip_prefix("Packages bookworm "));
    let uri = uri.context("apt knows no mirror of Debian 12; name one with SPARE_MIRROR")?;
    Ok(uri.trim_end_matches('/').to_owned())
}
