//! A file that a person names is read in one place, which knows what is no file and where to stop.

use std::fs;
use std::path::{Path, PathBuf};

/// What would read a file anywhere else.
const READS: [&str; 7] = [
    "fs::read(",
    "fs::read_to_string(",
    " File::open(",
    "::File::open(",
    "OpenOptions::new().read(",
    "options.read(true)",
    "toml::from_reader(",
];

/// Who may: the place itself, what the system says of itself, and what a build does.
const MAY: [(&str, &str); 8] = [
    ("host/files/src/lib.rs", "it is that place"),
    ("host/mlx-setup/", "reads what it has downloaded, when the host is built"),
    ("host/bench/src/machine.rs", "/proc"),
    ("host/models/src/lib.rs", "/proc/meminfo"),
    ("host/models/src/cpu/thread_pool.rs", "/sys"),
    ("host/server/src/connection/listener.rs", "/dev/null, to hold a descriptor"),
    ("host/cli/build.rs", "a build"),
    ("host/text/src/chat/judged.rs", "a test, of what another program has written"),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("it is there").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let is_code = path.extension().is_some_and(|kind| kind == "rs");
        match path.is_dir() {
            true if name != "tests" && name != "examples" => sources(&path, found),
            false if is_code && name != "tests.rs" => found.push(path),
            _ => {}
        }
    }
}

#[test]
fn no_file_is_read_but_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    sources(&root.join("host"), &mut files);
    assert!(files.len() > 100, "the sources were found: {}", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let name = file.strip_prefix(&root).expect("it is inside").display().to_string();
        if MAY.iter().any(|(may, _)| name.starts_with(may)) {
            continue;
        }
        let text = fs::read_to_string(&file).expect("it is text");
        // Tests stand at the end, and read what they have written.
        let code = text.split("\nmod tests {").next().unwrap_or_default();
        for (at, line) in code.lines().enumerate() {
            if READS.iter().any(|read| line.contains(read)) {
                wrong.push(format!("{name}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "use interlock_files::read, or say here why not:\n{}",
        wrong.join("\n")
    );
}
