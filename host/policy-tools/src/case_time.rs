//! When something is in a case: a time since its beginning, or a moment.
//!
//! ```toml
//! at = "90s"                          # after the beginning
//! at = "22h 30m"                      # of a case: at half past ten, where the file begins at midnight
//! at = "2026-03-07T22:30:00+01:00"    # a moment, with or without quotes
//! ```

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, de::Error};
use toml::value::{Datetime, Offset};

/// A time as a file of cases gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CaseTime {
    /// So long after the beginning.
    After(Duration),
    /// Then: the time since the Unix epoch.
    Moment(Duration),
}

impl CaseTime {
    /// The same as the time since the Unix epoch, where it counts from this beginning.
    pub(crate) fn since_epoch(self, beginning: Duration) -> Duration {
        match self {
            Self::After(time) => beginning.saturating_add(time),
            Self::Moment(moment) => moment,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let duration = humantime::parse_duration(text).ok();
        duration.map(Self::After).or_else(|| Self::moment(&text.parse().ok()?))
    }

    /// Without an offset it would be another moment wherever it is read.
    fn moment(written: &Datetime) -> Option<Self> {
        let Datetime { date: Some(date), time: Some(time), offset: Some(offset) } = written else {
            return None;
        };
        let utc = humantime::parse_rfc3339(&format!("{date}T{time}Z")).ok()?;
        let utc = utc.duration_since(UNIX_EPOCH).ok()?;
        let minutes = match offset {
            Offset::Z => 0,
            Offset::Custom { minutes } => *minutes,
        };
        let ahead = Duration::from_secs(60 * u64::from(minutes.unsigned_abs()));
        let moment = if minutes < 0 { utc.checked_add(ahead) } else { utc.checked_sub(ahead) };
        moment.map(Self::Moment)
    }
}

impl<'de> Deserialize<'de> for CaseTime {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let written = toml::Value::deserialize(from)?;
        let at = match &written {
            toml::Value::String(text) => Self::parse(text),
            toml::Value::Datetime(moment) => Self::moment(moment),
            _ => None,
        };
        at.ok_or_else(|| {
            D::Error::custom(format!(
                "at is a time since the beginning (\"90s\", \"22h 30m\") or a moment with its \
                 offset (\"2026-03-07T22:30:00Z\"), from 1970 on, got {written}"
            ))
        })
    }
}

/// A moment as it is written.
pub(crate) fn written(since_epoch: Duration) -> String {
    let moment = UNIX_EPOCH.checked_add(since_epoch);
    // Later years have more digits than the format.
    let moment = moment.filter(|_| since_epoch < Duration::from_secs(253_402_300_800));
    let written = |moment| humantime::format_rfc3339(moment).to_string();
    moment.map_or_else(|| format!("{since_epoch:?} after 1970"), written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct File {
        at: CaseTime,
    }

    fn read(text: &str) -> Result<CaseTime, String> {
        let read = toml::from_str::<File>(&format!("at = {text}"));
        read.map(|file| file.at).map_err(|why| why.message().to_owned())
    }

    #[test]
    fn a_moment_is_the_same_however_it_is_written() {
        let half_past_ten = Ok(CaseTime::Moment(Duration::from_secs(1_772_922_600)));
        for text in [
            "\"2026-03-07T22:30:00Z\"",
            "2026-03-07T22:30:00Z",
            "2026-03-07 22:30:00Z",
            "\"2026-03-07T23:30:00+01:00\"",
            "2026-03-07T17:00:00-05:30",
        ] {
            assert_eq!(read(text), half_past_ten, "{text}");
        }
        assert_eq!(read("\"22h 30m\""), Ok(CaseTime::After(Duration::from_secs(81_000))));
    }

    #[test]
    fn what_is_no_time_is_refused_with_what_one_is() {
        for text in [
            "\"half past ten\"",
            "\"2026-03-07\"",
            "2026-03-07",
            "22:30:00",
            // Whose half past ten?
            "2026-03-07T22:30:00",
            "\"2026-02-30T00:00:00Z\"",
            "\"1969-12-31T23:59:59Z\"",
            "\"99999999999999999999999h\"",
            "-1",
            "nan",
            "[1]",
        ] {
            let why = read(text).expect_err(text);
            assert!(why.starts_with("at is a time since the beginning"), "{text}: {why}");
        }
    }
}
