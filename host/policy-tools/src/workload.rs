//! `workload.toml`: a day's traffic as a few numbers.
//!
//! ```toml
//! duration = "60s"                    # clients come for so long; then those inside finish
//! slo = { first_token = "1s", inter_token = "100ms" }
//!
//! [[model]]
//! name = "sim"
//! settings = "decode=20ms,row=1ms,prefill=200us,stop=0"
//! stall = { chance = 0.001, time = "2s" }        # of each pass
//! fail = 0.0005                                  # likewise
//!
//! [[tenant]]
//! name = "acme"
//! rate = 4.0                                     # requests a second, by chance (Poisson)
//! burst = { every = "20s", size = 30 }           # and so many at once
//! prompt = { median = 200, sigma = 0.8, max = 3000 }    # tokens
//! output = { min = 20, max = 300 }
//! leave = { chance = 0.1, after = { min = 0, max = 100 } }   # with the k-th token
//! headers = { authorization = "Bearer acme-key" }
//!
//! [[tenant]]
//! name = "nightly"
//! clients = 8                                    # each asks again when it has its answer
//! think = "500ms"
//! prompt = 1500
//! output = 400
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::rng::Rng;

/// All of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// How long clients come.
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
    /// Most requests in all; no more come after that.
    #[serde(default = "many")]
    pub requests: u64,
    /// When an answer was good.
    #[serde(default)]
    pub slo: Slo,
    /// What is served.
    #[serde(rename = "model")]
    pub models: Vec<WorkloadModel>,
    /// The tenants that send requests.
    #[serde(rename = "tenant")]
    pub tenants: Vec<Tenant>,
}

fn many() -> u64 {
    1_000_000
}

/// When an answer was good: what goodput counts.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Slo {
    /// Longest time to the first token.
    #[serde(with = "humantime_serde")]
    pub first_token: Duration,
    /// Longest time between tokens, the mean of a request.
    #[serde(with = "humantime_serde")]
    pub inter_token: Duration,
}

impl Default for Slo {
    fn default() -> Self {
        Self { first_token: Duration::from_secs(2), inter_token: Duration::from_millis(200) }
    }
}

/// A simulated model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadModel {
    /// What it is called.
    pub name: String,
    /// And what else.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// How it behaves: what stands after `sim:`.
    #[serde(default)]
    pub settings: String,
    /// Passes that take longer.
    pub stall: Option<Stall>,
    /// The chance of each pass to fail.
    #[serde(default)]
    pub fail: f64,
}

/// Passes that take longer than they should.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stall {
    /// The chance of each pass.
    pub chance: f64,
    /// By how much longer.
    #[serde(with = "humantime_serde")]
    pub time: Duration,
}

/// Someone who asks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// What the report calls it.
    pub name: String,
    /// Requests a second, each when it likes.
    #[serde(default)]
    pub rate: f64,
    /// And so many at once, again and again.
    pub burst: Option<Burst>,
    /// Clients that ask, wait for the answer, think and ask again.
    #[serde(default)]
    pub clients: u32,
    /// How long they think.
    #[serde(default, with = "humantime_serde")]
    pub think: Duration,
    /// Tokens of a prompt.
    #[serde(default = "prompt")]
    pub prompt: Amount,
    /// Tokens that are asked for.
    #[serde(default = "output")]
    pub output: Amount,
    /// The share of prompts that begin with the same words: 0 to 1.
    #[serde(default)]
    pub shared_prefix: f64,
    /// Clients that leave before the end.
    pub leave: Option<EarlyLeave>,
    /// Which model is asked for; the first one if it does not say.
    pub model: Option<String>,
    /// `chat`, `completions` or `responses`.
    #[serde(default = "chat")]
    pub endpoint: WorkloadEndpoint,
    /// The share of requests that want tokens as they come: 0 to 1.
    #[serde(default = "all")]
    pub streaming: f64,
    /// Headers of its requests.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Fields of its bodies beside those that the simulation writes.
    #[serde(default)]
    pub body: serde_json::Map<String, serde_json::Value>,
}

fn prompt() -> Amount {
    Amount::Between { min: 50, max: 400 }
}

fn output() -> Amount {
    Amount::Between { min: 20, max: 200 }
}

fn all() -> f64 {
    1.0
}

fn chat() -> WorkloadEndpoint {
    WorkloadEndpoint::Chat
}

/// Where requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadEndpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
}

/// Many requests at once.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// The time from one burst to the next.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// The requests of one burst.
    pub size: u32,
}

/// Clients that leave.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyLeave {
    /// The chance of each request.
    pub chance: f64,
    /// With which token; 0 is before the first.
    pub after: Amount,
}

/// A number of tokens, or a way to draw one.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    /// Always this many.
    Exactly(u32),
    /// As likely one as the other.
    Between {
        /// The smallest value.
        min: u32,
        /// The largest value.
        max: u32,
    },
    /// Half of them below the median, and a long tail: log-normal, as prompts and answers are.
    Around {
        /// The middle one.
        median: u32,
        /// How far they spread: about two thirds lie within a factor of e^sigma.
        sigma: f64,
        /// The largest value.
        max: u32,
    },
}

impl Amount {
    pub(crate) fn draw(self, rng: &mut Rng) -> u32 {
        match self {
            Self::Exactly(tokens) => tokens,
            Self::Between { min, max } => rng.between(min, max),
            Self::Around { median, sigma, max } => {
                let drawn = f64::from(median) * (sigma * rng.normal()).exp();
                // A float is cut to the range by the cast.
                (drawn as u32).clamp(1, max.max(1))
            }
        }
    }

    fn least_and_most(self) -> (u32, u32) {
        match self {
            Self::Exactly(tokens) => (tokens, tokens),
            Self::Between { min, max } => (min, max),
            Self::Around { max, .. } => (1, max),
        }
    }
}

/// A workload that is none.
#[derive(Debug, thiserror::Error)]
pub enum BadWorkload {
    /// Not TOML, or not these keys.
    #[error("{0}")]
    Form(String),
    /// Numbers that make no sense, all of them.
    #[error("{}", .0.join("\n"))]
    Problems(Vec<String>),
}

impl Workload {
    /// Reads a workload.
    ///
    /// # Errors
    ///
    /// When it is none, with the line; or makes no sense, with every key that does not.
    pub fn parse(text: &str) -> Result<Self, BadWorkload> {
        let workload: Self = toml::from_str(text)
            .map_err(|why| BadWorkload::Form(why.to_string().trim_end().to_owned()))?;
        let problems = workload.problems();
        if problems.is_empty() { Ok(workload) } else { Err(BadWorkload::Problems(problems)) }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = vec![];
        let mut must = |holds: bool, key: String, relation: &str, value: &dyn std::fmt::Display| {
            if !holds {
                problems.push(format!("{key} must {relation}, got {value}"));
            }
        };
        let day = Duration::from_secs(24 * 60 * 60);
        let duration = humantime::format_duration(self.duration);
        let holds = !self.duration.is_zero() && self.duration <= day;
        must(holds, "duration".into(), "be more than 0 and at most a day", &duration);
        must(!self.models.is_empty(), "model".into(), "be there at least once", &0);
        must(!self.tenants.is_empty(), "tenant".into(), "be there at least once", &0);
        let chance = |value: f64| (0.0..=1.0).contains(&value);
        for model in &self.models {
            let key = |key: &str| format!("{key} of model {:?}", model.name);
            must(chance(model.fail), key("fail"), "be 0 to 1", &model.fail);
            if let Some(stall) = model.stall {
                must(chance(stall.chance), key("stall.chance"), "be 0 to 1", &stall.chance);
            }
        }
        for tenant in &self.tenants {
            let key = |key: &str| format!("{key} of tenant {:?}", tenant.name);
            let rate = tenant.rate.is_finite() && (0.0..=100_000.0).contains(&tenant.rate);
            must(rate, key("rate"), "be 0 to 100000", &tenant.rate);
            let comes = tenant.rate > 0.0 || tenant.burst.is_some() || tenant.clients > 0;
            must(comes, key("rate, burst or clients"), "say how often it asks", &"none of them");
            if let Some(burst) = tenant.burst {
                let every = humantime::format_duration(burst.every);
                must(!burst.every.is_zero(), key("burst.every"), "be more than 0", &every);
            }
            must(chance(tenant.streaming), key("streaming"), "be 0 to 1", &tenant.streaming);
            let shared = tenant.shared_prefix;
            must(chance(shared), key("shared_prefix"), "be 0 to 1", &shared);
            for (name, amount) in [("prompt", tenant.prompt), ("output", tenant.output)] {
                let (least, most) = amount.least_and_most();
                must(least >= 1, key(name), "be at least 1", &least);
                must(least <= most, key(name), "have a min that is at most its max", &least);
            }
            if let Some(leave) = tenant.leave {
                must(chance(leave.chance), key("leave.chance"), "be 0 to 1", &leave.chance);
                let (least, most) = leave.after.least_and_most();
                must(least <= most, key("leave.after"), "have a min at most its max", &least);
            }
            if let Some(model) = &tenant.model {
                // An alias, or a name that only a policy knows, is fine; a typo is not told apart.
                must(!model.is_empty(), key("model"), "be a name", &"nothing");
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_example_of_this_page_is_one() {
        let example: String = include_str!("workload.rs")
            .lines()
            .skip_while(|line| *line != "//! ```toml")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| line.trim_start_matches("//!").to_owned() + "\n")
            .collect();
        let workload = Workload::parse(&example).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(workload.tenants.len(), 2);
        assert_eq!(workload.tenants[1].think, Duration::from_millis(500));
    }

    #[test]
    fn every_problem_is_named_with_its_value() {
        let bad = r#"
            duration = "0s"
            [[model]]
            name = "m"
            fail = 2
            [[tenant]]
            name = "t"
            prompt = { min = 5, max = 3 }
            output = 0
        "#;
        expect![[r#"
            duration must be more than 0 and at most a day, got 0s
            fail of model "m" must be 0 to 1, got 2
            rate, burst or clients of tenant "t" must say how often it asks, got none of them
            prompt of tenant "t" must have a min that is at most its max, got 5
            output of tenant "t" must be at least 1, got 0"#]]
        .assert_eq(&Workload::parse(bad).expect_err("it is bad").to_string());
    }
}
