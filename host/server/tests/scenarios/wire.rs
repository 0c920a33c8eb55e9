//! HTTP as bytes, so that a test can send what no client library would.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use crate::rig::within;

/// A connection to the server. Dropping it closes it.
pub(crate) struct Connection(BufReader<TcpStream>);

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.body))
    }

    /// The error's code.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().expect("an error with a code").to_owned()
    }

    /// The data of each server-sent event.
    pub(crate) fn events(&self) -> Vec<&str> {
        self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
    }
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self(BufReader::new(within(TcpStream::connect(address)).await.expect("connects")))
    }

    /// One whose system takes few bytes before its program reads them.
    pub(crate) async fn narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        Self(BufReader::new(within(socket.connect(address)).await.expect("connects")))
    }

    /// One from another address of this machine.
    pub(crate) async fn open_from(from: [u8; 4], address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from((from, 0))).expect("an address of this machine");
        Self(BufReader::new(within(socket.connect(address)).await.expect("connects")))
    }

    /// Sends one request, after which the server is to close the connection.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) {
        self.send_to("localhost", method, path, headers, body).await;
    }

    /// The same, to a host of this name.
    pub(crate) async fn send_to(
        &mut self,
        host: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let length = body.len();
        head.push_str(&format!("connection: close\r\ncontent-length: {length}\r\n\r\n"));
        self.raw((head + body).as_bytes()).await;
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        within(self.0.get_mut().write_all(bytes)).await.expect("sends");
    }

    /// Closes the sending half.
    pub(crate) async fn half_close(&mut self) {
        within(self.0.get_mut().shutdown()).await.expect("closes");
    }

    /// Resets the connection.
    pub(crate) fn reset(self) {
        self.0.get_ref().set_zero_linger().expect("a socket option");
    }

    /// Waits until the other side closes, or breaks off.
    pub(crate) async fn closed(&mut self) {
        let mut rest = Vec::new();
        let _broken = self.0.read_to_end(&mut rest).await;
    }

    /// The next line, without its end.
    pub(crate) async fn line(&mut self) -> String {
        let mut line = String::new();
        within(self.0.read_line(&mut line)).await.expect("reads");
        line.trim_end().to_owned()
    }

    /// Reads lines up to one that contains this.
    pub(crate) async fn until(&mut self, part: &str) -> String {
        within(async {
            loop {
                let mut line = String::new();
                let read = self.0.read_line(&mut line).await.expect("reads");
                assert!(read > 0, "the connection closed before {part:?} came");
                if line.contains(part) {
                    return line;
                }
            }
        })
        .await
    }

    /// The next so many bytes.
    pub(crate) async fn exactly(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        within(self.0.read_exact(&mut bytes)).await.expect("reads");
        String::from_utf8(bytes).expect("UTF-8")
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn rest(&mut self) -> String {
        let mut rest = String::new();
        within(self.0.read_to_string(&mut rest)).await.expect("reads");
        rest
    }

    /// The whole answer.
    pub(crate) async fn answer(&mut self) -> Answer {
        let status_line = self.line().await;
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status in {status_line:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut body = self.rest().await;
        if headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
            body = unchunk(&body);
        }
        Answer { status, headers, body }
    }
}

fn unchunk(mut chunked: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = chunked.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        if size == 0 {
            return whole;
        }
        whole.push_str(&rest[..size]);
        chunked = &rest[size + 2..];
    }
    panic!("the stream broke off after {whole:?}")
}
