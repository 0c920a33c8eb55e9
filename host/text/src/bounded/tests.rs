use super::*;
// The real one needs ten megabytes of spaces and seconds to count them; see `caught`.
#[test]
fn a_tokenizer_that_panics_fails_one_prompt() {
    let error = caught(|| panic!("Onig: {}", "limit over")).map(|(): ()| ()).unwrap_err();
    assert_eq!(error, RenderError::Tokenizer("Onig: limit over".into()));
}
