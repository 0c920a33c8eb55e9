//! A socket that says when its peer has left, whatever else lies in it.
//!
//! The end of what a peer sends lies behind everything that it sent before, so whoever wants to see
//! the end has to read what comes first. HTTP is read only as far as it is understood: bytes behind
//! a request (an empty line, the next request) stay where they are until it has been answered, and
//! hide the end for as long. So while a generation is under way the socket is read ahead of whoever
//! reads it, and what was read is kept for them. A failure (a reset, a peer that is out of reach) is
//! heard of without reading.
//!
//! This is the lowest layer, under [`super::write_timeout`] and whatever else is put in between
//! (TLS): they read and write a [`WatchedSocket`], and never know that it was watched.
//!
//! # Invariants
//!
//! - Nothing is lost or changes places: a [`WatchedSocket`] gives what was read ahead first.
//! - What is kept is bounded by `server.pipelined_max`. Behind a request that was read whole, more
//!   is thrown away, so that the end is still seen, and the reader sees an end where it was cut:
//!   what was sent after that is never taken for a request. Before that, nothing is read beyond
//!   the bound: it may be the request's own body.
//! - A [`DepartureWatch`] and its [`WatchedSocket`] belong to one task, which polls both.
//!
//! # On systems
//!
//! A peer that shut down its sending side and one that is gone look the same until something is
//! sent to it: both have sent FIN. Only FIN and failures are told apart here, the former by reading,
//! the latter by the readiness that tokio gets as EPOLLERR on Linux and as EV_EOF with an error on
//! macOS. EPOLLRDHUP would see FIN without reading, but kqueue has nothing like it beside unread
//! bytes, and neither sees a FIN that waits behind a full window.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::client::{Client, ClientStage, Liveness};
use crate::config::HalfClose;

/// The receiving side of a connected socket.
pub(crate) trait ReceiveHalf: Send + Sync + 'static {
    /// Ready when there may be something to read.
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Reads what is there; 0 bytes: nothing follows. What has come since the runtime last looked at
    /// its sockets may not be there yet.
    fn try_read(&self, into: &mut [u8]) -> io::Result<usize>;

    /// As [`Self::try_read`], by asking the system, which has all that has come.
    fn read_now(&self, into: &mut [u8]) -> io::Result<usize>;

    /// Returns when the connection has failed, in either direction, whatever is unread.
    fn failed(&self) -> impl Future<Output = ()> + Send;
}

macro_rules! receive {
    ($half:ty) => {
        impl ReceiveHalf for $half {
            fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.as_ref().poll_read_ready(cx)
            }

            fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
                self.as_ref().try_read(into)
            }

            fn read_now(&self, into: &mut [u8]) -> io::Result<usize> {
                let (read, _) = recv(self.as_ref(), into, RecvFlags::DONTWAIT)?;
                Ok(read)
            }

            async fn failed(&self) {
                // A wait may end for nothing.
                while let Ok(ready) = self.as_ref().ready(Interest::ERROR).await {
                    if ready.is_error() {
                        return;
                    }
                }
            }
        }
    };
}

receive!(tokio::net::tcp::OwnedReadHalf);
receive!(tokio::net::unix::OwnedReadHalf);

/// What bounds a connection whose client is watched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WatchRules {
    /// `server.pipelined_max`
    pub(crate) pipelined_max: usize,
    /// `server.half_close`
    pub(crate) half_close: HalfClose,
}

/// How a client left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departure {
    /// The client has closed, or shut down its sending side.
    Closed,
    /// The connection has failed.
    Reset,
    /// The client sends without end behind a request that it waits for.
    Flooding,
}

/// What higher layers read and write.
pub(crate) struct WatchedSocket<R, W> {
    shared: Arc<SharedSocket<R>>,
    writing: W,
}

/// Sees the client leave.
pub(crate) struct DepartureWatch<R> {
    shared: Arc<SharedSocket<R>>,
    client: Client,
    failed: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// How long a client that has closed may still wait for a refusal.
    grace: Option<Pin<Box<Sleep>>>,
}

struct SharedSocket<R> {
    receiving: R,
    rules: WatchRules,
    // Both sides are polled by one task; what a request looks at is behind it as well. Never held
    // across an await.
    ahead: Mutex<ReadAhead>,
}

/// What was read ahead.
#[derive(Debug, Default)]
struct ReadAhead {
    bytes: VecDeque<u8>,
    end: Option<SocketEnd>,
    /// Bytes that were thrown away.
    discarded: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SocketEnd {
    Closed,
    Failed(io::ErrorKind),
}

/// Watches a connected socket, given as its two halves.
pub(crate) fn watched<R: ReceiveHalf, W>(
    (receiving, writing): (R, W),
    rules: WatchRules,
) -> (WatchedSocket<R, W>, DepartureWatch<R>) {
    let shared = Arc::new(SharedSocket { receiving, rules, ahead: Mutex::default() });
    let client = Client::of(Arc::clone(&shared) as Arc<dyn Liveness>);
    let failed = {
        let shared = Arc::clone(&shared);
        Box::pin(async move { shared.receiving.failed().await })
    };
    (
        WatchedSocket { shared: Arc::clone(&shared), writing },
        DepartureWatch { shared, client, failed, grace: None },
    )
}

impl<R: ReceiveHalf> DepartureWatch<R> {
    /// How long a client that has closed waits for what may be a refusal. Whatever refuses a
    /// request takes less, but for a policy that asks others; and who has left is not to occupy a
    /// place for longer.
    const REFUSED_WITHIN: Duration = Duration::from_secs(5);

    /// The client, for its requests.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Has more been thrown away than the reader will see?
    pub(crate) fn has_cut(&self) -> bool {
        self.shared.ahead().discarded > 0
    }

    /// Ready, once, when the client has left and nothing more is to be done for it.
    pub(crate) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Departure> {
        let stage = self.client.stage(cx);
        if self.failed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Departure::Reset);
        }
        if stage == ClientStage::Answering || self.shared.rules.half_close == HalfClose::Wait {
            self.grace = None;
            return Poll::Pending;
        }
        let left = ready!(self.shared.poll_ahead(cx, stage));
        if stage == ClientStage::Preparing && left == Departure::Closed {
            let grace = self.grace.get_or_insert_with(|| Box::pin(sleep(Self::REFUSED_WITHIN)));
            ready!(grace.as_mut().poll(cx));
        }
        Poll::Ready(left)
    }
}

/// Bytes that one read takes.
const READ: usize = 16 * 1024;
/// Reads after which others are to have the worker.
const READS_MAX: usize = 64;
/// Most bytes that are thrown away before their sender is hung up on.
const DISCARDED_MAX: usize = 64 * 1024 * 1024;

impl<R: ReceiveHalf> SharedSocket<R> {
    fn ahead(&self) -> MutexGuard<'_, ReadAhead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads ahead; ready at the end.
    fn poll_ahead(&self, cx: &mut Context<'_>, stage: ClientStage) -> Poll<Departure> {
        let mut ahead = self.ahead();
        for _ in 0..READS_MAX {
            if let Some(left) = ahead.departure() {
                return Poll::Ready(left);
            }
            let most = match stage {
                ClientStage::Generating => READ,
                // What comes may be the request's own, of which nothing must be thrown away.
                _ => READ.min(self.rules.pipelined_max.saturating_sub(ahead.bytes.len())),
            };
            if most == 0 {
                // Its reader makes room, or the stage changes, in this task.
                return Poll::Pending;
            }
            match ready!(self.receiving.poll_ready(cx)) {
                Ok(()) => {
                    let mut bytes = [0; READ];
                    let read = self.receiving.try_read(&mut bytes[..most]);
                    self.keep(&mut ahead, &bytes, read)
                }
                Err(error) => {
                    ahead.end = Some(SocketEnd::Failed(error.kind()));
                    true
                }
            };
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Keeps what was read; false when nothing is there.
    fn keep(&self, ahead: &mut ReadAhead, bytes: &[u8], read: io::Result<usize>) -> bool {
        match read {
            Ok(0) => ahead.end = Some(SocketEnd::Closed),
            Ok(read) => ahead.put(&bytes[..read], self.rules.pipelined_max),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => ahead.end = Some(SocketEnd::Failed(error.kind())),
        }
        true
    }
}

impl<R: ReceiveHalf> Liveness for SharedSocket<R> {
    fn has_left(&self) -> bool {
        if self.rules.half_close == HalfClose::Wait {
            return false;
        }
        let mut ahead = self.ahead();
        // The rest, if there is more, is read by the watch.
        for _ in 0..READS_MAX {
            if ahead.departure().is_some() {
                break;
            }
            let mut bytes = [0; READ];
            // Not by the runtime's readiness: its driver may not have run since the end came.
            let read = self.receiving.read_now(&mut bytes);
            if !self.keep(&mut ahead, &bytes, read) {
                break;
            }
        }
        ahead.departure().is_some()
    }
}

impl ReadAhead {
    fn departure(&self) -> Option<Departure> {
        match self.end {
            Some(SocketEnd::Closed) => Some(Departure::Closed),
            Some(SocketEnd::Failed(_)) => Some(Departure::Reset),
            None => (self.discarded > DISCARDED_MAX).then_some(Departure::Flooding),
        }
    }

    fn put(&mut self, bytes: &[u8], most: usize) {
        // Once something is missing, nothing that follows makes sense.
        let room = if self.discarded > 0 { 0 } else { most.saturating_sub(self.bytes.len()) };
        let (kept, discarded) = bytes.split_at(room.min(bytes.len()));
        self.bytes.extend(kept);
        self.discarded += discarded.len();
    }

    fn take(&mut self, into: &mut ReadBuf<'_>) {
        let (first, _) = self.bytes.as_slices();
        let taken = first.len().min(into.remaining());
        into.put_slice(&first[..taken]);
        self.bytes.drain(..taken);
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        }
    }
}

impl<R: ReceiveHalf, W: Unpin> AsyncRead for WatchedSocket<R, W> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut ahead = self.shared.ahead();
        if !ahead.bytes.is_empty() {
            ahead.take(buf);
            return Poll::Ready(Ok(()));
        }
        loop {
            match ahead.end {
                Some(SocketEnd::Failed(kind)) => return Poll::Ready(Err(kind.into())),
                Some(SocketEnd::Closed) => return Poll::Ready(Ok(())),
                None if ahead.discarded > 0 => return Poll::Ready(Ok(())),
                None => {}
            }
            ready!(self.shared.receiving.poll_ready(cx))?;
            match self.shared.receiving.try_read(buf.initialize_unfilled()) {
                Ok(0) => ahead.end = Some(SocketEnd::Closed),
                Ok(read) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => ahead.end = Some(SocketEnd::Failed(error.kind())),
            }
        }
    }
}

impl<R: ReceiveHalf, W: AsyncWrite + Unpin> AsyncWrite for WatchedSocket<R, W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writing).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writing).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.writing.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writing).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writing).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream, UnixStream};

    use super::*;

    const RULES: WatchRules = WatchRules { pipelined_max: 1000, half_close: HalfClose::Left };

    async fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.expect("connects"), server.expect("accepts").0)
    }

    async fn left<R: ReceiveHalf>(watch: &mut DepartureWatch<R>) -> Departure {
        let left = poll_fn(|cx| watch.poll_left(cx));
        tokio::time::timeout(Duration::from_secs(20), left).await.expect("it leaves")
    }

    /// What was sent before the end is still there for who reads, here through a layer of its own
    /// as TLS would be.
    async fn is_read_on<R: ReceiveHalf, W: Unpin>(socket: WatchedSocket<R, W>, sent: &[u8]) {
        let mut read = vec![];
        BufReader::with_capacity(7, socket).read_to_end(&mut read).await.expect("it ends well");
        assert_eq!(read, sent);
    }

    #[tokio::test]
    async fn every_kind_of_socket_is_seen_to_its_end_and_read_from_its_beginning() {
        let sent = b"the next request, which nobody has read yet";

        let (mut client, server) = tcp().await;
        let (socket, mut watch) = watched(server.into_split(), RULES);
        let generation = watch.client().generation();
        client.write_all(sent).await.expect("sends");
        drop(client);
        generation.admitted();
        assert_eq!(left(&mut watch).await, Departure::Closed);
        is_read_on(socket, sent).await;

        let (mut client, server) = UnixStream::pair().expect("a pair");
        let (socket, mut watch) = watched(server.into_split(), RULES);
        let generation = watch.client().generation();
        client.write_all(sent).await.expect("sends");
        drop(client);
        generation.admitted();
        assert_eq!(left(&mut watch).await, Departure::Closed);
        is_read_on(socket, sent).await;
    }

    /// Nothing is awaited in between, so the runtime has not looked at its sockets.
    #[tokio::test]
    async fn an_end_that_the_runtime_has_not_heard_of_is_seen_all_the_same() {
        let (client, server) = tcp().await;
        let mut client = client.into_std().expect("a socket");
        let (socket, watch) = watched(server.into_split(), RULES);
        let generation = watch.client().generation();
        assert!(!generation.admitted(), "it is there");
        std::io::Write::write_all(&mut client, b"behind").expect("sends");
        client.shutdown(std::net::Shutdown::Write).expect("closes");
        let begun = tokio::time::Instant::now();
        while !generation.admitted() {
            assert!(begun.elapsed() < Duration::from_secs(20), "its end is not seen");
            std::thread::yield_now();
        }
        is_read_on(socket, b"behind").await;
    }

    #[tokio::test]
    async fn a_reset_is_leaving_whatever_is_done_and_whatever_is_unread() {
        for half_close in [HalfClose::Left, HalfClose::Wait] {
            for stage in [ClientStage::Answering, ClientStage::Preparing, ClientStage::Generating] {
                let (mut client, server) = tcp().await;
                let rules = WatchRules { half_close, ..RULES };
                let (_socket, mut watch) = watched(server.into_split(), rules);
                watch.client().enter(stage);
                client.write_all(&[b' '; 3000]).await.expect("sends");
                client.set_zero_linger().expect("a socket option");
                drop(client);
                assert_eq!(left(&mut watch).await, Departure::Reset, "{half_close:?} {stage:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_may_be_a_requests_own_body_waits_for_its_reader_and_is_whole() {
        let body = vec![b'x'; 100_000];
        let (mut client, server) = tcp().await;
        let (mut socket, mut watch) = watched(server.into_split(), RULES);
        let generation = watch.client().generation();
        let sending = {
            let body = body.clone();
            tokio::spawn(async move {
                client.write_all(&body).await.expect("sends");
                client
            })
        };
        // Both are polled in one task, the watch first, as a connection does it.
        let mut read = vec![0; body.len()];
        tokio::select! {
            biased;
            departure = poll_fn(|cx| watch.poll_left(cx)) => panic!("it has not left: {departure:?}"),
            whole = socket.read_exact(&mut read) => whole.expect("it is all there"),
        };
        assert_eq!(read, body);
        assert_eq!(watch.shared.ahead().discarded, 0);
        // From here on it would be pipelined, of which so much is kept.
        let mut client = sending.await.expect("no panic");
        assert!(!generation.admitted());
        client.write_all(&body).await.expect("sends");
        drop(client);
        assert_eq!(left(&mut watch).await, Departure::Closed);
        assert!(watch.has_cut());
        is_read_on(socket, &body[..1000]).await;
    }
}
