#!/usr/bin/env python3
"""Interlock beside mlx_lm.server and vllm-mlx, on the same machine, in one run.

    python tests/benches/beside_peers.py --binary target/release/interlock \
        --mlx-lm VENV --vllm-mlx VENV --mlx-folder DIR --preload libopenblas.so --out FOLDER

Each peer is a virtual environment that has it; DIR is the default model as safetensors in f32 (made
by `tests/golden/generate.py convert`), which is what Interlock computes in; the peers get an
OpenBLAS preloaded, without which they are twenty times slower in f32. All are up at once and are
asked in turn, so that what else the machine does meanwhile falls on all of them.

Writes peers.json and peers.svg (`interlock bench`), and prints two tables: the time to the first
token of a request that arrives while others decode, and what serving costs beside the model.
"""

import argparse
import os
import random
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from peer import Peer

PROMPT = "Write a short story about a lighthouse keeper who finds a letter in a bottle."


def joining(peer, rounds, streams=4):
    """TTFT alone, between two tokens of a stream in company, and TTFT while others decode."""
    dice = random.Random(7)
    alone, joined, gaps = [], [], []
    for number in range(rounds):
        alone.append(peer.ask(f"{number}, alone: {PROMPT}", 2)[0])
        flowing = threading.Barrier(streams + 1)
        stop = time.perf_counter() + 600

        def stream(which):
            arrived = []

            def seen():
                arrived.append(time.perf_counter())
                if len(arrived) == 3:
                    flowing.wait()

            peer.ask(f"{number}.{which}: {PROMPT}", 60, seen)
            gaps.extend(b - a for a, b in zip(arrived[3:], arrived[4:]))

        threads = [threading.Thread(target=stream, args=(n,)) for n in range(streams)]
        for thread in threads:
            thread.start()
        flowing.wait()
        assert time.perf_counter() < stop
        # At no particular moment of a pass.
        time.sleep(dice.uniform(0, 0.3))
        joined.append(peer.ask(f"{number}, joining: {PROMPT}", 2)[0])
        for thread in threads:
            thread.join()
    return alone, joined, gaps


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--mlx-folder", required=True)
    arguments.add_argument("--mlx-lm", required=True, help="a virtual environment")
    arguments.add_argument("--vllm-mlx", help="a virtual environment")
    arguments.add_argument("--preload", help="an OpenBLAS for the peers")
    arguments.add_argument("--tokens", type=int, default=64)
    arguments.add_argument("--iterations", type=int, default=3)
    arguments.add_argument("--concurrency", default="1,2,4,8")
    arguments.add_argument("--workload", default="short")
    arguments.add_argument("--rounds", type=int, default=5, help="of requests that join")
    arguments.add_argument("--out", type=Path, default=Path("."))
    options = arguments.parse_args()

    logs = Path(tempfile.mkdtemp())
    folder, preload = options.mlx_folder, options.preload
    peers = []
    try:
        serve = [options.binary, "serve", "--model", options.model, "--bind", "127.0.0.1:18080"]
        ours = Peer("interlock", serve, 18080, "/health/ready", options.model, logs)
        peers.append(ours)
        command = [f"{options.mlx_lm}/bin/python", "-m", "mlx_lm", "server", "--model", folder]
        command += ["--port", "18081"]
        peers.append(Peer("mlx_lm.server", command, 18081, "/health", folder, logs, preload))
        if options.vllm_mlx:
            command = [f"{options.vllm_mlx}/bin/vllm-mlx", "serve", folder, "--port", "18082"]
            command += ["--continuous-batching"]
            peers.append(Peer("vllm-mlx", command, 18082, "/health", folder, logs, preload))
        for peer in peers:
            peer.ask("Hi", 4)
        print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
        for peer in peers:
            print(f"{peer.name}: ready after {peer.ready:.2f} s")

        bench = [options.binary, "bench", "--iterations", str(options.iterations)]
        bench += ["--concurrency", options.concurrency, "--max-tokens", str(options.tokens)]
        bench += ["--workload", options.workload]
        bench += ["--json", str(options.out / "peers.json")]
        bench += ["--plot", str(options.out / "peers.svg")]
        for peer in peers:
            bench += ["--url", f"{peer.name}={peer.url}#{peer.model}"]
        subprocess.run(bench, check=False)

        print(f"\nload {os.getloadavg()[0]:.1f}; first token, ms, median (smallest to largest)")
        print(f"{'':14} {'alone':>22} {'while 4 others decode':>24} {'between their tokens':>22}")
        for peer in peers:
            alone, joined, gaps = joining(peer, options.rounds)
            shown = lambda times: (
                f"{1e3 * statistics.median(times):6.0f} ({1e3 * min(times):.0f} to"
                f" {1e3 * max(times):.0f})"
            )
            print(f"{peer.name:14} {shown(alone):>22} {shown(joined):>24} {shown(gaps):>22}")
    finally:
        for peer in peers:
            peer.stop()


if __name__ == "__main__":
    main()
