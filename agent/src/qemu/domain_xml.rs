//! The description of a guest: as few devices as boot, no network, no way to keep
//! anything.

use super::accelerator::Accelerator;
use crate::files::Port;
use crate::image::Image;
use std::fmt::Write;
use std::path::Path;

/// Features that cost TCG more than they give a small guest: five-level page tables add a level to
/// each walk, and 256-bit registers are emulated in halves and saved at each task switch.
const TCG_WITHOUT: [&str; 5] = ["la57", "avx", "avx2", "fma", "f16c"];
/// Code that TCG keeps translated, per guest, in MiB. QEMU would take an eighth of the host's memory
/// for each.
const TCG_CODE_MIB: u32 = 256;

/// What QEMU takes beside a guest's memory and the code that TCG keeps, in MiB: some 50 were seen.
const QEMU_MIB: u32 = 256;
/// Virtualisation by the processor, Intel's and AMD's, which no guest gets: guests in a guest would reach the parts
/// of the host's kernel that are used and tested least. TCG has AMD's too.
const NEVER: [&str; 2] = ["vmx", "svm"];

/// What a guest may take of its host, beside its memory and processors.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The memory of its whole process is bounded, so that a QEMU that was taken over, or one that leaks, takes no
    /// more. Not every host's libvirt can do that.
    pub bounds_memory: bool,
    /// What it reads from its disk and writes to it in a second.
    pub disk_mib_per_s: u64,
}

/// Everything that tells one guest from another.
#[derive(Clone, Debug)]
pub struct Guest<'a> {
    /// What libvirt calls it: [`crate::names::Service::domain_of`] its replica.
    pub domain: &'a str,
    /// Its kernel, its disk, and how much memory and how many processors it gets.
    pub image: &'a Image,
    /// For the kernel; the image's own, unless something is tried out.
    pub cmdline: &'a str,
    /// What executes its instructions.
    pub accelerator: Accelerator,
    /// Its own disk, a qcow2 overlay over the image's; without one it has no disk.
    pub overlay: Option<&'a Path>,
    /// The socket of its serial console.
    pub console: &'a Path,
    /// They become virtio-serial ports; none, and it has no such device.
    pub ports: &'a [Port],
    /// What it may take of its host.
    pub limits: Limits,
    /// libvirt leaves its files to whom they belong ([`super::user`]).
    pub keeps_owners: bool,
}

impl Guest<'_> {
    /// The XML that `virDomainCreateXML` takes.
    #[must_use]
    pub fn xml(&self) -> String {
        let mut xml = String::new();
        self.write(&mut xml);
        xml
    }

    fn write(&self, xml: &mut String) {
        self.push_machine(xml);
        self.push_boot(xml);
        // A guest that stops for whatever reason stays stopped: it is replaced, never restarted.
        xml.push_str(concat!(
            "  <clock offset='utc'/>\n",
            "  <on_poweroff>destroy</on_poweroff>\n",
            "  <on_reboot>destroy</on_reboot>\n",
            "  <on_crash>destroy</on_crash>\n",
        ));
        self.push_devices(xml);
        if self.keeps_owners {
            xml.push_str("  <seclabel type='none' model='dac'/>\n");
        }
        xml.push_str("</domain>\n");
    }

    fn push_machine(&self, xml: &mut String) {
        let (kind, processor, features) = match self.accelerator {
            Accelerator::Kvm => ("kvm", processor("host-passthrough", &[]), String::new()),
            Accelerator::Tcg => (
                "qemu",
                // All that TCG can do.
                processor("maximum", &TCG_WITHOUT),
                format!("<tcg><tb-cache unit='MiB'>{TCG_CODE_MIB}</tb-cache></tcg>"),
            ),
        };
        push(xml, format_args!("<domain type='{kind}'>\n"));
        push(
            xml,
            format_args!("  <name>{}</name>\n", Escaped(self.domain)),
        );
        push(
            xml,
            format_args!("  <memory unit='MiB'>{}</memory>\n", self.image.memory_mib),
        );
        // All of it at the start: a passive that is woken would wait for the host to clear each page.
        xml.push_str("  <memoryBacking><allocation mode='immediate'/></memoryBacking>\n");
        if self.limits.bounds_memory {
            push(
                xml,
                format_args!(
                    "  <memtune><hard_limit unit='MiB'>{}</hard_limit></memtune>\n",
                    self.process_mib()
                ),
            );
        }
        push(
            xml,
            format_args!("  <vcpu>{}</vcpu>\n  {processor}\n", self.image.processors),
        );
        push(
            xml,
            format_args!("  <features><acpi/>{features}</features>\n"),
        );
    }

    /// What its process may have of the host's memory.
    fn process_mib(&self) -> u64 {
        let code = match self.accelerator {
            Accelerator::Kvm => 0,
            Accelerator::Tcg => TCG_CODE_MIB,
        };
        u64::from(self.image.memory_mib) + u64::from(code + QEMU_MIB)
    }

    fn push_boot(&self, xml: &mut String) {
        push(
            xml,
            format_args!("  <os>\n    <type arch='x86_64' machine='q35'>hvm</type>\n"),
        );
        push(
            xml,
            format_args!("    <kernel>{}</kernel>\n", EscapedPath(&self.image.kernel)),
        );
        push(
            xml,
            format_args!("    <initrd>{}</initrd>\n", EscapedPath(&self.image.initrd)),
        );
        push(
            xml,
            format_args!(
                "    <cmdline>{}</cmdline>\n  </os>\n",
                Escaped(self.cmdline)
            ),
        );
    }

    fn push_devices(&self, xml: &mut String) {
        xml.push_str(concat!(
            "  <devices>\n",
            "    <controller type='usb' model='none'/>\n",
            "    <memballoon model='none'/>\n",
            "    <video><model type='none'/></video>\n",
            "    <audio id='1' type='none'/>\n",
            "    <panic model='isa'/>\n",
        ));
        if let Some(overlay) = self.overlay {
            push_disk(xml, overlay, &self.image.root, self.limits.disk_mib_per_s);
        }
        push(
            xml,
            format_args!(
                "    <serial type='unix'><source mode='bind' path='{}'/><target port='0'/></serial>\n",
                EscapedPath(self.console)
            ),
        );
        self.push_ports(xml);
        xml.push_str("  </devices>\n");
    }

    fn push_ports(&self, xml: &mut String) {
        if self.ports.is_empty() {
            return;
        }
        xml.push_str(
            "    <controller type='virtio-serial' index='0' model='virtio-non-transitional' ports='4'>\
             <address type='pci' domain='0' bus='0' slot='3' function='0'/></controller>\n",
        );
        for port in self.ports {
            push(
                xml,
                format_args!(
                    "    <channel type='unix'><source mode='bind' path='{}'/>\
                     <target type='virtio' name='{}'/></channel>\n",
                    EscapedPath(&port.socket),
                    Escaped(port.name)
                ),
            );
        }
    }
}

/// A processor without these features, and without those in [`NEVER`].
fn processor(mode: &str, without: &[&str]) -> String {
    let disabled = without.iter().chain(&NEVER);
    let disabled: String = disabled
        .map(|feature| format!("<feature policy='disable' name='{feature}'/>"))
        .collect();
    format!("<cpu mode='{mode}'>{disabled}</cpu>")
}

/// The guest's disk. It is thrown away with the guest, so nothing is ever flushed to it
/// (`cache='unsafe'`). Its chain is spelled out: a guest writes its own overlay, and a format guessed
/// from what a guest wrote could name any file of the host.
fn push_disk(xml: &mut String, overlay: &Path, root: &Path, mib_per_s: u64) {
    push(
        xml,
        format_args!(
            "    <disk type='file' device='disk' model='virtio-non-transitional'>\n\
             \x20     <driver name='qemu' type='qcow2' cache='unsafe'/>\n\
             \x20     <source file='{}'/>\n\
             \x20     <backingStore type='file'><format type='raw'/><source file='{}'/><backingStore/></backingStore>\n\
             \x20     <target dev='vda' bus='virtio'/>\n\
             \x20     <iotune><total_bytes_sec>{}</total_bytes_sec></iotune>\n\
             \x20     <address type='pci' domain='0' bus='0' slot='2' function='0'/>\n\
             \x20   </disk>\n",
            EscapedPath(overlay),
            EscapedPath(root),
            mib_per_s.saturating_mul(1 << 20)
        ),
    );
}

fn push(xml: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String can't fail.
    let _ = xml.write_fmt(text);
}

/// Text that is safe in XML content and in attributes.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '\'' => f.write_str("&apos;")?,
                '"' => f.write_str("&quot;")?,
                // XML 1.0 knows no other control characters; a command line or a path has none.
                c if c.is_control() => f.write_char(' ')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A path that is safe in XML.
struct EscapedPath<'a>(&'a Path);

impl std::fmt::Display for EscapedPath<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Escaped(&self.0.to_string_lossy()).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image {
            name: "shop".into(),
            kernel: "/images/shop/vmlinuz".into(),
            initrd: "/images/shop/initrd".into(),
            root: "/images/shop/root.img".into(),
            cmdline: "console=ttyS0 quiet".into(),
            memory_mib: 192,
            processors: 2,
        }
    }

    fn xml(image: &Image, accelerator: Accelerator, ports: &[Port]) -> String {
        Guest {
            domain: "spare-shop-0-1",
            image,
            cmdline: &image.cmdline,
            accelerator,
            overlay: Some(Path::new("/state/disks/0.1.qcow2")),
            console: Path::new("/state/channels/0.1.con"),
            ports,
            limits: Limits {
                bounds_memory: true,
                disk_mib_per_s: 200,
            },
            keeps_owners: true,
        }
        .xml()
    }

    #[test]
    fn libvirt_is_to_give_no_file_away() {
        let xml = xml(&image(), Accelerator::Kvm, &[]);
        assert!(xml.contains("<seclabel type='none' model='dac'/>"), "{xml}");
    }

    #[test]
    fn no_guest_can_run_guests_of_its_own() {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let xml = xml(&image(), accelerator, &[]);
            for feature in ["vmx", "svm"] {
                let disabled = format!("<feature policy='disable' name='{feature}'/>");
                assert!(xml.contains(&disabled), "{xml}");
            }
        }
    }

    #[test]
    fn memory_and_disk_are_bounded() {
        for (accelerator, mib) in [(Accelerator::Kvm, 448), (Accelerator::Tcg, 704)] {
            let xml = xml(&image(), accelerator, &[]);
            let bound = format!("<hard_limit unit='MiB'>{mib}</hard_limit>");
            assert!(xml.contains(&bound), "{xml}");
            assert!(
                xml.contains("<total_bytes_sec>209715200</total_bytes_sec>"),
                "{xml}"
            );
        }
    }

    #[test]
    fn a_guest_has_its_memory_its_disk_and_no_network() {
        let xml = xml(&image(), Accelerator::Tcg, &[]);
        assert!(xml.contains("<domain type='qemu'>"));
        assert!(xml.contains("<memory unit='MiB'>192</memory>"));
        assert!(xml.contains("<allocation mode='immediate'/>"));
        assert!(xml.contains("<source file='/state/disks/0.1.qcow2'/>"));
        assert!(xml.contains("<cmdline>console=ttyS0 quiet</cmdline>"));
        for absent in [
            "<interface",
            "<graphics",
            "<filesystem",
            "<hostdev",
            "virtio-serial",
        ] {
            assert!(!xml.contains(absent), "{absent}");
        }
    }

    #[test]
    fn each_port_becomes_a_channel() {
        let port = Port {
            name: "org.spare.shim.0",
            socket: "/state/channels/0.1.shim".into(),
        };
        let xml = xml(&image(), Accelerator::Kvm, &[port]);
        assert!(xml.contains("<domain type='kvm'>"));
        assert_eq!(xml.matches("<channel ").count(), 1);
        assert!(xml.contains("<source mode='bind' path='/state/channels/0.1.shim'/>"));
        assert!(xml.contains("<target type='virtio' name='org.spare.shim.0'/>"));
    }

    #[test]
    fn what_an_image_says_cannot_break_out_of_its_element() {
        let mut image = image();
        image.cmdline = "</cmdline></os><devices>'\"&\u{1}".into();
        image.kernel = "/images/a'b/vmlinuz".into();
        let xml = xml(&image, Accelerator::Tcg, &[]);
        assert!(xml.contains(
            "<cmdline>&lt;/cmdline&gt;&lt;/os&gt;&lt;devices&gt;&apos;&quot;&amp; </cmdline>"
        ));
        assert!(xml.contains("<kernel>/images/a&apos;b/vmlinuz</kernel>"));
        assert_eq!(xml.matches("<devices>").count(), 1);
    }
}
