//! A last message that the model continues: the prompt ends where its text does.
//!
//! As `apply_chat_template` of transformers finds that place: the message's text gets a mark at its
//! end, and what is rendered is cut there. A template may trim a message; then the space before the
//! mark, which it would have trimmed, goes too. Unlike there, a template that writes the message
//! twice is refused: the mark would be in the prompt.

use crate::Message;
use crate::python::text::{Ends, strip};

/// No template writes this, and a template that trims takes its last letter.
const MARK: &str = "THE-MESSAGE-GOES-ON-HERE ";

/// The message with its mark.
pub(super) fn marked(message: &Message) -> Message {
    let content = message.content.clone() + MARK;
    Message { content, ..message.clone() }
}

/// What was rendered, up to the end of the last message. `None` if that is not in it.
pub(super) fn cut(mut rendered: String, last: &Message) -> Option<String> {
    let at = rendered.rfind(MARK.trim_end())?;
    if !rendered.contains(strip(&last.content, None, Ends::Both)) {
        return None;
    }
    let kept = rendered[at..].starts_with(MARK);
    rendered.truncate(at);
    if rendered.contains(MARK.trim_end()) {
        return None;
    }
    if !kept {
        rendered.truncate(strip(&rendered, None, Ends::Right).len());
    }
    Some(rendered)
}

#[cfg(test)]
mod tests;
