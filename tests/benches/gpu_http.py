#!/usr/bin/env python3
"""Interlock beside mlx_lm.server on an NVIDIA GPU, through HTTP: Qwen3-1.7B's shape, random bf16 weights.

    python tests/benches/gpu_http.py --binary target/release/interlock \
        --decode target/release/examples/decode --out FOLDER [--clients 1,2,4,8,32] [--no-peer]

Both are up at once, with the same MLX, and are asked in turn by `interlock bench`: streaming,
`/v1/completions`, 128 tokens each. Before and after them, in the same call, comes our bare model loop;
the last table says what share of its tokens a second is left through HTTP, with the prompts' own time
taken off. Needs MLX's CUDA build on LD_LIBRARY_PATH for the host, and mlx_lm for the peer.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gpu import CONFIG, build
from peer import Peer

WORDS = 8000


def tokenizer(folder):
    """One that knows as many tokens as the model, so that each one drawn has a text."""
    known = Tokenizer(models.BPE())
    known.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    texts = [page.read_text() for page in Path(__file__).parents[2].glob("*.md")]
    known.train_from_iterator(texts, trainer)
    model = json.loads(known.to_str())["model"]
    vocabulary = model["vocab"]
    for number in range(len(vocabulary), CONFIG["vocab_size"] - 1):
        vocabulary[f"Ġw{number}"] = number
    merges = [tuple(merge) for merge in model["merges"]]
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    whole.add_special_tokens(["<end>"])
    whole.save(str(folder / "tokenizer.json"))
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="<end>")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def bare(decode, folder, out):
    """Tokens a second by rows, and the seconds of a prompt of 90 tokens, of our model's loop."""
    text = subprocess.run([decode, folder], check=True, capture_output=True, text=True).stdout
    out.write_text(text)
    rows = re.findall(r"^ *(\d+) +32 +([\d.]+) ", text, re.M)
    prompt = re.search(r"^ +90 +([\d.]+) ", text, re.M)
    return {int(rows): float(speed) for rows, speed in rows}, 90 / float(prompt[1])


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--decode", required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--clients", default="1,2,4,8,32")
    arguments.add_argument("--iterations", default="3")
    arguments.add_argument("--no-peer", action="store_true")
    arguments.add_argument("--set", action="append", default=[])
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = Path(os.environ.get("GPU_MODEL", tempfile.mkdtemp()))
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        build(folder)
        tokenizer(folder)
        (folder / "config.json").write_text(json.dumps(CONFIG | dict(eos_token_id=CONFIG["vocab_size"] - 1)))

    # What a step costs there changes from minute to minute, so it is asked before and after.
    before, prompt_before = bare(options.decode, folder, options.out / "before.txt")
    peers = []
    try:
        settings = [part for setting in options.set for part in ("--set", setting)]
        ours = [options.binary, "serve", "--model", folder, "--bind", "127.0.0.1:18501", *settings]
        peers.append(Peer("interlock", ours, 18501, "/health/ready", folder.name, options.out, gpu=True))
        if not options.no_peer:
            theirs = [sys.executable, "-m", "mlx_lm", "server", "--model", folder, "--port", "18502"]
            peers.append(Peer("mlx_lm", theirs, 18502, "/health", str(folder), options.out, gpu=True))
        report = options.out / "gpu-http.json"
        urls = [part for peer in peers for part in ("--url", f"{peer.name}={peer.url}#{peer.model}")]
        subprocess.run(
            [options.binary, "bench", *urls, "--api", "completions", "--concurrency", options.clients]
            + ["--iterations", options.iterations, "--max-tokens", "128", "--json", report],
            check=True,
        )
        metrics = subprocess.run(["curl", "-s", f"{peers[0].url}/metrics"], capture_output=True, text=True).stdout
        (options.out / "metrics.txt").write_text(metrics)
    finally:
        for peer in peers:
            peer.stop()
    after, prompt_after = bare(options.decode, folder, options.out / "after.txt")
    prompt = (prompt_before + prompt_after) / 2
    print(f"a prompt of 90 tokens alone takes {prompt * 1000:.1f} ms; tokens/s, the best of each:")
    print(f"{'clients':>7} {'bare, before':>12} {'after':>8} {'HTTP':>8} {'without prompts':>16} {'share':>6}")
    for cell in json.loads(report.read_text())["cells"]:
        if cell["target"] == "interlock":
            clients = cell["concurrency"]
            batch = min(cell["batches"], key=lambda batch: batch["wall_s"])
            tokens, wall = batch["tokens"], batch["wall_s"]
            rest = tokens / (wall - clients * prompt)
            bare_speed = (before[clients] + after[clients]) / 2
            print(
                f"{clients:>7} {before[clients]:>12.0f} {after[clients]:>8.0f} {tokens / wall:>8.0f}"
                f" {rest:>16.0f} {rest / bare_speed:>6.2f}"
            )


if __name__ == "__main__":
    main()
