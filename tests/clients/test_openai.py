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
    host = serve("sim:decode=20ms,stop=0", "--set", "waiting.requests_max=1")
    streams = []
    for _ in range(2):  # one runs, one waits
        request = host.http.build_request(
            "POST",
            "/v1/chat/completions",
            json={"model": host.model, "messages": HELLO, "stream": True, "max_tokens": 400},
        )
        streams.append(host.http.send(request, stream=True))
        host.wait(lambda: host.metric("requests_running") == 1, "running")
    assert host.metric("requests_waiting") == 1
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
