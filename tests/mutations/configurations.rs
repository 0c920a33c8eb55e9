//! Configurations. What is taken of one is what stands in it: written out and read again, it is the
//! same.

use std::collections::BTreeMap;
use std::path::PathBuf;

use interlock_config::{Sources, load};

use crate::{each_mutant, in_words, original};

/// A file that is gone when the test is.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("interlock-{}-{name}.toml", std::process::id())))
    }

    fn load(&self, bytes: &[u8]) -> Result<interlock_config::Config, String> {
        std::fs::write(&self.0, bytes).expect("there is room for a file");
        load(&Sources::of_file(&self.0)).map(|read| read.config).map_err(|why| why.to_string())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn originals() -> Vec<Vec<u8>> {
    let whole = |path: &str| original(path);
    // Without comments, so that a change meets a setting.
    let settings = |path: &str| {
        let text = String::from_utf8(original(path)).expect("it is text");
        let lines = text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line));
        let is_setting = |line: &&str| line.starts_with('[') || line.contains(" = ");
        let mut kept: Vec<&str> = Vec::new();
        for line in lines.filter(is_setting) {
            kept.push(line);
        }
        kept.join("\n").into_bytes()
    };
    let examples = ["hello-policy", "javascript", "python", "quota-by-tenant", "route-by-length"];
    let examples = examples.map(|name| whole(&format!("examples/{name}/interlock.toml")));
    let mut originals = vec![whole("config/default.toml"), settings("config/default.toml")];
    originals.extend(examples);
    originals
}

#[test]
fn a_configuration_is_taken_as_it_stands_or_refused_in_words() {
    let file = Scratch::new("mutant");
    let again = Scratch::new("again");
    let counted = std::cell::RefCell::new(BTreeMap::<bool, u64>::new());
    each_mutant(&originals(), 2500, |mutant| {
        let loaded = file.load(mutant);
        *counted.borrow_mut().entry(loaded.is_ok()).or_default() += 1;
        let config = match loaded {
            Ok(config) => config,
            Err(why) => return in_words(&why),
        };
        let written = toml::to_string(&config).map_err(|why| format!("not written: {why}"))?;
        let read = again.load(written.as_bytes()).map_err(|why| format!("{why}\n{written}"))?;
        match read == config {
            true => Ok(()),
            false => Err(format!("it was read as\n{config:?}\nand then as\n{read:?}")),
        }
    });
    let counted = counted.into_inner();
    for taken in [true, false] {
        assert!(counted.get(&taken).is_some_and(|n| *n > 100), "{taken}: {counted:?}");
    }
}
