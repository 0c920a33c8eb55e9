//! Fields that would change the answer, and that nobody here serves: each with what it may say all
//! the same, since that asks for nothing.

use super::harmless::{NOTHING, NULL_ONLY, OFF, ZERO};
use super::{
    ALL, CHAT, COMPLETIONS, EVERYONE, EndpointSet, FieldGroup, FieldRule, LLAMA_CPP, MLX_LM,
    OLLAMA, OPENAI, RESPONSES, SGLANG, ServerSet, VLLM,
};

/// Fields that may hold these values and no others.
pub(super) const fn refused(
    endpoints: EndpointSet,
    why: &'static str,
    harmless: &'static [&'static str],
    fields: &'static [(&'static str, ServerSet)],
) -> FieldGroup {
    FieldGroup { endpoints, fate: FieldRule::Refused { why, harmless }, fields }
}

pub(super) const STRUCTURED: &str = "structured output is not served";
pub(super) const TOOLS: &str = "tool calls are not served";
pub(super) const ONLY_TEXT: &str = "only text is served";
const ONE_ANSWER: &str = "one answer per request is served";
const REASONING: &str = "how much a model thinks is not controlled here";
const THOUGHTS: &str = "what a model thinks is left in its text";
const SAMPLER: &str = "this sampler is not served";
const ONLY_BIAS: &str = "only logit_bias says which tokens may be drawn";
pub(super) const TALK: &str = "how long a model talks is not controlled here";
const ADAPTERS: &str = "adapters are not served";
const NOT_TOLD: &str = "this is not told in answers";
const NOT_CUT: &str = "a prompt that does not fit is refused, not cut";
const NOT_TEMPLATED: &str = "prompts are rendered with the model's own chat template, from text";
const SPECIAL_TOKENS: &str = "special tokens are not part of a text";

pub(super) const BODY: &[FieldGroup] = &[
    // What an answer must look like.
    refused(
        ALL,
        STRUCTURED,
        NOTHING,
        &[
            ("structured_outputs", VLLM),
            ("guided_regex", VLLM),
            ("guided_choice", VLLM),
            ("guided_grammar", VLLM),
            ("guided_json_object", VLLM),
            ("grammar", LLAMA_CPP),
            ("regex", SGLANG),
            ("ebnf", SGLANG),
        ],
    ),
    // An empty schema is one: any JSON.
    refused(
        ALL,
        STRUCTURED,
        &["\"\""],
        &[
            ("guided_json", VLLM),
            ("json_schema", LLAMA_CPP | SGLANG),
            ("structural_tag", VLLM | SGLANG),
        ],
    ),
    refused(ALL, TOOLS, NOTHING, &[("tools", EVERYONE), ("functions", OPENAI)]),
    refused(
        ALL,
        TOOLS,
        &["\"none\"", "\"auto\""],
        &[("tool_choice", OPENAI | VLLM | LLAMA_CPP), ("function_call", OPENAI)],
    ),
    refused(
        ALL,
        ONE_ANSWER,
        &["1"],
        &[("n", OPENAI | VLLM | LLAMA_CPP), ("best_of", OPENAI | VLLM), ("n_cmpl", LLAMA_CPP)],
    ),
    refused(
        ALL,
        ONLY_TEXT,
        NOTHING,
        &[
            ("audio", OPENAI),
            ("image", OPENAI),
            ("image_data", LLAMA_CPP),
            ("media_io_kwargs", VLLM),
            ("mm_processor_kwargs", VLLM),
        ],
    ),
    // An empty object asks for a search with the defaults.
    refused(ALL, "web search is not served", NULL_ONLY, &[("web_search_options", OPENAI)]),
    refused(ALL, "moderation is not served", NOTHING, &[("moderation", OPENAI)]),
    refused(ALL, "access programs are not served", NOTHING, &[("access_programs", OPENAI)]),
    // How a model thinks and how long it talks.
    refused(ALL, REASONING, NULL_ONLY, &[("reasoning_effort", OPENAI | VLLM | OLLAMA)]),
    refused(ALL, REASONING, NOTHING, &[("reasoning", OPENAI | VLLM | OLLAMA)]),
    refused(
        ALL,
        REASONING,
        &["-1"],
        &[("thinking_token_budget", VLLM), ("reasoning_budget_tokens", LLAMA_CPP)],
    ),
    refused(ALL, THOUGHTS, &["true"], &[("include_reasoning", VLLM)]),
    refused(ALL, THOUGHTS, &["\"none\"", "\"auto\""], &[("reasoning_format", LLAMA_CPP)]),
    refused(
        ALL,
        THOUGHTS,
        OFF,
        &[("thinking_forced_open", LLAMA_CPP), ("separate_reasoning", SGLANG)],
    ),
    refused(ALL, TALK, &["\"medium\""], &[("verbosity", OPENAI)]),
    // How tokens are drawn.
    refused(
        ALL,
        SAMPLER,
        ZERO,
        &[
            ("mirostat", LLAMA_CPP),
            ("xtc_probability", LLAMA_CPP | MLX_LM),
            ("dry_multiplier", LLAMA_CPP),
            ("dynatemp_range", LLAMA_CPP),
        ],
    ),
    refused(ALL, SAMPLER, &["1"], &[("typical_p", LLAMA_CPP), ("tfs_z", LLAMA_CPP)]),
    refused(ALL, SAMPLER, &["-1", "0"], &[("top_n_sigma", LLAMA_CPP)]),
    refused(ALL, SAMPLER, &["-1"], &[("adaptive_target", LLAMA_CPP)]),
    refused(ALL, SAMPLER, &["0", "1"], &[("min_keep", LLAMA_CPP)]),
    refused(ALL, SAMPLER, OFF, &[("use_beam_search", VLLM), ("watermarking", VLLM)]),
    refused(
        ALL,
        SAMPLER,
        NOTHING,
        &[
            ("logits_processors", VLLM),
            ("custom_logit_processor", SGLANG),
            ("repetition_detection", VLLM),
        ],
    ),
    refused(ALL, "samplers are applied in one order", NOTHING, &[("samplers", LLAMA_CPP)]),
    refused(
        ALL,
        "penalties look at the prompt and the answer",
        NOTHING,
        &[("penalty_prompt", LLAMA_CPP)],
    ),
    refused(ALL, "penalties spare no token", &["true"], &[("penalize_nl", LLAMA_CPP)]),
    refused(ALL, ONLY_BIAS, NOTHING, &[("bad_words", VLLM), ("stop_regex", SGLANG)]),
    // An empty list allows none.
    refused(ALL, ONLY_BIAS, NULL_ONLY, &[("allowed_token_ids", VLLM)]),
    // What is told.
    refused(
        ALL,
        "the prompt is not repeated",
        OFF,
        &[("echo", OPENAI | VLLM), ("return_prompt_text", VLLM)],
    ),
    refused(ALL, "text is only generated at the end", NOTHING, &[("suffix", OPENAI | OLLAMA)]),
    // 0 asks for those of the prompt's tokens without alternatives.
    refused(ALL, "how likely the prompt was is not told", NULL_ONLY, &[("prompt_logprobs", VLLM)]),
    refused(
        ALL,
        "logprobs are told of the likeliest tokens",
        &["[]"],
        &[("logprob_token_ids", VLLM)],
    ),
    refused(
        ALL,
        "logprobs are those of the model itself",
        OFF,
        &[("post_sampling_probs", LLAMA_CPP)],
    ),
    refused(ALL, "logprobs asks for that", ZERO, &[("n_probs", LLAMA_CPP)]),
    refused(COMPLETIONS, "logprobs asks for that", ZERO, &[("top_logprobs", OPENAI)]),
    refused(
        RESPONSES,
        "include with \"message.output_text.logprobs\" asks for that",
        &["false", "0"],
        &[("logprobs", OPENAI)],
    ),
    refused(
        ALL,
        NOT_TOLD,
        OFF,
        &[
            ("return_tokens_as_token_ids", VLLM),
            ("return_token_ids", VLLM),
            ("return_tokens", LLAMA_CPP),
            ("return_hidden_states", SGLANG),
            ("enable_response_messages", VLLM),
            ("_debug_render_only", OLLAMA),
        ],
    ),
    refused(ALL, NOT_TOLD, ZERO, &[("routed_experts_prompt_start", VLLM)]),
    refused(ALL, "answers have all their fields", NOTHING, &[("response_fields", LLAMA_CPP)]),
    refused(
        ALL,
        "a stop string is not part of the text",
        OFF,
        &[("include_stop_str_in_output", VLLM), ("no_stop_trim", SGLANG)],
    ),
    refused(ALL, SPECIAL_TOKENS, &["true"], &[("skip_special_tokens", VLLM)]),
    refused(ALL, SPECIAL_TOKENS, NOTHING, &[("preserved_tokens", LLAMA_CPP)]),
    // What a prompt is made of.
    refused(ALL, NOT_CUT, NULL_ONLY, &[("truncate_prompt_tokens", VLLM)]),
    refused(ALL, NOT_CUT, &["\"disabled\""], &[("truncation", OPENAI | VLLM | OLLAMA)]),
    refused(
        CHAT | RESPONSES,
        "the chat template says which special tokens a prompt has",
        OFF,
        &[("add_special_tokens", VLLM)],
    ),
    refused(
        COMPLETIONS,
        "the model says which special tokens a prompt has",
        &["true"],
        &[("add_special_tokens", VLLM)],
    ),
    refused(
        ALL,
        NOT_TEMPLATED,
        NOTHING,
        &[
            ("chat_template", VLLM),
            ("documents", VLLM),
            ("role_mapping", MLX_LM),
            ("prompt_embeds", VLLM),
            ("generation_prompt", LLAMA_CPP),
            ("chat_parser", LLAMA_CPP),
        ],
    ),
    refused(ALL, NOT_TEMPLATED, ZERO, &[("chat_format", LLAMA_CPP)]),
    refused(
        RESPONSES,
        "responses are not continued",
        NOTHING,
        &[
            ("previous_response_id", OPENAI | VLLM),
            ("previous_response", VLLM),
            ("previous_input_messages", VLLM),
            ("conversation", OPENAI),
            ("context_management", OPENAI),
        ],
    ),
    refused(RESPONSES, "prompt templates are not stored", NOTHING, &[("prompt", OPENAI | VLLM)]),
    // How a request is served.
    refused(
        RESPONSES,
        "a response in the background has no options",
        NOTHING,
        &[("background_options", OPENAI)],
    ),
    refused(ALL, "policies say who goes first", ZERO, &[("priority", VLLM)]),
    refused(
        ALL,
        "the header x-request-id names a request",
        NOTHING,
        &[("request_id", VLLM), ("rid", SGLANG)],
    ),
    refused(
        ALL,
        "what is shared between requests is the operator's choice",
        NOTHING,
        &[("cache_salt", VLLM)],
    ),
    refused(
        ALL,
        "one process computes an answer",
        NOTHING,
        &[("kv_transfer_params", VLLM), ("ec_transfer_params", VLLM)],
    ),
    refused(ALL, "there are no extensions that take these", NOTHING, &[("vllm_xargs", VLLM)]),
    refused(
        ALL,
        ADAPTERS,
        NOTHING,
        &[("lora", LLAMA_CPP), ("lora_path", SGLANG), ("adapters", MLX_LM)],
    ),
    refused(
        ALL,
        "the operator and policies say how long a request may take",
        &["0", "-1"],
        &[("t_max_predict_ms", LLAMA_CPP), ("t_max_prompt_ms", LLAMA_CPP)],
    ),
    refused(ALL, "lines are not indented for a client", ZERO, &[("n_indent", LLAMA_CPP)]),
];
