#!/usr/bin/env python3
"""Decoding on an NVIDIA GPU beside mlx_lm's BatchGenerator: Qwen3-1.7B's shape, random bf16 weights.

    python tests/benches/gpu.py --decode target/release/examples/decode

Our side is `host/models/examples/decode.rs`, built on any x86-64 Linux machine, with MLX's CUDA build on
LD_LIBRARY_PATH; theirs runs in this process, with the same MLX. Both decode greedily behind prompts
of 32 tokens, and again behind 512; aggregate tokens per second.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import _get_classes

CONFIG = dict(
    model_type="qwen3",
    hidden_size=2048,
    num_hidden_layers=28,
    intermediate_size=6144,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-6,
    vocab_size=151936,
    max_position_embeddings=40960,
    rope_theta=1000000.0,
    tie_word_embeddings=True,
    rope_scaling=None,
)


def build(folder):
    mx.random.seed(1)
    Model, Arguments = _get_classes(CONFIG)
    model = Model(Arguments.from_dict(CONFIG))
    weights = [(name, value.astype(mx.bfloat16)) for name, value in tree_flatten(model.parameters())]
    model.load_weights(weights)
    mx.eval(model.parameters())
    metadata = {"format": "mlx"}
    mx.save_safetensors(str(folder / "model.safetensors"), dict(weights), metadata=metadata)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")  # nobody reads text here
    return model


def theirs(model, rows, after, tokens=64):
    prompts = [[(i * 7919 + 13 * row) % CONFIG["vocab_size"] for i in range(after)] for row in range(rows)]
    generator = BatchGenerator(model, max_tokens=tokens, stop_tokens=[])
    generator.insert(prompts, [tokens] * rows)
    generator.next_generated()  # prompts, and everyone's first
    begun, count = time.perf_counter(), 0
    while responses := generator.next_generated():
        count += len(responses)
    return count / (time.perf_counter() - begun)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--decode", required=True)
    arguments.add_argument("--cases", default="1:32,2:32,4:32,8:32,32:32,8:512,32:512")
    options = arguments.parse_args()
    folder = Path(tempfile.mkdtemp())
    model = build(folder)
    print("mlx_lm BatchGenerator, tokens/s")
    for case in options.cases.split(","):
        rows, after = map(int, case.split(":"))
        theirs(model, rows, after, 8)
        best = max(theirs(model, rows, after) for _ in range(3))
        print(f"{rows:>4} {after:>6} {best:>10.1f}", flush=True)
    del model
    mx.clear_cache()
    subprocess.run([options.decode, folder], check=True)


if __name__ == "__main__":
    main()
