"""Every endpoint through the official openai package, on the simulated model."""

import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]


def test_models_lists_what_is_served(serve):
    host = serve()
    assert [model.id for model in host.openai.models.list()] == [host.model]
    assert host.openai.models.retrieve(host.model).id == host.model


def test_chat_whole_and_streamed(serve):
    host = serve("sim:stop=0")
    ask = dict(model=host.model, messages=HELLO, max_tokens=20)
    whole = host.openai.chat.completions.create(**ask)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 20
    chunks = list(
        host.openai.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_completions_whole_and_streamed(serve):
    host = serve("sim:stop=0")
    ask = dict(model=host.model, prompt="once upon a time", max_tokens=12)
    whole = host.openai.completions.create(**ask)
    streamed = host.openai.completions.create(**ask, stream=True)
    assert "".join(c.choices[0].text for c in streamed if c.choices) == whole.choices[0].text
    assert whole.usage.completion_tokens == 12


def test_responses_whole_and_streamed(serve):
    host = serve("sim:stop=0")
    ask = dict(model=host.model, input="hello", max_output_tokens=12)
    whole = host.openai.responses.create(**ask)
    assert whole.status == "incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage.output_tokens == 12
    events = list(host.openai.responses.create(**ask, stream=True))
    kinds = [event.type for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == whole.output_text
    assert [kind for kind in kinds if kind != "response.output_text.delta"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_bad_input_names_the_field_and_the_next_request_is_served(serve):
    host = serve()
    with pytest.raises(openai.BadRequestError) as refused:
        host.openai.chat.completions.create(model=host.model, messages=HELLO, temperature=3)
    assert refused.value.param == "temperature"
    assert "3" in refused.value.message and "2" in refused.value.message
    with pytest.raises(openai.NotFoundError):
        host.openai.chat.completions.create(model="gpt-nobody", messages=HELLO)
    answer = host.openai.chat.completions.create(model=host.model, messages=HELLO, max_tokens=3)
    assert answer.choices[0].message.content


def test_a_full_house_is_a_rate_limit_with_a_time_to_come_back(serve):
    host = serve("sim:decode=20ms,stop=0", "--set", "engine.running_max=1",
                 "--set", "waiting.requests_max=1")
    streams = []
    for place in ["requests_running", "requests_waiting"]:  # one runs, one waits
        request = host.http.build_request(
            "POST",
            "/v1/chat/completions",
            json={"model": host.model, "messages": HELLO, "stream": True, "max_tokens": 2000},
        )
        streams.append(host.http.send(request, stream=True))
        host.wait(lambda: host.metric(place) == 1, place)
    with pytest.raises(openai.RateLimitError) as refused:
        host.openai.chat.completions.create(model=host.model, messages=HELLO, max_tokens=1)
    assert int(refused.value.response.headers["retry-after"]) >= 1
    for stream in streams:
        stream.close()
    host.wait(lambda: host.metric("requests_running") == 0, "empty")
    assert host.openai.chat.completions.create(model=host.model, messages=HELLO, max_tokens=1)


def test_a_deadline_mid_stream_ends_with_an_error_the_client_raises(serve):
    host = serve("sim:decode=50ms,stop=0", "--set", "limits.total_max=1s", "--set",
                 "limits.first_token_max=1s")
    seen = 0
    with pytest.raises(openai.APIError) as struck:
        for _ in host.openai.chat.completions.create(
            model=host.model, messages=HELLO, stream=True, max_tokens=2000
        ):
            seen += 1
    assert seen > 1, "tokens came before the deadline struck"
    assert "total" in str(struck.value)


def check_told(told, text, alternatives):
    """Every token of the text, its bytes, and its likeliest alternatives, likeliest first."""
    assert b"".join(bytes(token.bytes) for token in told).decode() == text
    for token in told:
        assert token.token.encode() == bytes(token.bytes), "the simulated model speaks ASCII"
        assert token.logprob < 0
        top = [other.logprob for other in token.top_logprobs]
        assert len(top) == alternatives
        assert top == sorted(top, reverse=True)


def test_chat_logprobs_whole_and_streamed(serve):
    host = serve("sim:stop=0")
    ask = dict(model=host.model, messages=HELLO, max_tokens=12, logprobs=True, top_logprobs=3)
    choice = host.openai.chat.completions.create(**ask).choices[0]
    check_told(choice.logprobs.content, choice.message.content, alternatives=3)
    assert len(choice.logprobs.content) == 12
    assert choice.logprobs.refusal is None
    streamed = []
    for chunk in host.openai.chat.completions.create(**ask, stream=True):
        delta, logprobs = chunk.choices[0].delta, chunk.choices[0].logprobs
        assert bool(delta.content) == (logprobs is not None)
        if logprobs:
            check_told(logprobs.content, delta.content, alternatives=3)
            streamed += logprobs.content
    assert streamed == choice.logprobs.content


def test_chat_logprobs_without_alternatives(serve):
    host = serve("sim:stop=0")
    choice = host.openai.chat.completions.create(
        model=host.model, messages=HELLO, max_tokens=5, logprobs=True
    ).choices[0]
    check_told(choice.logprobs.content, choice.message.content, alternatives=0)


def test_completions_logprobs_whole_and_streamed(serve):
    host = serve("sim:stop=0")
    ask = dict(model=host.model, prompt="once upon a time", max_tokens=12, logprobs=3)
    choice = host.openai.completions.create(**ask).choices[0]
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert told.text_offset == list(range(12))
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert logprob < 0 and top[token] == logprob and len(top) == 3
    tokens, offsets, tops = [], [], []
    for chunk in host.openai.completions.create(**ask, stream=True):
        if chunk.choices[0].logprobs:
            assert "".join(chunk.choices[0].logprobs.tokens) == chunk.choices[0].text
            tokens += chunk.choices[0].logprobs.tokens
            offsets += chunk.choices[0].logprobs.text_offset
            tops += chunk.choices[0].logprobs.top_logprobs
    assert (tokens, offsets, tops) == (told.tokens, told.text_offset, told.top_logprobs)
    own = host.openai.completions.create(**ask | dict(logprobs=0)).choices[0].logprobs
    assert own.token_logprobs == told.token_logprobs and own.top_logprobs is None


def test_responses_logprobs_whole_and_streamed(serve):
    host = serve("sim:stop=0")
    ask = dict(
        model=host.model,
        input="hello",
        max_output_tokens=12,
        include=["message.output_text.logprobs"],
        top_logprobs=3,
    )
    whole = host.openai.responses.create(**ask)
    told = whole.output[0].content[0].logprobs
    check_told(told, whole.output_text, alternatives=3)
    assert len(told) == 12 and whole.top_logprobs == 3
    events = list(host.openai.responses.create(**ask, stream=True))
    streamed = []
    for event in events:
        if event.type == "response.output_text.delta":
            assert "".join(token.token for token in event.logprobs) == event.delta
            streamed += event.logprobs
    assert [(t.token, t.logprob) for t in streamed] == [(t.token, t.logprob) for t in told]
    done = next(event for event in events if event.type == "response.output_text.done")
    assert [token.token for token in done.logprobs] == [token.token for token in told]
    assert events[-1].response.output[0].content[0].logprobs == told


def test_logprobs_that_were_not_asked_for_are_not_told(serve):
    host = serve("sim:stop=0")
    chat = host.openai.chat.completions.create(model=host.model, messages=HELLO, max_tokens=3)
    assert chat.choices[0].logprobs is None
    text = host.openai.completions.create(model=host.model, prompt="x", max_tokens=3)
    assert text.choices[0].logprobs is None
    response = host.openai.responses.create(model=host.model, input="x", max_output_tokens=3)
    assert response.output[0].content[0].logprobs == []


def test_more_alternatives_than_the_limit_are_refused(serve):
    host = serve()
    with pytest.raises(openai.BadRequestError) as refused:
        host.openai.chat.completions.create(
            model=host.model, messages=HELLO, logprobs=True, top_logprobs=21
        )
    assert refused.value.param == "top_logprobs"
    assert "20" in refused.value.message and "21" in refused.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        host.openai.chat.completions.create(model=host.model, messages=HELLO, top_logprobs=2)
    assert refused.value.param == "top_logprobs"


def test_usage_tells_how_much_of_the_prompt_was_cached(serve):
    host = serve()
    chat = host.openai.chat.completions.create(model=host.model, messages=HELLO, max_tokens=3)
    text = host.openai.completions.create(model=host.model, prompt="x", max_tokens=3)
    response = host.openai.responses.create(model=host.model, input="x", max_output_tokens=3)
    for cached, prompt in [
        (chat.usage.prompt_tokens_details.cached_tokens, chat.usage.prompt_tokens),
        (text.usage.prompt_tokens_details.cached_tokens, text.usage.prompt_tokens),
        (response.usage.input_tokens_details.cached_tokens, response.usage.input_tokens),
    ]:
        assert type(cached) is int and 0 <= cached < prompt


def test_an_ignored_end_goes_on_to_the_limit(serve):
    host = serve("sim:stop=1")  # ends at once, if it may
    ask = dict(model=host.model, messages=HELLO, max_tokens=7)
    ended = host.openai.chat.completions.create(**ask)
    assert (ended.choices[0].finish_reason, ended.usage.completion_tokens) == ("stop", 1)
    more = dict(extra_body={"ignore_eos": True})
    chat = host.openai.chat.completions.create(**ask, **more)
    assert (chat.choices[0].finish_reason, chat.usage.completion_tokens) == ("length", 7)
    text = host.openai.completions.create(model=host.model, prompt="x", max_tokens=7, **more)
    assert (text.choices[0].finish_reason, text.usage.completion_tokens) == ("length", 7)
    response = host.openai.responses.create(
        model=host.model, input="x", max_output_tokens=7, **more
    )
    assert (response.status, response.usage.output_tokens) == ("incomplete", 7)


def test_no_end_comes_before_the_least_tokens(serve):
    host = serve("sim:stop=1")
    more = dict(extra_body={"min_tokens": 5})
    chat = host.openai.chat.completions.create(
        model=host.model, messages=HELLO, max_tokens=9, **more
    )
    assert (chat.choices[0].finish_reason, chat.usage.completion_tokens) == ("stop", 6)
    text = host.openai.completions.create(model=host.model, prompt="x", max_tokens=9, **more)
    assert (text.choices[0].finish_reason, text.usage.completion_tokens) == ("stop", 6)
    response = host.openai.responses.create(
        model=host.model, input="x", max_output_tokens=9, **more
    )
    assert (response.status, response.usage.output_tokens) == ("completed", 6)


def test_more_at_least_than_at_most_is_refused_with_both_numbers(serve):
    host = serve()
    with pytest.raises(openai.BadRequestError) as refused:
        host.openai.chat.completions.create(
            model=host.model, messages=HELLO, max_tokens=5, extra_body={"min_tokens": 6}
        )
    assert refused.value.param == "min_tokens"
    assert "5" in refused.value.message and "6" in refused.value.message


def test_a_stream_that_is_kept_alive_reads_like_any_other(serve):
    """Comments come between events, and the package passes over them."""
    host = serve("sim:stop=0,decode=60ms", "--set", "server.stream_keepalive=10ms")
    ask = dict(model=host.model, max_tokens=4)
    for path, body in [
        ("chat/completions", ask | {"messages": HELLO}),
        ("completions", ask | {"prompt": "hello"}),
        ("responses", {"model": host.model, "input": "hello", "max_output_tokens": 16}),
    ]:
        raw = host.http.post(f"/v1/{path}", json=body | {"stream": True}).text
        assert raw.count(": keep-alive\n\n") >= 4, raw
    whole = host.openai.chat.completions.create(messages=HELLO, **ask)
    chunks = list(host.openai.chat.completions.create(messages=HELLO, stream=True, **ask))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    whole = host.openai.completions.create(prompt="hello", **ask)
    chunks = list(host.openai.completions.create(prompt="hello", stream=True, **ask))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    ask = dict(model=host.model, input="hello", max_output_tokens=16)
    whole = host.openai.responses.create(**ask)
    events = list(host.openai.responses.create(stream=True, **ask))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == whole.output_text
