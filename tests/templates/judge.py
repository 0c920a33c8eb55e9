"""Asks Jinja2, set up as transformers sets it up, what it makes of chat templates.

`judge.py WHEELS OUT` writes to OUT, as JSON, every template in the wheels with what became of each
conversation, and the expressions of `expressions.py` with theirs. The test `judged` of
`interlock-text` renders all of it and compares. Run by `make templates`.
"""

import copy
import datetime
import json
import sys
import zipfile
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

import expressions

NOW = datetime.datetime(2026, 11, 28, 15, 4, 5)


class Refused(jinja2.exceptions.TemplateError):
    pass


class Generation(jinja2.ext.Extension):
    """`{% generation %}` as transformers has it: a block of its own whose content is just text."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        options = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(x, ensure_ascii=ensure_ascii, **options)

    def raise_exception(message):
        raise Refused(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def outcomes(env, source, contexts):
    """What becomes of each context: a text, a refusal of the template's, or an error."""
    try:
        template = env.from_string(source)
    except Exception:
        return [{"error": None}] * len(contexts)

    def outcome(context):
        try:
            # A copy, since a filter of Jinja2's may change the list that it is given.
            return {"text": template.render(**copy.deepcopy(context))}
        except Refused as error:
            return {"refused": str(error)}
        except Exception:
            return {"error": None}

    return [outcome(context) for context in contexts]


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


SPECIAL = "Grüße 日本語 🎉\n\nzwei\r\n\tdrei 'vier' \"fünf\" <b>&amp;</b> \\n {{ x }} {% if %}"
TURNS = [
    system("Be brief."),
    user("Hi"),
    assistant("Hello!"),
    user("How are you?"),
    assistant("<think>\nhmm\n</think>\n\nFine."),
    user("Good"),
]
CONVERSATIONS = {
    "one user": [user("Hello")],
    "system and user": [system("Be brief."), user("Hello")],
    "several turns": TURNS,
    "turns without a system": [user("Hi"), assistant("Hello!"), user("How?")],
    "nothing said": [user("")],
    "an empty system": [system(""), user("x")],
    "special letters": [user(SPECIAL)],
    "white space": [system("  sys \n"), user("  a\n"), assistant("\n b  "), user("\tc \n\n")],
    "ends with the assistant": [user("Hi"), assistant("The answer")],
    "several systems": [system("One"), system("Two"), user("Hi"), system("Three"), user("more")],
    "thoughts": [user("Hi"), assistant("<think>because\nof</think>yes"), user("Why?")],
    "half a thought": [user("Hi"), assistant("</think>x"), user("k")],
    "a tool first": [{"role": "tool", "content": "42"}, user("x")],
    "a developer": [{"role": "developer", "content": "Dev"}, user("x")],
    "a name": [{"role": "user", "content": "x", "name": "Ada"}],
    "no messages": [],
    "twice the same": [user("a"), user("b"), assistant("c"), assistant("d")],
    "begins with the assistant": [assistant("starts"), user("x")],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": 'Does "f" <x> é',
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "string", "description": "ä", "enum": ["x", "y"]},
                    "b": {"type": ["integer", "null"], "default": 1.5},
                },
                "required": ["a"],
            },
        },
    }
]
ARGUMENTS = {"a": "x", "b": 1, "c": [1, 2.0, None, True]}
CALL = {"id": "call12345", "type": "function", "function": {"name": "f", "arguments": ARGUMENTS}}
CALLED = [
    user("x"),
    assistant(None, tool_calls=[CALL]),
    {"role": "tool", "tool_call_id": "call12345", "name": "f", "content": '{"r": 1}'},
    user("y"),
]
SETTINGS = [
    {"enable_thinking": False},
    {"enable_thinking": True},
    {"thinking": True},
    {"reasoning_effort": "high"},
    {"date_string": "01 Jan 2020"},
    {"builtin_tools": []},
]


def contexts():
    def context(name, messages, **more):
        always = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
        variables = {"messages": messages, **always, "add_generation_prompt": True, **more}
        return {"name": name, "variables": variables}

    for name, messages in CONVERSATIONS.items():
        yield context(name, messages)
        yield context(f"{name}, no prompt", messages, add_generation_prompt=False)
    for setting in SETTINGS:
        yield context(json.dumps(setting), TURNS, **setting)
    yield context("tools", CONVERSATIONS["system and user"], tools=TOOLS)
    yield context("tool call", CALLED, tools=TOOLS)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    yield context("content in parts", [user(parts)])
    yield context("reasoning", [user("x"), assistant("y", reasoning_content="why"), user("z")])


def templates(wheels):
    """Each template once, by its text."""
    seen = set()
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for path in sorted(archive.namelist()):
                if not path.endswith(".jinja"):
                    continue
                source = archive.read(path).decode()
                if source not in seen:
                    seen.add(source)
                    yield {"package": wheel.name.split("-")[0], "name": Path(path).stem, "source": source}


def main(wheels, out):
    env = environment()
    asked = list(contexts())
    variables = [context["variables"] for context in asked]
    judged = [{**shipped, "outcomes": outcomes(env, shipped["source"], variables)} for shipped in templates(wheels)]
    small = [
        {"source": source, "outcome": outcomes(env, source, [expressions.VARIABLES])[0]}
        for source in expressions.sources()
    ]
    result = {
        "contexts": asked,
        "templates": judged,
        "variables": expressions.VARIABLES,
        "expressions": small,
    }
    # A name is only given to what is complete.
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    partial.rename(out)
    print(f"templates: Jinja2 {jinja2.__version__} rendered {len(judged)} templates for {len(asked)} conversations, and {len(small)} expressions")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
