"""A batch through HTTP on a model that costs mostly for being asked, as on a GPU.

`python tests/benches/fixed_costs.py --binary target/release/interlock` serves a simulated model
whose pass costs as much as 100 tokens of a prompt, and whose prompts beside streams cost as much
again, and asks it with 8 and with 32 clients: streams, each as soon as the one before has ended,
no two prompts alike. What the model needs is computed from the same costs: each prompt in a pass
of its own, or only what its tokens cost, and the tokens in passes that are full. Then one more client comes while the others
stream, again and again: its first token is due after two passes and its own prompt.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

TOKENS = 128


def main():
    options = arguments()
    costs = {"pass": 10.0, "mixed": 10.0, "prefill": 0.1}
    if options.costs:
        costs = dict(zip(costs, map(float, options.costs.split(","))))
    model = "sim:stop=0,context=8192," + ",".join(
        f"{key}={int(1000 * ms)}us" for key, ms in costs.items()
    )
    print(model)
    print(
        f"{'clients':>7} {'rounds':>6} {'took s':>7} {'needs s':>8} {'of it':>6} {'at least':>8} {'of it':>6} {'tokens/s':>9}   "
        "newcomer's first token, ms: median, largest, due"
    )
    for clients in (int(count) for count in options.clients.split(",")):
        host = Host(options.binary, model, options.port)
        try:
            row(host, costs, clients, options.rounds)
        finally:
            host.stop()
    print("load of the machine at the end: " + " ".join(f"{load:.1f}" for load in os.getloadavg()))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/interlock")
    parser.add_argument("--clients", default="8,32")
    parser.add_argument("--rounds", type=int, default=4, help="requests of each client")
    parser.add_argument("--costs", help="milliseconds of a pass, of a mixed one besides, of a token: 10,10,0.1")
    parser.add_argument("--port", type=int, default=19400)
    return parser.parse_args()


def row(host, costs, clients, rounds):
    host.all(clients, 1, tokens=8)  # so that it is known what passes cost
    began = time.perf_counter()
    answers = host.all(clients, rounds, tokens=TOKENS)
    took = time.perf_counter() - began
    prompts = [answer.prompt_tokens for answer in answers]
    passes = TOKENS - 1  # the first token is its prompt's
    least = (costs["prefill"] * sum(prompts) + rounds * passes * costs["pass"]) / 1000
    needs = least + len(prompts) * costs["pass"] / 1000
    streams = threading.Thread(target=host.all, args=(clients, 1), kwargs={"tokens": 40 * 16})
    streams.start()
    time.sleep(1.0)
    firsts = []
    while streams.is_alive() and len(firsts) < 40:
        answer = host.ask(tokens=2)
        firsts.append((answer.first_after, answer.prompt_tokens))
        time.sleep(0.05 + random.random() * 0.02)
    streams.join()
    waits = sorted(1000 * wait for wait, _ in firsts)
    due = max(3 * costs["pass"] + costs["prefill"] * tokens for _, tokens in firsts)
    print(
        f"{clients:>7} {rounds:>6} {took:>7.2f} {needs:>8.2f} {needs / took:>6.2f} {least:>8.2f} {least / took:>6.2f} "
        f"{len(answers) * TOKENS / took:>9.0f}   "
        f"{waits[len(waits) // 2]:.0f}, {waits[-1]:.0f}, {due:.0f}   (prompts of {min(prompts)} to {max(prompts)} tokens)",
        flush=True,
    )


class Answer:
    def __init__(self, prompt_tokens, first_after):
        self.prompt_tokens = prompt_tokens
        self.first_after = first_after


class Host:
    def __init__(self, binary, model, port):
        self.port = port
        config = Path(tempfile.mkdtemp(prefix="interlock-costs-")) / "interlock.toml"
        config.write_text(f'[model]\nname = "sim"\nreference = "{model}"\n[log]\nfilter = "warn"\n')
        command = [binary, "serve", "--config", config, "--bind", f"127.0.0.1:{port}"]
        self.process = subprocess.Popen(command)
        url = f"http://127.0.0.1:{port}/health/ready"
        until = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(url, timeout=2).read()
                return
            except OSError:
                if time.monotonic() > until or self.process.poll() is not None:
                    raise SystemExit("the host did not become ready")
                time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def all(self, clients, rounds, tokens):
        answers = []

        def client():
            for _ in range(rounds):
                answers.append(self.ask(tokens))

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(answers) != clients * rounds:
            raise SystemExit("a request failed")
        return answers

    def ask(self, tokens):
        """A streaming completion, read to its end."""
        letters = "abcdefghijklmnopqrstuvwxyz"
        prompt = "".join(random.choice(letters) for _ in range(random.randint(70, 110)))
        body = json.dumps(
            {
                "model": "sim",
                "prompt": prompt,
                "max_tokens": tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        with socket.create_connection(("127.0.0.1", self.port)) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked, first, got = time.perf_counter(), None, b""
            link.sendall(head + body)
            while part := link.recv(1 << 16):
                got += part
                if first is None and b"data: {" in got:
                    first = time.perf_counter() - asked
        if not got.startswith(b"HTTP/1.1 200") or b"[DONE]" not in got:
            raise SystemExit(got.decode(errors="replace")[:500])
        used = got.rsplit(b'"prompt_tokens":', 1)[1]
        return Answer(int(used.split(b",")[0].split(b"}")[0]), first)


if __name__ == "__main__":
    main()
