//! The agent's D-Bus interface, as a client calls it.
#![allow(missing_docs)] // on what the macro adds; what is written here is documented

/// The agent's D-Bus interface.
#[zbus::proxy(
    interface = "org.spare.Agent1",
    default_service = "org.spare.Agent1",
    default_path = "/org/spare/Agent1",
    gen_blocking = false
)]
pub trait Agent {
    /// Creates a replica's VM from an image and starts it.
    fn create(&self, replica: &str, image: &str) -> zbus::Result<()>;
    /// Pauses a replica's VM.
    fn pause(&self, replica: &str) -> zbus::Result<()>;
    /// Unpauses a replica's VM.
    fn unpause(&self, replica: &str) -> zbus::Result<()>;
    /// A replica's VM is urgent no longer.
    fn calm(&self, replica: &str) -> zbus::Result<()>;
    /// Destroys a replica's VM with its files.
    fn destroy(&self, replica: &str) -> zbus::Result<()>;
    /// Keeps a replica's memory and disk, then destroys it; returns the folder.
    fn quarantine(&self, replica: &str) -> zbus::Result<String>;
    /// A connected socket to one virtio-serial port of a replica's VM.
    fn open_channel(&self, replica: &str, port: &str) -> zbus::Result<zbus::zvariant::OwnedFd>;
    /// Every replica of the service with its VM's state.
    fn list(&self) -> zbus::Result<Vec<(String, String)>>;
    /// A name that only images with the same content as this one have.
    fn image(&self, image: &str) -> zbus::Result<String>;
    /// CPU time in nanoseconds and memory in KiB.
    fn usage(&self, replica: &str) -> zbus::Result<(u64, u64)>;
    /// Sets the niceness of all threads of a replica's VM.
    fn prioritise(&self, replica: &str, nice: i32) -> zbus::Result<()>;
    /// Name and accelerator of the host.
    fn host(&self) -> zbus::Result<(String, String)>;
    /// A replica's VM changed its state.
    #[zbus(signal)]
    fn state_changed(&self, replica: &str, state: &str, reason: &str) -> zbus::Result<()>;
}
