"""What serving costs beside the model's own arithmetic: CPU per token, against streams.

A model that costs almost nothing shows what everything else does. Interlock's is the simulated one,
whose passes only sleep: all its CPU is the host's. The peers have none, so they get random
models of two layers, 64 wide; and what the same model costs in the peer's own bare loop
(mlx_lm's BatchGenerator, llama.cpp's batched-bench), with as many rows and nothing to serve, is
taken off. Drawing a token from the logits stays in llama.cpp's figure, since its bare loop draws
none; it is in mlx_lm's loop.
"""

import json
import os
import resource
import subprocess
import tempfile
from pathlib import Path

from overhead import BARE, TINY
from peer import NotStarted, Peer, openblas_core

# Tokens of each stream: enough to be measured, and no more than a minute of it.
TOKENS = 200
# The context of a stream: its prompt of 70 tokens, and these.
SLOT = 512


def measure(options, logs, port, watch, settle):
    """Yields the figures of each server and number of streams."""
    tiny = Path(tempfile.mkdtemp(prefix="interlock-tiny-"))
    for start in [simulated, tiny_llama, tiny_mlx]:
        name = {simulated: "interlock", tiny_llama: "llama.cpp", tiny_mlx: "mlx_lm.server"}[start]
        if (name == "llama.cpp" and not options.llama) or (
            name == "mlx_lm.server" and not options.mlx_lm
        ):
            continue
        try:
            peer, bare = start(options, logs, port, tiny)
        except (NotStarted, OSError, ImportError, subprocess.CalledProcessError) as why:
            yield {"server": name, "purpose": "host", "at": 0, "failed": str(why)[:300]}
            continue
        try:
            served(options, peer, 8, 8)
            for streams in options.streams:
                settle(options.settle)
                busy = watch(peer)
                figures = {"server": name, "purpose": "host", "at": streams}
                try:
                    whole = served(options, peer, streams, TOKENS)
                    loop = bare(streams)
                    figures |= {"server_us": 1e6 * whole, "bare_us": 1e6 * loop}
                    figures["host_us"] = 1e6 * (whole - loop)
                except Exception as why:
                    figures["failed"] = str(why)[:300]
                figures |= busy.read()
                del figures["server_cpu_s"]
                yield figures
        finally:
            peer.stop()


def served(options, peer, streams, tokens):
    """Seconds of the server's CPU for each token."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [options.binary, "bench", "--url", f"{peer.name}={peer.url}#{peer.model}"]
        command += ["--iterations", "1", "--warmup", "0", "--concurrency", str(streams)]
        command += ["--max-tokens", str(tokens), "--seed", str(streams), "--json", file.name]
        before = peer.cpu()
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        used = peer.cpu() - before
        batch = json.loads(Path(file.name).read_text())["cells"][0]["batches"][0]
    if done.returncode or not batch["tokens"]:
        raise RuntimeError(f"{batch['answered']} of {batch['requests']} answered")
    return used / batch["tokens"]


def simulated(options, logs, port, _):
    command = [options.binary, "serve", "--model", "sim:stop=0,decode=5ms"]
    command += ["--bind", f"127.0.0.1:{port}"]
    peer = Peer("interlock", command, port, "/health/ready", "sim", logs)
    listed = subprocess.check_output(["curl", "-s", f"{peer.url}/v1/models"])
    peer.model = json.loads(listed)["data"][0]["id"]
    return peer, lambda _: 0.0


def tiny_mlx(options, logs, port, tiny):
    for file in Path(options.mlx_folder).glob("tokenizer*"):
        (tiny / file.name).symlink_to(file.resolve())
    python = f"{options.mlx_lm}/bin/python"
    env = {"MLX_DISABLE_COMPILE": "1", "OPENBLAS_NUM_THREADS": "1"}
    env |= {"OPENBLAS_CORETYPE": openblas_core()}
    preloaded = os.environ | env | ({"LD_PRELOAD": options.preload} if options.preload else {})
    subprocess.run([python, "-c", TINY, tiny], check=True, capture_output=True)

    def bare(streams):
        command = [python, "-c", BARE, tiny, str(streams), str(TOKENS)]
        return float(subprocess.check_output(command, env=preloaded).split()[-1])

    command = [python, "-m", "mlx_lm", "server", "--model", str(tiny), "--port", str(port)]
    command += ["--decode-concurrency", "32"]
    peer = Peer("mlx_lm.server", command, port, "/health", str(tiny), logs, options.preload, env)
    return peer, bare


def tiny_llama(options, logs, port, tiny):
    model = tiny / "tiny.gguf"
    shrink(options.gguf, model)
    # One thread: a tiny model has nothing to share out, and threads that wait would spin.
    flags = ["-m", str(model), "-t", "1", "-tb", "1"]

    def cpu(streams, tokens):
        command = [f"{options.llama}/llama-batched-bench", *flags, "-c", str(SLOT * streams)]
        command += ["-npp", "64", "-ntg", str(tokens), "-npl", str(streams)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def bare(streams):
        # What loading and the prompt cost is in both, and falls out. The least of three each, since
        # that is most of what a few streams cost.
        least = lambda tokens: min(cpu(streams, tokens) for _ in range(3))
        return (least(8 + TOKENS) - least(8)) / (streams * TOKENS)

    command = [f"{options.llama}/llama-server", *flags, "--port", str(port)]
    command += ["-c", str(32 * SLOT)]
    command += ["--parallel", "32", "--cache-ram", "0"]
    return Peer("llama.cpp", command, port, "/health", "tiny", logs), bare


def shrink(gguf_file, out):
    """A model with this file's tokenizer, and two random layers of 64."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(gguf_file)
    tokens = len(reader.fields["tokenizer.ggml.tokens"].data)
    wide, middle, heads, shared = 64, 128, 4, 2
    sizes = {
        "block_count": 2,
        "embedding_length": wide,
        "feed_forward_length": middle,
        "attention.head_count": heads,
        "attention.head_count_kv": shared,
        "rope.dimension_count": wide // heads,
    }
    writer = gguf.GGUFWriter(str(out), "llama")
    for name, field in reader.fields.items():
        key = name.removeprefix("llama.")
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = sizes[key] if name != key and key in sizes else field.contents()
        writer.add_key_value(name, value, kind, inner)
    dice = np.random.default_rng(1)
    random = lambda *shape: (dice.standard_normal(shape) * 0.05).astype(np.float32)
    one = np.ones(wide, np.float32)
    writer.add_tensor("token_embd.weight", random(tokens, wide))
    writer.add_tensor("output_norm.weight", one)
    for layer in range(2):
        add = lambda name, array: writer.add_tensor(f"blk.{layer}.{name}.weight", array)
        half = wide // heads * shared
        add("attn_norm", one)
        add("ffn_norm", one)
        for name, rows in [("attn_q", wide), ("attn_k", half), ("attn_v", half)]:
            add(name, random(rows, wide))
        add("attn_output", random(wide, wide))
        add("ffn_gate", random(middle, wide))
        add("ffn_up", random(middle, wide))
        add("ffn_down", random(wide, middle))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
