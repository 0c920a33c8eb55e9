//! The files in `config/` say what the code says.

use std::path::PathBuf;

use interlock_config::{Config, Sources, default_toml, load, reference_md};

/// Fails when the file differs from what is generated; with `UPDATE=1`, writes it instead.
fn agrees(name: &str, generated: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../config").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, generated).expect("config/ can be written");
        return;
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let lines = kept.lines().zip(generated.lines()).enumerate();
    let differs = lines.into_iter().find(|(_, (kept, generated))| kept != generated);
    assert!(
        kept == generated,
        "config/{name} is not what the doc comments say; run `UPDATE=1 cargo test -p \
         interlock-config`. First difference: {differs:#?}"
    );
}

#[test]
fn default_toml_is_generated_from_the_doc_comments() {
    agrees("default.toml", &default_toml());
}

#[test]
fn the_reference_is_generated_from_the_doc_comments() {
    agrees("REFERENCE.md", &reference_md());
}

#[test]
fn default_toml_holds_the_defaults_and_nothing_else() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../config/default.toml");
    let effective = load(&Sources::of_file(&path)).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(effective.config, Config::default());
}

#[test]
fn every_setting_has_a_sentence() {
    let reference = reference_md();
    let mute: Vec<_> = reference.lines().filter(|line| line.ends_with("|  |")).collect();
    assert_eq!(mute, Vec::<&str>::new(), "these have no doc comment");
}
