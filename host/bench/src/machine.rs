//! The machine that the client, and often the server, runs on.

use std::fs;

use serde::{Deserialize, Serialize};

/// What stays the same during a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name for itself.
    pub cpu: String,
    /// How many threads of the processor this program may use.
    pub cores: usize,
    /// Operating system and architecture.
    pub system: String,
}

impl Machine {
    /// The machine that this program runs on.
    #[must_use]
    pub fn here() -> Self {
        Self {
            cpu: cpu_name().unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// How many processes wanted to run, on average over 1, 5 and 15 minutes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LoadAverage(pub [f64; 3]);

impl LoadAverage {
    /// None where the system does not say.
    #[must_use]
    pub fn now() -> Option<Self> {
        let text = fs::read_to_string("/proc/loadavg").ok().or_else(|| sysctl("vm.loadavg"))?;
        // macOS writes braces around it.
        let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
        Some(Self([numbers.next()?, numbers.next()?, numbers.next()?]))
    }
}

fn cpu_name() -> Option<String> {
    let named = |text: String| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(named)
        .or_else(|| sysctl("machdep.cpu.brand_string"))
}

fn sysctl(key: &str) -> Option<String> {
    let output = std::process::Command::new("sysctl").args(["-n", key]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// CPU time that a process has used; None where the system does not say, or it is gone.
pub(crate) fn cpu_seconds(process: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    Some(ticks(&stat)? / per_second)
}

/// User and system time: the 14th and 15th field. The second is the program's name in
/// parentheses, which may hold anything.
fn ticks(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut times = after_name.split_whitespace().skip(11);
    let mut next = || times.next()?.parse::<f64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "42 (my (odd) name) S 1 42 42 0 -1 4194304 5 0 0 0 250 50 7 7 20 0 1 0 9 8 7";
        assert_eq!(ticks(stat), Some(300.0));
        assert_eq!(ticks("42 (short) S 1"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_a_processor_and_uses_it() {
        let begun = std::time::Instant::now();
        let used = || cpu_seconds(std::process::id()).expect("we run");
        let before = used();
        while used() <= before {
            assert!(begun.elapsed().as_secs() < 60, "a busy process uses no CPU time");
        }
        assert_ne!(Machine::here().cpu, "unknown");
        assert!(LoadAverage::now().is_some());
    }
}
