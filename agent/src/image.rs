//! Guest images: a folder with a kernel, an initial RAM disk, a disk and `image.toml`.

use crate::error::{Error, Result};
use crate::names::check_image_name;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The part of `image.toml` that the agent reads; other keys are the image builder's.
#[derive(Debug, Deserialize)]
struct Description {
    cmdline: String,
    memory_mib: u32,
    #[serde(default = "one")]
    processors: u32,
    content: Option<String>,
}

/// For images that say nothing.
fn one() -> u32 {
    1
}

/// More virtual processors than any replica needs.
const PROCESSORS_MAX: u32 = 64;

/// An image's tree of files, for process replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// `root.tar`.
    pub archive: PathBuf,
    /// A name that only images with the same content have.
    pub content: String,
}

/// What tells the image `name` below `images` from earlier and later ones of this name.
pub fn content(images: &Path, name: &str, memory_mib_max: u32) -> Result<String> {
    let description = Files::of(images, name)?.description(memory_mib_max)?;
    checked_content(name, description.content)
}

fn checked_content(name: &str, content: Option<String>) -> Result<String> {
    let content = content.filter(|content| {
        let plain = |c: char| c.is_ascii_alphanumeric();
        !content.is_empty() && content.len() <= 128 && content.chars().all(plain)
    });
    content.ok_or_else(|| Error::BadImage {
        name: name.to_owned(),
        why: "image.toml says no content, which tells it from later images of this name; build it anew"
            .to_owned(),
    })
}

impl Tree {
    /// Finds the tree of the image `name` below `images`; an image that asks for more than
    /// `memory_mib_max` is refused as elsewhere.
    pub fn load(images: &Path, name: &str, memory_mib_max: u32) -> Result<Tree> {
        let files = Files::of(images, name)?;
        let description = files.description(memory_mib_max)?;
        Ok(Tree {
            archive: files.find("root.tar")?,
            content: checked_content(name, description.content)?,
        })
    }
}

struct Files<'a> {
    name: &'a str,
    images: &'a Path,
    folder: PathBuf,
}

impl<'a> Files<'a> {
    fn of(images: &'a Path, name: &'a str) -> Result<Files<'a>> {
        check_image_name(name)?;
        let folder = images.join(name);
        Ok(Files {
            name,
            images,
            // A link may lead elsewhere tomorrow; a guest's disk keeps the path that it is given now.
            folder: folder.canonicalize().unwrap_or(folder),
        })
    }

    fn find(&self, missing: &'static str) -> Result<PathBuf> {
        let path = self.folder.join(missing);
        if path.is_file() {
            return Ok(path);
        }
        Err(Error::NoSuchImage {
            name: self.name.to_owned(),
            folder: self.images.to_owned(),
            missing,
        })
    }

    /// `image.toml`; an image that asks for too much is refused.
    fn description(&self, memory_mib_max: u32) -> Result<Description> {
        let description = read_description(self.name, &self.find("image.toml")?)?;
        if description.memory_mib == 0 || description.memory_mib > memory_mib_max {
            return Err(Error::BadImage {
                name: self.name.to_owned(),
                why: format!(
                    "it asks for {} MiB of memory and memory_mib_max is {memory_mib_max}",
                    description.memory_mib
                ),
            });
        }
        if !(1..=PROCESSORS_MAX).contains(&description.processors) {
            return Err(Error::BadImage {
                name: self.name.to_owned(),
                why: format!(
                    "it asks for {} processors; 1 to {PROCESSORS_MAX} can be given",
                    description.processors
                ),
            });
        }
        Ok(description)
    }
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

impl Image {
    /// Finds the image `name` below `images` and checks that it is complete and asks for no more
    /// than `memory_mib_max`.
    pub fn load(images: &Path, name: &str, memory_mib_max: u32) -> Result<Image> {
        let files = Files::of(images, name)?;
        let description = files.description(memory_mib_max)?;
        Ok(Image {
            name: name.to_owned(),
            kernel: files.find("vmlinuz")?,
            initrd: files.find("initrd")?,
            root: files.find("root.img")?,
            cmdline: description.cmdline,
            memory_mib: description.memory_mib,
            processors: description.processors,
        })
    }

    /// Any image below `images`, the first by name, for trying out whether guests boot at all.
    pub fn any(images: &Path, memory_mib_max: u32) -> Option<Image> {
        let mut names: Vec<String> = std::fs::read_dir(images)
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
            .iter()
            .find_map(|name| Image::load(images, name, memory_mib_max).ok())
    }
}

fn read_description(name: &str, path: &Path) -> Result<Description> {
    let bad = |why: String| Error::BadImage {
        name: name.to_owned(),
        why: format!("{}: {why}", path.display()),
    };
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    parse_description(&text).map_err(|e| bad(e.message().to_owned()))
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

    fn image_in(scratch: &Scratch, description: &str) {
        let folder = scratch.path().join("shop");
        std::fs::create_dir_all(&folder).unwrap();
        for file in ["vmlinuz", "initrd", "root.img"] {
            std::fs::write(folder.join(file), b"x").unwrap();
        }
        std::fs::write(folder.join("image.toml"), description).unwrap();
    }

    #[test]
    fn a_complete_image_is_found() {
        let scratch = Scratch::new("image-complete");
        image_in(
            &scratch,
            "name = \"shop\"\ncontent = \"1\"\ncmdline = \"quiet\"\nmemory_mib = 256\n",
        );
        let image = Image::load(scratch.path(), "shop", 256).unwrap();
        assert_eq!((image.cmdline.as_str(), image.memory_mib), ("quiet", 256));
        assert_eq!(Image::any(scratch.path(), 256), Some(image));
    }

    #[test]
    fn a_missing_image_is_named_with_its_folder_and_the_command_that_builds_it() {
        let scratch = Scratch::new("image-missing");
        let message = Image::load(scratch.path(), "shop", 256)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(scratch.path().to_str().unwrap()),
            "{message}"
        );
        assert!(message.contains("vm-images/build shop"), "{message}");
        assert_eq!(Image::any(scratch.path(), 256), None);
    }

    #[test]
    fn an_image_that_wants_too_much_memory_is_refused() {
        let scratch = Scratch::new("image-memory");
        image_in(&scratch, "cmdline = \"\"\nmemory_mib = 512\n");
        let message = Image::load(scratch.path(), "shop", 256)
            .unwrap_err()
            .to_string();
        assert!(message.contains("memory_mib_max is 256"), "{message}");
    }

    #[test]
    fn an_image_is_told_from_later_ones_by_its_content() {
        let scratch = Scratch::new("image-content");
        image_in(
            &scratch,
            "content = \"1f\"\ncmdline = \"\"\nmemory_mib = 8\n",
        );
        assert_eq!(content(scratch.path(), "shop", 256).unwrap(), "1f");
        image_in(&scratch, "cmdline = \"\"\nmemory_mib = 8\n");
        let message = content(scratch.path(), "shop", 256)
            .unwrap_err()
            .to_string();
        assert!(message.contains("build it anew"), "{message}");
    }
}
