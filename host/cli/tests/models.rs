//! What an operator hears of a model that is not all understood: the same from every command, and
//! before anything listens.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn interlock(arguments: &[&str]) -> (Option<i32>, String) {
    let output = common::interlock().args(arguments).output().expect("our own binary runs");
    let both = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&both).into_owned())
}

/// A copy of a small model with one more key.
fn model_with(test: &str, key: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("there is room");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/data/llama-f32");
    for entry in fs::read_dir(kept).expect("it is kept").flatten() {
        fs::copy(entry.path(), folder.join(entry.file_name())).expect("there is room");
    }
    let config = folder.join("config.json");
    let text = fs::read_to_string(&config).expect("it has one");
    fs::write(config, text.replacen('{', &format!("{{ {key},"), 1)).expect("there is room");
    folder
}

#[test]
fn what_is_refused_is_refused_by_every_command_and_before_anything_listens() {
    let known = model_with("differs", r#""partial_rotary_factor": 0.5"#);
    let unknown = model_with("unknown", r#""novelty": 3"#);
    for (model, says) in [
        (&known, "partial_rotary_factor is 0.5, computed is 1 alone"),
        (&unknown, "unknown keys: novelty = 3; if you know that the model means the same without"),
    ] {
        let model = model.to_str().expect("a path in UTF-8");
        for (command, expected) in [
            (&["models", "inspect", model][..], 1),
            (&["serve", "--model", model, "--bind", "127.0.0.1:0"], 2),
        ] {
            let (status, said) = interlock(command);
            assert_eq!(status, Some(expected), "{command:?}: {said}");
            assert!(said.contains(says), "{command:?}: {said}");
            assert!(!said.contains("listening"), "{command:?}: {said}");
        }
    }
    let allowed = |model: &Path| {
        let model = model.to_str().expect("a path in UTF-8");
        interlock(&["models", "inspect", model, "--allow-unknown"])
    };
    let (status, said) = allowed(&unknown);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("ignored         unknown keys: novelty = 3"), "{said}");
    assert_eq!(allowed(&known).0, Some(1), "what is known to differ is not let through");
}

#[test]
fn a_fifo_a_device_and_a_text_are_no_models_and_nobody_waits() {
    let folder = model_with("no-models", r#""novelty": 3"#);
    let pipe = folder.join("pipe.gguf");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo works");
    let config = folder.join("config.json");
    for (path, says) in [
        (pipe.as_path(), "it is a FIFO and no regular file"),
        (Path::new("/dev/zero"), "it is a device and no regular file"),
        (&config, "is neither a GGUF file nor a folder with config.json"),
    ] {
        let path = path.to_str().expect("a path in UTF-8");
        let (status, said) = interlock(&["models", "inspect", path]);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(says), "{said}");
    }
}
