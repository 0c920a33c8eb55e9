"""What policies cost a serving host: its CPU for each request without any, with one, and with three.

`python policies.py --binary target/release/interlock` asks these hosts in turn, so that whatever
else the machine does falls on all alike. Three workloads, each at the highest rate that the
simulated model sustains: one that takes 20 ms a pass, and one that takes no time, with 64 tokens
and with one, where policies weigh most. Then it swaps a policy a thousand times under that load. For calls alone: `interlock policy bench` and
`cargo run --release -p interlock-policy-wasm --example figures`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
from peer import Peer

GUARD = """
[[policy]]
name = "guard"
source = "builtin:guard"
"""
ROUTER = """
[[policy]]
name = "router"
source = "builtin:router"
[policy.settings]
aliases = { "gpt-4o" = ["sim"] }
"""
HELLO = f"""
[[policy]]
name = "hello"
source = "{Path(__file__).resolve().parents[2]}/target/guests/hello-policy.wasm"
[policy.settings]
max_prompt_tokens = 4000
"""
QUOTA = """
[[policy]]
name = "quota"
source = "builtin:quota"
grants = ["state", "metrics"]
[policy.settings]
anonymous = "everyone"
limits = { requests_per_minute = 1000000000, tokens_per_minute = 1000000000, concurrent = 10000 }
"""
HOSTS = {
    "none": "policy = []\n",
    "guard": GUARD,
    "guard, router, hello": GUARD + ROUTER + HELLO,
    "guard, router, quota": GUARD + ROUTER + QUOTA,
}
SIMS = {"instant": "sim:stop=0", "20 ms a pass": "sim:stop=0,decode=20ms"}
# The simulated model, tokens, streamed or whole, clients.
WORKLOADS = {
    "20 ms a pass, 64 tokens streamed": ("20 ms a pass", 64, True, 64),
    "no time a pass, 64 tokens streamed": ("instant", 64, True, 64),
    "no time a pass, 1 token": ("instant", 1, False, 64),
}


def main():
    options = arguments()
    scratch = Path(tempfile.mkdtemp(prefix="interlock-policies-"))
    hosts = {}
    try:
        port = 19500
        for sim, reference in SIMS.items():
            for name, policies in HOSTS.items():
                port += 1
                hosts[sim, name] = start(options.binary, scratch, name, policies, reference, port)
        for workload, (sim, tokens, stream, clients) in WORKLOADS.items():
            rows = {name: [] for name in HOSTS}
            for turn in range(options.rounds + 1):
                for name in HOSTS:
                    figures = measure(hosts[sim, name], tokens, stream, clients, options.seconds)
                    if turn:  # the first is for warming up
                        rows[name].append(figures)
                    print(f"  {workload}, round {turn}, {name}: {line(figures)}", flush=True)
            table(workload, rows)
        swaps(hosts["instant", "guard, router, quota"], options.swaps)
    finally:
        for host in hosts.values():
            host.stop()
    one, five, fifteen = os.getloadavg()
    print(f"\nload of the machine at the end: {one:.1f} {five:.1f} {fifteen:.1f}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/interlock")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--swaps", type=int, default=1000)
    return parser.parse_args()


def start(binary, scratch, name, policies, reference, port):
    config = scratch / f"{port}.toml"
    admin = f'[admin]\nbind = "127.0.0.1:{port + 100}"\n[policies]\nreload = "0s"\n'
    sim = f'[model]\nname = "sim"\nreference = "{reference}"\n[log]\nfilter = "warn"\n'
    # A top-level key stands before the first table.
    text = policies + sim + admin if policies.startswith("policy =") else sim + admin + policies
    config.write_text(text)
    command = [binary, "serve", "--config", config, "--bind", f"127.0.0.1:{port}"]
    host = Peer(name, command, port, "/health/ready", "sim", scratch)
    host.admin = f"http://127.0.0.1:{port + 100}/admin/policies"
    return host


# Clients of their own process and of few instructions: they share the machine with the host.
CLIENTS = """
import json, socket, sys, threading, time
port, tokens, stream, clients, seconds = (json.loads(a) for a in sys.argv[1:])
body = json.dumps({"model": "sim", "messages": [{"role": "user", "content": "hello " * 20}],
                   "max_tokens": tokens, "stream": stream}).encode()
head = (b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Type: application/json\\r\\n"
        b"Content-Length: %d\\r\\n\\r\\n" % len(body))
until = time.monotonic() + seconds
answered, others = [0] * clients, [0] * clients
def ask(me):
    link = socket.create_connection(("127.0.0.1", port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while time.monotonic() < until:
        link.sendall(head + body)
        got = b""
        while True:
            part = link.recv(1 << 16)
            if not part:
                raise SystemExit("the host hung up")
            got += part
            if stream and got.endswith(b"0\\r\\n\\r\\n"):
                break
            if not stream and b"\\r\\n\\r\\n" in got:
                top, _, rest = got.partition(b"\\r\\n\\r\\n")
                length = int(top.lower().split(b"content-length: ")[1].split(b"\\r\\n")[0])
                if len(rest) >= length:
                    break
        if got.startswith(b"HTTP/1.1 200"):
            answered[me] += 1
        else:
            others[me] += 1
threads = [threading.Thread(target=ask, args=(n,)) for n in range(clients)]
[t.start() for t in threads]; [t.join() for t in threads]
print(json.dumps({"answered": sum(answered), "others": sum(others)}))
"""


def clients(host, tokens, stream, count, seconds):
    port = host.url.rsplit(":", 1)[1]
    said = [json.dumps(a) for a in (int(port), tokens, stream, count, seconds)]
    command = [sys.executable, "-c", CLIENTS, *said]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def measure(host, tokens, stream, count, seconds):
    before, spent, began = host.cpu(), in_policies(host), time.perf_counter()
    told = clients(host, tokens, stream, count, seconds)
    took = time.perf_counter() - began
    cpu, spent = host.cpu() - before, in_policies(host) - spent
    if told["others"] or not told["answered"]:
        raise SystemExit(f"{host.name}: {told}")
    requests = told["answered"]
    return {
        "rate": requests / took,
        "cpu_us": 1e6 * cpu / requests,
        "policy_us": 1e6 * spent / requests,
        "cores": cpu / took,
    }


def in_policies(host):
    """Seconds of wall time in policies so far, as the host itself counts them."""
    text = httpx.get(f"{host.url}/metrics").text
    lines = [x for x in text.splitlines() if x.startswith("interlock_policy_call_duration_seconds_sum{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def line(figures):
    return (
        f"{figures['rate']:7.0f} requests/s, {figures['cpu_us']:6.0f} us of CPU each "
        f"({figures['cores']:.2f} cores), {figures['policy_us']:5.1f} us of it in policies"
    )


def table(workload, rows):
    median = lambda name, key: sorted(row[key] for row in rows[name])[len(rows[name]) // 2]
    print(f"\n{workload}: medians of {len(rows['none'])} rounds")
    print(
        f"{'policies':>22} {'requests/s':>11} {'CPU us':>8} {'in policies us':>15} {'share':>7} "
        f"{'of a core':>10}"
    )
    for name in rows:
        cpu, spent = median(name, "cpu_us"), median(name, "policy_us")
        rate = median(name, "rate")
        print(
            f"{name:>22} {rate:11.0f} {cpu:8.1f} {spent:15.2f} {100 * spent / cpu:6.2f}% "
            f"{100 * rate * spent / 1e6:9.2f}%"
        )
    print(flush=True)


def swaps(host, count):
    """Swaps guard under load; every request must be answered."""
    over, told = threading.Event(), []

    def load():
        while not over.is_set():
            told.append(clients(host, 8, True, 16, 2.0))

    crowd = threading.Thread(target=load)
    crowd.start()
    times = []
    with httpx.Client(timeout=60) as client:
        for n in range(count):
            began = time.perf_counter()
            change = {"settings": {"total": {"base": f"{60 + n}s"}}}
            swapped = client.post(f"{host.admin}/guard", json=change)
            if swapped.status_code != 200:
                raise SystemExit(f"swap {n}: {swapped.text}")
            times.append(time.perf_counter() - began)
    over.set()
    crowd.join()
    answered, others = (sum(t[key] for t in told) for key in ("answered", "others"))
    times.sort()
    print(
        f"{count} swaps under load: {answered} requests answered, {others} failed; a swap took "
        f"{1e3 * times[len(times) // 2]:.1f} ms (p50), {1e3 * times[len(times) * 99 // 100]:.1f} ms (p99)"
    )


if __name__ == "__main__":
    main()
