//! Keeps a word from being said, also when it comes in pieces. For patterns and for ending an
//! answer see `plugins/stream-guard`.

use interlock_policy_sdk as sdk;
use sdk::{Guarding, Policy, RequestFacts, Span, StreamGuard, Verdict, Watch, Window, WindowSize};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RedactStream {
    word: String,
    replacement: String,
}

sdk::reasons! {
    enum Reason { Redacted }
}

impl Policy for RedactStream {
    type Settings = Self;
    type Reason = Reason;

    fn new(settings: Self) -> Result<Self, String> {
        match settings.word.as_str() {
            "" => Err("word must not be empty".into()),
            _ => Ok(settings),
        }
    }

    fn watch(&self) -> Watch {
        let size = WindowSize::new(8, Span::from_millis(100));
        Watch { guarding: Guarding::Gate(size), ..Watch::default() }
    }
}

impl StreamGuard for RedactStream {
    fn on_window(&self, _: &RequestFacts, window: &Window) -> Verdict {
        // What stands at the end may be the front of the word. It stays behind, and comes again
        // in front of the next window.
        let last = window.text.match_indices(&self.word).last();
        let after = last.map_or(0, |(at, word)| at + word.len());
        let tail = &window.text[after..];
        let may_go_on = |&(at, _): &(usize, char)| self.word.starts_with(&tail[at..]);
        let held = tail.char_indices().find(may_go_on).map_or("", |(at, _)| &tail[at..]);
        let held = if window.finished { "" } else { held };

        let said = &window.text[..window.text.len() - held.len()];
        if !said.contains(&self.word) {
            return Verdict::Hold(held.len() as u32);
        }
        let text = said.replace(&self.word, &self.replacement);
        sdk::replace(text, held.len() as u32, Reason::Redacted)
    }
}

sdk::export!(RedactStream: stream_guard);

#[cfg(test)]
mod tests {
    use sdk::testing::{Host, window};
    use serde_json::json;

    use super::*;

    /// What a client reads when an answer comes in these pieces.
    fn read(word: &str, pieces: &[&str]) -> String {
        let host = Host::new();
        let settings = json!({"word": word, "replacement": "***"});
        let policy: RedactStream = host.begin(settings).expect("settings");
        let (mut got, mut held) = (String::new(), String::new());
        for (index, piece) in pieces.iter().enumerate() {
            let window = window(index as u32, &held, piece, index + 1 == pieces.len());
            let (text, hold) = match policy.on_window(&host.request(), &window) {
                Verdict::Hold(hold) => {
                    (window.text[..window.text.len() - hold as usize].to_owned(), hold)
                }
                Verdict::Replace(it) => (it.text, it.hold),
                other => panic!("{other:?}"),
            };
            got += &text;
            held = window.text[window.text.len() - hold as usize..].to_owned();
        }
        got
    }

    #[test]
    fn the_word_is_not_said_in_whatever_pieces_it_comes() {
        assert_eq!(read("secret", &["a secret, a secret"]), "a ***, a ***");
        assert_eq!(read("secret", &["a s", "ec", "ret."]), "a ***.");
        assert_eq!(read("secret", &["secretsecret", "", "sec", "retary"]), "*********ary");
        assert_eq!(read("secret", &["a sec", "ond sec"]), "a second sec");
        assert_eq!(read("aa", &["aaa", "a"]), "******");
    }
}
