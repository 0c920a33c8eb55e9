//! What router decides: pure functions of its settings and the facts.

use interlock_policy_sdk::{self as sdk, Candidate, Choice, RequestFacts};

use crate::Reason;
use crate::settings::{Rule, Settings, Sticky};

/// The models that a request should go to, the preferred one first, and why; `None`: no rule and
/// no alias says.
pub(crate) fn wanted<'a>(
    settings: &'a Settings,
    request: &RequestFacts,
) -> Option<(Vec<&'a str>, Reason)> {
    if let Some(rule) = settings.rules.iter().find(|rule| rule.applies(request)) {
        return Some(match rule.to.is_empty() {
            false => (rule.to.iter().map(String::as_str).collect(), Reason::Rule),
            true => (split(rule, request), Reason::Split),
        });
    }
    let models = settings.aliases.get(&request.model)?;
    Some((models.iter().map(String::as_str).collect(), Reason::Alias))
}

/// The part of the split that this request falls on, then the others by their shares.
fn split<'a>(rule: &'a Rule, request: &RequestFacts) -> Vec<&'a str> {
    let prefix = request.prefix_key.to_le_bytes();
    let by: &[u8] = match rule.sticky {
        Sticky::Tenant if !request.tenant.is_empty() => request.tenant.as_bytes(),
        Sticky::Prefix if request.prefix_key != 0 => &prefix,
        _ => request.request_id.as_bytes(),
    };
    let all = rule.split.values().map(|&share| u64::from(share)).sum::<u64>().max(1);
    let mut point = hash(by) % all;
    let mut models: Vec<(&str, u64)> =
        rule.split.iter().map(|(model, &share)| (model.as_str(), u64::from(share))).collect();
    let chosen = models.iter().position(|&(_, share)| {
        let here = point < share;
        point = point.saturating_sub(share);
        here
    });
    let (first, _) = models.remove(chosen.unwrap_or_default());
    models.retain(|&(_, share)| share > 0);
    models.sort_by_key(|&(_, share)| std::cmp::Reverse(share));
    std::iter::once(first).chain(models.into_iter().map(|(model, _)| model)).collect()
}

/// FNV-1a, and a last mix: without it, ids that count up fall on neighbouring points.
fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

/// The first of the wanted models that has room for it; else that with the least waiting. The
/// best candidate of a model, if it runs in several places.
pub(crate) fn pick(
    settings: &Settings,
    request: &RequestFacts,
    candidates: &[Candidate],
    models: &[&str],
    reason: Reason,
) -> Choice {
    let needs = request.prompt_tokens.saturating_add(request.max_tokens);
    let usable = |it: &&Candidate| it.ready && needs <= it.context;
    let room = |it: &&Candidate| {
        it.waiting < it.max_waiting && settings.fall_back_at.is_none_or(|most| it.waiting < most)
    };
    // None of them is served here: others, or the host, may know.
    let served = |model| move |it: &&Candidate| it.model == model;
    let best = |of: &mut dyn Iterator<Item = &Candidate>| {
        of.min_by(|a, b| value(settings, b).total_cmp(&value(settings, a))).cloned()
    };
    for (place, &model) in models.iter().enumerate() {
        let with_room = candidates.iter().filter(served(model)).filter(usable).filter(room);
        if let Some(found) = best(&mut { with_room }) {
            return found.pick(if place == 0 { reason } else { Reason::Fallback });
        }
    }
    // No room anywhere: the shortest way to wait among those that could take it, then any, so
    // that the host says what is wrong with it.
    let ours = |it: &&Candidate| models.contains(&it.model.as_str());
    let shortest = |of: &mut dyn Iterator<Item = &Candidate>| {
        of.min_by(|a, b| fullness(a).total_cmp(&fullness(b))).cloned()
    };
    let found = shortest(&mut candidates.iter().filter(ours).filter(usable))
        .or_else(|| shortest(&mut candidates.iter().filter(ours)));
    match found {
        Some(found) if models.first() == Some(&found.model.as_str()) => found.pick(reason),
        Some(found) => found.pick(Reason::Fallback),
        None => Choice::Abstain,
    }
}

/// How well each of those that the client asked for suits. One alone needs no score.
pub(crate) fn score(settings: &Settings, candidates: &[Candidate]) -> Choice {
    let asked: Vec<&Candidate> = candidates.iter().filter(|it| it.asked && it.ready).collect();
    if asked.len() < 2 {
        return Choice::Abstain;
    }
    let scored = asked.iter().map(|it| it.score(value(settings, it))).collect();
    sdk::scores(scored, Reason::Weighed)
}

/// 0 to 1: how idle it is, and whether the beginning of the prompt is there.
fn value(settings: &Settings, candidate: &Candidate) -> f32 {
    let weight = settings.prefix_weight.0;
    let prefix = if candidate.prefix_seen { 1.0 } else { 0.0 };
    (1.0 - weight) * (1.0 - fullness(candidate)) + weight * prefix
}

/// 0 to 1: running counts half, since waiting begins where running is full.
fn fullness(candidate: &Candidate) -> f32 {
    let part = |much: u32, most: u32| (much as f32 / most.max(1) as f32).min(1.0);
    let running = part(candidate.running, candidate.max_running);
    let waiting = part(candidate.waiting, candidate.max_waiting);
    (running + waiting) / 2.0
}

#[cfg(test)]
mod tests {
    use interlock_policy_sdk::testing::{Host, candidate, reason};
    use interlock_policy_sdk::{Pick, Route};
    use serde_json::{Value, json};

    use super::*;
    use crate::Router;

    /// `small` was asked for; `big` and `long` are there as well.
    fn three() -> Vec<Candidate> {
        vec![
            candidate(0, "small"),
            candidate(1, "big"),
            Candidate { context: 131_072, ..candidate(2, "long") },
        ]
    }

    fn route(settings: Value, request: &RequestFacts, candidates: &[Candidate]) -> String {
        let router: Router = Host::new().begin(settings).expect("these are settings");
        match router.route(request, candidates) {
            Choice::Abstain => "abstain".into(),
            Choice::Pick(Pick { id, reason: why }) => {
                let model = candidates.iter().find(|it| it.id == id).map(|it| it.model.as_str());
                format!("{} {}", model.unwrap_or("?"), reason::<Router>(why))
            }
            Choice::Scores(ranking) => {
                let words = ranking.scores.iter().map(|it| format!("{} {:.2}", it.id, it.score));
                words.collect::<Vec<_>>().join(", ")
            }
            Choice::Reject(rejection) => format!("{rejection:?}"),
        }
    }

    fn request(model: &str) -> RequestFacts {
        RequestFacts { model: model.into(), ..Host::new().request() }
    }

    #[test]
    fn an_alias_is_the_models_behind_it() {
        let settings = || json!({"aliases": {"gpt-4o": ["big", "small"]}});
        assert_eq!(route(settings(), &request("gpt-4o"), &three()), "big Alias");
        assert_eq!(route(settings(), &request("small"), &three()), "abstain");
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        let settings = || {
            json!({"rules": [
                {"model": "auto", "tenants": ["acme"], "to": ["big"]},
                {"model": "auto", "min_prompt_tokens": 4000, "to": ["long"]},
                {"model": "auto", "to": ["small"]},
            ], "aliases": {"auto": ["long"]}})
        };
        let route = |request: RequestFacts| route(settings(), &request, &three());
        let auto = || request("auto");
        assert_eq!(route(auto()), "small Rule");
        assert_eq!(route(RequestFacts { prompt_tokens: 4000, ..auto() }), "long Rule");
        let acme = RequestFacts { tenant: "acme".into(), prompt_tokens: 4000, ..auto() };
        assert_eq!(route(acme), "big Rule");
    }

    #[test]
    fn a_model_that_is_busy_not_ready_or_too_small_hands_on_to_the_next() {
        let settings = || json!({"aliases": {"auto": ["small", "big"]}, "fall_back_at": 4});
        let with = |change: fn(&mut Candidate)| {
            let mut all = three();
            change(&mut all[0]);
            route(settings(), &request("auto"), &all)
        };
        assert_eq!(with(|small| small.waiting = 3), "small Alias");
        assert_eq!(with(|small| small.waiting = 4), "big Fallback");
        assert_eq!(with(|small| small.ready = false), "big Fallback");
        assert_eq!(with(|small| small.context = 149), "big Fallback");
    }

    #[test]
    fn when_all_are_busy_it_waits_where_the_least_wait() {
        let settings = json!({"aliases": {"auto": ["small", "big"]}, "fall_back_at": 4});
        let mut all = three();
        (all[0].waiting, all[1].waiting) = (9, 8);
        assert_eq!(route(settings.clone(), &request("auto"), &all), "big Fallback");
        (all[0].waiting, all[1].waiting) = (8, 9);
        assert_eq!(route(settings, &request("auto"), &all), "small Alias");
    }

    #[test]
    fn a_model_that_nobody_serves_is_left_to_the_host() {
        let settings = json!({"aliases": {"auto": ["gone"]}});
        assert_eq!(route(settings, &request("auto"), &three()), "abstain");
    }

    #[test]
    fn a_split_keeps_its_shares_and_its_people() {
        let settings = |sticky: &str| json!({"rules": [{"split": {"small": 90, "big": 10}, "sticky": sticky}]});
        let big = |requests: &mut dyn Iterator<Item = RequestFacts>, sticky: &str| {
            let router: Router = Host::new().begin(settings(sticky)).expect("settings");
            requests
                .filter(|it| matches!(router.route(it, &three()), Choice::Pick(Pick { id: 1, .. })))
                .count()
        };
        let numbered = |n: u32| RequestFacts { request_id: format!("r-{n}"), ..request("m") };
        let by_request = big(&mut (0..1000).map(numbered), "request");
        assert!((70..=130).contains(&by_request), "{by_request} of 1000");
        let by_tenant = big(
            &mut (0..1000).map(|n| RequestFacts { tenant: format!("t-{}", n % 2), ..numbered(n) }),
            "tenant",
        );
        assert!([0, 500, 1000].contains(&by_tenant), "{by_tenant}: a tenant was torn apart");
        let same = (0..100).map(|n| RequestFacts { prefix_key: 7, ..numbered(n) });
        assert!([0, 100].contains(&big(&mut { same }, "prefix")));
    }

    #[test]
    fn the_rest_of_a_split_is_where_it_falls_back_to() {
        let settings = json!({
            "rules": [{"split": {"small": 1, "big": 0, "long": 2}}], "fall_back_at": 1,
        });
        let mut all = three();
        all[2].waiting = 1;
        let picks: Vec<String> = (0..20)
            .map(|n| RequestFacts { request_id: format!("{n}"), ..request("m") })
            .map(|request| route(settings.clone(), &request, &all))
            .collect();
        assert!(picks.contains(&"small Fallback".into()) && picks.contains(&"small Split".into()));
        assert!(picks.iter().all(|pick| pick.starts_with("small")), "{picks:?}");
    }

    #[test]
    fn of_equals_the_one_that_saw_the_beginning_is_better_unless_it_is_far_busier() {
        let mut all = [candidate(0, "m"), Candidate { asked: true, ..candidate(1, "m") }];
        all[1].prefix_seen = true;
        assert_eq!(route(json!({}), &request("m"), &all), "0 0.70, 1 1.00");
        all[1].running = 8;
        all[1].waiting = 16;
        assert_eq!(route(json!({}), &request("m"), &all), "0 0.70, 1 0.48");
        assert_eq!(route(json!({"prefix_weight": 0.9}), &request("m"), &all), "0 0.10, 1 0.92");
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_key() {
        let refused = |settings: Value| {
            Host::new().begin::<Router>(settings).err().expect("they make no sense")
        };
        let both = json!({"rules": [{"to": ["a"], "split": {"b": 1}}, {}], "fall_back_at": 0});
        assert_eq!(
            refused(both),
            "rules[0] must have either `to` or `split`; rules[1] must have either `to` or `split`; \
             fall_back_at must exceed 0, got 0"
        );
        assert_eq!(
            refused(json!({"prefix_weight": 2})),
            "prefix_weight must be from 0 to 1, got 2"
        );
        assert_eq!(refused(json!({"aliases": {"a": []}})), "aliases.a must name a model");
    }
}
