//! Whatever is wrong with a configuration: no message quotes a secret of it, and nothing shows one of
//! a configuration that is right.

use std::path::PathBuf;

use interlock_config::{Flag, Sources, load};

/// In every story; nobody may read it.
const SECRET: &str = "s3cret";

/// All that is said of a configuration, or shown of it.
fn told(sources: &Sources) -> String {
    match load(sources) {
        Ok(effective) => format!("{}\n{effective:?}\n{:?}", effective.show(), effective.config),
        Err(problems) => format!("{problems}\n{problems:?}"),
    }
}

fn of_file(name: &str, text: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("secrets-{name}.toml"));
    std::fs::write(&path, text).expect("the folder of tests can be written");
    let told = told(&Sources::of_file(&path));
    std::fs::remove_file(&path).expect("it is there");
    told
}

/// Addresses with a password where it belongs, and wherever else one can end up.
const ADDRESSES: [&str; 37] = [
    "redis://:s3cret@cache",
    "redis://s3cret@cache",
    "redis://me:s3cret@cache:6379/1",
    "redis://me:a/s3cret@cache",
    "redis://me:a?s3cret@cache",
    "redis://me:a#s3cret@cache",
    "redis://me:a@s3cret@cache",
    "redis://me:a%2Fs3cret@cache",
    "redis://me:%zzs3cret@cache",
    "redis://me:s3cret%@cache",
    "redis://me:s3cret cache",
    "redis://me:s3 cret@ca che",
    "redis://me:s3cret",
    "redis://me:s3cret@",
    "redis://me:s3cret@:6379",
    "redis://me:s3cret@cache:port",
    "redis://me:s3cret@cache:99999",
    "redis://me:s3cret@cache/database",
    "redis://me:s3cret@cache/0/1",
    "redis://cache?password=s3cret",
    "redis://cache/0?pass=s3cret",
    "redis://cache#s3cret",
    "redis://cache:s3cret",
    "redis://cache/s3cret",
    "redis://[s3cret]@cache",
    "redis://[::s3cret",
    "redis://me:a]és3cret",
    "redis://[::1]és3cret",
    "redis:///:s3cret@cache",
    "redis:me:s3cret@cache",
    "rediss://me:s3cret@cache",
    "redis+unix:///run/redis?pass=s3cret",
    "redis+unix://me:s3cret@/run/redis",
    "unix:///run/redis?pass=s3cret",
    "http://me:s3cret@cache",
    "me:s3cret@cache",
    "s3cret",
];

#[test]
fn no_message_quotes_an_address_with_a_password() {
    for address in ADDRESSES {
        let file = of_file("address", &format!("[state]\nstore = {address:?}\n"));
        let env = Sources {
            env: vec![("INTERLOCK__STATE__STORE".into(), address.into())],
            ..Sources::default()
        };
        let flag = Flag::set(&format!("state.store={address}")).expect("a key and a value");
        let flag = Sources { flags: vec![flag], ..Sources::default() };
        // The URL as a key, which a colon for an equals sign makes of it.
        let misplaced = Flag::set(&format!("state.store:{address}=x"));
        let misplaced = Sources { flags: misplaced.into_iter().collect(), ..Sources::default() };
        for told in [file, told(&env), told(&flag), told(&misplaced)] {
            assert!(!told.contains("s3"), "{address}: {told}");
        }
    }
}

#[test]
fn no_message_quotes_a_login_in_an_address_to_listen_on() {
    for address in ADDRESSES.iter().filter(|address| address.contains('@')) {
        for table in ["server", "admin", "metrics"] {
            let told = of_file("bind", &format!("[{table}]\nbind = {address:?}\n"));
            assert!(!told.contains("s3"), "{address}: {told}");
            let mends = told.contains(&format!("{table}.bind")) && told.contains("write ");
            assert!(mends, "{address}: {told}");
        }
    }
}

#[test]
fn no_message_quotes_a_secret_of_a_wrong_type_in_a_wrong_place_or_in_what_is_not_toml() {
    for (nth, text) in [
        // Where it belongs.
        "[admin]\ntoken = \"s3cret\"\n",
        // Wrong types.
        "[admin]\ntoken = [\"s3cret\"]\n",
        "[admin]\ntoken = { is = \"s3cret\" }\n",
        "[admin.token]\ns3cret = 1\n",
        "[admin]\ntoken.\"me s3cret\" = 1\n",
        "[state]\nstore = [\"redis://:s3cret@cache\"]\n",
        "[state]\nstore = { url = \"redis://:s3cret@cache\" }\n",
        "[state.store]\n\"redis://:s3cret@cache\" = 1\n",
        "state = \"redis://:s3cret@cache\"\n",
        "admin = \"s3cret\"\n",
        "admin = { token = [[\"s3cret\"]] }\n",
        // Under a wrong name, or for another key.
        "[admin]\ntokn = \"s3cret\"\n",
        "[admn]\ntoken = \"s3cret\"\n",
        "[server]\nbind = \"redis://:s3cret@cache\"\n",
        "[server]\nbind = \"me:s3cret@cache\"\n",
        "[server]\nbody_max = \"me:s3cret@cache\"\n",
        "[server]\nbody_timeout = \"me:s3cret@cache\"\nconnections_max = \"me:s3cret@cache\"\n",
        "[server]\nallowed_hosts = \"me:s3cret@cache\"\n",
        "[server]\nallowed_hosts = [\"me:s3cret@cache\"]\n",
        "[server]\nallowed_origins = [\"https://me:s3cret@cache/\", \"me:s3cret@cache\"]\n",
        "[log]\nformat = \"me:s3cret@cache\"\n",
        "[log]\nfilter = 3\nformat = \"redis://:s3cret@cache\"\n",
        "[state]\n\"redis://:s3cret@cache\" = \"store\"\n",
        "\"redis://:s3cret@cache\" = \"store\"\n",
        "[\"redis://:s3cret@cache\"]\n",
        // No TOML.
        "[admin]\ntoken = s3cret\n",
        "[admin]\ntoken = \"s3cret\n",
        "[admin]\ntoken = 's3cret\n",
        "[admin]\ntoken = \"\"\"s3cret\n",
        "[admin]\ntoken = \"\\s3cret\"\n",
        "[admin]\ntoken: s3cret\n",
        "[admin]\ntoken s3cret\n",
        "[admin]\ntoken = [\n  \"s3cret\n]\n",
        "[admin]\ntoken = \"a\"\ntoken = \"s3cret\"\n",
        "[admin]\ntoken = \"s3cret\" bind = 3\n",
        "[admin]\n= \"s3cret\"\n",
        "[state]\nstore = redis://:s3cret@cache\n",
        "redis://:s3cret@cache\n",
        // In what a policy is to be told, where names say what is secret.
        "[[policy]]\nname = \"p\"\nsource = \"builtin:guard\"\n[policy.settings]\napi_key = \"s3cret\"\n\
         auth_token = [\"s3cret\"]\ncredentials = { a = \"s3cret\" }\nhook = \"https://me:s3cret@hook\"\n",
        "[[policy]]\nname = \"p\"\nsource = 3\nsettings = { password = \"s3cret\" }\n",
        "[[policy]]\nname = \"p\"\nsettings.password = \"s3cret\"\n",
        "[[policy]]\nsettings = \"https://me:s3cret@hook\"\n",
    ]
    .iter()
    .enumerate()
    {
        let told = of_file(&nth.to_string(), text);
        assert!(!told.contains(SECRET), "{text}\n{told}");
    }
}

#[test]
fn a_message_about_an_address_says_what_to_mend() {
    let told = of_file("mend", "[state]\nstore = \"redis://me:pass/word@cache\"\n");
    let why = "state.store cannot be read: its port is no number from 1 to 65535; in a user or \
               password, write %2F for /, %3F for ?, %23 for # and %40 for @, got a value that is not \
               shown";
    assert!(told.contains(why), "{told}");
}
