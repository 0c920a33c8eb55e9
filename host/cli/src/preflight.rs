//! `interlock config check`: checks what the start of a host will need, without changing anything.
//!
//! A problem that is found here would end `interlock serve` with the same message, from the functions
//! that both use. What may change by then (a port that is taken now, a model that is still to be
//! pulled) is a remark.

use std::net::TcpListener;
use std::sync::Arc;

use interlock_catalog::{Catalog, ModelRef};
use interlock_config::{Config, ConfigDraft};
use interlock_models::LoadOptions;
use interlock_policy_wasm::{
    LoadProblem, PolicyConfig, PolicyHost, WasmPolicy, default_cache, unusable_cache,
};

use crate::listeners::{may_pass, not_listening};
use crate::{descriptors, models, policies};

/// Checks everything. Problems are added to the draft; remarks are returned.
pub(crate) fn look(draft: &mut ConfigDraft) -> Vec<String> {
    let mut found = Findings::default();
    found.models(draft);
    found.policies(draft);
    found.files(&draft.config);
    found.listeners(&draft.config);
    if let Err(error) = descriptors::provide(&mut draft.config.clone()) {
        found.wrong("server.connections_max", error.to_string());
    }
    for (key, text) in found.wrong {
        draft.add(&key, text);
    }
    found.remarks
}

#[derive(Default)]
struct Findings {
    /// Problems: the key of each, and the message.
    wrong: Vec<(String, String)>,
    remarks: Vec<String>,
}

impl Findings {
    fn wrong(&mut self, key: impl Into<String>, text: String) {
        self.wrong.push((key.into(), text));
    }

    fn models(&mut self, draft: &ConfigDraft) {
        let mut config = draft.config.clone();
        if !config.cache.problems().is_empty() {
            // The configuration has reported that already.
            config.cache.memory_max = None;
        }
        let options = |context_max, unknown| models::load_options(&config, context_max, unknown);
        let model = &config.model;
        let of_model = options(model.context_max, model.unknown);
        self.model("model.reference".into(), &model.reference, &of_model);
        for (at, extra) in draft.extra_models() {
            let key = format!("extra_model.{at}.reference");
            self.model(key, &extra.reference, &options(extra.context_max, extra.unknown));
        }
    }

    fn model(&mut self, key: String, reference: &ModelRef, options: &LoadOptions) {
        if let ModelRef::Sim { settings, .. } = reference {
            if let Err(why) = models::simulated(settings) {
                self.wrong(&*key, models::not_served(&key, &why));
            }
            return;
        }
        let catalog = Catalog::from_env();
        match catalog.locate(reference) {
            Ok(located) => {
                if let Err((key, text)) = models::look(&key, &located.path, options) {
                    self.wrong(key, text);
                }
            }
            Err(missing) if !missing.can_be_pulled() => {
                self.wrong(&*key, models::not_served(&key, &missing));
            }
            Err(missing)
                if catalog.hub.offline && matches!(reference, ModelRef::HuggingFace(_)) =>
            {
                let why = format!("{missing}; HF_HUB_OFFLINE says not to pull");
                self.wrong(&*key, models::not_served(&key, &why));
            }
            Err(missing) => self.remarks.push(format!("{missing}, or `interlock serve` will")),
        }
    }

    fn policies(&mut self, draft: &ConfigDraft) {
        let host = match PolicyHost::new() {
            Ok(host) => host,
            Err(error) => {
                return self.wrong("policy", format!("policy cannot be checked: {error}"));
            }
        };
        let mut loaded: Vec<Arc<WasmPolicy>> = Vec::new();
        for (at, policy) in draft.policies() {
            // The configuration reports its own problems; the rest is checked with those put right.
            let mended = (!policy.problems().is_empty()).then(|| PolicyConfig {
                settings: policy.settings.clone(),
                grants: policy.grants.clone(),
                ..PolicyConfig::new("mended", policy.source.clone())
            });
            let why = match host.load(mended.as_ref().unwrap_or(policy)) {
                Ok(fine) => {
                    let why = loaded.iter().find_map(|other| fine.contradicts(other));
                    loaded.push(fine);
                    why.map(LoadProblem::Descriptor)
                }
                Err(failed) => Some(failed.why),
            };
            if let Some(why) = why.filter(|why| !matches!(why, LoadProblem::Config(_))) {
                let (key, text) = policies::problem(at, policy, &why);
                self.wrong(key, text);
            }
        }
    }

    fn files(&mut self, config: &Config) {
        let policies = &config.policies;
        if let Some(problem) = policies.record.as_deref().and_then(policies::record_problem) {
            self.wrong("policies.record", problem);
        }
        // A host without a cache starts all the same, only slower.
        let cache = policies.cache_or(default_cache());
        let unusable = cache.and_then(|folder| Some((unusable_cache(&folder)?, folder)));
        if let Some((why, folder)) = unusable {
            self.remarks.push(format!(
                "policies.cache: compiled policies are not kept in {}, which makes each start \
                 slower: {why}",
                folder.display()
            ));
        }
    }

    fn listeners(&mut self, config: &Config) {
        let binds = [
            ("server.bind", Some(config.server.bind)),
            ("admin.bind", config.admin.bind),
            ("metrics.bind", config.metrics.bind),
        ];
        // One at a time: the configuration itself reports two listeners on one port.
        for (key, bind) in binds {
            let Some(bind) = bind else { continue };
            match TcpListener::bind(bind).map(drop) {
                Ok(()) => {}
                Err(error) => {
                    let text = not_listening(key, bind, &error);
                    match may_pass(&error) {
                        true => self.remarks.push(format!(
                            "{text} (at the moment; perhaps by a host that is running)"
                        )),
                        false => self.wrong(key, text),
                    }
                }
            }
        }
    }
}
