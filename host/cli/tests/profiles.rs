//! The configurations in `config/` that deployers begin with are taken as they stand, on any machine,
//! and nothing in them is passed over.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Folder, interlock};

/// What `interlock config check` says of a file, if it finds a problem.
fn problem(file: &Path) -> Option<String> {
    // Models that are to be pulled are only remarked on, unless these say that nothing is pulled.
    let mut command = interlock();
    command.env_remove("HF_HUB_OFFLINE").args(["config", "check"]).arg(file);
    let output = command.output().expect("our own binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => {
            let fine = String::from_utf8_lossy(&output.stdout);
            assert!(fine.ends_with(": no problems\n"), "{}: {fine}", file.display());
            None
        }
        Some(2) => Some(said),
        other => panic!("{} ended with {other:?}: {said}", file.display()),
    }
}

/// Every file in `config/` that is a profile, by its name.
fn profiles() -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config");
    let mut found: Vec<_> = fs::read_dir(&folder)
        .expect("config/ is there")
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "toml"))
        .map(|path| (path.file_stem().expect("a name").to_string_lossy().into_owned(), path))
        .filter(|(name, _)| name != "default")
        .collect();
    found.sort();
    found
}

/// One `key = value` of a file.
struct Line<'a> {
    at: usize,
    key: &'a str,
    /// Stands in the settings of a policy, which the policy itself reads.
    of_policy: bool,
}

fn lines(text: &str) -> Vec<Line<'_>> {
    let mut of_policy = false;
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            of_policy = line.starts_with("[policy.settings");
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            found.push(Line { at, key, of_policy });
        }
    }
    found
}

/// The text with some of its lines changed.
fn changed(text: &str, which: impl Fn(usize) -> Option<String>) -> String {
    let lines = text.lines().enumerate();
    lines.map(|(at, line)| which(at).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn each_profile_is_taken_as_it_stands() {
    let names: Vec<String> = profiles().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["cpu", "mac", "nvidia", "simple", "team"]);
    for (name, path) in profiles() {
        assert_eq!(problem(&path), None, "config/{name}.toml");
    }
}

#[test]
fn a_wrong_key_or_value_in_a_profile_is_named() {
    let folder = Folder::new("profiles-wrong");
    let file = folder.0.join("wrong.toml");
    for (name, path) in profiles() {
        let text = fs::read_to_string(&path).expect("it is text");
        let ours: Vec<Line> = lines(&text).into_iter().filter(|line| !line.of_policy).collect();
        assert!(!ours.is_empty(), "config/{name}.toml sets something");
        let key_at = |at| ours.iter().find(|line| line.at == at).map(|line| line.key);

        // All at once: every problem is reported, not only the first.
        folder.put("wrong.toml", &changed(&text, |at| key_at(at).map(|key| format!("x{key} = 1"))));
        let said = problem(&file).expect("no key is right");
        for line in &ours {
            let unknown = format!("x{} is not a known key", line.key);
            assert!(said.contains(&unknown), "config/{name}.toml, {}:\n{said}", line.key);
        }
        folder.put("wrong.toml", &changed(&text, |at| key_at(at).map(|key| format!("{key} = -1"))));
        let said = problem(&file).expect("no value is right");
        for line in &ours {
            let here = format!("wrong.toml:{}", line.at + 1);
            assert!(said.contains(&here), "config/{name}.toml, {}:\n{said}", line.key);
        }
    }
}

#[test]
fn a_wrong_key_in_the_settings_of_a_profiles_policy_is_named() {
    let folder = Folder::new("profiles-settings");
    let file = folder.0.join("wrong.toml");
    let mut tried = 0;
    for (name, path) in profiles() {
        let text = fs::read_to_string(&path).expect("it is text");
        for Line { at, key, .. } in lines(&text).into_iter().filter(|line| line.of_policy) {
            // One at a time: a policy names the first that it does not know.
            let put = |here| (here == at).then(|| format!("x{key} = 1"));
            folder.put("wrong.toml", &changed(&text, put));
            let said = problem(&file).unwrap_or_default();
            assert!(said.contains(&format!("x{key}")), "config/{name}.toml, {key}: {said:?}");
            tried += 1;
        }
    }
    assert!(tried >= 10, "the team's policies have settings: {tried}");
}
