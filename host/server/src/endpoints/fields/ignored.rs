//! Fields that change nothing, each with the reason.

use super::{
    ALL, CHAT, COMPLETIONS, EndpointSet, FieldGroup, FieldRule, LLAMA_CPP, MLX_LM, OPENAI, SGLANG,
    ServerSet, VLLM,
};

/// Fields that may say anything, for this reason.
pub(super) const fn ignored(
    endpoints: EndpointSet,
    why: &'static str,
    fields: &'static [(&'static str, ServerSet)],
) -> FieldGroup {
    FieldGroup { endpoints, fate: FieldRule::Ignored(why), fields }
}

pub(super) const BODY: &[FieldGroup] = &[
    ignored(
        ALL,
        "figures beside the answer, which metrics have",
        &[("timings_per_token", LLAMA_CPP), ("return_progress", LLAMA_CPP)],
    ),
    ignored(
        ALL,
        "it says who asks, for the provider's own records",
        &[("user", OPENAI | VLLM), ("safety_identifier", OPENAI), ("session_id", VLLM)],
    ),
    ignored(CHAT | COMPLETIONS, "it labels what the provider keeps", &[("metadata", OPENAI)]),
    ignored(
        ALL,
        "it says whether the provider keeps the answer; `background` is what keeps one here",
        &[("store", OPENAI | VLLM)],
    ),
    ignored(
        ALL,
        "there is one tier; policies say who goes first",
        &[("service_tier", OPENAI | VLLM)],
    ),
    ignored(
        ALL,
        "what was computed before is found without it, and the answer is the same",
        &[
            ("prompt_cache_key", OPENAI | VLLM),
            ("prompt_cache_options", OPENAI),
            ("prompt_cache_retention", OPENAI),
            ("cache_prompt", LLAMA_CPP),
            ("n_cache_reuse", LLAMA_CPP),
            ("id_slot", LLAMA_CPP),
        ],
    ),
    ignored(
        ALL,
        "guesses and drafts make an answer faster and change none",
        &[
            ("prediction", OPENAI),
            ("draft_model", MLX_LM),
            ("num_draft_tokens", MLX_LM),
            ("speculative.n_min", LLAMA_CPP),
            ("speculative.n_max", LLAMA_CPP),
            ("speculative.p_min", LLAMA_CPP),
            ("speculative.type", LLAMA_CPP),
            ("speculative.ngram_size_n", LLAMA_CPP),
            ("speculative.ngram_size_m", LLAMA_CPP),
            ("speculative.ngram_m_hits", LLAMA_CPP),
            ("backend_sampling", LLAMA_CPP),
        ],
    ),
    ignored(
        ALL,
        "it is about tool calls, of which no answer has any",
        &[
            ("parallel_tool_calls", OPENAI | VLLM | LLAMA_CPP),
            ("max_tool_calls", OPENAI | VLLM),
            ("parse_tool_calls", LLAMA_CPP),
        ],
    ),
    ignored(
        ALL,
        "it adjusts a sampler that is refused itself",
        &[
            ("mirostat_tau", LLAMA_CPP),
            ("mirostat_eta", LLAMA_CPP),
            ("xtc_threshold", LLAMA_CPP | MLX_LM),
            ("dry_base", LLAMA_CPP),
            ("dry_allowed_length", LLAMA_CPP),
            ("dry_penalty_last_n", LLAMA_CPP),
            ("dry_sequence_breakers", LLAMA_CPP),
            ("dynatemp_exponent", LLAMA_CPP),
            ("adaptive_decay", LLAMA_CPP),
            ("length_penalty", VLLM),
            ("early_stopping", VLLM),
        ],
    ),
    ignored(
        ALL,
        "it says how to do something that is refused itself",
        &[
            ("guided_decoding_backend", VLLM),
            ("guided_whitespace_pattern", VLLM),
            ("grammar_lazy", LLAMA_CPP),
            ("grammar_triggers", LLAMA_CPP),
            ("grammar_type", LLAMA_CPP),
            ("truncation_side", VLLM),
            ("spaces_between_special_tokens", VLLM),
            ("reasoning_budget_start_tag", LLAMA_CPP),
            ("reasoning_budget_end_tag", LLAMA_CPP),
            ("reasoning_budget_message", LLAMA_CPP),
            ("stream_reasoning", SGLANG),
        ],
    ),
    ignored(
        ALL,
        "a context that is full ends the answer; nothing is taken out of it",
        &[("n_keep", LLAMA_CPP), ("n_discard", LLAMA_CPP)],
    ),
    ignored(
        ALL,
        "the text is the same, however it is cut into events",
        &[("stream_interval", VLLM)],
    ),
    ignored(
        ALL,
        "it is for endpoints that only render a prompt",
        &[("return_token_offsets", VLLM), ("return_mm_kwargs", VLLM)],
    ),
];
