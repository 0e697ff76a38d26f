//! Strain: what clients ask for and what machines are too slow for. Nobody is at fault, and nobody pays for it with a
//! place (`docs/protocol.md#fault-model`, rule 1).

use crate::plan::{MS, SECOND};
use crate::random::Random;
use crate::service::{Burden, Kind, Operation, ENDLESS};
use std::fmt;
use std::str::FromStr;

/// Which strain a run is under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Strain {
    /// Requests, replies and updates from nothing to far beyond every limit.
    pub(crate) sizes: bool,
    /// Requests that take a minute, or never end.
    pub(crate) slow: bool,
    /// More clients than the replicas can serve, all at once now and then.
    pub(crate) crowd: bool,
    /// The service gives something else at each replica now and then.
    pub(crate) differs: bool,
    /// Clients that go away, and clients that send keys without end.
    pub(crate) stalls: bool,
    /// No machine and no network fails, so whatever a replica suffers comes from the strain.
    pub(crate) calm: bool,
}

impl Strain {
    const NONE: Strain = Strain {
        sizes: false,
        slow: false,
        crowd: false,
        differs: false,
        stalls: false,
        calm: false,
    };

    #[cfg(feature = "seeded-bugs")]
    const ALL: Strain = Strain {
        sizes: true,
        slow: true,
        crowd: true,
        differs: true,
        stalls: true,
        calm: true,
    };

    /// What the core has the rules for, as far as the simulator knows: a seed draws from this.
    pub(crate) const READY: Strain = Strain {
        sizes: true,
        slow: false,
        crowd: false,
        differs: true,
        stalls: true,
        calm: true,
    };

    /// As the seed says. Drawn apart from everything else, so that a seed without strain means the same run as ever.
    pub(crate) fn drawn(seed: u64) -> Strain {
        Strain::drawn_of(seed, Strain::READY)
    }

    /// As the seed says, of everything.
    #[cfg(feature = "seeded-bugs")]
    pub(crate) fn drawn_of_all(seed: u64) -> Strain {
        Strain::drawn_of(seed, Strain::ALL)
    }

    fn drawn_of(seed: u64, ready: Strain) -> Strain {
        let mut random = Random::new(seed ^ 0x57EA_1417);
        let strained = random.permille(600);
        let mut one = |ready: bool| random.permille(400) && ready && strained;
        Strain {
            sizes: one(ready.sizes),
            slow: one(ready.slow),
            crowd: one(ready.crowd),
            differs: one(ready.differs),
            stalls: one(ready.stalls),
            calm: one(ready.calm),
        }
    }

    fn named(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "sizes" => &mut self.sizes,
            "slow" => &mut self.slow,
            "crowd" => &mut self.crowd,
            "differs" => &mut self.differs,
            "stalls" => &mut self.stalls,
            "calm" => &mut self.calm,
            _ => return None,
        })
    }
}

impl FromStr for Strain {
    type Err = String;

    /// Names with commas between them, or `none`.
    fn from_str(names: &str) -> Result<Strain, String> {
        let mut strain = Strain::NONE;
        for name in names.split(',').filter(|n| *n != "none") {
            let found = strain.named(name).map(|on| *on = true);
            found.ok_or_else(|| {
                format!("no strain is named {name}; there are sizes, slow, crowd, differs, stalls, calm and none")
            })?;
        }
        Ok(strain)
    }
}

impl fmt::Display for Strain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.sizes, "sizes"),
            (self.slow, "slow"),
            (self.crowd, "crowd"),
            (self.differs, "differs"),
            (self.stalls, "stalls"),
            (self.calm, "calm"),
        ];
        let on: Vec<&str> = all.iter().filter(|(on, _)| *on).map(|(_, n)| *n).collect();
        match on.is_empty() {
            true => f.write_str("none"),
            false => f.write_str(&on.join(",")),
        }
    }
}

/// How often a run may still ask for what costs replicas that are built anew.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    endless: u64,
    differing_writes: u64,
    sides: u64,
}

impl Default for Allowance {
    fn default() -> Allowance {
        Allowance {
            endless: 2,
            differing_writes: 3,
            sides: 2,
        }
    }
}

fn take(left: &mut u64) -> bool {
    let some = *left > 0;
    *left = left.saturating_sub(1);
    some
}

/// Puts strain on an operation that a client invented.
pub(crate) fn burden(
    operation: &mut Operation,
    (strain, pace): (Strain, u64),
    allowance: &mut Allowance,
    random: &mut Random,
) {
    let exclusive = operation.kind != Kind::Read;
    if strain.differs && random.permille(25) {
        operation.kind = match random.below(10) {
            0..=5 => Kind::Differs,
            6 | 7 if take(&mut allowance.sides) => Kind::Sides,
            _ if take(&mut allowance.differing_writes) => Kind::WriteDiffers,
            _ => Kind::Differs,
        };
    }
    let mut burden = Burden::default();
    if strain.crowd {
        burden.takes = random.skewed(pace, 20 * pace);
    }
    if strain.slow && random.permille(12) {
        burden.takes = match random.below(8) {
            0..=2 => random.range(100 * MS, SECOND),
            3..=5 => random.range(SECOND, 10 * SECOND),
            6 if exclusive && !take(&mut allowance.endless) => SECOND,
            6 => ENDLESS,
            _ if exclusive && !take(&mut allowance.endless) => SECOND,
            _ => 60 * SECOND,
        };
    }
    if strain.sizes {
        let mut bytes = |often| {
            let some = random.permille(often);
            let magnitude = random.below(18);
            let bytes = random.below(2 << magnitude);
            u32::try_from(bytes).unwrap_or(0) * u32::from(some)
        };
        burden.request_bytes = bytes(300).min(crate::service::REQUEST_BYTES_MAX);
        burden.reply_bytes = bytes(300);
        burden.update_bytes = bytes(200);
    }
    operation.burden = burden;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strain_is_read_as_it_is_written() {
        for names in ["none", "slow", "sizes,crowd,calm"] {
            assert_eq!(
                names.parse::<Strain>().map(|s| s.to_string()),
                Ok(names.into())
            );
        }
        assert!("slow,quick".parse::<Strain>().is_err());
    }
}
