//! What two policies may not mean by one metric.

use super::*;

fn metric(name: &str, kind: MetricKind, labels: &[&str], help: &str) -> Metric {
    let labels = labels.iter().map(ToString::to_string).collect();
    Metric { name: name.into(), kind, help: help.into(), labels }
}

/// What is said of two policies, each with one metric.
fn said(a: (&str, Metric), b: (&str, Metric)) -> Option<String> {
    let all = PluginMetrics::default();
    let (ours, theirs) = ([a.1], [b.1]);
    let meters = [all.prepare(a.0, &ours), all.prepare(b.0, &theirs)];
    let shown = |policy, metrics, meters| ExposedMetrics { policy, metrics, meters };
    shown(a.0, &ours, &meters[0]).contradicts(&shown(b.0, &theirs, &meters[1]))
}

#[test]
fn two_policies_cannot_mean_two_things_by_one_metric() {
    use MetricKind::{Counter, Gauge, Histogram};
    let seen = || metric("seen_total", Counter, &["tenant"], "Requests.");
    let others = [
        (metric("seen_total", Counter, &["model", "tenant"], "Requests."), "labels"),
        (metric("seen_total", Counter, &[], "Requests."), "labels"),
        (metric("seen_total", Counter, &["tenant"], "Tokens."), "help"),
        (metric("seen_total", Gauge, &["tenant"], "Requests."), "is a gauge"),
    ];
    for (other, what) in others {
        let why = said(("a", seen()), ("b", other)).expect("they contradict each other");
        for part in ["\"seen_total\"", "\"b\"", "interlock_plugin_seen_total", what] {
            assert!(why.contains(part), "{part}: {why}");
        }
    }
    assert_eq!(said(("a", seen()), ("b", seen())), None);
    // Two generations of one policy, of which one is shown.
    let changed = metric("seen_total", Counter, &["model"], "Requests.");
    assert_eq!(said(("a", seen()), ("a", changed)), None);
    let wait = || metric("wait", Histogram, &[], "Waits.");
    let count = || metric("wait_count", Gauge, &[], "Waits.");
    for (a, b) in [(wait(), count()), (count(), wait())] {
        let why = said(("a", a), ("b", b)).expect("they are taken for each other");
        assert!(why.contains("\"wait_count\"") && why.contains("\"wait\""), "{why}");
    }
    assert_eq!(said(("a", wait()), ("b", metric("wait_max", Gauge, &[], "Waits."))), None);
}
