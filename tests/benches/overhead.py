#!/usr/bin/env python3
"""What serving costs beside the model: CPU time per token, Interlock beside mlx_lm.server.

    python tests/benches/overhead.py --binary target/release/interlock --mlx-lm VENV \
        --tokenizer DIR

A model that costs almost nothing shows what everything else does. Interlock's is the simulated one,
whose passes only sleep: all CPU of the host is overhead. mlx_lm.server has none, so it gets a tiny
random model (two layers, 64 wide; DIR's tokenizer), and what the same generation costs in its own
bare loop (BatchGenerator, one process) is taken off.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from peer import Peer, openblas_core

TINY = """
import json, sys, mlx.core as mx
from pathlib import Path
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
config = dict(model_type="llama", hidden_size=64, num_hidden_layers=2, intermediate_size=128,
    num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=49152,
    max_position_embeddings=8192, rope_theta=10000.0, tie_word_embeddings=True,
    bos_token_id=1, eos_token_id=2)
mx.random.seed(1)
Model, Arguments = _get_classes(config)
model = Model(Arguments.from_dict(config))
out = Path(sys.argv[1])
mx.save_safetensors(str(out / "model.safetensors"), dict(tree_flatten(model.parameters())),
    metadata={"format": "mlx"})
(out / "config.json").write_text(json.dumps(config))
"""

BARE = """
import sys, time, mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import load
model, tokenizer = load(sys.argv[1])
rows, tokens = int(sys.argv[2]), int(sys.argv[3])
def run(n):
    generator = BatchGenerator(model, max_tokens=n)
    generator.insert([[5, 6, 7, 8] * 8] * rows, [n] * rows)
    while generator.next_generated():
        pass
run(4)
begun = time.process_time()
run(tokens)
print((time.process_time() - begun) / (rows * tokens))
"""


def per_token(peer, rows, tokens):
    peer.ask("Hi", 4)
    before = peer.cpu()
    with ThreadPoolExecutor(rows) as pool:
        answers = pool.map(lambda n: peer.ask(f"{n}: hello there", tokens), range(rows))
        generated = sum(used for _, _, used in answers)
    return (peer.cpu() - before) / generated, generated


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--mlx-lm", required=True)
    arguments.add_argument("--tokenizer", required=True, type=Path)
    arguments.add_argument("--preload")
    arguments.add_argument("--rows", type=int, default=8)
    arguments.add_argument("--tokens", type=int, default=400)
    options = arguments.parse_args()
    logs = Path(tempfile.mkdtemp())
    tiny = logs / "tiny"
    tiny.mkdir()
    for file in options.tokenizer.glob("tokenizer*"):
        (tiny / file.name).symlink_to(file.resolve())
    python = f"{options.mlx_lm}/bin/python"
    subprocess.run([python, "-c", TINY, tiny], check=True)
    env = os.environ | ({"LD_PRELOAD": options.preload} if options.preload else {})
    env |= {"MLX_DISABLE_COMPILE": "1", "OPENBLAS_CORETYPE": openblas_core()}

    serve = [options.binary, "serve", "--model", "sim:stop=0,decode=5ms", "--bind", "127.0.0.1:18083"]
    ours = Peer("interlock", serve, 18083, "/health/ready", "sim", logs)
    ours.model = json.loads(subprocess.check_output(
        ["curl", "-s", f"{ours.url}/v1/models"]))["data"][0]["id"]
    try:
        interlock, count = per_token(ours, options.rows, options.tokens)
    finally:
        ours.stop()
    command = [python, "-m", "mlx_lm", "server", "--model", str(tiny), "--port", "18084"]
    peer = Peer("mlx_lm.server", command, 18084, "/health", str(tiny), logs, options.preload)
    try:
        whole, theirs = per_token(peer, options.rows, options.tokens)
    finally:
        peer.stop()
    arguments = [python, "-c", BARE, tiny, str(options.rows), str(options.tokens)]
    bare = float(subprocess.check_output(arguments, env=env).split()[-1])

    print(f"load {os.getloadavg()[0]:.1f}; {options.rows} at once, {options.tokens} tokens each;"
          " µs of CPU a token")
    print(f"{'':14} {'server':>8} {'bare loop':>10} {'overhead':>9} {'tokens':>7}")
    us = 1e6
    print(f"{'interlock':14} {us * interlock:8.0f} {'-':>10} {us * interlock:9.0f} {count:7}")
    print(f"{'mlx_lm.server':14} {us * whole:8.0f} {us * bare:10.0f} {us * (whole - bare):9.0f}"
          f" {theirs:7}")
    print(f"ratio {interlock / (whole - bare):.2f}")


if __name__ == "__main__":
    sys.exit(main())
