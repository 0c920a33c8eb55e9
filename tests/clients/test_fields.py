"""Every field that the openai package can send stands in docs/request-fields.md."""

import re

import openai
import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses

from conftest import ROOT

HELLO = [{"role": "user", "content": "hello"}]


def fields_of(endpoint):
    """The fields of the page's first part that it lists for an endpoint."""
    page = (ROOT / "docs/request-fields.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", page.split("## Inside")[0], re.M)
    return {name for name, at in rows if endpoint in at or at == "all"}


@pytest.mark.parametrize(
    "endpoint, params",
    [
        ("chat", chat.CompletionCreateParamsStreaming),
        ("completions", completions.CompletionCreateParamsStreaming),
        ("responses", responses.ResponseCreateParamsStreaming),
    ],
)
def test_the_table_has_every_field_of_the_package(endpoint, params):
    sent = params.__required_keys__ | params.__optional_keys__
    assert {"model", "temperature", "stream"} <= sent
    assert sent - fields_of(endpoint) == set()


def test_a_refused_field_is_an_error_that_names_it(serve):
    host = serve()
    with pytest.raises(openai.BadRequestError) as refused:
        host.openai.chat.completions.create(
            model=host.model, messages=HELLO, extra_body={"guided_choice": ["yes", "no"]}
        )
    assert (refused.value.param, refused.value.code) == ("guided_choice", "unsupported_parameter")


def test_an_unknown_field_is_named_in_a_header(serve):
    host = serve()
    answer = host.openai.chat.completions.with_raw_response.create(
        model=host.model, messages=HELLO, max_tokens=1, extra_body={"frobnicate": 1}
    )
    assert answer.headers["x-ignored-fields"] == "frobnicate"
