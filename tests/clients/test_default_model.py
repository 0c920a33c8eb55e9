"""The default model through the official openai package: what the README's reader does first."""

import math

import pytest

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_chat_answers_sensibly(default_model):
    answer = default_model.openai.chat.completions.create(
        model=default_model.model, messages=QUESTION, temperature=0, max_tokens=32
    )
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_it_answers_sensibly_without_being_told_how_to_sample(default_model):
    """The README's first request: a model this small talks nonsense at OpenAI's temperature."""
    answers = [
        default_model.openai.chat.completions.create(
            model=default_model.model, messages=QUESTION, seed=seed, max_tokens=24
        ).choices[0]
        for seed in range(8)
    ]
    # Two in three begin with "The", nearly all others with "L'Étoile", and get lost from there.
    sensible = [answer for answer in answers if "Paris" in answer.message.content]
    assert len(sensible) >= 3, [answer.message.content for answer in answers]
    assert "stop" in [answer.finish_reason for answer in sensible]


def test_a_stream_says_the_same_as_the_whole(default_model):
    ask = dict(model=default_model.model, messages=QUESTION, temperature=0, max_tokens=24)
    whole = default_model.openai.chat.completions.create(**ask)
    stream = default_model.openai.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_a_seed_repeats_and_another_does_not(default_model):
    def draw(seed):
        answer = default_model.openai.chat.completions.create(
            model=default_model.model,
            messages=[{"role": "user", "content": "Tell me a story about a dog."}],
            temperature=1.0,
            seed=seed,
            max_tokens=12,
        )
        return answer.choices[0].message.content

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_a_stop_string_is_never_shown_in_part(default_model):
    ask = dict(model=default_model.model, messages=QUESTION, temperature=0, max_tokens=32)
    whole = default_model.openai.chat.completions.create(**ask).choices[0].message.content
    at = whole.index("Paris")
    stop = whole[at - 3 : at + 2]  # begins and ends inside words, so across tokens
    answer = default_model.openai.chat.completions.create(**ask, stop=[stop], stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in answer if c.choices)
    assert text == whole[: whole.index(stop)]


def test_completions_and_responses_speak_too(default_model):
    completion = default_model.openai.completions.create(
        model=default_model.model, prompt="The capital of France is", temperature=0, max_tokens=8
    )
    assert "Paris" in completion.choices[0].text
    response = default_model.openai.responses.create(
        model=default_model.model,
        input="What is the capital of France?",
        temperature=0,
        max_output_tokens=32,
    )
    assert "Paris" in response.output_text
    assert response.usage.output_tokens > 0


def test_the_likeliest_tokens_are_told_and_greedy_draws_the_first(default_model):
    choice = default_model.openai.chat.completions.create(
        model=default_model.model,
        messages=QUESTION,
        temperature=0,
        max_tokens=12,
        logprobs=True,
        top_logprobs=20,
        extra_body={"repetition_penalty": 1},  # what is told is before penalties
    ).choices[0]
    told = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in told).decode() == choice.message.content
    for token in told:
        top = [other.logprob for other in token.top_logprobs]
        assert len(top) == 20 and top == sorted(top, reverse=True)
        assert token.logprob == top[0] and token.token == token.top_logprobs[0].token
        assert 0 < sum(math.exp(logprob) for logprob in top) <= 1.001
