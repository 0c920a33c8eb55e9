//! The settings of the simulated model: the text after `sim:`.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;
use std::time::Duration;

/// The settings in `sim:key=value,...`. `sim:` alone is [`SimSettings::default`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimSettings {
    /// `load=DURATION`: how long loading takes.
    pub load: Duration,
    /// `pass=DURATION`: time for each pass, whatever it computes.
    pub pass: Duration,
    /// `mixed=DURATION`: time for each pass that computes prompts and next tokens both, in addition.
    pub mixed: Duration,
    /// `prefill=DURATION`: time for each token of a prompt.
    pub prefill: Duration,
    /// `decode=DURATION`: time for each pass that draws a next token, however many rows it has.
    pub decode: Duration,
    /// `row=DURATION`: time that each such row adds.
    pub row: Duration,
    /// `context=N`: most tokens of prompt and output together.
    pub context: u32,
    /// `cache=N`: tokens whose keys and values there is room for, in whole pages.
    pub cache: u32,
    /// `page=N`: tokens of a page.
    pub page: NonZeroU32,
    /// `stop=N`: how often, on average, the model ends by itself: one token in N. 0 is never.
    pub stop: u32,
    /// `salt=N`: another number is another model, which answers the same prompt with other text.
    pub salt: u64,
    /// `fail-every=N`: every N-th pass fails.
    pub fail_every: Option<NonZeroU64>,
    /// `fail-above-rows=N`: a pass of more rows fails, for want of memory.
    pub fail_above_rows: Option<u32>,
    /// `fail-above-tokens=N`: a pass of more tokens fails, for want of memory.
    pub fail_above_tokens: Option<u32>,
    /// `fail-from=N`: memory is short from the N-th pass on, and
    pub fail_from: u64,
    /// `fail-until=N`: before the N-th; for ever if that is not said.
    pub fail_until: Option<u64>,
    /// `fail-loses=caches`: whenever a pass fails, what the caches held is lost, as on a GPU.
    pub fail_loses_caches: bool,
    /// `device-lost-at=N`: the N-th pass fails, its caches are gone, and there are no others.
    pub device_lost_at: Option<NonZeroU64>,
    /// `panic-at=N`: the N-th pass panics, and with it the engine thread.
    pub panic_at: Option<NonZeroU64>,
}

impl Default for SimSettings {
    fn default() -> Self {
        Self {
            load: Duration::ZERO,
            pass: Duration::ZERO,
            mixed: Duration::ZERO,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
            row: Duration::ZERO,
            context: 4096,
            cache: 1 << 20,
            page: NonZeroU32::new(16).expect("16 is not 0"),
            stop: 256,
            salt: 0,
            fail_every: None,
            fail_above_rows: None,
            fail_above_tokens: None,
            fail_from: 0,
            fail_until: None,
            fail_loses_caches: false,
            device_lost_at: None,
            panic_at: None,
        }
    }
}

impl SimSettings {
    /// The time of a pass that decodes for this many rows and computes this many tokens of prompts.
    pub fn time(&self, decoding: usize, prompts: usize) -> Duration {
        let times = |time: Duration, count: usize| {
            time.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
        };
        let mut time = self.pass.saturating_add(times(self.prefill, prompts));
        if decoding > 0 {
            time = time.saturating_add(self.decode).saturating_add(times(self.row, decoding));
        }
        if decoding > 0 && prompts > 0 {
            time = time.saturating_add(self.mixed);
        }
        time
    }
}

/// The error of a text that is no settings of the simulated model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSettings {
    /// A setting that is not of the form `key=value`.
    #[error("a setting of the simulated model is key=value, got {0:?}")]
    Form(String),
    /// A key that the simulated model does not have.
    #[error(
        "the simulated model has no setting {0:?}; it has load, pass, mixed, prefill, decode, row, \
         context, cache, page, stop, salt, fail-every, fail-above-rows, fail-above-tokens, fail-from, \
         fail-until, fail-loses, device-lost-at and panic-at"
    )]
    Key(String),
    /// A value that the key does not take.
    #[error("{key} of the simulated model must be {wanted}, got {value:?}")]
    Value {
        /// The name of the setting.
        key: String,
        /// The values that the setting takes.
        wanted: &'static str,
        /// The value that was given.
        value: String,
    },
}

impl FromStr for SimSettings {
    type Err = BadSettings;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut settings = Self::default();
        for setting in text.split(',').filter(|setting| !setting.is_empty()) {
            let (key, value) =
                setting.split_once('=').ok_or_else(|| BadSettings::Form(setting.to_owned()))?;
            match key {
                "load" => settings.load = duration(key, value)?,
                "pass" => settings.pass = duration(key, value)?,
                "mixed" => settings.mixed = duration(key, value)?,
                "prefill" => settings.prefill = duration(key, value)?,
                "decode" => settings.decode = duration(key, value)?,
                "row" => settings.row = duration(key, value)?,
                "cache" => settings.cache = bounded(key, value, CACHE_MAX, CACHE)?,
                "page" => settings.page = bounded(key, value, PAGE_MAX, PAGE)?,
                "context" => settings.context = parse(key, value, "a number of tokens")?,
                "stop" => settings.stop = parse(key, value, "a number of tokens")?,
                "salt" => settings.salt = parse(key, value, "a whole number")?,
                "fail-every" => settings.fail_every = Some(parse(key, value, PASSES)?),
                "fail-above-rows" => {
                    settings.fail_above_rows = Some(parse(key, value, "a number of rows")?);
                }
                "fail-above-tokens" => {
                    settings.fail_above_tokens = Some(parse(key, value, "a number of tokens")?);
                }
                "fail-from" => settings.fail_from = parse(key, value, PASSES)?,
                "fail-until" => settings.fail_until = Some(parse(key, value, PASSES)?),
                "fail-loses" => {
                    settings.fail_loses_caches = parse::<Loses>(key, value, "caches")?.0;
                }
                "device-lost-at" => settings.device_lost_at = Some(parse(key, value, PASSES)?),
                "panic-at" => settings.panic_at = Some(parse(key, value, PASSES)?),
                _ => return Err(BadSettings::Key(key.to_owned())),
            }
        }
        Ok(settings)
    }
}

/// Most tokens of a simulated cache. Each takes eight bytes.
const CACHE_MAX: u32 = 1 << 26;
const CACHE: &str = "a number of tokens, at most 67108864";
/// Most tokens of a page: the cache holds whole pages.
const PAGE_MAX: NonZeroU32 = NonZeroU32::new(1 << 16).expect("it is not 0");
const PAGE: &str = "a number of tokens from 1 to 65536";

fn bounded<T: FromStr + PartialOrd>(
    key: &str,
    value: &str,
    most: T,
    wanted: &'static str,
) -> Result<T, BadSettings> {
    let read = parse(key, value, wanted)?;
    match read <= most {
        true => Ok(read),
        false => Err(BadSettings::Value { key: key.to_owned(), wanted, value: value.to_owned() }),
    }
}

/// The value of `fail-loses=`.
struct Loses(bool);

impl FromStr for Loses {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "caches" { Ok(Self(true)) } else { Err(()) }
    }
}

const PASSES: &str = "a number of passes, at least 1";

fn parse<T: FromStr>(key: &str, value: &str, wanted: &'static str) -> Result<T, BadSettings> {
    value.parse().map_err(|_| BadSettings::Value {
        key: key.to_owned(),
        wanted,
        value: value.to_owned(),
    })
}

fn duration(key: &str, value: &str) -> Result<Duration, BadSettings> {
    humantime::parse_duration(value).map_err(|_| BadSettings::Value {
        key: key.to_owned(),
        wanted: "a time such as 20ms",
        value: value.to_owned(),
    })
}

impl fmt::Display for SimSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "load={},prefill={},decode={},row={},context={},cache={},page={},stop={}",
            humantime::format_duration(self.load),
            humantime::format_duration(self.prefill),
            humantime::format_duration(self.decode),
            humantime::format_duration(self.row),
            self.context,
            self.cache,
            self.page,
            self.stop
        )?;
        for (key, time) in [("pass", self.pass), ("mixed", self.mixed)] {
            if !time.is_zero() {
                write!(f, ",{key}={}", humantime::format_duration(time))?;
            }
        }
        if self.salt != 0 {
            write!(f, ",salt={}", self.salt)?;
        }
        if let Some(n) = self.fail_every {
            write!(f, ",fail-every={n}")?;
        }
        if let Some(n) = self.fail_above_rows {
            write!(f, ",fail-above-rows={n}")?;
        }
        if let Some(n) = self.fail_above_tokens {
            write!(f, ",fail-above-tokens={n}")?;
        }
        if self.fail_from > 0 {
            write!(f, ",fail-from={}", self.fail_from)?;
        }
        if let Some(n) = self.fail_until {
            write!(f, ",fail-until={n}")?;
        }
        if self.fail_loses_caches {
            write!(f, ",fail-loses=caches")?;
        }
        if let Some(n) = self.device_lost_at {
            write!(f, ",device-lost-at={n}")?;
        }
        if let Some(n) = self.panic_at {
            write!(f, ",panic-at={n}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_no_machine_has_is_refused_with_the_bound() {
        for text in ["page=4294967295", "cache=4294967295"] {
            let why = text.parse::<SimSettings>().expect_err(text).to_string();
            assert!(
                why.contains("4294967295") && why.contains("6553") | why.contains("67108864"),
                "{why}"
            );
        }
    }

    #[test]
    fn settings_read_as_they_are_written() {
        for text in [
            "",
            "decode=20ms,prefill=1ms,context=64,fail-every=3",
            "stop=0,panic-at=7",
            "row=1us,cache=64,page=4",
            "salt=7",
            "pass=10ms,mixed=5ms,prefill=100us",
            "fail-above-rows=3,fail-above-tokens=0,fail-from=2,fail-until=9,fail-loses=caches",
            "device-lost-at=4",
        ] {
            let settings: SimSettings = text.parse().expect(text);
            assert_eq!(settings.to_string().parse(), Ok(settings), "{text:?}");
        }
    }

    #[test]
    fn a_pass_costs_what_it_says() {
        let settings: SimSettings =
            "pass=10ms,mixed=5ms,decode=3ms,row=1ms,prefill=100us".parse().unwrap();
        let micros = |decoding, prompts| settings.time(decoding, prompts).as_micros();
        assert_eq!(micros(0, 20), 12_000);
        assert_eq!(micros(4, 0), 17_000);
        assert_eq!(micros(4, 20), 24_000);
    }

    #[test]
    fn a_bad_setting_is_named_with_its_value() {
        let error = |text: &str| text.parse::<SimSettings>().expect_err(text).to_string();
        assert_eq!(
            error("decode=fast"),
            "decode of the simulated model must be a time such as 20ms, got \"fast\""
        );
        assert!(error("speed=1").starts_with("the simulated model has no setting \"speed\""));
        assert_eq!(
            error("decode"),
            "a setting of the simulated model is key=value, got \"decode\""
        );
        assert!(error("panic-at=0").contains("at least 1, got \"0\""));
        assert!(error("fail-loses=all").ends_with("must be caches, got \"all\""));
    }
}
