//! `"quantization"` in `config.json`, as mlx_lm writes it: one setting for all, and others (or
//! none) for the modules named beside it.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::leftover::{Leftover, shown};

/// MLX's affine quantization: groups of numbers share a scale and a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Affine {
    pub(crate) bits: i32,
    pub(crate) group_size: i32,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Quantization {
    pub(crate) all: Option<Affine>,
    /// The setting of each module that has its own; none if the module is not quantized.
    modules: HashMap<String, Option<Affine>>,
}

impl Quantization {
    /// Reads it from `config.json`, and says which of its keys are left over; the error names what
    /// is not understood.
    pub(crate) fn read(config: &Map<String, Value>) -> Result<(Self, Vec<Leftover>), String> {
        let table = |key: &'static str| match config.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => Ok(None),
            Some(Value::Object(settings)) => Ok(Some((key, settings))),
            Some(other) => Err(format!("{key} {}", shown(other))),
        };
        // mlx_lm writes it under both names. Under the second alone it may be another tool's
        // (GPTQ, AWQ, bitsandbytes), which says so in quant_method.
        let (own, common) = (table("quantization")?, table("quantization_config")?);
        for (_, settings) in own.iter().chain(&common) {
            if let Some(method) = settings.get("quant_method") {
                return Err(format!("quantization method {}", shown(method)));
            }
        }
        if let (Some((_, own)), Some((_, common))) = (own, common)
            && own != common
        {
            return Err("quantization that differs from quantization_config".to_owned());
        }
        let Some((key, settings)) = own.or(common) else { return Ok(Default::default()) };
        let all = Some(affine(settings, key)?);
        let (mut modules, mut leftovers) = (HashMap::new(), Vec::new());
        for (module, setting) in settings {
            let is_module = module.contains('.') || module == "lm_head";
            match setting {
                Value::Null => {}
                Value::Object(setting) => {
                    modules.insert(module.clone(), Some(affine(setting, module)?));
                    let others = setting.iter().filter(|(name, _)| !is_affine(name));
                    leftovers.extend(others.map(|(name, value)| {
                        Leftover::key(&format!("{key}.{module}.{name}"), value)
                    }));
                }
                Value::Bool(false) => {
                    modules.insert(module.clone(), None);
                }
                // As the others.
                Value::Bool(true) if is_module => {}
                _ if is_affine(module) => {}
                other => leftovers.push(Leftover::key(&format!("{key}.{module}"), other)),
            }
        }
        Ok((Self { all, modules }, leftovers))
    }

    pub(crate) fn of(&self, module: &str) -> Option<Affine> {
        self.modules.get(module).copied().unwrap_or(self.all)
    }
}

fn is_affine(key: &str) -> bool {
    matches!(key, "bits" | "group_size" | "mode")
}

fn affine(setting: &Map<String, Value>, of: &str) -> Result<Affine, String> {
    match setting.get("mode") {
        None | Some(Value::Null) => {}
        Some(Value::String(mode)) if mode == "affine" => {}
        Some(mode) => return Err(format!("{of}: quantization mode {}", shown(mode))),
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
        Quantization::read(value.as_object().unwrap()).map(|(quantization, _)| quantization)
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
        assert_eq!(quantization.of("lm_head"), None, "it is left as it is");
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
        assert!(refused(json!("4bit")).contains("quantization \"4bit\""));
        let both = json!({
            "quantization": {"bits": 4, "group_size": 32},
            "quantization_config": {"bits": 8, "group_size": 32},
        });
        assert!(read(&both).unwrap_err().contains("differs from quantization_config"));
    }

    #[test]
    fn what_nobody_reads_of_it_is_left_over() {
        let config = json!({"quantization": {
            "bits": 4, "group_size": 64, "damp_percent": 0.1, "sym": true, "lm_head": true,
            "model.norm": {"bits": 4, "group_size": 64, "zero": 1},
        }});
        let (_, leftovers) = Quantization::read(config.as_object().unwrap()).unwrap();
        let keys = ["damp_percent", "sym", "model.norm.zero"];
        let values = [json!(0.1), json!(true), json!(1)];
        let left = keys.iter().zip(&values);
        let left: Vec<_> =
            left.map(|(key, value)| Leftover::key(&format!("quantization.{key}"), value)).collect();
        assert_eq!(leftovers, left);
    }
}
