//! What pages show of code is the code.

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

#[test]
fn the_authors_page_shows_hello_policy_as_it_is() {
    let page = read("wit/README.md");
    let (_, rest) = page.split_once("```rust\n").expect("it shows code");
    let (shown, _) = rest.split_once("```").expect("and ends it");
    assert!(shown.contains("sdk::export!"), "the first code is a whole policy");
    let source = read("examples/hello-policy/src/lib.rs");
    assert!(source.contains(shown), "wit/README.md shows another hello-policy:\n{shown}");
}
