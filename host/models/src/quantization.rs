//! `"quantization"` in `config.json`, as mlx_lm writes it: one setting for all, and others (or
//! none) for the modules named beside it.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// MLX's affine quantization: groups of numbers share a scale and a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Affine {
    pub(crate) bits: i32,
    pub(crate) group_size: i32,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Quantization {
    pub(crate) all: Option<Affine>,
    modules: HashMap<String, Affine>,
}

impl Quantization {
    /// Reads it from `config.json`; the error names what is not understood.
    pub(crate) fn read(config: &Map<String, Value>) -> Result<Self, String> {
        // mlx_lm writes it under both names. Under the second alone it may be another tool's
        // (GPTQ, AWQ, bitsandbytes), which says so in quant_method.
        let settings = match (config.get("quantization"), config.get("quantization_config")) {
            (Some(Value::Object(settings)), _) | (None, Some(Value::Object(settings))) => settings,
            _ => return Ok(Self::default()),
        };
        if let Some(method) = settings.get("quant_method") {
            return Err(format!("quantization method {method}"));
        }
        let all = Some(affine(settings, "quantization")?);
        let mut modules = HashMap::new();
        for (module, setting) in settings {
            // `false` leaves a module as it is; then it has no scales, which says the same.
            if let Value::Object(setting) = setting {
                modules.insert(module.clone(), affine(setting, module)?);
            }
        }
        Ok(Self { all, modules })
    }

    pub(crate) fn of(&self, module: &str) -> Option<Affine> {
        self.modules.get(module).copied().or(self.all)
    }
}

fn affine(setting: &Map<String, Value>, of: &str) -> Result<Affine, String> {
    match setting.get("mode").and_then(Value::as_str) {
        None | Some("affine") => {}
        Some(mode) => return Err(format!("{of}: quantization mode {mode:?}")),
    }
    let number = |key: &str, allowed: &[i32]| {
        let value = setting.get(key).and_then(Value::as_i64);
        value
            .and_then(|value| i32::try_from(value).ok())
            .filter(|value| allowed.contains(value))
            .ok_or_else(|| match value {
                Some(value) => format!("{of}: {key} {value} (MLX has {allowed:?})"),
                None => format!("{of}: no {key}"),
            })
    };
    Ok(Affine {
        bits: number("bits", &[2, 3, 4, 5, 6, 8])?,
        group_size: number("group_size", &[32, 64, 128])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: &Value) -> Result<Quantization, String> {
        Quantization::read(value.as_object().unwrap())
    }

    #[test]
    fn a_module_may_have_its_own_setting() {
        let config = json!({"quantization": {
            "bits": 4, "group_size": 64, "mode": "affine",
            "model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 32},
            "lm_head": false,
        }});
        let quantization = read(&config).unwrap();
        let own = quantization.of("model.layers.0.mlp.down_proj");
        assert_eq!(own, Some(Affine { bits: 8, group_size: 32 }));
        let common = quantization.of("model.layers.1.mlp.down_proj");
        assert_eq!(common, Some(Affine { bits: 4, group_size: 64 }));
    }

    #[test]
    fn what_mlx_rs_cannot_compute_is_refused_by_name() {
        let refused = |setting: Value| read(&json!({"quantization": setting})).unwrap_err();
        assert!(refused(json!({"bits": 4, "group_size": 32, "mode": "mxfp4"})).contains("mxfp4"));
        assert!(refused(json!({"bits": 7, "group_size": 32})).contains("bits 7"));
        assert!(refused(json!({"group_size": 32})).contains("no bits"));
        assert!(refused(json!({"quant_method": "gptq", "bits": 4})).contains("gptq"));
    }
}
