"""The host as its operator meets it: start, health, metrics, cancelling, draining, dying."""

import json
import shutil
import subprocess
import threading

from conftest import BINARY, PATIENCE, ROOT

HELLO = [{"role": "user", "content": "hello"}]


def stream(host, max_tokens=1000, **more):
    """An open stream whose first token has come."""
    request = host.http.build_request(
        "POST",
        "/v1/chat/completions",
        json={"model": host.model, "messages": HELLO, "stream": True, "max_tokens": max_tokens},
        **more,
    )
    response = host.http.send(request, stream=True)
    assert response.status_code == 200
    lines = response.iter_lines()
    for line in lines:
        if '"content":"' in line.replace('": "', '":"') and '"content":""' not in line:
            return response, lines
    raise AssertionError("the stream ended before its first token")


def run(*arguments, **more):
    return subprocess.run(
        [BINARY, *arguments], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT, **more
    )


def test_it_says_where_it_listens_and_what_it_serves(serve):
    host = serve("sim:")
    assert host.line == f"interlock listening on {host.url}, model {host.model}, policies: guard"


def test_readiness_tells_loading_from_ready(serve):
    host = serve("sim:load=3s", ready=False)
    early = host.http.get("/health/ready")
    assert (early.status_code, early.json()["status"]) == (503, "starting")
    assert host.http.get("/health/live").status_code == 200
    refused = host.http.post(
        "/v1/chat/completions", json={"model": host.model, "messages": HELLO}
    )
    assert refused.status_code == 503 and "retry-after" in refused.headers
    host.wait_ready()
    assert host.http.get("/health/ready").json()["status"] == "ready"


def test_the_clients_own_request_id_comes_back_and_cancels(serve):
    host = serve("sim:decode=20ms,stop=0")
    response, lines = stream(host, headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert host.http.post("/v1/requests/mine-1/cancel").status_code == 200
    rest = "\n".join(lines)
    assert '"error"' in rest, "a cancelled stream ends with an error frame, not with silence"
    host.wait(lambda: host.metric("requests_running") == 0, "empty")
    assert host.metric('cancellations_total{cause="operator",stage="decoding"}') == 1
    assert host.http.post("/v1/requests/mine-1/cancel").status_code == 404
    assert host.http.post("/v1/requests/nobody/cancel").status_code == 404


def test_a_client_that_leaves_a_stream_is_noticed_before_the_next_pass(serve):
    host = serve("sim:decode=20ms,stop=0")
    response, _ = stream(host)
    response.close()
    host.wait(lambda: host.metric("requests_running") == 0, "empty")
    assert host.metric('cancellations_total{cause="disconnect",stage="decoding"}') == 1
    assert host.metric("engine_passes_in_flight_max") == 1
    generated = host.metric("generated_tokens_total") or host.metric(
        f'generated_tokens_total{{model="{host.model}"}}'
    )
    assert generated < 50


def test_metrics_are_what_prometheus_expects(serve):
    host = serve("sim:stop=0")
    host.openai.chat.completions.create(model=host.model, messages=HELLO, max_tokens=5)
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: apt-get install prometheus (Debian)"
    exposition = host.http.get("/metrics").text
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=exposition, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for contract in [
        f'requests_total{{endpoint="chat",model="{host.model}",outcome="completed"}} 1',
        'policy_calls_total{decision="admit",phase="admit",policy="guard"} 1',
        "engine_passes_in_flight 0",
        "engine_passes_in_flight_max 1",
        "requests_waiting 0",
        "requests_running 0",
        "cancelled_pass_failures_total 0",
    ]:
        assert f"interlock_{contract}\n" in exposition, contract
    for family in [
        "request_duration_seconds",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "queue_duration_seconds",
        "prompt_tokens_total",
        "generated_tokens_total",
        "engine_pass_duration_seconds",
        "policy_call_duration_seconds",
    ]:
        assert f"# TYPE interlock_{family} " in exposition, family


def test_sigterm_lets_the_flowing_finish_and_turns_the_new_away(serve):
    host = serve("sim:decode=10ms,stop=0")
    response, lines = stream(host, max_tokens=150)
    host.process.terminate()
    host.wait(lambda: host.http.get("/health/ready").status_code == 503, "draining")
    assert host.http.get("/health/ready").json()["status"] == "draining"
    refused = host.http.post(
        "/v1/chat/completions", json={"model": host.model, "messages": HELLO}
    )
    assert refused.status_code == 503
    rest = list(lines)
    assert "data: [DONE]" in rest, "the stream in flight came to its own end"
    assert not any('"error"' in line for line in rest)
    host.http.close()
    assert host.process.wait(PATIENCE) == 0


def test_a_drain_that_takes_too_long_cancels_and_tells_everyone(serve):
    host = serve("sim:decode=10ms,stop=0", "--set", "server.drain_max=300ms")
    _, lines = stream(host, max_tokens=4000)
    host.process.terminate()
    rest = "\n".join(lines)
    assert '"error"' in rest, "a proper end, not a cut connection"
    assert host.process.wait(PATIENCE) == 0


def test_a_panic_on_the_engine_thread_ends_the_process_after_saying_why(serve):
    host = serve("sim:decode=10ms,stop=0,panic-at=20")
    _, lines = stream(host, max_tokens=4000)
    rest = "\n".join(lines)
    assert '"error"' in rest, "the client of the fatal pass is told"
    assert host.process.wait(PATIENCE) == 1
    host._reader.join(PATIENCE)
    assert any("told to panic at pass 20" in line for line in host.log), host.log


def test_a_failing_pass_fails_its_request_and_no_other(serve):
    host = serve("sim:stop=0,fail-every=4")
    ask = {"model": host.model, "messages": HELLO, "max_tokens": 10}
    failed = host.http.post("/v1/chat/completions", json=ask)
    assert failed.status_code == 500
    assert failed.headers["x-request-id"] in failed.text, "the message has the id to look for"
    short = host.http.post("/v1/chat/completions", json=ask | {"max_tokens": 2})
    assert short.status_code == 200


def test_200_simultaneous_connections_are_all_answered(serve):
    host = serve("sim:stop=0", "--set", "waiting.requests_max=64")
    statuses, gate = [], threading.Barrier(200)

    def ask():
        gate.wait(PATIENCE)
        import httpx

        answer = httpx.post(
            f"{host.url}/v1/chat/completions",
            json={"model": host.model, "messages": HELLO, "max_tokens": 5},
            timeout=PATIENCE,
        )
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(statuses) == 200, "some were reset"
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 64


def test_an_unknown_key_names_the_nearest_and_every_problem_is_told_at_once(tmp_path):
    config = tmp_path / "interlock.toml"
    config.write_text('[server]\nbimd = "127.0.0.1:1"\n[waiting]\nrequests_max = "many"\n')
    checked = run("config", "check", str(config))
    assert checked.returncode == 2
    said = checked.stdout + checked.stderr
    assert "server.bimd" in said and "server.bind" in said
    assert "waiting.requests_max" in said and "many" in said


def test_config_show_tells_where_each_value_came_from(tmp_path):
    config = tmp_path / "interlock.toml"
    config.write_text('[server]\nbind = "127.0.0.1:1111"\n[waiting]\nrequests_max = 7\n')
    environment = {"INTERLOCK__WAITING__REQUESTS_MAX": "9", "PATH": "/usr/bin"}
    shown = run("config", "show", "--config", str(config), env=environment)
    assert shown.returncode == 0, shown.stderr
    by_key, section = {}, ""
    for line in shown.stdout.splitlines():
        if line.strip().startswith("["):
            section = line.strip().strip("[]")
        elif "=" in line:
            by_key[f"{section}.{line.split('=')[0].strip()}"] = line
    bind, waiting = by_key["server.bind"], by_key["waiting.requests_max"]
    assert "127.0.0.1:1111" in bind and str(config) in bind
    assert "9" in waiting and "INTERLOCK__WAITING__REQUESTS_MAX" in waiting


def test_inspecting_a_simulated_model_says_what_it_simulates():
    shown = run("models", "inspect", "sim:decode=20ms,context=128")
    assert shown.returncode == 0, shown.stderr
    assert "20ms" in shown.stdout and "128" in shown.stdout


def test_a_bad_policy_file_stops_the_boot_with_its_name_and_reason(tmp_path):
    component = tmp_path / "broken.wasm"
    component.write_bytes(b"not a component")
    config = tmp_path / "interlock.toml"
    config.write_text(f'[[policy]]\nname = "mine"\nsource = {json.dumps(str(component))}\n')
    refused = run("serve", "--model", "sim:", "--bind", "127.0.0.1:0", "--config", str(config))
    assert refused.returncode != 0
    assert "mine" in refused.stderr and "broken.wasm" in refused.stderr


def test_sigterm_while_the_model_loads_does_not_wait_for_it(serve):
    host = serve("sim:load=1h", ready=False)
    assert host.stop() == 0
    host._reader.join(PATIENCE)
    assert any("still loading" in line for line in host.log), host.log


def test_checking_a_file_reports_the_model_the_policies_and_the_keys_together(tmp_path):
    config = tmp_path / "interlock.toml"
    config.write_text(
        """
        [model]
        reference = "sim:decod=1ms"
        [server]
        bnd = "127.0.0.1:1"
        [[policy]]
        name = "guard"
        source = "builtin:guard"
        [policy.settings]
        totall = 1
        [[policy]]
        name = "Quota"
        source = "no/such/quota.wasm"
        """
    )
    checked = run("config", "check", str(config))
    assert checked.returncode == 2
    said = checked.stderr
    assert "5 problems" in said, said
    for line in [
        ('model.reference', '"decod"', "interlock.toml:3"),
        ("server.bnd", "server.bind", "interlock.toml:5"),
        ('policy[0] "guard"', "totall", "interlock.toml:9"),
        ("policy.name", '"Quota"'),
        ('policy[1] "Quota"', "no/such/quota.wasm", "interlock.toml:13"),
    ]:
        found = [told for told in said.splitlines() if all(part in told for part in line)]
        assert len(found) == 1, f"{line} in\n{said}"


def test_of_what_is_here_or_simulated_there_is_nothing_to_pull(tmp_path):
    simulated = run("models", "pull", "sim:")
    assert (simulated.returncode, simulated.stdout) == (0, "")
    assert "nothing to fetch" in simulated.stderr
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    folder = ROOT / "tests/golden/data/llama-f32"
    for here in [gguf, folder]:
        pulled = run("models", "pull", str(here))
        assert (pulled.returncode, pulled.stdout) == (0, f"{here}\n")
        assert "nothing to fetch" in pulled.stderr
    no_model = run("models", "pull", str(tmp_path))
    assert (no_model.returncode, no_model.stdout) == (1, "")
    assert str(tmp_path) in no_model.stderr
    missing = tmp_path / "missing.gguf"
    refused = run("models", "pull", str(missing))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.count(str(missing)) == 1, refused.stderr


def test_a_set_without_a_key_is_told_what_a_set_is():
    refused = run("config", "show", "--set", "=5")
    assert refused.returncode == 2
    assert "section.key=value" in refused.stderr
