//! The page on request fields says what the table says.

use std::path::PathBuf;

#[test]
fn the_page_on_request_fields_is_made_from_the_table() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/request-fields.md");
    let made = interlock_server::request_fields_md();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).expect("docs/ can be written");
    }
    let kept = std::fs::read_to_string(&path).expect("docs/request-fields.md");
    let differs = kept.lines().zip(made.lines()).find(|(kept, made)| kept != made);
    assert!(
        kept == made,
        "docs/request-fields.md is not what the table says; run `UPDATE=1 cargo test -p \
         interlock-server --test request_fields`. First difference: {differs:#?}"
    );
}
