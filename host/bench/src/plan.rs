//! What is asked, how often and how many at once.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::workload::WorkloadKind;

/// Everything that decides what a target is asked. Two reports compare only as far as these agree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchPlan {
    /// The workloads, in the order in which they run.
    pub workloads: Vec<WorkloadKind>,
    /// The numbers of requests sent at once, in the order in which they run.
    pub concurrency: Vec<NonZeroU32>,
    /// How often each batch is measured.
    pub iterations: NonZeroU32,
    /// How often each batch is sent before it is measured.
    pub warmup: u32,
    /// Most tokens of an answer; also the fewest, for servers that heed `min_tokens`.
    pub max_tokens: NonZeroU32,
    /// The approximate length of a long prompt.
    pub prompt_tokens: NonZeroU32,
    /// The endpoint that is called.
    pub api: Api,
    /// Whether answers are streamed.
    pub stream: bool,
    /// Whether requests carry `ignore_eos` and `min_tokens`, so that every answer is equally long.
    pub ignore_eos: bool,
    /// Longest time for one request, from the moment it is sent.
    #[serde(rename = "timeout_s", with = "seconds")]
    pub timeout: Duration,
    /// The random seed for prompts and storms.
    pub seed: u64,
    /// The parameters of a storm.
    pub storm: Storming,
}

/// The parameters of a disconnect storm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Storming {
    /// Requests in all, as a multiple of the concurrency: 10 rounds at concurrency 8 are 80 requests.
    pub rounds: NonZeroU32,
    /// The percentage of clients that disconnect before their answer is complete.
    pub leave_percent: u8,
    /// How long new requests are sent; replaces `rounds`.
    #[serde(rename = "time_s", default, with = "optional_seconds")]
    pub time: Option<Duration>,
    /// How long a server may take to notice that all clients have left.
    #[serde(rename = "settle_s", with = "seconds")]
    pub settle: Duration,
}

/// An endpoint that generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
}

impl Api {
    /// All of them, in the order in which they are explained.
    pub const ALL: [Self; 3] = [Self::Chat, Self::Completions, Self::Responses];

    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
            Self::Responses => "/responses",
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Responses => "responses",
        }
    }
}

impl FromStr for Api {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|api| api.as_str() == text)
            .ok_or_else(|| format!("an API is chat, completions or responses, got {text:?}"))
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl BenchPlan {
    /// Requests that one target is sent in all: what a bar counts. A storm that goes by time sends
    /// more than its rounds; the bar then stays full.
    pub(crate) fn requests_per_target(&self) -> u64 {
        let rounds = u64::from(self.warmup) + u64::from(self.iterations.get());
        let at_once: u64 = self.concurrency.iter().map(|c| u64::from(c.get())).sum();
        let storm_rounds = u64::from(self.storm.rounds.get());
        let of = |workload: &WorkloadKind| match workload {
            WorkloadKind::Storm => at_once * storm_rounds,
            _ => at_once * rounds,
        };
        self.workloads.iter().map(of).sum()
    }
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(de::Error::custom)
    }
}

mod optional_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Seconds(#[serde(with = "super::seconds")] Duration);

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(Seconds).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Seconds>::deserialize(from)?.map(|Seconds(time)| time))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn nonzero(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).expect("not zero")
    }

    /// A plan whose numbers all differ.
    pub(crate) fn plan() -> BenchPlan {
        BenchPlan {
            workloads: vec![WorkloadKind::Short],
            concurrency: vec![nonzero(1), nonzero(4)],
            iterations: nonzero(3),
            warmup: 1,
            max_tokens: nonzero(64),
            prompt_tokens: nonzero(256),
            api: Api::Chat,
            stream: true,
            ignore_eos: true,
            timeout: Duration::from_millis(1500),
            seed: 0,
            storm: Storming {
                rounds: nonzero(10),
                leave_percent: 50,
                time: None,
                settle: Duration::from_secs(5),
            },
        }
    }

    #[test]
    fn a_bar_counts_warm_ups_and_storms() {
        let both =
            BenchPlan { workloads: vec![WorkloadKind::Short, WorkloadKind::Storm], ..plan() };
        assert_eq!(both.requests_per_target(), (1 + 4) * (1 + 3) + (1 + 4) * 10);
    }

    #[test]
    fn a_plan_survives_json() {
        let json = serde_json::to_string(&plan()).expect("a plan is JSON");
        assert!(json.contains(r#""timeout_s":1.5"#), "{json}");
        assert_eq!(serde_json::from_str::<BenchPlan>(&json).expect("our own"), plan());
        let storm = Storming { time: Some(Duration::from_secs(600)), ..plan().storm };
        let timed = BenchPlan { storm, ..plan() };
        let json = serde_json::to_string(&timed).expect("a plan is JSON");
        assert!(json.contains(r#""time_s":600.0"#), "{json}");
        assert_eq!(serde_json::from_str::<BenchPlan>(&json).expect("our own"), timed);
    }

    #[test]
    fn a_plan_from_before_storms_by_time_is_still_read() {
        let json = serde_json::to_string(&plan()).expect("a plan is JSON");
        let older = json.replace(r#""time_s":null,"#, "");
        assert_ne!(older, json);
        assert_eq!(serde_json::from_str::<BenchPlan>(&older).expect("an older plan"), plan());
    }

    #[test]
    fn an_endpoint_is_written_as_it_is_read() {
        for api in Api::ALL {
            assert_eq!(api.to_string().parse(), Ok(api));
        }
        let error = "embeddings".parse::<Api>().expect_err("it does not generate");
        assert_eq!(error, r#"an API is chat, completions or responses, got "embeddings""#);
    }
}
