"""Starts the real binary, as its user would, for tests that speak to it as its clients do."""

import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("INTERLOCK_BIN", ROOT / "target/debug/interlock"))
PATIENCE = float(os.environ.get("PATIENCE", "60"))  # seconds that anything here may take before the test fails

# What a machine or a person has set for other programs is not for the host under test, nor for its
# clients: settings, keys, proxies, logins, colours.
for name in list(os.environ):
    theirs = name.startswith(("INTERLOCK_", "OPENAI_", "RUST_")) and name != "INTERLOCK_CACHE"
    if theirs or name.lower().endswith("_proxy") or name in ("CLICOLOR_FORCE", "NO_COLOR"):
        del os.environ[name]
os.environ["NETRC"] = os.devnull

LISTENING = re.compile(
    r"interlock listening on (http://[\d.]+:\d+), models? (.+), policies: (.+)"
)


class Host:
    """A running `interlock serve`."""

    def __init__(self, model, *flags, env=None):
        named = ["--model", model] if model else []  # or else the configuration names it
        command = [BINARY, "serve", *named, "--bind", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | (env or {}),
        )
        self.log = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        line = self.process.stdout.readline()
        found = LISTENING.match(line)
        if not found:
            if line:
                self.process.kill()
            self.process.wait(PATIENCE)
            self._reader.join(PATIENCE)
            raise AssertionError(f"did not listen: {line!r}\n{''.join(self.log)}")
        self.line = line.strip()
        self.url, models, self.policies = found.groups()
        self.model = models.split(", ")[0]
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)
        self.openai = OpenAI(
            base_url=f"{self.url}/v1", api_key="none", timeout=PATIENCE, max_retries=0
        )

    def _read_log(self):
        for line in self.process.stderr:
            self.log.append(line)

    def wait_ready(self):
        self.wait(lambda: self.http.get("/health/ready").status_code == 200, "ready")
        return self

    def wait(self, done, what):
        """Waits until `done()`; fails with the log when that does not happen."""
        until = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < until, f"not {what} in {PATIENCE} s\n{''.join(self.log)}"
            assert self.process.poll() is None, f"exited while waiting\n{''.join(self.log)}"
            time.sleep(0.005)

    def metric(self, line):
        """The value of a sample such as `requests_running` or `x_total{a="b"}`; 0 if absent."""
        for found in self.http.get("/metrics").text.splitlines():
            if found.startswith(f"interlock_{line} "):
                return float(found.rsplit(" ", 1)[1])
        return 0.0

    def stop(self):
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def close(self):
        self.http.close()
        self.openai.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)


@pytest.fixture
def serve():
    """Starts hosts; whatever is still running at the end of the test is killed."""
    hosts = []

    def start(model="sim:", *flags, env=None, ready=True):
        host = Host(model, *flags, env=env)
        hosts.append(host)
        return host.wait_ready() if ready else host

    yield start
    for host in hosts:
        host.close()


@pytest.fixture
def redis(tmp_path):
    """A Valkey of this test's own; its port, once it listens."""
    port = free_port()
    server = subprocess.Popen(
        [ROOT / "target/redis/valkey-9.1", "--port", str(port), "--save", ""],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert time.monotonic() < until, "Redis does not listen"
            time.sleep(0.02)
    yield port
    server.kill()
    server.wait(PATIENCE)


def free_port():
    """A port that nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def default_model():
    """One host with the default model, for all tests of a module."""
    host = Host("smollm2-135m-instruct").wait_ready()
    yield host
    host.close()
