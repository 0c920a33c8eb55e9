"""The commands in the examples' READMEs, as they stand there, against the real binary."""

import re
import subprocess

import pytest
from conftest import PATIENCE, ROOT

EXAMPLES = ["hello-policy", "quota-by-tenant", "redact-stream", "route-by-length"]


def commands(example):
    """The arguments of `interlock serve`, and what is then asked."""
    text = (ROOT / "examples" / example / "README.md").read_text()
    serve, ask = re.findall(r"```sh\n(.+?)```", text, re.DOTALL)
    return serve.split("interlock serve ")[1].split(), ask.splitlines()


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_the_readme_says_is_what_happens(serve, example):
    flags, lines = commands(example)
    host = serve(None, *flags)
    script, asked = [], 0
    for line in lines:
        command, _, expected = (part.strip() for part in line.partition(" # "))
        script.append(command.replace("localhost:8080", host.url.removeprefix("http://")))
        if not expected:
            continue
        # A line may need the functions of those before it, but not what they print.
        *before, last = script
        functions = [known for known in before if known.startswith("ask()")]
        ran = subprocess.run(
            ["bash", "-euc", "\n".join([*functions, last])],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        for part in expected.split(", "):
            assert part in ran.stdout, f"{last}\n{ran.stdout}{ran.stderr}"
        asked += 1
        if example == "redact-stream":
            texts = re.findall(r'"text":"([^"]*)"', ran.stdout)
            assert len("".join(texts)) > 60 and "e" not in "".join(texts)
    assert asked == sum(" # " in line for line in lines) > 0
