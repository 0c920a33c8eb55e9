//! `interlock bench`: measures servers, and compares two measurements.

use std::ffi::OsString;
use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use interlock_bench::{
    Address, Api, BenchPlan, BenchReport, Header, Picture, ProgressDisplay, StartedHost, Storming,
    Target, WorkloadKind,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{BadUsage, note, say};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = EXAMPLES,
)]
pub(crate) struct Bench {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Put two JSON reports side by side
    ///
    /// The comparison has what both reports measured, storms included: the same workload, concurrency
    /// and target. If each report has a single target, their names may differ. `~` marks figures whose
    /// iterations overlap.
    Compare {
        /// The earlier report
        #[arg(value_name = "A.json")]
        a: PathBuf,
        /// The report that is compared with it
        #[arg(value_name = "B.json")]
        b: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// Measure this server with an OpenAI-compatible API; can be repeated
    ///
    /// For example vllm-mlx, mlx_lm.server, llama.cpp's server, vLLM or Interlock. NAME= is the
    /// server's name in the report; /v1 is added if the URL has no path. #MODEL is the model that this
    /// server's requests name, if it differs from --model. Without --url, this host is started.
    #[arg(long, value_name = "[NAME=]URL[#MODEL]")]
    url: Vec<Address>,

    /// Without --url: start this host once for each of these values of engine.mode
    ///
    /// The hosts run at the same time, so that requests can go to each in turn: each host holds its own
    /// copy of the model in memory. If that is too much, measure one mode after the other with --json
    /// and use `interlock bench compare`.
    #[arg(long, value_name = "MODE,...", value_delimiter = ',', default_value = "simple,batched")]
    #[arg(conflicts_with = "url")]
    modes: Vec<String>,

    /// The model to serve, or with --url the name to put in requests
    ///
    /// By default the configured model (see `interlock serve`); with --url, the first that the
    /// server lists.
    #[arg(long, value_name = "REF")]
    model: Option<String>,

    /// A setting for the hosts that are started, as in `interlock serve`; can be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", conflicts_with = "url")]
    set: Vec<String>,

    /// Workloads to run, separated by commas: short, long-prompt, shared-prefix, mixed, storm
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "short")]
    workload: Vec<WorkloadKind>,

    /// Batch sizes to measure: how many requests to send at once
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,2,4,8")]
    concurrency: Vec<NonZeroU32>,

    /// How often to measure each batch
    #[arg(long, value_name = "N", default_value = "5")]
    iterations: NonZeroU32,

    /// How often to send each batch before it is measured
    #[arg(long, value_name = "N", default_value = "1")]
    warmup: u32,

    /// Tokens in an answer
    #[arg(long, value_name = "N", default_value = "128")]
    max_tokens: NonZeroU32,

    /// Approximate number of tokens in a long prompt or a shared prefix
    #[arg(long, value_name = "N", default_value = "1024")]
    prompt_tokens: NonZeroU32,

    /// Longest time that one request may take
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// The endpoint to call: chat, completions or responses
    #[arg(long, default_value = "chat")]
    api: Api,

    /// Do not stream answers; the time to the first token is then not measured
    #[arg(long)]
    no_stream: bool,

    /// Leave out ignore_eos and min_tokens, which make all answers equally long
    ///
    /// This is for servers that refuse fields which OpenAI does not have. Answers may then be shorter;
    /// the report says how many were.
    #[arg(long)]
    no_ignore_eos: bool,

    /// A header for every request to --url, such as "authorization: Bearer ..."; can be repeated
    #[arg(long, value_name = "NAME: VALUE", requires = "url")]
    header: Vec<Header>,

    /// Storm: number of requests, as a multiple of --concurrency
    #[arg(long, value_name = "N", default_value = "10")]
    storm_rounds: NonZeroU32,

    /// Storm: keep sending new requests for this long, instead of a number of rounds
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    #[arg(conflicts_with = "storm_rounds")]
    storm_for: Option<Duration>,

    /// Storm: percentage of clients that disconnect, before the first token or during the answer
    #[arg(long, value_name = "PERCENT", default_value = "50")]
    #[arg(value_parser = clap::value_parser!(u8).range(..=100))]
    storm_leave: u8,

    /// Random seed for prompts and storms; the same seed sends the same requests
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,

    /// Write the report as JSON, for `interlock bench compare`
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,

    /// Plot all targets, to FILE.svg or FILE.html
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  interlock bench                                     this host in each mode, with the default model
  interlock bench --model hf:Qwen/Qwen3-0.6B --json a.json --plot a.svg
  interlock bench --url ours=http://127.0.0.1:8080 --url vllm=http://127.0.0.1:8000
  interlock bench --modes simple --workload long-prompt,shared-prefix --prompt-tokens 2000
  interlock bench --api responses --workload short,mixed --prompt-tokens 32
  interlock bench --modes batched --workload storm --concurrency 64
  interlock bench --api responses --no-stream --workload storm --concurrency 8 --storm-for 10m
  interlock bench compare a.json b.json";

/// The beginning of `interlock bench --help`.
pub(crate) const ABOUT: &str = "\
Measure servers side by side, and compare measurements.

Without --url, this host is started once in each mode, and stopped afterwards. The targets take
turns, batch by batch, so that other load on the machine affects all of them alike. A batch is as
many requests as --concurrency says, sent at once, each over a connection of its own that was opened
before the clock started. Prompts are made from --seed, and are the same for all targets.

Workloads:
  short          a few dozen tokens of prompt: nearly all time is decoding
  long-prompt    --prompt-tokens each, all different: nearly all time is prefill
  shared-prefix  the same --prompt-tokens first, then a short question
  mixed          prompts up to --prompt-tokens, answers up to --max-tokens, of all lengths
  storm          clients disconnect; does the server still answer afterwards, and is it idle?

Exit status: 0 when every request was answered, 1 when any failed (the report says which), 2 when
the command line is wrong.";

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Some(BenchCommand::Compare { a, b }) => compare(&a, &b),
            None => self.run.run(),
        }
    }
}

/// Longest report that is read: one of a long storm has some MiB.
const REPORT_BYTES_MAX: u64 = 256 << 20;

fn compare(a: &Path, b: &Path) -> anyhow::Result<()> {
    let read = |path: &Path| {
        let json = interlock_files::read_text(path, REPORT_BYTES_MAX);
        let json = json.with_context(|| format!("cannot read {}", path.display()))?;
        BenchReport::parse(&json).with_context(|| path.display().to_string())
    };
    say(&interlock_bench::compare(&read(a)?, &read(b)?)?.to_string())
}

impl Run {
    fn run(self) -> anyhow::Result<()> {
        let picture = self.files_can_be_written()?;
        let most = self.most_at_once();
        // Before hosts are started: they inherit it, and have as many connections.
        interlock_bench::room_for_connections(most.into())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let report = runtime.block_on(self.report())?;

        say(&report.to_string())?;
        if let Some(path) = &self.json {
            write(path, &report.to_json())?;
        }
        if let (Some(path), Some(picture)) = (&self.plot, picture) {
            match interlock_bench::plot(&report, picture) {
                Some(drawn) => write(path, &drawn)?,
                None => note("a storm has no plot: nothing was drawn"),
            }
        }
        match report.failures() {
            0 => Ok(()),
            failures => bail!("{failures} failures; the report above says which"),
        }
    }

    fn most_at_once(&self) -> u32 {
        self.concurrency.iter().map(|at_once| at_once.get()).max().unwrap_or(1)
    }

    /// Found out now, not after an hour of measuring. Leaves what is in the files.
    fn files_can_be_written(&self) -> anyhow::Result<Option<Picture>> {
        let picture = self.plot.as_deref().map(Picture::named).transpose();
        let picture = picture.map_err(|error| BadUsage(format!("--plot: {error}")))?;
        for path in self.json.iter().chain(&self.plot) {
            let opened = fs::OpenOptions::new().create(true).append(true).open(path);
            opened.with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(picture)
    }

    fn plan(&self) -> BenchPlan {
        BenchPlan {
            workloads: self.workload.clone(),
            concurrency: self.concurrency.clone(),
            iterations: self.iterations,
            warmup: self.warmup,
            max_tokens: self.max_tokens,
            prompt_tokens: self.prompt_tokens,
            api: self.api,
            stream: !self.no_stream,
            ignore_eos: !self.no_ignore_eos,
            timeout: self.timeout,
            seed: self.seed,
            storm: Storming {
                rounds: self.storm_rounds,
                leave_percent: self.storm_leave,
                time: self.storm_for,
                settle: SETTLE_MAX,
            },
        }
    }

    /// Ends early, and stops the hosts, when told to.
    async fn report(&self) -> anyhow::Result<BenchReport> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hosts = Vec::new();
        let report = tokio::select! {
            report = self.measure(&mut hosts) => report,
            _ = terminate.recv() => Err(anyhow::anyhow!("stopped by a signal, without a report")),
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted, without a report")),
        };
        for host in hosts {
            host.stop().await;
        }
        report
    }

    async fn measure(&self, hosts: &mut Vec<StartedHost>) -> anyhow::Result<BenchReport> {
        let targets =
            if self.url.is_empty() { self.start(hosts).await? } else { self.meet().await? };
        let plan = self.plan();
        interlock_bench::run(plan, targets, ProgressDisplay::Shown).await.map_err(|unusable| {
            let hint = unusable.may_be_for_extensions() && !self.no_ignore_eos;
            let error = anyhow::Error::new(unusable);
            if hint {
                error.context("try --no-ignore-eos: the server may refuse fields it does not know")
            } else {
                error
            }
        })
    }

    async fn meet(&self) -> anyhow::Result<Vec<Target>> {
        let mut targets = Vec::new();
        for address in &self.url {
            let name = address.name.clone();
            let met = Target::meet(address.clone(), self.model.clone(), &self.header).await;
            targets.push(met.with_context(|| format!("{name} does not list its models"))?);
        }
        Ok(targets)
    }

    /// This very program, once for each mode. What is started is in `hosts`, whatever happens.
    async fn start(&self, hosts: &mut Vec<StartedHost>) -> anyhow::Result<Vec<Target>> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut targets = Vec::new();
        for mode in &self.modes {
            note(&format!("starting the host with engine.mode={mode}"));
            hosts.push(StartedHost::start(mode, &program, &self.serve(mode))?);
            let host = hosts.last_mut().expect("it was pushed a moment ago");
            targets.push(host.target(env!("CARGO_PKG_VERSION")).await?);
        }
        Ok(targets)
    }

    fn serve(&self, mode: &str) -> Vec<OsString> {
        let most = self.most_at_once();
        let mut sets = vec![
            format!("engine.mode={mode}"),
            // A line for each request is not what is measured.
            "log.filter=warn".to_owned(),
            // The defaults, or more if the plan needs it: a refusal would measure nothing.
            format!("waiting.requests_max={}", most.max(256)),
            format!("server.connections_max={}", most.saturating_add(SPARE).max(1024)),
        ];
        // Last, so that they win.
        sets.extend(self.set.iter().cloned());
        let mut arguments: Vec<OsString> =
            ["serve", "--bind", "127.0.0.1:0"].map(OsString::from).into();
        if let Some(model) = &self.model {
            arguments.extend(["--model".into(), model.into()]);
        }
        arguments.extend(sets.into_iter().flat_map(|set| ["--set".into(), set.into()]));
        arguments
    }
}

/// A healthy host is idle one pass after its last client left; no pass takes longer.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// Connections beside those that generate, and those of the last batch that are about to close.
const SPARE: u32 = 64;

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    note(&format!("wrote {}", path.display()));
    Ok(())
}
