//! Policies that change while requests go on.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use interlock_metrics::Registry;
use interlock_policy_api::{Body, Load, Prompt};
use interlock_policy_chain::{
    GenerationNotKept, LimitsConfig, PolicyMetrics, PolicyMode, RollbackTarget, at_once,
};
use interlock_policy_wasm::{
    ManagerThread, NotChanged, PolicyConfig, PolicyHost, PolicyManager, PolicySource, PolicyUpdate,
    Services,
};
use interlock_request::{Generation, Priority, Sampling};
use interlock_state::State;

mod common;
use common::{admit, config, corpus, facts, grants, guest, metrics, settings};

/// A folder that is gone when the test is.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("interlock-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("there is room for a folder");
        Self(path)
    }

    fn file(&self, name: &str, from: &Path) -> PathBuf {
        let (path, draft) = (self.0.join(name), self.0.join("draft"));
        fs::copy(from, &draft).expect("there is room for a file");
        fs::rename(draft, &path).expect("it can be moved");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn manager(configs: &[PolicyConfig], cache: Option<&Path>) -> (Arc<PolicyManager>, Registry) {
    let registry = Registry::new();
    let services = Services {
        state: State::memory(),
        registry: &registry,
        cache: cache.map(Path::to_path_buf),
    };
    let host = PolicyHost::with(services).expect("WebAssembly works here");
    let metrics = PolicyMetrics::register(&registry);
    let manager = PolicyManager::new(host, configs, LimitsConfig::default().ceilings(), metrics);
    (manager.expect("they are fine"), registry)
}

/// Sends a request through the chain; why it was not let in, if it was not.
fn serve(manager: &PolicyManager, serial: u64, model: &str) -> Result<(), String> {
    let chain = manager.policies().current();
    let generation = Generation {
        sampling: Sampling::greedy(),
        tokens_max: 50,
        tokens_min: 0,
        stop_tokens: vec![],
        logprobs: None,
        priority: Priority::Standard,
    };
    let facts = interlock_policy_api::Facts { serial, ..facts(model) };
    let review = chain.review(serial, facts.request_id.clone());
    let prompt = Prompt::new(vec![1]).expect("a token");
    let body = Arc::new(Body::new(b"{}".to_vec()));
    let answer = at_once(review.admit(facts, &Load::default(), prompt, generation, &body));
    answer.map(drop).map_err(|refused| match refused.failure {
        Some(failure) => failure.to_string(),
        None => format!("{:?}", refused.rejection.reason),
    })
}

fn version(manager: &PolicyManager) -> String {
    manager.list()["policies"][0]["version"].as_str().expect("it has one").to_owned()
}

fn upload(name: &str) -> PolicyUpdate {
    let component = fs::read(guest(name)).expect("it was built");
    PolicyUpdate { component: Some(component), ..PolicyUpdate::default() }
}

fn admits() -> PolicyConfig {
    config("p", guest("guest-misbehaves"))
}

#[test]
fn a_policy_is_replaced_and_taken_back() {
    let (manager, registry) = manager(&[admits()], None);
    assert_eq!(version(&manager), "9.9.9");
    let before = manager.policies().current();
    let generation = manager.replace("p", upload("guest-mute")).expect("it is fine").generation;
    assert_eq!(
        (version(&manager), manager.policies().current().generation()),
        ("1.0.0".into(), generation)
    );
    // Whoever began with the other one stays with it.
    assert_eq!(before.entries()[0].policy.version(), "9.9.9");
    let back = manager.rollback(RollbackTarget::Previous).expect("there was another");
    assert_eq!(back.generation, before.generation());
    assert_eq!(version(&manager), "9.9.9");
    assert_eq!(manager.rollback(RollbackTarget::Previous), Err(GenerationNotKept::NothingEarlier));
    let swaps = metrics(&registry, "interlock_policy_swaps_total");
    assert!(
        swaps.contains(r#"result="swapped"} 1"#) && swaps.contains(r#"result="rolled_back"} 1"#)
    );
}

/// An empty post was a step, and three of them put the start out of reach.
#[test]
fn what_changes_nothing_is_no_step_back() {
    let (manager, registry) = manager(&[admits()], None);
    let same = manager.replace("p", upload("guest-misbehaves")).expect("it is what is there");
    assert!(same.is_nothing() && manager.list()["policies"][0]["posted"] == false, "{same:?}");
    manager.replace("p", upload("guest-mute")).expect("it is fine");
    let same = [
        PolicyUpdate::default(),
        upload("guest-mute"),
        PolicyUpdate { mode: Some(PolicyMode::Enforce), ..upload("guest-mute") },
        PolicyUpdate { settings: Some(settings("{}")), ..PolicyUpdate::default() },
    ];
    for change in same {
        let changed = manager.replace("p", change).expect("it is what is there");
        assert!(changed.is_nothing() && changed.policies.is_empty(), "{changed:?}");
    }
    let nonsense =
        PolicyUpdate { component: Some(b"nonsense".to_vec()), ..PolicyUpdate::default() };
    manager.replace("p", nonsense).expect_err("it is none");
    assert_eq!(manager.policies().kept(), [1, 2]);
    let swaps = metrics(&registry, "interlock_policy_swaps_total");
    assert!(swaps.contains(r#"result="swapped"} 1"#), "{swaps}");
    manager.rollback(RollbackTarget::Previous).expect("there was another");
    assert_eq!(version(&manager), "9.9.9");
}

#[test]
fn the_start_is_back_after_any_number_of_swaps() {
    let (manager, _) = manager(&[admits()], None);
    for n in 0..9 {
        let settings = Some(settings(&format!(r#"{{"init": "fine {n}"}}"#)));
        let change = PolicyUpdate { settings, ..upload("guest-misbehaves") };
        manager.replace("p", change).expect("it is fine");
    }
    let mute = || PolicyUpdate { settings: Some(settings("{}")), ..upload("guest-mute") };
    manager.replace("p", mute()).expect("it is fine");
    let back = manager.rollback(RollbackTarget::Start).expect("it is kept");
    assert_eq!((back.generation, back.from, version(&manager)), (1, 11, "9.9.9".into()));
    assert_eq!(serve(&manager, 1, "fine"), Ok(()));
    // What was swapped after it is gone, and the next one is a new one.
    assert_eq!(manager.policies().kept(), [1]);
    assert_eq!(manager.replace("p", mute()).expect("it is fine").generation, 12);
}

#[test]
fn a_change_says_from_what_to_what_and_in_which_mode() {
    let (manager, _) = manager(&[admits()], None);
    let canary = PolicyUpdate { mode: Some(PolicyMode::Canary(20)), ..upload("guest-mute") };
    let changed = manager.replace("p", canary).expect("it is fine");
    let [change] = &changed.policies[..] else { panic!("{changed:?}") };
    let (from, to) = (change.from.as_ref().expect("it was there"), change.to.as_ref().expect("is"));
    assert_eq!(from.to_string(), format!("9.9.9 (sha256 {}, enforce)", from.sha256));
    assert_eq!(to.to_string(), format!("1.0.0 (sha256 {}, canary:20)", to.sha256));
    assert!(!from.posted && to.posted && !change.settings_changed, "{changed:?}");
    // SIGHUP takes what the files hold, in the mode that the policy has.
    let hup = manager.reload().expect("it is fine");
    let to = hup.policies[0].to.as_ref().expect("it is there");
    assert!(to.version == "9.9.9" && to.mode == PolicyMode::Canary(20) && !to.posted, "{hup:?}");
}

#[test]
fn generations_are_listed_with_where_they_came_from() {
    let scratch = Scratch::new("listed");
    let path = scratch.file("p.wasm", &guest("guest-misbehaves"));
    let (manager, _) = manager(&[config("p", path)], None);
    manager.replace("p", upload("guest-mute")).expect("it is fine");
    manager.reload().expect("the file is fine");
    scratch.file("p.wasm", &guest("guest-mute"));
    manager.load_changed_files();
    let listed = manager.list();
    let generations = listed["generations"].as_array().expect("a list");
    let shown: Vec<_> = generations
        .iter()
        .map(|generation| {
            let policy = &generation["policies"][0];
            let text = |value: &serde_json::Value| value.as_str().unwrap_or("?").to_owned();
            let (origin, version) = (text(&generation["origin"]), text(&policy["version"]));
            format!("{} {origin} {version} {}", generation["generation"], text(&policy["mode"]))
        })
        .collect();
    let wanted = [
        "1 start 9.9.9 enforce",
        "2 admin 1.0.0 enforce",
        "3 sighup 9.9.9 enforce",
        "4 file 1.0.0 enforce",
    ];
    assert_eq!(shown, wanted);
    for generation in generations {
        let at = generation["at"].as_str().expect("a time");
        humantime::parse_rfc3339(at).expect("a time as RFC 3339 writes it");
    }
}

#[test]
fn what_does_not_load_changes_nothing() {
    let (manager, registry) = manager(&[admits()], None);
    let generation = manager.policies().current().generation();
    let unknown = manager.replace("q", upload("guest-mute")).expect_err("there is no q");
    assert_eq!(unknown.to_string(), r#"no policy is called "q""#);
    let nonsense =
        PolicyUpdate { component: Some(b"nonsense".to_vec()), ..PolicyUpdate::default() };
    let failed = manager.replace("p", nonsense).expect_err("it is none");
    assert!(failed.to_string().contains("not WebAssembly at all"), "{failed}");
    let refused = PolicyUpdate {
        settings: Some(settings(r#"{"init": "refuse"}"#)),
        ..PolicyUpdate::default()
    };
    let failed = manager.replace("p", refused).expect_err("it refuses them");
    assert!(matches!(&failed, NotChanged::Load(_)), "{failed}");
    assert!(failed.to_string().contains("does not accept its settings"), "{failed}");
    let needy = upload("guest-hostile");
    let failed = manager.replace("p", needy).expect_err("it was not granted that");
    assert!(failed.to_string().contains("it needs state and metrics"), "{failed}");
    assert_eq!(manager.policies().current().generation(), generation);
    assert!(metrics(&registry, "interlock_policy_swaps").contains(r#"result="failed"} 3"#));
    assert_eq!(serve(&manager, 1, "fine"), Ok(()));
}

#[test]
fn what_did_not_change_is_shared() {
    let other = PolicyConfig { name: "other".into(), ..admits() };
    let (manager, _) = manager(&[admits(), other], None);
    let before = manager.policies().current();
    manager.replace("p", upload("guest-mute")).expect("it is fine");
    let after = manager.policies().current();
    let same = |at: usize| Arc::ptr_eq(&before.entries()[at].policy, &after.entries()[at].policy);
    assert!(!same(0) && same(1));
    let reloaded = || manager.reload().expect("all are fine");
    assert_eq!(reloaded().generation, 3, "the file is still the other one");
    let again = reloaded();
    assert!(again.is_nothing() && again.generation == 3, "{again:?}");
}

#[test]
fn the_one_that_decided_goes_on_for_those_who_do_not_try_the_new_one() {
    let (manager, _) = manager(&[admits()], None);
    let canary = PolicyUpdate { mode: Some(PolicyMode::Canary(10)), ..upload("guest-mute") };
    manager.replace("p", canary).expect("it is fine");
    let entry = |at: usize| manager.policies().current().entries()[at].clone();
    let version = |policy: Option<Arc<dyn interlock_policy_api::Policy>>| {
        policy.map(|policy| policy.version().to_owned())
    };
    assert_eq!(version(entry(0).previous).as_deref(), Some("9.9.9"));
    assert_eq!(entry(0).mode, PolicyMode::Canary(10));
    // Another try: those who do not try it stay with the one that decided for everyone.
    let again = PolicyUpdate { mode: Some(PolicyMode::Canary(50)), ..upload("guest-mute") };
    manager.replace("p", again).expect("it is fine");
    assert_eq!(version(entry(0).previous).as_deref(), Some("9.9.9"));
    // It decides for everyone now, and nothing was compiled or begun for that.
    let tried = entry(0).policy;
    let enforce = PolicyUpdate { mode: Some(PolicyMode::Enforce), ..PolicyUpdate::default() };
    manager.replace("p", enforce).expect("it is fine");
    assert!(entry(0).previous.is_none() && Arc::ptr_eq(&tried, &entry(0).policy));
    // In shadow it would take from the same buckets twice, so it is another one there.
    let shadow = PolicyUpdate { mode: Some(PolicyMode::Shadow), ..PolicyUpdate::default() };
    manager.replace("p", shadow).expect("it is fine");
    let previous = entry(0).previous.expect("it decides meanwhile");
    assert!(Arc::ptr_eq(&tried, &previous) && !Arc::ptr_eq(&tried, &entry(0).policy));
}

#[test]
fn a_file_that_changes_is_loaded_and_one_that_is_nonsense_is_not() {
    let scratch = Scratch::new("files");
    let path = scratch.file("p.wasm", &guest("guest-misbehaves"));
    let (manager, _) = manager(&[config("p", path.clone())], None);
    manager.load_changed_files();
    assert_eq!(manager.policies().current().generation(), 1);
    scratch.file("p.wasm", &guest("guest-mute"));
    manager.load_changed_files();
    assert_eq!((version(&manager), manager.policies().current().generation()), ("1.0.0".into(), 2));
    fs::write(&path, b"half of it").expect("there is room for a file");
    manager.load_changed_files();
    fs::remove_file(&path).expect("it is there");
    manager.load_changed_files();
    assert_eq!((version(&manager), manager.policies().current().generation()), ("1.0.0".into(), 2));
    scratch.file("p.wasm", &guest("guest-misbehaves"));
    let _thread = manager.start_thread(Some(Duration::from_millis(5))).expect("there is a thread");
    let began = Instant::now();
    while version(&manager) != "9.9.9" {
        assert!(began.elapsed() < Duration::from_secs(60), "nobody looked at it");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_replacement_that_ends_in_quarantine_is_taken_back() {
    let scratch = Scratch::new("probation");
    let path = scratch.file("p.wasm", &guest("guest-mute"));
    let first = PolicyConfig { crash_budget: 5, ..config("p", path) };
    let (manager, registry) = manager(&[first], None);
    let thread = manager.start_thread(Some(Duration::from_millis(5))).expect("there is a thread");
    scratch.file("p.wasm", &guest("guest-misbehaves"));
    let began = Instant::now();
    let mut serial = 0;
    // It panics at each of them.
    while !metrics(&registry, "interlock_policy_swaps").contains(r#"result="restored"} 1"#) {
        assert!(began.elapsed() < Duration::from_secs(60), "nobody noticed");
        let _panicked = serve(&manager, serial, "panic");
        serial += 1;
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(version(&manager), "1.0.0");
    // What the file holds is still the same, and is not tried again, also when it is written anew.
    drop(thread);
    let swaps = || metrics(&registry, "interlock_policy_swaps");
    let before = swaps();
    manager.load_changed_files();
    scratch.file("p.wasm", &guest("guest-misbehaves"));
    manager.load_changed_files();
    assert_eq!((version(&manager), swaps()), ("1.0.0".into(), before));
}

#[test]
fn another_configuration_shares_what_it_can() {
    let (manager, _) = manager(&[admits()], None);
    let before = manager.policies().current();
    let heavier = PolicyConfig { weight: 3, ..admits() };
    let added = PolicyConfig { name: "added".into(), ..admits() };
    assert_eq!(manager.reconfigure(&[added, heavier]).expect("all are fine").generation, 2);
    let after = manager.policies().current();
    let names: Vec<_> = after.names().collect();
    assert_eq!(names, ["added", "p"]);
    assert!(Arc::ptr_eq(&before.entries()[0].policy, &after.entries()[1].policy));
    let bad = config("bad", "nowhere.wasm".into());
    let failed = manager.reconfigure(&[admits(), bad]).expect_err("one is not there");
    assert_eq!(failed.len(), 1);
    assert_eq!(manager.policies().current().generation(), 2);
}

#[test]
fn a_thousand_swaps_cost_no_request() {
    let scratch = Scratch::new("swaps");
    let cached = scratch.0.join("compiled");
    let (manager, _) = manager(&[admits()], Some(&cached));
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (manager, over, served, failed) = (&manager, &over, &served, &failed);
            scope.spawn(move || {
                let mut serial = thread << 32;
                while !over.load(Ordering::Relaxed) {
                    match serve(manager, serial, "fine") {
                        Ok(()) => _ = served.fetch_add(1, Ordering::Relaxed),
                        Err(why) => failed.lock().unwrap().push(why),
                    }
                    serial += 1;
                }
            });
        }
        for n in 0..1000 {
            let source =
                if n % 2 == 0 { corpus("0.1.0", "misbehaves") } else { guest("guest-misbehaves") };
            let source = Some(PolicySource::File(source));
            manager
                .replace("p", PolicyUpdate { source, ..PolicyUpdate::default() })
                .expect("it is fine");
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(failed.into_inner().unwrap(), Vec::<String>::new(), "of {served:?}");
    assert!(served.into_inner() > 1000);
}

#[test]
fn a_compiled_policy_is_kept_and_a_broken_one_is_compiled_again() {
    let scratch = Scratch::new("cache");
    let cached = scratch.0.join("compiled");
    let load = || drop(manager(&[admits()], Some(&cached)));
    load();
    let engine = fs::read_dir(&cached).unwrap().next().expect("one engine").unwrap().path();
    let file = fs::read_dir(&engine).unwrap().next().expect("one policy").unwrap().path();
    assert_eq!(fs::metadata(&engine).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let whole = fs::read(&file).unwrap();
    // One that is written anew is another file.
    let untouched = fs::metadata(&file).unwrap().ino();
    load();
    assert_eq!(fs::metadata(&file).unwrap().ino(), untouched, "compiled again");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for broken in [&whole[..whole.len() / 2], &flipped, b"", &[0; 64]] {
        fs::write(&file, broken).unwrap();
        load();
        assert_eq!(fs::read(&file).unwrap(), whole);
    }
    // What others could have written is not believed, and put right.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    load();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // A folder that others may write to is not used.
    fs::set_permissions(&engine, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(&file, b"left alone").unwrap();
    load();
    assert_eq!(fs::read(&file).unwrap(), b"left alone");
}

#[test]
fn a_failed_change_leaves_what_is_counted_as_it_was() {
    let grants = grants(&[
        "state",
        "metrics",
        "headers:x-tenant",
        "content:read:/messages",
        "http:127.0.0.1:1",
    ]);
    let first = PolicyConfig { grants, crash_budget: 1, ..config("p", guest("guest-hostile")) };
    let (manager, registry) = manager(std::slice::from_ref(&first), None);
    let counted = || metrics(&registry, "interlock_plugin_deeds_total");
    let quarantined = || metrics(&registry, "interlock_policy_quarantined{");
    let policy = Arc::clone(&manager.policies().current().entries()[0].policy);
    admit(&*policy, "count long").expect("it may");
    admit(&*policy, "panic").expect_err("it panics");
    let (deeds, gauge) = (counted(), quarantined());
    assert!(deeds.ends_with(" 1") && gauge.ends_with(" 1"), "{deeds} {gauge}");
    // The first of the two would do, and counts nothing.
    let silent = PolicyConfig { source: PolicySource::File(guest("guest-mute")), ..first };
    let bad = config("bad", "nowhere.wasm".into());
    manager.reconfigure(&[silent.clone(), bad]).expect_err("one is not there");
    assert_eq!((counted(), quarantined()), (deeds.clone(), gauge.clone()));
    manager.reconfigure(&[silent]).expect("it is fine");
    assert_eq!((counted(), quarantined()), (String::new(), String::new()));
    manager.rollback(RollbackTarget::Previous).expect("there was another");
    assert_eq!((counted(), quarantined()), (deeds, gauge));
}

#[test]
fn what_is_replaced_keeps_no_room_that_others_need() {
    let (manager, registry) = manager(&[admits()], None);
    let live = || {
        let live = metrics(&registry, r#"interlock_policy_instances{policy="p",state="live"}"#);
        live.rsplit(' ').next().unwrap_or_default().to_owned()
    };
    for n in 0..3 {
        let settings = Some(settings(&format!(r#"{{"init": "fine {n}"}}"#)));
        manager
            .replace("p", PolicyUpdate { settings, ..PolicyUpdate::default() })
            .expect("it is fine");
        assert_eq!(serve(&manager, 1, "fine"), Ok(()));
        assert_eq!(live(), "1", "those that were replaced kept theirs");
    }
    manager.rollback(RollbackTarget::Previous).expect("there was another");
    assert_eq!(serve(&manager, 1, "fine"), Ok(()));
    assert_eq!(live(), "1");
}

/// A policy that never begins.
fn endless() -> Vec<u8> {
    let text = include_str!("../examples/empty.wat");
    let begin = "(core module $m\n";
    assert!(text.contains(begin));
    let spins = format!("{begin} (func $spin (loop $l (br $l))) (start $spin)\n");
    wat::parse_str(text.replace(begin, &spins)).expect("this is WebAssembly text")
}

#[test]
fn what_had_no_time_to_begin_is_tried_again_and_what_is_wrong_is_not() {
    let scratch = Scratch::new("again");
    let path = scratch.file("p.wasm", &guest("guest-mute"));
    let (manager, registry) = manager(&[config("p", path.clone())], None);
    let tries = || {
        let failed = metrics(&registry, r#"interlock_policy_swaps_total{result="failed"}"#);
        failed.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    fs::write(&path, endless()).expect("there is room for a file");
    for _ in 0..9 {
        manager.load_changed_files();
    }
    // A machine may be busy for a while; one that is busy all day is no reason to compile all day.
    assert_eq!(tries(), 5);
    // It needs what it was not granted, today and tomorrow.
    scratch.file("p.wasm", &guest("guest-hostile"));
    for _ in 0..9 {
        manager.load_changed_files();
    }
    assert_eq!(tries(), 6);
    assert_eq!(version(&manager), "1.0.0");
}

/// A policy that was replaced by one that fails at once: two policies, the first of them on trial.
fn on_trial(name: &str) -> (Scratch, Arc<PolicyManager>, Registry, ManagerThread) {
    let scratch = Scratch::new(name);
    let path = scratch.file("p.wasm", &guest("guest-mute"));
    let first = PolicyConfig { crash_budget: 1, ..config("p", path) };
    let other = PolicyConfig { name: "other".into(), ..admits() };
    let (manager, registry) = manager(&[first, other], None);
    manager.replace("p", upload("guest-misbehaves")).expect("it is fine so far");
    let thread = manager.start_thread(None).expect("there is a thread");
    (scratch, manager, registry, thread)
}

fn swapped_to(manager: &PolicyManager, generation: u64) {
    let began = Instant::now();
    while manager.policies().current().generation() != generation {
        assert!(began.elapsed() < Duration::from_secs(60), "nobody noticed");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_policy_stays_on_probation_when_another_one_is_replaced() {
    let (_scratch, manager, _registry, _thread) = on_trial("carried");
    manager.replace("other", upload("guest-mute")).expect("it is fine");
    let panicked = admit(&*manager.policies().current().entries()[0].policy, "panic");
    panicked.expect_err("it panics");
    swapped_to(&manager, 4);
    let chain = manager.policies().current();
    let versions: Vec<_> = chain.entries().iter().map(|entry| entry.policy.version()).collect();
    assert_eq!(versions, ["1.0.0", "1.0.0"], "the one before is back, the other change stays");
}
