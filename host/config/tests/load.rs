//! What a configuration becomes, and what is said about a bad one.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use expect_test::{Expect, expect};
use interlock_config::{Config, Effective, Flag, LogFormat, Problems, Sources, draft, load};

/// A file that is `interlock.toml` in messages.
struct Story {
    sources: Sources,
    folder: PathBuf,
}

impl Story {
    fn of(file: &str, env: &[(&str, &str)], flags: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("interlock-config-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
        let path = folder.join("interlock.toml");
        std::fs::write(&path, file).expect("a fresh folder can be written");
        let flag = |text: &&str| match text.strip_prefix("--bind ") {
            Some(address) => Flag::new("--bind", "server.bind", address),
            None => Flag::set(text).expect("the tests write flags well"),
        };
        let sources = Sources {
            file: Some(path),
            env: env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            flags: flags.iter().map(flag).collect(),
        };
        Self { sources, folder }
    }

    fn load(&self) -> Result<Effective, Problems> {
        load(&self.sources)
    }

    fn effective(&self) -> Effective {
        self.load().unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn says(&self, expected: Expect) {
        let told = match self.load() {
            Ok(_) => "no problem".to_owned(),
            Err(problems) => problems.to_string(),
        };
        expected.assert_eq(&told.replace(&format!("{}/", self.folder.display()), ""));
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn without_anything_the_defaults_are_in_effect() {
    assert_eq!(
        load(&Sources::default()).expect("the defaults are right").config,
        Config::default()
    );
    assert_eq!(Config::default().problems(), Vec::<String>::new());
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let file = "[server]\nbind = \"127.0.0.1:1\"\nbody_max = \"1B\"\nheaders_max = 1\n";
    let env = [("INTERLOCK__SERVER__BIND", "127.0.0.1:2"), ("INTERLOCK__SERVER__BODY_MAX", "2B")];
    let story = Story::of(file, &env, &["--bind 127.0.0.1:3"]);
    let effective = story.effective();
    let server = &effective.config.server;
    assert_eq!((server.bind.port(), server.body_max.0, server.headers_max), (3, 2, 1));
    assert_eq!(effective.origin("server.bind"), "--bind");
    assert_eq!(effective.origin("server.body_max"), "env INTERLOCK__SERVER__BODY_MAX");
    let file = story.folder.join("interlock.toml");
    assert_eq!(effective.origin("server.headers_max"), format!("{}:4", file.display()));
    assert_eq!(effective.origin("server.header_max"), "default");
}

#[test]
fn a_later_flag_wins_over_an_earlier_one() {
    let story = Story::of("", &[], &["--bind 127.0.0.1:1", "server.bind=127.0.0.1:2"]);
    assert_eq!(story.effective().config.server.bind.port(), 2);
}

#[test]
fn a_variable_is_read_as_what_its_key_wants() {
    let env = [
        // Would be a number, a list and a boolean, were they not texts.
        ("INTERLOCK__LOG__FILTER", "off"),
        ("INTERLOCK__LOG__FORMAT", "\"json\""),
        ("INTERLOCK__MODEL__REFERENCE", "sim:context=64,decode=1ms"),
        ("INTERLOCK__MODEL__THREADS", "3"),
        ("INTERLOCK__MODEL__ALIASES", "house, gpt-4o-mini"),
        ("INTERLOCK__LIMITS__TOTAL_MAX", "2h"),
        ("INTERLOCK__POLICY", "[]"),
        ("INTERLOCK_CACHE", "not a setting"),
    ];
    let config = Story::of("", &env, &[]).effective().config;
    assert_eq!((config.log.filter.as_str(), config.log.format), ("off", LogFormat::Json));
    assert_eq!(config.model.reference.to_string(), "sim:context=64,decode=1ms");
    assert_eq!(config.model.threads.map(usize::from), Some(3));
    assert_eq!(config.model.aliases, ["house", "gpt-4o-mini"]);
    assert_eq!(config.limits.total_max.as_secs(), 7200);
    assert_eq!(config.policy, []);
}

#[test]
fn naming_a_policy_replaces_the_default_ones() {
    let file =
        "[[policy]]\nname = \"quota\"\nsource = \"quota.wasm\"\n[policy.settings]\nany = 1\n";
    let config = Story::of(file, &[], &[]).effective().config;
    let names: Vec<_> = config.policy.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["quota"]);
    assert_eq!(config.policy[0].settings["any"], 1);
}

#[test]
fn a_key_that_nobody_knows_is_told_its_nearest_neighbour_wherever_it_comes_from() {
    let file = "
[server]
bnd = \"127.0.0.1:1\"
requests_max = 5

[sever]
bind = \"127.0.0.1:1\"

[[policy]]
name = \"guard\"
source = \"builtin:guard\"
dedline = \"5ms\"
on_failure = { admitt = \"open\" }
";
    Story::of(file, &[("INTERLOCK__SERVER__BODYMAX", "1")], &["log.fromat=json"])
        .says(expect![[r#"
            the configuration has 7 problems:
              server.bnd is not a known key, the nearest is server.bind (interlock.toml:3)
              server.requests_max is not a known key, the nearest is detached.requests_max (interlock.toml:4)
              sever is not a known key, the nearest is server (interlock.toml:6)
              policy[0].dedline is not a known key, the nearest is policy.deadline (interlock.toml:12)
              policy[0].on_failure.admitt is not a known key, the nearest is policy.on_failure.admit (interlock.toml:13)
              server.bodymax is not a known key, the nearest is server.body_max (env INTERLOCK__SERVER__BODYMAX)
              log.fromat is not a known key, the nearest is log.format (--set log.fromat)"#]]);
}

#[test]
fn values_of_a_wrong_type_are_all_reported_with_what_was_wanted() {
    let file = "
[model]
reference = \"smollm\"
threads = 0
aliases = [1]

[server]
bind = \"localhost\"
body_max = \"4MB\"

[log]
format = \"xml\"

[limits]
queue_max = 300
total_max = \"long\"
drain_tokens_max = 5000000000

[engine]
mode = 3

[[policy]]
source = \"builtin:guard\"

[[policy]]
name = 7
source = \"\"
settings = 1
memory_max = \"8MB\"
on_failure = { admit = \"shut\" }
";
    Story::of(file, &[("INTERLOCK__WAITING", "many")], &["engine.prefill_chunk=lots"])
        .says(expect![[r#"
            the configuration has 18 problems:
              model.reference cannot be read: "smollm" is no built-in model (did you mean `smollm2-135m-instruct`?); a folder is written with a slash (`./smollm`), a repository as `hf:org/name`, a simulated model as `sim:...` (interlock.toml:3)
              model.threads must be a whole number of at least 1, got 0 (interlock.toml:4)
              model.aliases[0] must be a string, got 1 (interlock.toml:5)
              server.bind cannot be read: "localhost" has no port: write one behind it, such as "localhost:8080" (interlock.toml:8)
              server.body_max cannot be read: a size is a whole number followed by B, KiB, MiB or GiB, got "4MB" (interlock.toml:9)
              log.format must be "text" or "json", got "xml" (interlock.toml:12)
              limits.queue_max must be a duration, got 300 (interlock.toml:15)
              limits.total_max must be a duration, got "long" (interlock.toml:16)
              limits.drain_tokens_max must be a whole number from 0 to 4294967295, got 5000000000 (interlock.toml:17)
              engine.mode must be "batched" or "simple", got 3 (interlock.toml:20)
              policy[0].name must be set, got nothing (interlock.toml:22)
              policy[1].name must be a string, got 7 (interlock.toml:26)
              policy[1].source cannot be read: a policy's source is "builtin:NAME" or the path of a .wasm file, got "" (interlock.toml:27)
              policy[1].settings must be a table, got 1 (interlock.toml:28)
              policy[1].memory_max cannot be read: a size is a whole number followed by B, KiB, MiB or GiB, got "8MB" (interlock.toml:29)
              policy[1].on_failure.admit cannot be read: a failure action is "open", "builtin", "last-good:TIME" or "closed:STATUS" with a status of 400 to 599, got "shut" (interlock.toml:30)
              waiting must be a table, got "many" (env INTERLOCK__WAITING)
              engine.prefill_chunk must be a whole number from 1 to 4294967295, got "lots" (--set engine.prefill_chunk)"#]]);
}

#[test]
fn values_out_of_range_are_reported_by_their_sections_and_together() {
    let file = "
[server]
connections_max = 10
[waiting]
requests_max = 20
[limits]
queue_max = \"0s\"
[log]
filter = \"loud\"
[[policy]]
name = \"Guard\"
source = \"builtin:guard\"
";
    Story::of(file, &[("INTERLOCK__ENGINE__PREFILL_CHUNK", "10000")], &[]).says(expect![[r#"
        the configuration has 5 problems:
          waiting.requests_max must be at most server.connections_max (10), got 20 (interlock.toml:5)
          limits.queue_max must exceed 0s, got 0s (interlock.toml:7)
          log.filter must be made of LEVEL or TARGET=LEVEL with a level of off, error, warn, info, debug, trace, got "loud" (interlock.toml:9)
          policy.name of "Guard" must be 1 to 64 lower-case letters, digits, '-' and '_', got "Guard" (interlock.toml:10)
          engine.prefill_chunk must be at most 8192, got 10000 (env INTERLOCK__ENGINE__PREFILL_CHUNK)"#]]);
}

#[test]
fn a_file_that_is_not_toml_says_on_which_lines() {
    Story::of("[server]\nbind = 127.0.0.1:80\nbody_max = 1\n[log\n", &[], &[]).says(expect![[r#"
        the configuration has 2 problems:
          the line of bind is not TOML: invalid float, expected nothing (interlock.toml:2)
          this line is not TOML: unclosed table, expected `]` (interlock.toml:4)"#]]);
}

#[test]
fn a_file_that_is_not_there_is_a_problem_when_it_was_named() {
    let problems =
        load(&Sources::of_file("/no/such/interlock.toml".as_ref())).expect_err("no file");
    expect![[r#"
        the configuration has a problem:
          /no/such/interlock.toml cannot be read: No such file or directory (os error 2)"#]]
    .assert_eq(&problems.to_string());
}

#[test]
fn show_tells_every_value_and_where_it_came_from_but_no_secret() {
    let file = "
[server]
bind = \"0.0.0.0:9000\"

[[policy]]
name = \"quota\"
source = \"quota.wasm\"
[policy.settings]
api_key = \"hunter2\"
per_minute = 60
";
    let story =
        Story::of(file, &[("INTERLOCK__LOG__FORMAT", "json")], &["engine.prefill_chunk=512"]);
    let shown = story.effective().show().replace(&format!("{}/", story.folder.display()), "");
    expect![[r#"
        extra_model = []                     # default

        [model]
        reference = "smollm2-135m-instruct"  # default
        # name =                             # not set
        aliases = []                         # default
        # context_max =                      # not set
        # threads =                          # not set
        unknown = "refuse"                   # default

        [server]
        bind = "0.0.0.0:9000"                # interlock.toml:3
        allowed_origins = []                 # default
        allowed_hosts = []                   # default
        connections_max = 1024               # default
        # connections_per_address_max =      # not set
        body_max = "4MiB"                    # default
        body_timeout = "30s"                 # default
        header_max = "16KiB"                 # default
        headers_max = 64                     # default
        header_timeout = "30s"               # default
        idle_timeout = "1m 15s"              # default
        stream_keepalive = "10s"             # default
        write_timeout = "1m"                 # default
        half_close = "left"                  # default
        pipelined_max = "256KiB"             # default
        retry_after = "1s"                   # default
        policy_trace = false                 # default
        drain_max = "30s"                    # default

        [admin]
        # bind =                             # not set
        # token =                            # not set
        connections_max = 256                # default
        component_max = "64MiB"              # default

        [metrics]
        # bind =                             # not set
        connections_max = 64                 # default

        [log]
        filter = "info"                      # default
        format = "json"                      # env INTERLOCK__LOG__FORMAT
        buffer_max = "4MiB"                  # default

        [waiting]
        requests_max = 256                   # default

        [limits]
        queue_max = "5m"                     # default
        first_token_max = "10m"              # default
        inter_token_max = "1m"               # default
        total_max = "1h"                     # default
        drain_time_max = "30s"               # default
        drain_tokens_max = 1024              # default
        detach_time_max = "1h"               # default
        detach_tokens_max = 65536            # default

        [work]
        # threads =                          # not set
        requests_max = 256                   # default
        memory_max = "512MiB"                # default
        time_max = "10s"                     # default

        [detached]
        requests_max = 64                    # default
        results_max = 1024                   # default
        memory_max = "64MiB"                 # default
        keep = "10m"                         # default

        [engine]
        mode = "batched"                     # default
        running_max = 64                     # default
        prefill_chunk = 512                  # --set engine.prefill_chunk
        decode_slowdown_max = 5              # default
        decode_pause_max = "200ms"           # default

        [cache]
        # memory_max =                       # not set
        prefix = true                        # default
        prefix_sharing = "tenant"            # default

        [state]
        store = "memory"                     # default
        timeout = "3ms"                      # default
        lease = "30s"                        # default
        keys_max = 100000                    # default
        bytes_max = "32MiB"                  # default
        value_bytes_max = "64KiB"            # default

        [policies]
        reload = "2s"                        # default
        # record =                           # not set
        record_max = "64MiB"                 # default
        record_kept = 3                      # default
        # cache =                            # not set

        [[policy]]
        name = "quota"                       # interlock.toml:6
        source = "quota.wasm"                # interlock.toml:7
        grants = []                          # default
        deadline = "2ms"                     # default
        # soft_deadline =                    # not set
        memory_max = "8MiB"                  # default
        calls_max = 256                      # default
        crash_budget = 5                     # default
        weight = 1                           # default
        mode = "enforce"                     # default

        [policy.on_failure]
        identify = "closed:503"              # default
        transform = "closed:500"             # default
        route = "builtin"                    # default
        admit = "closed:503"                 # default
        # stream_guard =                     # not set
        events = "open"                      # default
        account = "open"                     # default

        [policy.settings]
        api_key = "***"                      # interlock.toml:9
        per_minute = 60                      # interlock.toml:10
    "#]]
    .assert_eq(&shown);
}

#[test]
fn what_show_prints_is_a_configuration_with_the_same_values() {
    let story = Story::of("[waiting]\nrequests_max = 7\n", &[], &["model.threads=2", "policy=[]"]);
    let effective = story.effective();
    let again = Story::of(&effective.show(), &[], &[]);
    assert_eq!(again.effective().config, effective.config);
}

#[test]
fn show_keeps_what_guard_documents() {
    let readme = include_str!("../../../plugins/guard/README.md");
    let (_, example) = readme.split_once("```toml\n").expect("guard's README has an example");
    let (example, _) = example.split_once("```").expect("which ends");
    let effective = Story::of(example, &[], &[]).effective();
    let shown = effective.show();
    assert!(!shown.contains("***"), "guard knows no secret:\n{shown}");
    assert_eq!(Story::of(&shown, &[], &[]).effective().config, effective.config);
}

#[test]
fn show_masks_secrets_by_their_names_and_no_table_as_a_whole() {
    let file = "
[[policy]]
name = \"quota\"
source = \"quota.wasm\"
[policy.settings]
token = \"a\"
hf_token = \"b\"
Auth-Token = \"c\"
upstream_api_key = \"d\"
passwords = [\"e\", \"f\"]
first_token = \"1s\"
stop_token = 2
secretary = \"ada\"
[policy.settings.credentials]
user = \"g\"
[policy.settings.teams]
clients = [{ name = \"ada\", secret = \"h\" }]
";
    let shown = Story::of(file, &[], &[]).effective().show();
    let (_, settings) = shown.split_once("[policy.settings]\n").expect("the settings are shown");
    let plain = settings.lines().map(|line| line.split("  #").next().unwrap_or(line).trim_end());
    expect![[r#"
        Auth-Token = "***"
        first_token = "1s"
        hf_token = "***"
        passwords = ["***", "***"]
        secretary = "ada"
        stop_token = 2
        token = "***"
        upstream_api_key = "***"

        [policy.settings.credentials]
        user = "***"

        [policy.settings.teams]
        clients = [{ name = "ada", secret = "***" }]"#]]
    .assert_eq(&plain.collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_setting_without_a_name_is_told_what_a_name_is() {
    for text in ["=5", " = 5", "server.=5", ".bind=5", "no value"] {
        assert_eq!(Flag::set(text), None, "{text:?} was taken");
    }
    Story::of("", &[("INTERLOCK__", "5"), ("INTERLOCK__SERVER__", "5")], &[]).says(expect![[r#"
        the configuration has 2 problems:
          a setting's name must be section.key, got "" (env INTERLOCK__)
          a setting's name must be section.key, got "server." (env INTERLOCK__SERVER__)"#]]);
}

#[test]
fn a_key_inside_a_value_is_told_that_there_are_none() {
    Story::of(
        "[log]\nformat = { kind = \"json\" }\n",
        &[("INTERLOCK__MODEL__THREADS__MAX", "2")],
        &["server.bind.x=1", "server.drain_max.y=1s"],
    )
    .says(expect![[r#"
        the configuration has 4 problems:
          log.format has no keys inside, got log.format.kind (interlock.toml:2)
          model.threads has no keys inside, got model.threads.max (env INTERLOCK__MODEL__THREADS__MAX)
          server.bind has no keys inside, got server.bind.x (--set server.bind.x)
          server.drain_max has no keys inside, got server.drain_max.y (--set server.drain_max.y)"#]]);
}

#[test]
fn what_others_find_is_reported_in_its_place_among_the_rest() {
    let file = "
[model]
reference = \"sim:\"
[[policy]]
name = 7
source = \"a.wasm\"
[[policy]]
name = \"b\"
source = \"b.wasm\"
[policy.settings]
any = 1
";
    let story = Story::of(file, &[], &[]);
    let mut draft = draft(&story.sources).expect("the file can be read");
    let policies: Vec<_> = draft.policies().map(|(at, policy)| (at, policy.name.clone())).collect();
    assert_eq!(policies, [(1, "b".to_owned())], "a bad one does not change another's number");
    draft.add("policy.1.settings", "policy[1]: no".to_owned());
    draft.add("model.reference", "model.reference: no".to_owned());
    let problems = draft.finish().expect_err("three problems").to_string();
    expect![[r#"
        the configuration has 3 problems:
          model.reference: no (interlock.toml:3)
          policy[0].name must be a string, got 7 (interlock.toml:5)
          policy[1]: no (interlock.toml:10)"#]]
    .assert_eq(&problems.replace(&format!("{}/", story.folder.display()), ""));
}

#[test]
fn a_key_that_once_was_says_what_to_do_instead() {
    Story::of("[server]\npolicy_headers = [\"x-tenant\"]\n", &[], &[]).says(expect![[r#"
        the configuration has a problem:
          server.policy_headers is no key any more: grant a header to the policy that needs it, as in grants = ["headers:x-tenant"] (interlock.toml:2)"#]]);
}

#[test]
fn extra_models_are_read_one_by_one_and_named_apart() {
    let file = "
[model]
reference = \"sim\"
aliases = [\"house\"]

[[extra_model]]
reference = \"sim:salt=1\"
name = \"other\"

[[extra_model]]
name = \"nothing\"

[[extra_model]]
reference = \"sim\"
context_max = 0
";
    Story::of(file, &[], &[]).says(expect![[r#"
        the configuration has 3 problems:
          extra_model.name must be unlike all other names of models, got "sim" twice (interlock.toml:6)
          extra_model[1].reference must be set, got nothing (interlock.toml:10)
          extra_model[2].context_max must be a whole number from 1 to 4294967295, got 0 (interlock.toml:15)"#]]);
    let file = "model.unknown = \"hope\"";
    Story::of(file, &[], &[]).says(expect![[r#"
        the configuration has a problem:
          model.unknown must be "refuse" or "warn", got "hope" (interlock.toml:1)"#]]);
    let good = "
[[extra_model]]
reference = \"sim\"

[[extra_model]]
reference = \"sim\"
name = \"other\"
";
    let config = Story::of(good, &[], &[]).effective().config;
    let names: Vec<_> = config.extra_model.iter().map(|m| m.model_id().to_string()).collect();
    assert_eq!(names, ["sim", "other"]);
}

#[test]
fn an_address_to_listen_on_may_be_localhost_and_says_otherwise_what_to_write() {
    let story =
        Story::of("", &[("INTERLOCK__ADMIN__BIND", "localhost:8081")], &["--bind [::1]:80"]);
    let config = story.effective().config;
    assert_eq!(config.server.bind.to_string(), "[::1]:80");
    assert_eq!(config.admin.bind.map(|bind| bind.to_string()), Some("127.0.0.1:8081".into()));

    let file = "[admin]\nbind = 8081\n";
    Story::of(file, &[("INTERLOCK__METRICS__BIND", "gpu-box:9090")], &["--bind :8185"])
        .says(expect![[r#"
            the configuration has 3 problems:
              admin.bind must be an address and a port, such as "127.0.0.1:8080", got 8081 (interlock.toml:2)
              metrics.bind cannot be read: "gpu-box:9090" begins with "gpu-box", which is no IP address, and no name but localhost is looked up: write "127.0.0.1:9090" for this machine alone, "0.0.0.0:9090" for all addresses that it has, or one of them (env INTERLOCK__METRICS__BIND)
              server.bind cannot be read: ":8185" does not say on which addresses: write "127.0.0.1:8185" for this machine alone, or "0.0.0.0:8185" for all addresses that it has (--bind)"#]]);
}

#[test]
fn listeners_that_take_each_others_port_are_named_together() {
    let flags = ["--bind 0.0.0.0:80", "admin.bind=127.0.0.1:80", "metrics.bind=127.0.0.1:80"];
    Story::of("", &[], &flags).says(expect![[r#"
        the configuration has 3 problems:
          admin.bind must differ from server.bind (0.0.0.0:80), got 127.0.0.1:80 (--set admin.bind)
          metrics.bind must differ from server.bind (0.0.0.0:80), got 127.0.0.1:80 (--set metrics.bind)
          metrics.bind must differ from admin.bind (127.0.0.1:80), got 127.0.0.1:80 (--set metrics.bind)"#]]);
    // Each gets a free one.
    Story::of("", &[], &["--bind 127.0.0.1:0", "admin.bind=127.0.0.1:0"]).effective();
}

#[test]
fn what_web_pages_and_connections_are_allowed_is_checked() {
    let file = "[server]
allowed_origins = [\"https://chat.example/\"]
allowed_hosts = [\"llm.example:443\"]
stream_keepalive = \"1ms\"
idle_timeout = \"0s\"
";
    Story::of(file, &[], &["metrics.connections_max=5000"]).says(expect![[r#"
        the configuration has 5 problems:
          server.allowed_origins must have origins such as "https://chat.example" (http, https or an application's own scheme, a host and, if it is not the usual one, a port; nothing behind), or "*" for all, got "https://chat.example/" (interlock.toml:2)
          server.allowed_hosts must have names such as "llm.example" (no scheme, no port), or "*" for all, got "llm.example:443" (interlock.toml:3)
          server.stream_keepalive must be 0s (none) or at least 10ms, got 1ms (interlock.toml:4)
          server.idle_timeout must exceed 0s, got 0s (interlock.toml:5)
          metrics.connections_max must be 1 to 1024, got 5000 (--set metrics.connections_max)"#]]);
    let list = Story::of("", &[], &["server.allowed_origins=https://a.example,http://b.example:1"]);
    assert_eq!(
        list.effective().config.server.allowed_origins,
        ["https://a.example", "http://b.example:1"]
    );
}
