//! Guest images: a folder with a kernel, an initial RAM disk, a disk and `image.toml`.
//!
//! The manager says which image, by its name; what the image is, root alone has said. Every folder on the way and
//! every file must be root's, and nobody else may be able to write to it ([`crate::trusted`]). The folder of an image
//! may be a link that root made, which is read once and must lead to another such folder; no other link is followed.
//! The files have the hashes that `image.toml` tells.

use crate::error::{Error, Result};
use crate::hashes::{is_hash, Hashes};
use crate::names::check_image_name;
use crate::trusted::{Folder, Untrusted};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// The part of `image.toml` that the agent reads; other keys are the image builder's.
#[derive(Debug, Deserialize)]
struct Description {
    cmdline: String,
    memory_mib: u32,
    #[serde(default = "one")]
    processors: u32,
    content: Option<String>,
    /// It has the attacker's door: it is for tests.
    #[serde(default)]
    door: bool,
    /// Hashes of the files, by their names.
    #[serde(default)]
    sha256: BTreeMap<String, String>,
}

/// For images that say nothing.
fn one() -> u32 {
    1
}

/// More virtual processors than any replica needs.
const PROCESSORS_MAX: u32 = 64;
/// `image.toml` at most.
const DESCRIPTION_BYTES_MAX: u64 = 64 << 10;

/// An image's tree of files, for process replicas.
#[derive(Debug)]
pub(crate) struct Tree {
    /// `root.tar`, opened: the file whose hash is right.
    pub(crate) archive: File,
    /// Where that is, for messages.
    pub(crate) path: PathBuf,
    /// A name that only images with the same content have.
    pub(crate) content: String,
}

/// An image that can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name of its folder.
    pub name: String,
    /// `vmlinuz`, the kernel that QEMU boots the guest with.
    pub kernel: PathBuf,
    /// `initrd`, the initial file system of that kernel.
    pub initrd: PathBuf,
    /// `root.img`, the root file system: a raw disk that all replicas share and none writes to.
    pub root: PathBuf,
    /// Of the kernel, as `image.toml` has it.
    pub cmdline: String,
    /// The guest's memory in MiB.
    pub memory_mib: u32,
    /// How many virtual processors the guest has.
    pub processors: u32,
}

/// What an image may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) memory_mib: u32,
    /// Of the guest's disk, as the guest sees it: more it can never write.
    pub(crate) disk_mib: u64,
    /// Test images, which have a door, are used.
    pub(crate) door: bool,
}

/// The images of this host.
#[derive(Debug)]
pub(crate) struct Images {
    folder: PathBuf,
    bounds: Bounds,
    hashes: Hashes,
}

impl Images {
    /// The images in `folder`, which may not be there yet. `hashes` is where the hashes of their files are noted.
    pub(crate) fn open(folder: PathBuf, bounds: Bounds, hashes: PathBuf) -> Result<Images> {
        match Folder::open(&folder) {
            Err(untrusted) if !untrusted.is_missing() => {
                Err(Error::failed("cannot take images from there", untrusted))
            }
            _ => Ok(Images {
                folder,
                bounds,
                hashes: Hashes::open(hashes),
            }),
        }
    }

    /// Where they are.
    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// What tells the image `name` from earlier and later ones of this name.
    pub(crate) fn content(&self, name: &str) -> Result<String> {
        checked_content(name, self.find(name)?.description.content)
    }

    /// The tree of the image `name`, whose content is what its description says.
    pub(crate) fn tree(&self, name: &str) -> Result<Tree> {
        let found = self.find(name)?;
        let (path, archive) = found.verified("root.tar", None)?;
        Ok(Tree {
            archive,
            path,
            content: checked_content(name, found.description.content)?,
        })
    }

    /// The image `name`, complete, with the content that its description says, and within the bounds.
    pub(crate) fn image(&self, name: &str) -> Result<Image> {
        let found = self.find(name)?;
        let path = |file, bytes_max| found.verified(file, bytes_max).map(|(path, _)| path);
        Ok(Image {
            name: name.to_owned(),
            kernel: path("vmlinuz", None)?,
            initrd: path("initrd", None)?,
            root: path("root.img", Some(self.bounds.disk_mib << 20))?,
            cmdline: found.description.cmdline.clone(),
            memory_mib: found.description.memory_mib,
            processors: found.description.processors,
        })
    }

    /// Any image, the first by name, for trying out whether guests boot at all.
    pub(crate) fn any(&self) -> Option<Image> {
        let mut names: Vec<String> = std::fs::read_dir(&self.folder)
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names.iter().find_map(|name| self.image(name).ok())
    }

    fn find<'a>(&'a self, name: &'a str) -> Result<Found<'a>> {
        check_image_name(name)?;
        let explain = |untrusted: Untrusted| match untrusted.is_missing() {
            true => self.missing(name, "image.toml"),
            false => bad(name, &untrusted),
        };
        let all = Folder::open(&self.folder).map_err(explain)?;
        let path = match all.link(OsStr::new(name)).map_err(explain)? {
            Some(target) => target,
            None => self.folder.join(name),
        };
        let folder = Folder::open(&path).map_err(explain)?;
        let text = folder.file("image.toml").map_err(explain)?;
        let description = read_description(name, text)?;
        self.check(name, &description)?;
        Ok(Found {
            images: self,
            name,
            folder,
            description,
        })
    }

    /// Refuses an image that asks for too much.
    fn check(&self, name: &str, description: &Description) -> Result<()> {
        let (memory_mib, most) = (description.memory_mib, self.bounds.memory_mib);
        if memory_mib == 0 || memory_mib > most {
            return Err(bad(
                name,
                format!("it asks for {memory_mib} MiB of memory and memory_mib_max is {most}"),
            ));
        }
        let processors = description.processors;
        if !(1..=PROCESSORS_MAX).contains(&processors) {
            return Err(bad(
                name,
                format!("it asks for {processors} processors; 1 to {PROCESSORS_MAX} can be given"),
            ));
        }
        if description.door && !self.bounds.door {
            return Err(bad(
                name,
                "it is a test image, with a door for attackers; use another, or, on a host for tests, set \
                 door = true in agent.toml",
            ));
        }
        Ok(())
    }

    fn missing(&self, name: &str, missing: &'static str) -> Error {
        Error::NoSuchImage {
            name: name.to_owned(),
            folder: self.folder.clone(),
            missing,
        }
    }
}

/// An image's folder, with what its description says.
struct Found<'a> {
    images: &'a Images,
    name: &'a str,
    folder: Folder,
    description: Description,
}

impl Found<'_> {
    /// A file of the image, with the content that the description says.
    fn verified(&self, file: &'static str, bytes_max: Option<u64>) -> Result<(PathBuf, File)> {
        let path = self.folder.path().join(file);
        let failed = |e: std::io::Error| bad(self.name, format!("{}: {e}", path.display()));
        let mut opened = match self.folder.file(file) {
            Err(untrusted) if untrusted.is_missing() => {
                return Err(self.images.missing(self.name, file))
            }
            opened => opened.map_err(|untrusted| bad(self.name, &untrusted))?,
        };
        let said = self.description.sha256.get(file);
        let said = said.filter(|said| is_hash(said)).ok_or_else(|| {
            let why = format!("image.toml says no sha256 of {file}; build the image anew");
            bad(self.name, why)
        })?;
        let bytes = opened.metadata().map_err(failed)?.len();
        if bytes_max.is_some_and(|most| bytes > most) {
            let why = format!(
                "its disk has {} MiB and disk_mib_max is {}",
                bytes >> 20,
                self.images.bounds.disk_mib
            );
            return Err(bad(self.name, why));
        }
        let is = self.images.hashes.of(&mut opened).map_err(failed)?;
        if is != *said {
            let why = format!(
                "{} is not the file that image.toml was written for: its sha256 is {is}, and should be {said}; \
                 build the image anew",
                path.display()
            );
            return Err(bad(self.name, why));
        }
        Ok((path, opened))
    }
}

fn bad(name: &str, why: impl std::fmt::Display) -> Error {
    Error::BadImage {
        name: name.to_owned(),
        why: why.to_string(),
    }
}

fn checked_content(name: &str, content: Option<String>) -> Result<String> {
    let content = content.filter(|content| {
        let plain = |c: char| c.is_ascii_alphanumeric();
        !content.is_empty() && content.len() <= 128 && content.chars().all(plain)
    });
    content.ok_or_else(|| {
        bad(
            name,
            "image.toml says no content, which tells it from later images of this name; build it anew",
        )
    })
}

fn read_description(name: &str, file: File) -> Result<Description> {
    let failed = |why: String| bad(name, format!("image.toml: {why}"));
    let mut text = String::new();
    let read = file.take(DESCRIPTION_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|e| failed(e.to_string()))?;
    parse_description(&text).map_err(|e| failed(e.message().to_owned()))
}

/// The description in the text of an `image.toml`.
fn parse_description(text: &str) -> std::result::Result<Description, toml::de::Error> {
    toml::from_str(text)
}

/// For `decoders`: command line, memory in MiB and virtual processors.
#[cfg(feature = "fuzzing")]
pub(crate) fn described(text: &str) -> Option<(String, u32, u32)> {
    let description = parse_description(text).ok()?;
    Some((
        description.cmdline,
        description.memory_mib,
        description.processors,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::os::unix::fs::{symlink, PermissionsExt};
    use std::path::Path;

    /// Of a file that contains the letter x.
    const X: &str = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    const BOUNDS: Bounds = Bounds {
        memory_mib: 256,
        disk_mib: 1,
        door: false,
    };

    fn images(scratch: &Scratch, bounds: Bounds) -> Images {
        let folder = scratch.path().join("images");
        Images::open(folder, bounds, scratch.path().join("hashes")).unwrap()
    }

    /// An image with files that contain one letter, in `folder`.
    fn image_in(folder: &Path, description: &str) {
        std::fs::create_dir_all(folder).unwrap();
        let mut text = format!("{description}[sha256]\n");
        for file in ["vmlinuz", "initrd", "root.img", "root.tar"] {
            std::fs::write(folder.join(file), b"x").unwrap();
            text.push_str(&format!("\"{file}\" = \"{X}\"\n"));
        }
        std::fs::write(folder.join("image.toml"), text).unwrap();
    }

    fn shop(scratch: &Scratch, description: &str) -> PathBuf {
        let folder = scratch.path().join("images/shop");
        image_in(&folder, description);
        folder
    }

    const GOOD: &str = "content = \"1f\"\ncmdline = \"quiet\"\nmemory_mib = 256\n";

    /// What is said of the image, as a kernel to boot and as a tree.
    fn refusals(images: &Images) -> [String; 2] {
        [
            images.image("shop").unwrap_err().to_string(),
            images.tree("shop").unwrap_err().to_string(),
        ]
    }

    #[test]
    fn a_complete_image_is_found() {
        let scratch = Scratch::new("image-complete");
        let folder = shop(&scratch, GOOD);
        let images = images(&scratch, BOUNDS);
        let image = images.image("shop").unwrap();
        assert_eq!((image.cmdline.as_str(), image.memory_mib), ("quiet", 256));
        assert_eq!(image.root, folder.join("root.img"));
        assert_eq!(images.any(), Some(image));
        assert_eq!(images.tree("shop").unwrap().content, "1f");
    }

    #[test]
    fn a_missing_image_is_named_with_its_folder_and_the_command_that_builds_it() {
        let scratch = Scratch::new("image-missing");
        let images = images(&scratch, BOUNDS);
        let message = images.image("shop").unwrap_err().to_string();
        assert!(
            message.contains(scratch.path().to_str().unwrap()),
            "{message}"
        );
        assert!(message.contains("vm-images/build shop"), "{message}");
        assert_eq!(images.any(), None);
        let folder = shop(&scratch, GOOD);
        std::fs::remove_file(folder.join("initrd")).unwrap();
        let message = images.image("shop").unwrap_err().to_string();
        assert!(message.contains("it has no initrd"), "{message}");
    }

    #[test]
    fn an_image_that_wants_too_much_is_refused() {
        let scratch = Scratch::new("image-much");
        let folder = shop(&scratch, "cmdline = \"\"\nmemory_mib = 512\n");
        let images = images(&scratch, BOUNDS);
        for message in refusals(&images) {
            assert!(message.contains("memory_mib_max is 256"), "{message}");
        }
        shop(&scratch, GOOD);
        let disk = File::options().write(true).open(folder.join("root.img"));
        disk.unwrap().set_len(2 << 20).unwrap();
        let message = images.image("shop").unwrap_err().to_string();
        assert!(
            message.contains("has 2 MiB and disk_mib_max is 1"),
            "{message}"
        );
    }

    #[test]
    fn an_image_is_told_from_later_ones_by_its_content() {
        let scratch = Scratch::new("image-content");
        shop(
            &scratch,
            "content = \"1f\"\ncmdline = \"\"\nmemory_mib = 8\n",
        );
        let images = images(&scratch, BOUNDS);
        assert_eq!(images.content("shop").unwrap(), "1f");
        shop(&scratch, "cmdline = \"\"\nmemory_mib = 8\n");
        let message = images.content("shop").unwrap_err().to_string();
        assert!(message.contains("build it anew"), "{message}");
    }

    #[test]
    fn a_file_with_another_content_than_the_image_was_built_with_is_refused() {
        let scratch = Scratch::new("image-hash");
        let folder = shop(&scratch, GOOD);
        let images = images(&scratch, BOUNDS);
        images.image("shop").unwrap();
        images.tree("shop").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        for (file, at) in [("root.img", 0), ("root.tar", 1)] {
            std::fs::write(folder.join(file), b"y").unwrap();
            let message = &refusals_of(&images)[at];
            assert!(message.contains(file), "{message}");
            assert!(message.contains("should be 2d71"), "{message}");
        }
        std::fs::write(folder.join("image.toml"), GOOD).unwrap();
        for message in refusals(&images) {
            assert!(message.contains("no sha256 of"), "{message}");
        }
    }

    /// As [`refusals`], where one of the two may be good still.
    fn refusals_of(images: &Images) -> [String; 2] {
        let text = |error: Option<Error>| error.map(|e| e.to_string()).unwrap_or_default();
        [
            text(images.image("shop").err()),
            text(images.tree("shop").err()),
        ]
    }

    #[test]
    fn an_image_may_be_a_link_to_a_folder_that_is_as_safe() {
        let scratch = Scratch::new("image-link");
        let built = scratch.path().join("cache/built");
        image_in(&built, GOOD);
        let all = scratch.path().join("images");
        std::fs::create_dir(&all).unwrap();
        symlink(&built, all.join("shop")).unwrap();
        let images = images(&scratch, BOUNDS);
        assert_eq!(images.image("shop").unwrap().root, built.join("root.img"));
        std::fs::set_permissions(&built, std::fs::Permissions::from_mode(0o777)).unwrap();
        for message in refusals(&images) {
            assert!(
                message.contains("others than its owner can write"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_file_that_is_a_link_or_can_be_written_by_others_is_refused() {
        let scratch = Scratch::new("image-linked-file");
        let folder = shop(&scratch, GOOD);
        let images = images(&scratch, BOUNDS);
        for file in ["root.img", "root.tar"] {
            let (path, aside) = (folder.join(file), folder.join("aside"));
            std::fs::rename(&path, &aside).unwrap();
            symlink(&aside, &path).unwrap();
        }
        for message in refusals(&images) {
            assert!(message.contains("is a link"), "{message}");
        }
        shop_anew(&scratch);
        let description = folder.join("image.toml");
        std::fs::set_permissions(&description, std::fs::Permissions::from_mode(0o666)).unwrap();
        for message in refusals(&images) {
            assert!(
                message.contains("others than its owner can write"),
                "{message}"
            );
        }
    }

    fn shop_anew(scratch: &Scratch) {
        std::fs::remove_dir_all(scratch.path().join("images/shop")).unwrap();
        shop(scratch, GOOD);
    }

    #[test]
    fn a_test_image_is_refused_where_the_configuration_allows_no_door() {
        let scratch = Scratch::new("image-door");
        shop(&scratch, &format!("{GOOD}door = true\n"));
        for message in refusals(&images(&scratch, BOUNDS)) {
            assert!(
                message.contains("set door = true in agent.toml"),
                "{message}"
            );
        }
        let with_door = Bounds {
            door: true,
            ..BOUNDS
        };
        images(&scratch, with_door).image("shop").unwrap();
    }

    #[test]
    fn images_in_a_folder_that_others_can_write_to_are_refused_at_the_start() {
        let scratch = Scratch::new("image-folder");
        shop(&scratch, GOOD);
        let folder = scratch.path().join("images");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        let refused = Images::open(folder, BOUNDS, scratch.path().join("hashes"));
        assert!(refused.unwrap_err().to_string().contains("chmod go-w"));
    }
}
