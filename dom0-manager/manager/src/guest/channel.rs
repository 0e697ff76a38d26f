//! Two tasks for each guest's channel, one for each direction (`docs/contributors/channel.md`), over any stream of bytes.

use super::merge::merged;
use super::session::{Expected, Said, Session};
use crate::agent_link::{AgentError, AgentLink};
use crate::normalise::Normaliser;
use bytes::Bytes;
use spare_core::Input;
use spare_protocol::channel::{Frame, ToGuest, CHANNEL_VERSION};
use spare_protocol::messages::LossReason;
use spare_protocol::{Position, ReplicaId};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Messages that may wait for a guest that does not read, batches of updates not merged yet among them. Twice the
/// gateway's default limit of requests in flight: a guest this far behind is of no use.
const QUEUE_MESSAGES_MAX: usize = 2048;
const READ_BYTES: usize = 64 << 10;

/// From unpausing a guest until it has surely noticed that the last manager hung up.
const NOTICE_DELAY: Duration = Duration::from_millis(150);
/// For a guest's `Hello`: it finishes what it was asked to execute before. Several, as the guest may take
/// the beginning of a session for the rest of a frame; each time the channel is opened anew.
const HELLO_LIMITS_S: [u64; 4] = [3, 5, 10, 20];

/// The manager's end of one guest's channel. Dropping it ends the channel.
#[derive(Debug)]
pub(crate) struct GuestChannel {
    queue: mpsc::Sender<ToGuest>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for GuestChannel {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The guest has not read for too long.
#[derive(Debug)]
pub(crate) struct Stalled;

impl GuestChannel {
    /// Opens a session with the guest behind `stream`; what it says arrives as inputs of its seat.
    pub(crate) fn open(
        replica: ReplicaId,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        normaliser: Arc<Normaliser>,
        inputs: mpsc::Sender<Input>,
    ) -> GuestChannel {
        GuestChannel::start(replica, stream, normaliser, inputs, None)
    }

    /// Opens a session with a guest that ran before this manager. Its seat hears nothing of it until the
    /// guest's position arrives.
    pub(crate) fn open_again(
        replica: ReplicaId,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        normaliser: Arc<Normaliser>,
        inputs: mpsc::Sender<Input>,
    ) -> (GuestChannel, oneshot::Receiver<Position>) {
        let (sender, position) = oneshot::channel();
        let channel = GuestChannel::start(replica, stream, normaliser, inputs, Some(sender));
        (channel, position)
    }

    fn start(
        replica: ReplicaId,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        normaliser: Arc<Normaliser>,
        inputs: mpsc::Sender<Input>,
        position: Option<oneshot::Sender<Position>>,
    ) -> GuestChannel {
        let number = rand::random::<u32>().max(1);
        let (read, write) = tokio::io::split(stream);
        let (queue, waiting) = mpsc::channel(QUEUE_MESSAGES_MAX);
        let silent = Arc::new(AtomicBool::new(position.is_some()));
        let expected = match position {
            Some(_) => Expected::Attached,
            None => Expected::New,
        };
        let reader = Reader {
            replica,
            session: Session::new(replica, number, expected, normaliser),
            inputs: inputs.clone(),
            position,
            silent: Arc::clone(&silent),
        };
        let writer = Writer {
            replica,
            session: number,
            inputs,
            silent,
        };
        let tasks = vec![
            tokio::spawn(reader.run(read)),
            tokio::spawn(writer.run(write, waiting)),
        ];
        GuestChannel { queue, tasks }
    }

    /// Sends without waiting.
    pub(crate) fn send(&self, message: ToGuest) -> Result<(), Stalled> {
        self.queue.try_send(message).map_err(|_| Stalled)
    }

    /// For messages that may wait until the guest has read others.
    pub(crate) fn queue(&self) -> mpsc::Sender<ToGuest> {
        self.queue.clone()
    }
}

/// A guest that ran before this manager cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("it does not answer on its channel")]
    Silent,
}

/// Attaches to a guest that ran before this manager: its channel, and the position of its state once it
/// has done everything that it was asked to.
pub(crate) async fn attach(
    agent: &AgentLink,
    replica: ReplicaId,
    normaliser: &Arc<Normaliser>,
    inputs: &mpsc::Sender<Input>,
) -> Result<(GuestChannel, Position), AttachError> {
    let name = replica.to_string();
    // A guest that is paused notices nothing, and says nothing.
    let woken = agent.call(|agent| {
        let name = name.clone();
        async move { agent.unpause(&name).await }
    });
    woken.await?;
    tokio::time::sleep(NOTICE_DELAY).await;
    for limit in HELLO_LIMITS_S.map(Duration::from_secs) {
        let stream = agent.open_channel(replica).await?;
        let (channel, position) =
            GuestChannel::open_again(replica, stream, Arc::clone(normaliser), inputs.clone());
        if let Ok(Ok(position)) = tokio::time::timeout(limit, position).await {
            return Ok((channel, position));
        }
        drop(channel);
        tokio::time::sleep(NOTICE_DELAY).await;
    }
    Err(AttachError::Silent)
}

struct Writer {
    replica: ReplicaId,
    session: u32,
    inputs: mpsc::Sender<Input>,
    /// The seat does not know of this channel yet.
    silent: Arc<AtomicBool>,
}

impl Writer {
    async fn run(self, mut stream: impl AsyncWrite + Unpin, mut waiting: mpsc::Receiver<ToGuest>) {
        let hello = ToGuest::Hello {
            version: CHANNEL_VERSION,
        };
        let mut message = Some(hello);
        let mut sequence = 0;
        while let Some(next) = message {
            sequence += 1;
            let next = prepared(next).await;
            let frame = Frame {
                session: self.session,
                sequence,
                payload: Bytes::from(spare_protocol::encode(&next)),
            };
            if let Err(error) = stream.write_all(&frame.to_bytes()).await {
                let replica = self.replica;
                let reason = LossReason::VmStopped(format!("its channel was closed: {error}"));
                if !self.silent.load(Ordering::Relaxed) {
                    let _ = self.inputs.send(Input::Failed { replica, reason }).await;
                }
                return;
            }
            message = waiting.recv().await;
        }
    }
}

/// The message as it is sent. Updates are merged on a thread for such work: it decodes and encodes all of them, and
/// neither the core nor another guest is to wait for it.
async fn prepared(message: ToGuest) -> ToGuest {
    match message {
        ToGuest::Apply {
            updates,
            upto,
            root,
        } if updates.len() > 1 => {
            let unmerged = updates.clone();
            let merging = tokio::task::spawn_blocking(move || merged(updates, upto));
            let updates = merging.await.unwrap_or_else(|error| {
                tracing::error!(
                    "updates up to {upto} could not be merged, and go one by one: {error}"
                );
                unmerged
            });
            ToGuest::Apply {
                updates,
                upto,
                root,
            }
        }
        other => other,
    }
}

struct Reader {
    replica: ReplicaId,
    session: Session,
    inputs: mpsc::Sender<Input>,
    /// Gets the position in the `Hello` of a guest that ran before.
    position: Option<oneshot::Sender<Position>>,
    /// The seat does not know of this channel yet.
    silent: Arc<AtomicBool>,
}

impl Reader {
    async fn run(mut self, mut stream: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let end = match stream.read(&mut buffer).await {
                Ok(0) => "its channel was closed".to_owned(),
                Ok(length) => {
                    self.session.push(&buffer[..length]);
                    match self.drain().await {
                        Ok(()) => continue,
                        Err(()) => return,
                    }
                }
                Err(error) => format!("its channel failed: {error}"),
            };
            let reason = LossReason::VmStopped(end);
            let replica = self.replica;
            self.tell(Input::Failed { replica, reason }).await;
            return;
        }
    }

    /// Handles every whole frame that arrived; an error ends the channel.
    async fn drain(&mut self) -> Result<(), ()> {
        loop {
            let input = match self.session.next() {
                Ok(None) => return Ok(()),
                Ok(Some(Said::Attached(position))) => {
                    self.attached(position);
                    continue;
                }
                Ok(Some(Said::Unfit(input))) => {
                    drop(self.position.take());
                    input
                }
                Ok(Some(Said::Input(input))) => input,
                Err(violation) => {
                    let (replica, reason) = (self.replica, violation.to_string());
                    self.tell(Input::Violated { replica, reason }).await;
                    return Err(());
                }
            };
            self.inputs.send(input).await.map_err(|_| ())?;
        }
    }

    fn attached(&mut self, position: Position) {
        self.silent.store(false, Ordering::Relaxed);
        if let Some(waiting) = self.position.take() {
            // Whoever waited for it may have given up.
            let _ = waiting.send(position);
        }
    }

    /// Tells the seat, if it knows of this channel.
    async fn tell(&self, input: Input) {
        if !self.silent.load(Ordering::Relaxed) {
            let _ = self.inputs.send(input).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::STALE_BYTES_MAX;
    use super::*;
    use crate::config::Normalise;
    use spare_protocol::channel::{Decoded, FrameDecoder, FromGuest, Outcome, RootRequest};
    use spare_protocol::update::Update;
    use tokio::io::DuplexStream;

    struct Guest {
        stream: DuplexStream,
        decoder: FrameDecoder,
        inputs: mpsc::Receiver<Input>,
        session: u32,
        channel: GuestChannel,
    }

    const REPLICA: ReplicaId = ReplicaId {
        seat: spare_protocol::SeatId(0),
        generation: 1,
    };

    async fn connected() -> Guest {
        let (ours, mut stream) = tokio::io::duplex(4096);
        let (inputs, received) = mpsc::channel(64);
        let normaliser = Arc::new(Normaliser::new(&Normalise::default()).expect("valid"));
        let channel = GuestChannel::open(REPLICA, ours, normaliser, inputs);
        let mut decoder = FrameDecoder::new();
        let hello = next_frame(&mut stream, &mut decoder).await;
        Guest {
            stream,
            decoder,
            inputs: received,
            session: hello.session,
            channel,
        }
    }

    async fn next_frame(stream: &mut DuplexStream, decoder: &mut FrameDecoder) -> Frame {
        let mut buffer = [0; 1024];
        loop {
            if let Some(Decoded::Frame(frame)) = decoder.next() {
                return frame;
            }
            let length = stream.read(&mut buffer).await.expect("read");
            decoder.push(&buffer[..length]);
        }
    }

    impl Guest {
        async fn say(&mut self, sequence: u64, message: &FromGuest) {
            let frame = Frame {
                session: self.session,
                sequence,
                payload: Bytes::from(spare_protocol::encode(message)),
            };
            self.stream
                .write_all(&frame.to_bytes())
                .await
                .expect("write");
        }

        async fn hello(&mut self) {
            let hello = FromGuest::Hello {
                version: CHANNEL_VERSION,
                position: Position(0),
            };
            self.say(1, &hello).await;
            assert!(matches!(
                self.inputs.recv().await,
                Some(Input::Booted(REPLICA))
            ));
        }
    }

    #[tokio::test]
    async fn stale_bytes_before_hello_are_skipped_and_garbage_after_it_is_a_violation() {
        let mut guest = connected().await;
        guest
            .stream
            .write_all(b"rest of an old frame")
            .await
            .expect("write");
        guest.hello().await;
        guest.stream.write_all(b"garbage").await.expect("write");
        assert!(matches!(
            guest.inputs.recv().await,
            Some(Input::Violated { .. })
        ));
    }

    #[tokio::test]
    async fn a_giant_length_a_gap_in_the_numbers_and_no_http_are_violations() {
        let mut guest = connected().await;
        guest.hello().await;
        let mut giant = b"SPAR".to_vec();
        giant.extend_from_slice(&u32::MAX.to_le_bytes());
        giant.extend_from_slice(&[0; 64]);
        guest.stream.write_all(&giant).await.expect("write");
        assert!(matches!(
            guest.inputs.recv().await,
            Some(Input::Violated { .. })
        ));

        let mut guest = connected().await;
        guest.hello().await;
        let applied = FromGuest::Applied {
            position: Position(1),
            root: None,
        };
        guest.say(3, &applied).await;
        assert!(matches!(
            guest.inputs.recv().await,
            Some(Input::Violated { .. })
        ));

        let mut guest = connected().await;
        guest.hello().await;
        let executed = FromGuest::Executed {
            position: Position(1),
            outcome: Outcome::Reply(Bytes::from_static(b"\xff\xff\xff")),
            update: Bytes::new(),
            root: None,
        };
        guest.say(2, &executed).await;
        assert!(matches!(
            guest.inputs.recv().await,
            Some(Input::Violated { .. })
        ));
    }

    #[tokio::test]
    async fn endless_stale_bytes_are_a_violation() {
        let mut guest = connected().await;
        let junk = vec![b'x'; 2 * STALE_BYTES_MAX];
        let (mut stream, mut inputs) = (guest.stream, guest.inputs);
        let writer = tokio::spawn(async move {
            let _ = stream.write_all(&junk).await;
            stream
        });
        assert!(matches!(inputs.recv().await, Some(Input::Violated { .. })));
        writer.abort();
        guest.session = 0;
    }

    #[tokio::test]
    async fn updates_arrive_as_one_and_before_what_was_sent_after_them() {
        let mut guest = connected().await;
        let nothing = Bytes::from(Update::default().to_bytes());
        let apply = |updates: Vec<u64>, upto| ToGuest::Apply {
            updates: (updates.into_iter())
                .map(|position| (Position(position), nothing.clone()))
                .collect(),
            upto: Position(upto),
            root: RootRequest::No,
        };
        let sent = [apply(vec![1, 2, 3], 3), apply(vec![4], 4)];
        for message in sent {
            guest.channel.send(message).expect("it reads");
        }
        for expected in [apply(vec![3], 3), apply(vec![4], 4)] {
            let frame = next_frame(&mut guest.stream, &mut guest.decoder).await;
            assert_eq!(spare_protocol::decode(&frame.payload), Ok(expected));
        }
    }

    #[tokio::test]
    async fn a_closed_channel_is_a_loss() {
        let guest = connected().await;
        let mut inputs = guest.inputs;
        drop(guest.stream);
        assert!(matches!(inputs.recv().await, Some(Input::Failed { .. })));
    }
}
