//! Several models, each under its own names.

use std::sync::{Arc, Mutex};

use interlock_policy_api::{Candidate, Choice, Facts};
use interlock_sim::SimSettings;

use crate::rig::{Rig, Script, Setup};

async fn two() -> Rig {
    let other = SimSettings { stop: 0, salt: 1, ..SimSettings::default() };
    Rig::with(Setup { other: Some(other), ..Setup::default() }).await
}

fn ask(model: &str) -> String {
    format!(r#"{{"model":"{model}","prompt":"hello","max_tokens":30,"temperature":0}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_model_answers_under_its_own_name_with_its_own_tokens() {
    let mut rig = two().await;
    let (sim, other) = (ask("sim"), ask("other"));
    let (of_sim, of_other) =
        tokio::join!(rig.post("/v1/completions", &sim), rig.post("/v1/completions", &other));
    let (of_sim, of_other) = (of_sim.json(), of_other.json());
    assert_eq!((&of_sim["model"], &of_other["model"]), (&"sim".into(), &"other".into()));
    let text = |answer: &serde_json::Value| answer["choices"][0]["text"].to_string();
    assert_ne!(text(&of_sim), text(&of_other));
    let mut known = [rig.facts().await.model.to_string(), rig.facts().await.model.to_string()];
    known.sort();
    assert_eq!(known, ["other", "sim"], "policies are told which");
    for model in ["sim", "other"] {
        let line = format!(
            r#"requests_total{{endpoint="completions",model="{model}",outcome="completed"}}"#
        );
        assert_eq!(rig.metric(&line), 1.0);
    }
    let alias = rig.post("/v1/completions", &ask("gpt-4o-mini")).await.json();
    assert_eq!((text(&alias), &alias["model"]), (text(&of_other), &"other".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_models_are_listed_and_an_unknown_one_is_told_so() {
    let rig = two().await;
    let list = rig.get("/v1/models").await.json();
    let ids: Vec<_> =
        list["data"].as_array().expect("a list").iter().map(|card| &card["id"]).collect();
    assert_eq!(ids, ["sim", "other", "gpt-4o-mini"]);
    let unknown = rig.post("/v1/completions", &ask("gpt-5")).await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "model_not_found"));
    assert!(unknown.body.contains(r#"this host serves \"sim\", \"other\""#), "{}", unknown.body);
    let ready = rig.get("/health/ready").await.json();
    assert_eq!(ready["models"].to_string(), r#"{"other":"ready","sim":"ready"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_is_listed_and_shown_under_its_own_name_with_the_model_behind_it() {
    let rig = two().await;
    let list = rig.get("/v1/models").await.json();
    for (name, root) in [("sim", "sim"), ("other", "other"), ("gpt-4o-mini", "other")] {
        let card = rig.get(&format!("/v1/models/{name}")).await.json();
        assert_eq!((&card["id"], &card["root"]), (&name.into(), &root.into()));
        assert!(
            list["data"].as_array().expect("a list").contains(&card),
            "{card} is not in {list}"
        );
    }
}

/// vLLM, llama.cpp's server and mlx_lm.server do not ask for a name.
#[tokio::test(flavor = "multi_thread")]
async fn who_names_no_model_gets_the_default_one_and_policies_are_told_of_it() {
    let seen = Arc::new(Mutex::new(vec![]));
    let seen_in = Arc::clone(&seen);
    let route = move |facts: &Facts, candidates: &[Candidate]| {
        let asked: Vec<_> = candidates.iter().map(|one| one.asked).collect();
        seen_in.lock().expect("no panic").push((facts.model.to_string(), asked));
        Choice::Abstain
    };
    let script = Script { route: Some(Box::new(route)), ..Script::default() };
    let other = Some(SimSettings { stop: 0, ..SimSettings::default() });
    for setup in [Setup::scripted(script), Setup::default()] {
        let rig = Rig::with(Setup { other: other.clone(), ..setup }).await;
        for (path, words) in [
            (
                "/v1/chat/completions",
                r#""messages":[{"role":"user","content":"x"}],"max_tokens":1"#,
            ),
            ("/v1/completions", r#""prompt":"x","max_tokens":1"#),
            ("/v1/responses", r#""input":"x","max_output_tokens":1"#),
        ] {
            for model in ["", r#""model":null,"#, r#""model":"","#] {
                let answer = rig.post(path, &format!("{{{model}{words}}}")).await;
                assert_eq!(
                    (answer.status, &answer.json()["model"]),
                    (200, &"sim".into()),
                    "{path}"
                );
            }
        }
        let named = rig.post("/v1/completions", r#"{"model":" ","prompt":"x"}"#).await;
        assert_eq!((named.status, &*named.code()), (404, "model_not_found"), "a name is a name");
    }
    let seen = seen.lock().expect("no panic");
    assert_eq!(seen[..9], vec![("sim".to_owned(), vec![true, false]); 9]);
}
