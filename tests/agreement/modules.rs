//! How the host's modules know each other: no two of one folder need each other, at any level. A
//! module may use what its parent defines, and a parent its children.

mod sources;

use std::collections::{BTreeMap, BTreeSet};

use sources::{Crate, ModulePath};

/// What the children of one module use of each other, and one example of each use.
type Uses = BTreeMap<String, BTreeMap<String, String>>;

/// For each module, what its children, and all that is below them, use of each other.
fn uses_between_siblings(of: &Crate) -> BTreeMap<ModulePath, Uses> {
    let mut found: BTreeMap<ModulePath, Uses> = BTreeMap::new();
    for user in of.modules.keys() {
        for used in of.used_by(user) {
            let common = user.iter().zip(&used).take_while(|(one, other)| one == other).count();
            let (Some(one), Some(other)) = (user.get(common), used.get(common)) else { continue };
            let uses = found.entry(user[..common].to_vec()).or_default();
            let example = format!("{} uses {}", user.join("::"), used.join("::"));
            uses.entry(one.clone()).or_default().entry(other.clone()).or_insert(example);
        }
    }
    found
}

/// Everything that can be reached from `start`.
fn reached(uses: &Uses, start: &str) -> BTreeSet<String> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![start.to_owned()]);
    while let Some(name) = next.pop() {
        for other in uses.get(&name).into_iter().flat_map(BTreeMap::keys) {
            if seen.insert(other.clone()) {
                next.push(other.clone());
            }
        }
    }
    seen
}

#[test]
fn no_modules_need_each_other() {
    let crates = sources::host();
    let modules: usize = crates.iter().map(|of| of.modules.len()).sum();
    assert!(modules > 200, "the modules were found: {modules}");
    let mut uses_found = 0;
    let mut circles = vec![];
    for of in &crates {
        for (parent, uses) in uses_between_siblings(of) {
            uses_found += uses.len();
            for (one, others) in &uses {
                for (other, example) in others {
                    if reached(&uses, other).contains(one) {
                        let place =
                            [std::slice::from_ref(&of.name), parent.as_slice()].concat().join("::");
                        circles.push(format!("{place}: {one} -> {other} ({example})"));
                    }
                }
            }
        }
    }
    assert!(uses_found > 200, "uses were found: {uses_found}");
    assert!(circles.is_empty(), "modules that need each other:\n{}", circles.join("\n"));
}
