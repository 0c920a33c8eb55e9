#!/usr/bin/env bash
# The protocol of the project's origin: 128 tokens, streaming, 5 iterations, 1, 2, 4 and 8 clients, the host
# in mode simple against the host in mode batched; short prompts, and then answers of all lengths, of which
# the short ones leave the batch early. Writes the data and the plot to results/, and the tables that
# RESULTS.md and README.md show of them.
#
#     tests/benches/modes.sh cpu                       the default model on this machine's CPU
#     tests/benches/modes.sh gpu --model FOLDER        a model on this machine's GPU
#     tests/benches/modes.sh tables                    the tables alone, from the data that is there
set -euo pipefail
cd "$(dirname "$0")/../.."
kind=${1:?"cpu, gpu or tables"}
shift
if [ "$kind" != tables ]; then
    target/release/interlock bench --api responses --workload short,mixed --prompt-tokens 32 \
        --json "tests/benches/results/modes-$kind.json" --plot "tests/benches/results/modes-$kind.svg" "$@"
fi
UPDATE=1 cargo test -q -p interlock-bench --locked --test figures
