//! What a seed stands for: the size of the cluster, its settings, its load, and which faults it suffers.

use crate::random::Random;
use crate::strain::Strain;
use spare_core::{Config, Micros};
use spare_protocol::versions::VersionRange;
use spare_protocol::SeatId;

pub(crate) const MS: u64 = 1000;
pub(crate) const SECOND: u64 = 1_000_000;

/// What a run does, as its seed and the command line tell.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) hosts: usize,
    pub(crate) faults: u16,
    /// One replica more than f is faulty.
    pub(crate) beyond: bool,
    pub(crate) config: Config,
    pub(crate) clients: usize,
    /// Requests that are ordered before the healing phase.
    pub(crate) requests: u64,
    /// The safety phase ends after this, whatever was ordered.
    pub(crate) longest: u64,
    /// Time between two faults, on average.
    pub(crate) fault_every: u64,
    /// Operations of a client without a pause.
    pub(crate) burst: u64,
    pub(crate) pause: u64,
    /// A witness gives leases (two hosts only).
    pub(crate) leases: bool,
    /// Lost hosts are turned off; there is no witness.
    pub(crate) fences: bool,
    /// Hosts part when one became a member.
    pub(crate) parts_at_returns: bool,
    /// Hosts are drained and get their share back.
    pub(crate) drains: bool,
    /// A host is added later.
    pub(crate) adds: bool,
    /// Hosts begin with an older build, and get this one.
    pub(crate) upgrades: bool,
    /// A host's disk is lost for good.
    pub(crate) disk_loss: bool,
    pub(crate) strain: Strain,
    /// The strain was not drawn from the seed.
    strain_is_fixed: bool,
    /// What a request takes at least where there are more clients than can be served, in microseconds.
    pub(crate) pace: u64,
    /// So many more come than are served that most must be refused.
    pub(crate) overrun: bool,
    /// How many reads a replica executes at once.
    pub(crate) readers: usize,
    pub(crate) random: Random,
}

/// What the command line fixes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fixed {
    pub(crate) hosts: Option<usize>,
    pub(crate) faults: Option<u16>,
    pub(crate) beyond: bool,
    pub(crate) strain: Option<Strain>,
    /// A known bug that is in the core.
    pub(crate) bug: Option<crate::seeded_bugs::Known>,
}

impl Plan {
    pub(crate) fn new(seed: u64, fixed: Fixed) -> Plan {
        let mut random = Random::new(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0x5BD1_E995);
        let drawn = match random.below(10) {
            0..=4 => 1,
            5..=7 => 2,
            _ => 3,
        };
        let faults = fixed.faults.unwrap_or(drawn).max(1);
        let extra = random.index(3);
        let least = usize::from(faults) + 1;
        let hosts = fixed.hosts.unwrap_or(least + extra).max(least);
        let durable = random.permille(850);
        let ms = |random: &mut Random, least, most| Micros::from_ms(random.range(least, most));
        let config = Config {
            me: SeatId(0),
            seats: seats(hosts),
            faults,
            durable,
            updates_max: random.index(40) + 3,
            activation_budget: ms(&mut random, 5, 100),
            buffer_max: 2000,
            checkpoint_writes: random.range(5, 60),
            vote_timeout: (ms(&mut random, 20, 60), ms(&mut random, 200, 600)),
            read_timeout: ms(&mut random, 1000, 2500),
            read_patience: ms(&mut random, 200, 1000),
            abort_timeout: ms(&mut random, 3000, 5000),
            scrub_timeout: ms(&mut random, 5000, 8000),
            executing_max: random.index(40) + 1,
            executing_bytes_max: 1 << (8 + random.index(13)),
            help_timeout: ms(&mut random, 200, 600),
            fetch_timeout: ms(&mut random, 100, 400),
            apply_timeout: ms(&mut random, 2000, 4000),
            boot_timeout: Micros::from_ms(8000),
            build_timeout: ms(&mut random, 10_000, 20_000),
            recovery_timeout: ms(&mut random, 15_000, 30_000),
            awake_min: ms(&mut random, 200, 800),
            awake_max: ms(&mut random, 2000, 8000),
            suspicion_threshold: random.index(3) + 1,
            suspicion_window: random.range(50, 1000),
            slow_factor: 20,
            slow_min: Micros::from_ms(100),
            announce_delay: Micros(random.range(500, 3000)),
            heartbeat: ms(&mut random, 500, 1500),
            batch_delay: Micros(random.below(3) * 1000),
            batch_requests_max: random.index(32) + 1,
            batch_bytes_max: 1 << 16,
            undelivered_bytes_max: 128 << 20,
            in_flight_max: random.index(60) + 3,
            wait_max: ms(&mut random, 500, 5000),
            clock_ahead_max_us: 1_000_000,
            key_lifetime_us: 86_400_000_000,
            keys_max: 100_000,
            keys_of_owner_max: 100_000,
            versions: VersionRange::OF_THIS_BUILD,
        };
        let clients = random.index(7) + 4;
        // Only half of an even number can be in doubt.
        let spare = hosts > least;
        let adds = spare && durable && Random::new(seed ^ 0xADD5).permille(250);
        let fences = hosts % 2 == 0 && Random::new(seed ^ 0xF3CE).permille(550);
        let strain = fixed.strain.unwrap_or_else(|| Strain::drawn(seed));
        let plan = Plan {
            seed,
            hosts,
            faults,
            beyond: fixed.beyond,
            config,
            clients,
            requests: random.range(750, 1050),
            longest: 400 * SECOND,
            fault_every: random.range(1000, 6000) * MS,
            burst: random.range(1, 12),
            pause: random.range(500, 4000) * MS,
            leases: hosts == 2 && random.permille(300) && !fences,
            fences,
            parts_at_returns: fences && hosts > 2 && Random::new(seed ^ 0x12E7).permille(600),
            // That a request takes longer than it may is told since version 9.
            upgrades: Random::new(seed ^ 0x0B1D).permille(200) && !(strain.slow || strain.crowd),
            drains: spare && Random::new(seed ^ 0xD4A1).permille(400),
            disk_loss: hosts > 2 && durable && random.permille(300) && !adds,
            adds,
            strain,
            strain_is_fixed: fixed.strain.is_some(),
            pace: 0,
            overrun: false,
            readers: 1,
            random,
        };
        plan.strained()
    }

    /// Under strain the cluster is made for more, and without machines that fail what hangs together with that is left
    /// out.
    fn strained(mut self) -> Plan {
        let strain = self.strain;
        let mut random = Random::new(self.seed ^ 0xC20D_57EA);
        if strain.slow || strain.crowd {
            self.readers = 2 << random.index(4);
        }
        if strain.crowd {
            self.clients = random.index(250) + 40;
            self.config.in_flight_max = random.index(300) + 60;
            self.pace = random.skewed(MS, 15 * MS);
            self.overrun = Random::new(self.seed ^ 0x0BE7).permille(120);
        }
        if self.overrun {
            // All that come would wait for a minute.
            self.clients = 280;
            self.config.in_flight_max = 300;
            self.config.wait_max = Micros::from_ms(500);
            self.pace = 80 * MS;
        }
        if strain.slow && random.permille(500) {
            // As long as real ones: reads take more than one of them.
            self.config.read_timeout = Micros::from_ms(random.range(5000, 20_000));
            self.config.read_patience = Micros::from_ms(random.range(1000, 10_000));
        }
        if strain.sizes {
            self.config.batch_bytes_max = 16 << 10;
        }
        if strain.stalls {
            self.config.keys_max = random.index(100) + 100 + self.clients * 40;
            self.config.keys_of_owner_max = random.index(100) + 100;
        }
        if self.keys_are_forgotten() {
            self.config.keys_max = random.index(50) + 50 + self.clients * 10;
            self.config.keys_of_owner_max = usize::MAX;
        }
        if strain.calm {
            self.parts_at_returns = false;
            self.disk_loss = false;
            self.adds = false;
            self.drains = false;
        }
        self
    }

    /// Whether one client sends more keys than are remembered, none of which is refused. (Not where managers begin anew from
    /// their logs, or speak an old version: neither tells whose the keys are.)
    fn keys_are_forgotten(&self) -> bool {
        self.strain.stalls && self.strain.calm && !self.upgrades
    }

    /// Of a client that used fewer keys than this none is forgotten: another has more.
    pub(crate) fn keys_kept(&self) -> usize {
        match self.keys_are_forgotten() {
            true => self.config.keys_max / self.clients,
            false => 0,
        }
    }

    /// What a manager may hold in bytes of clients: 512 MiB where a request is at most 1 MiB, so as many times the
    /// largest request here.
    pub(crate) fn bytes_budget(&self) -> usize {
        512 * crate::service::request_bytes()
    }

    /// The command that runs this again.
    pub(crate) fn command(&self) -> String {
        let beyond = if self.beyond { " --beyond" } else { "" };
        let strain = match self.strain_is_fixed {
            true => format!(" --strain {}", self.strain),
            false => String::new(),
        };
        format!(
            "cargo run --release -p simulation -- --seed {} --hosts {} --faults {}{beyond}{strain} --trace",
            self.seed, self.hosts, self.faults
        )
    }

    pub(crate) fn config_of(
        &self,
        seat: SeatId,
        seats: &[SeatId],
        versions: VersionRange,
    ) -> Config {
        Config {
            me: seat,
            seats: seats.to_vec(),
            versions,
            ..self.config.clone()
        }
    }
}

pub(crate) fn seats(hosts: usize) -> Vec<SeatId> {
    (0..hosts)
        .map(|s| SeatId(u16::try_from(s).unwrap_or(u16::MAX)))
        .collect()
}
