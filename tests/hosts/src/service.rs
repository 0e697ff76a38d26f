//! SPARE on the lab's hosts: on each an agent and a replica manager, as systemd units, with what `spare init`
//! wrote for it.

use crate::wait::within;
use anyhow::{ensure, Context, Result};
use spare_client::admin::Admin;
use spare_lab::names::DATA_IN_HOST;
use spare_lab::{fence, Host, Lab, Power};
use spare_protocol::admin::{Mode, ReplicaState, ScrubReport, Status};
use spare_rig::Hypervisor;
use std::future::Future;
use std::time::{Duration, Instant};

/// The guests' image.
pub(crate) const IMAGE: &str = "auction-tiny-test";
/// Where hosts see the programs, as the units have it, and the images.
pub(crate) const PROGRAMS: &str = "/opt/spare/bin";
pub(crate) const IMAGES: &str = "/opt/spare/images";
/// Where hosts see the programs of an earlier build, if there are any.
pub(crate) const PREVIOUS: &str = "/opt/spare/previous";
/// A manager's store.
pub(crate) const STORE: &str = "/var/lib/spare/manager/store";
/// Where clients connect.
const GATEWAY_PORT: u16 = 8080;
/// For all replicas of all hosts to be built on two busy processors: processes, and guests without KVM.
const BUILD_LIMIT: [Duration; 2] = [Duration::from_secs(180), Duration::from_secs(600)];
/// The second host waits so long before it turns the first one off, should both be alive.
const FENCE_DELAY_MS: u32 = 600;
/// For an answer of a manager that is there.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// For what an operator asks for that all managers, or all replicas, take part in.
const WORK_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// The service on all hosts of a lab.
pub(crate) struct Service<'a> {
    pub(crate) lab: &'a Lab,
    hypervisor: Hypervisor,
    runtime: tokio::runtime::Runtime,
}

const AGENT_UNIT: &str = include_str!("../../../packaging/systemd/spare-agent.service");
const MANAGER_UNIT: &str = include_str!("../../../packaging/systemd/spare-manager.service");

impl<'a> Service<'a> {
    /// Installs and starts it on every host where it is not yet.
    pub(crate) fn on(lab: &'a Lab, hypervisor: Hypervisor) -> Result<Service<'a>> {
        let service = Service {
            lab,
            hypervisor,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        };
        for name in lab.voters() {
            let host = lab.host(&name)?;
            if !service.is_installed(&host)? {
                service.install(&host)?;
            }
        }
        Ok(service)
    }

    fn is_installed(&self, host: &Host) -> Result<bool> {
        let done = host.run(["systemctl", "is-enabled", "spare-manager"])?;
        Ok(done.status.success())
    }

    fn install(&self, host: &Host) -> Result<()> {
        let group = host.output(["cat", "/etc/spare/group.toml"])?;
        host.write(
            "/etc/spare/spare.toml",
            &self.manager_configuration(host.name(), &group),
        )?;
        host.write("/etc/spare/agent.toml", &self.agent_configuration())?;
        host.write("/etc/systemd/system/spare-agent.service", AGENT_UNIT)?;
        host.write("/etc/systemd/system/spare-manager.service", MANAGER_UNIT)?;
        let folder = format!("{DATA_IN_HOST}/manager");
        host.output(["install", "-d", "-o", "spare", "-g", "spare", &folder])?;
        host.output(["systemctl", "daemon-reload"])?;
        let units = ["spare-agent", "spare-manager"];
        host.output([&["systemctl", "-q", "enable", "--now"], &units[..]].concat())?;
        Ok(())
    }

    /// Without a witness lost hosts are fenced, by different hosts after different times.
    fn fencing(&self, host: &str) -> String {
        if self.lab.has_witness() || self.lab.voters().count() > 2 {
            return String::new();
        }
        let hosts = self.lab.voters();
        let plugs: Vec<String> = hosts
            .map(|h| format!("{h} = {{ plug = \"{h}\" }}"))
            .collect();
        format!(
            "[fencing]\nagent = \"/usr/sbin/{}\"\ndelay_ms = {}\nhosts = {{ {} }}\n\n",
            fence::AGENT,
            if host == "h1" { 0 } else { FENCE_DELAY_MS },
            plugs.join(", ")
        )
    }

    fn manager_configuration(&self, host: &str, group: &str) -> String {
        let fencing = self.fencing(host);
        format!(
            "[service]\nname = \"auction\"\nimage = \"{IMAGE}\"\n\n{group}\n{fencing}\
             [gateway]\nlisten = \"0.0.0.0:{GATEWAY_PORT}\"\n\n\
             [replication]\nupdates_max = 40\ncheckpoint_writes = 40\n\n\
             [agent]\nsocket = \"{DATA_IN_HOST}/agent.sock\"\n\n\
             [admin]\nsocket = \"{DATA_IN_HOST}/manager/admin.sock\"\n\n\
             [store]\ndirectory = \"{STORE}\"\nsnapshot_requests = 2000\n"
        )
    }

    fn agent_configuration(&self) -> String {
        let hypervisor = match self.hypervisor {
            Hypervisor::Libvirt => "accelerator = \"tcg\"",
            Hypervisor::Process => "hypervisor = \"process\"",
        };
        format!(
            "socket = \"{DATA_IN_HOST}/agent.sock\"\ndoor = true\nservice = \"auction\"\nmanager_user = \"spare\"\n\
             images = \"{IMAGES}\"\nstate_dir = \"{DATA_IN_HOST}/agent\"\n{hypervisor}\n"
        )
    }

    /// Where clients connect to a host.
    pub(crate) fn gateway(&self, host: &str) -> Result<String> {
        let address = self.lab.host(host)?.address()?;
        Ok(format!("http://{address}:{GATEWAY_PORT}"))
    }

    /// All hosts' gateways.
    pub(crate) fn gateways(&self) -> Result<Vec<String>> {
        self.lab.voters().map(|name| self.gateway(&name)).collect()
    }

    fn admin(&self, host: &str) -> Result<Admin> {
        let data = self.lab.host(host)?.data();
        Ok(Admin::new(&data.join("manager/admin.sock")))
    }

    /// What a manager is asked, if it answers in time.
    fn answer<T, E: std::error::Error + Send + Sync + 'static>(
        &self,
        limit: Duration,
        question: impl Future<Output = Result<T, E>>,
    ) -> Result<T> {
        let asked = async { tokio::time::timeout(limit, question).await };
        let answer = self.runtime.block_on(asked);
        Ok(answer.with_context(|| format!("no answer within {limit:?}"))??)
    }

    /// What a host's manager says.
    pub(crate) fn status(&self, host: &str) -> Result<Status> {
        ensure!(
            self.lab.host(host)?.power() == Power::On,
            "{host} is not on"
        );
        let admin = self.admin(host)?;
        self.answer(ANSWER_LIMIT, admin.status())
    }

    /// What everybody says, for messages.
    pub(crate) fn described(&self) -> String {
        let one = |name: String| match self.status(&name) {
            Ok(status) => format!("{name}:\n{}", spare_client::render::status(&status)),
            Err(error) => format!("{name}: {error:#}\n"),
        };
        self.lab.voters().map(one).collect()
    }

    /// Whether a host's manager serves with all hosts, and all replicas are there.
    pub(crate) fn is_complete(&self, host: &str) -> Result<bool> {
        let status = self.status(host)?;
        let hosts = self.lab.voters().count();
        // Hosts to spare have none.
        let staffed = hosts.min(usize::from(status.faults) + 1);
        let members = status.hosts.iter().filter(|h| h.member && h.connected);
        let seats = status.seats.iter().filter(|seat| {
            let count = |state| seat.replicas.iter().filter(|r| r.state == state).count();
            let both = (count(ReplicaState::Active), count(ReplicaState::Passive));
            seat.replicas.len() == 2 && both == (1, 1)
        });
        Ok(status.mode == Mode::Serving && members.count() == hosts && seats.count() == staffed)
    }

    /// Waits until every host says that everything is there.
    pub(crate) fn wait_until_complete(&self, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        for name in self.lab.voters() {
            let left = limit.saturating_sub(begun.elapsed());
            let what = format!("{name} says that all hosts and replicas are there");
            within(left, &what, || {
                std::thread::sleep(POLL);
                self.is_complete(&name)
            })
            .with_context(|| self.described())?;
        }
        Ok(begun.elapsed())
    }

    /// As [`Service::wait_until_complete`], for replicas that are all to be built.
    pub(crate) fn wait_until_built(&self) -> Result<Duration> {
        let [processes, guests] = BUILD_LIMIT;
        self.wait_until_complete(match self.hypervisor {
            Hypervisor::Process => processes,
            Hypervisor::Libvirt => guests,
        })
    }

    /// What an attacker does who is root in a replica. The door is entered on the replica's host: the agent knows
    /// who connects only there.
    pub(crate) fn attack(&self, host: &str, replica: &str, command: &str) -> Result<()> {
        let (door, socket) = (
            format!("{PROGRAMS}/spare-door"),
            format!("{DATA_IN_HOST}/agent.sock"),
        );
        let host = self.lab.host(host)?;
        host.output([&door, "--agent", &socket, replica, command])?;
        Ok(())
    }

    /// Every replica reads its whole state; all are equal.
    pub(crate) fn scrub(&self, host: &str) -> Result<ScrubReport> {
        let admin = self.admin(host)?;
        let report = self.answer(WORK_LIMIT, admin.scrub())?;
        ensure!(report.equal, "{report:?}");
        Ok(report)
    }

    /// An operator says that a host is off.
    pub(crate) fn confirm_fence(&self, host: &str, off: &str) -> Result<()> {
        let admin = self.admin(host)?;
        self.answer(WORK_LIMIT, admin.confirm_fence(off))
    }

    /// An operator says that a host's disk is gone for good.
    pub(crate) fn accept_loss(&self, host: &str, lost: &str) -> Result<()> {
        let admin = self.admin(host)?;
        self.answer(WORK_LIMIT, admin.accept_loss(lost))
    }

    /// The texts of what a host's manager noticed.
    pub(crate) fn events(&self, host: &str) -> Result<Vec<String>> {
        let admin = self.admin(host)?;
        let events = self.answer(ANSWER_LIMIT, admin.events(0, 0))?;
        Ok(events.into_iter().map(|e| e.text).collect())
    }
}
