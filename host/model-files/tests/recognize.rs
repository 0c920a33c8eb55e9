//! What a path is, by what lies there and not by what it is called.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use interlock_model_files::{ModelFiles, open, read, recognize};

struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let name = format!("interlock-model-files-{}-{test}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("the temporary folder can be written");
        Self(folder)
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("the test's own folder");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn fifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo works");
}

fn refusal(path: &Path) -> String {
    match recognize(path) {
        Ok(files) => panic!("{} was taken for {files:?}", path.display()),
        Err(refused) => refused.to_string(),
    }
}

#[test]
fn a_gguf_file_is_one_whatever_it_is_called_and_through_links() {
    let folder = Folder::new("gguf");
    for name in ["model.gguf", "MODEL.GGUF", "model", "model.bin", "model.safetensors"] {
        let path = folder.write(name, b"GGUF\x03\0\0\0");
        assert_eq!(recognize(&path).expect(name), ModelFiles::Gguf(path));
    }
    let link = folder.0.join("link");
    symlink(folder.0.join("model"), &link).expect("links can be made");
    assert_eq!(recognize(&link).expect("a link"), ModelFiles::Gguf(link));
}

#[test]
fn what_is_no_model_is_said_with_what_it_is() {
    let folder = Folder::new("neither");
    let says = |path: &Path, says: &str| {
        let refused = refusal(path);
        assert!(refused.contains(says), "{refused}");
    };
    says(&folder.write("text", b"Dear all, this is no model"), "it begins with \"Dear all,\"");
    says(&folder.write("empty", b""), "it is empty");
    says(&folder.write("alone.safetensors", b"\x02\0\0\0\0\0\0\0{}"), "the folder around it");
    says(&folder.0, "it has no config.json");
    folder.write("x.GGUF", b"GGUF");
    says(&folder.0, "name the file, such as x.GGUF");
    folder.write("config.json", b"{}");
    fs::remove_file(folder.0.join("alone.safetensors")).expect("it is there");
    says(&folder.0, "lacks model.safetensors");
    says(&folder.0.join("nowhere"), "No such file");
}

#[test]
fn a_fifo_and_a_device_are_refused_without_being_waited_for() {
    let folder = Folder::new("fifo");
    let path = folder.0.join("pipe.gguf");
    fifo(&path);
    assert!(refusal(&path).contains("it is a FIFO and no regular file"), "{}", refusal(&path));
    let device = folder.0.join("zero.gguf");
    symlink("/dev/zero", &device).expect("links can be made");
    assert!(refusal(&device).contains("it is a device and no regular file"));
    assert!(open(&path).is_err() && read(&device, 1 << 30).is_err());
}

#[test]
fn shards_are_found_by_name_or_by_an_index_and_must_all_be_there() {
    let folder = Folder::new("shards");
    folder.write("config.json", b"{}");
    let first = folder.write("weights.00001-of-00002.safetensors", b"");
    assert!(refusal(&folder.0).ends_with("lacks weights.00002-of-00002.safetensors"));
    let second = folder.write("weights.00002-of-00002.safetensors", b"");
    let path = folder.0.clone();
    let both = ModelFiles::Folder { path: path.clone(), weights: vec![first.clone(), second] };
    assert_eq!(recognize(&folder.0).expect("both are there"), both);

    let index = br#"{"weight_map": {"a": "weights.00001-of-00002.safetensors"}}"#;
    folder.write("model.safetensors.index.json", index);
    let one = ModelFiles::Folder { path, weights: vec![first] };
    assert_eq!(recognize(&folder.0).expect("the index decides"), one);
    folder.write("model.safetensors.index.json", br#"{"weight_map": {"a": "other"}}"#);
    assert!(refusal(&folder.0).ends_with("lacks other"));
    for bad in [&br#"{"weight_map": {"a": "../up"}}"#[..], br#"{"weight_map": {}}"#, b"[]", b"{"] {
        folder.write("model.safetensors.index.json", bad);
        assert!(refusal(&folder.0).contains("index.json is damaged: "));
    }
}

#[test]
fn a_file_longer_than_its_bound_is_refused_with_both_numbers() {
    let folder = Folder::new("bound");
    let path = folder.write("config.json", &[b' '; 100]);
    assert_eq!(read(&path, 100).expect("as long as the bound").len(), 100);
    assert_eq!(read(&path, 99).expect_err("longer").to_string(), "100 bytes, the limit is 99");
}
