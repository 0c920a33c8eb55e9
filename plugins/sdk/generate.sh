#!/usr/bin/env bash
# Makes src/bindings/ from wit/policy.wit, after a change there. Needs
#   cargo install wit-bindgen-cli@0.61.1 --no-default-features --features rust
# A test says when this was forgotten.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
wit=$here/../../wit
out=$here/src/bindings

# A world for each phase, so that a policy exports what it takes part in; the words that
# two phases share are generated with the first.
types=interlock:policy/types@0.1.0=crate::bindings::admitting::interlock::policy::types
generate() { wit-bindgen rust "$wit" --out-dir "$out" --pub-export-macro --world "$@"; }
generate base
generate admitting
generate accounting --with "$types"
sha256sum <"$wit/policy.wit" | cut -d ' ' -f 1 >"$out/made-from.sha256"
