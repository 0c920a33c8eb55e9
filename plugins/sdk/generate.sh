#!/usr/bin/env bash
# Makes src/bindings/ from wit/policy.wit, after a change there. Needs
#   cargo install wit-bindgen-cli@0.61.1 --no-default-features --features rust
# A test says when this was forgotten.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
wit=$here/../../wit
out=$here/src/bindings
version=$(sed -n 's/^package interlock:policy@\(.*\);/\1/p' "$wit/policy.wit")

# A world for each phase and each capability, so that a component has those it uses and no
# other; the words that they share are generated with `base`. The equality is for tests.
types=interlock:policy/types@$version=crate::bindings::base::interlock::policy::types
generate() {
    wit-bindgen rust "$wit/policy.wit" --out-dir "$out" --pub-export-macro \
        --additional-derive-attributes PartialEq --world "$@"
}
generate base
generate measuring
generate reading
for world in identifying transforming routing admitting guarding-streams reacting accounting \
    remembering asking; do
    generate "$world" --with "$types"
done
sha256sum <"$wit/policy.wit" | cut -d ' ' -f 1 >"$out/made-from.sha256"
