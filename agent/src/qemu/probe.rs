//! Finding out whether KVM works here.
//!
//! `/dev/kvm` that opens is not a KVM that works: in some virtual machines guests start under it and
//! then hang. So a guest's kernel is booted once, and must come as far as its first user process. The
//! answer holds for this boot of the host and this kernel, and is remembered in a file.

use super::accelerator::Accelerator;
use super::domain_xml::{Guest, Limits};
use crate::error::{Error, Result};
use crate::files::{private, StateDir};
use crate::image::Image;
use crate::libvirt::{destroy_if_there, Link};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use virt::domain::Domain;

/// Every Linux kernel says this once it is up, before it starts init.
const BOOTED: &[u8] = b"as init process";
/// Makes the kernel say it, whatever the image's own command line is.
const CMDLINE: &str = "console=ttyS0 loglevel=7 panic=-1";
/// Console output kept while looking for [`BOOTED`]; a kernel says far less before that.
const CONSOLE_BYTES_MAX: u64 = 1 << 20;

/// An attempt to boot a kernel under KVM.
pub(super) struct Probe<'a> {
    /// The name of the domain that tries KVM.
    pub(super) domain: &'a str,
    pub(super) link: &'a Link,
    pub(super) files: &'a StateDir,
    /// libvirt can leave the files of a domain to whom they belong.
    pub(super) keeps_owners: bool,
    /// How long the kernel may take to boot.
    pub(super) deadline: Duration,
}

impl Probe<'_> {
    /// KVM if a guest with this image's kernel boots under it, else TCG.
    pub(super) fn accelerator(&self, image: &Image) -> Result<Accelerator> {
        if std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            tracing::info!("guests run under TCG: there is no usable /dev/kvm");
            return Ok(Accelerator::Tcg);
        }
        let key = probe_key(image)?;
        if let Some(known) = remembered(&self.files.accelerator(), &key) {
            return Ok(known);
        }
        let begun = Instant::now();
        let accelerator = match self.boots_under_kvm(image) {
            Ok(()) => {
                tracing::info!("guests run under KVM: one booted in {:?}", begun.elapsed());
                Accelerator::Kvm
            }
            Err(why) => {
                tracing::info!("guests run under TCG: KVM does not work here: {why}");
                Accelerator::Tcg
            }
        };
        remember(&self.files.accelerator(), &key, accelerator)?;
        Ok(accelerator)
    }

    /// Boots the image's kernel under KVM; fails if it does not come up in time.
    fn boots_under_kvm(&self, image: &Image) -> Result<()> {
        let connect = self.link.connect()?;
        destroy_if_there(&connect, self.domain)?;
        let console = self.files.probe_socket();
        let xml = Guest {
            domain: self.domain,
            image,
            cmdline: CMDLINE,
            accelerator: Accelerator::Kvm,
            overlay: None,
            console: &console,
            ports: &[],
            // It runs for seconds, and has no disk.
            limits: Limits {
                bounds_memory: false,
                disk_mib_per_s: 1,
            },
            keeps_owners: self.keeps_owners,
        }
        .xml();
        Domain::create_xml(&connect, &xml, 0)
            .map_err(|e| Error::failed("a guest did not start", e.message()))?;
        let result = wait_for_boot(&console, self.deadline);
        destroy_if_there(&connect, self.domain)?;
        // libvirt removes the socket with the domain; if it did not, the next probe replaces it.
        let _ = std::fs::remove_file(&console);
        result
    }
}

/// Reads the console until the kernel is up.
fn wait_for_boot(console: &Path, deadline: Duration) -> Result<()> {
    let begun = Instant::now();
    let what = "a guest started and did not boot";
    let mut stream = UnixStream::connect(console).map_err(|e| Error::failed(what, e))?;
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_sub(begun.elapsed());
        if left.is_zero() || seen.len() as u64 > CONSOLE_BYTES_MAX {
            return Err(Error::failed(
                what,
                format!(
                    "within {} s (it said {} bytes)",
                    deadline.as_secs_f32(),
                    seen.len()
                ),
            ));
        }
        stream
            .set_read_timeout(Some(left))
            .map_err(|e| Error::failed(what, e))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(Error::failed(what, "it ended")),
            Ok(length) => seen.extend_from_slice(&buffer[..length]),
            // The time that is left is checked above.
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(Error::failed(what, e)),
        }
        if seen.windows(BOOTED.len()).any(|part| part == BOOTED) {
            return Ok(());
        }
    }
}

/// What the answer depends on: this boot of the host, and the guests' kernel.
fn probe_key(image: &Image) -> Result<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|e| Error::failed("cannot tell which boot of the host this is", e))?;
    let kernel = std::fs::metadata(&image.kernel)
        .map_err(|e| Error::failed(format!("cannot read {}", image.kernel.display()), e))?;
    Ok(format!(
        "{} {} {}",
        boot.trim(),
        kernel.len(),
        kernel.mtime()
    ))
}

/// The answer given before, if it was for `key`.
fn remembered(file: &Path, key: &str) -> Option<Accelerator> {
    answer_for(&std::fs::read_to_string(file).ok()?, key)
}

/// The answer in the file's `text`, if it was for `key`.
pub(crate) fn answer_for(text: &str, key: &str) -> Option<Accelerator> {
    match text.trim().strip_prefix(key)?.trim() {
        "kvm" => Some(Accelerator::Kvm),
        "tcg" => Some(Accelerator::Tcg),
        _ => None,
    }
}

fn remember(file: &Path, key: &str, answer: Accelerator) -> Result<()> {
    private(file)
        .and_then(|mut file| file.write_all(format!("{key} {}\n", answer.name()).as_bytes()))
        .map_err(|e| Error::failed(format!("cannot write {}", file.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_answer_is_remembered_for_the_same_boot_and_kernel_only() {
        let scratch = Scratch::new("probe-remember");
        let file = scratch.path().join("accelerator");
        assert_eq!(remembered(&file, "boot 1 2"), None);
        remember(&file, "boot 1 2", Accelerator::Tcg).unwrap();
        assert_eq!(remembered(&file, "boot 1 2"), Some(Accelerator::Tcg));
        assert_eq!(remembered(&file, "other 1 2"), None);
        assert_eq!(remembered(&file, "boot 1 3"), None);
    }

    #[test]
    fn a_kernel_that_says_something_and_then_hangs_does_not_count_as_booted() {
        let scratch = Scratch::new("probe-hang");
        let socket = scratch.path().join("con");
        let listener = UnixListener::bind(&socket).unwrap();
        let guest = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"Linux version 6.1\n").unwrap();
            stream
        });
        let message = wait_for_boot(&socket, Duration::from_millis(100))
            .unwrap_err()
            .to_string();
        assert!(message.contains("18 bytes"), "{message}");
        drop(guest.join().unwrap());
    }
}
