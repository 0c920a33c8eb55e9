"""The configurations in config/ that deployers begin with: each serves, with simulated models."""

import hashlib
import json
import re

import httpx
import pytest
from conftest import PATIENCE, ROOT, free_port

HELLO = [{"role": "user", "content": "hello"}]
PROFILES = sorted(path.stem for path in (ROOT / "config").glob("*.toml") if path.stem != "default")


def simulated(profile):
    """A profile's text with simulated models in place of those that would have to be fetched."""
    text = (ROOT / f"config/{profile}.toml").read_text()
    return re.sub(r"(?m)^reference = .*$", 'reference = "sim:stop=0"', text)


def ask(host, **more):
    body = {"messages": HELLO, "max_tokens": 3, "model": host.model} | more.pop("json", {})
    return host.http.post("/v1/chat/completions", json=body, **more)


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "team"])
def test_a_profile_serves_as_it_stands(serve, tmp_path, profile):
    file = tmp_path / f"{profile}.toml"
    file.write_text(simulated(profile))
    host = serve("sim:stop=0", "--config", str(file))
    assert ask(host).json()["usage"]["completion_tokens"] == 3


def test_the_simple_profile_computes_for_one_request_at_a_time(serve):
    host = serve("sim:decode=1ms,stop=0", "--config", str(ROOT / "config/simple.toml"))
    streams = [
        host.openai.chat.completions.create(
            model=host.model, messages=HELLO, max_tokens=20, stream=True
        )
        for _ in range(4)
    ]
    for stream in streams:
        assert len([chunk for chunk in stream if chunk.choices[0].delta.content]) == 20
    passes = host.metric('engine_pass_rows_bucket{le="1"}')
    assert passes == host.metric('engine_pass_rows_bucket{le="+Inf"}') >= 80


def test_the_teams_profile_knows_tenants_counts_in_redis_and_keeps_ports_apart(
    serve, redis, tmp_path
):
    people, nightly = "key-of-people", "key-of-nightly"
    text = simulated("team").replace(":6379", f":{redis}")
    for digit, key in (("0", people), ("1", nightly)):
        assert text.count(digit * 64) == 1
        text = text.replace(digit * 64, hashlib.sha256(key.encode()).hexdigest())
    file = tmp_path / "team.toml"
    # A test of what is decided, not of how fast a busy machine decides it.
    assert 'timeout = "50ms"' in text
    file.write_text(text.replace('timeout = "50ms"', 'timeout = "1s"'))
    metrics, admin = free_port(), free_port()
    binds = [f"--set=metrics.bind=127.0.0.1:{metrics}", f"--set=admin.bind=127.0.0.1:{admin}"]
    host = serve(None, "--config", str(file), *binds)
    assert host.policies == "quota, router, guard"

    assert ask(host).status_code == 401, "nobody is let in without a key"
    assert ask(host, headers={"authorization": "Bearer of nobody"}).status_code == 401
    known = {"authorization": f"Bearer {people}"}
    for asked, served in (("gpt-4o", "large"), ("gpt-4o-mini", "small"), ("small", "small")):
        answer = ask(host, headers=known, json={"model": asked})
        assert (answer.status_code, answer.json()["model"]) == (200, served), answer.text
    assert answer.headers["x-ratelimit-limit-requests"] == "60"
    assert answer.headers["x-ratelimit-remaining-requests"] == "57"

    assert host.http.get("/metrics").status_code == 404
    scraped = httpx.get(f"http://127.0.0.1:{metrics}/metrics", timeout=PATIENCE).text
    assert "interlock_policy_state_available 1\n" in scraped
    assert 'interlock_requests_total{endpoint="chat",model="large",outcome="completed"} 1\n' in scraped
    listed = httpx.get(f"http://127.0.0.1:{admin}/admin/requests", timeout=PATIENCE)
    assert listed.status_code == 200
    host.wait(lambda: any("completed" in line for line in host.log), "logged")
    assert all(json.loads(line) for line in host.log), "the log is for a collector"
