"""A server under measurement: started, asked, watched and stopped."""

import json
import os
import subprocess
import time
from pathlib import Path

import httpx

START_MAX = 180


def openblas_core():
    """The best kernels that OpenBLAS has for this machine.

    A release older than the processor does not know it and takes Prescott's, of 2004: Debian's
    0.3.21 does on a Xeon of 2023. Many rows are then multiplied several times as slowly.
    """
    flags = Path("/proc/cpuinfo").read_text().split()
    known = [("avx512bw", "SkylakeX"), ("avx2", "Haswell"), ("asimd", "ARMV8")]
    return next((core for flag, core in known if flag in flags), "")


class NotStarted(Exception):
    """The server ended, or was not ready in time."""


class Peer:
    """A running server. `ready` is the time from its start to the first 200 of its health."""

    def __init__(self, name, command, port, health, model, logs, preload=None, env=None, gpu=False):
        self.name, self.url, self.model = name, f"http://127.0.0.1:{port}", model
        env = os.environ | (env or {}) | ({"LD_PRELOAD": preload} if preload else {})
        # vllm-mlx queues instead of refusing only if it is told to.
        env |= {"VLLM_MLX_SIMPLE_ENGINE_LOCK_ADMISSION": "wait", "HF_HUB_OFFLINE": "1"}
        # On a CPU it runs a compiler for every new shape.
        env |= {} if gpu else {"MLX_DISABLE_COMPILE": "1"}
        if preload:
            env = {"OPENBLAS_CORETYPE": openblas_core()} | env
        self.log = logs / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=env, stdout=log, stderr=subprocess.STDOUT
            )
        self.begun = time.perf_counter()
        try:
            with httpx.Client(timeout=1) as client:
                self.wait(client, health)
        except BaseException:
            self.stop()
            raise
        self.ready = time.perf_counter() - self.begun

    def wait(self, client, health):
        while True:
            if self.process.poll() is not None:
                raise NotStarted(f"{self.name} ended with {self.process.returncode}: {self.last()}")
            try:
                if client.get(f"{self.url}{health}").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            if time.perf_counter() - self.begun > START_MAX:
                raise NotStarted(f"{self.name} was not ready in {START_MAX} s: {self.last()}")
            time.sleep(0.01)

    def last(self):
        """The last that it said."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"

    def lives(self):
        return self.process.poll() is None

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def cpu(self):
        """Seconds of CPU that it has used, its children not counted."""
        # The process's own clock, to the nanosecond, where /proc counts in ticks of 10 ms: how
        # Linux makes a clock's number of a process's.
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def memory(self):
        """MB in memory, and of these the ones that are no file's; and the most there were."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        kb = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
        return {
            "rss_mb": kb["VmRSS"] * 1024 / 1e6,
            "anonymous_mb": kb["RssAnon"] * 1024 / 1e6,
            "most_mb": kb["VmHWM"] * 1024 / 1e6,
        }

    def ask(self, prompt, tokens, seen=None):
        """One streamed chat: seconds to the first text, and to the end; and tokens."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        }
        begun, first, used = time.perf_counter(), None, 0
        url = f"{self.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=600) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if event.get("usage"):
                    used = event["usage"]["completion_tokens"]
                if event.get("choices") and event["choices"][0]["delta"].get("content"):
                    first = first or time.perf_counter() - begun
                    if seen:
                        seen()
        return first, time.perf_counter() - begun, used
