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

/// Both came up behind the open port, with status 1, and the check saw neither.
#[test]
fn a_tokenizer_that_is_none_and_a_cache_too_small_are_found_by_the_check_and_before_listening() {
    let folder = common::Folder::new("looked-at");
    let model = model_with("looked-at-model", r#""architectures": []"#);
    let config = model.join("config.json");
    let text = fs::read_to_string(&config).expect("it has one");
    let longer =
        text.replace("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 8192");
    assert_ne!(longer, text, "its cache would be too small otherwise");
    fs::write(config, longer).expect("there is room");
    let reference = format!("[model]\nreference = {:?}\n", model.to_str().expect("UTF-8"));
    let refused = |config: &str, says: &[&str]| {
        folder.put("interlock.toml", config);
        for command in
            [&["config", "check", "interlock.toml"][..], &["serve", "--bind", "127.0.0.1:0"]]
        {
            let output = folder.interlock().args(command).output().expect("our own binary runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
            for part in says {
                assert!(said.contains(part), "{command:?}: {part}\nis not in\n{said}");
            }
            assert!(output.stdout.is_empty() && !said.contains("listening"), "{said}");
        }
    };
    let limit = "[cache]\nmemory_max = \"1MiB\"\n";
    refused(
        &format!("{reference}{limit}[[extra_model]]\nreference = \"sim:name=b\"\n"),
        &[
            "model.reference cannot be served: cache.memory_max gives this model 512KiB, and ",
            " tokens take ",
            "raise it",
            "(interlock.toml:4)",
        ],
    );
    fs::write(model.join("tokenizer.json"), "{}").expect("there is room");
    refused(&reference, &["model.reference cannot be served: ", "tokenizer", "(interlock.toml:2)"]);
    fs::remove_file(model.join("tokenizer.json")).expect("it was there");
    refused(&reference, &["model.reference cannot be served: ", "tokenizer", "(interlock.toml:2)"]);
}
