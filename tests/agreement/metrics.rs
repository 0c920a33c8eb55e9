//! The inventory of metrics equals what is declared. A difference is a change that users see: their
//! dashboards and alerts read these names. `UPDATE=1` rewrites the file.

use std::fmt::Write;
use std::path::Path;

use interlock_engine::EngineMetrics;
use interlock_log::LogMetrics;
use interlock_metrics::{Family, Registry};
use interlock_policy_chain::PolicyMetrics;
use interlock_policy_wasm::{PolicyHost, Services};
use interlock_server::{ServerMetrics, WorkMetrics};
use interlock_state::{State, StateConfig, StateMetrics};

const HEAD: &str = "\
# Metrics

Every family that `GET /metrics` has, in Prometheus' text format. Generated from the declarations in
the code: change those and run `UPDATE=1 cargo test -p interlock-tests --test metrics`.

Labels are closed sets, or names that the operator gave to models and policies; never what a client
sent. A histogram has the samples `_bucket`, `_sum` and `_count`. Policies declare metrics of their own,
which begin with `interlock_plugin_`; each policy's README lists its own. [alerts.yml](alerts.yml) has
alerts on five of these families.

| name | type | labels | unit | meaning |
| --- | --- | --- | --- | --- |
";

/// Every family of a host, as its parts declare them.
fn declared() -> Vec<Family> {
    let registry = Registry::new();
    EngineMetrics::register(&registry);
    LogMetrics::register(&registry);
    PolicyMetrics::register(&registry);
    ServerMetrics::register(&registry);
    WorkMetrics::register(&registry);
    StateMetrics::register(&registry);
    let state = State::open(&StateConfig::default()).expect("in memory");
    // Those of the host of policies are its own, and come with it.
    PolicyHost::with(Services { state, registry: &registry, cache: None }).expect("a host");
    registry.families()
}

/// By Prometheus' convention a family's name ends in its unit, before `_total`; what has none counts.
fn unit(family: &Family) -> &'static str {
    let name = family.name.trim_end_matches("_max").trim_end_matches("_total");
    let ends = |unit: &str| name.ends_with(unit);
    match () {
        () if ends("_seconds") => "seconds",
        () if ends("_bytes") => "bytes",
        () if family.help.starts_with("1 while") => "0 or 1",
        () => "count",
    }
}

#[test]
fn the_inventory_lists_every_family_as_it_is_declared() {
    let mut inventory = HEAD.to_owned();
    for family in declared() {
        let theirs = family.name.starts_with("interlock_plugin_");
        assert!(!theirs, "{}: what begins so is a policy's own", family.name);
        let quoted = |label: &String| format!("`{label}`");
        let labels = family.labels.iter().map(quoted).collect::<Vec<_>>().join(", ");
        let Family { name, kind, help, .. } = &family;
        let unit = unit(&family);
        writeln!(inventory, "| `{name}` | {kind} | {labels} | {unit} | {help} |")
            .expect("a string");
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/METRICS.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, &inventory).expect("writes");
    }
    let written = std::fs::read_to_string(&file).expect("config/METRICS.md");
    let update = "UPDATE=1 cargo test -p interlock-tests --test metrics";
    assert_eq!(written, inventory, "run `{update}` and review");
}

/// A name of a family in an expression: `_bucket`, `_sum` and `_count` are a histogram's samples.
fn families_in(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("interlock_"));
    let sample = |word: &str| {
        let suffix = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        suffix.unwrap_or(word).to_owned()
    };
    ours.map(sample).collect()
}

/// Words that Prometheus' conventions keep out of a name: a type, a sample's suffix, a unit that is no
/// base unit.
const NEVER: [&str; 13] = [
    "counter",
    "gauge",
    "histogram",
    "summary",
    "bucket",
    "sum",
    "count",
    "ms",
    "milliseconds",
    "us",
    "minutes",
    "mb",
    "percent",
];

/// What a name does against Prometheus' conventions.
fn against_convention(Family { name, kind, labels, help }: &Family) -> Vec<&'static str> {
    let words: Vec<&str> = name.split('_').collect();
    let times = |word: &str| words.iter().filter(|other| **other == word).count();
    let measure = name.trim_end_matches("_max").trim_end_matches("_total");
    let is_told = |unit: &str| times(unit) == 0 || measure.ends_with(unit);
    let rules = [
        (
            (*kind == "counter") != name.ends_with("_total"),
            "`_total` ends counters, and nothing else",
        ),
        (words.iter().any(|word| NEVER.contains(word)), "it has a type or another unit in it"),
        (times("seconds") + times("bytes") > 1, "it has a unit twice"),
        (!is_told("seconds") || !is_told("bytes"), "its unit does not end it"),
        (*kind != "gauge" && name.ends_with("_max"), "`_max` is for gauges"),
        (labels.iter().any(|label| words.contains(&label.as_str())), "a label is in its name"),
        (
            labels.iter().any(|label| ["what", "why", "how", "le"].contains(&label.as_str())),
            "a label is no noun",
        ),
        (!help.ends_with('.'), "its help is no sentence"),
    ];
    rules.iter().filter(|(broken, _)| *broken).map(|(_, rule)| *rule).collect()
}

#[test]
fn names_follow_the_conventions_of_prometheus() {
    for family in declared() {
        // A policy's own label, in the families of policies, is what each of them is about.
        let labels = family.labels.iter().filter(|label| *label != "policy").cloned().collect();
        let family = Family { labels, ..family };
        assert_eq!(against_convention(&family), [""; 0], "{}", family.name);
    }
}

#[test]
fn a_name_against_the_conventions_is_found() {
    let family = |name: &str, kind, labels: &[&str]| Family {
        name: name.to_owned(),
        kind,
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        help: "Something.".to_owned(),
    };
    let wrong = [
        family("interlock_work", "counter", &[]),
        family("interlock_work_total", "gauge", &[]),
        family("interlock_wait_ms", "histogram", &[]),
        family("interlock_seconds_of_wait", "gauge", &[]),
        family("interlock_wait_seconds_seconds", "histogram", &[]),
        family("interlock_wait_max", "histogram", &[]),
        family("interlock_kind_total", "counter", &["kind"]),
        family("interlock_windows_total", "counter", &["what"]),
    ];
    for family in wrong {
        assert_eq!(against_convention(&family).len(), 1, "{}", family.name);
    }
}

#[test]
fn what_alerts_and_pages_ask_for_is_declared() {
    let known: Vec<String> = declared().into_iter().map(|family| family.name).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for page in ["config/alerts.yml", "config/default.toml", "README.md", "docs/operating.md"] {
        let text = std::fs::read_to_string(root.join(page)).expect(page);
        let named = families_in(&text);
        assert!(!named.is_empty(), "{page} names metrics");
        for name in named {
            // The name of a crate, in a filter of the log.
            let part = name.trim_start_matches("interlock_").replace('_', "-");
            let is_crate = root.join("host").join(part).is_dir();
            let is_known = is_crate || known.contains(&name);
            assert!(is_known, "{page} names {name}, which is not declared");
        }
    }
}
