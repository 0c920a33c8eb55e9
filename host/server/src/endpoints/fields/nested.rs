//! What objects inside a body may hold.

use super::harmless::NOTHING;
use super::honoured::honoured;
use super::ignored::ignored;
use super::refused::{ONLY_TEXT, STRUCTURED, TALK, TOOLS, refused};
use super::{
    ALL, CHAT, COMPLETIONS, EVERYONE, FieldTable, LLAMA_CPP, MLX_LM, OLLAMA, OPENAI, RESPONSES,
    VLLM,
};

const REPLAYED: &str = "it is of an answer that is part of the prompt now";
const NOT_FOR_MODEL: &str = "it is not part of the prompt";

pub(in crate::endpoints) const STREAM_OPTIONS: FieldTable = FieldTable {
    at: "stream_options",
    groups: &[&[
        honoured(CHAT | COMPLETIONS, "usage in a last chunk", &[("include_usage", EVERYONE)]),
        ignored(RESPONSES, "a response's last event always has it", &[("include_usage", VLLM)]),
        ignored(ALL, "usage is told once, at the end", &[("continuous_usage_stats", VLLM)]),
        ignored(ALL, "events are not padded", &[("include_obfuscation", OPENAI)]),
    ]],
};

/// `response_format` and `text.format`.
pub(in crate::endpoints) const FORMAT: FieldTable = FieldTable {
    at: "response_format, text.format",
    groups: &[&[
        honoured(ALL, "`text`", &[("type", EVERYONE)]),
        refused(
            ALL,
            STRUCTURED,
            NOTHING,
            &[("json_schema", OPENAI | VLLM | LLAMA_CPP | OLLAMA), ("schema", OPENAI | LLAMA_CPP)],
        ),
        ignored(
            ALL,
            "it is about a schema, which is refused itself",
            &[("name", OPENAI), ("description", OPENAI), ("strict", OPENAI)],
        ),
    ]],
};

/// `text` of a response.
pub(in crate::endpoints) const TEXT: FieldTable = FieldTable {
    at: "text",
    groups: &[&[
        honoured(RESPONSES, "see below", &[("format", OPENAI | VLLM | OLLAMA)]),
        refused(RESPONSES, TALK, &["\"medium\""], &[("verbosity", OPENAI)]),
    ]],
};

/// A chat's message.
pub(in crate::endpoints) const MESSAGE: FieldTable = FieldTable {
    at: "messages[]",
    groups: &[&[
        honoured(CHAT, "`system`, `developer`, `user` or `assistant`", &[("role", EVERYONE)]),
        honoured(CHAT, "a text, or text parts", &[("content", EVERYONE)]),
        honoured(CHAT, "for templates that use it", &[("name", OPENAI | VLLM | OLLAMA)]),
        refused(CHAT, TOOLS, NOTHING, &[("tool_calls", EVERYONE), ("function_call", OPENAI)]),
        refused(CHAT, ONLY_TEXT, NOTHING, &[("audio", OPENAI)]),
        refused(CHAT, "it is no text of a prompt", NOTHING, &[("refusal", OPENAI)]),
        ignored(CHAT, TOOLS, &[("tool_call_id", EVERYONE)]),
        ignored(CHAT, REPLAYED, &[("annotations", OPENAI)]),
        ignored(
            CHAT,
            "what a model thought before it answered is not part of the prompt",
            &[("reasoning", VLLM | OLLAMA), ("reasoning_content", VLLM | LLAMA_CPP)],
        ),
    ]],
};

/// A message of a response's input.
pub(in crate::endpoints) const INPUT_MESSAGE: FieldTable = FieldTable {
    at: "input[]",
    groups: &[&[
        honoured(RESPONSES, "`message`, or absent", &[("type", OPENAI | VLLM | OLLAMA)]),
        honoured(
            RESPONSES,
            "`system`, `developer`, `user` or `assistant`",
            &[("role", OPENAI | VLLM | OLLAMA)],
        ),
        honoured(RESPONSES, "a text, or text parts", &[("content", OPENAI | VLLM | OLLAMA)]),
        ignored(RESPONSES, REPLAYED, &[("id", OPENAI), ("status", OPENAI), ("phase", OPENAI)]),
    ]],
};

/// A part of a message's content.
pub(in crate::endpoints) const PART: FieldTable = FieldTable {
    at: "messages[].content[], input[].content[]",
    groups: &[&[
        honoured(CHAT, "`text`", &[("type", OPENAI | VLLM | LLAMA_CPP | MLX_LM | OLLAMA)]),
        honoured(RESPONSES, "`input_text` or `output_text`", &[("type", OPENAI | VLLM | OLLAMA)]),
        honoured(CHAT | RESPONSES, "", &[("text", EVERYONE)]),
        ignored(CHAT | RESPONSES, REPLAYED, &[("annotations", OPENAI), ("logprobs", OPENAI)]),
        ignored(CHAT | RESPONSES, NOT_FOR_MODEL, &[("prompt_cache_breakpoint", OPENAI)]),
    ]],
};
