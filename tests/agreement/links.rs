//! Every link of a page in this repository leads somewhere: to a file that is there and, behind `#`,
//! to a heading of it. Links to other hosts are not followed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every page below a folder, but for what was built, fetched or is hidden.
fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("it is there").flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let skipped = name.starts_with('.') || name == "target" || name == "node_modules";
        match entry.file_type().expect("it has one") {
            kind if kind.is_dir() && !skipped => pages(&path, found),
            kind if kind.is_file() && name.ends_with(".md") => found.push(path),
            _ => {}
        }
    }
}

/// The lines of a page that are prose, with their numbers: what stands in a block of code is none.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        (!fence && !in_code).then_some((at + 1, line))
    })
}

/// A line without its code spans, in which brackets are no links.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// Where the links of a line lead.
fn targets(line: &str) -> Vec<String> {
    let line = without_code(line);
    let behind = line.split("](").skip(1);
    behind.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()).collect()
}

/// The anchor that GitHub gives a heading: lower case, hyphens for spaces, nothing but letters, digits,
/// `-` and `_`.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let text: String = heading.trim().to_lowercase().chars().filter(kept).collect();
    text.replace(' ', "-")
}

/// The anchors of a page; of headings alike the second has `-1` behind it, and so on.
fn anchors(text: &str) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text).filter(|(_, line)| line.starts_with('#'));
    headings
        .map(|(_, line)| {
            let anchor = anchor(line.trim_start_matches('#'));
            let times = seen.entry(anchor.clone()).or_default();
            *times += 1;
            match *times {
                1 => anchor,
                more => format!("{anchor}-{}", more - 1),
            }
        })
        .collect()
}

/// Why a link on this page leads nowhere.
fn broken(page: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    let file = match file {
        "" => page.to_owned(),
        file => page.parent().expect("it lies in a folder").join(file),
    };
    if !file.exists() {
        return Some("there is no such file".to_owned());
    }
    if heading.is_empty() {
        return None;
    }
    let text = fs::read_to_string(&file).expect("a page with headings is text");
    let known = anchors(&text);
    (!known.iter().any(|known| known == heading))
        .then(|| format!("no heading has this anchor; there are {}", known.join(", ")))
}

#[test]
fn every_link_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    pages(&root, &mut files);
    let mut looked_at = 0;
    let mut wrong = Vec::new();
    for page in files {
        let name = page.strip_prefix(&root).expect("it is inside").display().to_string();
        for (at, line) in prose(&fs::read_to_string(&page).expect("it is text")) {
            for target in targets(line) {
                looked_at += 1;
                let why = broken(&page, &target);
                wrong.extend(why.map(|why| format!("{name}:{at}: {target}: {why}")));
            }
        }
    }
    assert!(looked_at > 50, "links were found: {looked_at}");
    assert!(wrong.is_empty(), "these links lead nowhere:\n{}", wrong.join("\n"));
}

#[test]
fn a_link_to_nowhere_is_found() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let look = |target| broken(&page, target);
    assert_eq!(look("agreement/links.rs"), None);
    assert_eq!(look("#which-test-goes-where"), None);
    assert_eq!(look("https://nowhere.example/page"), None);
    assert!(look("agreement/gone.rs").is_some_and(|why| why.contains("no such file")));
    assert!(look("#gone").is_some_and(|why| why.contains("which-test-goes-where")));
    assert_eq!(targets("[a](b.md), `[c](d)`, [e](f#g)"), ["b.md", "f#g"]);
    assert_eq!(anchors("# `a` b!\n```\n# no\n```\n## A b\n"), ["a-b", "a-b-1"]);
}
