//! What is wrong with the lab's links, direction by direction, and how the bridge is told. Pure.

use anyhow::{bail, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What is wrong with one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Nothing arrives.
    pub cut: bool,
    /// So many of a hundred frames are lost.
    pub loss_percent: u8,
    /// Every frame is late by so much.
    pub delay_ms: u32,
}

/// From one host to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Direction {
    /// Name of the host whose frames are affected.
    pub from: String,
    /// Name of the host to which those frames go.
    pub to: String,
}

/// What is wrong with the links of a lab: cut, late, or losing frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    // A list: keys of JSON's objects are strings.
    faults: Vec<(Direction, Fault)>,
}

/// The directions of a link that a fault is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    /// From the first to the second only.
    One,
    /// From each to the other.
    Both,
}

impl Rules {
    /// Changes what is wrong between two hosts.
    ///
    /// # Errors
    /// When both are one.
    pub fn change(
        &mut self,
        from: &str,
        to: &str,
        ways: Ways,
        mut change: impl FnMut(&mut Fault),
    ) -> Result<()> {
        if from == to {
            bail!("{from} has no link to itself");
        }
        let mut faults: BTreeMap<Direction, Fault> = self.faults.drain(..).collect();
        let mut directions = vec![(from, to)];
        if ways == Ways::Both {
            directions.push((to, from));
        }
        for (from, to) in directions {
            let direction = Direction {
                from: from.to_owned(),
                to: to.to_owned(),
            };
            change(faults.entry(direction).or_default());
        }
        self.faults = faults
            .into_iter()
            .filter(|(_, f)| *f != Fault::default())
            .collect();
        Ok(())
    }

    /// Nothing is wrong any more.
    pub fn heal(&mut self) {
        self.faults.clear();
    }

    /// Everything that is wrong.
    pub fn faults(&self) -> impl Iterator<Item = (&Direction, &Fault)> {
        self.faults
            .iter()
            .map(|(direction, fault)| (direction, fault))
    }

    /// For `nft`, in the namespace with the bridge, whose ports are called like the hosts. One
    /// transaction: there is no moment between the old rules and these. A delayed direction is closed
    /// here: frames take the way through the process that delays them.
    #[must_use]
    pub fn nft(&self) -> String {
        let mut text = String::from(
            "table bridge spare\ndelete table bridge spare\ntable bridge spare {\n\tchain forward {\n\
             \t\ttype filter hook forward priority 0; policy accept;\n",
        );
        for (Direction { from, to }, fault) in &self.faults {
            // Writing to a string cannot fail.
            let _ = write!(text, "\t\tiifname \"{from}\" oifname \"{to}\" ");
            if !fault.cut && fault.delay_ms == 0 {
                let _ = write!(text, "numgen random mod 100 < {} ", fault.loss_percent);
            }
            text.push_str("drop\n");
        }
        text.push_str("\t}\n}\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(rules: &mut Rules, from: &str, to: &str, ways: Ways) {
        rules.change(from, to, ways, |f| f.cut = true).unwrap();
    }

    #[test]
    fn a_cut_is_one_way_or_both() {
        let mut rules = Rules::default();
        cut(&mut rules, "h1", "h2", Ways::One);
        assert!(rules.nft().contains("iifname \"h1\" oifname \"h2\" drop"));
        assert!(!rules.nft().contains("iifname \"h2\""));
        cut(&mut rules, "h1", "h2", Ways::Both);
        assert!(rules.nft().contains("iifname \"h2\" oifname \"h1\" drop"));
        assert_eq!(rules.faults().count(), 2);
    }

    #[test]
    fn a_heal_leaves_the_other_links_as_they_are() {
        let mut rules = Rules::default();
        cut(&mut rules, "h1", "h2", Ways::Both);
        cut(&mut rules, "h1", "witness", Ways::Both);
        let heal = |f: &mut Fault| *f = Fault::default();
        rules.change("h2", "h1", Ways::Both, heal).unwrap();
        assert_eq!(rules.faults().count(), 2);
        assert!(!rules.nft().contains("h2"));
        rules.heal();
        assert_eq!(rules, Rules::default());
    }

    #[test]
    fn loss_is_by_chance_and_a_delayed_direction_is_closed() {
        let mut rules = Rules::default();
        rules
            .change("h1", "h2", Ways::One, |f| f.loss_percent = 30)
            .unwrap();
        assert!(rules.nft().contains("numgen random mod 100 < 30 drop"));
        rules
            .change("h1", "h2", Ways::One, |f| f.delay_ms = 5)
            .unwrap();
        assert!(rules.nft().contains("oifname \"h2\" drop"));
    }

    #[test]
    fn a_host_has_no_link_to_itself() {
        let refused = Rules::default().change("h1", "h1", Ways::Both, |f| f.cut = true);
        assert!(refused.is_err());
    }
}
