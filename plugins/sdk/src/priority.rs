//! Priorities in settings: `"critical"`, `"interactive"`, `"standard"`, `"batch"`, `"sheddable"`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer};

use crate::Priority;

/// How a priority is written; the type itself is generated, so that it cannot derive this.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Written {
    Critical,
    Interactive,
    Standard,
    Batch,
    Sheddable,
}

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Written::deserialize(deserializer)? {
            Written::Critical => Self::Critical,
            Written::Interactive => Self::Interactive,
            Written::Standard => Self::Standard,
            Written::Batch => Self::Batch,
            Written::Sheddable => Self::Sheddable,
        })
    }
}

impl JsonSchema for Priority {
    fn schema_name() -> Cow<'static, str> {
        "Priority".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Written::json_schema(generator)
    }
}
