//! A connection that waits for its client only so long: to take what is sent, and to send the next
//! request.
//!
//! It is also where hyper's own refusals get words (see `refusal`): they are the only thing that is
//! written while no request is being answered.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use interlock_request::RequestId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::refusal;
use super::request_clock::{Awaited, RequestClock};
use crate::alarm::Alarm;
use crate::failure::{Failure, HeadLimits, HeadProblem};

/// Counts what is refused here, and writes the body of the refusal.
pub(crate) type OnRefusal = Arc<dyn Fn(&Failure, &RequestId) -> String + Send + Sync>;

/// Breaks when the other side takes nothing of what we send for too long, or sends no request.
/// Without it a client that stops reading holds its connection for as long as it likes.
pub(crate) struct TimedStream<S> {
    stream: S,
    write_timeout: Duration,
    /// Strikes when what is to be written was not taken in time.
    stalled: Option<Pin<Box<Sleep>>>,
    clock: RequestClock,
    /// Strikes when the clock is due.
    overdue: Alarm,
    limits: HeadLimits,
    on_refusal: OnRefusal,
    refusal: Option<ErrorReply>,
}

/// A refusal of hyper's, as it is sent.
struct ErrorReply {
    bytes: Vec<u8>,
    sent: usize,
    /// Until when what the client still sends is let pass, so that it gets to read this: closing a
    /// connection with unread bytes would reset it.
    linger: Pin<Box<Sleep>>,
}

/// How long a client that was refused may go on sending.
const LINGER_MAX: Duration = Duration::from_secs(1);

impl<S> TimedStream<S> {
    pub(crate) fn new(
        stream: S,
        write_timeout: Duration,
        clock: RequestClock,
        limits: HeadLimits,
        on_refusal: OnRefusal,
    ) -> Self {
        Self {
            stream,
            write_timeout,
            stalled: None,
            clock,
            overdue: Alarm::default(),
            limits,
            on_refusal,
            refusal: None,
        }
    }

    /// Passes a write's result on; while it is pending, the clock runs.
    fn watch(
        &mut self,
        cx: &mut Context<'_>,
        wrote: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if wrote.is_ready() {
            self.stalled = None;
            self.clock.has_written();
            return wrote;
        }
        // A limit too far away to be a moment is none.
        let Some(until) = Instant::now().checked_add(self.write_timeout) else {
            return Poll::Pending;
        };
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(stalled.as_mut().poll(cx));
        let message = format!("the client took nothing for {:?}", self.write_timeout);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
    }

    /// Ready when the client has taken too long with its next request.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Who still takes the last answer has the write's limit.
        let due = self.clock.due().filter(|_| self.stalled.is_none());
        self.overdue.poll(due, cx)
    }

    fn refuse(&mut self, failure: &Failure, bare: Option<&[u8]>) -> &mut ErrorReply {
        let id = RequestId::generate();
        let body = (self.on_refusal)(failure, &id);
        let bytes = refusal::with_body(failure, &id, &body, bare);
        let linger = Box::pin(tokio::time::sleep(LINGER_MAX));
        self.refusal.insert(ErrorReply { bytes, sent: 0, linger })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TimedStream<S> {
    /// Sends the refusal in place of hyper's, which counts as taken when ours is.
    fn poll_refuse(&mut self, cx: &mut Context<'_>, bare: usize) -> Poll<io::Result<usize>> {
        while let Some(refusal) = &mut self.refusal
            && refusal.sent < refusal.bytes.len()
        {
            let (rest, stream) = (&refusal.bytes[refusal.sent..], Pin::new(&mut self.stream));
            let wrote = stream.poll_write(cx, rest);
            match ready!(self.watch(cx, wrote))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                wrote => self.refusal.iter_mut().for_each(|refusal| refusal.sent += wrote),
            }
        }
        Poll::Ready(Ok(bare))
    }

    /// What is written in words instead, if this is a refusal of hyper's.
    fn poll_bare(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Option<Poll<io::Result<usize>>> {
        if self.refusal.is_none() {
            if self.clock.awaited() == Awaited::Nothing {
                return None;
            }
            let failure = refusal::failure(refusal::is_bare(buf)?, self.limits);
            self.refuse(&failure, Some(buf));
        }
        Some(self.poll_refuse(cx, buf.len()))
    }

    /// Says that a head took too long, if the client takes it at once: nothing is waited for.
    fn refuse_slow(&mut self, cx: &mut Context<'_>) {
        let limit = self.clock.header_timeout();
        self.refuse(&Failure::Unreadable(HeadProblem::TooSlow { limit }), None);
        let _said = self.poll_refuse(cx, 0);
    }

    /// Lets pass what a refused client still sends, until it closes or its time is up.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(refusal) = &mut self.refusal else { return Poll::Ready(()) };
        let mut bytes = [0; 4096];
        while refusal.linger.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            if buf.filled().len() > before {
                self.clock.has_read();
            }
            return read;
        }
        ready!(self.poll_overdue(cx));
        if self.clock.awaited() == Awaited::RestOfHead {
            self.refuse_slow(cx);
        }
        let message = "the client sent no request in time";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(refused) = self.poll_bare(cx, buf) {
            return refused;
        }
        let wrote = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = bufs
            && let Some(refused) = self.poll_bare(cx, only)
        {
            return refused;
        }
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        self.poll_linger(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Body;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::super::request_clock::{AnswerBody, RequestLimits};
    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

    /// A connection on which few bytes fit, with limits of so many seconds, whose requests are
    /// answered with this; and when it ended.
    fn serve(
        header_timeout: u64,
        idle_timeout: u64,
        answer: fn() -> Body,
    ) -> (DuplexStream, JoinHandle<Duration>) {
        let (client, server) = duplex(1024);
        let limits = RequestLimits {
            header_timeout: Duration::from_secs(header_timeout),
            idle_timeout: Duration::from_secs(idle_timeout),
        };
        let clock = RequestClock::new(limits);
        let heads = HeadLimits { header_max: 1, headers_max: 1 };
        let write_timeout = Duration::from_secs(60);
        let io = TimedStream::new(
            server,
            write_timeout,
            clock.clone(),
            heads,
            Arc::new(|_, _| String::new()),
        );
        let service = service_fn(move |_| {
            let answer = AnswerBody { body: answer(), _answering: clock.answering() };
            async { Ok::<_, Infallible>(hyper::Response::new(answer)) }
        });
        let served = tokio::spawn(async move {
            let began = Instant::now();
            let mut rules = http1::Builder::new();
            rules.header_read_timeout(None).half_close(true);
            let _ended = rules.serve_connection(TokioIo::new(io), service).await;
            began.elapsed()
        });
        (client, served)
    }

    async fn ended(served: JoinHandle<Duration>) -> u64 {
        served.await.expect("no panic").as_secs()
    }

    /// Reads up to the end of the connection.
    async fn rest(mut client: DuplexStream) -> String {
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.expect("reads");
        rest
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_its_time_has_the_whole_answer_and_then_its_idle_time() {
        let (mut client, served) = serve(30, 5, || Body::from("x".repeat(10_000)));
        client.write_all(GET).await.expect("sends");
        // Far longer than it may idle, and all of the answer was given long ago.
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(!served.is_finished(), "it is being answered");
        let whole = rest(client).await;
        assert!(whole.ends_with(&"x".repeat(10_000)), "{} bytes came", whole.len());
        assert_eq!(ended(served).await, 50 + 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_has_left_whatever_it_may_idle() {
        let (mut client, served) = serve(30, 5, || Body::from("x".repeat(10_000)));
        client.write_all(GET).await.expect("sends");
        assert_eq!(ended(served).await, 60);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_be_longer_in_the_making_than_any_request() {
        let (mut client, served) = serve(30, 5, || {
            Body::new(Slow(Box::pin(tokio::time::sleep(Duration::from_secs(100)))))
        });
        client.write_all(GET).await.expect("sends");
        assert!(rest(client).await.ends_with("0\r\n\r\n"));
        assert_eq!(ended(served).await, 100 + 5);
    }

    /// A body of nothing, whose end comes in time.
    struct Slow(Pin<Box<Sleep>>);

    impl hyper::body::Body for Slow {
        type Data = bytes::Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, Infallible>>> {
            self.0.as_mut().poll(cx).map(|()| None)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_its_time_from_its_first_byte_on() {
        let (mut client, served) = serve(30, 100, Body::empty);
        client.write_all(GET).await.expect("sends");
        tokio::time::sleep(Duration::from_secs(90)).await;
        client.write_all(&GET[..10]).await.expect("sends");
        tokio::time::sleep(Duration::from_secs(29)).await;
        client.write_all(&GET[10..]).await.expect("sends");
        tokio::time::sleep(Duration::from_secs(90)).await;
        client.write_all(&GET[..10]).await.expect("sends");
        let told = rest(client).await;
        assert!(told.contains("408 Request Timeout"), "{told}");
        assert_eq!(ended(served).await, 90 + 29 + 90 + 30);
    }
}
