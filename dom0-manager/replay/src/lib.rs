//! The oracle (`spare replay`): executes an ordered log on one fresh, trusted replica and compares.
//!
//! The clients of a test notice a wrong page only where they knew what to expect. The replay knows
//! everything: it executes every decided request, with its agreed time and seed, in order, on a
//! replica that no attacker ever touched, and compares byte for byte what clients received, and the
//! hash of every update.

mod compare;
#[cfg(feature = "fuzzing")]
pub mod decoders;
mod error;
mod replica;

pub use error::{ReplayError, RUNNER_VARIABLE};

use compare::{logged_request, page_difference, update_difference};
use replica::{Channel, Executed, Replica};
use serde::{Deserialize, Serialize};
use spare_client::pages::{Pages, PagesError};
use spare_protocol::channel::{Execute, Outcome, RootRequest};
use spare_protocol::{Class, Position};
use spare_store::{LogReader, LogRecord};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};

/// Where an installed script is.
const RUNNER_INSTALLED: &str = "/usr/lib/spare/run-process-replica";
/// Where a checkout has it.
const RUNNER_IN_CHECKOUT: &str = "vm-images/run-process-replica";
/// How many differences are described in full.
const EXAMPLES_MAX: usize = 10;
/// How often the progress is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// What is replayed: the options of `spare replay`.
#[derive(Clone, Debug, clap::Args)]
pub struct ReplayOptions {
    /// The manager's ordered log
    #[arg(long, value_name = "FILE")]
    pub log: PathBuf,
    /// The pages that clients received, as written by spare bench --record; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    pub pages: Vec<PathBuf>,
    /// The folder of the image that the service's replicas were built from
    #[arg(long, value_name = "DIR")]
    pub image: PathBuf,
    /// The script that starts a replica as a process, called with the image's folder and a Unix
    /// socket [default: $SPARE_PROCESS_REPLICA, or run-process-replica beside this program, in
    /// vm-images/ of a folder above it or of the working folder, or in /usr/lib/spare]
    #[arg(long, value_name = "PATH")]
    pub runner: Option<PathBuf>,
    /// Stop after so many requests
    #[arg(long, value_name = "NUMBER")]
    pub limit: Option<u64>,
    /// Show no progress on standard error
    #[arg(long)]
    pub quiet: bool,
}

/// The outcome of `spare replay`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplayReport {
    /// Requests that the replica executed.
    pub replayed: u64,
    /// How long that took, with the start of the replica.
    pub seconds: f64,
    /// Pages in all records.
    pub pages: u64,
    /// Pages compared byte for byte.
    pub pages_compared: u64,
    /// Recorded pages that are replies of the gateway itself, not of the service.
    pub pages_without_position: u64,
    /// Updates whose hash was compared.
    pub updates_compared: u64,
    /// Pages and updates that differ.
    pub differences: u64,
    /// The first few differences, each in words.
    pub examples: Vec<String>,
}

impl ReplayReport {
    fn differs(&mut self, record: &LogRecord, what: &str) {
        let request = logged_request(record);
        self.differs_at(record.position, &format!("{request}: {what}"));
    }

    fn differs_at(&mut self, position: Position, what: &str) {
        self.differences += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("request {position}: {what}"));
        }
    }

    /// The report for a person.
    #[must_use]
    pub fn render(&self) -> String {
        let verdict = match self.differences {
            0 => "no difference".to_owned(),
            n => format!("{n} DIFFERENCES"),
        };
        let mut out = format!(
            "{verdict}: {} requests replayed in {:.1} s, {} of {} pages and {} updates compared\n",
            self.replayed, self.seconds, self.pages_compared, self.pages, self.updates_compared
        );
        if self.pages_without_position > 0 {
            out.push_str(&format!(
                "{} pages are the gateway's own and were not compared\n",
                self.pages_without_position
            ));
        }
        for example in &self.examples {
            out.push_str(&format!("  {example}\n"));
        }
        out
    }
}

/// Executes a log on a fresh replica and compares what comes of each request with what the log says.
///
/// # Errors
/// When a file is unusable or the replica does not start or fails. Differences are no errors: they are
/// in the report.
pub async fn run(options: ReplayOptions) -> Result<ReplayReport, ReplayError> {
    let started = Instant::now();
    let log = LogReader::open(&options.log)?;
    let files = options.pages.iter().map(|path| Pages::open(path));
    let mut pages: Vec<Pages> = files.collect::<Result<_, _>>()?;
    if !options.image.join("image.toml").is_file() {
        return Err(ReplayError::NoImage(options.image));
    }
    let runner = options
        .runner
        .clone()
        .or_else(find_runner)
        .ok_or(ReplayError::NoRunner)?;
    let mut replica = Replica::start(&runner, &options.image).await?;
    let outcome = replay(&options, log, &mut pages, &mut replica.channel).await;
    let outcome = outcome.map_err(|e| match e {
        ReplayError::Replica(what) => ReplayError::Replica(what + &replica.last_words()),
        other => other,
    });
    replica.end().await;
    let mut report = outcome?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

fn find_runner() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(RUNNER_VARIABLE) {
        return Some(path.into());
    }
    let program = std::env::current_exe().ok()?;
    let beside = program
        .parent()
        .map(|folder| folder.join("run-process-replica"));
    let working = std::env::current_dir().ok();
    let above = program
        .ancestors()
        .chain(working.iter().map(PathBuf::as_path));
    beside
        .into_iter()
        .chain(above.map(|folder| folder.join(RUNNER_IN_CHECKOUT)))
        .chain([PathBuf::from(RUNNER_INSTALLED)])
        .find(|path| path.is_file())
}

async fn replay<S: AsyncRead + AsyncWrite + Unpin>(
    options: &ReplayOptions,
    log: LogReader,
    pages: &mut [Pages],
    replica: &mut Channel<S>,
) -> Result<ReplayReport, ReplayError> {
    let position = replica.hello().await?;
    if position != Position::default() {
        return Err(ReplayError::NotFresh(position));
    }
    let mut report = ReplayReport {
        pages: pages.iter().map(Pages::total).sum(),
        pages_without_position: pages.iter().map(|p| p.total() - p.ordered()).sum(),
        ..ReplayReport::default()
    };
    let limit = usize::try_from(options.limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let mut last = Position::default();
    let mut shown = Instant::now();
    for record in log.take(limit) {
        let record = record?;
        if record.position != last.next() {
            let (expected, found) = (last.next(), record.position);
            return Err(ReplayError::Gap { expected, found });
        }
        last = record.position;
        let executed = replica.execute(to_execute(&record)).await?;
        compare(&record, &executed, pages, &mut report)?;
        if !options.quiet && shown.elapsed() >= PROGRESS_INTERVAL {
            shown = Instant::now();
            eprintln!(
                "{} requests replayed, {} differences",
                report.replayed, report.differences
            );
        }
    }
    if options.limit.is_none_or(|limit| report.replayed < limit) {
        for position in pages.iter().flat_map(|p| p.positions_above(last)) {
            report.differs_at(
                position,
                "a client has its page, but the log ends before it",
            );
        }
    }
    Ok(report)
}

fn to_execute(record: &LogRecord) -> Execute {
    Execute {
        position: record.position,
        class: record.class,
        time_us: record.time_us,
        seed: record.seed,
        root: RootRequest::No,
        request: record.request.clone(),
    }
}

fn compare(
    record: &LogRecord,
    executed: &Executed,
    pages: &mut [Pages],
    report: &mut ReplayReport,
) -> Result<(), PagesError> {
    report.replayed += 1;
    // A read that tries to write is ordered again: it changed nothing and nobody received its page.
    let ordered_again = record.class == Class::Read && executed.outcome == Outcome::WriteInRead;
    if !ordered_again {
        report.updates_compared += 1;
        if let Some(what) = update_difference(record, executed) {
            report.differs(record, &what);
        }
    }
    for file in pages {
        for page in file.at(record.position)? {
            report.pages_compared += 1;
            if let Some(what) = page_difference(record, &page, executed) {
                report.differs(record, &what);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use spare_client::pages::{PagesWriter, RecordedPage};
    use spare_protocol::channel::{
        Decoded, Frame, FrameDecoder, FromGuest, ToGuest, CHANNEL_VERSION,
    };
    use spare_protocol::http::{HttpReply, HttpRequest};
    use spare_protocol::Hash;
    use spare_store::LogWriter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    const UPDATE: &[u8] = b"one more bid";

    fn page_of(request: &HttpRequest, time_us: i64) -> Vec<u8> {
        format!("<html>{} at {time_us}</html>", request.target).into_bytes()
    }

    fn answer(message: ToGuest) -> FromGuest {
        match message {
            ToGuest::Execute(execute) => {
                let request = spare_protocol::decode(&execute.request).expect("HTTP");
                let reply = HttpReply {
                    status: 200,
                    headers: vec![("content-type".into(), b"text/html".to_vec())],
                    body: page_of(&request, execute.time_us),
                };
                let writes = execute.class == Class::Write;
                FromGuest::Executed {
                    position: execute.position,
                    outcome: Outcome::Reply(spare_protocol::encode(&reply).into()),
                    update: Bytes::from_static(if writes { UPDATE } else { b"" }),
                    root: None,
                }
            }
            _ => FromGuest::Hello {
                version: CHANNEL_VERSION,
                position: Position(0),
            },
        }
    }

    /// A replica whose pages say what was asked for at which agreed time.
    async fn serve(mut stream: DuplexStream) {
        let mut decoder = FrameDecoder::new();
        let mut buffer = vec![0; 1 << 16];
        let mut sequence = 0;
        loop {
            while let Some(found) = decoder.next() {
                let Decoded::Frame(frame) = found else {
                    continue;
                };
                sequence += 1;
                let message = spare_protocol::decode(&frame.payload).expect("a message");
                let answer = Frame {
                    session: frame.session,
                    sequence,
                    payload: spare_protocol::encode(&answer(message)).into(),
                };
                stream.write_all(&answer.to_bytes()).await.expect("write");
            }
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => decoder.push(&buffer[..read]),
            }
        }
    }

    fn request(position: u64) -> HttpRequest {
        HttpRequest {
            method: "GET".into(),
            target: format!("/item?id={position}"),
            headers: vec![],
            body: vec![],
        }
    }

    fn record(position: u64) -> LogRecord {
        let write = position == 2;
        LogRecord {
            position: Position(position),
            class: if write { Class::Write } else { Class::Read },
            time_us: 1000 + position as i64,
            seed: [0; 32],
            request: spare_protocol::encode(&request(position)).into(),
            reply_hash: Hash::default(),
            update_hash: Hash::of(if write { UPDATE } else { b"" }),
        }
    }

    fn page(position: u64) -> RecordedPage {
        let request = request(position);
        RecordedPage {
            position: Some(Position(position)),
            request: format!("GET {}", request.target),
            status: 200,
            content_type: b"text/html".to_vec(),
            body: page_of(&request, 1000 + position as i64),
        }
    }

    /// Replays these records, compared with these pages.
    async fn replayed(
        name: &str,
        records: &[LogRecord],
        received: &[RecordedPage],
    ) -> Result<ReplayReport, ReplayError> {
        let folder =
            std::env::temp_dir().join(format!("spare-replayed-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let options = ReplayOptions {
            log: folder.join("log"),
            pages: vec![folder.join("pages")],
            image: folder.clone(),
            runner: None,
            limit: None,
            quiet: true,
        };
        let _ = std::fs::remove_file(&options.log);
        let mut log = LogWriter::create(&options.log).expect("log");
        records.iter().for_each(|r| log.append(r).expect("append"));
        log.flush().expect("flush");
        let mut writer = PagesWriter::create(&options.pages[0]).expect("pages");
        received
            .iter()
            .for_each(|p| writer.append(p).expect("append"));
        writer.finish().expect("finish");
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve(theirs));
        let log = LogReader::open(&options.log).expect("log");
        let mut pages = [Pages::open(&options.pages[0]).expect("pages")];
        let report = replay(&options, log, &mut pages, &mut Channel::new(ours)).await;
        std::fs::remove_dir_all(folder).expect("clean up");
        report
    }

    #[tokio::test]
    async fn pages_and_updates_that_agree_are_counted() {
        let records = [record(1), record(2), record(3)];
        let own = RecordedPage {
            position: None,
            ..page(9)
        };
        let report = replayed("agree", &records, &[page(3), own, page(2)])
            .await
            .expect("done");
        assert_eq!((report.replayed, report.differences), (3, 0), "{report:?}");
        assert_eq!((report.pages_compared, report.updates_compared), (2, 3));
        assert_eq!(report.pages_without_position, 1);
    }

    #[tokio::test]
    async fn a_wrong_page_a_wrong_update_and_a_page_beyond_the_log_are_differences() {
        let mut wrong_update = record(2);
        wrong_update.update_hash = Hash::of(b"another");
        let mut wrong_page = page(1);
        wrong_page.body.push(b' ');
        let report = replayed("differ", &[record(1), wrong_update], &[wrong_page, page(3)])
            .await
            .expect("done");
        assert_eq!(report.differences, 3, "{report:?}");
        let text = report.render();
        for expected in ["request 1: GET /item?id=1", "agreed update", "request 3"] {
            assert!(text.contains(expected), "{expected} is missing in {text}");
        }
    }

    #[tokio::test]
    async fn a_log_that_lacks_a_request_is_refused() {
        let error = replayed("gap", &[record(1), record(3)], &[])
            .await
            .expect_err("a gap");
        assert!(matches!(error, ReplayError::Gap { .. }), "{error}");
    }
}
