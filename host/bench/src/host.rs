//! A host that we start ourselves, ask, and stop.
//!
//! # Invariants
//!
//! - A host does not outlive its [`StartedHost`]: [`StartedHost::stop`] ends it in order, dropping kills it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::failure::RequestFailure;
use crate::target::{Address, Target};

/// Longest time to start: a model of tens of gigabytes is pulled and loaded, kernels compiled.
const START_MAX: Duration = Duration::from_secs(30 * 60);
/// How often it is asked whether it is ready.
const START_POLL: Duration = Duration::from_millis(50);
/// Longest time to stop: the host itself gives up on a stuck device after a minute.
const STOP_MAX: Duration = Duration::from_secs(75);
/// How much of what it said last is worth repeating.
const LAST_LINES: usize = 12;

/// The text before the address in the line that a host prints when it listens.
const LISTENING: &str = "interlock listening on ";

/// A host that was started, ready or not.
pub struct StartedHost {
    name: String,
    child: Child,
    hears_where: oneshot::Receiver<Address>,
    last_words: JoinHandle<VecDeque<String>>,
}

/// Why a host could not be started.
#[derive(Debug, thiserror::Error)]
pub enum HostStartError {
    /// The process could not be started.
    #[error("cannot start {program}: {error}")]
    Spawn {
        /// The program that was to be started.
        program: String,
        /// The system's error.
        error: std::io::Error,
    },
    /// The host ended before it was ready.
    #[error("the host {name:?} ended before it was ready ({status}); it said:\n{said}")]
    Exited {
        /// The name that the host would have in a report.
        name: String,
        /// The exit status of the host.
        status: ExitStatus,
        /// The last lines that the host wrote to stderr.
        said: String,
    },
    /// The host neither became ready nor ended in time.
    #[error("the host {name:?} was not ready after {START_MAX:?}")]
    NotReady {
        /// The name that the host would have in a report.
        name: String,
    },
    /// The host is ready, but does not list its model.
    #[error("the host {name:?} is ready, but does not list its model: {failure}")]
    NoAnswer {
        /// The name that the host would have in a report.
        name: String,
        /// The failure of the request for the list.
        failure: RequestFailure,
    },
}

impl StartedHost {
    /// Starts `program` with these arguments, which bind it to any free port.
    ///
    /// # Errors
    ///
    /// When there is no such program, or no room for it.
    pub fn start(
        name: &str,
        program: &Path,
        arguments: &[OsString],
    ) -> Result<Self, HostStartError> {
        let spawned = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = spawned.map_err(|error| HostStartError::Spawn {
            program: program.display().to_string(),
            error,
        })?;
        let stdout = child.stdout.take().expect("it was piped a moment ago");
        let stderr = child.stderr.take().expect("it was piped a moment ago");
        let (said_where, hears_where) = oneshot::channel();
        // Both read to the end, so that the host never waits for us to; they end with it.
        tokio::spawn(listen(stdout, said_where));
        let last_words = tokio::spawn(last_lines(stderr));
        Ok(Self { name: name.to_owned(), child, hears_where, last_words })
    }

    /// Waits until it is ready, and makes a target of it.
    ///
    /// # Errors
    ///
    /// When it ends instead, takes for ever, or does not list its model.
    pub async fn target(&mut self, version: &str) -> Result<Target, HostStartError> {
        let address = tokio::select! {
            ready = tokio::time::timeout(START_MAX, ready(&mut self.hears_where)) => ready.ok(),
            status = self.child.wait() => return Err(self.exited(status).await),
        };
        let name = || self.name.clone();
        let address = address.ok_or_else(|| HostStartError::NotReady { name: name() })?;
        let met = Target::meet(Address { name: name(), ..address }, None, &[]).await;
        let target = met.map_err(|failure| HostStartError::NoAnswer { name: name(), failure })?;
        Ok(target.of_process(self.child.id(), version))
    }

    async fn exited(&mut self, status: std::io::Result<ExitStatus>) -> HostStartError {
        let name = self.name.clone();
        match status {
            Ok(status) => {
                let said = (&mut self.last_words).await.unwrap_or_default();
                let said: Vec<String> = said.iter().map(|line| format!("  {line}")).collect();
                HostStartError::Exited { name, status, said: said.join("\n") }
            }
            Err(error) => HostStartError::Spawn { program: name, error },
        }
    }

    /// Tells it to stop, and waits until it has; kills it if it does not.
    pub async fn stop(mut self) {
        if let Some(id) = self.child.id() {
            terminate(id);
        }
        if tokio::time::timeout(STOP_MAX, self.child.wait()).await.is_err() {
            // It cannot be killed only if it is gone.
            let _ = self.child.kill().await;
        }
    }
}

fn terminate(id: u32) {
    use rustix::process::{Pid, Signal, kill_process};

    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It is a child that has not been waited for, so the number is its; it may have ended.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// The address of a host, once the host is ready. Waits for ever if the host ends before it prints one.
async fn ready(hears_where: &mut oneshot::Receiver<Address>) -> Address {
    let Ok(address) = hears_where.await else { return std::future::pending().await };
    let host = Target::unmet(address.clone());
    while host.page("/health/ready").await.is_err() {
        tokio::time::sleep(START_POLL).await;
    }
    address
}

/// Reads what the host prints, and hands on the address.
async fn listen(stdout: impl AsyncRead + Unpin, said_where: oneshot::Sender<Address>) {
    let mut lines = BufReader::new(stdout).lines();
    let mut said_where = Some(said_where);
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(address) = address_in(&line)
            && let Some(said_where) = said_where.take()
        {
            // Nobody hears it when the start was given up.
            let _ = said_where.send(address);
        }
    }
}

fn address_in(line: &str) -> Option<Address> {
    let url = line.strip_prefix(LISTENING)?.split(',').next()?;
    url.trim().parse().ok()
}

async fn last_lines(stderr: impl AsyncRead + Unpin) -> VecDeque<String> {
    let mut lines = BufReader::new(stderr).lines();
    let mut last = VecDeque::with_capacity(LAST_LINES);
    while let Ok(Some(line)) = lines.next_line().await {
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn start(script: &str) -> Result<Target, HostStartError> {
        let arguments = ["-c".into(), script.into()];
        StartedHost::start("it", Path::new("sh"), &arguments)?.target("0").await
    }

    #[test]
    fn the_address_is_on_the_line_that_a_host_prints() {
        let line = "interlock listening on http://127.0.0.1:4711, model sim, policies: guard";
        let address = address_in(line).expect("is there");
        assert_eq!(address.authority, "127.0.0.1:4711");
        assert_eq!(address_in("listening"), None);
    }

    #[tokio::test]
    async fn a_host_that_ends_early_is_quoted() {
        let script = "for i in $(seq 1 20); do echo \"line $i\" >&2; done; exit 3";
        let failed = start(script).await.expect_err("it ended").to_string();
        assert!(failed.contains("\"it\" ended before it was ready (exit status: 3)"), "{failed}");
        assert!(failed.contains("  line 20") && failed.contains("  line 9\n"), "{failed}");
        assert!(!failed.contains("line 8\n"), "{failed}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let failed = StartedHost::start("it", Path::new("/no/such/program"), &[]);
        let failed = failed.err().expect("it is not there").to_string();
        assert!(failed.contains("/no/such/program"), "{failed}");
    }
}
