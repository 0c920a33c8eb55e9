"""Measures Interlock's model code beside mlx-lm on the same weights, in one run, by turns.

    cargo build --release -p interlock-models --example decode
    venv/bin/python tests/golden/generate.py convert target/models/smollm2-135m-instruct.gguf F32
    venv/bin/python tests/golden/compare.py target/release/examples/decode \
        target/models/smollm2-135m-instruct.gguf F32 --openblas libopenblas.so.0

mlx-lm runs in f32 with OpenBLAS interposed, which makes it some 20 times faster than it is as
installed. Printed is the best round of each, and the CPU time that round took: on a machine with
other work, the second is the fairer figure.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

DECODED = 64
LENGTHS = [32, 512]


def cpu_seconds():
    times = os.times()
    return times.user + times.system


def measure_mlx_lm(folder):
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model, config = load_model(Path(folder), lazy=False)
    for length in LENGTHS:
        prompt = [(i * 7919 + 13) % config["vocab_size"] for i in range(length)]
        cache = make_prompt_cache(model)
        started, cpu = time.perf_counter(), cpu_seconds()
        hidden = model.model(mx.array([prompt]), cache)[:, -1:]
        token = mx.argmax(model.model.embed_tokens.as_linear(hidden)[0, -1])
        mx.eval(token, [c.state for c in cache])
        prefill = time.perf_counter() - started
        prefill_cpu = cpu_seconds() - cpu
        started, cpu = time.perf_counter(), cpu_seconds()
        # As in mlx_lm's generate_step: the next graph is built while this one is computed.
        for _ in range(DECODED):
            token = mx.argmax(model(token.reshape(1, 1), cache)[0, -1])
            mx.async_eval(token)
        token.item()
        decode = time.perf_counter() - started
        decode_cpu = cpu_seconds() - cpu
        print(f"{length:>6} {length / prefill:>10.1f} {1000 * prefill_cpu / length:>10.2f} "
              f"{DECODED / decode:>10.1f} {1000 * decode_cpu / DECODED:>10.1f}")


def rows(output):
    """By prompt length: prefill tokens/s and CPU ms, decode tokens/s (one sequence) and CPU ms.

    mlx-lm's side prints them in one line; our example has a table for prompts and one for decoding.
    """
    lines = [line.split() for line in output.splitlines() if line.startswith(" ")]
    together = {line[0]: line[1:] for line in lines if len(line) == 5 and len(line[4]) < 8}
    prompts = {line[0]: line[1:] for line in lines if len(line) == 3}
    decoding = {line[1]: line[2:4] for line in lines if len(line) == 5 and line[0] == "1"}
    for length in prompts.keys() & decoding.keys():
        together[length] = prompts[length] + decoding[length]
    return {int(length): [float(n) for n in numbers] for length, numbers in together.items()
            if int(length) in LENGTHS}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("decode", help="our example binary; or 'mlx-lm', to be the other side")
    parser.add_argument("model")
    parser.add_argument("converted", nargs="?")
    parser.add_argument("--openblas")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.decode == "mlx-lm":
        return measure_mlx_lm(arguments.model)

    theirs_environment = dict(os.environ, MLX_DISABLE_COMPILE="1")
    if arguments.openblas:
        theirs_environment["LD_PRELOAD"] = arguments.openblas
    sides = {
        "interlock": ([arguments.decode, arguments.model], dict(os.environ)),
        "mlx-lm": ([sys.executable, __file__, "mlx-lm", arguments.converted], theirs_environment),
    }
    best = {}
    for _ in range(arguments.rounds):
        for side, (command, environment) in sides.items():
            done = subprocess.run(command, env=environment, text=True, check=True,
                                  stdout=subprocess.PIPE)
            for length, now in rows(done.stdout).items():
                old = best.setdefault((length, side), now)
                best[length, side] = [f(a, b) for f, a, b in zip([max, min, max, min], old, now)]
    load = os.getloadavg()[0]
    print(f"best of {arguments.rounds}, {os.cpu_count()} cores, load {load:.1f}")
    print(f"{'prompt':>6}  {'':<10} {'prefill tok/s':>14} {'cpu ms/tok':>11}"
          f" {'decode tok/s':>13} {'cpu ms/tok':>11}")
    for (length, side), row in sorted(best.items()):
        print(f"{length:>6}  {side:<10} {row[0]:>14.1f} {row[1]:>11.2f} {row[2]:>13.1f}"
              f" {row[3]:>11.1f}")


if __name__ == "__main__":
    main()
