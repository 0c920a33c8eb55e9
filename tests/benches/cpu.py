#!/usr/bin/env python3
"""The CPU: Interlock beside llama.cpp's server and mlx_lm.server, same weights, same threads, one run.

    python tests/benches/cpu.py --binary target/release/interlock --llama BUILD/bin \
        --mlx-lm VENV --mlx-folder DIR --preload libopenblas.so.0 [--quick]

Needs `pip install httpx matplotlib gguf`. BUILD/bin has llama.cpp's `llama-server` and
`llama-batched-bench`; VENV is a virtual environment with mlx_lm; DIR is the default model as
safetensors in f32 (`tests/golden/generate.py convert`), for mlx_lm on a CPU is slower still with
packed weights. RESULTS.md says how each was made. A peer that is not named is left out.

One server runs at a time, each with `--threads` threads. They take turns, `--rounds` times, in an
order that moves on by one each round. `interlock bench` asks all of them the same:

- batch 1 to 32: chats of 70 tokens and `--tokens` of answer, all sent at once;
- prompts of 16 to 8,192 tokens, one at a time, no two alike, to the first token;
- how soon it is ready and what it holds in memory then, with the files in the page cache;
- what it costs beside the model's own arithmetic (a simulated or tiny model), 1 to 32 streams.

Before each cell it waits, a little, for the machine to be quiet; how busy others were meanwhile is
kept with each figure. A cell that took `--cell-seconds` is not repeated. What fails is reported as
failed, with the reason.

Writes cpu.json (each figure of each round), cpu-batch.svg, cpu-prompt.svg and cpu-host.svg to
`--out`, after every server; and prints tables for RESULTS.md. `--report cpu.json` draws and prints
what was measured before.
"""

import argparse
import ctypes
import json
import mmap
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cpu_report
import host_cost
from peer import NotStarted, Peer

MODEL = "smollm2-135m-instruct"
CONTEXT = 8192
PORT = 18090
# What each of llama.cpp's slots gets when there are 32: a chat and its answer.
SLOT = 1024
# What logs say of the instructions that are used.
ARITHMETIC = re.compile(r"(?i)avx|neon|vnni|simd|instructions|threads")
OPENBLAS = re.compile("^Core:")
NOTHING = re.compile("$^")


class Server:
    """How to start one, and what its log says of its arithmetic."""

    def __init__(self, name, command, health, model, says, preload=None, env=None):
        self.name, self.command, self.health, self.model = name, command, health, model
        self.says, self.preload, self.env = says, preload, env

    def start(self, logs, purpose):
        command = self.command(purpose)
        return Peer(
            self.name, command, PORT, self.health, self.model, logs, self.preload, self.env
        )

    def arithmetic(self, peer):
        lines = peer.log.read_text(errors="replace").splitlines()
        found = [line.strip() for line in lines if self.says.search(line)]
        return [re.sub(r"\x1b\[[0-9;]*m", "", line)[:400] for line in found[:4]]


def servers(options):
    threads = str(options.threads)
    ours = [options.binary, "serve", "--model", options.model, "--bind", f"127.0.0.1:{PORT}"]
    ours += ["--set", f"model.threads={threads}"] + [f"--set={value}" for value in options.set]
    name = MODEL if options.model == MODEL else Path(options.model).stem
    all_of_them = [Server("interlock", lambda _: ours, "/health/ready", name, ARITHMETIC)]
    if options.llama:

        def llama(purpose):
            # Its slots divide the context among them, and it clears all of it at start: as much as
            # the purpose needs, so that neither memory nor time are for nothing. No prompt comes
            # twice, so keeping old ones (--cache-ram) would only cost it time.
            slots, context = (32, 32 * SLOT) if purpose == "batch" else (1, CONTEXT)
            command = [f"{options.llama}/llama-server", "-m", options.gguf, "--port", str(PORT)]
            command += ["-t", threads, "-tb", threads, "-c", str(context)]
            return command + ["--parallel", str(slots), "--cache-ram", "0"]

        all_of_them.append(Server("llama.cpp", llama, "/health", MODEL, NOTHING))
    if options.mlx_lm:
        mlx = [f"{options.mlx_lm}/bin/python", "-m", "mlx_lm", "server", "--port", str(PORT)]
        mlx += ["--model", options.mlx_folder, "--decode-concurrency", "32"]
        env = {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        # OpenBLAS then says which kernels it took.
        env |= {"OPENBLAS_VERBOSE": "2"}
        all_of_them.append(
            Server(
                "mlx_lm.server", lambda _: mlx, "/health", options.mlx_folder, OPENBLAS,
                options.preload, env,
            )
        )
    return all_of_them


class Watch:
    """How busy the machine was with anything but us, from here to `read`."""

    def __init__(self, peer=None):
        self.peer, self.load = peer, os.getloadavg()[0]
        self.begun, self.before = time.perf_counter(), self.now()

    def now(self):
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq, steal = (int(field) for field in first[:8])
        ticks = user + nice + system + irq + softirq
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = time.process_time() + own.ru_utime + own.ru_stime
        server = self.peer.cpu() if self.peer and self.peer.lives() else 0
        tick = os.sysconf("SC_CLK_TCK")
        return ticks / tick, steal / tick, ours + server, server

    def read(self):
        """Shares are of all cores, in percent. Steal is what a hypervisor gave to others."""
        busy, steal, ours, server = (b - a for a, b in zip(self.before, self.now()))
        all_of_it = (time.perf_counter() - self.begun) * os.cpu_count() / 100
        others = max(0, busy - ours) / all_of_it
        return {
            "load": self.load,
            "others_percent": round(others, 1),
            "steal_percent": round(steal / all_of_it, 1),
            "server_cpu_s": server,
        }


def settle(seconds):
    """Waits until others leave the machine alone for a moment, or this long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        watch = Watch()
        time.sleep(0.5)
        if watch.read()["others_percent"] < 10:
            break


def bench(options, peer, flags, seed, limit):
    """One batch, by `interlock bench`: its figures, or why there are none."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [options.binary, "bench", "--url", f"{peer.name}={peer.url}#{peer.model}"]
        command += ["--iterations", "1", "--warmup", "0", "--seed", str(seed)]
        command += ["--timeout", f"{limit}s", "--json", file.name] + flags
        watch = Watch(peer)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit + 60)
        except subprocess.TimeoutExpired:
            return {"failed": f"no answer in {limit + 60} s"} | watch.read()
        figures = watch.read()
        try:
            cell = json.loads(Path(file.name).read_text())["cells"][0]
        except (ValueError, LookupError):
            said = (done.stderr or done.stdout).strip().splitlines()
            return {"failed": said[-1] if said else f"exit status {done.returncode}"} | figures
    batch = cell["batches"][0]
    failures = [failed["first"] for failed in batch["failures"].values()]
    if failures or not batch["tokens"]:
        answered = f"{batch['answered']} of {batch['requests']} answered"
        return {"failed": f"{answered}: {'; '.join(failures) or 'no token'}"} | figures
    names = ["tokens", "short", "prompt_tokens", "wall_s", "tokens_per_s", "first_token_ms_mean"]
    names += ["first_token_ms_most", "inter_token_ms_p50", "inter_token_ms_p99"]
    figures |= {name: batch[name] for name in names}
    figures["cpu_ms_per_token"] = 1e3 * figures.pop("server_cpu_s") / batch["tokens"]
    first = batch["first_token_ms_most"]
    if batch["requests"] == 1 and first and batch["tokens"] > 1:
        # The prompt's time taken off: decoding alone.
        figures["decode_tokens_per_s"] = (batch["tokens"] - 1) / (batch["wall_s"] - first / 1e3)
    return figures


def read_bandwidth(mb, threads, best_of):
    """GB/s of reading a buffer from its beginning to its end, each thread its part: the best."""
    libc, size = ctypes.CDLL(None), mb * 1_000_000
    libc.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    libc.memchr.restype = ctypes.c_void_p
    with mmap.mmap(-1, size) as memory:
        start = ctypes.c_char.from_buffer(memory)
        ctypes.memset(ctypes.addressof(start), 0, size)
        part = size // threads
        found = []
        for _ in range(best_of):
            # memchr finds no 1 in it. ctypes lets go of the interpreter's lock meanwhile.
            places = [ctypes.addressof(start) + number * part for number in range(threads)]
            workers = [
                threading.Thread(target=libc.memchr, args=(at, 1, part)) for at in places
            ]
            begun = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            found.append(size / (time.perf_counter() - begun) / 1e9)
        del start
    return max(found)


class Run:
    def __init__(self, options):
        self.options, self.begun = options, time.monotonic()
        self.logs = Path(tempfile.mkdtemp(prefix="interlock-cpu-"))
        self.spent, self.asked = {}, 0
        self.results = {"format": "interlock-cpu/1", "about": about(options)}
        self.results |= {"bandwidth": [], "starts": [], "cells": [], "host": []}

    def say(self, text):
        minutes, seconds = divmod(int(time.monotonic() - self.begun), 60)
        print(f"[{minutes:3}:{seconds:02}] {text}", flush=True)

    def all(self):
        options, everyone = self.options, servers(self.options)
        for number in range(options.rounds):
            self.say(f"round {number + 1} of {options.rounds}, load {os.getloadavg()[0]:.1f}")
            self.bandwidth(number)
            place = number % len(everyone)
            for server in everyone[place:] + everyone[:place]:
                for purpose in ("batch", "prompt"):
                    if self.cells_left(server, purpose):
                        self.turn(number, server, purpose)
                self.write()
        if options.streams:
            self.say("what serving costs beside the model")
            for figures in host_cost.measure(options, self.logs, PORT, Watch, settle):
                self.results["host"].append(figures)
                self.say("  " + cpu_report.in_a_line(figures))
        self.write()

    def bandwidth(self, number):
        for mb in (98, 1000):
            settle(self.options.settle)
            watch = Watch()
            gb = read_bandwidth(mb, self.options.threads, 20 if mb < 500 else 5)
            figures = {"round": number, "buffer_mb": mb, "gb_per_s": gb} | watch.read()
            del figures["server_cpu_s"]
            self.results["bandwidth"].append(figures)
            self.say(f"  reading {mb} MB: {gb:.1f} GB/s")

    def cells_left(self, server, purpose):
        """The cells of a purpose that have not had their share of time."""
        options = self.options
        cells = options.batches if purpose == "batch" else options.prompts
        spent = lambda at: self.spent.get((server.name, purpose, at), 0)
        return [at for at in cells if spent(at) < options.cell_seconds]

    def turn(self, number, server, purpose):
        """One server, started, asked and stopped."""
        self.say(f"{server.name}, {purpose}")
        files = self.options.mlx_folder if server.name == "mlx_lm.server" else self.options.gguf
        into_page_cache(Path(files))
        peer = self.start(number, server, purpose)
        cells = self.cells_left(server, purpose)
        try:
            if peer:
                self.warm_up(peer)
            for at in cells:
                if peer and not peer.lives():
                    self.say(f"  it ended: {peer.last()}; started again")
                    peer = self.start(number, server, purpose)
                    if peer:
                        self.warm_up(peer)
                self.cell(number, server, purpose, at, peer)
        finally:
            if peer:
                peer.stop()

    def start(self, number, server, purpose):
        settle(self.options.settle)
        watch = Watch()
        figures = {"round": number, "server": server.name, "purpose": purpose}
        try:
            peer = server.start(self.logs, purpose)
        except (NotStarted, OSError) as why:
            figures["failed"] = str(why)
            self.results["starts"].append(figures)
            self.say(f"  not started: {why}")
            return None
        figures |= {"ready_s": peer.ready} | peer.memory()
        said = server.arithmetic(peer)
        if said:
            self.results["about"]["arithmetic"][server.name] = said
        # Ready may be said before everything is there: the first token shows it.
        try:
            peer.ask("Hi", 1)
            figures["first_answer_s"] = time.perf_counter() - peer.begun
            figures["rss_then_mb"] = peer.memory()["rss_mb"]
        except Exception as why:
            figures["failed"] = f"the first request: {why}"
        figures |= {"load": watch.load} | watch.read()
        del figures["server_cpu_s"]
        self.results["starts"].append(figures)
        ready, memory = figures["ready_s"], figures["rss_mb"]
        self.say(f"  ready after {ready:.2f} s with {memory:.0f} MB (load {watch.load:.1f})")
        return peer

    def warm_up(self, peer):
        flags = ["--workload", "short", "--concurrency", "2,8", "--max-tokens", "8"]
        bench(self.options, peer, flags, 999_999, 120)

    def cell(self, number, server, purpose, at, peer):
        options = self.options
        figures = {"round": number, "server": server.name, "purpose": purpose, "at": at}
        if peer is None:
            figures["failed"] = "it did not start"
        else:
            if purpose == "batch":
                flags = ["--workload", "short", "--concurrency", str(at)]
                flags += ["--max-tokens", str(options.tokens)]
            else:
                # By `completions`, which puts no template around it. A prompt with a sentence in it is
                # 6 tokens longer than bench was asked for. The answer must fit the context too.
                words = at if at < 32 else min(at, CONTEXT - 8) - 6
                flags = ["--workload", "long-prompt", "--prompt-tokens", str(words)]
                flags += ["--concurrency", "1", "--max-tokens", "2", "--api", "completions"]
            settle(options.settle)
            begun = time.monotonic()
            # Everyone's prompts are the same in a round, and no prompt comes twice.
            seed = 100_000 * (number + 1) + at + (50_000 if purpose == "prompt" else 0)
            figures |= bench(options, peer, flags, seed, options.limit)
            key = (server.name, purpose, at)
            self.spent[key] = self.spent.get(key, 0) + time.monotonic() - begun
            if "failed" in figures and self.spent[key] > options.limit / 2:
                # It would only fail again, as slowly.
                self.spent[key] = options.cell_seconds
        self.results["cells"].append(figures)
        self.asked += 1
        cells = len(options.batches) + len(options.prompts)
        most = options.rounds * cells * len(servers(options))
        self.say(f"  {self.asked} of {most}: {cpu_report.in_a_line(figures)}")

    def write(self):
        self.results["took_s"] = round(time.monotonic() - self.begun)
        self.results["about"]["load_after"] = os.getloadavg()[0]
        cpu_report.write(self.results, self.options.out)


def into_page_cache(path):
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass


def about(options):
    """The machine and who was measured; no path of it."""
    said = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    pick = lambda key: next((l.split(":")[1].strip() for l in lines if l.startswith(key)), "")
    shown = {
        "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni",
        "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "sve",
    }
    flags = (pick("flags") or pick("Features")).split()
    versions = {"interlock": said(options.binary, "--version")}
    inspected = said(options.binary, "models", "inspect", options.model).splitlines()
    arithmetic = {"interlock": [l for l in inspected if ARITHMETIC.search(l)]}
    if options.llama:
        both = subprocess.run(
            [f"{options.llama}/llama-server", "--version"], capture_output=True, text=True
        )
        text = (both.stdout + both.stderr).splitlines()
        versions["llama.cpp"] = "; ".join(l for l in text if re.match("version|built", l))
        # It says what it computes with only to those who ask for more, and before it looks for a
        # model.
        none = [f"{options.llama}/llama-server", "-lv", "4", "-m", "no model", "--port", str(PORT)]
        none += ["-t", str(options.threads)]
        done = subprocess.run(none, capture_output=True, text=True, timeout=60)
        arithmetic["llama.cpp"] = re.findall(r"system_info: (.*)", done.stdout + done.stderr)[:1]
    if options.mlx_lm:
        ask = "import importlib.metadata as m; print('mlx', m.version('mlx'), 'mlx_lm', m.version('mlx-lm'))"
        versions["mlx_lm.server"] = said(f"{options.mlx_lm}/bin/python", "-c", ask)
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{pick('model name') or platform.machine()}, {os.cpu_count()} cores",
        "instructions": sorted(shown.intersection(flags)),
        "threads": options.threads,
        "model": Path(options.gguf).name,
        "packed_bytes": Path(options.gguf).stat().st_size,
        "tokens": options.tokens,
        "quick": options.quick,
        "versions": versions,
        "arithmetic": arithmetic,
        "load_before": os.getloadavg()[0],
    }


def numbers(text):
    return [int(number) for number in text.split(",") if number]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = arguments.add_argument
    add("--binary", default="target/release/interlock")
    add("--llama", help="the folder of llama-server and llama-batched-bench")
    add("--mlx-lm", help="a virtual environment")
    add("--mlx-folder", help="the same weights in f32, for mlx_lm")
    add("--preload", help="an OpenBLAS for mlx_lm")
    add("--gguf", default=f"target/models/{MODEL}.gguf", help="what llama.cpp serves")
    add("--model", help="what interlock serves, if not that file")
    add("--set", action="append", default=[], help="a setting for interlock")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--rounds", type=int, default=3)
    add("--batches", type=numbers, default=[1, 2, 4, 8, 16, 32])
    add("--prompts", type=numbers, default=[16, 64, 256, 1024, 1500, 4096, 8192])
    add("--streams", type=numbers, default=[1, 2, 4, 8, 16, 32], help="empty: leave it out")
    add("--tokens", type=int, default=64, help="of an answer")
    add("--cell-seconds", type=float, default=40, help="after which a cell is not repeated")
    add("--limit", type=int, default=240, help="seconds until a request has failed")
    add("--settle", type=float, default=5, help="seconds to wait for others to be quiet")
    add("--quick", action="store_true", help="one round of few cells, to try it")
    add("--out", type=Path, default=Path(__file__).parent / "results")
    add("--report", type=Path, metavar="CPU.JSON", help="draw and print this; measure nothing")
    options = arguments.parse_args()
    if options.report:
        cpu_report.write(json.loads(options.report.read_text()), options.out)
        print(cpu_report.tables(json.loads(options.report.read_text())))
        return
    if options.quick:
        options.rounds, options.batches, options.streams = 1, [1, 8], [1, 8]
        options.prompts, options.tokens, options.settle = [16, 256, 1500], 32, 2
    options.model = options.model or options.gguf
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    try:
        run.all()
    except KeyboardInterrupt:
        run.write()
        sys.exit("stopped; what was measured is kept")
    print()
    print(cpu_report.tables(run.results))


if __name__ == "__main__":
    main()
