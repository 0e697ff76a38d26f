//! A client's connection, with limits on how slow the client may be. What counts is progress, not the whole time:
//! who sends or takes `bytes_per_s_min` is served however long it takes, and who stops is noticed after the timeout
//! of what it does.

use super::budget::{Budget, Held};
use super::places::{Phase, Place};
use crate::config::Gateway;
use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// Headers are taken into account in steps of this many bytes. Every connection has this much for them anyway.
const HEAD_STEP_BYTES: usize = 8 << 10;

/// How slow the other end may be. Each byte gives it the time that a byte takes at the least rate, but what is
/// saved up is never more than `timeout`: a fast beginning allows no long pause.
#[derive(Debug)]
struct Pace {
    timeout: Duration,
    bytes_per_s: u32,
    until: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new(timeout_ms: u64, bytes_per_s: u32) -> Pace {
        Pace {
            timeout: Duration::from_millis(timeout_ms),
            bytes_per_s,
            until: Instant::now(),
            sleep: None,
        }
    }

    fn begin(&mut self, timeout_ms: u64, now: Instant) {
        self.timeout = Duration::from_millis(timeout_ms);
        self.until = now + self.timeout;
    }

    fn moved(&mut self, bytes: usize, now: Instant) {
        let worth = Duration::from_secs(bytes as u64) / self.bytes_per_s;
        self.until = (self.until + worth).min(now + self.timeout);
    }

    fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// Whether the time is over; the task is woken when it is.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = self.until;
        let over = self.is_over(Instant::now());
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        // The timer is not moved with every byte: it is looked at when it ends.
        if sleep.deadline() > until {
            sleep.as_mut().reset(until);
        }
        ready!(sleep.as_mut().poll(cx));
        if over {
            return Poll::Ready(());
        }
        sleep.as_mut().reset(until);
        sleep.as_mut().poll(cx)
    }
}

/// Why a connection was ended from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The client was too slow at this.
    Slow(Phase),
    /// There is no room for more headers.
    NoRoom,
}

/// A client's stream that fails with [`ErrorKind::TimedOut`] when the client is too slow.
#[derive(Debug)]
pub(crate) struct Paced {
    stream: Arc<TcpStream>,
    place: Arc<Place>,
    limits: Arc<Gateway>,
    budget: Budget,
    /// What `reading` was begun for.
    phase: Phase,
    reading: Pace,
    writing: Pace,
    /// The client does not take what is written.
    write_blocked: bool,
    /// Bytes of the request line and headers that are arriving, and what of them is taken from the budget.
    head_bytes: usize,
    head: Held,
    cut: Option<Cut>,
    /// The client has ended its sending side.
    ended: bool,
    /// Something was written since the last byte was read.
    answered: bool,
}

impl Paced {
    pub(crate) fn new(
        stream: Arc<TcpStream>,
        place: Arc<Place>,
        limits: Arc<Gateway>,
        budget: Budget,
    ) -> Paced {
        let rate = limits.bytes_per_s_min;
        let mut reading = Pace::new(limits.idle_timeout_ms, rate);
        reading.begin(limits.idle_timeout_ms, Instant::now());
        Paced {
            stream,
            place,
            writing: Pace::new(limits.write_timeout_ms, rate),
            limits,
            budget,
            phase: Phase::Idle,
            reading,
            write_blocked: false,
            head_bytes: 0,
            head: Held::default(),
            cut: None,
            ended: false,
            answered: false,
        }
    }

    /// Why this side has given the client up, if it has.
    pub(crate) fn cut(&self) -> Option<Cut> {
        self.cut
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn answered(&self) -> bool {
        self.answered
    }

    /// hyper reads for a next request when the last one's reply is written, and for a body while the service waits
    /// for it.
    fn settle(&mut self) {
        let phase = match self.place.phase() {
            Phase::Body => Phase::Body,
            Phase::Head => Phase::Head,
            Phase::Idle | Phase::Busy | Phase::Writing => Phase::Idle,
        };
        if phase != self.phase {
            self.phase = phase;
            let timeout_ms = match phase {
                Phase::Body => self.limits.body_timeout_ms,
                _ => self.limits.idle_timeout_ms,
            };
            self.reading.begin(timeout_ms, Instant::now());
            self.head_bytes = 0;
            self.head = Held::default();
        }
    }

    fn received(&mut self, bytes: usize) -> io::Result<()> {
        let now = Instant::now();
        self.answered = false;
        self.ended |= bytes == 0;
        if self.phase == Phase::Idle && bytes > 0 {
            self.phase = Phase::Head;
            self.place.enter(Phase::Head);
            self.reading.begin(self.limits.header_timeout_ms, now);
        }
        self.reading.moved(bytes, now);
        if self.phase == Phase::Head {
            self.head_bytes += bytes;
            if self.head_bytes > HEAD_STEP_BYTES {
                match self.budget.try_take(bytes) {
                    Some(more) => self.head.add(more),
                    None => return Err(self.give_up(Cut::NoRoom)),
                }
            }
        }
        Ok(())
    }

    fn give_up(&mut self, cut: Cut) -> io::Error {
        self.cut = Some(cut);
        ErrorKind::TimedOut.into()
    }

    /// The client has nothing to read from for now.
    fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.place.enter(self.phase);
        ready!(self.reading.poll_expired(cx));
        Poll::Ready(Err(self.give_up(Cut::Slow(self.phase))))
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        all: usize,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        while let Poll::Ready(ready) = self.stream.poll_write_ready(cx) {
            ready?;
            match write(&self.stream) {
                Ok(written) => {
                    self.answered = true;
                    self.write_blocked &= written < all;
                    self.writing.moved(written, Instant::now());
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if !self.write_blocked {
            self.write_blocked = true;
            let timeout_ms = self.limits.write_timeout_ms;
            self.writing.begin(timeout_ms, Instant::now());
            if self.place.phase() == Phase::Busy {
                self.place.enter(Phase::Writing);
            }
        }
        ready!(self.writing.poll_expired(cx));
        Poll::Ready(Err(self.give_up(Cut::Slow(Phase::Writing))))
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        me.settle();
        while let Poll::Ready(ready) = me.stream.poll_read_ready(cx) {
            ready?;
            match me.stream.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(me.received(read));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        me.poll_slow(cx)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        me.poll_write_with(cx, bytes.len(), |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = slices.iter().map(|slice| slice.len()).sum();
        let me = self.get_mut();
        me.poll_write_with(cx, all, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = socket2::SockRef::from(&*self.stream).shutdown(std::net::Shutdown::Write);
        Poll::Ready(match shut {
            // The client was faster.
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(()),
            shut => shut,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT_MS: u64 = 10_000;
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_keeps_the_least_rate_may_take_any_time_and_who_does_not_is_cut() {
        let mut now = Instant::now();
        let mut pace = Pace::new(TIMEOUT_MS, 500);
        pace.begin(TIMEOUT_MS, now);
        for _ in 0..1000 {
            assert!(!pace.is_over(now));
            now += SECOND;
            pace.moved(500, now);
        }
        // A tenth of it lasts for as long as was saved up.
        let mut seconds = 0;
        while !pace.is_over(now) {
            now += SECOND;
            pace.moved(50, now);
            seconds += 1;
        }
        assert!((10..13).contains(&seconds), "cut after {seconds} s");
    }

    #[test]
    fn a_fast_beginning_allows_no_long_pause() {
        let mut now = Instant::now();
        let mut pace = Pace::new(TIMEOUT_MS, 500);
        pace.begin(TIMEOUT_MS, now);
        pace.moved(16 << 20, now);
        now += Duration::from_millis(TIMEOUT_MS - 1);
        assert!(!pace.is_over(now));
        now += Duration::from_millis(1);
        assert!(pace.is_over(now));
    }

    #[tokio::test]
    async fn the_task_is_woken_when_the_time_is_over_and_not_before() {
        let begun = Instant::now();
        let mut pace = Pace::new(50, 1000);
        pace.begin(50, begun);
        let expired =
            async |pace: &mut Pace| std::future::poll_fn(|cx| pace.poll_expired(cx)).await;
        let early = tokio::time::timeout(Duration::from_millis(10), expired(&mut pace)).await;
        assert!(early.is_err());
        // Moved on, and later back again.
        pace.moved(1000, Instant::now());
        expired(&mut pace).await;
        assert!(begun.elapsed() >= Duration::from_millis(55));
        pace.begin(5, Instant::now());
        expired(&mut pace).await;
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
