use super::*;

fn from_json(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;

    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(value) if value.is_f64() => Value::from(value.as_f64().unwrap()),
        Json::Number(value) => Value::from(value.as_i64().unwrap()),
        Json::String(value) => Value::from(value.as_str()),
        Json::Array(values) => values.iter().map(from_json).collect(),
        Json::Object(values) => {
            Value::from_pairs(values.iter().map(|(name, value)| (name.clone(), from_json(value))))
        }
    }
}

#[test]
fn dev() {
    let Ok(path) = std::env::var("CASES") else { return };
    let data: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let contexts = data["contexts"].as_array().unwrap();
    let mut out = Vec::new();
    for t in data["templates"].as_array().unwrap() {
        let made = ChatTemplate::new(t["source"].as_str().unwrap(), "<s>".into(), "</s>".into());
        let mut rows = Vec::new();
        for c in t["contexts"].as_array().unwrap() {
            let root = from_json(&contexts[c.as_u64().unwrap() as usize]);
            rows.push(match &made {
                Err(error) => serde_json::json!({"compile": error.to_string()}),
                Ok(t) => match t.run(root) {
                    Ok(text) => serde_json::json!({"text": text}),
                    Err(RenderError::Refused(m)) => serde_json::json!({"refused": m}),
                    Err(error) => serde_json::json!({"error": format!("{error:?}")}),
                },
            });
        }
        out.push(rows);
    }
    std::fs::write(std::env::var("OUT").unwrap(), serde_json::to_string(&out).unwrap()).unwrap();
}
