//! Certificates for the connections between hosts and witness. `corosync-qnetd` and `corosync-qdevice` keep
//! theirs in databases of the NSS library, which only NSS's own tools write: this runs them.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Names by which `corosync-qnetd` and `corosync-qdevice` find them: the programs' own.
const AUTHORITY: &str = "QNet CA";
const SERVER: &str = "QNetd Cert";
const CLUSTER: &str = "Cluster Cert";
/// The subject of the server's certificate, which hosts insist on.
const SERVER_SUBJECT: &str = "CN=Qnetd Server";
/// A hundred years: a witness that all hosts refuse on one day would be none.
const VALID_MONTHS: &str = "1200";
/// `certutil -2` asks: an authority? how deep a chain? critical?
const IS_AUTHORITY: &str = "y\n0\ny\n";
/// Bytes of randomness a key is made from.
const NOISE_BYTES: usize = 64;

const PASSWORD_FILE: &str = "pwdfile.txt";

/// Why there are no certificates of the witness.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WitnessError {
    #[error(
        "{0}, which writes the certificates of the witness, is not installed: \
         apt-get install libnss3-tools (or run this on a host that has corosync-qdevice)"
    )]
    NoTool(&'static str),
    #[error("cannot run {program}")]
    Run {
        program: String,
        source: std::io::Error,
    },
    #[error("{program} failed ({status}): {words}")]
    Tool {
        program: String,
        status: ExitStatus,
        /// What it wrote on both of its outputs.
        words: String,
    },
    #[error("cannot make {}", .folder.display())]
    Folder {
        folder: PathBuf,
        source: std::io::Error,
    },
    /// A file of a database cannot be read or written.
    #[error(transparent)]
    File(#[from] std::io::Error),
}

type Result<T> = std::result::Result<T, WitnessError>;

/// Two databases: the witness's, and one that is the same for all hosts.
pub(crate) struct Databases {
    /// For the witness's `/etc/corosync/qnetd/nssdb`.
    pub(crate) witness: PathBuf,
    /// For every host's `/etc/corosync/qdevice/net/nssdb`.
    pub(crate) hosts: Vec<PathBuf>,
}

/// Whether the tools are there.
///
/// # Errors
/// When one is missing; it says what to do.
pub(crate) fn check_tools() -> Result<()> {
    for tool in ["certutil", "pk12util"] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|p| p.join(tool).is_file()));
        if !found {
            return Err(WitnessError::NoTool(tool));
        }
    }
    Ok(())
}

/// Makes an authority for this cluster and its witness alone, and both sides' certificates.
///
/// # Errors
/// When a tool fails, with what it wrote.
pub(crate) fn make(databases: &Databases, cluster: &str) -> Result<()> {
    let Some((first, others)) = databases.hosts.split_first() else {
        return Ok(());
    };
    let witness = Database::create(&databases.witness)?;
    witness.certify(AUTHORITY, &format!("CN={AUTHORITY}"), "CT,,", None, 1)?;
    witness.certify(SERVER, SERVER_SUBJECT, "u,u,u", Some(AUTHORITY), 2)?;
    let subject = format!("CN={cluster}");
    witness.certify(CLUSTER, &subject, "u,u,u", Some(AUTHORITY), 3)?;
    let host = Database::create(first)?;
    host.take_from(&witness)?;
    // The witness has no use for the hosts' key.
    witness.certutil(&["-F", "-n", CLUSTER], "")?;
    witness.finish()?;
    host.finish()?;
    for other in others {
        copy(first, other)?;
    }
    Ok(())
}

struct Database<'a> {
    folder: &'a Path,
}

impl Database<'_> {
    fn create(folder: &Path) -> Result<Database<'_>> {
        make_folder(folder)?;
        let database = Database { folder };
        // No password: the service must start by itself. The file's folder is the lock.
        write_private(&database.file(PASSWORD_FILE), b"\n")?;
        database.certutil(&["-N"], "")?;
        Ok(database)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes a key and its certificate, signed by `issuer` or by itself.
    fn certify(
        &self,
        name: &str,
        subject: &str,
        trust: &str,
        issuer: Option<&str>,
        serial: u8,
    ) -> Result<()> {
        let noise = self.file("noise");
        let mut random = [0; NOISE_BYTES];
        rand::fill(&mut random[..]);
        write_private(&noise, &random)?;
        let (serial, noise_text) = (serial.to_string(), noise.to_string_lossy());
        let mut arguments = vec!["-S", "-n", name, "-s", subject, "-t", trust, "-m", &serial];
        arguments.extend(["-v", VALID_MONTHS, "-z", &noise_text]);
        let answers = match issuer {
            Some(issuer) => {
                arguments.extend(["-c", issuer]);
                ""
            }
            None => {
                arguments.extend(["-x", "-2"]);
                IS_AUTHORITY
            }
        };
        let made = self.certutil(&arguments, answers);
        std::fs::remove_file(&noise)?;
        made
    }

    /// Takes over the authority's certificate, and the cluster's with its key.
    fn take_from(&self, witness: &Database<'_>) -> Result<()> {
        let authority = self.file("authority.crt");
        let bundle = self.file("cluster.p12");
        let (authority_text, bundle_text) = (authority.to_string_lossy(), bundle.to_string_lossy());
        witness.certutil(&["-L", "-n", AUTHORITY, "-a", "-o", &authority_text], "")?;
        let import = ["-A", "-t", "CT,c,c", "-n", AUTHORITY, "-i", &authority_text];
        self.certutil(&import, "")?;
        witness.pk12util(&["-o", &bundle_text, "-n", CLUSTER])?;
        self.pk12util(&["-i", &bundle_text])?;
        std::fs::remove_file(&authority)?;
        std::fs::remove_file(&bundle)?;
        Ok(())
    }

    fn certutil(&self, arguments: &[&str], answers: &str) -> Result<()> {
        let mut command = Command::new("certutil");
        command.args(arguments).arg("-d").arg(self.location());
        command.arg("-f").arg(self.file(PASSWORD_FILE));
        run(&mut command, answers)
    }

    fn pk12util(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("pk12util");
        command.args(arguments).arg("-d").arg(self.location());
        command.arg("-k").arg(self.file(PASSWORD_FILE));
        run(command.args(["-W", ""]), "")
    }

    fn location(&self) -> String {
        format!("sql:{}", self.folder.display())
    }

    /// It is on disk.
    fn finish(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.folder)? {
            std::fs::File::open(entry?.path())?.sync_all()?;
        }
        Ok(())
    }
}

fn make_folder(folder: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| WitnessError::Folder {
            folder: folder.to_owned(),
            source,
        })
}

/// A new file that only its owner can read, from the moment it exists.
fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = std::fs::File::options();
    let created = options.write(true).create_new(true).mode(0o600).open(path);
    created?.write_all(bytes)?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_folder(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        // `copy` takes the mode along: keys stay readable by their owner only.
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The command, so that what it writes only its owner can read, from the moment it exists.
fn private(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "umask 077; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    shell
}

fn run(command: &mut Command, answers: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let lost = |source| WitnessError::Run {
        program: program.clone(),
        source,
    };
    let mut child = private(command)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(lost)?;
    if let Some(mut input) = child.stdin.take() {
        // One that asks nothing may have ended already.
        let _ = input.write_all(answers.as_bytes());
    }
    let output = child.wait_with_output().map_err(lost)?;
    if !output.status.success() {
        let (error, text) = (
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout),
        );
        return Err(WitnessError::Tool {
            program,
            status: output.status,
            words: format!("{}{}", error.trim(), text.trim()),
        });
    }
    Ok(())
}
