//! Two tasks for each guest's channel, one for each direction (`docs/contributors/channel.md`), over any stream of bytes.

use super::merge::merged;
use super::rules::GuestRules;
use super::session::{Expected, Said, Session};
use crate::agent_link::{AgentError, AgentLink};
use bytes::Bytes;
use spare_core::Input;
use spare_protocol::channel::{cut, Frame, RootRequest, ToGuest, CHANNEL_VERSION};
use spare_protocol::messages::LossReason;
use spare_protocol::{Position, ReplicaId};
use std::io;
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
/// Messages of a state that is loaded that may wait: what is read ahead of a guest.
const BULK_MESSAGES_MAX: usize = 2;
/// Updates that a guest is given at once; a longer one is given alone.
const APPLY_BYTES_MAX: usize = 8 << 20;

/// From unpausing a guest until it has surely noticed that the last manager hung up.
const NOTICE_DELAY: Duration = Duration::from_millis(150);
/// For a guest's `Hello`: it finishes what it was asked to execute before. Several, as the guest may take
/// the beginning of a session for the rest of a frame; each time the channel is opened anew.
const HELLO_LIMITS_S: [u64; 4] = [3, 5, 10, 20];

/// The manager's end of one guest's channel. Dropping it ends the channel.
#[derive(Debug)]
pub(crate) struct GuestChannel {
    queue: mpsc::Sender<ToGuest>,
    bulk: mpsc::Sender<ToGuest>,
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
        rules: GuestRules,
        inputs: mpsc::Sender<Input>,
    ) -> GuestChannel {
        GuestChannel::start(replica, stream, rules, inputs, None)
    }

    /// Opens a session with a guest that ran before this manager. Its seat hears nothing of it until the
    /// guest's position arrives.
    pub(crate) fn open_again(
        replica: ReplicaId,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        rules: GuestRules,
        inputs: mpsc::Sender<Input>,
    ) -> (GuestChannel, oneshot::Receiver<Position>) {
        let (sender, position) = oneshot::channel();
        let channel = GuestChannel::start(replica, stream, rules, inputs, Some(sender));
        (channel, position)
    }

    fn start(
        replica: ReplicaId,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        rules: GuestRules,
        inputs: mpsc::Sender<Input>,
        position: Option<oneshot::Sender<Position>>,
    ) -> GuestChannel {
        let number = rand::random::<u32>().max(1);
        let (read, write) = tokio::io::split(stream);
        let (queue, waiting) = mpsc::channel(QUEUE_MESSAGES_MAX);
        let (bulk, waiting_bulk) = mpsc::channel(BULK_MESSAGES_MAX);
        let silent = Arc::new(AtomicBool::new(position.is_some()));
        let expected = match position {
            Some(_) => Expected::Attached,
            None => Expected::New,
        };
        let reader = Reader {
            replica,
            session: Session::new(replica, number, expected, rules.clone()),
            inputs: inputs.clone(),
            position,
            silent: Arc::clone(&silent),
        };
        let writer = Writer {
            replica,
            session: number,
            sequence: 0,
            update_bytes_max: rules.update_bytes_max,
            inputs,
            silent,
        };
        let tasks = vec![
            tokio::spawn(reader.run(read)),
            tokio::spawn(writer.run(write, waiting, waiting_bulk)),
        ];
        GuestChannel { queue, bulk, tasks }
    }

    /// Sends without waiting.
    pub(crate) fn send(&self, message: ToGuest) -> Result<(), Stalled> {
        self.queue.try_send(message).map_err(|_| Stalled)
    }

    /// For a state that is loaded, which is too long to be there as a whole: it takes a message when the guest
    /// has read the one before.
    pub(crate) fn bulk(&self) -> mpsc::Sender<ToGuest> {
        self.bulk.clone()
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
    rules: &GuestRules,
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
            GuestChannel::open_again(replica, stream, rules.clone(), inputs.clone());
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
    /// Of the last frame.
    sequence: u64,
    update_bytes_max: u64,
    inputs: mpsc::Sender<Input>,
    /// The seat does not know of this channel yet.
    silent: Arc<AtomicBool>,
}

impl Writer {
    async fn run(
        mut self,
        mut stream: impl AsyncWrite + Unpin,
        mut waiting: mpsc::Receiver<ToGuest>,
        mut bulk: mpsc::Receiver<ToGuest>,
    ) {
        let Err(error) = self.write(&mut stream, &mut waiting, &mut bulk).await else {
            return;
        };
        let replica = self.replica;
        let reason = LossReason::VmStopped(format!("its channel was closed: {error}"));
        if !self.silent.load(Ordering::Relaxed) {
            let _ = self.inputs.send(Input::Failed { replica, reason }).await;
        }
    }

    /// Writes until nobody has anything to say any more.
    async fn write(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        waiting: &mut mpsc::Receiver<ToGuest>,
        bulk: &mut mpsc::Receiver<ToGuest>,
    ) -> io::Result<()> {
        let version = CHANNEL_VERSION;
        self.frame(stream, &ToGuest::Hello { version }).await?;
        let update_bytes_max = self.update_bytes_max;
        self.frame(stream, &ToGuest::Limits { update_bytes_max })
            .await?;
        loop {
            let next = tokio::select! {
                next = waiting.recv() => next,
                Some(next) = bulk.recv() => Some(next),
            };
            match next {
                None => return Ok(()),
                Some(ToGuest::Apply {
                    updates,
                    upto,
                    root,
                }) => self.apply(stream, updates, (upto, root)).await?,
                Some(other) => self.send(stream, other).await?,
            }
        }
    }

    /// Sends updates in steps of a bounded size.
    async fn apply(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        updates: Vec<(Position, Bytes)>,
        (upto, root): (Position, RootRequest),
    ) -> io::Result<()> {
        let mut steps = steps(updates);
        let last = steps.pop().unwrap_or_default();
        for step in steps {
            let Some((end, _)) = step.last() else {
                continue;
            };
            for (upto, update) in merged_elsewhere(*end, step).await {
                self.send(stream, ToGuest::ApplyUnanswered { update, upto })
                    .await?;
            }
        }
        let updates = merged_elsewhere(upto, last).await;
        let apply = ToGuest::Apply {
            updates,
            upto,
            root,
        };
        self.send(stream, apply).await
    }

    /// Sends a message, in several frames if need be.
    async fn send(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        mut message: ToGuest,
    ) -> io::Result<()> {
        let bytes = match &mut message {
            ToGuest::Apply { updates, .. } => updates.last_mut().map(|(_, update)| update),
            ToGuest::ApplyUnanswered { update, .. } => Some(update),
            ToGuest::Load { part, .. } => Some(part),
            _ => None,
        };
        if let Some(bytes) = bytes {
            let (parts, rest) = cut(std::mem::take(bytes));
            *bytes = rest;
            for part in parts {
                self.frame(stream, &ToGuest::Part(part)).await?;
            }
        }
        self.frame(stream, &message).await
    }

    async fn frame(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        message: &ToGuest,
    ) -> io::Result<()> {
        self.sequence += 1;
        let frame = Frame {
            session: self.session,
            sequence: self.sequence,
            payload: Bytes::from(spare_protocol::encode(message)),
        };
        stream.write_all(&frame.header()).await?;
        stream.write_all(&frame.payload).await
    }
}

/// Consecutive updates, each time as many as may be given to a guest at once.
fn steps(updates: Vec<(Position, Bytes)>) -> Vec<Vec<(Position, Bytes)>> {
    let mut steps: Vec<Vec<(Position, Bytes)>> = Vec::new();
    let mut bytes = 0;
    for (position, update) in updates {
        let length = update.len();
        match steps.last_mut() {
            Some(step) if bytes + length <= APPLY_BYTES_MAX => {
                step.push((position, update));
                bytes += length;
            }
            _ => {
                steps.push(vec![(position, update)]);
                bytes = length;
            }
        }
    }
    steps
}

/// Updates as one, merged on a thread for such work: it decodes and encodes all of them, and neither the core nor
/// another guest is to wait for it.
async fn merged_elsewhere(
    upto: Position,
    updates: Vec<(Position, Bytes)>,
) -> Vec<(Position, Bytes)> {
    if updates.len() < 2 {
        return updates;
    }
    let unmerged = updates.clone();
    let merging = tokio::task::spawn_blocking(move || merged(updates, upto));
    merging.await.unwrap_or_else(|error| {
        tracing::error!("updates up to {upto} could not be merged, and go one by one: {error}");
        unmerged
    })
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
    use crate::normalise::Normaliser;
    use spare_protocol::channel::{
        Decoded, FrameDecoder, FromGuest, Outcome, Parts, FRAME_BYTES_MAX, PART_BYTES_MAX,
    };
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

    const UPDATE_BYTES_MAX: usize = 3 * PART_BYTES_MAX;

    async fn connected() -> Guest {
        let (ours, mut stream) = tokio::io::duplex(4096);
        let (inputs, received) = mpsc::channel(64);
        let rules = GuestRules {
            normaliser: Arc::new(Normaliser::new(&Normalise::default()).expect("valid")),
            update_bytes_max: UPDATE_BYTES_MAX as u64,
        };
        let channel = GuestChannel::open(REPLICA, ours, rules, inputs);
        let mut decoder = FrameDecoder::new();
        let hello = next_frame(&mut stream, &mut decoder).await;
        let limits = next_frame(&mut stream, &mut decoder).await;
        let update_bytes_max = UPDATE_BYTES_MAX as u64;
        assert_eq!(
            spare_protocol::decode(&limits.payload),
            Ok(ToGuest::Limits { update_bytes_max })
        );
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
    async fn what_is_too_long_for_a_frame_is_sent_in_parts() {
        let mut guest = connected().await;
        let long: Bytes = (0..30u32 << 20).map(|i| (i >> 8) as u8).collect();
        let short = Bytes::from(Update::default().to_bytes());
        let updates = [&short, &short, &long, &short];
        let apply = ToGuest::Apply {
            updates: (1..).map(Position).zip(updates.map(Bytes::clone)).collect(),
            upto: Position(5),
            root: RootRequest::No,
        };
        guest.channel.send(apply).expect("it reads");
        let mut parts = Parts::default();
        let mut steps = Vec::new();
        while steps.len() < 3 {
            let frame = next_frame(&mut guest.stream, &mut guest.decoder).await;
            assert!(frame.payload.len() <= FRAME_BYTES_MAX);
            match spare_protocol::decode(&frame.payload).expect("a message") {
                ToGuest::Part(part) => parts.push(&part),
                ToGuest::ApplyUnanswered { update, upto } => {
                    steps.push((upto, parts.complete(update)));
                }
                ToGuest::Apply { updates, upto, .. } => {
                    assert_eq!(updates, [(Position(4), short.clone())]);
                    steps.push((upto, short.clone()));
                }
                other => panic!("{other:?}"),
            }
        }
        let expected = [
            (Position(2), short.clone()),
            (Position(3), long),
            (Position(5), short),
        ];
        assert!(steps == expected, "two merged, the long one, and the last");
    }

    fn executed(update: Bytes) -> FromGuest {
        FromGuest::Executed {
            position: Position(1),
            outcome: Outcome::WriteInRead,
            update,
            root: None,
        }
    }

    #[tokio::test]
    async fn an_update_arrives_in_parts_up_to_the_longest_that_there_may_be() {
        let part = || FromGuest::UpdatePart(Bytes::from(vec![7; PART_BYTES_MAX]));
        let rest = |bytes| executed(Bytes::from(vec![7; bytes]));
        let mut guest = connected().await;
        guest.hello().await;
        for sequence in [2, 3] {
            guest.say(sequence, &part()).await;
        }
        guest.say(4, &rest(PART_BYTES_MAX)).await;
        match guest.inputs.recv().await {
            Some(Input::Executed { update, .. }) => {
                assert!(update == vec![7; UPDATE_BYTES_MAX]);
            }
            other => panic!("{other:?}"),
        }
        // The next begins anew.
        guest.say(5, &rest(1)).await;
        match guest.inputs.recv().await {
            Some(Input::Executed { update, .. }) => assert_eq!(update.len(), 1),
            other => panic!("{other:?}"),
        }
        for sequence in [6, 7, 8] {
            guest.say(sequence, &part()).await;
        }
        guest.say(9, &rest(1)).await;
        let told = guest.inputs.recv().await;
        assert!(matches!(told, Some(Input::Violated { .. })), "{told:?}");
    }

    #[tokio::test]
    async fn parts_of_an_update_without_its_rest_are_a_violation() {
        let mut guest = connected().await;
        guest.hello().await;
        guest
            .say(2, &FromGuest::UpdatePart(Bytes::from_static(b"x")))
            .await;
        let applied = FromGuest::Applied {
            position: Position(1),
            root: None,
        };
        guest.say(3, &applied).await;
        let told = guest.inputs.recv().await;
        assert!(matches!(told, Some(Input::Violated { .. })), "{told:?}");
    }

    #[tokio::test]
    async fn a_closed_channel_is_a_loss() {
        let guest = connected().await;
        let mut inputs = guest.inputs;
        drop(guest.stream);
        assert!(matches!(inputs.recv().await, Some(Input::Failed { .. })));
    }
}
