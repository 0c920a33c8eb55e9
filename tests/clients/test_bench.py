"""`interlock bench`, as who measures meets it: this host and others, reports, comparisons."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from conftest import BINARY, PATIENCE, ROOT

SIM = "sim:decode=1ms,stop=0"
QUICK = ["--concurrency", "1,2", "--iterations", "2", "--max-tokens", "8"]


def bench(*arguments):
    return subprocess.run(
        [BINARY, "bench", *arguments], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT
    )


def test_it_starts_the_host_measures_draws_and_compares(tmp_path):
    report, plot = tmp_path / "a.json", tmp_path / "a.svg"
    files = ["--json", report, "--plot", plot]
    done = bench("--model", SIM, *QUICK, *files)
    assert done.returncode == 0, done.stderr
    for title in ["All tokens per second", "Wall clock", "Time to first token", "Between two"]:
        assert title in done.stdout
    cells = json.loads(report.read_text())["cells"]
    seen = {(cell["target"], cell["concurrency"]) for cell in cells}
    assert seen == {(mode, n) for mode in ["simple", "batched"] for n in [1, 2]}
    assert all(batch["tokens"] > 0 for cell in cells for batch in cell["batches"])
    assert "requests at once" in plot.read_text()

    compared = bench("compare", report, report)
    assert compared.returncode == 0, compared.stderr
    assert re.search(r"all tokens/s +\S+ ± \S+ +\S+ ± \S+ +1\.00 +~", compared.stdout)


def test_a_storm_leaves_a_host_idle_and_answering(serve):
    host = serve(SIM)
    storm = ["--workload", "storm", "--concurrency", "8", "--max-tokens", "32"]
    done = bench("--url", f"ours={host.url}", *storm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"8 +ours +80 .* yes +\d+\.\d\d s +1 +0\n", done.stdout), done.stdout
    assert host.metric("requests_running") == host.metric("requests_waiting") == 0


def test_failed_requests_are_an_error(serve):
    host = serve("sim:stop=0,fail-every=15")
    done = bench("--url", host.url, *QUICK)
    assert done.returncode == 1
    assert "error in the stream" in done.stdout and "failures" in done.stderr


def test_a_mode_that_the_host_does_not_have_is_told_in_its_own_words():
    done = bench("--modes", "sideways", "--model", SIM, *QUICK)
    assert done.returncode == 1
    assert 'got "sideways"' in done.stderr


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def test_stopping_a_run_stops_its_hosts():
    command = [BINARY, "bench", "--modes", "simple", "--model", "sim:decode=50ms,stop=0"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT) as run:
        until = time.monotonic() + PATIENCE
        while not (hosts := children(run.pid)):
            assert time.monotonic() < until and run.poll() is None, "no host was started"
            time.sleep(0.005)
        run.send_signal(signal.SIGTERM)
        assert run.wait(PATIENCE) == 1
    for host in hosts:
        with pytest.raises(ProcessLookupError):
            os.kill(host, 0)
