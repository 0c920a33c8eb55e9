//! The binary `interlock`: flags, wiring, run, stop.
//!
//! The only crate that knows everyone, the only one that talks to a terminal, and the only one
//! where an error may be of any kind: from here it only goes to a person.
//!
//! # Exit status
//!
//! 0 when all went well, 1 when something failed at run time, 2 when the command line or the
//! configuration is wrong or names what cannot be used (a policy, a model, a path, an address), 3 when
//! the device that computes has failed for good: its caches were lost and could not be made anew.
//! Whoever supervises the process starts it again after 3, and need not after 2.

mod admin;
mod bench;
mod config;
mod descriptors;
mod listeners;
mod log;
mod models;
mod policies;
mod policy;
mod preflight;
mod serve;
mod settings;
mod stop;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand};
use interlock_request::{Secret, without_login};

/// Serves large language models on Metal, CUDA or a CPU, under policies that you write.
#[derive(Debug, Parser)]
#[command(name = "interlock", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model over HTTP, with the OpenAI API
    Serve(serve::Serve),
    /// Measure servers side by side, and compare measurements
    #[command(long_about = bench::ABOUT)]
    Bench(Box<bench::Bench>),
    /// Show, check and explain the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Fetch, list and describe models
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// Create, check, test, simulate and measure policies
    #[command(subcommand, after_help = policy::EXAMPLES)]
    Policy(policy::PolicyCommand),
    /// List, swap and roll back the policies of a running host
    #[command(subcommand, after_help = admin::POLICIES_EXAMPLES)]
    Policies(admin::PoliciesCommand),
    /// List and cancel the requests that a running host has in flight
    #[command(subcommand, after_help = admin::REQUESTS_EXAMPLES)]
    Requests(admin::RequestsCommand),
}

const EXAMPLES: &str = "\
Examples:
  interlock serve                                   serve a small model on 127.0.0.1:8080
  interlock serve --model hf:Qwen/Qwen3-0.6B        a model from the Hugging Face hub
  interlock bench --url http://127.0.0.1:8080       measure how fast a server answers
  interlock config check interlock.toml             report every problem at once
  interlock models list                             list the models on this machine
  interlock policy new night-shift                  create a policy of your own
  interlock policies swap guard new.wasm            replace a policy of a running host
  interlock requests list                           list what a running host is doing";

fn main() -> ExitCode {
    for (key, value) in interlock_models::ENVIRONMENT {
        if std::env::var_os(key).is_none() {
            // SAFETY: this is the first thing the process does, so no other thread reads it.
            unsafe { std::env::set_var(key, value) };
        }
    }
    // A file that may not grow any more is a full disk, which those who write say, and no reason to
    // end. What we start inherits that and sees an error as well.
    // SAFETY: sets a disposition before there are other threads; no handler is involved.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let code = run();
    log::flush();
    code
}

fn run() -> ExitCode {
    if let Some(problem) = settings::unreadable_set(std::env::args_os()) {
        note(&problem);
        return ExitCode::from(2);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(error),
    };
    let ended = match cli.command {
        Command::Serve(serve) => serve.run(),
        Command::Bench(bench) => bench.run(),
        Command::Config(command) => command.run(),
        Command::Models(command) => command.run(),
        Command::Policy(command) => command.run(),
        Command::Policies(command) => command.run(),
        Command::Requests(command) => command.run(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let problems = error.downcast_ref::<interlock_config::Problems>();
            let stopped = error.downcast_ref::<serve::EngineStopped>();
            let status = match problems.is_some() || error.is::<BadUsage>() {
                true => 2,
                false => stopped.map_or(1, serve::EngineStopped::status),
            };
            let problems = problems.map_or(&[][..], |problems| &problems.0);
            log::last(&format!("{error:#}"), problems, status);
            ExitCode::from(status)
        }
    }
}

/// The exit status when the device has failed.
const DEVICE_FAILED: u8 = 3;
/// What clap has to say: help, the version, or what is wrong with the command line.
fn usage(mut error: clap::Error) -> ExitCode {
    if error.use_stderr() {
        // It quotes the value that it could not read, and that may be a secret.
        let argument = error.get(ContextKind::InvalidArg).map(ToString::to_string);
        let value = error.get(ContextKind::InvalidValue).map(ToString::to_string);
        if argument.is_some_and(|it| may_be_secret(&it, value.as_deref().unwrap_or_default())) {
            let mask = ContextValue::String(Secret::MASK.to_owned());
            error.insert(ContextKind::InvalidValue, mask);
        } else if let Some(value) = value.filter(|value| has_login(value)) {
            let shown = ContextValue::String(without_login(&value));
            error.insert(ContextKind::InvalidValue, shown);
        }
        let text = error.render();
        let text = if log::is_coloured() { text.ansi().to_string() } else { text.to_string() };
        log::tell(&text);
    } else {
        // A reader that has had enough is not a failure.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Does what somebody took for a URL, a model or a grant have a login? A revision has an `@` as well,
/// but no colon before it.
fn has_login(value: &str) -> bool {
    let behind = value.strip_prefix("hf:").unwrap_or(value);
    behind.rsplit_once('@').is_some_and(|(before, _)| before.contains(':'))
}

/// May a value of this argument be a secret? A file's name, which settings may be, is none.
fn may_be_secret(argument: &str, value: &str) -> bool {
    match argument.starts_with("--settings") {
        true => value.trim_start().starts_with('{'),
        false => argument.starts_with("--header") || argument.starts_with("--set"),
    }
}

/// Something that the caller wrote, and neither clap nor the configuration could see was wrong.
#[derive(Debug)]
struct BadUsage(String);

impl std::fmt::Display for BadUsage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadUsage {}

/// Writes to stdout, and waits for who reads it. A reader that has had enough (`| head`) is not a
/// failure.
fn say(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ => Ok(()),
    }
}

/// Writes a remark to stderr, where it is not in the way of what a script reads.
fn note(text: &str) {
    log::tell(&format!("interlock: {text}\n"));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }
}
