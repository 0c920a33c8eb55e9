//! Pulling from a hub, against one that lives in this file.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use interlock_catalog::{Catalog, Hub, HubFailure, ModelRef, NotHere, NotPulled, PullProgress};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn a_pull_brings_what_a_model_needs_and_nothing_else() {
    let hub = StubHub::start(Model::tiny());
    let (folder, catalog) = catalog(&hub, None);
    let reference = reference("hf:org/tiny");
    assert!(catalog.locate(&reference).is_err_and(|error| error.can_be_pulled()));

    let located = catalog.pull(&reference, PullProgress::Silent).expect("the stub has it");

    assert_eq!(located.path, folder.0.join("models--org--tiny/snapshots").join(COMMIT));
    assert_eq!(names_in(&located.path), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(read(&located.path, "model.safetensors"), weights(0));
    assert_eq!(catalog.locate(&reference).expect("it was just pulled"), located);

    let [entry] = &catalog.list()[..] else { panic!("one model is here") };
    assert_eq!(entry.reference, reference);
    assert_eq!(entry.path, located.path);
    assert_eq!(entry.bytes, weights(0).len() as u64 + 2 + 2);
}

#[test]
fn a_second_pull_fetches_nothing_that_is_here() {
    let hub = StubHub::start(Model::tiny());
    let (_folder, catalog) = catalog(&hub, None);
    catalog.pull(&reference("hf:org/tiny"), PullProgress::Silent).expect("the stub has it");
    let before = hub.requests().len();
    catalog.pull(&reference("hf:org/tiny"), PullProgress::Silent).expect("the stub has it");
    let asked: Vec<_> = hub.requests()[before..].iter().map(|asked| asked.path.clone()).collect();
    assert_eq!(asked, ["/api/models/org/tiny/revision/main"]);
}

#[test]
fn of_sharded_weights_the_index_says_which_to_fetch() {
    let hub = StubHub::start(Model::sharded());
    let (_folder, catalog) = catalog(&hub, None);
    let located =
        catalog.pull(&reference("hf:org/big"), PullProgress::Silent).expect("the stub has it");
    assert_eq!(
        names_in(&located.path),
        ["a.safetensors", "b.safetensors", "config.json", "model.safetensors.index.json"]
    );
}

#[test]
fn a_connection_cut_in_a_file_goes_on_where_it_stopped() {
    let hub = StubHub::start(Model { cuts: vec![1000, 500], ..Model::tiny() });
    let (_folder, catalog) = catalog(&hub, None);
    let located =
        catalog.pull(&reference("hf:org/tiny"), PullProgress::Silent).expect("two cuts only");
    assert_eq!(read(&located.path, "model.safetensors"), weights(0));
    assert_eq!(hub.ranges("model.safetensors"), ["bytes=0-", "bytes=1000-", "bytes=1500-"]);
}

#[test]
fn a_pull_that_gave_up_is_taken_up_by_the_next_one() {
    let cuts = vec![100; Hub::RETRIES as usize + 1];
    let hub = StubHub::start(Model { cuts, ..Model::tiny() });
    let (_folder, catalog) = catalog(&hub, None);
    let reference = reference("hf:org/tiny");

    let error =
        catalog.pull(&reference, PullProgress::Silent).expect_err("every connection is cut");
    let told = error.to_string();
    assert!(
        told.starts_with(&format!("{} cannot be reached for org/tiny", hub.endpoint)),
        "{told}"
    );
    assert!(catalog.locate(&reference).is_err(), "half a model was taken for one");
    assert_eq!(catalog.list(), []);

    let located = catalog.pull(&reference, PullProgress::Silent).expect("no cuts are left");
    assert_eq!(hub.ranges("model.safetensors").last().map(String::as_str), Some("bytes=500-"));
    assert_eq!(read(&located.path, "model.safetensors"), weights(0));
}

/// hf-hub renames a part after its last byte; a process killed between the two leaves a whole part,
/// and asking for what follows it is answered 416 for ever.
#[test]
fn a_part_with_nothing_behind_it_does_not_block_the_pull() {
    let hub = StubHub::start(Model::tiny());
    let (folder, catalog) = catalog(&hub, None);
    let blobs = folder.0.join("models--org--tiny/blobs");
    std::fs::create_dir_all(&blobs).expect("a fresh folder");
    std::fs::write(blobs.join(sha256(&weights(0))).with_extension("part"), weights(0))
        .expect("room");
    let located =
        catalog.pull(&reference("hf:org/tiny"), PullProgress::Silent).expect("it starts anew");
    assert_eq!(read(&located.path, "model.safetensors"), weights(0));
}

#[test]
fn a_file_that_arrived_damaged_is_removed_and_reported() {
    let hub = StubHub::start(Model { damaged: true, ..Model::tiny() });
    let (_folder, catalog) = catalog(&hub, None);
    let reference = reference("hf:org/tiny");
    let error = catalog.pull(&reference, PullProgress::Silent).expect_err("the bytes are wrong");
    assert!(matches!(error, NotPulled::Hub(HubFailure::Damaged { .. })), "{error}");
    assert!(catalog.locate(&reference).is_err_and(|error| error.can_be_pulled()));
}

#[test]
fn a_moved_branch_is_followed_and_the_old_model_stays_whole_until_the_new_one_is() {
    let first = StubHub::start(Model::tiny());
    let (folder, catalog) = catalog(&first, None);
    let reference = reference("hf:org/tiny");
    let old = catalog.pull(&reference, PullProgress::Silent).expect("the stub has it");

    let commit = "f".repeat(40);
    let cuts = vec![100; Hub::RETRIES as usize + 1];
    let second = StubHub::start(Model { commit: commit.clone(), seed: 1, cuts, ..Model::tiny() });
    let catalog = Catalog::new(folder.0.clone(), hub_of(&second, &folder.0, None));
    catalog.pull(&reference, PullProgress::Silent).expect_err("every connection is cut");
    assert_eq!(catalog.locate(&reference).expect("the old one"), old);

    let new = catalog.pull(&reference, PullProgress::Silent).expect("no cuts are left");
    assert_eq!(read(&new.path, "model.safetensors"), weights(1));
    assert_eq!(catalog.locate(&reference).expect("the new one"), new);
    assert!(catalog.locate(&format!("hf:org/tiny@{COMMIT}").parse().expect("well formed")).is_ok());
}

#[test]
fn a_token_goes_with_every_request() {
    let hub = StubHub::start(Model { token: Some("hf_secret"), ..Model::tiny() });
    let (_folder, catalog) = catalog(&hub, Some("hf_secret"));
    catalog.pull(&reference("hf:org/tiny"), PullProgress::Silent).expect("the token is right");
    let requests = hub.requests();
    assert!(requests.len() > 3);
    for asked in requests {
        assert_eq!(asked.authorization.as_deref(), Some("Bearer hf_secret"), "{}", asked.path);
    }
}

#[test]
fn a_private_model_without_a_token_says_which_variable_to_set() {
    let hub = StubHub::start(Model { token: Some("hf_secret"), ..Model::tiny() });
    let (_folder, catalog) = catalog(&hub, None);
    let error =
        catalog.pull(&reference("hf:org/tiny"), PullProgress::Silent).expect_err("no token");
    assert_eq!(
        error.to_string(),
        format!(
            "{} does not let us, without a token, read org/tiny (401): private, gated or misspelt; \
             set HF_TOKEN to a token that may read it",
            hub.endpoint
        )
    );
}

#[test]
fn a_model_or_revision_that_is_not_there_is_named_with_its_hub() {
    let hub = StubHub::start(Model::tiny());
    let (_folder, catalog) = catalog(&hub, None);
    let error =
        catalog.pull(&reference("hf:org/other@v2"), PullProgress::Silent).expect_err("a 404");
    assert_eq!(
        error.to_string(),
        format!(
            "{} has no revision v2 of org/other@v2; check the name and the revision, or set \
             HF_ENDPOINT if it lives on another hub",
            hub.endpoint
        )
    );
}

#[test]
fn a_hub_that_nobody_answers_for_is_named_with_what_to_set() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    let folder = Folder::new();
    let hub = Hub {
        endpoint: format!("http://{port}").into(),
        token: None,
        cache: folder.0.clone(),
        retry_pause: Duration::ZERO,
        offline: false,
    };
    let catalog = Catalog::new(folder.0.clone(), hub);
    let told = catalog
        .pull(&reference("hf:org/tiny"), PullProgress::Silent)
        .expect_err("nobody listens")
        .to_string();
    assert!(told.starts_with(&format!("http://{port} cannot be reached for org/tiny (")), "{told}");
    assert!(told.ends_with("set HF_ENDPOINT for a mirror, HTTPS_PROXY for a proxy"), "{told}");
}

#[test]
fn offline_means_that_the_hub_is_not_asked() {
    let hub = StubHub::start(Model::tiny());
    let folder = Folder::new();
    let offline = Hub { offline: true, ..hub_of(&hub, &folder.0, None) };
    let catalog = Catalog::new(folder.0.clone(), offline);
    let error = catalog.pull(&reference("hf:org/tiny"), PullProgress::Silent).expect_err("offline");
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    assert!(hub.requests().is_empty());
}

#[test]
fn a_repository_without_loadable_weights_says_what_it_has_instead() {
    let hub = StubHub::start(Model {
        files: vec![("config.json", b"{}".to_vec()), ("tiny.Q4.gguf", b"GGUF".to_vec())],
        ..Model::tiny()
    });
    let (_folder, catalog) = catalog(&hub, None);
    let error =
        catalog.pull(&reference("hf:org/tiny"), PullProgress::Silent).expect_err("no weights");
    assert!(
        error.to_string().ends_with("it has .gguf files: download one and name its path"),
        "{error}"
    );
}

#[test]
fn org_slash_name_without_hf_is_told_how_to_write_it() {
    let hub = StubHub::start(Model::tiny());
    let (_folder, catalog) = catalog(&hub, None);
    let error = catalog.locate(&reference("no-such-org/name")).expect_err("no such folder");
    assert!(matches!(error, NotHere::NoSuchPath { .. }));
    assert_eq!(
        error.to_string(),
        "there is no file or folder no-such-org/name; for the hub write hf:no-such-org/name"
    );
}

// What the tests stand on.

fn reference(text: &str) -> ModelRef {
    text.parse().expect("the tests write references well")
}

fn catalog(hub: &StubHub, token: Option<&str>) -> (Folder, Catalog) {
    let folder = Folder::new();
    let catalog = Catalog::new(folder.0.clone(), hub_of(hub, &folder.0, token));
    (folder, catalog)
}

fn hub_of(hub: &StubHub, cache: &Path, token: Option<&str>) -> Hub {
    Hub {
        endpoint: hub.endpoint.clone().into(),
        token: token.map(Into::into),
        cache: cache.to_owned(),
        retry_pause: Duration::ZERO,
        offline: false,
    }
}

/// Big enough to be cut in several places, and different for each seed.
fn weights(seed: u8) -> Vec<u8> {
    (0..5000_u32).map(|i| (i % 251) as u8 ^ seed).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).expect("the folder is here").flatten();
    let mut names: Vec<_> =
        files.map(|file| file.file_name().into_string().expect("ASCII")).collect();
    names.sort();
    names
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "interlock-hub-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("the temporary folder can be written");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the stub serves, and how badly.
struct Model {
    name: &'static str,
    commit: String,
    files: Vec<(&'static str, Vec<u8>)>,
    /// XORed into the weights of `tiny`.
    seed: u8,
    /// How many bytes of the weights each connection gives before it breaks; then they hold.
    cuts: Vec<usize>,
    /// Whether the weights differ from their announced hash.
    damaged: bool,
    token: Option<&'static str>,
}

impl Model {
    fn tiny() -> Self {
        Self {
            name: "org/tiny",
            commit: COMMIT.into(),
            files: vec![
                (".gitattributes", b"x".to_vec()),
                ("README.md", b"x".to_vec()),
                ("config.json", b"{}".to_vec()),
                ("model.safetensors", Vec::new()),
                ("onnx/model.onnx", b"x".to_vec()),
                ("original/model.safetensors", b"x".to_vec()),
                ("pytorch_model.bin", b"x".to_vec()),
                ("tokenizer.json", b"{}".to_vec()),
            ],
            seed: 0,
            cuts: Vec::new(),
            damaged: false,
            token: None,
        }
    }

    fn sharded() -> Self {
        let index = br#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#;
        Self {
            name: "org/big",
            files: vec![
                ("config.json", b"{}".to_vec()),
                ("model.safetensors.index.json", index.to_vec()),
                ("a.safetensors", b"aaa".to_vec()),
                ("b.safetensors", b"bbb".to_vec()),
                ("consolidated.safetensors", b"aaabbb".to_vec()),
            ],
            ..Self::tiny()
        }
    }
}

#[derive(Debug, Clone)]
struct Asked {
    path: String,
    range: Option<String>,
    authorization: Option<String>,
}

struct StubHub {
    endpoint: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl StubHub {
    fn start(mut model: Model) -> Self {
        for (name, bytes) in &mut model.files {
            if *name == "model.safetensors" {
                *bytes = weights(model.seed);
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                // A client that went away is none of the stub's business.
                let _ = model.answer(connection, &log);
            }
        });
        Self { endpoint: format!("http://{address}"), asked }
    }

    fn requests(&self) -> Vec<Asked> {
        self.asked.lock().expect("the stub does not panic").clone()
    }

    /// The ranges in which a file's content was asked for, without the look at its first byte.
    fn ranges(&self, file: &str) -> Vec<String> {
        let content = self.requests().into_iter().filter(|asked| asked.path.ends_with(file));
        content.filter_map(|asked| asked.range).filter(|range| range != "bytes=0-0").collect()
    }
}

impl Model {
    fn answer(&mut self, mut to: TcpStream, log: &Mutex<Vec<Asked>>) -> std::io::Result<()> {
        let mut lines = BufReader::new(to.try_clone()?).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let asked = Asked {
            path: path.clone(),
            range: headers.get("range").cloned(),
            authorization: headers.get("authorization").cloned(),
        };
        log.lock().expect("the tests do not panic while holding it").push(asked.clone());

        let token = asked.authorization.as_deref().and_then(|value| value.strip_prefix("Bearer "));
        if self.token.is_some() && self.token != token {
            return reply(&mut to, "401 Unauthorized", &[], b"", 0);
        }
        if path == format!("/api/models/{}/revision/main", self.name) {
            let siblings: Vec<_> = self
                .files
                .iter()
                .map(|(name, _)| serde_json::json!({ "rfilename": name }))
                .collect();
            let body = serde_json::json!({ "sha": self.commit, "siblings": siblings }).to_string();
            return reply(&mut to, "200 OK", &[], body.as_bytes(), body.len());
        }
        let file = path.strip_prefix(&format!("/{}/resolve/{}/", self.name, self.commit));
        let Some((name, bytes)) = self.files.iter().find(|(name, _)| Some(*name) == file) else {
            return reply(&mut to, "404 Not Found", &[], b"", 0);
        };

        let range = asked.range.as_deref().and_then(|range| range.strip_prefix("bytes="));
        let (from, until) =
            range.and_then(|range| range.split_once('-')).expect("hf-hub asks in ranges");
        let from: usize = from.parse().expect("a number");
        let end = until.parse::<usize>().map_or(bytes.len(), |last| last + 1);
        if from >= bytes.len() {
            return reply(&mut to, "416 Range Not Satisfiable", &[], b"", 0);
        }
        let mut body = bytes[from..end].to_vec();
        let mut sent = body.len();
        let large = *name == "model.safetensors";
        if large && until.is_empty() {
            if self.damaged {
                body[0] ^= 0xff;
            }
            if !self.cuts.is_empty() {
                sent = self.cuts.remove(0);
            }
        }
        // As on the hub: large files are named by their SHA-256, small ones by git's hash.
        let etag =
            if large { sha256(bytes) } else { format!("{:0>40}", sha256(bytes)[..16].to_owned()) };
        let headers = [
            ("ETag", format!("\"{etag}\"")),
            ("X-Repo-Commit", self.commit.clone()),
            ("Content-Range", format!("bytes {from}-{}/{}", end - 1, bytes.len())),
        ];
        reply(&mut to, "206 Partial Content", &headers, &body, sent)
    }
}

fn reply(
    to: &mut TcpStream,
    status: &str,
    headers: &[(&str, String)],
    body: &[u8],
    sent: usize,
) -> std::io::Result<()> {
    write!(to, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len())?;
    for (name, value) in headers {
        write!(to, "{name}: {value}\r\n")?;
    }
    to.write_all(b"\r\n")?;
    to.write_all(&body[..sent])
}
