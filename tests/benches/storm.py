#!/usr/bin/env python3
"""Ten minutes of clients that leave, against both modes at the same time: the crash, provoked.

    python tests/benches/storm.py --binary target/release/interlock --for 10m --out FOLDER \
        [--model REF] [--concurrency 8] [--set SECTION.KEY=VALUE]

A host is started in each mode, simple and batched, and `interlock bench --workload storm` asks both:
half of the time `/v1/responses` not streaming, where the origin crashed, then the other endpoints, whole
and streamed. Four of five clients leave, before the first text or in the middle. After each storm the host
must be idle, answer the next request, have had one pass in its device at most and none that failed; at
the end its gauges must be where they were before. The same command runs on a Mac (Metal), on Linux with
MLX's CUDA build first on LD_LIBRARY_PATH, and on a CPU. Needs nothing but Python.
"""

import argparse
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

MODES = ["simple", "batched"]
# Where the origin crashed gets half of the time; the others share the rest.
KINDS = [
    ("responses", False, 0.5),
    ("responses", True, 0.1),
    ("chat", False, 0.1),
    ("chat", True, 0.1),
    ("completions", False, 0.1),
    ("completions", True, 0.1),
]
# What a request holds while it is there.
HELD = [
    "interlock_requests_running",
    "interlock_requests_waiting",
    "interlock_engine_passes_in_flight",
    "interlock_cache_pages_used",
]
START_MAX = 300
UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text):
    found = re.fullmatch(r"(\d+)([smh])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"a time is a number and s, m or h, such as 10m; got {text!r}")
    return int(found[1]) * UNITS[found[2]]


class Server:
    """The host in one mode."""

    def __init__(self, options, mode):
        self.mode = mode
        settings = [f"engine.mode={mode}", "log.filter=warn", *options.set]
        command = [options.binary, "serve", "--bind", "127.0.0.1:0"]
        command += ["--model", options.model] if options.model else []
        command += [part for setting in settings for part in ("--set", setting)]
        self.log = options.out / f"storm-{mode}.log"
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True
        )
        line = self.process.stdout.readline()
        found = re.search(r"listening on (http://[^,\s]+)", line)
        if not found:
            sys.exit(f"the host in mode {mode} did not start: {line}{self.log.read_text()}")
        self.url = found[1]
        self.wait()

    def page(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read().decode()

    def wait(self):
        until = time.monotonic() + START_MAX
        while True:
            try:
                return self.page("/health/ready")
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"the host in mode {self.mode} is not ready: {self.log.read_text()}")
                time.sleep(0.1)

    def metrics(self):
        """Each family's samples, added up over its labels."""
        sums = {}
        for name, value in re.findall(r"^(\w+)(?:\{[^}]*\})? (\S+)$", self.page("/metrics"), re.M):
            sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def stop(self):
        self.process.terminate()
        return self.process.wait(90)


def storm(options, server, kind, length):
    api, stream, _ = kind
    report = options.out / f"storm-{server.mode}-{api}-{'stream' if stream else 'whole'}.json"
    command = [options.binary, "bench", "--url", f"{server.mode}={server.url}", "--workload", "storm"]
    command += ["--api", api, "--concurrency", str(options.concurrency), "--max-tokens", "64"]
    command += ["--storm-for", f"{length}s", "--storm-leave", "80", "--json", str(report)]
    command += [] if stream else ["--no-stream"]
    return report, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def row(report, kind):
    api, stream, _ = kind
    found = json.loads(report.read_text())["storms"][0]
    after = found["after"]
    count = lambda failures: sum(failed["count"] for failed in failures.values())
    return dict(
        mode=found["target"],
        asked=f"/v1/{dict(chat='chat/completions').get(api, api)}, {'streaming' if stream else 'whole'}",
        seconds=found["wall_s"],
        requests=found["requests"],
        served=found["served"],
        left_before_text=found["left_before_text"],
        left_midway=found["left_midway"],
        refused=count(found["refused"]),
        failed=count(found["failures"]),
        passes_in_flight_max=after["passes_in_flight_max"],
        failed_passes=after["failed_passes"],
        idle_after_s=after["idle_after_s"],
        next_request=after["failure"] or "served",
    )


def wrong(server, before):
    """What is not as it should be at the end."""
    now = server.metrics()
    found = [f"{name} is {now[name]:.0f}" for name in HELD if now[name] != 0]
    most = now["interlock_engine_passes_in_flight_max"]
    found += [f"{most:.0f} passes were in the device at once"] if most > 1 else []
    failing = ["interlock_engine_pass_failures_total", "interlock_engine_failed_requests_total"]
    failed = {name: now.get(name, 0) - before.get(name, 0) for name in failing}
    found += [f"{name} rose by {rose:.0f}" for name, rose in failed.items() if rose]
    return [f"{server.mode}: {what}" for what in found]


def table(rows):
    heads = ["mode", "asked", "s", "requests", "served", "left before text, midway", "refused", "failed"]
    heads += ["passes in device", "failed passes", "idle after, s", "next request"]
    lines = [heads, ["---"] * len(heads)]
    for one in rows:
        idle = one["idle_after_s"]
        lines.append(
            [one["mode"], one["asked"], f"{one['seconds']:.0f}", f"{one['requests']:,}", f"{one['served']:,}"]
            + [f"{one['left_before_text']:,}, {one['left_midway']:,}", one["refused"], one["failed"]]
            + [f"{one['passes_in_flight_max']:.0f}", f"{one['failed_passes']:.0f}"]
            + ["never" if idle is None else f"{idle:.2f}", one["next_request"]]
        )
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--model")
    arguments.add_argument("--for", dest="length", type=seconds, default=600)
    arguments.add_argument("--concurrency", type=int, default=8)
    arguments.add_argument("--set", action="append", default=[])
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    rows, problems, servers = [], [], []
    try:
        for mode in MODES:
            servers.append(Server(options, mode))
        before = {server.mode: server.metrics() for server in servers}
        for kind in KINDS:
            length = max(1, round(options.length * kind[2]))
            for report, run in [storm(options, server, kind, length) for server in servers]:
                said, _ = run.communicate()
                if run.returncode != 0:
                    problems.append(said)
                if report.exists() and report.stat().st_size:
                    rows.append(row(report, kind))
            print(table(rows[-len(servers) :]), flush=True)
        for server in servers:
            problems += wrong(server, before[server.mode])
            now = server.metrics()
            names = ["interlock_engine_pass_duration_seconds_count", "interlock_cancellations_total"]
            print(server.mode, {name: now.get(name) for name in names}, flush=True)
    finally:
        ended = [server.stop() for server in servers]
    problems += [f"a host ended with {status}" for status in ended if status != 0]
    result = dict(seconds=options.length, concurrency=options.concurrency, rows=rows, problems=problems)
    (options.out / "storm.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))
    print("\n".join(problems) or "Nothing was wrong.")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
