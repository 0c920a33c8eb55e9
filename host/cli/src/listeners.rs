//! The ports that are listened on, opened before anything that takes long, so that one that cannot
//! be opened is said at once: by its key, with what to do.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use anyhow::anyhow;
use interlock_config::{Effective, Problems};
use tokio::net::TcpListener;

/// All listeners of a host.
pub(crate) struct Listeners {
    pub(crate) clients: TcpListener,
    pub(crate) admin: Option<TcpListener>,
    pub(crate) metrics: Option<TcpListener>,
}

impl Listeners {
    /// Opens those that are configured.
    ///
    /// # Errors
    ///
    /// When one cannot be opened: as a problem of the configuration, unless it may be otherwise when
    /// it is tried again.
    pub(crate) fn open(effective: &Effective) -> anyhow::Result<Self> {
        let config = &effective.config;
        let open = |key, bind| {
            open(bind).map_err(|error| {
                let text = not_listening(key, bind, &error);
                match may_pass(&error) {
                    true => anyhow!(text),
                    false => Problems(vec![effective.problem(key, text)]).into(),
                }
            })
        };
        let optional = |key, bind: Option<SocketAddr>| bind.map(|bind| open(key, bind)).transpose();
        Ok(Self {
            clients: open("server.bind", config.server.bind)?,
            admin: optional("admin.bind", config.admin.bind)?,
            metrics: optional("metrics.bind", config.metrics.bind)?,
        })
    }
}

fn open(bind: SocketAddr) -> io::Result<TcpListener> {
    interlock_server::listen(bind)
}

/// Whether the error may be gone at the next attempt, with the same configuration.
pub(crate) fn may_pass(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrInUse
}

/// The message that an address cannot be listened on: key, value, cause and remedy.
pub(crate) fn not_listening(key: &str, bind: SocketAddr, error: &io::Error) -> String {
    let (ip, port) = (bind.ip(), bind.port());
    let (why, cure) = match error.kind() {
        ErrorKind::AddrInUse => (
            "another program listens there".to_owned(),
            format!(
                "stop it, or write another port; {} takes any free one",
                SocketAddr::new(ip, 0)
            ),
        ),
        ErrorKind::PermissionDenied => (
            format!("this user may not open port {port}"),
            "write a port of 1024 or more, or grant the right to open it (CAP_NET_BIND_SERVICE)"
                .to_owned(),
        ),
        ErrorKind::AddrNotAvailable => (
            format!("this machine has no address {ip}"),
            format!(
                "write one that it has, 127.0.0.1:{port} for this machine alone, or \
                 0.0.0.0:{port} for all its addresses"
            ),
        ),
        _ => (error.to_string(), format!("127.0.0.1:{port} is an address of every machine")),
    };
    format!("{key}: cannot listen on {bind}: {why}; {cure}")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What is said of an address that cannot be listened on.
    async fn told(bind: SocketAddr) -> String {
        not_listening("metrics.bind", bind, &open(bind).expect_err("it cannot be opened"))
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_named_with_its_key_and_a_cure() {
        // No machine has an address of those that are for documents.
        let foreign = "192.0.2.1:8185".parse().expect("an address");
        assert_eq!(
            told(foreign).await,
            "metrics.bind: cannot listen on 192.0.2.1:8185: this machine has no address \
             192.0.2.1; write one that it has, 127.0.0.1:8185 for this machine alone, or \
             0.0.0.0:8185 for all its addresses"
        );
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_said_to_be_with_another_to_take() {
        let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
        let bind = holder.local_addr().expect("an address");
        assert_eq!(
            told(bind).await,
            format!(
                "metrics.bind: cannot listen on {bind}: another program listens there; stop \
                 it, or write another port; 127.0.0.1:0 takes any free one"
            )
        );
    }

    #[test]
    fn a_port_that_needs_a_right_says_which() {
        // Whoever runs the tests may have it.
        let bind = "127.0.0.1:80".parse().expect("an address");
        let told = not_listening("server.bind", bind, &ErrorKind::PermissionDenied.into());
        assert!(told.contains("this user may not open port 80"), "{told}");
        assert!(told.contains("1024") && told.contains("CAP_NET_BIND_SERVICE"), "{told}");
    }
}
