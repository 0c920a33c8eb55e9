#!/usr/bin/env python3
"""TTFT and tokens/s of Interlock beside mlx_lm.server, on the same machine, in one run.

Needs an environment with mlx-lm and httpx, the same model for both (mlx_lm wants a folder of
safetensors; tests/golden/generate.py convert makes one of a GGUF), and an OpenBLAS for mlx_lm, which is
twenty times slower without one:

    python beside_mlx_lm.py --binary target/release/interlock --model smollm2-135m-instruct \
        --mlx-folder DIR --preload /path/to/libopenblas.so

The two are asked in turn, so that what else the machine does meanwhile falls on both. Prints a
table, and with Interlock the times from a client's close to the first pass and the first token of
the request that comes next, the former from the host's own log.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

PROMPT = "Write a short story about a lighthouse keeper who finds a letter in a bottle."


def ask(url, model, tokens, prompt=PROMPT):
    """One streamed chat: seconds to the first token, tokens per second after it, tokens."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun, first, last, pieces, used = time.perf_counter(), None, None, 0, None
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=600) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                used = event["usage"]["completion_tokens"]
            if event.get("choices") and event["choices"][0]["delta"].get("content"):
                last = time.perf_counter()
                first = first or last
                pieces += 1
    generated = used or pieces
    return first - begun, (generated - 1) / (last - first), generated


def start(command, ready_url, log, env=None):
    process = subprocess.Popen(
        command,
        env=os.environ | (env or {}),
        stdout=subprocess.DEVNULL,
        stderr=log.open("w"),
    )
    begun = time.perf_counter()
    while True:
        if process.poll() is not None:
            sys.exit(f"{command[0]} ended with {process.returncode}")
        try:
            if httpx.get(ready_url, timeout=1).status_code == 200:
                return process, time.perf_counter() - begun
        except httpx.HTTPError:
            pass
        if time.perf_counter() - begun > 120:
            sys.exit(f"{command[0]} was not ready in 120 s")
        time.sleep(0.02)


def close_to_next(url, model, log):
    """Seconds from closing a flowing stream to the first pass and token of the request behind it."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 500,
        "stream": True,
    }
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=600) as response:
        for number, _ in enumerate(response.iter_lines()):
            if number > 20:
                break
    first_token, _, _ = ask(url, model, 2, prompt="Hi")
    time.sleep(0.2)  # for the log line, which is written after the answer
    ended = [line for line in log.read_text().splitlines() if "request ended" in line][-1]
    return float(re.search(r"queue_ms=([\d.]+)", ended)[1]) / 1e3, first_token


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--mlx-folder", required=True)
    arguments.add_argument("--preload", help="an OpenBLAS for mlx_lm")
    arguments.add_argument("--tokens", type=int, default=64)
    arguments.add_argument("--iterations", type=int, default=3)
    options = arguments.parse_args()

    logs = Path(tempfile.mkdtemp())
    ours, theirs = "http://127.0.0.1:18080", "http://127.0.0.1:18081"
    interlock, interlock_ready = start(
        [options.binary, "serve", "--model", options.model, "--bind", "127.0.0.1:18080"],
        f"{ours}/health/ready",
        logs / "interlock.log",
    )
    served = httpx.get(f"{ours}/v1/models").json()["data"][0]["id"]
    mlx_lm, mlx_lm_ready = start(
        [sys.executable, "-m", "mlx_lm", "server", "--model", options.mlx_folder]
        + ["--port", "18081"],
        f"{theirs}/health",
        logs / "mlx_lm.log",
        {"LD_PRELOAD": options.preload} if options.preload else None,
    )
    try:
        for url, model in [(ours, served), (theirs, options.mlx_folder)]:
            ask(url, model, 4)  # warm
        rows = {"interlock": [], "mlx_lm.server": []}
        for number in range(options.iterations):
            # Begins differently each time: mlx_lm.server keeps the last prompt's cache, and a
            # repeated question would measure that instead of a prefill.
            prompt = f"{number} times I asked: {PROMPT}"
            rows["interlock"].append(ask(ours, served, options.tokens, prompt))
            rows["mlx_lm.server"].append(ask(theirs, options.mlx_folder, options.tokens, prompt))
        log = logs / "interlock.log"
        closes = [close_to_next(ours, served, log) for _ in range(options.iterations)]
    finally:
        interlock.terminate()
        mlx_lm.terminate()
        interlock.wait(60)
        mlx_lm.wait(60)

    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {options.tokens} tokens")
    print(f"{'':14} {'ready s':>8} {'TTFT ms':>8} {'tokens/s':>9} {'spread':>15} {'tokens':>7}")
    for name, ready in [("interlock", interlock_ready), ("mlx_lm.server", mlx_lm_ready)]:
        rates = [rate for _, rate, _ in rows[name]]
        print(
            f"{name:14} {ready:8.2f} {1e3 * statistics.median(t for t, _, _ in rows[name]):8.0f}"
            f" {statistics.median(rates):9.1f} {min(rates):7.1f}-{max(rates):<7.1f}"
            f" {rows[name][0][2]:7}"
        )
    first_pass, first_token = (1e3 * statistics.median(times) for times in zip(*closes))
    print(f"after a close, the next request: first pass {first_pass:.1f} ms after its admission,")
    print(f"first token {first_token:.0f} ms after it was sent (medians)")


if __name__ == "__main__":
    main()
