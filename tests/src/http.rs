//! The server in front of a [`Rig`], and connections to it that really close.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use interlock_engine::{Mode, PrefixSharing};
use interlock_policy_chain::{LimitsConfig, Policies};
use interlock_request::{ModelId, SamplingDefaults};
use interlock_server::{
    DetachedConfig, PrefixKeys, ServedModel, ServerConfig, ServerMetrics, ServerParts, WorkConfig,
    WorkMetrics, WorkPool, serve,
};
use interlock_text::{TextModel, TextParts, TokenizerSource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::{Rig, within};

/// A served rig. Its model is called `sim`.
pub struct Served {
    /// The engine behind it.
    pub rig: Rig,
    address: SocketAddr,
    server: JoinHandle<()>,
}

/// A request on its way over a connection of its own.
pub struct Call(TcpStream);

/// How a client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// It closes its socket.
    Closes,
    /// It resets the connection.
    Resets,
    /// It closes its sending half, and reads on.
    HalfCloses,
}

impl Leaving {
    /// All ways to leave.
    pub const ALL: [Self; 3] = [Self::Closes, Self::Resets, Self::HalfCloses];
}

impl Served {
    /// Serves a rig with room for `seats` waiting requests.
    pub async fn start(mode: Mode, seats: usize) -> Self {
        Self::of(Rig::start(mode, seats).await).await
    }

    /// Serves this rig.
    pub async fn of(rig: Rig) -> Self {
        Self::with(rig, ServerConfig::default()).await
    }

    /// Serves this rig under these limits.
    pub async fn with(rig: Rig, config: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let text = TextModel::new(TextParts {
            tokenizer: TokenizerSource::Sim,
            chat_template: None,
            special_tokens: Default::default(),
            eos: vec![interlock_sim::SimModel::EOS],
        })
        .expect("the simulated text model");
        let parts = ServerParts {
            config,
            detached: DetachedConfig::default(),
            models: vec![ServedModel {
                id: ModelId::new("sim"),
                aliases: vec![],
                sampling: SamplingDefaults::OPENAI,
                text: Arc::new(OnceLock::from(Arc::new(text))),
                engine: rig.engine.clone(),
            }],
            policies: Arc::new(Policies::new(
                vec![],
                LimitsConfig::default().ceilings(),
                rig.policies.clone(),
            )),
            work: WorkPool::start(&WorkConfig::default(), WorkMetrics::register(&rig.registry))
                .expect("there are threads"),
            prefix_keys: PrefixKeys::new(PrefixSharing::default()),
            in_flight: interlock_server::InFlight::default(),
            wall: Arc::new(interlock_server::system_time),
            metrics: ServerMetrics::register(&rig.registry),
            registry: Some(Arc::clone(&rig.registry)),
        };
        let server = tokio::spawn(async move {
            serve(listener, parts, std::future::pending()).await;
        });
        Self { rig, address, server }
    }

    /// Sends a POST under this request id; `body` is JSON.
    pub async fn post(&self, path: &str, id: &str, body: &str) -> Call {
        let mut connection = within(TcpStream::connect(self.address)).await.expect("connects");
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nx-request-id: {id}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        within(connection.write_all(request.as_bytes())).await.expect("sends");
        Call(connection)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Call {
    /// Everything the server says, head and body, until it closes the connection.
    pub async fn answer(mut self) -> String {
        let mut answer = Vec::new();
        within(self.0.read_to_end(&mut answer)).await.expect("reads");
        String::from_utf8(answer).expect("UTF-8")
    }

    /// Whatever is still said to who has left: nothing, or less than an answer.
    pub async fn answer_if_any(mut self) -> String {
        let mut answer = Vec::new();
        // It may be cut off in the middle.
        let _ended = within(self.0.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Reads so many bytes of the answer, or all of it if that is less.
    pub async fn read(&mut self, bytes: usize) {
        let mut head = (&mut self.0).take(bytes as u64);
        within(head.read_to_end(&mut Vec::new())).await.expect("reads");
    }

    /// Sends more.
    pub async fn send(&mut self, bytes: &[u8]) {
        within(self.0.write_all(bytes)).await.expect("sends");
    }

    /// The client leaves: the connection really closes.
    pub fn leave(self) {
        drop(self);
    }

    /// The client leaves in this way; what is left of it.
    pub async fn leave_by(mut self, leaving: Leaving) -> Option<Self> {
        match leaving {
            Leaving::Closes => return None,
            Leaving::Resets => {
                self.0.set_zero_linger().expect("a socket option");
                return None;
            }
            Leaving::HalfCloses => within(self.0.shutdown()).await.expect("closes"),
        }
        Some(self)
    }
}
