//! One name, one meaning: a type's name is defined once in the host, or the two are one idea in two
//! layers and stand in the list below.

#[allow(dead_code, reason = "the other test uses the rest")]
mod sources;

use std::collections::BTreeMap;

/// Names that several modules define, each with the reason.
const TWICE: &[(&str, &str)] = &[
    ("Attention", "each architecture spells its own, as its checkpoints name the parts"),
    ("Block", "each architecture spells its own, as its checkpoints name the parts"),
    ("Event", "what the engine tells of a request, and what of it a policy is told"),
    ("Mlp", "each architecture spells its own, as its checkpoints name the parts"),
];

#[test]
fn a_type_name_is_defined_once() {
    let mut defined: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for of in sources::host() {
        for (path, module) in &of.modules {
            for name in &module.types {
                let place = [std::slice::from_ref(&of.name), path.as_slice()].concat().join("::");
                defined.entry(name.clone()).or_default().push(place);
            }
        }
    }
    assert!(defined.len() > 500, "the types were found: {}", defined.len());
    let twice: BTreeMap<_, _> = defined.iter().filter(|(_, places)| places.len() > 1).collect();
    let unknown: Vec<_> = twice
        .iter()
        .filter(|(name, _)| !TWICE.iter().any(|(known, _)| known == *name))
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    assert!(unknown.is_empty(), "names with several meanings:\n{}", unknown.join("\n"));
    for (name, reason) in TWICE {
        assert!(twice.contains_key(&(*name).to_owned()), "{name} ({reason}) is defined once");
    }
}
