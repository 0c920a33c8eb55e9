"""Policies in the real binary: what the client sees, what the log and the metrics say, what stays.

The guests are those of `tests/guests`; `hostile` commits the crime that the request's model, or
(in `identify`) the header `x-tenant`, is called.
"""

import concurrent.futures
import json
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
from conftest import BINARY, PATIENCE, ROOT

GUESTS = ROOT / "target/guests"

# Crime, the kind of the failure that is counted, a word of the log line.
CRIMES = [
    ("spin", "deadline", "deadline"),
    ("grow", "memory", "memory"),
    ("recurse", "trap", "stack"),
    ("panic", "trap", "it was told to"),
    ("storm", "host_calls", "host"),
    ("a giant line", "bad_output", "too much data"),
    ("count elsewhere", "trap", "metric"),
]


@pytest.fixture
def configured(serve, tmp_path):
    """Serves with a configuration that is written for the test; `host.config` is its file."""

    def start(text, *flags):
        file = tmp_path / "interlock.toml"
        file.write_text(text)
        quiet = ["--set", "log.filter=info,interlock_server::ledger=warn"]
        host = serve(None, "--config", str(file), *quiet, *flags)
        host.config = file
        return host

    return start


def model(name, first=False, reference="sim:stop=0"):
    table = "[model]" if first else "[[extra_model]]"
    return f'{table}\nname = "{name}"\nreference = "{reference}"\n'


def hostile(on_failure="", **settings):
    """A configuration with the hostile guest, and a model for each crime."""
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    names = [name for name, _, _ in CRIMES] + ["a reason of its own", "nan", "a giant text"]
    return (
        model("fine", first=True)
        + "".join(model(name) for name in names)
        + f"""
[[policy]]
name = "hostile"
source = "{GUESTS / "guest-hostile.wasm"}"
grants = ["state", "metrics", "http:127.0.0.1:1", "headers:x-tenant",
          "content:read:/messages", "content:write:/temperature"]
# Long enough for a debug build on a busy machine to use up its memory first.
deadline = "100ms"
on_failure = {{ {on_failure} }}
{more}"""
    )


def ask(host, name="fine", tokens=8, **fields):
    body = {"model": name, "prompt": "hello", "max_tokens": tokens}
    headers = fields.pop("headers", {})
    return host.http.post("/v1/completions", json=body | fields, headers=headers)


def failures(host, phase, kind, policy="hostile"):
    return host.metric(
        f'policy_failures_total{{kind="{kind}",phase="{phase}",policy="{policy}"}}'
    )


def logged(host, *words):
    """Waits for a line of the log with all these words."""
    host.wait(lambda: any(all(w in line for w in words) for line in list(host.log)), words)


class Crowd:
    """Clients who ask for `fine` as long as the block lasts, and keep what they were answered."""

    def __init__(self, host, clients=4, name="fine"):
        self.host, self.clients, self.name = host, clients, name
        self.over = threading.Event()
        self.answers, self.seconds = [], []

    def _go_on(self):
        while not self.over.is_set():
            began = time.monotonic()
            answer = ask(self.host, self.name, tokens=4)
            self.answers.append((answer.status_code, answer.text))
            self.seconds.append(time.monotonic() - began)

    def __enter__(self):
        self.pool = concurrent.futures.ThreadPoolExecutor(self.clients)
        self.threads = [self.pool.submit(self._go_on) for _ in range(self.clients)]
        return self

    def __exit__(self, *error):
        self.over.set()
        for thread in self.threads:
            thread.result(PATIENCE)

    def all_were_served(self):
        others = [answer for answer in self.answers if answer[0] != 200]
        assert not others, f"{len(others)} of {len(self.answers)}: {others[:3]}"
        assert len(self.answers) > self.clients


def test_a_crime_costs_its_own_request_and_no_other(configured):
    host = configured(hostile("transform = 'open', route = 'open'", crash_budget=0))
    with Crowd(host) as crowd:
        for crime, kind, word in CRIMES:
            before = failures(host, "admit", kind)
            answer = ask(host, crime)
            # The log and the metrics say what it was; the client learns that it was a policy.
            assert answer.status_code == 503, f"{crime}: {answer.text}"
            error = answer.json()["error"]
            assert error["code"] == "policy_failed", f"{crime}: {error}"
            assert "hostile" in error["message"], f"{crime}: {error}"
            assert failures(host, "admit", kind) == before + 1, crime
            logged(host, "policy gave no decision", 'phase="admit"', kind, word)
            assert ask(host).status_code == 200, f"after {crime}"
    crowd.all_were_served()


@pytest.mark.parametrize(("crime", "kind", "word"), CRIMES[:4])
def test_a_crime_in_each_phase_is_survived_as_the_operator_said(configured, crime, kind, word):
    phases = ["transform", "route", "admit", "stream_guard", "events", "account"]
    host = configured(hostile(", ".join(f"{p} = 'open'" for p in phases), crash_budget=0))
    with Crowd(host) as crowd:
        answer = ask(host, crime)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert answer.json()["usage"]["completion_tokens"] == 8
        who = ask(host, headers={"x-tenant": crime})
        assert who.status_code == 503 and who.json()["error"]["code"] == "policy_failed"
        for phase in ["identify", *phases]:
            host.wait(lambda p=phase: failures(host, p, kind) > 0, f"{kind} in {phase}")
            logged(host, "WARN", f'phase="{phase}"', kind, word)
    crowd.all_were_served()


def test_a_gate_that_fails_ends_its_answer_and_no_other(configured):
    host = configured(hostile("transform = 'open', admit = 'open'", crash_budget=0))
    with Crowd(host) as crowd:
        answer = ask(host, "panic", tokens=20)
        assert answer.status_code >= 500, answer.text
        assert failures(host, "stream_guard", "trap") > 0
    crowd.all_were_served()


def test_answers_that_make_no_sense_are_no_decisions(configured):
    host = configured(hostile(crash_budget=0))
    answer = ask(host, "a reason of its own")
    assert answer.status_code == 503
    assert failures(host, "admit", "bad_output") == 1
    logged(host, "policy gave no decision", "reason", "99")
    # NaN is no score: the client's own choice stands.
    assert ask(host, "nan").json()["model"] == "nan"


def test_who_fails_again_and_again_is_not_asked_for_a_while(configured):
    host = configured(hostile("admit = 'open', transform = 'open'", crash_budget=5))
    for _ in range(6):
        assert ask(host, "panic").status_code >= 500  # its gate is closed to it
    assert host.metric('policy_quarantined{policy="hostile"}') == 1
    logged(host, "hostile", "quarantine")
    # One second later one call tries again, and it serves as before.
    host.wait(lambda: ask(host).status_code == 200, "free again")
    assert host.metric('policy_quarantined{policy="hostile"}') == 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda wasm: b"not a component at all", "component"),
        (lambda wasm: wasm.replace(b"@0.2.0", b"@0.9.0"), "0.9.0"),
        (lambda wasm: wasm[: len(wasm) // 2], ""),
    ],
    ids=["no component", "of another version", "cut off"],
)
def test_what_is_no_policy_ends_the_start_with_a_sentence(tmp_path, spoil, said):
    file = tmp_path / "spoiled.wasm"
    file.write_bytes(spoil((GUESTS / "guest-plain.wasm").read_bytes()))
    config = tmp_path / "interlock.toml"
    config.write_text(f'[[policy]]\nname = "spoiled"\nsource = "{file}"\n')
    ended = start_in_vain(config)
    assert "spoiled" in ended and said in ended, ended


def test_an_import_that_was_not_granted_is_named_at_the_start(tmp_path):
    config = tmp_path / "interlock.toml"
    config.write_text(hostile().replace('grants = ["state", ', "grants = ["))
    ended = start_in_vain(config)
    assert "hostile" in ended and '"state"' in ended, ended


def start_in_vain(config):
    command = [BINARY, "serve", "--config", config, "--model", "sim:", "--bind", "127.0.0.1:0"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)
    assert ended.returncode not in (0, 101), ended
    assert "panicked" not in ended.stderr
    return ended.stderr


# Swapping.

HELLO = (GUESTS / "hello-policy.wasm", {"max_prompt_tokens": 100})


def hello(file, more="", settings=None):
    limit = (settings or HELLO[1])["max_prompt_tokens"]
    return f"""
[admin]
bind = "127.0.0.1:0"

[policies]
reload = "100ms"

[[policy]]
name = "hello"
source = "{file}"
{more}
[policy.settings]
max_prompt_tokens = {limit}
"""


def admin(host):
    """Where the admin listener is: the log says so."""
    logged(host, "admin", "127.0.0.1:")
    line = next(line for line in host.log if "admin" in line and "127.0.0.1:" in line)
    return "http://127.0.0.1:" + line.split("127.0.0.1:")[1].split()[0].strip('"')


def generation(host):
    return host.metric('policy_generation{policy="hello"}')


def test_a_policy_is_swapped_by_post_and_taken_back(configured, tmp_path):
    file = shutil.copy(HELLO[0], tmp_path / "hello.wasm")
    host = configured(model("fine", first=True) + hello(file))
    url = f"{admin(host)}/admin/policies"
    assert ask(host).headers["x-hello"] == "welcome"
    swapped = host.http.post(f"{url}/hello", json={"settings": {"max_prompt_tokens": 3}})
    assert swapped.status_code == 200, swapped.text
    assert ask(host).status_code == 413
    listed = host.http.get(url).json()
    assert "hello" in json.dumps(listed) and listed["generation"] == swapped.json()["generation"]
    # What does not load changes nothing, and is said.
    component = {"content-type": "application/wasm"}
    refused = host.http.post(f"{url}/hello", content=b"nothing", headers=component)
    assert refused.status_code == 422 and "component" in refused.text
    assert ask(host).status_code == 413
    assert host.http.post(f"{url}/nobody", json={"mode": "shadow"}).status_code == 404
    # Said twice, it is one step back.
    again = host.http.post(f"{url}/hello", json={"settings": {"max_prompt_tokens": 3}})
    assert again.status_code == 200 and again.json()["changed"] == [], again.text
    back = host.http.post(f"{url}/rollback")
    assert back.status_code == 200, back.text
    assert ask(host).headers["x-hello"] == "welcome"
    other = host.http.post(
        f"{url}/hello", content=(GUESTS / "guest-plain.wasm").read_bytes(), headers=component
    )
    # The settings are hello's, and guest-plain knows none.
    assert other.status_code in (200, 422), other.text
    # Nothing of it is on the clients' port.
    assert host.http.get("/admin/policies").status_code == 404


def test_a_changed_file_is_taken_over_and_a_broken_one_is_not(configured, tmp_path):
    file = tmp_path / "policy.wasm"
    shutil.copy(GUESTS / "guest-mute.wasm", file)
    host = configured(model("fine", first=True) + hello(file).split("[policy.settings]")[0])
    now = generation(host)
    new = tmp_path / "new.wasm"
    new.write_bytes(b"broken")
    new.replace(file)
    logged(host, "a policy's file changed and cannot be taken", "policy.wasm", "not WebAssembly")
    assert host.metric('policy_swaps_total{result="failed"}') > 0
    assert generation(host) == now and ask(host).status_code == 200
    shutil.copy(GUESTS / "guard.wasm", new)
    new.replace(file)
    host.wait(lambda: generation(host) > now, "swapped")
    assert ask(host).status_code == 200


def test_sighup_reads_the_files_again(configured, tmp_path):
    file = tmp_path / "policy.wasm"
    shutil.copy(GUESTS / "guest-mute.wasm", file)
    text = hello(file).split("[policy.settings]")[0].replace('"100ms"', '"0s"')
    host = configured(model("fine", first=True) + text)
    now = generation(host)
    # Another host looks at the same file, and shows when there was time to see the change.
    looking = configured(model("fine", first=True) + hello(file).split("[policy.settings]")[0])
    seen = generation(looking)
    shutil.copy(GUESTS / "guard.wasm", tmp_path / "new.wasm")
    (tmp_path / "new.wasm").replace(file)
    looking.wait(lambda: generation(looking) > seen, "swapped")
    assert generation(host) == now, "nobody has said so"
    host.process.send_signal(signal.SIGHUP)
    host.wait(lambda: generation(host) > now, "swapped")
    logged(host, "a policy was swapped", "sighup", "enforce")
    assert ask(host).status_code == 200


def test_swaps_under_load_cost_no_request(configured, tmp_path):
    file = shutil.copy(HELLO[0], tmp_path / "hello.wasm")
    host = configured(model("fine", first=True) + hello(file))
    url = f"{admin(host)}/admin/policies/hello"
    swaps = 50
    with Crowd(host) as crowd:
        for n in range(swaps):
            swapped = host.http.post(url, json={"settings": {"max_prompt_tokens": 2000 + n}})
            assert swapped.status_code == 200, swapped.text
    crowd.all_were_served()
    assert host.metric('policy_swaps_total{result="swapped"}') == swaps


def test_what_was_recorded_is_decided_again(configured, tmp_path):
    trace = tmp_path / "trace.jsonl"
    file = shutil.copy(HELLO[0], tmp_path / "hello.wasm")
    text = hello(file).replace("[policies]\n", f'[policies]\nrecord = "{trace}"\n')
    host = configured(model("fine", first=True) + text)
    assert ask(host).status_code == 200
    assert ask(host, prompt="hello" * 40).status_code == 413
    host.stop()
    assert len(trace.read_text().splitlines()) == 2
    stricter = tmp_path / "stricter.toml"
    stricter.write_text(hello(file, settings={"max_prompt_tokens": 2}))
    replayed = subprocess.run(
        [BINARY, "policy", "replay", trace, "--config", stricter, "--policy", file, "--json"],
        capture_output=True, text=True, timeout=PATIENCE,
    )
    assert "prompt_too_long" in replayed.stdout, replayed


def test_one_request_too_many_is_refused_before_its_body_is_there(configured):
    """It used to be read, parsed and tokenized first, and then refused for what it was."""
    host = configured(
        model("fine", first=True)
        + """
[[policy]]
name = "quota"
source = "builtin:quota"
grants = ["state", "metrics"]
[policy.settings]
anonymous = "everyone"
limits = { requests_per_minute = 1 }
"""
    )
    # Also one that comes to nothing is a request.
    assert host.http.post("/v1/completions", content=b"{").status_code == 400
    url = host.http.base_url
    with socket.create_connection((url.host, url.port), PATIENCE) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4000000\r\n\r\n"
        connection.sendall(head.encode())
        connection.settimeout(PATIENCE)
        answer = connection.recv(65536).decode().lower()
    assert answer.startswith("http/1.1 429 "), answer
    assert "retry-after: " in answer and "x-ratelimit-remaining-requests: 0" in answer, answer
    # Neither of these asks for work.
    assert host.http.get("/v1/responses/resp_1").status_code == 404
    assert host.http.post("/v1/requests/r-1/cancel").status_code == 404


def test_the_deadline_of_one_policy_and_the_drain_of_another_hold_for_one_request(configured):
    """If either were not heeded, or a third opinion came with them, it would end otherwise."""
    host = configured(
        model("fine", first=True, reference="sim:stop=0,decode=20ms")
        + """
        [[policy]]
        name = "timeouts"
        source = "builtin:timeouts"
        settings.total = { base = "3s" }

        [[policy]]
        name = "disconnect-guard"
        source = "builtin:disconnect-guard"
        settings.streaming.on_disconnect = { drain = { max_time = "30s", max_tokens = 4000 } }
        """
    )
    body = {"model": "fine", "prompt": "hello", "max_tokens": 2000, "stream": True}
    with host.http.stream("POST", "/v1/completions", json=body) as answer:
        assert next(line for line in answer.iter_lines() if line)
    ended = 'requests_total{endpoint="completions",model="fine",outcome="%s"}'
    host.wait(lambda: host.metric(ended % "timed_out") == 1, "the deadline has struck")
    assert host.metric(ended % "disconnected") == 0


def test_two_hosts_share_their_limits_in_redis(configured, serve, redis):
    text = model("fine", first=True) + f"""
[state]
store = "redis://127.0.0.1:{redis}"
# A test of what is decided, not of how fast a busy machine decides it.
timeout = "500ms"
[[policy]]
name = "quota-by-tenant"
source = "{GUESTS / "quota-by-tenant.wasm"}"
grants = ["state", "headers:x-tenant"]
[policy.settings]
requests_per_minute = 2
"""
    first = configured(text)
    second = serve(None, "--config", str(first.config))
    blue, green = ({"headers": {"x-tenant": tenant}} for tenant in ("blue", "green"))
    assert ask(first, **blue).status_code == 200
    assert ask(second, **blue).status_code == 200
    for host in (first, second):
        assert ask(host, **blue).status_code == 429
    assert ask(second, **green).status_code == 200


def test_an_old_release_keeps_deciding(configured):
    """A component made for 0.1.0, as it was released."""
    corpus = ROOT / "tests/corpus/0.1.0/misbehaves.wasm"
    host = configured(
        model("fine", first=True) + f'[[policy]]\nname = "old"\nsource = "{corpus}"\n'
    )
    assert ask(host).status_code == 200
    assert host.metric('policy_calls_total{decision="admit",phase="admit",policy="old"}') == 1
