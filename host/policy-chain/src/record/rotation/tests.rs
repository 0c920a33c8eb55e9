//! Where records lie when their file is full, moved or deleted.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::{PolicyMetrics, Record, RecordFile, RecordSink as _, Ruling};

/// A folder that is gone when the test is.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("interlock-rotation-{}-{name}", std::process::id());
        let path = fs::canonicalize(std::env::temp_dir()).expect("it is there").join(name);
        fs::create_dir_all(&path).expect("there is room for a folder");
        Self(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("it is there").flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Records, each of which says its number.
struct Recorder {
    file: RecordFile,
    metrics: PolicyMetrics,
    next: u64,
}

impl Recorder {
    fn start(path: &Path, bytes_max: u64, kept: u32) -> Self {
        let metrics = PolicyMetrics::register(&interlock_metrics::Registry::new());
        let bounds = RecordBounds { bytes_max, kept };
        let file = RecordFile::open(path, bounds, &metrics).expect("it opens");
        Self { file, metrics, next: 0 }
    }

    /// Takes so many, and waits until they are written or lost.
    fn take(&mut self, records: u64) {
        for generation in self.next..self.next + records {
            let (version, verdict) = (Record::VERSION, Ruling::Open);
            self.file.take(Record { version, generation, steps: vec![], verdict });
        }
        self.next += records;
        assert!(self.file.flush(), "all is written, or given up");
    }

    fn lost(&self) -> u64 {
        self.metrics.records_dropped.get()
    }
}

/// The numbers of the records in a file.
fn numbers(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).expect("it is there");
    let number =
        |line: &str| serde_json::from_str::<Record>(line).expect("a whole record").generation;
    text.lines().map(number).collect()
}

#[test]
fn a_full_file_is_renamed_and_only_so_many_are_kept() {
    let scratch = Scratch::new("full");
    let path = scratch.0.join("r.jsonl");
    let mut recorder = Recorder::start(&path, 10_000, 2);
    recorder.take(2000);
    assert_eq!(scratch.names(), ["r.jsonl", "r.jsonl.1", "r.jsonl.2"]);
    let files = ["r.jsonl.2", "r.jsonl.1", "r.jsonl"].map(|name| scratch.0.join(name));
    for file in &files {
        let found = fs::metadata(file).expect("it is there");
        assert!((1..=10_000).contains(&found.len()), "{}: {}", file.display(), found.len());
        assert_eq!(found.permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    let last: Vec<u64> = files.iter().flat_map(|file| numbers(file)).collect();
    let first = last[0];
    assert!(first > 0, "some were deleted");
    assert_eq!(last, (first..2000).collect::<Vec<_>>(), "and no other is missing");
    assert_eq!(recorder.lost(), 0);
}

#[test]
fn a_host_that_starts_again_goes_on_with_what_is_there_within_the_same_bound() {
    let scratch = Scratch::new("again");
    let path = scratch.0.join("r.jsonl");
    fs::write(&path, "x".repeat(9_999) + "\n").expect("there is room");
    Recorder::start(&path, 10_000, 0).take(1);
    assert_eq!((scratch.names(), numbers(&path)), (vec!["r.jsonl".to_owned()], vec![0]));
}

#[test]
fn a_file_that_was_moved_or_deleted_gets_nothing_more() {
    let scratch = Scratch::new("moved");
    let (path, moved) = (scratch.0.join("r.jsonl"), scratch.0.join("yesterday"));
    let mut recorder = Recorder::start(&path, 1 << 20, 2);
    recorder.take(2);
    fs::rename(&path, &moved).expect("it is there");
    recorder.take(3);
    assert_eq!((numbers(&moved), numbers(&path)), (vec![0, 1], vec![2, 3, 4]));
    fs::remove_file(&path).expect("it is there");
    recorder.take(1);
    assert_eq!((numbers(&path), recorder.lost()), (vec![5], 0));
}

#[test]
fn who_is_told_to_reopen_begins_the_new_file_at_once() {
    let scratch = Scratch::new("told");
    let path = scratch.0.join("r.jsonl");
    let mut recorder = Recorder::start(&path, 1 << 20, 2);
    recorder.take(1);
    recorder.file.reopen();
    assert_eq!(numbers(&path), [0], "a file that is where it was goes on");
    fs::rename(&path, scratch.0.join("yesterday")).expect("it is there");
    recorder.file.reopen();
    assert_eq!(numbers(&path), [0; 0]);
}

#[test]
fn what_cannot_be_written_anywhere_is_counted_and_the_next_is_tried_again() {
    let scratch = Scratch::new("nowhere");
    let (folder, away) = (scratch.0.join("here"), scratch.0.join("away"));
    fs::create_dir(&folder).expect("there is room");
    let path = folder.join("r.jsonl");
    let mut recorder = Recorder::start(&path, 1 << 20, 2);
    recorder.take(1);
    fs::rename(&folder, &away).expect("it is there");
    recorder.take(4);
    assert_eq!(recorder.lost(), 4);
    fs::create_dir(&folder).expect("there is room");
    recorder.take(1);
    assert_eq!((numbers(&path), recorder.lost()), (vec![5], 4));
}

#[test]
fn a_file_that_cannot_be_renamed_costs_records_and_the_bound_holds() {
    let scratch = Scratch::new("stuck");
    let path = scratch.0.join("r.jsonl");
    let mut recorder = Recorder::start(&path, 10_000, 2);
    fs::write(scratch.0.join("r.jsonl.1"), "earlier\n").expect("there is room");
    // A folder that is not empty gives its place to no file.
    fs::create_dir_all(scratch.0.join("r.jsonl.2/full")).expect("there is room");
    recorder.take(1000);
    assert!(recorder.lost() > 0);
    assert!(fs::metadata(&path).expect("it is there").len() <= 10_000, "the bound holds");
    let earlier = fs::read_to_string(scratch.0.join("r.jsonl.1")).expect("it is there");
    assert_eq!(earlier, "earlier\n");
}

/// Where a step fails and all is tried again, the others would be pushed out one by one.
#[test]
fn earlier_files_move_on_only_where_their_number_is_wanted() {
    let scratch = Scratch::new("gap");
    let path = scratch.0.join("r.jsonl");
    fs::write(&path, "x".repeat(9_999) + "\n").expect("there is room");
    fs::write(scratch.0.join("r.jsonl.2"), "earlier\n").expect("there is room");
    Recorder::start(&path, 10_000, 3).take(1);
    assert_eq!(scratch.names(), ["r.jsonl", "r.jsonl.1", "r.jsonl.2"]);
    let earlier = fs::read_to_string(scratch.0.join("r.jsonl.2")).expect("it is there");
    assert_eq!((earlier.as_str(), numbers(&path)), ("earlier\n", vec![0]));
}

#[test]
fn a_link_stays_and_its_file_is_renamed() {
    let scratch = Scratch::new("link");
    let (disk, path) = (scratch.0.join("disk"), scratch.0.join("r.jsonl"));
    fs::create_dir(&disk).expect("there is room");
    std::os::unix::fs::symlink(disk.join("records"), &path).expect("there is room");
    Recorder::start(&path, 10_000, 1).take(1000);
    assert!(path.is_symlink());
    assert_eq!(scratch.names(), ["disk", "r.jsonl"]);
    assert!(disk.join("records").is_file() && disk.join("records.1").is_file());
}

#[test]
fn looking_whether_it_could_be_written_makes_nothing() {
    let scratch = Scratch::new("looked");
    let path = scratch.0.join("r.jsonl");
    check(&path).expect("it could be made");
    assert_eq!(scratch.names(), [""; 0]);
    fs::write(&path, "kept\n").expect("there is room");
    check(&path).expect("it could be appended to");
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "kept\n");
    let refused = |path: &Path| check(path).expect_err("it could not").to_string();
    assert_eq!(refused(&scratch.0), "it is a folder");
    let nowhere = scratch.0.join("no/r.jsonl");
    let says =
        format!("its folder {}/no: No such file or directory (os error 2)", scratch.0.display());
    assert_eq!(refused(&nowhere), says);
    std::os::unix::fs::symlink(&nowhere, scratch.0.join("dangling")).expect("there is room");
    assert_eq!(refused(&scratch.0.join("dangling")), says);
    check(Path::new("/dev/null")).expect("it takes everything");
}
