//! What a component is, for those who decide whether to load it.

use interlock_policy_api::{CallTime, Phase, Watch};
use serde::Serialize;

use crate::compiled::Compiled;
use crate::descriptor::{DeclaredMetric, Descriptor};
use crate::grants::{Grant, all_missing, line};
use crate::interfaces::interface_of;
use crate::load::Digest;

/// All that can be said of a component without asking it to decide.
#[derive(Debug, Clone)]
pub struct PolicyDescription {
    /// Bytes of the component.
    pub bytes: usize,
    /// SHA-256 of it.
    pub digest: Digest,
    /// The release of `interlock:policy` that it is spoken to in.
    pub wit: &'static str,
    /// Names of what it imports.
    pub imports: Vec<String>,
    /// The phases that it takes part in.
    pub phases: Vec<Phase>,
    /// Whether its calls may take long, so that it is called on threads of its own, and why.
    pub call_time: CallTime,
    /// What it says of itself, if it began.
    pub says: Option<SelfDescription>,
    /// What it needs and was not granted.
    pub missing: Vec<Grant>,
    /// The line of the configuration that grants all it needs; empty when nothing is missing.
    pub grants_line: String,
}

/// What a policy says of itself.
#[derive(Debug, Clone)]
pub struct SelfDescription {
    /// The name that the component gives itself.
    pub name: String,
    /// The version that the component gives itself.
    pub version: String,
    /// The reasons that the policy can give.
    pub reasons: Vec<String>,
    /// The metrics that the policy declares.
    pub metrics: Vec<DeclaredMetric>,
    /// What the policy needs beyond its imports.
    pub needs: Vec<Grant>,
    /// The events and the text that the policy watches.
    pub watch: Watch,
    /// JSON Schema of its settings; empty: it says nothing.
    pub settings_schema: String,
}

impl PolicyDescription {
    pub(crate) fn new(
        compiled: &Compiled,
        said: Option<(&Descriptor, Vec<Grant>)>,
        grants: &[Grant],
        call_time: CallTime,
    ) -> Self {
        let interfaces = &compiled.interfaces;
        let needs = said.as_ref().map_or(&[][..], |(_, needs)| needs);
        let missing = all_missing(interfaces.missing(grants), needs, grants);
        let grants_line = if missing.is_empty() { String::new() } else { line(grants, &missing) };
        Self {
            bytes: compiled.bytes,
            digest: compiled.digest.clone(),
            wit: interfaces.version.as_str(),
            imports: interfaces.imports.clone(),
            phases: interfaces.phases.clone(),
            call_time,
            says: said.map(|(descriptor, needs)| SelfDescription {
                name: descriptor.name.clone(),
                version: descriptor.version.clone(),
                reasons: descriptor.reasons.clone(),
                metrics: descriptor.metrics(),
                needs,
                watch: descriptor.watch,
                settings_schema: descriptor.settings_schema.clone(),
            }),
            missing,
            grants_line,
        }
    }

    /// Its phases as the WIT names them, with commas.
    pub fn phases_text(&self) -> String {
        let names: Vec<_> = self.phases.iter().map(|phase| interface_of(*phase)).collect();
        names.join(", ")
    }

    /// The same for programs.
    pub fn to_json(&self) -> serde_json::Value {
        #[derive(Serialize)]
        struct Shown<'a> {
            bytes: usize,
            sha256: &'a str,
            wit: &'a str,
            imports: &'a [String],
            phases: Vec<&'a str>,
            slow: bool,
            name: Option<&'a str>,
            version: Option<&'a str>,
            reasons: &'a [String],
            metrics: &'a [DeclaredMetric],
            needs: &'a [Grant],
            missing: &'a [Grant],
            settings_schema: Option<serde_json::Value>,
        }
        let says = self.says.as_ref();
        let shown = Shown {
            bytes: self.bytes,
            sha256: self.digest.as_str(),
            wit: self.wit,
            imports: &self.imports,
            phases: self.phases.iter().map(|phase| interface_of(*phase)).collect(),
            slow: self.call_time != CallTime::AtOnce,
            name: says.map(|says| says.name.as_str()),
            version: says.map(|says| says.version.as_str()),
            reasons: says.map_or(&[], |says| &says.reasons),
            metrics: says.map_or(&[], |says| &says.metrics),
            needs: says.map_or(&[], |says| &says.needs),
            missing: &self.missing,
            settings_schema: says.and_then(|says| serde_json::from_str(&says.settings_schema).ok()),
        };
        serde_json::to_value(shown).unwrap_or_default()
    }
}
