//! The user that QEMU runs as, which libvirt tells.
//!
//! libvirt would give each file of a domain to that user, those of the image as well, which all replicas share: a QEMU
//! that was taken over could change them, and the agent would refuse them from then on. So domains say that nothing
//! is to be given away, and the agent gives QEMU the one file that it writes, the guest's disk.

use crate::error::Result;
use crate::files::Owner;
use crate::libvirt::failed;
use nix::unistd::{Gid, Uid};
use virt::connect::Connect;

/// The user that QEMU runs as; `None` if this libvirt changes no owners.
pub(super) fn find(connect: &Connect) -> Result<Option<Owner>> {
    let capabilities = connect
        .get_capabilities()
        .map_err(|e| failed("cannot tell which user QEMU runs as", &e))?;
    Ok(parse(&capabilities))
}

/// The label of the security model `dac` in libvirt's capabilities:
/// `<model>dac</model> … <baselabel type='qemu'>+64055:+994</baselabel>`.
fn parse(capabilities: &str) -> Option<Owner> {
    let (_, model) = capabilities.split_once("<model>dac</model>")?;
    let (model, _) = model.split_once("</secmodel>")?;
    let (_, label) = model.split_once("<baselabel")?;
    let (label, _) = label.split_once('>')?.1.split_once('<')?;
    let (user, group) = label.split_once(':')?;
    let number = |text: &str| text.trim().strip_prefix('+')?.parse::<u32>().ok();
    Some(Owner {
        user: Uid::from_raw(number(user)?),
        group: Gid::from_raw(number(group)?),
    })
}

/// For `decoders`: the numbers of user and group.
#[cfg(feature = "fuzzing")]
pub(crate) fn user_in(capabilities: &str) -> Option<(u32, u32)> {
    parse(capabilities).map(|found| (found.user.as_raw(), found.group.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_the_one_of_the_model_that_changes_owners() {
        let text = "<host><secmodel><model>apparmor</model><doi>0</doi></secmodel>\
            <secmodel>\n<model>dac</model>\n<doi>0</doi>\n<baselabel type='kvm'>+64055:+994</baselabel>\n\
            <baselabel type='qemu'>+64055:+994</baselabel></secmodel></host>";
        let (user, group) = (Uid::from_raw(64_055), Gid::from_raw(994));
        assert_eq!(parse(text), Some(Owner { user, group }));
        for without in [
            "",
            "<secmodel><model>none</model><doi>0</doi></secmodel>",
            "<secmodel><model>dac</model><doi>0</doi></secmodel><secmodel><baselabel>+1:+1</baselabel></secmodel>",
            "<secmodel><model>dac</model><baselabel type='kvm'>nobody</baselabel></secmodel>",
        ] {
            assert_eq!(parse(without), None, "{without}");
        }
    }
}
