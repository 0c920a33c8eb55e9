//! What pages show of code, alerts, profiles and tests is what is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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

/// A section of a page, from its heading to the next one of the same depth.
fn section(page: &str, heading: &str) -> String {
    let text = read(page);
    let (_, rest) = text.split_once(&format!("\n{heading}\n")).expect(heading);
    let depth = heading.split(' ').next().expect("a heading has hashes");
    rest.split(&format!("\n{depth} ")).next().unwrap_or_default().to_owned()
}

fn folded(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn readme_shows_the_alerts_as_they_are() {
    let watching = section("README.md", "## Watch it");
    let (_, rest) = watching.split_once("```promql\n").expect("it shows expressions");
    let (shown, _) = rest.split_once("```").expect("and ends them");
    let shown: Vec<&str> = shown.lines().filter(|line| !line.starts_with('#')).collect();
    let alerts = folded(&read("config/alerts.yml"));
    assert_eq!(shown.len(), alerts.matches("- alert: ").count(), "one for each alert");
    for expression in shown {
        let written = [format!("expr: {expression} "), format!("expr: >- {expression} ")];
        let is_there = written.iter().any(|written| alerts.contains(written.as_str()));
        assert!(is_there, "config/alerts.yml has no alert on {expression}");
    }
}

#[test]
fn readme_and_the_operators_page_name_every_profile() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    let mut named = 0;
    for entry in fs::read_dir(folder).expect("config/ is there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".toml") {
            for page in ["README.md", "docs/operating.md"] {
                assert!(read(page).contains(&format!("config/{name})")), "{page} names {name}");
            }
            named += 1;
        }
    }
    assert!(named >= 6, "the default and five profiles: {named}");
}

#[test]
fn every_test_of_the_map_is_there() {
    let map =
        section("tests/README.md", "## What the project was asked for, and which test holds it");
    let rows: Vec<&str> = map.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
    assert!(rows.len() >= 15, "the map has rows: {}", rows.len());
    for row in rows {
        let tests: Vec<(&str, &str)> =
            row.split('`').filter_map(|code| code.split_once("::")).collect();
        assert!(!tests.is_empty(), "no test holds this: {row}");
        for (file, name) in tests {
            let text = read(file);
            let declared = [format!("fn {name}("), format!("def {name}(")];
            let is_there = declared.iter().any(|declared| text.contains(declared.as_str()));
            assert!(is_there, "{file} has no test {name}");
        }
    }
}

/// Folders in which a page's path may begin; anything else between backticks is no path of ours.
const FOLDERS: [&str; 8] =
    ["host/", "plugins/", "tests/", "config/", "docs/", "wit/", "examples/", ".ci/"];

/// The paths that a page names between backticks. `{a,b}` names one for each; a path ends where a test's
/// name (`::`) or a placeholder (`*`, `NAME`) begins.
fn paths_in(text: &str) -> BTreeSet<String> {
    let code = text.split('`').skip(1).step_by(2);
    let words = code.flat_map(str::split_whitespace);
    let ours = words.filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder)));
    let named = ours.flat_map(|word| match word.split_once('{') {
        Some((start, rest)) => {
            let (middle, end) = rest.split_once('}').expect("a brace is closed");
            middle.split(',').map(|part| format!("{start}{part}{end}")).collect()
        }
        None => vec![word.to_owned()],
    });
    let of_test = |path: String| {
        let file = path.split("::").next().unwrap_or_default();
        file.trim_end_matches([',', ';', ':', '.']).to_owned()
    };
    named.map(of_test).filter(|path| !path.contains(['*', '<']) && !path.contains("NAME")).collect()
}

#[test]
fn every_path_that_a_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let fixed = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "tests/README.md",
        "tests/benches/RESULTS.md",
        "wit/README.md",
    ];
    let mut pages: Vec<PathBuf> = fixed.iter().map(PathBuf::from).collect();
    for entry in fs::read_dir(root.join("docs")).expect("docs/ is there").flatten() {
        pages.push(Path::new("docs").join(entry.file_name()));
    }
    let mut named = 0;
    let mut gone = Vec::new();
    for page in &pages {
        let page = page.display().to_string();
        for path in paths_in(&read(&page)) {
            named += 1;
            if !root.join(&path).exists() {
                gone.push(format!("{page}: {path}"));
            }
        }
    }
    assert!(named > 100, "the pages name paths: {named}");
    assert!(gone.is_empty(), "these pages name files that are not there:\n{}", gone.join("\n"));
}

#[test]
fn paths_are_found_between_backticks() {
    let text =
        "`host/a.rs`, host/b.rs, `tests/{c,d}.rs::it_works`, `make host/e,`, `config/*.toml`";
    let expected = ["host/a.rs", "host/e", "tests/c.rs", "tests/d.rs"];
    assert_eq!(paths_in(text), expected.map(str::to_owned).into());
}
