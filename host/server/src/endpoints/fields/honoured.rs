//! Fields that the parser reads.

use super::harmless::OFF;
use super::ignored::ignored;
use super::refused::refused;
use super::{
    ALL, CHAT, COMPLETIONS, EVERYONE, EndpointSet, FieldGroup, FieldRule, LLAMA_CPP, MLX_LM,
    OLLAMA, OPENAI, RESPONSES, ServerSet, VLLM,
};

/// Fields that the parser reads.
pub(super) const fn honoured(
    endpoints: EndpointSet,
    note: &'static str,
    fields: &'static [(&'static str, ServerSet)],
) -> FieldGroup {
    FieldGroup { endpoints, fate: FieldRule::Honoured(note), fields }
}

/// Other names for one of them. Where a client sends several, the first that the table has counts.
const fn alias(of: &'static str, fields: &'static [(&'static str, ServerSet)]) -> FieldGroup {
    FieldGroup { endpoints: ALL, fate: FieldRule::Alias(of), fields }
}

const REPETITION: &str = "above 0, at most 2; over the prompt and the whole answer";
const WINDOW: &str =
    "-1: over everything; 0: no such penalty; another only where that penalty is off";

pub(super) const BODY: &[FieldGroup] = &[
    honoured(
        ALL,
        "absent, null or empty: the host's default model, the one of `model.reference`",
        &[("model", EVERYONE)],
    ),
    honoured(ALL, "", &[("stream", EVERYONE)]),
    honoured(ALL, "see below; only with `stream: true`", &[("stream_options", EVERYONE)]),
    honoured(CHAT, "see below", &[("messages", EVERYONE)]),
    honoured(COMPLETIONS, "a text, token ids, or a list of one of these", &[("prompt", EVERYONE)]),
    honoured(RESPONSES, "a text or messages, see below", &[("input", OPENAI | VLLM | OLLAMA)]),
    honoured(RESPONSES, "", &[("instructions", OPENAI | VLLM | OLLAMA)]),
    // Whoever sends `n_predict` means llama.cpp, where it counts before the others.
    alias("max_tokens", &[("n_predict", LLAMA_CPP)]),
    alias(
        "max_tokens",
        &[
            ("max_completion_tokens", OPENAI | VLLM | LLAMA_CPP | MLX_LM),
            ("max_output_tokens", OPENAI | VLLM | OLLAMA),
        ],
    ),
    honoured(
        ALL,
        "-1: up to the context's end, as where it is absent; but on completions that is 16",
        &[("max_tokens", EVERYONE)],
    ),
    honoured(ALL, "0 to 2; 0 is greedy", &[("temperature", EVERYONE)]),
    honoured(ALL, "0 to 1", &[("top_p", EVERYONE), ("min_p", VLLM | LLAMA_CPP | MLX_LM)]),
    honoured(ALL, "0 or -1: all", &[("top_k", VLLM | LLAMA_CPP | MLX_LM)]),
    honoured(ALL, "a 64-bit integer; -1: a random one", &[("seed", EVERYONE)]),
    alias("repetition_penalty", &[("repeat_penalty", LLAMA_CPP)]),
    honoured(ALL, REPETITION, &[("repetition_penalty", VLLM | MLX_LM)]),
    honoured(
        ALL,
        "-2 to 2; over the whole answer",
        &[("presence_penalty", EVERYONE), ("frequency_penalty", EVERYONE)],
    ),
    honoured(
        ALL,
        WINDOW,
        &[
            ("repeat_last_n", LLAMA_CPP),
            ("repetition_context_size", MLX_LM),
            ("presence_context_size", MLX_LM),
            ("frequency_context_size", MLX_LM),
        ],
    ),
    honoured(
        ALL,
        "token ids with -100 to 100, as an object or a list of pairs",
        &[("logit_bias", OPENAI | VLLM | LLAMA_CPP | MLX_LM)],
    ),
    honoured(ALL, "", &[("ignore_eos", VLLM | LLAMA_CPP), ("min_tokens", VLLM)]),
    honoured(CHAT, "true or false", &[("logprobs", OPENAI | VLLM | LLAMA_CPP | MLX_LM)]),
    honoured(
        COMPLETIONS,
        "how many alternatives are told, 0 to 20; false: none at all",
        &[("logprobs", OPENAI | VLLM | LLAMA_CPP | MLX_LM)],
    ),
    honoured(CHAT | RESPONSES, "0 to 20", &[("top_logprobs", OPENAI | VLLM | LLAMA_CPP | MLX_LM)]),
    honoured(
        RESPONSES,
        "`message.output_text.logprobs`; the rest is about what no answer has",
        &[("include", OPENAI | VLLM | OLLAMA)],
    ),
    honoured(ALL, "see below", &[("response_format", OPENAI | VLLM | LLAMA_CPP | OLLAMA)]),
    honoured(RESPONSES, "see below", &[("text", OPENAI | VLLM | OLLAMA)]),
    honoured(CHAT, "`[\"text\"]`", &[("modalities", OPENAI)]),
    honoured(RESPONSES, "up to 16 texts, repeated in the answer", &[("metadata", OPENAI | VLLM)]),
    honoured(
        RESPONSES,
        "true: the answer is fetched later, and not streamed",
        &[("background", OPENAI | VLLM)],
    ),
];

const NEW_MESSAGE: &str = "an answer is a new message";

/// What ends a text, and how a chat becomes a prompt.
pub(super) const TEXT: &[FieldGroup] = &[
    honoured(ALL, "up to 4 texts of up to 256 bytes", &[("stop", EVERYONE)]),
    honoured(ALL, "up to 64 token ids", &[("stop_token_ids", VLLM)]),
    honoured(
        CHAT | RESPONSES,
        "an object of up to 64 KiB and 16 levels: variables for the model's chat template",
        &[("chat_template_kwargs", VLLM | LLAMA_CPP | MLX_LM)],
    ),
    honoured(
        CHAT,
        "the answer goes on with the last message, so not with `add_generation_prompt: true`",
        &[("continue_final_message", VLLM | LLAMA_CPP)],
    ),
    honoured(CHAT, "", &[("add_generation_prompt", VLLM | LLAMA_CPP)]),
    refused(RESPONSES, NEW_MESSAGE, OFF, &[("continue_final_message", VLLM)]),
    refused(RESPONSES, NEW_MESSAGE, &["true"], &[("add_generation_prompt", VLLM)]),
    ignored(
        COMPLETIONS,
        "a text is continued as it is, without a chat template",
        &[
            ("chat_template_kwargs", LLAMA_CPP),
            ("continue_final_message", LLAMA_CPP),
            ("add_generation_prompt", LLAMA_CPP),
        ],
    ),
];
