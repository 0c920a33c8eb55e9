//! Models' files taken apart, changed and put together again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Map, Value, json};

/// Asked when it runs, so that a moved checkout, or a build shared by two, finds its own files.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR");
    here.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from).join("../..")
}

pub(crate) fn data() -> PathBuf {
    root().join("tests/golden/data")
}

/// All kept cases, by name.
pub(crate) fn cases() -> Vec<String> {
    let entries = fs::read_dir(data()).unwrap().map(Result::unwrap);
    let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let mut names: Vec<String> =
        folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A copy of a kept case, which goes when it is dropped.
pub(crate) struct Copy(pub PathBuf);

impl Copy {
    pub(crate) fn of(case: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("interlock-files-{}-{number}", std::process::id());
        let copy = std::env::temp_dir().join(name);
        fs::create_dir_all(&copy).unwrap();
        for entry in fs::read_dir(data().join(case)).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
        Self(copy)
    }

    /// What `inspect` and `load` take.
    pub(crate) fn model(&self) -> PathBuf {
        let gguf = self.0.join("model.gguf");
        if gguf.exists() { gguf } else { self.0.clone() }
    }

    pub(crate) fn config(&self) -> Map<String, Value> {
        serde_json::from_slice(&fs::read(self.0.join("config.json")).unwrap()).unwrap()
    }

    pub(crate) fn set_config(&self, config: &Map<String, Value>) {
        fs::write(self.0.join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
    }

    /// Sets some keys of `config.json`.
    pub(crate) fn with_keys(self, keys: &Value) -> Self {
        let mut config = self.config();
        config.extend(keys.as_object().unwrap().clone());
        self.set_config(&config);
        self
    }

    pub(crate) fn with_gguf(self, change: impl FnOnce(&mut Gguf)) -> Self {
        let mut gguf = Gguf::read(&self.model());
        change(&mut gguf);
        fs::write(self.model(), gguf.bytes()).unwrap();
        self
    }

    /// Adds a tensor of f32 to `model.safetensors`.
    pub(crate) fn with_tensor(self, name: &str, shape: &[usize], numbers: &[f32]) -> Self {
        let path = self.0.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let mut data = bytes[8 + length..].to_vec();
        let from = data.len();
        data.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let offsets = [from, data.len()];
        header.insert(
            name.to_owned(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}),
        );
        let header = serde_json::to_vec(&header).unwrap();
        let length = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&length[..], &header, &data].concat()).unwrap();
        self
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A GGUF file, its values as they are stored.
pub(crate) struct Gguf {
    /// Key, and type and value.
    pub(crate) entries: Vec<(String, Vec<u8>)>,
    /// Name, sides (innermost first), type and numbers.
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl Gguf {
    const ALIGNMENT: usize = 32;

    pub(crate) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let mut at = 8;
        let tensor_count = take_u64(&bytes, &mut at);
        let entry_count = take_u64(&bytes, &mut at);
        let mut entries = Vec::new();
        for _ in 0..entry_count {
            let key = take_text(&bytes, &mut at);
            let from = at;
            let kind = take_u32(&bytes, &mut at);
            skip(&bytes, &mut at, kind);
            entries.push((key, bytes[from..at].to_vec()));
        }
        let mut places = Vec::new();
        for _ in 0..tensor_count {
            let name = take_text(&bytes, &mut at);
            let sides = take_u32(&bytes, &mut at);
            let sides: Vec<u64> = (0..sides).map(|_| take_u64(&bytes, &mut at)).collect();
            let kind = take_u32(&bytes, &mut at);
            places.push((name, sides, kind, take_u64(&bytes, &mut at) as usize));
        }
        let data = &bytes[at.next_multiple_of(Self::ALIGNMENT)..];
        let mut ends: Vec<usize> = places.iter().map(|place| place.3).chain([data.len()]).collect();
        ends.sort_unstable();
        let tensors = places.into_iter().map(|(name, sides, kind, from)| {
            let end = *ends.iter().find(|end| **end > from).unwrap_or(&data.len());
            (name, sides, kind, data[from..end].to_vec())
        });
        Self { entries, tensors: tensors.collect() }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        let mut data = Vec::new();
        for (name, sides, kind, numbers) in &self.tensors {
            bytes.extend(text(name));
            bytes.extend((sides.len() as u32).to_le_bytes());
            bytes.extend(sides.iter().flat_map(|side| side.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            data.resize(data.len().next_multiple_of(Self::ALIGNMENT), 0);
            bytes.extend((data.len() as u64).to_le_bytes());
            data.extend(numbers);
        }
        bytes.resize(bytes.len().next_multiple_of(Self::ALIGNMENT), 0);
        [bytes, data].concat()
    }

    pub(crate) fn set(&mut self, key: &str, value: Vec<u8>) {
        self.entries.retain(|(known, _)| known != key);
        self.entries.push((key.to_owned(), value));
    }

    pub(crate) fn add_tensor(&mut self, name: &str, numbers: &[f32]) {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.tensors.push((name.to_owned(), vec![numbers.len() as u64], 0, bytes));
    }
}

pub(crate) fn whole(value: u32) -> Vec<u8> {
    [4_u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub(crate) fn number(value: f32) -> Vec<u8> {
    [6_u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub(crate) fn yes(value: bool) -> Vec<u8> {
    [&7_u32.to_le_bytes()[..], &[value.into()]].concat()
}

pub(crate) fn word(value: &str) -> Vec<u8> {
    [8_u32.to_le_bytes().to_vec(), text(value)].concat()
}

pub(crate) fn wholes(values: &[u32]) -> Vec<u8> {
    let mut bytes = [9_u32.to_le_bytes(), 4_u32.to_le_bytes()].concat();
    bytes.extend((values.len() as u64).to_le_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

fn take_u32(bytes: &[u8], at: &mut usize) -> u32 {
    *at += 4;
    u32::from_le_bytes(bytes[*at - 4..*at].try_into().unwrap())
}

fn take_u64(bytes: &[u8], at: &mut usize) -> u64 {
    *at += 8;
    u64::from_le_bytes(bytes[*at - 8..*at].try_into().unwrap())
}

fn take_text(bytes: &[u8], at: &mut usize) -> String {
    let length = take_u64(bytes, at) as usize;
    *at += length;
    String::from_utf8(bytes[*at - length..*at].to_vec()).unwrap()
}

fn skip(bytes: &[u8], at: &mut usize, kind: u32) {
    match kind {
        0 | 1 | 7 => *at += 1,
        2 | 3 => *at += 2,
        4..=6 => *at += 4,
        8 => drop(take_text(bytes, at)),
        9 => {
            let kind = take_u32(bytes, at);
            for _ in 0..take_u64(bytes, at) {
                skip(bytes, at, kind);
            }
        }
        _ => *at += 8,
    }
}
