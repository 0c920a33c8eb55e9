#!/usr/bin/env bash
# Builds WASM components and puts them where configurations and tests look for them:
#
#   build.sh [--locked] MANIFEST...      Cargo.toml of a crate or of a workspace
#
# Each `cdylib` becomes target/guests/NAME.wasm, named after its crate with dashes. A
# file whose content stays the same is left alone, so that whoever watches it (a
# running host, a test's cache) sees no change. A manifest that does not exist is
# skipped.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
guests=$root/target/guests

locked=()
if [ "${1:-}" = --locked ]; then
    locked=(--locked)
    shift
fi
if [ $# = 0 ]; then
    echo "usage: build.sh [--locked] MANIFEST..." >&2
    exit 2
fi

mkdir -p "$guests"
built=0
changed=()
for manifest in "$@"; do
    if [ ! -f "$manifest" ]; then
        echo "guests: no $manifest, skipped"
        continue
    fi
    # Cargo says in JSON which files it made, now or earlier: one line per crate, no
    # quotes inside the paths. (The `+` form: old bash takes an empty list for unset.)
    messages=$("$here/cargo.sh" build --release --quiet --manifest-path "$manifest" \
        ${locked[@]+"${locked[@]}"} --message-format json-render-diagnostics)
    while IFS= read -r component; do
        name=$(basename "$component" | tr _ -)
        built=$((built + 1))
        cmp -s "$component" "$guests/$name" && continue
        # Two steps, so that nobody ever reads half a component.
        cp "$component" "$guests/.$name.$$"
        mv "$guests/.$name.$$" "$guests/$name"
        changed+=("$name")
    done < <(sed -n 's/.*"filenames":\["\([^"]*\.wasm\)".*/\1/p' <<<"$messages")
done
echo "guests: $built in target/guests, ${#changed[@]} changed${changed[0]+: ${changed[*]}}"
